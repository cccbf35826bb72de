"""Whether the numbers can be trusted: gradients that vanish, faster crafting, images rounded to 8 bits."""

from collections.abc import Callable
from statistics import fmean, median
from typing import Final

import numpy as np

from robustmix.report.material import Material, exact_id, once
from robustmix.report.result import Result
from robustmix.report.tables import Table
from robustmix.report.text import ROLES, budget, join_names, percent, plural, points
from robustmix.spec.attack import ITERATED
from robustmix.store.cells import GAP_QUANTILES, BatchState, Cell
from robustmix.store.results import over_examples, wrong

# A source is spoken of if more of its labels than this have a probability of exactly 1, or a gradient of zero.
SATURATED: Final = 0.01
SHOWN_QUANTILES: Final = tuple(GAP_QUANTILES.index(level) for level in (0.05, 0.5, 0.95))


def gradients(material: Material) -> Table:
    """What the first gradients showed of each source under each attack; no rows where nobody took one that we saw."""
    rows = []
    for (source, label), cell in _with_states(material).items():
        states = cell.facts.batches
        gaps = [median(state.gap[place] for state in states) for place in SHOWN_QUANTILES]
        saturation = over_examples(cell, [state.saturated for state in states])
        nothing = over_examples(cell, [state.zero_gradient for state in states])
        rows.append([source, label, *(f"{gap:.2f}" for gap in gaps), percent(saturation), percent(nothing)])
    header = ("Source", "Attack", "Gap, 5 %", "median", "95 %", "Saturated", "Zero gradient")
    return Table("The source at the first gradient of each attack", header, rows, texts=2)


def saturated(material: Material) -> list[str]:
    """Which sources have too many labels of probability 1 for cross-entropy, or no gradient; nothing if none has."""
    found = []
    if shares := _worst(material, lambda state: state.saturated, _ascends_cross_entropy):
        found.append(
            f"The label's probability is exactly 1 in float32 on {shares}: cross-entropy has lost its true-class term "
            "there, and attacks that ascend it look weaker than they are. --loss logodds does not have this problem."
        )
    if shares := _worst(material, lambda state: state.zero_gradient):
        found.append(f"The gradient is exactly zero in every pixel on {shares}: these were not attacked at all.")
    return found


def unrecorded(material: Material) -> list[str]:
    """The sources that one of our attacks ascended cross-entropy on without a record of what its gradients showed."""
    recorded = {source for (source, _), cell in _with_states(material).items() if _ascends_cross_entropy(cell)}
    ascended = {cell.identity.source for cell in material.cells if _ascends_cross_entropy(cell)}
    names = [name for name in material.names if name in material.evidence.sources]
    return [name for name in names if material.weights[name] in ascended and name not in recorded]


def _ascends_cross_entropy(cell: Cell) -> bool:
    return cell.identity.attack in ("fgsm", *ITERATED) and cell.identity.loss == "ce"


def _worst(
    material: Material, share_of: Callable[[BatchState], float], counts: Callable[[Cell], bool] = lambda cell: True
) -> str:
    """The largest share of each source over its attacks that count, as a phrase; empty if none is worth saying."""
    worst: dict[str, float] = {}
    for (source, _), cell in _with_states(material).items():
        share = over_examples(cell, [share_of(state) for state in cell.facts.batches])
        if counts(cell) and share > SATURATED:
            worst[source] = max(share, worst.get(source, 0))
    shares = [f"{percent(share)} of the images for {source}" for source, share in worst.items()]
    return join_names(shares) if shares else ""


@once
def _with_states(material: Material) -> dict[tuple[str, str], Cell]:
    """A cell with what its first gradients showed for each source and attack."""
    found: dict[tuple[str, str], Cell] = {}
    for cell in sorted(material.cells, key=lambda cell: (material.label(cell), cell.identity.eps_255 or 0, cell.key)):
        for name in material.evidence.sources if cell.facts.batches else ():
            if material.weights[name] == cell.identity.source:
                found.setdefault((name, material.label(cell)), cell)
    place = {name: number for number, name in enumerate(material.names)}
    return dict(sorted(found.items(), key=lambda item: (place[item[0][0]], item[0][1])))


def faster(material: Material) -> Table:
    """What bf16 and compiled models change, where the same attack was also made in float32 without compiling."""
    exact: dict[tuple[str | None, str, str], Cell] = {}
    others = []
    for cell in material.cells:
        identity = cell.identity
        pair = identity.source, identity.target, exact_id(cell)
        if (identity.precision, identity.compiled) == ("32", False):
            exact[pair] = cell
        elif identity.source is not None:
            others.append((pair, cell))
    changes: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for pair, cell in others:
        if pair in exact:
            plain, role = exact[pair], "white" if pair[0] == pair[1] else "transfer"
            differ = plain.rows["prediction"].to_numpy() != cell.rows["prediction"].to_numpy()
            change = float(wrong(cell).mean() - wrong(plain).mean()), float(np.mean(differ))
            changes.setdefault((material.label(cell), ROLES[role]), []).append(change)
    rows = [
        [
            label,
            role,
            str(len(found)),
            points(fmean(change for change, _ in found)),
            f"{points(min(change for change, _ in found))} to {points(max(change for change, _ in found))}",
            percent(fmean(share for _, share in found)),
        ]
        for (label, role), found in sorted(changes.items())
    ]
    header = ("Attack", "Role", "Cells", "Error, points", "Range", "Other predictions")
    return Table("Faster crafting against float32 without compiling", header, rows, texts=2)


def rounded(material: Material) -> Table:
    """The errors on images as 8 bits keep them, where images were kept."""
    groups: dict[tuple[str, str, str], list[tuple[Result, float]]] = {}
    for result in material.results:
        if result.rounded is not None and result.source:
            at = "smallest" if result.eps is None else budget(result.eps)
            groups.setdefault((result.label, at, ROLES[result.role]), []).append((result, result.rounded))
    rows = [
        [
            *group,
            plural(len(found), "pair"),
            percent(fmean(result.error for result, _ in found)),
            percent(fmean(error for _, error in found)),
            points(max((error - result.error for result, error in found), key=abs)),
        ]
        for group, found in groups.items()
    ]
    header = ("Attack", "Budget", "Role", "Source and target", "Error", "Rounded", "Largest change, points")
    return Table("Errors on the adversarial images, and on the same rounded to 8 bits", header, rows, texts=3)
