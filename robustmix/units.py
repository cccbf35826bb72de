"""The space that inputs live in, and the budgets of attacks in its units.

Outside a model, images are float tensors in [0, 1]. People write budgets in units of 1/255 (``--eps 4``); the Python
API takes lengths in pixel units (``eps=4/255``). This module is the only place that converts between the two.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer

from robustmix.errors import SpecError


@dataclass(frozen=True)
class Space:
    """The range of valid inputs and the unit in which budgets are written.

    Attributes:
        low: smallest valid value.
        high: largest valid value.
        unit: length of one unit; one grey level for images.
        unit_name: how the unit is written.
    """

    low: float
    high: float
    unit: float
    unit_name: str


GREY_LEVELS: Final = 255
IMAGES: Final = Space(low=0.0, high=1.0, unit=1 / GREY_LEVELS, unit_name="1/255")


def parse_budget(value: object) -> float:
    """Read a budget in units of 1/255 from what a person wrote.

    Args:
        value: a number of at least 1 (``4``), or a text ``"4"``, ``"4/255"`` or ``"0.5/255"``.

    Returns:
        The budget in units of 1/255.

    Raises:
        SpecError: not a positive finite number, or a bare decimal in (0, 1), which could mean either a share of the
            pixel range or a share of a grey level.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpecError(f"budget {value!r} is not a number; write 4 or 0.5/255")
    text = str(value).strip()
    numerator, slash, denominator = text.partition("/")
    if slash and denominator.strip() != str(GREY_LEVELS):
        raise SpecError(f"budget {text!r}: the only denominator is {GREY_LEVELS}; write 4 or 4/255")
    try:
        budget = float(numerator)
    except ValueError:
        raise SpecError(f"budget {text!r} is not a number; write 4 or 0.5/255") from None
    if not math.isfinite(budget) or budget <= 0:
        raise SpecError(f"budget {text!r} must be a positive finite number of units of 1/255")
    if not slash and budget < 1:
        raise SpecError(
            f"budget {text!r} is ambiguous: for the share {text} of the pixel range write "
            f"{format_budget(budget * GREY_LEVELS)}, for that share of one grey level write {text}/255"
        )
    return budget


# Written with its unit, so that what is read back is the same budget: 0.5 alone would be ambiguous.
Budget = Annotated[
    float,
    BeforeValidator(parse_budget),
    PlainSerializer(lambda budget: f"{budget:.17g}/{GREY_LEVELS}", return_type=str),
]


def format_budget(budget: float) -> str:
    """Write a budget in units of 1/255 briefly: ``4``, ``0.5``, ``4.004``."""
    return f"{budget:.4g}"


def echo_budget(budget: float) -> str:
    """Write a budget with its length in pixel units: ``4/255 = 0.01569``."""
    return f"{format_budget(budget)}/255 = {to_pixels(budget):.4g}"


def to_pixels(budget: float) -> float:
    """Convert a budget from units of 1/255 to pixel units in [0, 1]."""
    return budget / GREY_LEVELS


def described(value: object) -> str:
    """What an error calls a value that is not of the kind expected: itself where that is short, else its type."""
    return repr(value) if isinstance(value, str | float | int | None) else type(value).__name__


def check_length(value: object, what: str, longest: float = IMAGES.high - IMAGES.low) -> float:
    """Check a length in pixel units, as the Python API takes it.

    Args:
        value: the length.
        what: its name.
        longest: that a perturbation can be; in L-infinity 1, in L2 the square root of the number of pixel values.

    Raises:
        SpecError: no number, not finite, negative, or longer than any perturbation, which is the sign of units of
            1/255.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SpecError(f"{what} must be a number, a length in pixel units; got {described(value)}")
    length = float(value)
    if not math.isfinite(length) or length < 0:
        raise SpecError(f"{what}={value!r} must be a finite length of at least 0, in pixel units")
    if length > longest:
        raise SpecError(
            f"{what}={value!r} is longer than any perturbation within the pixel range [0, 1] ({longest:g}): lengths "
            f"are in pixel units here; write {what}={length:.8g}/255 for {length:.8g} grey levels"
        )
    return length
