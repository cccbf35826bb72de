"""The notebooks: every code cell runs in order, on digits, and shows what it promises."""

import ast
import json
import os
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from robustmix.spec.suite import load_suite

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "robustmix-on-a-gpu.ipynb"
TINY = [
    "--data",
    "digits",
    "--width",
    "4",
    "--epochs",
    "2",
    "--limit",
    "200",
    "--batch-size",
    "50",
    "--augment",
    "none",
]


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, Any]) -> object:
    """Run a cell as a notebook does, and give back the value of its last line, if that is an expression."""
    *body, last = ast.parse(source).body
    shown = isinstance(last, ast.Expr)
    exec(compile(ast.Module(body if shown else [*body, last], []), str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if shown else None  # type: ignore[attr-defined]


def with_variables(source: str, **values: object) -> str:
    """The first cell with other values; every name must be there."""
    for name, value in values.items():
        source, count = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value!r}  ", source, flags=re.MULTILINE)
        assert count == 1, name
    return source


def test_notebook_is_as_editors_leave_it_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["accelerator"]) == (4, "GPU")
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            assert not [line for line in cell["source"] if line.startswith(("!", "%"))], "plain Python"


def test_notebook_runs_a_published_suite_unless_told_otherwise() -> None:
    names: dict[str, Any] = {}
    run(code_cells()[0], names)
    assert names["EXTRA"] == []
    suite = load_suite(names["SUITE"])
    assert {recipe.epochs for recipe in suite.runs().values()} == {200}


def test_every_cell_runs_on_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    names: dict[str, Any] = {}
    first, *others = code_cells()
    run(with_variables(first, EXTRA=[*TINY, "--test-limit", "40"]), names)
    shown = [run(source, names) for source in others]
    assert names["done"] is True
    assert "All is done." in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["robustmix-notebook"]

    table = shown[-2]
    assert {"clean", "white", "transfer"} == set(table["role"])  # type: ignore[index]
    runs = {"ali-erm1", "ali-erm2", "ali-mixup1", "ali-mixup2"}
    assert set(table["target"]) == runs  # type: ignore[index]
    page = shown[-1]._repr_html_()  # type: ignore[attr-defined]
    (inside,) = re.findall(r'<iframe srcdoc="([^"]*)"', page)
    report = tmp_path / "robustmix-notebook" / "reports" / "ali-cifar10" / "index.html"
    assert unescape(inside) == report.read_text(encoding="utf-8")


def test_a_piece_that_is_stopped_says_so_and_a_mistake_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    names: dict[str, Any] = {}
    for source in code_cells()[:2]:
        run(source, names)
    # Without its last line, which lists what there is.
    run(code_cells()[2].removesuffix('robustmix("ls")'), names)
    assert names["robustmix"]("run", "ali-cifar10", *TINY, minutes=0.02) is False
    with pytest.raises(RuntimeError, match="robustmix run no-such-suite ended with exit code 2"):
        names["robustmix"]("run", "no-such-suite", minutes=1)
