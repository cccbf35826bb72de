"""A real browser: the distribution's Chromium, driven by Playwright; without either the tests are skipped."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # containers run as root
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (scripts/setup dev)")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("there is no Chromium: scripts/install-browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=[*FLAGS])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def file(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with something in every section; only made where it can be looked at."""
    from pages import make_page

    return make_page(tmp_path_factory.mktemp("ws"))
