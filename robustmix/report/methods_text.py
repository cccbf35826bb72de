"""The methods section of a paper about what a page shows: data, networks, training, attacks, statistics, in prose."""

from collections.abc import Iterator, Sequence
from typing import Final

from robustmix.report.effects import effects
from robustmix.report.material import Material
from robustmix.report.robustness import worst_cases
from robustmix.report.text import (
    also,
    budget,
    imported,
    join_names,
    last_epoch,
    method_name,
    plural,
    stated,
    train_examples,
)
from robustmix.spec.attack import ITERATED, MINIMUM_NORM
from robustmix.spec.recipe import PAIRING
from robustmix.spec.titles import ATTACK_TITLES
from robustmix.stats import SEEDS_FOR_METHODS
from robustmix.store.cells import Cell, CellIdentity
from robustmix.store.choosing import id_of
from robustmix.store.runs import Run
from robustmix.units import format_budget

SOURCES: Final = {
    "fgsm": "Goodfellow et al. 2015",
    "ifgsm": "Kurakin et al. 2017",
    "mifgsm": "Dong et al. 2018",
    "pgd": "Madry et al. 2018",
    "autoattack": "Croce and Hein 2020",
    "square": "Andriushchenko et al. 2020",
    "deepfool": "Moosavi-Dezfooli et al. 2016",
    "cw": "Carlini and Wagner 2017",
    "hopskipjump": "Chen et al. 2020",
}
LOSSES: Final = {
    "ce": "cross-entropy",
    "logodds": "the logsumexp of the other logits less the label's",
    "margin": "the largest other logit less the label's",
    "dlr": "the difference-of-logits ratio",
}
SCHEDULES: Final = {
    "step": "divided by 10 after {} epochs",
    "cosine": "taken to 0 along a cosine",
    "constant": "kept constant",
}
AUGMENTS: Final = {
    "none": "no augmentation",
    "crop": "random shifts",
    "crop-flip": "random shifts and flips",
    "resized-crop-flip": "random resized crops and flips",
}
NORMS: Final = {"linf": "L-infinity", "l2": "L2"}


def paragraphs(material: Material) -> list[str]:
    """Data, networks, attacks, statistics, audits and software, a paragraph each, and nothing that no file says."""
    return [
        _data(material),
        *_networks(material),
        _attacks(material),
        _statistics(material),
        *_audits(material),
        _software(material),
    ]


def _data(material: Material) -> str:
    facts = material.facts
    n = material.cells[0].rows.num_rows
    note = f" ({facts.data_note})" if facts.data_note else ""
    return (
        f"We evaluated on {plural(n, 'test image')} of {facts.data_spec}{note}, {len(facts.classes)} classes, "
        "with pixels in [0, 1] and the normalisation inside the network. No image was left out: errors are over all of "
        "them, those included that a network gets wrong without an attack."
    )


def _networks(material: Material) -> list[str]:
    ours = [run for run in material.runs.values() if not imported(run)]
    theirs = [run for run in material.runs.values() if imported(run)]
    found = [f"We trained {training} by {methods}." for training, methods in _alike(ours)]
    if ours:
        which = "network that we trained" if theirs else "network"
        found.append(f"Each {which} is that of its last epoch; nothing was selected on the test set.")
    found += [f"Another program trained {network} by {methods}." for network, methods in _alike(theirs)]
    if theirs:
        found.append("Of its training only what was said at the import is on record, not how the weights were chosen.")
    if material.models:
        found.append(
            f"{join_names(material.models)} {'was' if len(material.models) == 1 else 'were'} taken as published."
        )
    return [" ".join(found)]


