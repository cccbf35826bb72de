"""How sure the networks are: confidence and logit gap over all test examples, without an attack and under one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes

from robustmix.report.drawing import INK, Drawing, lines
from robustmix.report.effects import DECLARED
from robustmix.report.material import Material
from robustmix.report.text import budget, join_names, percent
from robustmix.store.cells import Cell

# So many steps a curve has, whatever the number of examples.
STEPS: Final = 50
# Of the examples that the text alternative names, as shares from the least to the most sure.
QUANTILES: Final = {0.1: "a tenth", 0.5: "half", 0.9: "nine tenths"}


@dataclass(frozen=True)
class Quantity:
    """One column of the cells.

    Attributes:
        column: of `robustmix.store.cells.ROWS`.
        title: of its figures.
        axis: what their horizontal axis says.
        edges: from all values shown, the places at which the curves are evaluated.
    """

    column: str
    title: str
    axis: str
    edges: Callable[[np.ndarray], np.ndarray]


def even_edges(values: np.ndarray) -> np.ndarray:
    """Round numbers from the smallest to the largest 1 % of some values, 0 among them."""
    quantiles = np.quantile(np.append(values[np.isfinite(values)], 0), (0.01, 0.99))
    low, high = min(float(quantiles[0]), 0.0), max(float(quantiles[1]), 0.0)
    width = high - low or 1.0
    power = 10.0 ** math.floor(math.log10(width / STEPS))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= width / STEPS)
    first = math.floor(low / step)
    return np.array([step * place for place in range(first, max(math.ceil(high / step), first + 1) + 1)])


QUANTITIES: Final = (
    Quantity("confidence", "Confidence", "probability of the predicted class", lambda _: np.linspace(0, 1, STEPS + 1)),
    Quantity("gap", "Logit gap", "label's logit less the largest other", even_edges),
)


def distributions(material: Material) -> list[Drawing]:
    """A panel per quantity without an attack and under each attack of the page's head in the white box.

    Each family is drawn by the first of its runs that was scored: the share of all test examples at or below a value.
    """
    shown = [cells for cells in _shown(material) if cells[1]]
    found: list[Drawing] = []
    for quantity in QUANTITIES:
        values = [{name: _values(cell, quantity) for name, cell in cells.items()} for _, cells in shown]
        every = [own for of_state in values for own in of_state.values()]
        edges = quantity.edges(np.concatenate(every)) if every else np.zeros(0)
        for (state, _), of_state in zip(shown, values, strict=True):
            title = f"{quantity.title}, {state}"
            found.append(_panel(f"distribution{len(found) + 1}", title, quantity, edges, of_state, material))
    return found


def scored_first(material: Material) -> list[str]:
    """The first run or model of each family that was scored: those that are drawn."""
    targets = material.evidence.targets
    return [next(iter(scored)) for own in material.families.values() if (scored := [n for n in own if n in targets])]


def shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share of some values [N] at or below each edge."""
    return np.searchsorted(np.sort(values), edges, side="right") / len(values)


def _shown(material: Material) -> list[tuple[str, dict[str, Cell]]]:
    """What was done to the images, in words, and the cell of the first run of each family."""
    names = scored_first(material)
    states: list[tuple[str, str, float | None]] = [("without an attack", "clean", 0.0)]
    for label in _labels(material):
        eps = material.headline(label)
        states.append((f"{label} at {budget(eps or 0)}, white box", label, eps))
    found = []
    for words, label, eps in states:
        keys = {name: (None if label == "clean" else name, name, label, eps) for name in names}
        found.append((words, {name: material.by_names[of] for name, of in keys.items() if of in material.by_names}))
    return found


def _labels(material: Material) -> Sequence[str]:
    """The attacks that the page's declared tests are about; where there is none of these, the last of all."""
    made = [label for label in material.attacks if material.headline(label) is not None]
    return [label for label in made if label in DECLARED] or made[-1:]


def _values(cell: Cell, quantity: Quantity) -> np.ndarray:
    return np.asarray(cell.rows[quantity.column].to_numpy(), dtype=float)


def _panel(
    name: str, title: str, quantity: Quantity, edges: np.ndarray, values: dict[str, np.ndarray], material: Material
) -> Drawing:
    drawn = lines(material)

    def draw(axes: Axes) -> None:
        for run, own in values.items():
            line = drawn[run]
            below = 100 * shares(own, edges)
            axes.plot(edges, below, color=line.colour, dashes=line.dashes or (None, None), label=run)
        if edges[0] < 0:
            axes.axvline(0, color=INK, linewidth=0.8, dashes=(1, 2))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 102)
        axes.set_yticks(range(0, 101, 20))
        axes.grid(True, axis="y", color=INK, alpha=0.13, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(quantity.axis)
        axes.set_ylabel("examples at or below (%)")

    def words() -> str:
        return ". ".join(f"{run}: {_in_words(own, quantity)}" for run, own in values.items())

    return Drawing(name, title, words, (3.5, 2.55), (0.165, 0.165, 0.965, 0.97), draw)


def _in_words(values: np.ndarray, quantity: Quantity) -> str:
    # Values of the data, which unlike interpolated ones stay numbers where a gap is infinite.
    ends = np.quantile(values, list(QUANTILES), method="inverted_cdf")
    text = join_names(f"{share} at or below {end:.3g}" for share, end in zip(QUANTILES.values(), ends, strict=True))
    return f"{text}; {percent(float(np.mean(values < 0)))} below 0" if quantity.column == "gap" else text
