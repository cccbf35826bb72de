"""docs/methods.md: a section, a picture and a command for every method, and nothing in it that cannot be run."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from robustmix.spec.named import read_recipe
from robustmix.spec.names import METHODS
from robustmix.spec.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
PICTURES = ROOT / "docs" / "methods"
COMMANDS = re.findall(r"^ {4}robustmix train (.*)", PAGE, re.M)


def options(command: str) -> dict[str, Any]:
    """The fields of a recipe that a command line sets."""
    words = shlex.split(command, comments=True)
    fields: dict[str, Any] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            fields[word[2:].replace("-", "_")] = True if following.startswith("--") else following
    recipe = fields.pop("recipe", None)
    return {**(read_recipe(recipe) if recipe else {}), **fields}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_recipe(command: str) -> None:
    Recipe.model_validate(options(command)).resolved(None)


def test_every_method_has_a_section_a_command_and_a_picture() -> None:
    sections = {name for title in re.findall(r"^## (.*)", PAGE, re.M) for name in title.split(", ")}
    commanded = {options(command)["method"] for command in COMMANDS}
    for method in METHODS:
        assert method in sections
        assert method in commanded or method in ("mixup-h", "mixup-v")
        assert PAGE.count(f"](methods/{method}.png)") == 1
        assert (PICTURES / f"{method}.png").stat().st_size < 40_000
    assert {path.stem for path in PICTURES.iterdir()} == set(METHODS)


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)", PAGE, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (ROOT / "docs" / target).exists(), target


def test_the_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "draw-methods"))
    script["main"](tmp_path)
    for method in METHODS:
        drawn, kept = (imread(folder / f"{method}.png") for folder in (tmp_path, PICTURES))
        assert drawn.shape == kept.shape
        # Another matplotlib draws letters a little differently
        assert np.abs(drawn - kept).mean() < 0.01, f"{method}.png is out of date: run scripts/draw-methods"
