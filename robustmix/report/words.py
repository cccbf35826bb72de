"""The page's generated sentences. They speak of runs and models by their names; of methods where an effect does."""

from collections.abc import Sequence

from robustmix.comparability import UNFITTED
from robustmix.published import find, sources
from robustmix.report import checks
from robustmix.report.comparison import citation
from robustmix.report.effects import effects
from robustmix.report.judges import told
from robustmix.report.material import Material
from robustmix.report.result import Result
from robustmix.report.text import (
    budget,
    final,
    imported,
    interval,
    join_names,
    last_epoch,
    percent,
    plural,
    stated,
    train_examples,
)
from robustmix.stats import SEEDS_FOR_METHODS
from robustmix.store.runs import Run

# As many runs as one sentence can name.
MOST = 6
# As many attacks as the first screen can tell of, those that publications use first.
MOST_ATTACKS = 4


def warnings(material: Material) -> list[str]:
    """What a reader must know before any number: how far the networks were trained, and how unlike the published."""
    return [*_training(material), *_unlike_published(material), *checks.saturated(material)]


def answers(material: Material) -> list[str]:
    """What the runs err, by name: without an attack, and in the white box of a few attacks at the headline budget.

    Then what the page's main way of training changes against ERM without an attack and under transfer.
    """
    found = [_clean(material)]
    plain = {result.label for result in material.results if result.plain}
    labels = sorted(material.attacks, key=lambda label: label not in plain)
    for label in labels[:MOST_ATTACKS]:
        eps = material.headline(label)
        white = [r for r in material.find("white", label=label, eps=eps) if r.target in _named(material)]
        if white and eps:
            found.append(f"Under white-box {label} at {budget(eps)}, {_errors(white, of_n=True)}.")
    if len(labels) > MOST_ATTACKS:
        found.append(f"{plural(len(labels) - MOST_ATTACKS, 'more attack')} stand in the tables and figures below.")
    return [*found, *_changes(material)]


def _changes(material: Material) -> list[str]:
    """A sentence on clean errors and one on each declared attack under transfer; in the white box the answer has it."""
    found = []
    for effect in effects(material):
        if effect.family != material.main_family:
            continue
        if effect.role == "clean":
            found.append(f"On clean images, {told(effect)}.")
        elif effect.role == "transfer" and effect.declared:
            at = f"{effect.label} at {budget(effect.eps)}"
            found.append(f"Under transfer of {at}, crafted on as many of either kind, {told(effect)}.")
    return found


def scope(material: Material) -> str:
    """Of what the intervals speak: of these networks, and from enough seeds on of the methods."""
    counts = {family: len(names) for family, names in material.families.items() if family not in material.models}
    text = (
        "The intervals of single networks are 95 % Wilson intervals over the test images: they speak of these trained "
        "networks, not of how another run of the same recipe would turn out."
    )
    if not counts:
        return f"{text} Each network is one of its kind: nothing here is a claim about methods."
    seeds = join_names(f"{plural(count, 'run')} of {family}" for family, count in counts.items())
    enough = [family for family, count in counts.items() if count >= SEEDS_FOR_METHODS]
    if len(enough) < 2:
        return f"{text} With {seeds}, fewer than {SEEDS_FOR_METHODS} seeds each, nothing here is a claim about methods."
    return (
        f"{text} There are {seeds}: where two ways of training have {SEEDS_FOR_METHODS} seeds each, their difference "
        "is a claim about methods, with an interval over seeds and images."
    )


def _clean(material: Material) -> str:
    clean = [r for r in material.find("clean") if r.target in _named(material)]
    return f"Without an attack, {_errors(clean, of_n=True)}."


def _errors(results: Sequence[Result], *, of_n: bool = False) -> str:
    parts = []
    for place, r in enumerate(results):
        verb = f"{r.target} errs on" if place == 0 else f"{r.target} on"
        count = f" of {plural(r.n, 'image')}" if of_n and place == 0 else ""
        parts.append(f"{verb} {percent(r.error)} {interval(r.low, r.high)}{count}")
    return join_names(parts)


def _named(material: Material) -> list[str]:
    """What sentences name: every target if they are few, else the published design's and one of each other family."""
    names = [name for name in material.names if name in material.evidence.targets]
    if len(names) <= MOST:
        return names
    suite = material.evidence.suite
    named = dict.fromkeys([*suite.published.white, *suite.published.targets] if suite and suite.published else [])
    others = [family[0] for family in material.families.values() if not named.keys() & set(family)]
    return [*named, *others[: max(0, MOST - len(named))]]


def _training(material: Material) -> list[str]:
    alike: dict[tuple[str, int | None, int, int | None], list[str]] = {}
    for run in material.runs.values():
        of = (run.recipe.model, run.recipe.width, last_epoch(run), train_examples(run))
        alike.setdefault(of, []).append(run.name)
    found = []
    for (model, width, epochs, examples), names in alike.items():
        errors = [(name, final(material.runs[name], "train_error")) for name in names]
        errors_known = [f"{name} {percent(error)}" for name, error in errors if error == error]
        on = f" on {plural(examples, 'image')}" if examples else ""
        known = f" Error on their own training images, unmixed: {join_names(errors_known)}." if errors_known else ""
        verb = "are" if len(names) > 1 else "is"
        of_width = f" of width {width}" if width else ""
        length = plural(epochs, "epoch") if epochs else "an unknown number of epochs"
        found.append(f"{join_names(names)} {verb} {model}{of_width}, trained for {length}{on}.{known}")
    unfitted = [
        name for name, run in material.runs.items() if _fits(run) and 100 * final(run, "train_error") >= UNFITTED
    ]
    if unfitted:
        found.append(f"{join_names(unfitted)} did not fit the training set: not converged.")
    if theirs := [name for name, run in material.runs.items() if imported(run)]:
        verb = "were" if len(theirs) > 1 else "was"
        found.append(f"{join_names(theirs)} {verb} trained by another program: nobody has checked what is said of it.")
    if material.models:
        many = len(material.models) > 1
        found.append(f"{join_names(material.models)} {'were' if many else 'was'} not trained by robustmix.")
    return found


def _fits(run: Run) -> bool:
    """Whether a converged run fits its training set: with adversarial examples or wrong labels it need not."""
    return not run.recipe.adversarial_eps and not run.recipe.label_noise


def _unlike_published(material: Material) -> list[str]:
    """In how far the networks are smaller or trained for less than those behind the published clean errors."""
    reference = find(role="clean", experiment="zhang-fig3a", data=material.facts.like, model="preact_resnet18")
    if not reference:
        return []
    width, epochs = reference[0].width, reference[0].recipe.epochs
    other = [
        name
        for name, run in material.runs.items()
        if run.recipe.width != width or not {stated(run, "epochs"), last_epoch(run)} <= {epochs, None, 0}
    ]
    if not other:
        return []
    where = f"{citation(sources()[reference[0].source])}, {reference[0].where}"
    return [
        f"Beside {where}: the published networks have width {width} and {epochs} epochs, so the errors of "
        f"{join_names(other)} are not comparable with theirs in level."
    ]
