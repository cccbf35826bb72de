"""What the page draws of the results: error against budget, and who transfers to whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from robustmix.report.drawing import COLOURS, INK, MARKERS, Drawing, Line, lines
from robustmix.report.material import Material
from robustmix.report.result import Result
from robustmix.report.text import budget, interval, join_names, percent, plural
from robustmix.stats import SEEDS_FOR_METHODS, mean_interval
from robustmix.units import format_budget

# What a page needs to show them comes with them.
HEAT: Final = COLOURS[0]
HEAT_OPACITY: Final = 0.6
BAND: Final = 0.14
# Of a run whose family's mean is drawn as well.
THIN: Final[Any] = {"linewidth": 0.8, "alpha": 0.6}


@dataclass(frozen=True)
class Point:
    """A value of a line at one budget, with the ends of its band; rates are fractions."""

    eps: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        label: of the run, or what the mean is over.
        line: how it is drawn.
        points: from the one without an attack on, budgets ascending.
        band: what the band is, for families only, in words.
        thin: whether it is a run whose family's mean is drawn as well; it has no band.
    """

    label: str
    line: Line
    points: tuple[Point, ...]
    band: str | None = None
    thin: bool = False


def eps_curves(material: Material) -> list[Drawing]:
    """Error against budget: a panel per attack that has one and role; transfer has one per family of sources.

    The line of a run is its error, its band the 95 % Wilson interval. A transfer line is the mean over the sources of
    the family, without the target itself; its band reaches from the lowest lower to the highest upper end of the Wilson
    intervals that it averages. Of a family with several runs in a panel the mean is drawn as well, at the budgets that
    all of them have, and the runs themselves thinly and without a band. The mean's band is Student's 95 % interval over
    the runs from three on, and of two their range.
    """
    drawn = lines(material)
    clean = {result.target: result for result in material.find("clean")}
    sources = {"": None, **material.families}
    panels: list[Drawing] = []
    for label in material.attacks:
        for family, names in sources.items():
            role = "white" if names is None else "transfer"
            results = [r for r in material.find(role, label=label) if names is None or r.source in names]
            if results:
                where = f"transfer from {family}" if names else "white box"
                curves = _curves(results, clean, drawn, material)
                panels.append(_panel(f"curve{len(panels) + 1}", f"{label}, {where}", curves))
    return panels


def transfer_matrices(material: Material) -> list[Drawing]:
    """Source x target errors at the headline budget, one figure per attack."""
    found: list[Drawing] = []
    for label in material.attacks:
        eps = material.headline(label)
        results = [r for r in material.results if r.source and r.label == label and r.eps == eps]
        if eps is not None and results:
            found.append(_matrix(f"matrix{len(found) + 1}", f"{label} at {budget(eps)}", results, material))
    return found


def _curves(
    results: Sequence[Result], clean: dict[str, Result], drawn: dict[str, Line], material: Material
) -> list[Curve]:
    """The runs and models of a panel, each family's mean behind its runs."""
    points = {name: _points(name, results, clean[name]) for name in drawn if any(r.target == name for r in results)}
    found = []
    for family, names in material.families.items():
        own = {name: points[name] for name in names if name in points}
        thin = len(own) > 1
        found += [Curve(name, drawn[name], values, thin=thin) for name, values in own.items()]
        if thin:
            found.append(_mean(family, drawn[names[0]].colour, list(own.values())))
    return found


def _points(target: str, results: Sequence[Result], untouched: Result) -> tuple[Point, ...]:
    by_eps: dict[float, list[Result]] = {0.0: [untouched]}
    for result in results:
        if result.target == target and result.eps is not None:
            by_eps.setdefault(result.eps, []).append(result)
    return tuple(
        Point(eps, sum(r.error for r in of) / len(of), min(r.low for r in of), max(r.high for r in of))
        for eps, of in sorted(by_eps.items())
    )


def _mean(family: str, colour: str, runs: Sequence[tuple[Point, ...]]) -> Curve:
    """The mean over the runs of a family, each with one value whatever the number of sources that it averages."""
    common = set.intersection(*({point.eps for point in own} for own in runs))
    band = "95 % interval of the mean over seeds" if len(runs) >= SEEDS_FOR_METHODS else "range of the runs"
    points = []
    for eps in sorted(common):
        errors = [point.error for own in runs for point in own if point.eps == eps]
        low, high = mean_interval(errors) if len(errors) >= SEEDS_FOR_METHODS else (min(errors), max(errors))
        points.append(Point(eps, sum(errors) / len(errors), max(low, 0.0), min(high, 1.0)))
    label = f"{family}, mean of {plural(len(runs), 'run')}"
    return Curve(label, Line(colour, (), MARKERS[0]), tuple(points), band)


