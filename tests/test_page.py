import base64
import hashlib
import re
from html import unescape
from pathlib import Path

import pytest
from pages import OTHER, make_page
from synthetic import EVIL

from robustmix.report.page import CONTENTS

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
    assert re.search(r"Home advantage: [+-]\d+\.\d points \[", words(first))
    lines = [words(line) for line in re.findall(r"<li>(.*?)</li>", first, re.DOTALL)]
    assert lines[0] == "passed erm1 4 tests: 1 finding, 2 passed and 1 not run"
    assert lines[1] == "failed mixup1 4 tests: 1 failed, 1 finding, 1 passed and 1 not run"
    assert lines[2].startswith("not audited erm2, erm3, mixup2, mixup3, net.py")
    for link in re.findall(r'href="#(audit-\d)"', first):
        assert f'<h3 id="{link}">' in section(text, "audit")


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
