"""How the page writes numbers and names."""

from collections.abc import Iterable, Sequence
from typing import Final

from robustmix.units import format_budget

ATTACKS: Final = {"clean": "clean", "fgsm": "FGSM", "ifgsm": "I-FGSM"}
METHODS: Final = {"erm": "ERM"}
ROLES: Final = {"clean": "clean", "white": "white box", "transfer": "transfer"}
NONE: Final = "–"
# Between a number and its unit, so that no line breaks there.
NBSP: Final = "\N{NO-BREAK SPACE}"


def percent(share: float | None) -> str:
    """A share in per cent with one decimal: ``32.2 %``; a dash if there is none."""
    return NONE if share is None or share != share else f"{100 * share:.1f}{NBSP}%"


def interval(low: float, high: float) -> str:
    """An interval of shares in per cent: ``[27.6, 37.2]``."""
    return f"[{100 * low:.1f},{NBSP}{100 * high:.1f}]"


def spread(values: Sequence[float]) -> str:
    """The range of shares in per cent: ``27.6 to 37.2``; nothing for a single one."""
    return f"{100 * min(values):.1f} to {100 * max(values):.1f}" if len(values) > 1 else ""


def budget(eps: float) -> str:
    """A budget or a step in units of 1/255: ``4/255``."""
    return f"{format_budget(eps)}/255"


def method_name(method: str) -> str:
    """A method as it is written: ``ERM``, ``mixup``."""
    return METHODS.get(method, method)


def join_names(names: Iterable[str]) -> str:
    """Names as a phrase: ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, noun: str) -> str:
    """A number and its noun: ``1 run``, ``1,797 images``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
