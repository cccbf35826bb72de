"""How much more or less often the networks of one way of training err than those of plain ERM, with its uncertainty.

A family is compared with the base on the same examples: every network attacked by itself in the white box, and under
transfer from the same sources, never itself. The declared family of tests is {white box, transfer} x {FGSM, I-FGSM} at
the headline budget, by the attacks as publications mean them; its p values are corrected together (Holm 1979). All else
is descriptive, the errors without an attack included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from robustmix.report.material import Material, once
from robustmix.report.text import imported, join_names, stated
from robustmix.spec.attack import DEFAULT_STEPS
from robustmix.spec.recipe import FIELDS_OF_METHODS, Recipe
from robustmix.spec.titles import ATTACK_TITLES
from robustmix.stats import SEEDS_FOR_METHODS, Difference, difference, holm
from robustmix.store.runs import Run

Role = Literal["clean", "white", "transfer"]

FGSM: Final = ATTACK_TITLES["fgsm"]
IFGSM: Final = f"{ATTACK_TITLES['ifgsm']}, {DEFAULT_STEPS} steps"
# The attacks of the declared family, as their sweeps are called when every parameter is the usual one.
DECLARED: Final = (FGSM, IFGSM)
# A declared effect counts below this p, after Holm.
LEVEL: Final = 0.05
# From this error on, under an attack, a network is not robust to it, whichever of two errs less.
NOT_ROBUST: Final = 0.9
# What makes one method another; two methods that differ in anything else besides say nothing of each other.
OF_METHODS: Final = (
    "method", *FIELDS_OF_METHODS, "drop", "label_smoothing", "noise", "label_noise", "adversarial_eps",
    "adversarial_steps",
)  # fmt: skip
# What is a control of its own between runs of one method.
CONTROL: Final = "weight_decay"


@dataclass(frozen=True)
class Effect:
    """The difference in error between two families under one attack.

    Attributes:
        role: ``clean``, ``white`` or ``transfer``.
        label: the attack in words, without its budget; ``clean`` for none.
        attack: its name in results.
        eps: budget in units of 1/255; 0 for none.
        base: family that the other is held against.
        family: the other one.
        source: family of the sources, both families' names where they are pooled in pairs; None but in transfer.
        names: runs of the base and of the family.
        n: test examples.
        observed: mean error of the family's runs less that of the base's, a fraction.
        difference: the same with its interval; None below two runs of each.
        p: that there is no difference, after Holm; None unless declared and with two runs of each.
        declared: whether it belongs to the declared family of tests.
        about: ``methods`` from three seeds of each on (and of each family of sources) where nothing but the method sets
            them apart, else ``runs``.
        unlike: what else sets their recipes apart, as ``width 16 or 64``.
    """

    role: Role
    label: str
    attack: str
    eps: float
    base: str
    family: str
    source: str | None
    names: tuple[tuple[str, ...], tuple[str, ...]]
    n: int
    observed: float
    difference: Difference | None
    p: float | None
    declared: bool
    about: Literal["methods", "runs"]
    unlike: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[int, int]:
        """How many runs of the base and of the family."""
        return len(self.names[0]), len(self.names[1])

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval of the difference; None below two runs of each."""
        return (self.difference.low, self.difference.high) if self.difference else None

    @property
    def direction(self) -> Literal[-1, 0, 1] | None:
        """-1 where the family's method errs less, 1 where it errs more, 0 where that is undecided.

        The interval decides, and for a declared effect the p value after Holm as well. None where the effect does not
        speak of methods.
        """
        found = self.difference
        if found is None or self.about == "runs":
            return None
        if found.low <= 0 <= found.high or (self.p is not None and self.p >= LEVEL):
            return 0
        return -1 if found.estimate < 0 else 1


@once
def effects(material: Material) -> tuple[Effect, ...]:
    """Every family of runs against the base, under every attack at its headline budget.

    In the white box first, then under transfer: over pairs of a source of the base and one of the family, so that
    neither is favoured, then from each family of sources. Last without an attack. Empty where there is no plain ERM, or
    nothing beside it.
    """
    base = material.base_family
    if base is None:
        return ()
    found = []
    for family in (name for name in material.families if name not in material.models and name != base):
        for role in ("white", "transfer"):
            for label in material.attacks:
                found += _of_attack(material, role, label, base, family)
        clean = effect(material, "clean", "clean", 0.0, base, family)
        found += [clean] if clean else []
    return _corrected(found)


