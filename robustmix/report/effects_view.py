"""The effects between families as a table, and what may be concluded from it."""

from collections.abc import Sequence
from typing import Final

from robustmix.report.effects import Effect
from robustmix.report.tables import Table
from robustmix.report.text import NONE, ROLES, budget, interval, plural, points, probability
from robustmix.spec.attack import DEFAULT_STEPS
from robustmix.stats import SEEDS_FOR_METHODS

COUNTS: Final = (
    f"Only FGSM, and I-FGSM with {DEFAULT_STEPS} steps of a {DEFAULT_STEPS}th of the budget each, on cross-entropy and "
    "in float32, count as declared"
)


def effects_table(found: Sequence[Effect]) -> Table:
    """A row per effect, the declared ones first."""
    rows = [
        [
            ROLES[effect.role],
            f"{effect.label} at {budget(effect.eps)}" if effect.eps else "none",
            effect.source or ("itself" if effect.eps else NONE),
            effect.base,
            effect.family,
            "declared" if effect.declared else "descriptive",
            "{} and {}".format(*effect.runs),
            points(effect.observed),
            interval(effect.difference.low, effect.difference.high) if effect.difference else NONE,
            NONE if effect.p is None else probability(effect.p),
        ]
        for effect in sorted(found, key=lambda effect: not effect.declared)
    ]
    header = (
        "Inputs", "Attack", "Crafted on", "First", "Second", "Test", "Networks", "Difference, points", "[95 %]",
        "p (Holm)",
    )  # fmt: skip
    return Table("Second less first: how much more or less often its networks err", header, rows, texts=6, naming=1)


def effects_scope(found: Sequence[Effect]) -> str:
    """What was declared beforehand and what is descriptive, and whether it speaks of methods."""
    return f"{_tests(found)} {_about(found)}"


def speak_of_methods(found: Sequence[Effect]) -> bool:
    """Whether every declared effect, or where none is every effect, speaks of methods."""
    judged = _judged(found)
    return bool(judged) and all(effect.about == "methods" for effect in judged)


def _judged(found: Sequence[Effect]) -> list[Effect]:
    return [effect for effect in found if effect.declared] or list(found)


def _tests(found: Sequence[Effect]) -> str:
    """Which lines are tests that were declared beforehand; if none is, why."""
    tested = [effect for effect in found if effect.p is not None]
    if tested:
        return (
            f"{plural(len(tested), 'test')} of {{white box, transfer}} x {{FGSM, I-FGSM}} at the headline budget "
            f"{'were' if len(tested) > 1 else 'was'} declared beforehand and corrected together after Holm; all other "
            f"lines are descriptive. {COUNTS}."
        )
    if any(effect.declared for effect in found):
        return (
            "Without two runs of each there is no test and no interval of the effects that were declared beforehand: "
            f"every line is descriptive. {COUNTS}."
        )
    return f"{COUNTS}. There is no such line here, so that nothing is declared and every line is descriptive."


def _about(found: Sequence[Effect]) -> str:
    """Whether the lines speak of methods; if not, why."""
    if speak_of_methods(found):
        return f"With at least {SEEDS_FOR_METHODS} seeds of each, they speak of the methods."
    runs = "they speak of the runs and not of the methods that trained them."
    apart = list(dict.fromkeys(one for effect in _judged(found) for one in effect.unlike))
    if apart:
        return f"Kinds that differ in more than the method ({'; '.join(apart)}) are not two methods alone: {runs}"
    return f"With fewer than {SEEDS_FOR_METHODS} seeds of a kind, {runs}"