def _alike(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """How some runs were trained, and by which methods and seeds each."""
    alike: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        alike.setdefault(_training(run), {}).setdefault(_method(run), []).append(run)
    for training, methods in alike.items():
        yield training, join_names(f"{method} ({_seeds(own)})" for method, own in methods.items())


def _training(run: Run) -> str:
    recipe, facts = run.recipe, run.facts
    width = f" of width {recipe.width}" if recipe.width else ""
    parameters = f" ({facts.parameters:,} parameters)" if facts else ""
    network = f"{recipe.model}{width}{parameters}"
    if imported(run):
        return network
    examples = train_examples(run)
    schedule = SCHEDULES[recipe.schedule].format(join_names(map(str, recipe.decay_epochs)))
    nesterov = "Nesterov momentum" if recipe.nesterov else "momentum"
    extras = [text for text in also(recipe) if not text.startswith(("learning rate", "momentum", "Nesterov"))]
    return (
        f"{network} for {plural(last_epoch(run) or recipe.epochs, 'epoch')}"
        + (f" on {plural(examples, 'image')}" if examples else "")
        + f" with SGD ({nesterov} {recipe.momentum:g}, learning rate {recipe.lr:g} {schedule}, weight decay "
        f"{recipe.weight_decay:g}, batches of {recipe.batch_size}, {AUGMENTS[recipe.augment]}"
        + "".join(f", {text}" for text in extras)
        + ")"
    )


def _method(run: Run) -> str:
    recipe = run.recipe
    alpha = stated(run, "alpha")
    law = ""
    if recipe.method in PAIRING and not imported(run):
        law = f" with lambda ~ Beta({alpha:g}, {alpha:g})" if alpha else f" with lambda from {recipe.lam}"
    return f"{method_name(recipe.method)}{law}"


def _seeds(runs: Sequence[Run]) -> str:
    seeds = [stated(run, "seed") for run in runs]
    if None in seeds:
        return plural(len(runs), "run")
    return f"seed{'' if len(seeds) == 1 else 's'} {join_names(map(str, sorted(seeds)))}"


def _attacks(material: Material) -> str:
    by_label: dict[str, list[Cell]] = {}
    for cell in material.cells:
        if cell.identity.source:
            for sweep in material.known[id_of(cell)]:
                by_label.setdefault(sweep.label, []).append(cell)
    described = "; ".join(_attack(label, cells) for label, cells in sorted(by_label.items()))
    white = any(r.role == "white" for r in material.results)
    transfer = any(r.role == "transfer" for r in material.results)
    crafted = [
        *(["on the network that is scored (white box)"] if white else []),
        *(["on every other one (transfer)"] if transfer else []),
    ]
    return (
        f"Adversarial examples were crafted {join_names(crafted)}, in eval mode, "
        f"and cut back to the budget and to [0, 1] after each step: {described}. Budgets are in units of 1/255 of the "
        "pixel range; scoring was in float32."
    )


def _attack(label: str, cells: Sequence[Cell]) -> str:
    identity = cells[0].identity
    budgets = sorted({cell.identity.eps_255 for cell in cells if cell.identity.eps_255})
    where = "" if NORMS[identity.norm] in label else f" in {NORMS[identity.norm]}"
    noun = "budget" if len(budgets) == 1 else "budgets"
    within = f" at {noun} {join_names(map(format_budget, budgets))}{where}" if budgets else f" of least length{where}"
    source = f" ({SOURCES[identity.attack]})" if identity.attack in SOURCES else ""
    title = ATTACK_TITLES[identity.attack]
    usual = [text for text in _parameters(label, identity) if text not in label]
    said = f" ({', '.join(usual)})" if usual else ""
    return f"{title}{source}{label.removeprefix(title)}{within}{said}"


def _parameters(label: str, identity: CellIdentity) -> Iterator[str]:
    """What there is to say of an attack beside its norm and budgets."""
    if identity.attack in ("fgsm", *ITERATED):
        yield f"ascending {LOSSES[identity.loss]} of the {identity.labels} labels"
    if identity.attack in ITERATED and " steps of " not in label:
        yield f"steps of {_rule(identity)}"
    if identity.attack == "pgd":
        yield "a random start" if identity.restarts == 1 else f"{identity.restarts} restarts"
        yield f"seed {identity.seed}"
    yield from (
        f"{value:,g} queries" if name == "queries" else f"{name} {value:g}" for name, value in identity.options.items()
    )
    if identity.attack in MINIMUM_NORM:
        yield plural(identity.steps, "step")
    if identity.maker != "robustmix":
        yield f"by {identity.maker}"
    if identity.precision != "32":
        yield identity.precision
    if identity.compiled:
        yield "compiled"


def _rule(identity: CellIdentity) -> str:
    assert identity.eps_255 is not None
    share = identity.step_255 * identity.steps / identity.eps_255
    return f"{'' if abs(share - 1) < 1e-6 else f'{share:.3g} '}budget / steps"


def _statistics(material: Material) -> str:
    text = (
        "Intervals of one network's error are 95 % Wilson intervals (Wilson 1927) over the test images. Two networks "
        "are compared on the same images by the exact McNemar test and Tango's score interval (McNemar 1947, Tango "
        "1998); both speak of these networks. "
    )
    for case in worst_cases(material):
        text += f"{case.table.caption}: an image counts as an error under any of {'; '.join(case.attacks)}. "
    return text + _of_methods(material)


def _of_methods(material: Material) -> str:
    """What is said of ways of training: of those that have the seeds for it."""
    found = [effect for effect in effects(material) if effect.about == "methods"]
    counts = {family: len(names) for family, names in material.families.items() if family not in material.models}
    if not found:
        if len(counts) > 1 and min(counts.values()) >= SEEDS_FOR_METHODS:
            return "The ways of training are not compared."
        return f"With fewer than {SEEDS_FOR_METHODS} seeds of each, nothing is claimed of the ways of training."
    base = found[0].base
    families = list(dict.fromkeys(effect.family for effect in found))
    text = (
        f"{join_names(families)} {'is' if len(families) == 1 else 'are'} compared with {base} by a Welch t interval "
        "(Welch 1947) over the means of their seeds, to which the spread over images and, under transfer, over sources "
        "adds; no network was attacked by itself under transfer. "
    )
    if any(effect.p is not None for effect in found):
        text += (
            "The p values of FGSM and I-FGSM, white box and transfer, at the headline budget were corrected together "
            "after Holm (1979); everything else is descriptive."
        )
    else:
        text += "All of it is descriptive."
    few = [family for family in counts if family not in (base, *families)]
    return text + (f" Of {join_names(few)} nothing is claimed: the seeds are too few." if few else "")


def _audits(material: Material) -> list[str]:
    """What was tested of the evaluation itself; nothing where it was not audited."""
    alike: dict[tuple[object, ...], list[str]] = {}
    # An audit keeps the name of its time; since then the run may be called otherwise, or be shown under another one.
    now = {weights: name for name, weights in material.weights.items()}
    for record in material.evidence.audits:
        tests = "; ".join(test.title for test in record.tests if test.verdict != "not run")
        if tests:
            key = plural(record.n, "test image"), record.data, budget(record.eps_255), tests
            alike.setdefault(key, []).append(now.get(record.weights, record.target))
    found = [
        f"The evaluation of {join_names(targets)} was audited by robustmix on {images} of {data} at {eps}: {tests}."
        for (images, data, eps, tests), targets in alike.items()
    ]
    return [" ".join(found)] if found else []


def _software(material: Material) -> str:
    facts = [run.facts for run in material.runs.values() if run.facts and not imported(run)]
    trained = {(f"robustmix {one.robustmix} and torch {one.torch}", one.device) for one in facts}
    scored = {
        (f"robustmix {cell.facts.robustmix} and torch {cell.facts.torch}", cell.facts.device) for cell in material.cells
    }
    training = f"Networks were trained with {_versions(trained)}. " if trained else ""
    return f"{training}Attacks were made and scored with {_versions(scored)}."


def _versions(found: set[tuple[str, str]]) -> str:
    return join_names(f"{versions} on {device}" for versions, device in sorted(found))
