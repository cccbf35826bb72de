"""How sure the networks are: what is drawn are the shares of the cells."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from synthetic import INPUTS, RUNS, N, add_run, make_cell

from robustmix.report import collect
from robustmix.report.distributions import distributions, even_edges, shares
from robustmix.report.drawing import Drawing, lines
from robustmix.report.material import Material
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import Cell, CellIdentity, clean_identity
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

ATTACKS = [("fgsm", 1), ("ifgsm", 10), ("ifgsm", 20)]


def of_key(identity: CellIdentity) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and gaps that only this cell has; some gaps are infinite."""
    rng = np.random.default_rng(int(identity.key()[:8], 16))
    gap = rng.normal(3, 4, N).astype("float32")
    gap[0] = np.inf
    return rng.random(N).astype("float32"), gap


def sure(cell: Cell) -> Cell:
    confidence, gap = of_key(cell.identity)
    rows = cell.rows
    for column, values in (("confidence", confidence), ("gap", gap)):
        rows = rows.set_column(rows.schema.get_field_index(column), column, pa.array(values, pa.float32()))
    return Cell(cell.identity, cell.facts, rows)


@pytest.fixture(scope="module")
def identities() -> dict[tuple[str, str, int], CellIdentity]:
    """Of every cell by target, attack and steps."""
    return {}


@pytest.fixture(scope="module")
def material(
    tmp_path_factory: pytest.TempPathFactory, identities: dict[tuple[str, str, int], CellIdentity]
) -> Material:
    place = Workspace(tmp_path_factory.mktemp("sure"))
    for name, (method, seed) in RUNS.items():
        add_run(place, name, method, seed)
        weights = read_run(place, name).weights or ""
        identities[name, "clean", 0] = clean_identity(weights, INPUTS, 256)
        for attack, steps in ATTACKS:
            for eps in (1.0, 4.0):
                identities[name, attack, steps] = CellIdentity(
                    source=weights, target=weights, inputs=INPUTS, attack=attack, eps_255=eps, steps=steps,
                    step_255=eps / steps, batch_size=256,
                )  # fmt: skip
                write_cell(place.cells, sure(make_cell(identities[name, attack, steps], N)))
        write_cell(place.cells, sure(make_cell(identities[name, "clean", 0], N)))
    return Material.read(collect(place, "sure", command="robustmix report sure"))


def curves(drawing: Drawing) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """What is drawn: places, percentages and the colour of each named line."""
    axes = Figure().add_subplot()
    drawing.draw(axes)
    named = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert axes.get_xlim() == (named[0].get_xdata()[0], named[0].get_xdata()[-1])
    return {str(line.get_label()): (*map(np.asarray, line.get_data()), str(line.get_color())) for line in named}


def test_a_panel_per_quantity_and_state(material: Material) -> None:
    states = ["without an attack", "FGSM at 4/255, white box", "I-FGSM, 10 steps at 4/255, white box"]
    titles = [" ".join(drawing.title.split()) for drawing in distributions(material)]
    assert titles == [f"{quantity}, {state}" for quantity in ("Confidence", "Logit gap") for state in states]


def test_the_lines_are_shares_of_the_cells(
    material: Material, identities: dict[tuple[str, str, int], CellIdentity]
) -> None:
    states = [("clean", 0), ("fgsm", 1), ("ifgsm", 10)]
    drawn = distributions(material)
    for place, drawing in enumerate(drawn):
        found = curves(drawing)
        assert list(found) == ["erm1", "mixup1"]
        for name, (edges, percentages, colour) in found.items():
            values = of_key(identities[name, *states[place % 3]])[place // 3]
            expected = [100 * sum(float(value) <= edge for value in values) / N for edge in edges]
            assert percentages == pytest.approx(expected)
            assert len(edges) <= 101
            assert colour == lines(material)[name].colour


def test_the_gap_has_an_edge_at_zero_and_one_axis(material: Material) -> None:
    axes = [edges for drawing in distributions(material)[3:] for edges, *_ in curves(drawing).values()]
    assert all(np.array_equal(edges, axes[0]) for edges in axes)
    assert 0 in axes[0]
    assert axes[0][0] < -2
    assert axes[0][-1] > 8


def test_the_text_alternative_has_the_numbers(
    material: Material, identities: dict[tuple[str, str, int], CellIdentity]
) -> None:
    gap = np.sort(of_key(identities["mixup1", "fgsm", 1])[1])
    words = distributions(material)[4].words().split(". ")[-1]
    tenth, half, most = (f"{gap[int(share * N) - 1]:.3g}" for share in (0.1, 0.5, 0.9))
    assert words.startswith(f"mixup1: a tenth at or below {tenth}, half at or below {half}")
    assert f"nine tenths at or below {most}; " in words
    assert float(re.findall(r"([\d.]+)\s*% below 0", words)[0]) == pytest.approx(100 * np.mean(gap < 0))


def test_small_whole_and_the_same_twice(material: Material) -> None:
    assert distributions(material)[-1].pdf.startswith(b"%PDF")
    for first, second in zip(distributions(material), distributions(material), strict=True):
        assert first.svg == second.svg
        assert len(first.svg) < 30_000
        assert "nan" not in first.svg
        (title, described) = (ElementTree.fromstring(first.svg).findtext(tag) for tag in ("title", "desc"))
        assert title == first.title
        assert described == first.words()


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_edges_are_few_even_and_hold_zero(values: list[float], scale: float) -> None:
    edges = even_edges(scale * np.array([*values, np.inf]))
    assert 2 <= len(edges) <= 53
    assert 0 in edges
    assert np.diff(edges) == pytest.approx(edges[1] - edges[0])


@pytest.mark.parametrize("edges", [even_edges, lambda _: np.linspace(0, 1, 5)])
def test_shares_count_what_is_at_or_below(edges: Callable[[np.ndarray], np.ndarray]) -> None:
    values: Any = np.array([0.25, 0.5, 0.5, 1.0])
    places = edges(values)
    assert shares(values, places).tolist() == [sum(value <= edge for value in values) / 4 for edge in places]


def test_what_nobody_attacked_is_not_drawn(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for name in ("erm1", "mixup1"):
        add_run(place, name, *RUNS[name])
    source = read_run(place, "erm1").weights
    for name in ("erm1", "mixup1"):
        target = read_run(place, name).weights or ""
        write_cell(place.cells, make_cell(clean_identity(target, INPUTS, 256), N))
        fields = {"attack": "fgsm", "eps_255": 4, "steps": 1, "step_255": 4, "inputs": INPUTS, "batch_size": 256}
        attacked = CellIdentity.model_validate({"source": source, "target": target, **fields})
        write_cell(place.cells, make_cell(attacked, N))
    found = distributions(Material.read(collect(place, "one", command="robustmix report one")))
    assert [list(curves(drawing)) for drawing in found] == 2 * [["erm1", "mixup1"], ["erm1"]]
