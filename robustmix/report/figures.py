"""Figures as SVG that can stand inside a page: text in the page's colour, ids that never collide, a text alternative.

matplotlib draws them; what it adds for a file of its own (metadata, a style for every element, fonts) is taken out.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from robustmix.report.material import Material, Result
from robustmix.report.text import budget, join_names, percent
from robustmix.units import format_budget

# After Okabe and Ito: apart for colour-blind eyes, at least 3:1 on white; `style.css` lightens them in dark mode.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#b0609a", "#8a7a00", "#5a7fd0")
DASHES: Final = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
MARKERS: Final = ("o", "s", "^", "D")
# Stands for the page's text colour until the SVG is finished.
INK: Final = "#010203"
HEAT: Final = COLOURS[0]
HEAT_OPACITY: Final = 0.6

STYLE: Final[Any] = {
    "svg.hashsalt": "robustmix",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.2,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Line:
    """How one run or model is drawn: colour by family, dashes and marker by its place in it."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        title: in words.
        svg: the element.
    """

    title: str
    svg: str


def lines(material: Material) -> dict[str, Line]:
    """How each run and model is drawn."""
    found = {}
    for family, names in enumerate(material.families.values()):
        for place, name in enumerate(names):
            mark = MARKERS[place % len(MARKERS)]
            found[name] = Line(COLOURS[family % len(COLOURS)], DASHES[place % len(DASHES)], mark)
    return {name: found[name] for name in material.names}


def key(name: str, line: Line) -> str:
    """The sample of a run's line for the legend."""
    dashes = " ".join(f"{1.6 * dash:g}" for dash in line.dashes)
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<svg class="key" role="img" aria-label={quoteattr(f"line of {name}")} '
        'viewBox="0 0 34 10" width="34" height="10">'
        f'<path d="M0 5H34" style="stroke: {themed(line.colour)}" stroke-width="2.4"{style}/></svg>'
    )


def themed(colour: str) -> str:
    """One of `COLOURS` as the style sheet may lighten it in dark mode."""
    return f"var(--line{COLOURS.index(colour) + 1}, {colour})"


def eps_curves(material: Material) -> list[Drawing]:
    """Error against budget: a panel per attack that has one and role; transfer has one per family of sources.

    A transfer line is the mean over the sources of the family, without the target itself; its band reaches from the
    lowest lower to the highest upper end of the Wilson intervals that it averages.
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
                title = f"{label}, {where}"
                panels.append(_panel(f"curve{len(panels) + 1}", title, results, clean, drawn))
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


def _panel(
    name: str, title: str, results: Sequence[Result], clean: dict[str, Result], drawn: dict[str, Line]
) -> Drawing:
    targets = [target for target in drawn if any(r.target == target for r in results)]
    budgets = sorted({result.eps for result in results if result.eps is not None})
    words = []

    def draw(axes: Axes) -> None:
        for target in targets:
            line, untouched = drawn[target], clean[target]
            points = [(eps, [r for r in results if r.target == target and r.eps == eps]) for eps in budgets]
            points = [(0.0, [untouched]), *((eps, found) for eps, found in points if found)]
            x = [eps for eps, _ in points]
            y = [100 * sum(r.error for r in found) / len(found) for _, found in points]
            low = [100 * min(r.low for r in found) for _, found in points]
            high = [100 * max(r.high for r in found) for _, found in points]
            axes.axhline(100 * untouched.error, color=line.colour, linewidth=0.8, dashes=(1, 2), alpha=0.8)
            axes.fill_between(x, low, high, color=line.colour, alpha=0.14, linewidth=0)
            axes.plot(x, y, color=line.colour, dashes=line.dashes or (None, None), marker=line.marker)
            figures = ", ".join(
                f"{percent(value / 100)} at {budget(eps)}" for eps, value in zip(x[1:], y[1:], strict=True)
            )
            words.append(f"{target}: {percent(untouched.error)} without an attack, {figures}")
        axes.set_xlim(0, 1.03 * budgets[-1])
        axes.set_ylim(0, 102)
        axes.set_xticks([0, *_spaced(budgets)], ["0", *map(format_budget, _spaced(budgets))])
        axes.set_yticks(range(0, 101, 20))
        axes.grid(True, axis="y", color=INK, alpha=0.13, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("budget (units of 1/255)")
        axes.set_ylabel("error (%)")

    svg = draw_svg(name, title, lambda: ". ".join(words), (3.5, 2.55), (0.165, 0.165, 0.985, 0.97), draw)
    return Drawing(title, svg)


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
    return Drawing(title, draw_svg(name, title, words, (total, height), box, draw))


def _spaced(budgets: Sequence[float]) -> list[float]:
    """The budgets that have room for a label; the largest always has."""
    room, kept = budgets[-1] / 11, [budgets[-1]]
    for eps in reversed(budgets[:-1]):
        if kept[-1] - eps >= room and eps >= room:
            kept.append(eps)
    return kept[::-1]


def draw_svg(
    name: str,
    title: str,
    words: Callable[[], str],
    size: tuple[float, float],
    box: tuple[float, float, float, float],
    draw: Callable[[Axes], None],
) -> str:
    """Draw into one pair of axes and make the SVG fit to stand inside a page.

    Args:
        name: makes the ids unique in the page.
        title: of the figure.
        words: gives the text alternative once everything is drawn.
        size: width and height in inches.
        box: left, bottom, right and top of the axes, as shares of the figure.
        draw: what to draw.
    """
    with matplotlib.rc_context():
        # A user's own matplotlibrc must not change the bytes of the page.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size)
        left, bottom, right, top = box
        draw(figure.add_axes((left, bottom, right - left, top - bottom)))
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _for_a_page(file.getvalue(), name, title, words(), size)


def _for_a_page(text: str, name: str, title: str, words: str, size: tuple[float, float]) -> str:
    body = text[text.index("<svg") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", body)
    body = body.replace("xlink:href", "href").replace(INK, "currentColor")
    for colour in COLOURS:
        body = body.replace(colour, themed(colour))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"\n(?=[LzMQC ]|\")", " ", body)
    body = re.sub(r"\s*\n\s*", "\n", re.sub(r"<(defs|g)>\s*</\1>|<g/>", "", body)).strip()
    width, height = (math.ceil(72 * side) for side in size)
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc" viewBox="0 0 {width} {height}" '
        f'style="--width: {width}" stroke-linejoin="round" stroke-linecap="butt">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-desc">{escape(words)}</desc>\n{body}'
    )
