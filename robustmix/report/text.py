"""How the page writes numbers and names."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from robustmix.units import format_budget

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


def length(value: float | None) -> str:
    """A length in units of 1/255; a dash if there is none, and in words if nothing is long enough."""
    return NONE if value is None else "none long enough" if math.isinf(value) else budget(value)


def span(low: float, high: float) -> str:
    """Where a budget lies that a sweep has bounded: ``2 to 4``; ``above 8``; ``0`` for no attack at all."""
    if high == 0:
        return "0"
    return f"above {format_budget(low)}" if math.isinf(high) else f"{format_budget(low)} to {format_budget(high)}"


def signed_span(low: float, high: float) -> str:
    """Where a difference of budgets lies: ``-1 to +3``; infinite ends in words."""
    ends = ["anything" if math.isinf(end) else f"{end:+.4g}" for end in (low, high)]
    return " to ".join(ends)


def probability(p: float) -> str:
    """A p value: ``0.031``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points: ``+0.4``."""
    return f"{100 * difference:+.1f}"


def passes(forward: float, backward: float) -> str:
    """Forward and backward passes per example: ``11 + 10``."""
    return f"{forward:.4g} + {backward:.4g}"


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
