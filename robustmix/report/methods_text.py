"""The methods section of a paper about what a page shows: data, networks, training, attacks, statistics, in prose."""

from collections.abc import Iterator, Sequence
from typing import Final

from robustmix.report.material import Material
from robustmix.report.text import (
    also,
    imported,
    join_names,
    last_epoch,
    method_name,
    plural,
    stated,
    train_examples,
)
from robustmix.spec.attack import ATTACK_TITLES, ITERATED, MINIMUM_NORM
from robustmix.spec.recipe import PAIRING
from robustmix.stats import SEEDS_FOR_METHODS
from robustmix.store.cells import Cell, CellIdentity
from robustmix.store.examples import id_of
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
    """Data, networks, attacks and statistics, a paragraph each; nothing is said that is not in the files."""
    return [_data(material), *_networks(material), _attacks(material), _statistics(material)]


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
    alike: dict[str, list[Run]] = {}
    for run in material.runs.values():
        alike.setdefault(_training(run), []).append(run)
    found = []
    for training, runs in alike.items():
        methods: dict[str, list[Run]] = {}
        for run in runs:
            methods.setdefault(_method(run), []).append(run)
        parts = [f"{method} ({_seeds(own)})" for method, own in methods.items()]
        found.append(f"We trained {training} by {join_names(parts)}.")
    if found:
        found.append("Each network is that of its last epoch; nothing was selected on the test set.")
    if material.models:
        found.append(
            f"{join_names(material.models)} {'was' if len(material.models) == 1 else 'were'} taken as published."
        )
    return [" ".join(found)]


def _training(run: Run) -> str:
    recipe, facts = run.recipe, run.facts
    width = f" of width {recipe.width}" if recipe.width else ""
    parameters = f" ({facts.parameters:,} parameters)" if facts else ""
    network = f"{recipe.model}{width}{parameters}"
    if imported(run):
        return f"{network} (by another program, as far as stated)"
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
    maker = identity.library or identity.impl
    if maker != "robustmix":
        yield f"by {maker}"
    if identity.precision != "32":
        yield identity.precision
    if identity.compiled:
        yield "compiled"


def _rule(identity: CellIdentity) -> str:
    assert identity.eps_255 is not None
    share = identity.step_255 * identity.steps / identity.eps_255
    return f"{'' if abs(share - 1) < 1e-6 else f'{share:.3g} '}budget / steps"


def _statistics(material: Material) -> str:
    counts = [len(names) for family, names in material.families.items() if family not in material.models]
    enough = len(counts) > 1 and min(counts) >= SEEDS_FOR_METHODS
    text = (
        "Intervals of one network's error are 95 % Wilson intervals (Wilson 1927) over the test images. Two networks "
        "are compared on the same images by the exact McNemar test and Tango's score interval (McNemar 1947, Tango "
        "1998); both speak of these networks. "
    )
    if enough:
        return text + (
            "Ways of training are compared by a Welch t interval (Welch 1947) over the means of their seeds, to which "
            "the spread over images and, under transfer, over sources adds; no network was attacked by itself under "
            "transfer. The p values of FGSM and I-FGSM, white box and transfer, at the headline budget were corrected "
            "together after Holm (1979); everything else is descriptive."
        )
    return text + f"With fewer than {SEEDS_FOR_METHODS} seeds of each, nothing is claimed of the ways of training."
