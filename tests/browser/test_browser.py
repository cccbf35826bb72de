"""The page as a reader has it: in a browser, on a phone, in the dark, by keyboard, on paper, without scripts."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from pages import OTHER
from synthetic import EVIL

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
SCHEMES = ("light", "dark")


@dataclass
class Visit:
    """A page that is open, and what it did meanwhile."""

    page: "Page"
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Visitor = Callable[..., Visit]


@pytest.fixture
def visit(browser: "Browser", file: Path) -> Iterator[Visitor]:
    """Open the page at a size and in a colour scheme."""
    contexts = []

    def opened(size: str = "desktop", scheme: Any = "light", **options: Any) -> Visit:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        found = Visit(context.new_page())
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.complaints.append(dialog.message), dialog.dismiss())[1])
        context.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(file.as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()


def column(table: "Locator", place: int) -> list[str]:
    """The texts of one column."""
    return [" ".join(text.split()) for text in table.locator(f"tbody tr > :nth-child({place})").all_inner_texts()]


def table_of(page: "Page", caption: str) -> "Locator":
    found = page.locator(f"table:has(caption[id='{caption}'])")
    assert found.count() == 1
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_layout(visit: Visitor, size: str, scheme: str) -> None:
    page = visit(size, scheme).page
    width, height = SIZES[size]
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    answer = page.locator(".lead").bounding_box()
    assert answer
    assert answer["y"] + answer["height"] < height, "the answer is below the first screen"
    assert answer["width"] > 250
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desktop", "light")])
def test_accessible(visit: Visitor, size: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = visit(size, scheme).page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    # Its rows are all alike, and most of the page.
    page.evaluate("for (const row of [...document.querySelector('table.all').tBodies[0].rows].slice(10)) row.remove()")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_nothing_is_loaded_and_nothing_complained_of(visit: Visitor, file: Path) -> None:
    seen = visit()
    seen.page.mouse.wheel(0, 100_000)
    for button in seen.page.locator("summary").all():
        button.click()
    seen.page.wait_for_load_state("networkidle")
    assert [url for url in seen.requests if not url.startswith("data:")] == [file.as_uri()]
    assert not seen.complaints


def test_hostile_names_are_words(visit: Visitor) -> None:
    seen = visit()
    texts = seen.page.locator("body").inner_text()
    assert EVIL in texts
    assert OTHER in texts
    assert seen.page.locator("script").count() == 1
    assert seen.page.locator("img:not([src^='data:image/png'])").count() == 0
    assert not seen.complaints, "an alert would be a dialog"


def test_numbers_sort_by_value_and_by_keyboard(visit: Visitor) -> None:
    page = visit().page
    page.locator("#results ~ details summary").click()
    table = table_of(page, "results-caption")
    heads = table.locator("thead th").all_inner_texts()
    place = heads.index("Error") + 1
    button = table.locator(f"thead th:nth-child({place}) button")
    for key, descending in (("Enter", False), ("Space", True)):
        button.focus()
        page.keyboard.press(key)
        state = table.locator(f"thead th:nth-child({place})").get_attribute("aria-sort")
        assert state == ("descending" if descending else "ascending")
        values = [float(text.removesuffix(" %")) for text in column(table, place)]
        assert len(set(values)) > 5
        assert values == sorted(values, reverse=descending)
    assert table.locator("[aria-sort]").count() == 1


def test_numbers_in_words_sort_as_numbers_and_missing_ones_last(visit: Visitor) -> None:
    page = visit().page
    page.locator("#results ~ details summary").click()
    table = table_of(page, "results-caption")
    heads = table.locator("thead th").all_inner_texts()
    place = heads.index("Step") + 1
    for descending in (False, True):
        table.locator(f"thead th:nth-child({place}) button").click()
        texts = column(table, place)
        steps = [float(text.removesuffix("/255")) for text in texts if text != "–"]
        assert steps == sorted(steps, reverse=descending)
        assert len(set(steps)) > 3
        assert 0 < texts.count("–") == len(texts) - texts.index("–"), "missing ones are not at the end"


def test_words_sort_as_words(visit: Visitor) -> None:
    table = table_of(visit().page, "training-caption")
    before = column(table, 1)
    for descending in (False, True):
        table.locator("thead th:nth-child(1) button").click()
        assert column(table, 1) == sorted(before, reverse=descending)
    rows = table.locator("tbody tr").all_inner_texts()
    assert all(row.split()[1].lower() == row.split()[0][:-1] for row in rows if row.startswith(("erm", "mixup")))


def downloaded(page: "Page", button: "Locator") -> tuple[str, str]:
    """Name and content of the file that a button offers."""
    with page.expect_download() as waiting:
        button.click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes().decode("utf-8-sig")


def test_csv_holds_the_cells_of_the_table(visit: Visitor) -> None:
    page = visit().page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    name, content = downloaded(page, page.locator("#results ~ details .tools button"))
    assert name == "results-caption.csv"
    assert content == page.evaluate("csvOf(document.querySelector('table.all'))")
    buttons, tables = page.locator(".tools button[aria-label^='CSV']").count(), page.locator("table").count()
    assert buttons == tables > 10
    every = page.evaluate(
        "[...document.querySelectorAll('table')].map((one) =>"
        " [csvOf(one), [...one.rows].map((row) => [...row.cells].map((cell) => cell.innerText))])"
    )
    for content, cells in every:
        found = list(csv.reader(io.StringIO(content)))
        assert len(found) > 1
        assert [[re.sub(r"\s", "", text) for text in row] for row in found] == [
            [marked(re.sub(r"\s", "", text)) for text in row] for row in cells
        ]


def marked(text: str) -> str:
    """A cell as the CSV has it, where blanks do not count: marked as text if a spreadsheet would compute it."""
    return f"'{text}" if text[:1] in set("=@+-") and not re.fullmatch(r"[+-]?\d+(\.\d+)?%?", text) else text


def test_only_whole_numbers_may_begin_like_a_formula(visit: Visitor) -> None:
    page = visit().page
    for text in ("-1+cmd|'/C calc'!A0", "+1.5*2", "-1 to +3", "=1", "@SUM(1)", "+1.2 [0.1, 2.3]", "-"):
        assert page.evaluate("(text) => quoted(text)", text) == f'"\'{text}"'
    for text in ("-1", "+12.3", "-0.5\N{NO-BREAK SPACE}%", "12.3 %", "4/255", "mixup"):
        assert page.evaluate("(text) => quoted(text)", text) == f'"{text}"'


def test_figures_are_files_of_their_own(visit: Visitor) -> None:
    page = visit().page
    figures = page.locator("figure").count()
    assert page.locator("figcaption button").count() == figures > 5
    name, content = downloaded(page, page.locator("#curves ~ .grid button").first)
    assert name == "fgsm-white-box.svg"
    every = page.evaluate("[...document.querySelectorAll('figure')].map(svgOf)")
    assert every[0] == content
    for text in every:
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("width", "").endswith("pt")
        assert "var(" not in text
        assert "currentColor" not in text


def test_a_spreadsheet_takes_nothing_for_a_formula(visit: Visitor) -> None:
    page = visit().page
    assert page.evaluate("['=1+1', '@x', '-x', '+1.2', '-3.4', '– 1'].map(quoted)") == [
        '"\'=1+1"', '"\'@x"', '"\'-x"', '"+1.2"', '"-3.4"', '"– 1"',
    ]  # fmt: skip


def test_complete_without_scripts(visit: Visitor) -> None:
    page = visit(java_script_enabled=False).page
    assert page.locator("button").count() == 0
    assert page.locator(".lead").is_visible()
    page.locator("#results ~ details summary").click()
    assert table_of(page, "results-caption").locator("tbody tr").count() > 50


def test_on_paper_everything_is_open(visit: Visitor) -> None:
    page = visit().page
    assert not table_of(page, "results-caption").is_visible()
    page.emulate_media(media="print")
    assert table_of(page, "results-caption").is_visible()
    assert not page.locator("nav").is_visible()
    assert not page.locator(".download").first.is_visible()
    page.set_viewport_size({"width": 700, "height": 990})  # A4 between its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.pdf().startswith(b"%PDF")
