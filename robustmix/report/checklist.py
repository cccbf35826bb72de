"""Whether an evaluation did what one should, filled in from its files (after Carlini et al. 2019)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from robustmix.report.comparison import comparison_tables
from robustmix.report.material import Material
from robustmix.report.robustness import worst_cases
from robustmix.report.text import join_names, percent, plural
from robustmix.spec.attack import ITERATED, MINIMUM_NORM
from robustmix.spec.titles import ATTACK_TITLES
from robustmix.stats import SEEDS_FOR_METHODS
from robustmix.store.cells import CellIdentity

State = Literal["done", "partly", "not done", "not applicable"]

# As many gradients as an iterated attack needs for its steps not to matter, and for it to be called iterated.
MANY_STEPS: Final = 100
SOME_STEPS: Final = 10
# From so many budgets on, a curve can be seen.
SOME_BUDGETS: Final = 3
WITHOUT_GRADIENTS: Final = ("square", "hopskipjump", "autoattack")
BASELINES: Final = ("signs", "noise")
# An error from which on a network counts as broken.
BROKEN: Final = 0.95
# What an audit's test says of an item: done where it did not go wrong, and in words where it did.
SUCCEEDED: Final = ("pass", "finding")
NORMS: Final = {"linf": "L-infinity", "l2": "L2"}


@dataclass(frozen=True)
class Item:
    """One line of the checklist.

    Attributes:
        what: should be done.
        state: whether it was.
        where: how, and in which part of the page; what to do where it was not done.
    """

    what: str
    state: State
    where: str


Answer = tuple[State, str]


def checklist(material: Material) -> list[Item]:
    """Every line, in order."""
    return [Item(what, *answer(material)) for what, answer in ITEMS.items()]


def _either(done: str, otherwise: str) -> Answer:
    """Done where there is a word to say of it."""
    return ("done", done) if done else ("not done", otherwise)


def _white(material: Material) -> list[CellIdentity]:
    """What attacked a target in the white box."""
    return [cell.identity for cell in material.cells if cell.identity.source == cell.identity.target]


def _most_steps(material: Material) -> int:
    return max((identity.steps for identity in _white(material) if identity.attack in ITERATED), default=0)


def _made(material: Material, attacks: Sequence[str]) -> str:
    """Which of some attacks was made in the white box, and where it stands; empty if none was."""
    names = {identity.attack for identity in _white(material)} & set(attacks)
    return f"{join_names(ATTACK_TITLES[name] for name in sorted(names))}: All results." if names else ""


def _or_audited(material: Material, done: str, test: str, otherwise: str) -> Answer:
    """Done where there is a word to say of it, else as far as an audit's test succeeded on the targets."""
    return ("done", done) if done else _audited(material, test) or ("not done", otherwise)


def _audited(material: Material, name: str) -> Answer | None:
    """What the audits say of one test: done where it succeeded on every target; None where none ran it."""
    verdicts: dict[str, str] = {}
    for record in material.evidence.audits:
        for test in record.tests:
            if test.name == name and test.verdict != "not run":
                verdicts[record.weights] = test.verdict
    found = {target: verdicts.get(material.weights[target]) for target in material.evidence.targets}
    if not any(found.values()):
        return None
    succeeded = [target for target, verdict in found.items() if verdict in SUCCEEDED]
    parts = [f"of {join_names(succeeded)}"] if succeeded else []
    for verdict, words in (("warn", "with a warning for"), ("fail", "failed for"), (None, "not run for")):
        if names := [target for target, of_target in found.items() if of_target == verdict]:
            parts.append(f"{words} {join_names(names)}")
    state: State = "done" if len(succeeded) == len(found) else "partly" if succeeded else "not done"
    return state, f"Audit {', '.join(parts)}."


def _threat(material: Material) -> Answer:
    attacked = [cell.identity for cell in material.cells if cell.identity.source]
    if not attacked:
        return "not done", "Nothing was attacked."
    norms = join_names(sorted({NORMS[identity.norm] for identity in attacked}))
    labels = join_names(sorted({identity.labels for identity in attacked}))
    return "done", (
        f"Methods: untargeted, {norms} budgets on pixels in [0, 1], {labels} labels; in the white box all is known, "
        "under transfer nothing but the data."
    )


def _iterated(material: Material) -> Answer:
    most = _most_steps(material)
    return _either(
        f"Up to {most} steps: All results." if most >= SOME_STEPS else "",
        "Single-step attacks alone say little: --attack ifgsm.",
    )


def _many_steps(material: Material) -> Answer:
    most = _most_steps(material)
    return _or_audited(
        material,
        f"Up to {most} steps: All results." if most >= MANY_STEPS else "",
        "convergence",
        f"No white-box attack of {MANY_STEPS} steps or more: robustmix audit.",
    )


def _restarts(material: Material) -> Answer:
    most = max((identity.restarts for identity in _white(material)), default=1)
    return _or_audited(
        material,
        f"PGD with {plural(most, 'restart')}: All results." if most > 1 else "",
        "restarts",
        "One start only: --attack pgd --restarts 5, or robustmix audit.",
    )


def _transfer(material: Material) -> Answer:
    crafting = {material.family_of[r.source] for r in material.results if r.role == "transfer" and r.source}
    if not crafting:
        return "not done", "Nothing was transferred: add sources and targets."
    if len(crafting) == 1:
        return "not done", "Sources of one kind only answer by construction: add sources of the others."
    missing = [family for family in material.families if family not in crafting]
    kinds = f"From networks of {plural(len(crafting), 'kind')}"
    return (
        ("partly", f"{kinds}, none of {join_names(missing)}: Transfer.") if missing else ("done", f"{kinds}: Transfer.")
    )


