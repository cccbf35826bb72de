"""Training curves: what the history of each run says, epoch by epoch."""

import math
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from robustmix.report.drawing import INK, Drawing, lines
from robustmix.report.material import Material
from robustmix.report.text import join_names, plural

# An axis is logarithmic where its largest value is more than so many times its smallest.
LOG_FROM: Final = 20
# From so many epochs on, a mark at every one would hide the line.
CROWDED: Final = 16


@dataclass(frozen=True)
class Curve:
    """One column of the histories.

    Attributes:
        column: of `robustmix.store.runs.Run.history`.
        title: of the figure.
        axis: what its vertical axis says.
        scale: from the column's unit to the axis's.
        unit: behind a value in the text alternative.
    """

    column: str
    title: str
    axis: str
    scale: float = 1
    unit: str = ""


CURVES: Final = (
    Curve("test_error", "Test error by epoch", "error (%)", 100, " %"),
    Curve("val_error", "Validation error by epoch", "error (%)", 100, " %"),
    Curve("train_error_mixed", "Training error by epoch, as mixed", "error (%)", 100, " %"),
    Curve("test_loss", "Test loss by epoch", "cross-entropy"),
    Curve("val_loss", "Validation loss by epoch", "cross-entropy"),
    Curve("train_loss", "Training loss by epoch", "cross-entropy"),
)


def training_curves(material: Material) -> list[Drawing]:
    """A figure for each of `CURVES` that some run has values of; a line per run, drawn as in the other figures."""
    found: list[Drawing] = []
    for curve in CURVES:
        points = {name: found_points for name in material.runs if (found_points := _points(material, name, curve))}
        if points:
            found.append(_drawing(f"history{len(found) + 1}", curve, points, material))
    return found


def _points(material: Material, name: str, curve: Curve) -> list[tuple[int, float]]:
    """Epochs and values of one run; empty where its history has none, as that of an older or imported one.

    Epoch 0 stands for one that nobody knows.
    """
    history = material.runs[name].history
    if curve.column not in history:
        return []
    pairs = zip(history["epoch"], history[curve.column], strict=True)
    return [(int(epoch), curve.scale * float(value)) for epoch, value in pairs if epoch and math.isfinite(value)]


def _drawing(name: str, curve: Curve, points: dict[str, list[tuple[int, float]]], material: Material) -> Drawing:
    drawn = lines(material)
    every = [value for own in points.values() for _, value in own]
    first, last = (pick(epoch for own in points.values() for epoch, _ in own) for pick in (min, max))
    logarithmic = min(every) > 0 and max(every) > LOG_FROM * min(every)

    def draw(axes: Axes) -> None:
        for run, own in points.items():
            line = drawn[run]
            marker = line.marker if last - first < CROWDED or len(own) == 1 else ""
            dashes = line.dashes or (None, None)
            axes.plot(*zip(*own, strict=True), color=line.colour, dashes=dashes, marker=marker, label=run)
        room = max(0.03 * (last - first), 0.5 if first == last else 0)
        axes.set_xlim(first - room, last + room)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if max(every) > 100 * min(every) else (1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(0, 1.06 * max(every) or 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(True, axis="y", color=INK, alpha=0.13, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(curve.axis)

    def words() -> str:
        return ". ".join(f"{run}: {_in_words(own, curve)}" for run, own in points.items())

    return Drawing(name, curve.title, words, (3.5, 2.55), (0.165, 0.165, 0.985, 0.97), draw)


def _in_words(points: list[tuple[int, float]], curve: Curve) -> str:
    """The first and the last value, and the one in the middle."""
    places = sorted({0, len(points) // 2, len(points) - 1})
    return join_names(f"{points[k][1]:.3g}{curve.unit} after {plural(points[k][0], 'epoch')}" for k in places)
