"""A report in a notebook."""

import subprocess
import sys
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from synthetic import EVIL, INPUTS, RUNS, N, add_run, identities, make_cell

import robustmix
from robustmix.errors import SpecError, StoreError
from robustmix.report import collect
from robustmix.report.answer import answer
from robustmix.report.claims import claims
from robustmix.report.effects import effects
from robustmix.report.headline import headline_tables
from robustmix.report.opening import Report, open_report
from robustmix.store.cell_files import read_cells, write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.results import results_table
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    place = Workspace(tmp_path_factory.mktemp("made"))
    other = f"net.py:{EVIL}"
    digests = {other: "c" * 64}
    for name, (method, seed) in RUNS.items():
        add_run(place, name, method, seed)
        digests[name] = read_run(place, name).weights or ""
    for target, scored in digests.items():
        write_cell(place.cells, make_cell(clean_identity(scored, INPUTS, 256), N, target_name=target))
        for source, crafts in digests.items():
            for identity in identities({"name": "fgsm", "eps": [1, 4]}, crafts, scored):
                write_cell(place.cells, make_cell(identity, N, source_name=source, target_name=target))
    collect(place, "r")
    return place


@pytest.fixture(scope="module")
def report(place: Workspace) -> Report:
    return open_report("r", workspace=place.root)


def test_a_report_is_found_by_name_and_by_folder(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.root / "reports" / "r"
    assert robustmix.open_report is open_report
    assert open_report("r", workspace=place.root).folder == folder
    assert open_report(folder).folder == folder
    assert open_report(str(folder)).folder == folder
    monkeypatch.chdir(place.root)
    assert open_report("r").folder.resolve() == folder
    assert open_report("reports/r").folder.resolve() == folder
    with pytest.raises(StoreError, match="unknown report 's'"):
        open_report("s")
    with pytest.raises(StoreError, match="unknown report 's'"):
        open_report("reports/s")
    with pytest.raises(SpecError):
        open_report("..")


def test_tables_are_those_of_the_page(report: Report, place: Workspace) -> None:
    tables, material = report.tables, report.material
    bearers = [*material.runs.values(), *material.models.values()]
    pd.testing.assert_frame_equal(tables["results"], results_table(read_cells(place.cells), bearers))
    assert len(tables["results"]) == 5 + 25 * 2
    found = effects(material)
    assert tables["effects"]["difference"].tolist() == [effect.observed for effect in found]
    ends = [effect.ends or (None, None) for effect in found]
    for column, expected in (("low", [low for low, _ in ends]), ("high", [high for _, high in ends])):
        of = [None if pd.isna(value) else value for value in tables["effects"][column]]
        assert of == expected
    assert set(tables["effects"]["base_runs"]) == {"erm1, erm2"}
    assert tables["claims"]["text"].tolist() == [claim.text for claim in claims(material)]
    assert tables["training"]["name"].tolist()[:4] == list(RUNS)
    assert tables["seeds"]["Runs of"].tolist() == ["ERM", "mixup"]


def test_headline_tables_stand_under_their_titles(report: Report) -> None:
    (head,) = headline_tables(report.material)
    frame = report.tables[head.title]
    assert list(frame.columns) == ["crafted on", *head.families]
    assert frame["crafted on"].tolist() == [source for source, _ in head.rows]
    for row, (_, cells) in zip(frame.itertuples(index=False), head.rows, strict=True):
        for text, cell in zip(row[1:], cells, strict=True):
            assert text == ("" if cell is None else f"{cell[0]} ({', '.join(filter(None, cell[1:]))})")


def test_figures_are_those_of_the_page_and_show_themselves(report: Report) -> None:
    assert "curve-fgsm-white-box" in report.figures
    for drawing in report.figures.values():
        assert drawing._repr_html_().startswith("<figure")


def test_a_cell_shows_answer_table_and_link(report: Report, place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report.answer == answer(report.material)
    shown = report._repr_html_()
    assert report.answer in unescape(shown)
    assert report.material.evidence.title in unescape(shown)
    assert "<script>" not in shown
    assert shown.count("<table") == 1
    assert "<a " not in shown, "there is no page yet"
    page = report.folder / "index.html"
    page.touch()
    monkeypatch.chdir(place.root / "runs")
    assert '<a href="../reports/r/index.html" target="_blank">' in report._repr_html_()
    page.unlink()


CODE = """
import sys, robustmix
report = robustmix.open_report("r", workspace=sys.argv[1])
report._repr_html_(), report.tables, [figure.svg for figure in report.figures.values()]
sys.exit("torch" in sys.modules)
"""


def test_a_report_opens_without_torch(place: Workspace) -> None:
    assert subprocess.run([sys.executable, "-c", CODE, str(place.root)], check=False).returncode == 0


def test_names_in_paths_are_no_reports_of_the_workspace(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"in .*elsewhere"):
        open_report(tmp_path / "elsewhere" / "r", workspace=tmp_path)