def _gradient_free(material: Material) -> Answer:
    return _or_audited(
        material,
        _made(material, WITHOUT_GRADIENTS),
        "square",
        "No attack without gradients: --attack square, or robustmix audit.",
    )


def _baseline(material: Material) -> Answer:
    return _or_audited(
        material,
        _made(material, BASELINES),
        "random-signs",
        "Nothing that an attack must beat: --attack signs, or robustmix audit.",
    )


def _losses(material: Material) -> Answer:
    losses = sorted({identity.loss for identity in _white(material)} - {"ce"})
    return _or_audited(
        material,
        f"Loss {join_names(losses)}: All results." if losses else "",
        "log-odds",
        "Cross-entropy alone, which saturates: --loss logodds, or robustmix audit.",
    )


def _sweep(material: Material) -> Answer:
    most = max((len({r.eps for r in material.find("white", label=label)}) for label in material.attacks), default=0)
    return _either(
        f"{most} budgets: Error against budget." if most >= SOME_BUDGETS else "",
        "Too few budgets to see a curve: --eps with several.",
    )


def _breaks(material: Material) -> Answer:
    """Every target, not only the weakest."""
    worst = {name: [r for r in material.find("white", target=name) if r.eps] for name in material.evidence.targets}
    found = [max(results, key=lambda r: (r.error, r.label, r.eps)) for results in worst.values() if results]
    least = min(found, key=lambda r: r.error, default=None)
    broken = least is not None and len(found) == len(worst) and least.error >= BROKEN
    return _or_audited(
        material,
        f"Each errs on at least {percent(least.error)} under some attack and budget: All results."
        if broken and least
        else "",
        "large-budget",
        "No budget at which every network fails altogether: robustmix audit.",
    )


def _smallest(material: Material) -> Answer:
    return _either(_made(material, MINIMUM_NORM), "Bounded by the sweep only: --attack deepfool or cw.")


def _autoattack(material: Material) -> Answer:
    return _either(_made(material, ("autoattack",)), "Not made: --attack autoattack.")


def _worst(material: Material) -> Answer:
    return _either("Worst case." if worst_cases(material) else "", "One attack only: there is no set to take it over.")


def _every_image(material: Material) -> Answer:
    n = material.cells[0].rows.num_rows
    return "done", f"All {n:,} that were asked for, those included that are wrong without an attack: All results."


def _seeds(material: Material) -> Answer:
    counts = {family: len(names) for family, names in material.families.items() if family not in material.models}
    if not counts:
        return "not applicable", "No network was trained here."
    fewest = min(counts.values())
    words = join_names(f"{plural(count, 'run')} of {family}" for family, count in counts.items())
    return _either(
        f"{words}: Effects." if fewest >= SEEDS_FOR_METHODS else "",
        f"{words}: a claim about methods needs {SEEDS_FOR_METHODS} seeds each.",
    )


def _audit(material: Material) -> Answer:
    audited = {record.weights for record in material.evidence.audits}
    missing = [name for name in material.evidence.targets if material.weights[name] not in audited]
    if not audited:
        return "not done", "robustmix audit."
    return ("partly", f"Audit; without {join_names(missing)}.") if missing else ("done", "Audit.")


def _published(material: Material) -> Answer:
    if material.facts.like is None and not (material.evidence.suite and material.evidence.suite.published):
        return "not applicable", "Nothing published is known of such data."
    # Of what one source held against another nothing was measured here.
    rows = (row for table in comparison_tables(material) if not table.against for row in table.rows)
    return _either(
        "Published and measured." if any(row.measured for row in rows) else "",
        "No published figure stands beside what was measured: a suite with [published].",
    )


def _adapted(material: Material) -> Answer:
    if material.models:
        names = join_names(material.models)
        return (
            "not done",
            f"What {names} may add beside a network's training is not on record: nothing was adapted to it.",
        )
    return "not applicable", (
        "The networks differ in how they were trained; nothing is added to them that could be evaded."
    )


def _constant(state: State, where: str) -> Callable[[Material], Answer]:
    return lambda material: (state, where)


ITEMS: Final[dict[str, Callable[[Material], Answer]]] = {
    "The threat model is stated: norm, budget, knowledge, goal": _threat,
    "The error without an attack stands beside the others": _constant("done", "First screen; All results."),
    "White box, iterated attack": _iterated,
    f"White box, at least {MANY_STEPS} steps": _many_steps,
    "Random restarts": _restarts,
    "A loss that does not saturate": _losses,
    "Error against budget, several budgets": _sweep,
    "A large budget breaks every network": _breaks,
    "The smallest perturbation of each image": _smallest,
    "Transfer from networks of every kind": _transfer,
    "An attack without gradients": _gradient_free,
    "A standard ensemble (AutoAttack)": _autoattack,
    "A baseline that is no attack": _baseline,
    "The worst case per image over all attacks": _worst,
    "An attack adapted to the defence": _adapted,
    "No image is left out": _every_image,
    "Several seeds": _seeds,
    "Intervals, and what they speak of": _constant("done", "Effects; All results; Methods."),
    "The evaluation itself is tested": _audit,
    "Compared with what was published": _published,
    "Digests of weights and data, versions, commands": _constant("done", "Provenance."),
    "The data of every figure is there": _constant("done", "A row per image in cells/ beside this page."),
}
