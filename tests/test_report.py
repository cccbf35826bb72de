import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from scipy.stats import binomtest
from synthetic import EVIL, INPUTS, RUNS, N, add_run, clean_of, identities, make_cell, wrong

from robustmix.errors import SpecError, StoreError
from robustmix.report import Evidence, collect, load, load_cells, render
from robustmix.report.material import Material
from robustmix.report.words import scope
from robustmix.spec.suite import Suite, load_suite, shipped_suites
from robustmix.spec.validation import validate
from robustmix.store.cell_files import cell_path, read_cell, read_cells, write_cell
from robustmix.store.cells import BatchState, Cell, CellIdentity, clean_identity
from robustmix.store.examples import breaking
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

SWEEP = [("fgsm", 1, eps) for eps in (0.5, 1.0, 4.0)] + [("ifgsm", 10, eps) for eps in (1.0, 4.0)]

SUITE: dict[str, Any] = {
    "version": 1,
    "title": f"Is mixup robust? {EVIL}",
    "note": f"A note. {EVIL}",
    "data": "cifar10",
    "headline_eps": 4,
    "sources": "*[12]",
    "attack": [{"name": "fgsm", "eps": ["0.5/255", 1, 4]}, {"name": "ifgsm", "eps": [1, 4], "steps": 10}],
    "published": {
        "experiments": ["ali-cifar10", "zhang-table3"],
        "white": ["erm1", "mixup1"],
        "source": "erm1",
        "targets": ["erm2", "mixup1"],
    },
}


def suite(**changes: Any) -> Suite:
    return validate(Suite, {**SUITE, **changes})


def add_cells(
    place: Workspace, *, inputs: str = INPUTS, n: int = N, data: str = "cifar10", batch_size: int = 256
) -> None:
    digests = {name: read_run(place, name).weights for name in RUNS}
    for target in digests.values():
        assert target is not None
        write_cell(place.cells, make_cell(clean_identity(target, inputs, batch_size), n, data))
        for source in digests.values():
            for attack, steps, eps in SWEEP:
                identity = CellIdentity(
                    source=source, target=target, inputs=inputs, attack=attack, eps_255=eps, steps=steps,
                    step_255=eps / steps, batch_size=batch_size,
                )  # fmt: skip
                write_cell(place.cells, make_cell(identity, n, data))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    place = Workspace(tmp_path_factory.mktemp("made"))
    for name, (method, seed) in RUNS.items():
        add_run(place, name, method, seed)
    add_cells(place)
    return place


@pytest.fixture
def place(made: Workspace, tmp_path: Path) -> Workspace:
    """A workspace of one's own to spoil."""
    shutil.copytree(made.root, tmp_path / "ws")
    shutil.rmtree(tmp_path / "ws" / "reports", ignore_errors=True)
    return Workspace(tmp_path / "ws")


@pytest.fixture(scope="module")
def folder(made: Workspace) -> Path:
    command = f"robustmix run mine --note '{EVIL}'"
    return render(collect(made, "mine", suite=suite(), suite_name="mine", command=command)).parent