def _panel(name: str, title: str, curves: Sequence[Curve]) -> Drawing:
    budgets = sorted({point.eps for curve in curves for point in curve.points} - {0.0})

    def draw(axes: Axes) -> None:
        for curve in curves:
            colour, dashes = curve.line.colour, curve.line.dashes or (None, None)
            x = [point.eps for point in curve.points]
            y = [100 * point.error for point in curve.points]
            if curve.thin:
                axes.plot(x, y, color=colour, dashes=dashes, label=curve.label, **THIN)
                continue
            low, high = ([100 * getattr(point, end) for point in curve.points] for end in ("low", "high"))
            axes.axhline(y[0], color=colour, linewidth=0.8, dashes=(1, 2), alpha=0.8)
            axes.fill_between(x, low, high, color=colour, alpha=BAND, linewidth=0)
            axes.plot(x, y, color=colour, dashes=dashes, marker=curve.line.marker, label=curve.label)
        axes.set_xlim(0, 1.03 * budgets[-1])
        axes.set_ylim(0, 102)
        axes.set_xticks([0, *_spaced(budgets)], ["0", *map(format_budget, _spaced(budgets))])
        axes.set_yticks(range(0, 101, 20))
        axes.grid(True, axis="y", color=INK, alpha=0.13, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("budget (units of 1/255)")
        axes.set_ylabel("error (%)")

    def words() -> str:
        return ". ".join(map(_in_words, curves))

    return Drawing(name, title, words, (3.5, 2.55), (0.165, 0.165, 0.985, 0.97), draw)


def _in_words(curve: Curve) -> str:
    untouched, *attacked = (
        percent(point.error) + (f" {interval(point.low, point.high)}" if curve.band else "") for point in curve.points
    )
    figures = [f"{text} at {budget(point.eps)}" for text, point in zip(attacked, curve.points[1:], strict=True)]
    about = f" (band: {curve.band})" if curve.band else ""
    return f"{curve.label}{about}: {', '.join([f'{untouched} without an attack', *figures])}"


def _matrix(name: str, title: str, results: Sequence[Result], material: Material) -> Drawing:
    by_pair = {(r.source, r.target): r for r in results}
    sources = [name for name in material.names if any(r.source == name for r in results)]
    targets = [name for name in material.names if any(r.target == name for r in results)]
    crowded = max(map(len, targets)) > 9
    margin = 0.3 + 0.085 * max(map(len, sources)), 0.38 + (0.05 * max(map(len, targets)) if crowded else 0)
    width, height = margin[0] + 0.72 * len(targets) + 0.12, margin[1] + 0.42 * len(sources)
    # The last of the slanted names reaches beyond its column.
    beside = max(0, 0.058 * len(targets[-1]) - 0.35) if crowded else 0

    def draw(axes: Axes) -> None:
        for row, source in enumerate(sources):
            for column, target in enumerate(targets):
                result = by_pair.get((source, target))
                if result is None:
                    axes.text(column, row, "–", ha="center", va="center")
                    continue
                corner, size = (column - 0.47, row - 0.45), (0.94, 0.9)
                alpha = 0.03 + (HEAT_OPACITY - 0.03) * result.error
                axes.add_patch(Rectangle(corner, *size, facecolor=HEAT, alpha=alpha, linewidth=0))
                if result.role == "white":
                    axes.add_patch(Rectangle(corner, *size, facecolor="none", edgecolor=INK, linewidth=1.4))
                axes.text(column, row, f"{100 * result.error:.1f}", ha="center", va="center")
        axes.set_xlim(-0.5, len(targets) - 0.5)
        axes.set_ylim(len(sources) - 0.5, -0.5)
        axes.set_xticks(range(len(targets)), targets, rotation=35 if crowded else 0, ha="left" if crowded else "center")
        axes.set_yticks(range(len(sources)), sources)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("target (scored)")
        axes.set_ylabel("source (crafts)")

    def words() -> str:
        rows = []
        for source in sources:
            row = [by_pair[source, target] for target in targets if (source, target) in by_pair]
            errors = join_names(f"{r.target} {percent(r.error)}{' (white box)' * (r.role == 'white')}" for r in row)
            rows.append(f"Crafted on {source}: {errors}")
        return ". ".join(rows)

    total = width + beside
    box = (margin[0] + 0.12) / total, 0.01, 0.99 * width / total, 1 - margin[1] / height
    return Drawing(name, title, words, (total, height), box, draw)


def _spaced(budgets: Sequence[float]) -> list[float]:
    """The budgets that have room for a label; the largest always has."""
    room, kept = budgets[-1] / 11, [budgets[-1]]
    for eps in reversed(budgets[:-1]):
        if kept[-1] - eps >= room and eps >= room:
            kept.append(eps)
    return kept[::-1]
