"""The effects between families as a table, and what may be concluded from it."""

from collections.abc import Sequence

from robustmix.report.effects import Effect
from robustmix.report.tables import Table
from robustmix.report.text import NONE, ROLES, budget, interval, plural, points, probability
from robustmix.stats import SEEDS_FOR_METHODS


def effects_table(found: Sequence[Effect]) -> Table:
    """A row per effect, the declared ones first."""
    rows = [
        [
            ROLES[effect.role],
            f"{effect.label} at {budget(effect.eps)}",
            effect.source or "itself",
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
    declared = [effect for effect in found if effect.p is not None]
    about = (
        "With at least {} seeds of each, they speak of the methods."
        if speak_of_methods(found)
        else "With fewer than {} seeds of a kind, they speak of the runs and not of the methods that trained them."
    ).format(SEEDS_FOR_METHODS)
    tests = (
        f"{plural(len(declared), 'test')} of {{white box, transfer}} x {{FGSM, I-FGSM}} at the headline budget "
        f"{'were' if len(declared) > 1 else 'was'} declared beforehand and corrected together after Holm; all other "
        "lines are descriptive."
        if declared
        else "Without two runs of each there is no test and no interval: every line is descriptive."
    )
    return f"{tests} {about}"


def speak_of_methods(found: Sequence[Effect]) -> bool:
    """Whether every declared effect rests on enough seeds to speak of methods."""
    return bool(found) and all(effect.about == "methods" for effect in found if effect.declared)