class Page(HTMLParser):
    """The tags, the texts and the tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.items: list[str] = []
        self.lead = ""
        self.text = ""
        self.caption = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "use", "path"):
            self.open.append(tag)
        if tag == "table":
            self.caption = ""
        elif tag == "tr":
            self.tables.setdefault(self.caption.strip(), []).append([])
        elif tag in ("th", "td"):
            self.tables[self.caption.strip()][-1].append("")
        elif tag == "li":
            self.items.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "caption" in self.open:
            self.caption += data
        for tags in (("th",), ("td",)):
            if any(tag in self.open for tag in tags):
                self.tables[self.caption.strip()][-1][-1] += data
        if "li" in self.open:
            self.items[-1] += data
        if self.tags and self.tags[-1] == ("p", {"class": "lead"}) and self.open[-1] == "p":
            self.lead += data

    def table(self, part: str) -> list[list[str]]:
        """The body and head of the table whose caption holds a text, its spaces made plain."""
        (found,) = [rows for caption, rows in self.tables.items() if part in caption]
        return [[" ".join(cell.split()) for cell in row] for row in found]


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def svgs(folder: Path) -> Iterator[ElementTree.Element]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    for found in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        yield ElementTree.fromstring(found)


def errors(place: Workspace) -> dict[tuple[str | None, str, str, float], tuple[int, int]]:
    """(source, target, attack, budget) -> wrong and all, counted from the cells alone."""
    name = {read_run(place, run).weights: run for run in RUNS}
    found = {}
    for cell in read_cells(place.cells):
        wrong = cell.rows["label"].to_numpy() != cell.rows["prediction"].to_numpy()
        identity = cell.identity
        source = name[identity.source] if identity.source else None
        found[source, name[identity.target], identity.attack, identity.eps_255] = int(wrong.sum()), len(wrong)
    return found


def rate(wrong: int, total: int) -> str:
    return f"{100 * wrong / total:.1f} %"


def wilson(wrong: int, total: int) -> str:
    low, high = binomtest(wrong, total).proportion_ci(method="wilson")
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_full_table_equals_the_cells(made: Workspace, page: Page) -> None:
    _, *rows = page.table("Every cell")
    counted = errors(made)
    clean_rates = {run: rate(*counted[None, run, "clean", 0]) for run in RUNS}
    assert len(rows) == len(counted) == 4 + 16 * len(SWEEP)
    attacks = {"FGSM": "fgsm", "I-FGSM, 10 steps": "ifgsm", "–": "clean"}
    for role, source, target, attack, step, budget, error, interval, clean, success, largest, passes in rows:
        eps = float(budget.removesuffix("/255"))
        wrong, total = counted.pop((None if source == "–" else source, target, attacks[attack], eps))
        assert (error, interval) == (rate(wrong, total), wilson(wrong, total))
        assert role == ("clean" if source == "–" else "white box" if source == target else "transfer")
        assert clean == clean_rates[target]
        assert passes == "7 + 2.5"
        if role == "clean":
            assert (step, success, largest) == ("–",) * 3
        else:
            assert largest == "100.0 %"
            steps = {"FGSM": 1, "I-FGSM, 10 steps": 10}[attack]
            assert float(step.removesuffix("/255")) * steps == pytest.approx(eps)
            assert success.endswith(" %")
    assert not counted


def test_published_stands_beside_measured(made: Workspace, page: Page) -> None:
    counted = errors(made)
    expected = {
        ("table 3", "white box FGSM", "ERM"): ("90.7 %", ("erm1", "erm1", "fgsm")),
        ("table 3", "white box FGSM", "mixup"): ("75.2 %", ("mixup1", "mixup1", "fgsm")),
        ("table 3", "white box I-FGSM", "ERM"): ("99.9 %", ("erm1", "erm1", "ifgsm")),
        ("table 3", "white box I-FGSM", "mixup"): ("99.6 %", ("mixup1", "mixup1", "ifgsm")),
        ("table 3", "transfer FGSM", "ERM"): ("57.0 %", ("erm1", "erm2", "fgsm")),
        ("table 3", "transfer FGSM", "mixup"): ("46.0 %", ("erm1", "mixup1", "fgsm")),
        ("table 3", "transfer I-FGSM", "ERM"): ("57.3 %", ("erm1", "erm2", "ifgsm")),
        ("table 3", "transfer I-FGSM", "mixup"): ("40.9 %", ("erm1", "mixup1", "ifgsm")),
        ("own experiments, attacks", "white box FGSM", "ERM"): ("53.7 %", ("erm1", "erm1", "fgsm")),
        ("own experiments, attacks", "white box FGSM", "mixup"): ("49.25 %", ("mixup1", "mixup1", "fgsm")),
        ("own experiments, attacks", "transfer FGSM", "ERM"): ("55.07 %", ("erm1", "erm2", "fgsm")),
        ("own experiments, attacks", "transfer FGSM", "mixup"): ("49.76 %", ("erm1", "mixup1", "fgsm")),
    }
    seen = 0
    for caption in ("table 3", "own experiments, attacks"):
        for inputs, method, run, measured, published, _, level, _ in page.table(f"{caption} published")[1:]:
            value, (source, target, attack) = expected[caption, inputs.removesuffix(", 4/255"), method]
            wrong, total = counted[source, target, attack, 4.0]
            assert measured == f"{rate(wrong, total)} {wilson(wrong, total)}"
            assert run == target if source == target else f"{target} from {source}"
            assert published == f"{value} T"
            assert level == "same design"
            seen += 1
    assert seen == len(expected)


def test_published_clean_errors_stand_beside_measured(made: Workspace, page: Page) -> None:
    counted = errors(made)
    _, erm, mixup = page.table("figure 3a (first version, October 2017) published")
    assert (erm[4], mixup[4]) == ("5.6 % T", "3.9 % T†")
    both = [f"{rate(*counted[None, run, 'clean', 0])} {wilson(*counted[None, run, 'clean', 0])}" for run in RUNS]
    assert (erm[3], mixup[3]) == (both[0] + both[1], both[2] + both[3])
    assert page.table("corrected it published")[1][4] == "4.2 % T"
    assert [row[4] for row in page.table("clean error published")[1:]] == ["5.37 % T", "4.21 % T"]


def test_reasons_stand_once(page: Page) -> None:
    plain = [" ".join(item.split()) for item in page.items]
    assert "a narrower network: width 16 of 64" in plain
    assert "not trained to the end: 22.1 % error on its own training set" in plain
    assert all("width 16 of 64" not in row[7] for row in page.table("table 3 published"))


def test_means_leave_out_a_network_against_itself(made: Workspace, page: Page) -> None:
    counted = errors(made)
    header, *rows = page.table("FGSM at 4/255") if "FGSM at 4/255" in page.tables else page.table("I-FGSM")
    assert header == ["Crafted on", "ERM errs", "mixup errs"]
    attack = "fgsm" if "FGSM at 4/255" in page.tables else "ifgsm"
    by_source = {row[0]: row[1:] for row in rows}
    assert list(by_source) == ["no attack", "itself (white box)", "a run of ERM", "a run of mixup"]
    for source, crafters in (("a run of ERM", ("erm1", "erm2")), ("a run of mixup", ("mixup1", "mixup2"))):
        for column, scored in enumerate((("erm1", "erm2"), ("mixup1", "mixup2"))):
            pairs = [(s, t) for s in crafters for t in scored if s != t]
            rates = [counted[s, t, attack, 4.0][0] / N for s, t in pairs]
            low, high = 100 * min(rates), 100 * max(rates)
            expected = f"{100 * sum(rates) / len(rates):.1f} %{low:.1f} to {high:.1f}{len(pairs)} pairs"
            assert by_source[source][column] == expected


def test_first_screen_speaks_of_runs(made: Workspace, folder: Path, page: Page) -> None:
    counted = errors(made)
    plain = [" ".join(item.split()) for item in page.items]
    (white,) = [item for item in plain if item.startswith("Under white-box FGSM at 4/255")]
    first, second = counted["erm1", "erm1", "fgsm", 4.0], counted["mixup1", "mixup1", "fgsm", 4.0]
    assert f"erm1 errs on {rate(*first)} {wilson(*first)} of 50 images" in white
    assert f"mixup1 on {rate(*second)} {wilson(*second)}" in white
    assert page.lead.startswith("At 4/255 mixup1 and mixup2 err ")
    assert page.lead.endswith("nothing here is a claim about methods.")
    assert not re.search(r"\b(erm|mixup)\b", page.lead, re.IGNORECASE)
    for item in plain:
        if item.startswith(("Under", "Without")):
            assert not re.search(r"\b(erm|mixup)\b", item, re.IGNORECASE), item
    text = " ".join(page.text.split())
    assert "trained for 2 epochs on 50,000 images" in text
    assert "erm1 22.1 %, erm2 22.1 %, mixup1 22.1 % and mixup2 22.1 %" in text
    assert "did not fit the training set: not converged" in text
    assert "published networks have width 64 and 200 epochs" in text
    assert "nothing here is a claim about methods" in scope(Material.read(folder))


def test_training_table(page: Page) -> None:
    rows = page.table("as they ended")
    assert [row[0] for row in rows[1:]] == list(RUNS)
    assert rows[3][1:9] == ["mixup", "1", "2", "22.1 %", "45.6 %", "30.0 %", "preact_resnet18", "16"]


# ---- figures -----------------------------------------------------------------------------------------------------


def test_every_figure_has_a_text_alternative(folder: Path) -> None:
    figures = 0
    for svg in svgs(folder):
        assert svg.get("role") == "img"
        if svg.get("aria-label"):
            continue
        figures += 1
        children = {child.tag: child for child in svg}
        title, desc = children["title"], children["desc"]
        assert svg.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        assert title.text
        assert "erm1" in (desc.text or "")
    assert figures == 2 * 3 + 2 + 6 + 3


def test_matrix_writes_the_numbers_and_frames_the_white_box(made: Workspace, folder: Path) -> None:
    counted = errors(made)
    (matrix,) = [svg for svg in svgs(folder) if svg.get("aria-labelledby", "").startswith("matrix1-")]
    written = Counter(text.text for text in matrix.iter("text"))
    expected = Counter(f"{100 * counted[s, t, 'fgsm', 4.0][0] / N:.1f}" for s in RUNS for t in RUNS)
    assert expected <= written
    framed = [
        path for path in matrix.iter("path") if "stroke: currentColor; stroke-width: 1.4" in path.get("style", "")
    ]
    assert len(framed) == len(RUNS)


def test_figures_take_the_colour_of_the_text(folder: Path) -> None:
    for svg in svgs(folder):
        for text in svg.iter("text"):
            assert "fill: currentColor" in text.get("style", "")
    assert "#010203" not in (folder / "index.html").read_text(encoding="utf-8")


# ---- the page as a document --------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "varied_folder"])
def any_folder(request: pytest.FixtureRequest) -> Path:
    """The report of each workspace in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Path)
    return found


