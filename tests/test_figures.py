"""Figures: what their lines are, in numbers, and that they can be written either way."""

import os
import re
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from pages import make_matrix
from scipy import stats
from synthetic import INPUTS, N, add_run, identities, make_cell, wrong

from robustmix.report import collect
from robustmix.report.drawing import COLOURS, Drawing
from robustmix.report.figures import eps_curves, lines, transfer_matrices
from robustmix.report.material import Material
from robustmix.report.paper import FIGURES, figures, write_figures
from robustmix.report.text import points
from robustmix.store.cell_files import read_cells, write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

BUDGETS = (1, 4)
# Three runs of ERM, two of mixup, one of cutmix; without a suite they stand in the order of their names.
RUNS = {
    "erm1": ("erm", 1),
    "erm2": ("erm", 2),
    "erm3": ("erm", 3),
    "mixup1": ("mixup", 1),
    "mixup2": ("mixup", 2),
    "cutmix1": ("cutmix", 1),
}
FAMILIES = {"cutmix": ("cutmix1",), "ERM": ("erm1", "erm2", "erm3"), "mixup": ("mixup1", "mixup2")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_matrix(tmp_path_factory.mktemp("made"), RUNS, [{"name": "fgsm", "eps": BUDGETS}])


@pytest.fixture(scope="module")
def folder(place: Workspace) -> Path:
    return collect(place, "r")


@pytest.fixture(scope="module")
def material(folder: Path) -> Material:
    return Material.read(folder)


@pytest.fixture(scope="module")
def errors(place: Workspace) -> dict[tuple[str | None, str, float], float]:
    """(source, target, budget) -> error in per cent, counted from the cells alone."""
    name = {read_run(place, run).weights: run for run in RUNS}
    return {
        (name.get(cell.identity.source), name[cell.identity.target], cell.identity.eps_255 or 0): 2.0 * sum(wrong(cell))
        for cell in read_cells(place.cells)
    }


def drawn(drawing: Drawing) -> tuple[dict[str, list[float]], dict[str, tuple[list[float], list[float]]]]:
    """The values of the lines, and the lower and upper ends of the bands by colour, as matplotlib has them."""
    axes = Figure().add_subplot()
    drawing.draw(axes)
    values = {str(line.get_label()): [float(y) for y in line.get_ydata()] for line in axes.lines}
    bands = {}
    for band in axes.collections:
        assert isinstance(band, PolyCollection)
        (path,) = band.get_paths()
        ends: dict[float, list[float]] = {}
        for x, y in path.vertices:
            ends.setdefault(float(x), []).append(float(y))
        colour = matplotlib.colors.to_hex(band.get_facecolor()[0])
        bands[colour] = [min(ends[x]) for x in sorted(ends)], [max(ends[x]) for x in sorted(ends)]
    return {name: y for name, y in values.items() if not name.startswith("_")}, bands


def runs_in(
    errors: dict[tuple[str | None, str, float], float], family: str, sources: Sequence[str] | None
) -> dict[str, list[float]]:
    """Error by budget of each run of a family, in the white box or as the mean over others that craft."""
    found = {}
    for target in FAMILIES[family]:
        crafting = [target] if sources is None else [source for source in sources if source != target]
        attacked = [np.mean([errors[source, target, eps] for source in crafting]) for eps in BUDGETS]
        found[target] = [errors[None, target, 0], *map(float, attacked)]
    return found


# ---- error against budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", range(4))
def test_curves_are_runs_and_means_of_families(
    panel: int, material: Material, errors: dict[tuple[str | None, str, float], float]
) -> None:
    title = ["white box", "transfer from cutmix", "transfer from ERM", "transfer from mixup"][panel]
    drawing = eps_curves(material)[panel]
    assert drawing.title == f"FGSM, {title}"
    sources = None if panel == 0 else FAMILIES[title.removeprefix("transfer from ")]
    lines_of, bands = drawn(drawing)
    for place, family in enumerate(FAMILIES):
        if family == "cutmix" and title.endswith(family):
            assert "cutmix1" not in lines_of, "nothing else of its family crafts"
            continue
        own = runs_in(errors, family, sources)
        for name, values in own.items():
            assert lines_of[name] == pytest.approx(values)
        columns = list(zip(*own.values(), strict=True))
        low, high = bands[COLOURS[place]]
        if len(own) == 1:
            assert f"{family}, mean" not in " ".join(lines_of), "a single run has no mean"
            continue
        assert lines_of[f"{family}, mean of {len(own)} runs"] == pytest.approx([np.mean(c) for c in columns])
        if len(own) == 2:
            ends = [(min(column), max(column)) for column in columns]
        else:
            ends = [stats.t.interval(0.95, 2, np.mean(c), stats.sem(c)) if np.ptp(c) else (c[0], c[0]) for c in columns]
        assert low == pytest.approx([max(float(end[0]), 0) for end in ends])
        assert high == pytest.approx([min(float(end[1]), 100) for end in ends])


def test_single_run_has_its_wilson_interval(material: Material) -> None:
    _, bands = drawn(eps_curves(material)[0])
    low, high = bands[COLOURS[0]]
    results = [*material.find("clean", target="cutmix1"), *material.find("white", target="cutmix1")]
    assert low == pytest.approx([100 * result.low for result in results])
    assert high == pytest.approx([100 * result.high for result in results])


def test_text_alternative_says_what_each_band_is(
    material: Material, errors: dict[tuple[str | None, str, float], float]
) -> None:
    text = eps_curves(material)[0].words().replace("\N{NO-BREAK SPACE}", " ")
    assert "ERM, mean of 3 runs (band: 95 % interval of the mean over seeds): " in text
    assert "mixup, mean of 2 runs (band: range of the runs): " in text
    own = runs_in(errors, "mixup", None)
    clean, *attacked = ([values[place] for values in own.values()] for place in range(3))
    parts = [f"{np.mean(v):.1f} % [{min(v):.1f}, {max(v):.1f}]" for v in (clean, *attacked)]
    assert f"{parts[0]} without an attack, {parts[1]} at 1/255, {parts[2]} at 4/255" in text
    for name in RUNS:
        assert f"{name}: {errors[None, name, 0]:.1f} % without an attack, " in text


def test_mean_is_over_the_budgets_that_all_runs_have(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for name, budgets in (("erm1", (1, 2, 4)), ("erm2", (1, 4))):
        add_run(place, name, *RUNS[name])
        own = read_run(place, name).weights or ""
        write_cell(place.cells, make_cell(clean_identity(own, INPUTS, 256), N))
        for identity in identities({"name": "fgsm", "eps": budgets}, own, own):
            write_cell(place.cells, make_cell(identity, N))
    (panel,) = eps_curves(Material.read(collect(place, "r")))
    lines_of, _ = drawn(panel)
    assert {name: len(values) for name, values in lines_of.items()} == {
        "erm1": 4,
        "erm2": 3,
        "ERM, mean of 2 runs": 3,
    }


# ---- one drawing, two files --------------------------------------------------------------------------------


def test_every_figure_is_drawn_either_way(material: Material) -> None:
    found = figures(material)
    assert list(found)[:2] == ["curve-fgsm-white-box", "curve-fgsm-transfer-from-cutmix"]
    assert {"matrix-fgsm-at-4-255", "history-test-error-by-epoch"} <= set(found)
    for slug, drawing in found.items():
        assert re.fullmatch(r"[a-z0-9-]+", slug)
        svg = ElementTree.fromstring(drawing.svg)
        assert svg.findtext("title") == drawing.title
        assert drawing.pdf.startswith(b"%PDF-1.")
        shown = drawing._repr_html_()
        assert drawing.svg in shown
        assert f"<figcaption>{drawing.title}</figcaption>" in shown


def streams(pdf: bytes) -> bytes:
    """What a PDF draws and the fonts it brings, unpacked."""
    packed = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, flags=re.DOTALL)
    return b"\n".join(map(zlib.decompress, packed))


def test_pdf_is_black_embeds_its_fonts_and_bears_no_date(material: Material) -> None:
    pdf = eps_curves(material)[0].pdf
    assert b"/FontFile2" in pdf, "TrueType, embedded"
    assert b"/Type3" not in pdf
    assert b"Date" not in pdf
    assert b"(FGSM, white box)" in pdf
    content = streams(pdf)
    assert b"0 g\n" in content or b"0 0 0 rg" in content
    # The page's text colour stands for nothing on paper: only lines of the grid are drawn in it.
    assert b"0.003921568627450980" not in content.replace(b" RG", b"\n").replace(b"0.0039215686 0.0078431373", b"")


def test_pdf_brings_a_legend_of_the_lines_it_names(material: Material) -> None:
    curve, matrix = eps_curves(material)[0], transfer_matrices(material)[0]
    heights = []
    for drawing in (curve, matrix):
        (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", drawing.pdf)
        width, height = (float(side) / 72 for side in box)
        assert width == pytest.approx(drawing.size[0], abs=0.01)
        heights.append(height / drawing.size[1])
    assert heights[0] > 1.2
    assert heights[1] == pytest.approx(1, abs=0.01)


CODE = """
import sys
from pathlib import Path
from robustmix.report.paper import write_figures
write_figures(Path(sys.argv[1]))
"""


def test_same_report_gives_the_same_files(folder: Path) -> None:
    first = {path.name: path.read_bytes() for path in write_figures(folder)}
    for path in (folder / FIGURES).iterdir():
        path.unlink()
    (folder / FIGURES / "curve-of-long-ago.pdf").touch()
    others = {folder / FIGURES / name for name in ("photo.pdf", "Curve.pdf", "curve-mine_2.pdf")}
    for path in others:
        path.touch()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "86400"}
    subprocess.run([sys.executable, "-c", CODE, str(folder)], check=True, env=environment)
    for path in others:
        path.unlink()
    assert {path.name: path.read_bytes() for path in (folder / FIGURES).iterdir()} == first


def test_a_difference_that_rounds_to_nothing_has_no_minus() -> None:
    assert [points(value) for value in (-0.0004, 0.0004, -0.0006, -0.123)] == ["+0.0", "+0.0", "-0.1", "-12.3"]


def test_matplotlibrc_of_a_user_changes_nothing(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    before = transfer_matrices(material)[0]
    svg, pdf = before.svg, before.pdf
    for key, value in (("font.size", 20), ("pdf.fonttype", 3), ("svg.fonttype", "path"), ("text.color", "red")):
        monkeypatch.setitem(matplotlib.rcParams, key, value)
    after = transfer_matrices(material)[0]
    assert (after.svg, after.pdf) == (svg, pdf)


def test_titles_that_become_one_name_stay_apart(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = transfer_matrices(material)[0]
    monkeypatch.setattr("robustmix.report.paper.KINDS", (lambda material: [drawing, drawing],))
    assert list(figures(material)) == ["matrix-fgsm-at-4-255", "matrix-fgsm-at-4-255-2"]


def test_lines_tell_families_by_colour_and_runs_by_dashes(material: Material) -> None:
    found = lines(material)
    assert list(found) == list(material.names)
    by_family = [{found[name].colour for name in names} for names in FAMILIES.values()]
    assert by_family == [{colour} for colour in COLOURS[:3]]
    assert len({found[name].dashes for name in FAMILIES["ERM"]}) == 3


def test_a_seventh_family_has_the_first_colour_and_other_dashes(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for method in ("erm", "mixup", "cutmix", "mixup-h", "mixup-v", "samplepairing", "disturblabel"):
        add_run(place, f"{method}1", method, 1)
        own = read_run(place, f"{method}1").weights or ""
        write_cell(place.cells, make_cell(clean_identity(own, INPUTS, 256), N))
        for identity in identities({"name": "fgsm", "eps": [4]}, own, own):
            write_cell(place.cells, make_cell(identity, N))
    found = list(lines(Material.read(collect(place, "r"))).values())
    assert len({(line.colour, line.dashes) for line in found}) == 7 > len(COLOURS)
