"""One figure, drawn once and written either way: as SVG that stands inside a page, or as PDF for a paper.

matplotlib draws it. In the SVG the text takes the page's colour, ids never collide and there is a text alternative;
what matplotlib adds for a file of its own (metadata, a style for every element, fonts) is taken out. The PDF is black
on white, embeds its fonts and brings its own legend, since the page's stands apart from the figures.
"""

import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustmix.report.material import Material

# After Okabe and Ito: apart for colour-blind eyes, at least 3:1 on white; `style.css` lightens them in dark mode.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#b0609a", "#8a7a00", "#5a7fd0")
DASHES: Final = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
MARKERS: Final = ("o", "s", "^", "D")
# Stands for the page's text colour until the SVG is finished; on paper nobody tells it from black.
INK: Final = "#010203"

STYLE: Final[Any] = {
    "svg.hashsalt": "robustmix",
    "svg.fonttype": "none",
    # TrueType, which publishers ask for, instead of Type 3.
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.2,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
INKED: Final = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
# In inches: a line of a legend, a character in it, and its sample with the space around it.
LEGEND_LINE, LEGEND_CHARACTER, LEGEND_SAMPLE = 0.165, 0.058, 0.45


@dataclass(frozen=True)
class Line:
    """How one run or model is drawn: colour by family, dashes and marker by its place in it.

    Where there are more families than colours, the dashes of a later family begin with the next kind.
    """

    colour: str
    dashes: tuple[float, ...]
    marker: str


@dataclass(frozen=True)
class Drawing:
    """One figure of one pair of axes; nothing is drawn before it is asked for.

    Attributes:
        name: in ASCII letters and digits; makes the ids unique in the page.
        title: in words.
        words: gives the text alternative.
        size: width and height in inches.
        box: left, bottom, right and top of the axes, as shares of the figure.
        draw: what to draw. What it labels stands in the legend of the PDF.
    """

    name: str
    title: str
    words: Callable[[], str]
    size: tuple[float, float]
    box: tuple[float, float, float, float]
    draw: Callable[[Axes], None]

    @cached_property
    def svg(self) -> str:
        """The element as it stands in a page."""
        with _style(INK):
            figure, _ = _figure(self.size, self.box, self.draw)
            file = io.StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        return _for_a_page(file.getvalue(), self.name, self.title, self.words(), self.size)

    @cached_property
    def pdf(self) -> bytes:
        """The file for a paper: the same bytes for the same figure."""
        with _style("black"):
            figure, axes = _figure(self.size, self.box, self.draw)
            _add_legend(figure, axes, self.size)
            file = io.BytesIO()
            nothing = dict.fromkeys(("CreationDate", "Creator", "Producer"))
            figure.savefig(file, format="pdf", metadata={"Title": self.title, **nothing})
        return file.getvalue()

    @property
    def slug(self) -> str:
        """The name of its file: of the figure's kind and title, so that it stays when others come or go."""
        kind = self.name.rstrip("0123456789")
        return f"{kind}-{re.sub(r'[^a-z0-9]+', '-', self.title.lower()).strip('-')[:100].strip('-')}"

    def _repr_html_(self) -> str:
        """The figure with its title, as a notebook shows it."""
        width = f"{1.4 * self.size[0]:.3g}in"
        caption = f"<figcaption>{escape(self.title)}</figcaption>"
        return f'<figure style="margin: 0; max-width: {width}">{caption}\n{self.svg}\n</figure>'


def lines(material: Material) -> dict[str, Line]:
    """How each run and model is drawn."""
    found = {}
    for family, names in enumerate(material.families.values()):
        for place, name in enumerate(names):
            mark = MARKERS[place % len(MARKERS)]
            dashes = DASHES[(place + family // len(COLOURS)) % len(DASHES)]
            found[name] = Line(COLOURS[family % len(COLOURS)], dashes, mark)
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


@contextmanager
def _style(ink: str) -> Iterator[None]:
    with matplotlib.rc_context():
        # A user's own matplotlibrc must not change the bytes.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | dict.fromkeys(INKED, ink))
        yield


def _figure(
    size: tuple[float, float], box: tuple[float, float, float, float], draw: Callable[[Axes], None]
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    left, bottom, right, top = box
    axes = figure.add_axes((left, bottom, right - left, top - bottom))
    draw(axes)
    return figure, axes


def _add_legend(figure: Figure, axes: Axes, size: tuple[float, float]) -> None:
    """Make room below a figure and say there what its lines are, if it has any that are named."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    width, height = size
    columns = max(1, int(width / (LEGEND_SAMPLE + LEGEND_CHARACTER * max(map(len, labels)))))
    room = 0.1 + LEGEND_LINE * math.ceil(len(labels) / columns)
    place = axes.get_position()
    figure.set_size_inches(width, height + room)
    share = height / (height + room)
    axes.set_position((place.x0, 1 - share * (1 - place.y0), place.width, share * place.height))
    figure.legend(handles, labels, loc="lower center", ncols=columns, borderaxespad=0.2, columnspacing=1.2)


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
