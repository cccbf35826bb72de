"""Whether a method changes the error against ERM in the direction that was published: all that two designs share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from robustmix.published import Figure, find
from robustmix.report import beside
from robustmix.report.effects import DECLARED, Effect, effect, effects, unlike
from robustmix.report.material import Material
from robustmix.report.result import Result
from robustmix.report.text import interval, method_name, points
from robustmix.stats import SEEDS_FOR_METHODS, Difference, difference

Direction = Literal["same direction", "opposite direction", "undecided"]
Side = tuple[Figure, Sequence[Result]]

# What a figure shares with that of plain ERM which it is held against.
SHARED: Final = (
    "data",
    "model",
    "role",
    "attack",
    "metric",
    "split",
    "statistic",
    "eps_255",
    "steps",
    "source_method",
)
# Behind the interval of what is no declared test.
UNCORRECTED: Final = ", uncorrected"
SHARED_TRAINING: Final = ("weight_decay", "label_noise")


@dataclass(frozen=True)
class ComparedEffect:
    """What a method changes against ERM, as published and as measured: all that another design can be held against.

    Attributes:
        role: and attack, in words.
        method: that is held against ERM.
        published: points of error more than ERM, signed.
        reproduces: whether both figures that this is the difference of do.
        measured: the same here, with its 95 % interval where there are two runs of each.
        runs: that were measured.
        verdict: whether both point the same way; undecided where it speaks of no methods (`Effect.about`), where the
            interval holds 0, or for a declared effect by its p value after Holm.
    """

    role: str
    method: str
    published: str
    reproduces: bool
    measured: str
    runs: tuple[str, ...]
    verdict: Direction


def erm_beside(figure: Figure) -> Figure | None:
    """The figure of plain ERM that one of another method is held against: of its own table, or of the one it mends."""
    tables = [figure.experiment, *(f.experiment for f in find(corrected_by=figure.id))]
    same = {key: getattr(figure, key) for key in SHARED}
    for name in dict.fromkeys(tables if figure.method != "erm" else ()):
        for base in find(experiment=name, method="erm", **same):
            if all(getattr(base.recipe, key) == getattr(figure.recipe, key) for key in SHARED_TRAINING):
                return base
    return None


def measured_effect(base: Side, other: Side, role: str, material: Material) -> ComparedEffect | None:
    """A method's published change against ERM beside the measured one; None where that cannot be had.

    Args:
        base: the figure of ERM and the results beside it, at least one.
        other: the method's.
        role: and attack, in words.
        material: of the report.
    """
    found = _from_histories(base, other, material) or _from_cells(base, other, material)
    if found is None:
        return None
    published = _change(base[0], other[0])
    ends = (found.difference.low, found.difference.high) if found.difference else None
    return ComparedEffect(
        role=role,
        method=method_name(other[0].method),
        published=points(published),
        reproduces=base[0].reproduces and other[0].reproduces,
        measured=points(found.change) + (f" {interval(*ends)}{found.corrected}" if ends else ""),
        runs=found.runs,
        verdict=_direction(published, found.change) if found.sure else "undecided",
    )


def published_effect(there: Figure, here: Figure, role: str, who: str) -> ComparedEffect | None:
    """The same of two published figures: their signs, without an interval; None where either table lacks ERM.

    Args:
        there: of the table that the other is held against.
        here: of the one that holds itself against it.
        role: and attack, in words.
        who: the source of ``here``, in a few words.
    """
    bases = erm_beside(there), erm_beside(here)
    if bases[0] is None or bases[1] is None:
        return None
    changes = _change(bases[0], there), _change(bases[1], here)
    published, measured = map(points, changes)
    return ComparedEffect(
        role=role,
        method=method_name(there.method),
        published=published,
        reproduces=bases[0].reproduces and there.reproduces,
        measured=measured,
        runs=(who,),
        verdict=_direction(*changes),
    )


@dataclass(frozen=True)
class _Found:
    change: float
    difference: Difference | None
    runs: tuple[str, ...]
    sure: bool
    corrected: str = UNCORRECTED


def _from_histories(base: Side, other: Side, material: Material) -> _Found | None:
    """By a statistic over the epochs: histories hold no errors by image, so that seeds alone are drawn."""
    one, two = (beside.measured(figure, results, material) for figure, results in (base, other))
    if one.statistic != two.statistic or one.statistic == "last":
        return None
    fewest = min(len(one.errors), len(two.errors))
    first, second = (np.array(side.errors)[None, :, None] for side in (one, two))
    found = difference(first, second) if fewest > 1 else None
    names = [tuple(text[0] for text in side.texts) for side in (one, two)]
    of_methods = fewest >= SEEDS_FOR_METHODS and not unlike(material, *names)
    return _Found(
        change=float(np.mean(two.errors) - np.mean(one.errors)),
        difference=found,
        runs=(*names[0], *names[1]),
        sure=found is not None and of_methods and not found.low <= 0 <= found.high,
    )


def _from_cells(base: Side, other: Side, material: Material) -> _Found | None:
    """By the last epoch, image by image, over every run of both families."""
    at = other[1][0]
    first, second = (material.family_of[results[0].target] for _, results in (base, other))
    source = material.family_of[at.source] if at.role == "transfer" and at.source else None
    found = effect(material, other[0].role, at.label, at.eps or 0.0, first, second, source)
    if found is None:
        return None
    found = _declared(found, material) or found
    runs = (*found.names[0], *found.names[1])
    corrected = UNCORRECTED if found.p is None else ""
    return _Found(found.observed, found.difference, runs, found.direction in (-1, 1), corrected)


def _declared(found: Effect, material: Material) -> Effect | None:
    """The declared effect that this is, with its p value after Holm; None if it is descriptive."""
    if found.role != "white" or found.label not in DECLARED or found.base != material.base_family:
        return None
    same = (found.role, found.label, found.eps, found.family)
    declared = (e for e in effects(material) if e.declared)
    return next((e for e in declared if (e.role, e.label, e.eps, e.family) == same), None)


def _change(base: Figure, other: Figure) -> float:
    return (other.value - base.value) / 100


def _direction(one: float, other: float) -> Direction:
    if one * other == 0:
        return "undecided"
    return "same direction" if one * other > 0 else "opposite direction"
