"""The page that lists all reports, and what ``robustmix report`` writes beside a report."""

import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pages import make_matrix
from synthetic import EVIL, INPUTS, RUNS, N, wrong
from tiny import Call

from robustmix.report import collect
from robustmix.report.index import entries, write_index
from robustmix.spec.suite import Suite
from robustmix.spec.validation import validate
from robustmix.store.audits import AuditRecord, AuditTest, Verdict, write_audit
from robustmix.store.cell_files import read_cells
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

FGSM, IFGSM = {"name": "fgsm", "eps": [1, 4]}, {"name": "ifgsm", "eps": [4]}
SUITE: dict[str, Any] = {
    "version": 1, "title": f"Is mixup robust? {EVIL}", "note": f"A note. {EVIL}", "data": "cifar10",
    "sources": "*[12]", "attack": [FGSM],
}  # fmt: skip


def audit(place: Workspace, name: str, verdict: Verdict) -> None:
    weights = read_run(place, name).weights or ""
    test = AuditTest(name="t", title="t", kind="gradients masked", verdict=verdict, measured="m", meaning="m")
    record = AuditRecord(
        target=name, weights=weights, data="cifar10", inputs=INPUTS, n=N, eps_255=4, tests=(test,), robustmix="0",
        torch="0", device="cpu", command="c",
    )  # fmt: skip
    write_audit(place.audits, record)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two reports: 'first' of a suite, with audits of three of its networks, and 'second' of all cells."""
    place = make_matrix(tmp_path_factory.mktemp("made"), RUNS, [FGSM, IFGSM])
    collect(place, "second")
    for name, verdict in (("erm1", "pass"), ("erm2", "fail"), ("mixup1", "finding")):
        audit(place, name, verdict)  # type: ignore[arg-type]
    folder = collect(place, "first", suite=validate(Suite, SUITE))
    # Its page, whose making takes long and which nobody reads here.
    (folder / "index.html").touch()
    return place


@pytest.fixture
def place(made: Workspace, tmp_path: Path) -> Workspace:
    """A workspace of one's own to spoil."""
    shutil.copytree(made.root, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


class Page(HTMLParser):
    """Sections, links and rows of the index."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in ("meta", "link"):
            self.open.append(tag)
        if tag == "section":
            self.sections.append("")
        elif tag == "a":
            self.links.append(values["href"] or "")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "section" in self.open:
            self.sections[-1] += data
        if "tr" in self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")


def page_of(place: Workspace) -> Page:
    return Page(write_index(place.root / "reports").read_text(encoding="utf-8"))


def test_every_report_is_listed_by_name(made: Workspace) -> None:
    page = page_of(made)
    first, second = (" ".join(section.split()) for section in page.sections)
    assert first.startswith(f"Is mixup robust? {EVIL} A note. {EVIL}")
    assert second.startswith("Adversarial error of erm1, erm2, mixup1 and mixup2 on cifar10")
    assert [link for link in page.links if link.endswith(".html")] == ["first/index.html"], "the other has no page"
    assert "robustmix report second --rerender" in second
    assert "2 runs of ERM and 2 runs of mixup" in first
    assert "cifar10: a note, " in first


def test_numbers_are_the_means_over_the_cells(made: Workspace) -> None:
    by_name = {read_run(made, run).weights: run for run in RUNS}
    errors = {
        (by_name.get(cell.identity.source), by_name[cell.identity.target], cell.identity.attack, cell.identity.eps_255):
        100 * sum(wrong(cell)) / N
        for cell in read_cells(made.cells)
    }  # fmt: skip
    rows = iter(page_of(made).rows)
    for attacks in (["fgsm"], ["fgsm", "ifgsm"]):
        assert next(rows) == ["Images", "ERM", "mixup"]
        titles = {"fgsm": "FGSM", "ifgsm": "I-FGSM, 10 steps"}
        families = ("erm1", "erm2"), ("mixup1", "mixup2")
        expected = {"no attack": [[errors[None, name, "clean", 0] for name in names] for names in families]}
        for attack in attacks:
            at = f"{titles[attack]} at 4/255"
            expected[f"{at}, white box"] = [[errors[name, name, attack, 4] for name in names] for names in families]
            expected[f"{at}, transfer"] = [
                [errors[s, name, attack, 4] for name in names for s in RUNS if s != name] for names in families
            ]
        for title, both in expected.items():
            assert next(rows) == [title, *(f"{sum(own) / len(own):.1f} %" for own in both)]
    assert next(rows, None) is None


def test_audits_are_told_worst_first(made: Workspace) -> None:
    first, second = entries(made.root / "reports")
    assert dict(first.facts)["Audit"] == "fail: erm2; pass: erm1 and mixup1; not audited: mixup2"
    assert dict(second.facts)["Audit"] == "not audited: erm1, erm2, mixup1 and mixup2"


def test_index_is_a_function_of_the_folders_and_loads_nothing(made: Workspace, place: Workspace) -> None:
    there, here = (write_index(where.root / "reports").read_bytes() for where in (made, place))
    assert there == here
    assert str(place.root).encode() not in here
    page = page_of(place)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object")]
    (policy,) = [values["content"] for tag, values in page.tags if values.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "Date" not in re.sub(r"<style>.*?</style>", "", here.decode(), flags=re.DOTALL)
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))
    for _, values in page.tags:
        assert values.get("aria-labelledby", ids[0]) in ids


def test_a_damaged_report_says_so_and_hides_no_other(place: Workspace) -> None:
    (place.root / "reports/first/evidence.json").write_text("{}")
    shutil.rmtree(place.root / "reports/second/cells")
    (place.root / "reports/no-report").mkdir()
    first, second = entries(place.root / "reports")
    assert (first.title, second.title) == ("first", "second")
    assert first.problem
    assert first.problem.startswith("first/evidence.json")
    assert second.problem
    assert second.problem.startswith("second/cells/")
    text = write_index(place.root / "reports").read_text(encoding="utf-8")
    assert unescape(text).count("This report cannot be read: ") == 2


def test_an_empty_workspace_has_an_empty_list(tmp_path: Path) -> None:
    page = write_index(tmp_path / "reports").read_text(encoding="utf-8")
    assert "There is none yet" in page


# ---- the command -------------------------------------------------------------------------------------------


def test_command_writes_the_index_alone(place: Workspace, call: Call) -> None:
    before = set(place.root.rglob("*"))
    done = call("report", "--index", cwd=place.root)
    assert (done.code, done.out) == (0, "reports: reports/index.html\n")
    assert set(place.root.rglob("*")) == {*before, place.root / "reports/index.html"}


@pytest.mark.parametrize("more", [["first"], ["--data", "cifar10"], ["--rerender"], ["--pdf"], ["--suite", "demo"]])
def test_index_goes_with_nothing_else(more: list[str], place: Workspace, call: Call) -> None:
    done = call("report", *more, "--index", cwd=place.root)
    assert done.code == 2
    assert "--index lists all reports of the workspace; it goes with no NAME and no other option" in done.err


def test_command_writes_figures_for_a_paper(place: Workspace, call: Call) -> None:
    done = call("report", "second", "--rerender", "--pdf", cwd=place.root)
    assert done.code == 0, done.err
    first, second = done.out.splitlines()
    assert first == "report: reports/second/index.html"
    count = len(list((place.root / "reports/second/figures").glob("*.pdf")))
    assert second == f"figures: reports/second/figures ({count} PDF files)"
    assert count > 2 * 3 + 2
    assert call("report", "second", "--rerender", cwd=place.root).out == first + "\n"