def unlike(material: Material, ones: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """What sets the recipes of two kinds of runs apart besides the method, as ``width 16 or 64``; all that is known.

    Between runs of one method the weight decay alone may differ: that is a method of its own.
    """
    sides = [[material.runs[name] for name in names if name in material.runs] for names in (ones, others)]
    runs = [run for side in sides for run in side]
    apart = {}
    for field in Recipe.model_fields:
        values = dict.fromkeys(
            _written(run, field) for run in runs if not imported(run) or stated(run, field) is not None
        )
        if len(values) > 1:
            apart[field] = " or ".join(values)
    besides = [field for field in apart if field not in OF_METHODS and field != "seed"]
    if besides == [CONTROL] and apart.keys().isdisjoint(OF_METHODS):
        return ()
    return tuple(f"{field.replace('_', ' ')} {apart[field]}" for field in besides)


def _written(run: Run, field: str) -> str:
    """A field of a run's recipe in words; milestones that are the usual ones are none."""
    value = getattr(run.recipe, field)
    if field == "milestones":
        usual = run.recipe.model_copy(update={"milestones": None})
        value = None if run.recipe.decay_epochs == usual.decay_epochs else value
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def pooled(base: str, family: str) -> str:
    """What the source of an effect is called that is pooled over pairs of one source of either family."""
    return join_names((base, family))


def errors(
    material: Material, role: Role, label: str, eps: float, targets: Sequence[str], sources: Sequence[str] = ()
) -> np.ndarray:
    """Whether each target errs on each example, float [sources, targets, images].

    NaN where a source would be attacked by itself, or where a cell is missing. Without an attack and in the white box
    there is one row of sources.
    """
    rows: list[list[np.ndarray | None]]
    if role == "transfer":
        rows = [[None if s == t else material.errs(s, t, label, eps) for t in targets] for s in sources]
    else:
        rows = [[material.errs(None if role == "clean" else t, t, label, eps) for t in targets]]
    found = np.full((len(rows), len(targets), material.find("clean")[0].n), np.nan)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell is not None:
                found[i, j] = cell
    return found


def effect(
    material: Material, role: Role, label: str, eps: float, base: str, family: str, source: str | None = None
) -> Effect | None:
    """Compare two families under one attack; None where either has no network that could be compared.

    Args:
        material: of the report.
        role: ``clean``, ``white`` or ``transfer``.
        label: the attack in words, without its budget; ``clean`` for none.
        eps: budget in units of 1/255; 0 for none.
        base: family that the other is held against.
        family: the other one.
        source: under transfer, the family that crafts, or `pooled`: pairs of one of either family.
    """
    crafting = _crafting(material, base, family, source) if source else [()]
    sides = [material.scored(one) for one in (base, family)]
    arrays = [_by_row(material, role, label, eps, names, crafting) for names in sides]
    if role == "transfer":
        # A source that has not attacked every other network of both would weigh more in one than in the other.
        kept = np.logical_and(*(_complete(a, names, crafting) for a, names in zip(arrays, sides, strict=True)))
        arrays = [array[kept] for array in arrays]
        crafting = [row for row, keeps in zip(crafting, kept, strict=True) if keeps]
    scored = [~np.isnan(array).all(axis=(0, 2)) for array in arrays]
    first, second = (array[:, has] for array, has in zip(arrays, scored, strict=True))
    ones, others = (
        tuple(name for name, was in zip(names, has, strict=True) if was)
        for names, has in zip(sides, scored, strict=True)
    )
    if not ones or not others:
        return None
    compared = difference(first, second) if min(len(ones), len(others)) > 1 else None
    fewest = min(len(ones), len(others), len(crafting) if role == "transfer" else math.inf)
    besides = unlike(material, ones, others)
    return Effect(
        role=role,
        label=label,
        attack="clean" if role == "clean" else next(r.attack for r in material.results if r.label == label),
        eps=eps,
        base=base,
        family=family,
        source=source,
        names=(ones, others),
        n=first.shape[-1],
        observed=compared.estimate if compared else _mean(second) - _mean(first),
        difference=compared,
        p=None,
        declared=False,
        about="methods" if fewest >= SEEDS_FOR_METHODS and not besides else "runs",
        unlike=besides,
    )


def _of_attack(material: Material, role: Role, label: str, base: str, family: str) -> list[Effect]:
    eps = material.headline(label)
    if eps is None:
        return []
    sources = [None] if role == "white" else [pooled(base, family), *material.families]
    found = [effect(material, role, label, eps, base, family, source) for source in sources]
    declared = label in DECLARED
    return [replace(e, declared=declared and e.source in sources[:1]) for e in found if e]


def _crafting(material: Material, base: str, family: str, source: str) -> list[tuple[str, ...]]:
    """The rows of sources: one each, or where they are pooled one of either family.

    Pooled by pairs, every target meets as many of the one as of the other, and that examples transfer better within a
    family does not count as chance between sources.
    """
    crafts = map(material.crafting, (base, family) if source == pooled(base, family) else (source,))
    return list(zip(*crafts, strict=False))


def _by_row(
    material: Material, role: Role, label: str, eps: float, targets: Sequence[str], crafting: Sequence[tuple[str, ...]]
) -> np.ndarray:
    """`errors`, of which each row is the mean over its sources; without sources a single row."""
    columns = list(zip(*crafting, strict=True)) or [()]
    return np.asarray(np.mean([errors(material, role, label, eps, targets, own) for own in columns], axis=0))


def _complete(array: np.ndarray, targets: Sequence[str], crafting: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Whether each row of sources has attacked every target but themselves, and any at all, bool [rows]."""
    itself = np.array([[target in row for target in targets] for row in crafting], bool).reshape(array.shape[:2])
    missing = np.isnan(array).any(axis=2)
    return np.asarray(~(missing & ~itself).any(axis=1) & ~itself.all(axis=1))


def _mean(array: np.ndarray) -> float:
    """Over images, then over the targets that a source has, then over sources."""
    return float(np.nanmean(np.nanmean(array.mean(axis=2), axis=1)))


def _corrected(found: Sequence[Effect]) -> tuple[Effect, ...]:
    tested = [effect for effect in found if effect.declared and effect.difference]
    adjusted = iter(holm([effect.difference.p for effect in tested if effect.difference]))
    return tuple(replace(e, p=next(adjusted)) if e.declared and e.difference else e for e in found)