def test_page_loads_nothing(any_folder: Path) -> None:
    page = Page((any_folder / "index.html").read_text(encoding="utf-8"))
    tags = Counter(tag for tag, _ in page.tags)
    assert not {"iframe", "object", "embed", "image", "base", "form"} & set(tags)
    assert tags["link"] == tags["script"] == 1
    for tag, attributes in page.tags:
        assert "src" not in attributes or (
            tag == "img" and (attributes["src"] or "").startswith("data:image/png;base64,")
        )
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#") or attributes[name] == "data:,"
    text = (any_folder / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert "@import" not in text
    assert len(text.encode()) < 1_000_000


def test_hostile_texts_are_escaped(page: Page) -> None:
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert "{{ 7 * 7 }}" in page.text
    assert "49" not in re.findall(r"amp;(\S+)", page.text)


def test_ids_are_unique_and_references_resolve(any_folder: Path) -> None:
    page = Page((any_folder / "index.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set()
    for _, attributes in page.tags:
        wanted |= set((attributes.get("aria-labelledby") or "").split())
        if (href := attributes.get("href") or "").startswith("#"):
            wanted.add(href[1:])
    text = (any_folder / "index.html").read_text(encoding="utf-8")
    wanted |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert wanted <= set(ids)


def test_page_can_be_read_by_ear(page: Page) -> None:
    attributes = dict(page.tags)
    assert attributes["html"]["lang"] == "en"
    assert "width=device-width" in next(a["content"] or "" for _, a in page.tags if a.get("name") == "viewport")
    tags = Counter(tag for tag, _ in page.tags)
    assert tags["main"] == tags["header"] == tags["footer"] == tags["nav"] == tags["h1"] == tags["title"] - 17 == 1
    assert tags["caption"] == tags["table"] > 6
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")


# ---- a function of files -----------------------------------------------------------------------------------------


def test_same_bytes_wherever_and_whenever(any_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (any_folder / "index.html").read_bytes()
    moved = shutil.copytree(any_folder, tmp_path / "elsewhere" / any_folder.name)
    (moved / "index.html").unlink()
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert render(moved).read_bytes() == before
    assert str(any_folder.parent).encode() not in before


def test_report_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, robustmix.report as r; from pathlib import Path; r.render(Path(sys.argv[1])); "
        "print([m for m in ('torch', 'torchvision') if m in sys.modules])"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_evidence_holds_runs_and_suite_whole(made: Workspace, folder: Path) -> None:
    evidence = load(folder)
    assert evidence.suite is not None
    assert evidence.suite.attack[0].eps == (0.5, 1, 4)
    assert evidence.suite.sources == evidence.targets == tuple(RUNS)
    assert evidence == Evidence.model_validate_json(evidence.model_dump_json())
    for record in evidence.runs:
        run, original = record.as_run(), read_run(made, record.name)
        assert (run.recipe, run.facts, run.weights) == (original.recipe, original.facts, original.weights)
        assert run.history.astype(float).equals(original.history.astype(float))
    assert sorted(cell.key for cell in load_cells(folder, evidence)) == sorted(evidence.cells)


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_survive_as_json(name: str) -> None:
    original = load_suite(name)
    assert validate(Suite, json.loads(original.model_dump_json(exclude_unset=True))) == original


# ---- gathering ---------------------------------------------------------------------------------------------------


def evidence_examples(evidence: Evidence, folder: Path) -> int:
    return load_cells(folder, evidence)[0].rows.num_rows


def test_without_a_suite_all_cells_are_reported(place: Workspace) -> None:
    page = render(collect(place, None))
    assert page == place.root / "reports" / "cifar10" / "index.html"
    evidence = load(page.parent)
    assert evidence.headline_eps == 4
    assert len(evidence.cells) == len(list(place.cells.iterdir()))
    runs = "--data cifar10 --source erm1 erm2 mixup1 mixup2 --target erm1 erm2 mixup1 mixup2"
    count = evidence_examples(evidence, page.parent)
    assert evidence.attack_commands == (
        f"robustmix attack {runs} --attack fgsm --eps 0.5/255 1 4 --limit {count} --batch-size 256",
        f"robustmix attack {runs} --attack ifgsm --eps 1 4 --steps 10 --limit {count} --batch-size 256",
    )


def test_stale_cells_are_removed(place: Workspace) -> None:
    folder = collect(place, "r", suite=suite())
    assert len(list((folder / "cells").iterdir())) == 4 + 16 * len(SWEEP)
    smaller = suite(attack=[{"name": "fgsm", "eps": [4]}], sources=["erm1", "mixup1"], targets=["erm*", "mixup1"])
    collect(place, "r", suite=smaller)
    assert len(list((folder / "cells").iterdir())) == 3 + 6
    assert load(folder).targets == ("erm1", "erm2", "mixup1")
    render(folder)


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_cell_names_the_command(place: Workspace) -> None:
    source, target = (read_run(place, run).weights for run in ("erm1", "mixup2"))
    for cell in read_cells(place.cells):
        identity = cell.identity
        if (identity.source, identity.target, identity.attack) == (source, target, "ifgsm"):
            cell_path(place.cells, identity).unlink()
    with pytest.raises(StoreError) as error:
        render(collect(place, "mine", suite=suite(), suite_name="mine"))
    text = one_line(error)
    assert "mixup2 under ifgsm of 10 steps at 1/255 crafted on erm1 on cifar10 (and 1 more)" in text
    assert text.endswith("compute what is missing with: robustmix attack --suite mine --data cifar10")
    assert not (place.root / "reports").exists()


def test_missing_clean_cell(place: Workspace) -> None:
    for cell in read_cells(place.cells):
        if cell.identity.source is None:
            cell_path(place.cells, cell.identity).unlink()
    with pytest.raises(StoreError, match="on clean inputs"):
        collect(place, "mine", suite=suite())
    with pytest.raises(StoreError, match="clean cell"):
        collect(place, "all")
    assert not (place.root / "reports").exists()


def test_several_data_sets_must_be_told_apart(place: Workspace) -> None:
    add_cells(place, inputs="6" * 64, data="digits")
    with pytest.raises(SpecError) as error:
        render(collect(place, "all"))
    assert one_line(error) == "the workspace has cells of several data sets: choose with --data from cifar10, digits"
    assert load(collect(place, None, data="digits")).data == "digits"
    with pytest.raises(SpecError, match="'cifar100': the workspace has cells of cifar10, digits"):
        collect(place, None, data="cifar100")
    assert load(collect(place, "suite", suite=suite())).data == "cifar10"


def test_one_set_of_test_examples(place: Workspace) -> None:
    add_cells(place, inputs="6" * 64, n=20)
    inputs = {cell.identity.inputs for cell in load_cells(collect(place, "a"), load(collect(place, "a")))}
    assert inputs == {INPUTS}
    folder = collect(place, "b", suite=suite(limit=20))
    assert {cell.rows.num_rows for cell in load_cells(folder, load(folder))} == {20}
    with pytest.raises(StoreError, match="--limit 30"):
        collect(place, "c", suite=suite(limit=30))
    folder = collect(place, "c", suite=suite(limit=1000))  # beyond the test set's size, a limit takes all of it
    assert {cell.rows.num_rows for cell in load_cells(folder, load(folder))} == {N}
    add_cells(place, inputs="7" * 64)
    with pytest.raises(SpecError, match="2 different sets of 50 test examples") as error:
        collect(place, "d", suite=suite())
    one_line(error)
    folder = collect(place, "d", suite=suite(), inputs="7" * 64)
    assert {cell.identity.inputs for cell in load_cells(folder, load(folder))} == {"7" * 64}


def test_cells_of_another_batch_size_are_not_counted_twice(place: Workspace) -> None:
    add_cells(place, batch_size=64)
    write_cell(place.cells, make_cell(clean_identity(read_run(place, "erm1").weights or "", INPUTS, 32), N))
    for chosen in (suite(), None):
        folder = collect(place, "r", suite=chosen)
        assert {cell.identity.batch_size for cell in load_cells(folder, load(folder))} == {256}


def test_published_design_must_be_in_the_matrix(place: Workspace) -> None:
    with pytest.raises(SpecError, match=r"published.white: unknown run 'mixup1'"):
        collect(place, "r", suite=suite(sources="erm*"))


def test_empty_workspace(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no cells to report"):
        render(collect(Workspace(tmp_path), None))
    assert not list(tmp_path.iterdir())


def test_unknown_report(folder: Path) -> None:
    with pytest.raises(StoreError, match="unknown report 'mien' \\(did you mean 'mine'"):
        render(folder.parent / "mien")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("not json", "cannot be read"),
        ("[]", "does not hold"),
        ({"version": 1}, "version = 1"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"targets": ["../../etc"]}, "not a usable name"),
        ({"targets": ["erm9"]}, "unknown run 'erm9'"),
        ({"cells": ["../x"]}, "cells.1"),
        ({"cells": ["0" * 64]}, "no cell that can be read"),
    ],
)
def test_damaged_evidence_is_one_line(folder: Path, tmp_path: Path, change: str | dict[str, Any], message: str) -> None:
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    path = spoilt / "evidence.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(change if isinstance(change, str) else json.dumps(values | change), encoding="utf-8")
    before = (spoilt / "index.html").read_bytes()
    with pytest.raises((StoreError, SpecError)) as error:
        render(spoilt)
    assert message in one_line(error)
    assert (spoilt / "index.html").read_bytes() == before


def test_a_single_run_and_budget(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add_run(place, "only", "mixup", 1, data="folder:birds")
    weights = read_run(place, "only").weights
    assert weights is not None
    attacked = CellIdentity(
        source=weights, target=weights, inputs=INPUTS, attack="ifgsm", eps_255=2, steps=5, step_255=1, batch_size=8
    )
    for identity in (attacked, attacked.clean()):
        write_cell(place.cells, make_cell(identity, 1, data="folder:birds"))
    page = render(collect(place, None))
    assert page.parent.name == "birds"
    text = page.read_text(encoding="utf-8")
    assert "I-FGSM, 5 steps of 1/255" in text
    assert "No published figure stands beside these" in text
    for section in ("breaking", "worst", "gradients", "faster", "rounded"):
        assert f'"#{section}"' not in text, "a single attack at a single budget has nothing to show there"


# ---- attacks of every kind, and models of others -----------------------------------------------------------------

OTHER = "net.py:make"
SPECS: list[dict[str, Any]] = [
    {"name": "fgsm", "eps": [1, 2, 4]},
    {"name": "fgsm", "eps": [1, 2, 4], "precision": "bf16"},
    {"name": "fgsm", "eps": [1, 2, 4], "compiled": True},
    {"name": "fgsm", "eps": [1, 2, 4], "loss": "logodds"},
    {"name": "fgsm", "eps": [1, 2, 4], "labels": "predicted"},
    {"name": "ifgsm", "eps": [1, 2, 4]},
    {"name": "ifgsm", "eps": [1, 2, 4], "step": 1},
    {"name": "ifgsm", "eps": ["0.5/255", 1, 2, 4], "steps": 20, "step": "0.5/255", "impl": "foolbox"},
    {"name": "ifgsm", "eps": [2, 4, 8], "step": "kurakin"},
    {"name": "pgd", "eps": [2, 4], "restarts": 3, "seed": 7},
    {"name": "pgd", "eps": [2, 4], "steps": 5, "step": "2 eps/steps"},
    {"name": "mifgsm", "eps": [32, 64, 300], "norm": "l2", "decay": 0},
    {"name": "signs", "eps": [1, 4], "seed": 1},
    {"name": "square", "eps": [4], "queries": 100},
    {"name": "deepfool", "steps": 20},
    {"name": "deepfool", "norm": "linf"},
]


def state(gap: float, saturated: float) -> BatchState:
    return BatchState(gap=tuple(gap + k for k in range(7)), saturated=saturated, zero_gradient=saturated / 2)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two runs and a model of somebody else's, attacked in every way."""
    place = Workspace(tmp_path_factory.mktemp("varied"))
    digests = {OTHER: "c" * 64}
    for name in ("erm1", "mixup1"):
        add_run(place, name, *RUNS[name])
        digests[name] = read_run(place, name).weights or ""
    for target, scored in digests.items():
        for compiled in (False, True):
            write_cell(
                place.cells, make_cell(clean_identity(scored, INPUTS, 256, compiled=compiled), N, target_name=target)
            )
        for source, crafts in digests.items():
            common = {"source_name": source, "target_name": target}
            for fields in SPECS:
                facts: dict[str, Any] = dict(common)
                if fields["name"] in ("fgsm", "ifgsm"):
                    facts["batches"] = [state(2.0, 0.04 if source == "erm1" else 0.0)]
                if fields["name"] == "deepfool":  # which ascends no cross-entropy
                    facts["batches"] = [state(2.0, 0.08)]
                if fields.get("loss") == "logodds":
                    facts |= {"batches": [state(1.0, 0.9)], "data_wait": 0.125, "halved_from": 512}
                for identity in identities(fields, crafts, scored):
                    write_cell(place.cells, make_cell(identity, N, rounded=fields == SPECS[0], **facts))
            # As such attacks were made once, which nobody can ask for any more: no page shows them.
            (refused,) = identities(SPECS[-1], crafts, scored)
            write_cell(place.cells, make_cell(refused.model_copy(update={"precision": "bf16"}), N, **common))
    return place


@pytest.fixture(scope="module")
def varied_folder(varied: Workspace) -> Path:
    return render(collect(varied, "varied")).parent


@pytest.fixture(scope="module")
def varied_page(varied_folder: Path) -> Page:
    return Page((varied_folder / "index.html").read_text(encoding="utf-8"))


def varied_cells(place: Workspace, fields: dict[str, Any], source: str, target: str) -> list[Cell]:
    digests = {OTHER: "c" * 64, **{name: read_run(place, name).weights or "" for name in ("erm1", "mixup1")}}
    return [read_cell(cell_path(place.cells, one)) for one in identities(fields, digests[source], digests[target])]


@pytest.mark.parametrize("fields", SPECS, ids=lambda fields: " ".join(map(str, fields.values())))
def test_suite_gets_the_cells_of_its_own_attack_only(varied: Workspace, fields: dict[str, Any]) -> None:
    folder = collect(
        varied, "one", suite=suite(attack=[fields], sources=["erm1", OTHER], published=None, headline_eps=None)
    )
    cells = load_cells(folder, load(folder))
    digests = ["c" * 64, read_run(varied, "erm1").weights or ""]
    expected = {one.key() for source in digests for target in digests for one in identities(fields, source, target)}
    assert {cell.key for cell in cells if cell.identity.source} == expected
    assert {cell.identity.compiled for cell in cells} == {fields.get("compiled", False)}
    evidence = load(folder)
    assert evidence.targets == evidence.sources == ("erm1", OTHER)
    assert [(run.name, run.recipe.method) for run in evidence.runs] == [("erm1", "erm")]
    assert [(model.name, model.weights) for model in evidence.models] == [(OTHER, "c" * 64)]
    if "eps" not in fields:
        assert evidence.headline_eps is None
        assert "smallest" in render(folder).read_text(encoding="utf-8")


def test_commands_say_all_that_an_attack_is(varied_folder: Path) -> None:
    names = f"erm1 mixup1 {OTHER}"
    start = f"robustmix attack --data cifar10 --source {names} --target {names} --attack "
    end = f" --limit {N} --batch-size 256"
    assert sorted(line.removeprefix(start).removesuffix(end) for line in load(varied_folder).attack_commands) == [
        "deepfool --norm linf",
        "deepfool --steps 20",
        "fgsm --eps 1 2 4",
        "fgsm --eps 1 2 4 --compile",
        "fgsm --eps 1 2 4 --labels predicted",
        "fgsm --eps 1 2 4 --loss logodds",
        "fgsm --eps 1 2 4 --precision bf16",
        "ifgsm --eps 0.5/255 1 2 4 --steps 20 --step-size 0.5/255 --impl foolbox",
        "ifgsm --eps 1 2 4 --steps 10",
        "ifgsm --eps 1 2 4 8 --steps 10 --step-size 1",  # at 8/255 the rule of Kurakin et al. makes these steps as well
        "ifgsm --eps 2 4 --step-size kurakin",
        "mifgsm --eps 32 64 300 --norm l2 --steps 10 --decay 0",
        "pgd --eps 2 4 --steps 10 --restarts 3 --seed 7",
        "pgd --eps 2 4 --steps 5 --step-size '2 eps/steps'",
        "signs --eps 1 4 --seed 1",
        "square --eps 4 --queries 100",
    ]


def test_missing_cells_of_a_suite_without_a_name_are_commands_too(varied: Workspace) -> None:
    attack = [{"name": "pgd", "eps": [2, 4, 6], "restarts": 3, "seed": 7}, {"name": "cw"}]
    with pytest.raises(StoreError) as error:
        collect(varied, "r", suite=suite(attack=attack, sources=["erm1"], published=None, headline_eps=None))
    assert one_line(error).endswith(
        "erm1 under pgd of 10 steps at 6/255 crafted on erm1 on cifar10 (and 1 more); compute what is missing with: "
        "robustmix attack --data cifar10 --source erm1 --target erm1 --attack pgd --eps 2 4 6 --restarts 3 --seed 7 && "
        "robustmix attack --data cifar10 --source erm1 --target erm1 --attack cw"
    )


def test_attacks_without_a_budget_stand_in_the_table_alone(
    varied: Workspace, varied_folder: Path, varied_page: Page
) -> None:
    head, *rows = varied_page.table("Every cell")
    place = {name: number for number, name in enumerate(head)}
    least = [row for row in rows if row[place["Attack"]] == "DeepFool, 20 steps"]
    assert len(least) == 9
    for row in least:
        assert (row[place["Budget"]], row[place["Largest"]], row[place["Step"]]) == ("smallest", "–", "–")
        (cell,) = varied_cells(varied, SPECS[-2], row[place["Source"]], row[place["Target"]])
        assert row[place["Error"]] == rate(sum(wrong(cell)), N)
        white = row[place["Role"]] == "white box"
        assert row[place["Median"]] in (("4/255", "none long enough") if white else ("–",))
    drawn = [svg[0].text or "" for svg in svgs(varied_folder) if not svg.get("aria-label")]
    assert len(drawn) > 20
    assert not [title for title in drawn if "DeepFool" in title]


def test_smallest_breaking_budgets_are_those_of_the_cells(varied: Workspace, varied_page: Page) -> None:
    head, *rows = varied_page.table("Smallest breaking budget in the white box")
    assert head == ["Attack", "Target", "Budgets", "Median", "Wrong anyway", "Never broken", "Reversals"]
    for label, fields in (("FGSM", SPECS[0]), ("I-FGSM, min(eps + 4, 1.25 eps) steps of 1/255", SPECS[8])):
        for target in ("erm1", "mixup1", OTHER):
            (row,) = [row for row in rows if row[:2] == [label, target]]
            cells = varied_cells(varied, fields, target, target)
            found = breaking(clean_of(varied, cells[0]), cells)
            low, high = found.median
            between = "0" if high == 0 else f"above {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
            shares = [rate(int((found.high == 0).sum()), N), rate(int(np.isinf(found.high).sum()), N)]
            budgets = ", ".join(f"{cell.identity.eps_255:g}" for cell in cells)
            assert row[2:] == [budgets, between, *shares, str(found.reversals)]
    assert not [row for row in rows if row[0].startswith(("Square", "DeepFool"))], "one budget or none"


def test_two_networks_are_compared_image_by_image(varied: Workspace, varied_page: Page) -> None:
    _, *rows = varied_page.table("which breaks at a smaller budget")
    assert {tuple(row[1:3]) for row in rows} == {("erm1", "mixup1"), ("erm1", OTHER)}
    for second in ("mixup1", OTHER):
        (row,) = [row for row in rows if (row[0], row[2]) == ("FGSM", second)]
        firsts: list[list[int]] = []
        for name in ("erm1", second):
            cells = varied_cells(varied, SPECS[0], name, name)
            errs = [wrong(clean_of(varied, cells[0])), *map(wrong, cells)]
            firsts.append([next((k for k, row in enumerate(errs) if row[i]), 4) for i in range(N)])
        earlier, later = (sum(a < b for a, b in zip(*order, strict=True)) for order in (firsts, firsts[::-1]))
        p = binomtest(earlier, earlier + later).pvalue
        assert row[3:7] == [rate(k, N) for k in (earlier, later, N - earlier - later)] + [
            "< 0.001" if p < 0.001 else f"{p:.3f}"
        ]


def test_worst_case_is_over_one_set_for_every_target(varied: Workspace, varied_page: Page) -> None:
    for norm, eps, caption in (("linf", 4, "Worst case within 4/255"), ("l2", 64, "Worst case within 64/255 in L2")):
        _, *rows = varied_page.table(caption)
        assert [row[0] for row in rows] == ["erm1", "mixup1", OTHER]
        for name, _, clean_error, alone, worst, interval in rows:
            errs: list[list[bool]] = []
            for cell in (cell for fields in SPECS for cell in varied_cells(varied, fields, name, name)):
                identity = cell.identity
                # The smallest perturbations are all 4/255 long here.
                if identity.norm == norm and (identity.eps_255 or 4) <= eps:
                    errs.append(wrong(cell))
            clean = wrong(clean_of(varied, varied_cells(varied, SPECS[0], name, name)[0]))
            total = sum(any(each) for each in zip(clean, *errs, strict=True))
            strongest = max(sum(map(any, zip(clean, row, strict=True))) for row in errs)
            assert (clean_error, alone) == (rate(sum(clean), N), rate(strongest, N))
            assert (worst, interval) == (rate(total, N), wilson(total, N))
    text = " ".join(varied_page.text.split())
    assert "The set: DeepFool, L-infinity, where its perturbation is within the budget; FGSM, at 1, 2, 4;" in text
    assert "The set: DeepFool, 20 steps, where its perturbation is within the budget; MI-FGSM" in text


def test_saturated_sources_are_named(varied_page: Page) -> None:
    head, *rows = varied_page.table("first gradient")
    assert head == ["Source", "Attack", "Gap, 5 %", "median", "95 %", "Saturated", "Zero gradient"]
    by_source = {(row[0], row[1]): row[2:] for row in rows}
    assert by_source["erm1", "FGSM"] == ["3.00", "5.00", "7.00", "4.0 %", "2.0 %"]
    assert by_source["mixup1", "FGSM"] == ["3.00", "5.00", "7.00", "0.0 %", "0.0 %"]
    assert by_source["mixup1", "FGSM, loss logodds"] == ["2.00", "4.00", "6.00", "90.0 %", "45.0 %"]
    assert {row[0] for row in rows} == {"erm1", "mixup1", OTHER}
    assert by_source["mixup1", "DeepFool, 20 steps"] == ["3.00", "5.00", "7.00", "8.0 %", "4.0 %"]
    assert not [row for row in rows if row[1].startswith(("PGD", "Square"))], "nothing recorded, no row"
    text = " ".join(varied_page.text.split())
    sentence = "The label's probability is exactly 1 in float32 on 4.0 % of the images for erm1: cross-entropy has lost"
    assert text.count(sentence) == 2, "among the warnings and above the table"


def test_shares_of_batches_count_by_their_size(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add_run(place, "erm1", "erm", 1)
    weights = read_run(place, "erm1").weights or ""
    (identity,) = identities({"name": "fgsm", "eps": [4]}, weights, weights, batch_size=40)
    states = [state(1.0, 0.1), state(3.0, 0.6)]  # of 40 and of 10 examples
    write_cell(place.cells, make_cell(identity, N, batches=states))
    write_cell(place.cells, make_cell(identity.clean(), N))
    page = Page(render(collect(place, None)).read_text(encoding="utf-8"))
    assert page.table("first gradient")[1][2:] == ["3.00", "5.00", "7.00", "20.0 %", "10.0 %"]


def test_faster_crafting_is_compared_with_float32(varied: Workspace, varied_page: Page) -> None:
    _, *rows = varied_page.table("Faster crafting")
    by_label = {(row[0], row[1]): row[2:] for row in rows}
    assert set(by_label) == {
        (f"FGSM, {how}", role) for how in ("bf16", "compiled") for role in ("white box", "transfer")
    }
    changes, differ = [], []
    for name in ("erm1", "mixup1", OTHER):
        for plain, fast in zip(*(varied_cells(varied, SPECS[k], name, name) for k in (0, 1)), strict=True):
            changes.append((sum(wrong(fast)) - sum(wrong(plain))) / N)
            pairs = zip(plain.rows["prediction"].to_pylist(), fast.rows["prediction"].to_pylist(), strict=True)
            differ.append(sum(a != b for a, b in pairs) / N)
    ends = f"{100 * min(changes):+.1f} to {100 * max(changes):+.1f}"
    mean, other = 100 * sum(changes) / len(changes), 100 * sum(differ) / len(differ)
    assert by_label["FGSM, bf16", "white box"] == ["9", f"{mean:+.1f}", ends, f"{other:.1f} %"]


def test_errors_after_rounding_stand_beside_the_float_ones(varied: Workspace, varied_page: Page) -> None:
    head, *rows = varied_page.table("rounded to 8 bits")
    assert [row[:4] for row in rows if row[2] == "white box"] == [
        ["FGSM", budget, "white box", "3 pairs"] for budget in ("1/255", "2/255", "4/255")
    ]
    cells = [varied_cells(varied, SPECS[0], name, name)[0] for name in ("erm1", "mixup1", OTHER)]
    kept = [
        zip(cell.rows["label"].to_pylist(), cell.rows["prediction_uint8"].to_pylist(), strict=True) for cell in cells
    ]
    error, after = sum(sum(wrong(cell)) for cell in cells), sum(a != b for pairs in kept for a, b in pairs)
    assert rows[0][4:6] == [rate(error, 3 * N), rate(after, 3 * N)]
    assert head[6] == "Largest change, points"
    assert "Rounded" in varied_page.table("Every cell")[0]


def test_models_of_others_are_shown_as_what_they_are(varied_page: Page) -> None:
    training = varied_page.table("as they ended")
    assert [row[:2] for row in training[1:]] == [
        ["erm1", "ERM"],
        ["mixup1", "mixup"],
        [OTHER, "not trained by robustmix"],
    ]
    assert set(training[3][2:]) == {"–"}
    assert varied_page.table("Where each run comes from")[3][:3] == [OTHER, "c" * 16, "–"]
    header, *rows = varied_page.table("FGSM, loss logodds at 4/255")
    assert header == ["Crafted on", "ERM errs", "mixup errs", f"{OTHER} errs"]
    assert [row[0] for row in rows] == ["no attack", "itself (white box)", "a run of ERM", "a run of mixup", OTHER]
    text = " ".join(varied_page.text.split())
    assert f"{OTHER} was not trained by robustmix." in text
    assert "With 1 run of ERM and 1 run of mixup, fewer than 3 seeds each" in text
    for row in varied_page.table("figure 3a (first version, October 2017) published")[1:]:
        assert OTHER not in row[2]


def test_attack_in_another_norm_has_a_headline_of_its_own(varied_page: Page) -> None:
    assert len(varied_page.table("MI-FGSM, 10 steps, L2, decay 0 at 64/255")) == 6


def test_provenance_says_what_went_differently(varied_page: Page) -> None:
    text = " ".join(varied_page.text.split())
    assert "256 and 256 (halved from 512: memory ran out)" in text
    assert "up to 12.5 % of a unit's time" in text
    assert "float32, bf16 and float32, compiled" in text or "float32, compiled" in text


def test_published_figures_stand_beside_the_plain_attack_alone(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for name, (method, seed) in RUNS.items():
        add_run(place, name, method, seed)
    weights = [read_run(place, name).weights or "" for name in RUNS]
    specs = [
        {"name": "fgsm", "eps": [4], "loss": "logodds"},
        {"name": "fgsm", "eps": [4], "compiled": True},
        {"name": "ifgsm", "eps": [4], "loss": "margin"},
    ]
    for scored in weights:
        for compiled in (False, True):
            write_cell(place.cells, make_cell(clean_identity(scored, INPUTS, 256, compiled=compiled), N))
        for crafts in weights:
            for fields in specs:
                (identity,) = identities(fields, crafts, scored)
                write_cell(place.cells, make_cell(identity, N))
    page = Page(render(collect(place, "r", suite=suite(attack=specs))).read_text(encoding="utf-8"))
    (compiled,) = identities(specs[1], weights[0], weights[0])
    rows = page.table("table 3 published")
    measured = rate(sum(wrong(read_cell(cell_path(place.cells, compiled)))), N)
    assert next(row[3] for row in rows if row[0].startswith("white box FGSM")).startswith(measured)
    assert {row[3] for row in rows if "I-FGSM" in row[0]} == {"not measured"}


PUBLISHED = sorted(path.parent for path in Path(__file__).parents[1].glob("reports/*/evidence.json"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_reports_render_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / folder.name)
    assert render(tmp_path / folder.name).read_bytes() == (folder / "index.html").read_bytes()
