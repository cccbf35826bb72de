"""How mixup's lambda is drawn, as people write it."""

from typing import Final, NamedTuple

MOST_ALPHA: Final = 1000


class Law(NamedTuple):
    """How lambda is drawn.

    Attributes:
        kind: ``beta``, ``uniform`` or ``fixed``.
        values: (alpha,), (low, high) or (lambda,).
    """

    kind: str
    values: tuple[float, ...]


def parse_law(text: str) -> Law:
    """Read a distribution of lambda: ``beta:1``, ``uniform:0.5,1`` or a number in [0, 1].

    Raises:
        ValueError: it is none of these.
    """
    kind, colon, rest = text.strip().partition(":")
    try:
        values = tuple(float(part) for part in (rest if colon else kind).split(","))
    except ValueError:
        values = ()
    if not colon and len(values) == 1 and 0 <= values[0] <= 1:
        return Law("fixed", values)
    if kind == "beta" and len(values) == 1 and 0 < values[0] <= MOST_ALPHA:
        return Law(kind, values)
    if kind == "uniform" and len(values) == 2 and 0 <= values[0] <= values[1] <= 1:
        return Law(kind, values)
    raise ValueError(
        f"{text!r} is no distribution of lambda: write beta:ALPHA (above 0), uniform:LOW,HIGH (in [0, 1]) or one "
        "number in [0, 1]"
    )
