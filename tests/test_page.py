import base64
import hashlib
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from families import FGSM, IFGSM, TWO, study
from pages import OTHER, make_page
from synthetic import EVIL, INPUTS, RUNS, N, add_run, identities, make_cell

from robustmix.report import collect, render
from robustmix.report.page import CONTENTS, _heads
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import BatchState, clean_identity
from robustmix.store.runs import read_run, write_history
from robustmix.store.workspace import Workspace

# What a reader gets first, and what only who asks.
FIRST = ["answer", "before", "effects", "comparison", "claims", "curves", "matrices", "paired", "breaking", "worst"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page(tmp_path_factory.mktemp("ws"))


@pytest.fixture(scope="module")
def text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def section(text: str, name: str) -> str:
    (found,) = re.findall(rf'<section aria-labelledby="{name}">(.*?)</section>', text, re.DOTALL)
    return str(found)


def words(markup: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def test_every_section_is_there_in_order_and_listed(text: str) -> None:
    sections = re.findall(r'<section aria-labelledby="(\w+)">', text)
    listed = re.findall(r'<li><a href="#(\w+)">', text.partition("<nav")[2].partition("</nav>")[0])
    assert sections == ["answer", *listed]
    assert sections[: len(FIRST)] == FIRST
    assert {id for id, _, _ in CONTENTS} - set(sections) == {"faster", "rounded"}, "nothing was computed for these"
    for number, name in enumerate(sections):
        assert text.count(f' id="{name}"') == 1, number


def test_only_the_page_itself_may_do_anything(text: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in unescape(policy).split(";"))
    assert rules["default-src"] == "'none'"
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert text.count("<script") == 1, "hostile names are words"


def test_hostile_words_stand_in_every_part(text: str) -> None:
    assert len(text.encode()) < 3_000_000
    for name in ("curves", "matrices", "results", "audit", "provenance", "methods", "gallery", "cost"):
        assert EVIL in words(section(text, name)), name
        assert "<img src=x" not in section(text, name)
    assert OTHER in words(section(text, "answer"))
    assert "{{ 7 * 7 }}" in text


def test_first_screen(text: str) -> None:
    first = section(text, "answer")
    (question,) = re.findall(r'<h2 id="answer" class="question">(.*?)</h2>', first)
    assert question == "How robust is mixup compared with ERM on cifar10?"
    assert first.index("lead") < first.index("<table") < first.index("verdicts")
    assert re.findall(r'<caption id="head-\d"><strong>(.*?)</strong>', first) == [
        "FGSM at 4/255",
        "I-FGSM, 10 steps at 4/255",
    ]
    assert re.search(r"Home advantage: [+-]\d+\.\d points \(", words(first))
    lines = [words(line) for line in re.findall(r"<li>(.*?)</li>", first, re.DOTALL)]
    assert lines[0] == "passed erm1 4 tests: 1 finding, 2 passed and 1 not run"
    assert lines[1] == "failed mixup1 4 tests: 1 failed, 1 finding, 1 passed and 1 not run"
    assert lines[2].startswith("not audited erm2, erm3, mixup2, mixup3, net.py")
    for link in re.findall(r'href="#(audit-\d)"', first):
        assert f'<h3 id="{link}">' in section(text, "audit")


def test_attacks_that_publications_mean_come_first() -> None:
    attacks: list[dict[str, Any]] = [FGSM, {**FGSM, "loss": "logodds"}, IFGSM]
    first, others = _heads(study(TWO, 1, lambda role, name, source, target: 100, attacks))
    assert [table.label for table in first] == ["FGSM", "I-FGSM, 10 steps"]
    assert [table.title for table in others] == [f"{table.label} at 4/255" for table in others]
    assert len(others) == 1


def test_what_did_not_reproduce_is_marked_wherever_it_stands(text: str) -> None:
    marked = re.findall(r"<td([^>]*)>((?:(?!<td).)*?)†</span></td>", section(text, "comparison"))
    assert [(attributes, words(f"{shown}</span>")) for attributes, shown in marked] == [
        (' class="num"', "3.9 % T"),
        (' class="num" data-value="-1.7"', "-1.7"),
    ]


def test_published_beside_published_is_not_measured(text: str) -> None:
    compared = section(text, "comparison")
    heading = '<h3 id="beside">What the slides compare: published beside published</h3>'
    before, _, part = compared.partition(heading)
    assert "ali-cifar10-beside-zhang-table3" not in before
    assert before.count("<details>") == before.count("</details>"), "open to every reader"
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', part.partition("</thead>")[0])
    assert heads[:2] == ["Inputs", "Method"]
    assert "slides" in heads[2]
    assert heads[3:] == ["Zhang et al. 2018", "Why they may differ"]
    shown = words(part.partition('<p class="small">Marks')[0])
    assert "53.7" in shown
    assert "90.7" in shown
    assert "another data set: cifar10 instead of imagenet" in shown
    for word in ("Measured", "same direction", "Verdict"):
        assert word not in shown


def test_distributions_name_the_runs_that_they_draw(text: str) -> None:
    shown = section(text, "distributions")
    entries = [words(entry) for entry in re.findall(r"<li>(.*?)</li>", shown, re.DOTALL)]
    assert entries == ["ERM: erm1", "mixup: mixup1", f"{OTHER}: {OTHER}"]
    assert "Of each family only the first run that was scored is drawn." in words(shown)


def test_sources_without_a_record_of_their_gradients_are_named(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    state = BatchState(gap=tuple(range(-3, 4)), saturated=0.0, zero_gradient=0.0)
    for name, states in (("erm1", [state]), ("mixup1", [])):
        add_run(place, name, *RUNS[name])
        own = read_run(place, name).weights or ""
        write_cell(place.cells, make_cell(clean_identity(own, INPUTS, 256), N))
        for identity in identities({"name": "fgsm", "eps": [4]}, own, own):
            write_cell(place.cells, make_cell(identity, N, batches=states))
    found = words(section(render(collect(place, "r")).read_text(encoding="utf-8"), "gradients"))
    assert "No other source that cross-entropy was ascended on is saturated" in found
    assert "There is no record of mixup1: their cells are older" in found


def test_what_another_program_trained_is_no_epoch_of_ours(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add_run(place, "erm1", *RUNS["erm1"])
    run = read_run(place, "erm1")
    write_cell(place.cells, make_cell(clean_identity(run.weights or "", INPUTS, 256), N))
    for identity in identities({"name": "fgsm", "eps": [4]}, run.weights or "", run.weights or ""):
        write_cell(place.cells, make_cell(identity, N))
    said = "erm1: trained by another program, how the weights were chosen is not on record"
    folder = collect(place, "r")
    assert said not in words(render(folder).read_text(encoding="utf-8"))
    assert run.facts
    write_history(place.run("erm1"), [{"epoch": 2}], replace(run.facts, imported_from="theirs.pt, SHA-256 abc"))
    assert said in words(render(collect(place, "r")).read_text(encoding="utf-8"))


def test_pictures_have_words(text: str) -> None:
    pictures = re.findall(r"<img ([^>]+)>", section(text, "gallery"))
    assert len(pictures) == 3 * 3 * 8, "three parts of eight images of three families under FGSM"
    assert all(re.search(r'alt="[^"]{10,}" width="\d+" height="\d+"', picture) for picture in pictures)


def test_numbers_in_words_have_a_number_to_sort_by(text: str) -> None:
    for cell in re.findall(r'<td class="num"([^>]*)>([^<]*)</td>', text):
        attributes, shown = cell
        plain = re.sub(r"[\s,%]", "", unescape(shown))
        if not re.fullmatch(r"[+-]?\d+(\.\d+)?", plain):
            value = re.fullmatch(r' data-value="([^"]*)"', attributes)
            assert value, shown
            assert value[1] == "" or float(value[1]) >= -1e9
