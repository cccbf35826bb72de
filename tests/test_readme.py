import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import environment, run

import robustmix

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in ("methods", "statistics", "audit"))]
PAGES += ["attacks/README.md", "reports/README.md"]


def test_the_python_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], text=True, capture_output=True, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("eps ") == 3
    assert "error_low" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["example"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_tree_is_there() -> None:
    (tree,) = re.findall(r"```\n(robustmix/\n.*?)```", README, re.S)
    named = re.findall(r"([a-z_]+(?:/|\.py|\.toml))(?=[\s)])", tree)
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "robustmix" / name).exists(), name
    for path in (ROOT / "robustmix").iterdir():
        if path.suffix == ".py" and not path.name.startswith("_"):
            assert path.name in tree or path.stem in ("errors", "rng", "progress"), (
                f"{path.name} is missing in the tree"
            )


def test_every_option_that_the_readme_names_exists() -> None:
    for verb, rest in re.findall(r"^robustmix (\w+)([^#\n]*)", README, re.M):
        text = run(verb, "--help", cwd=ROOT).stdout
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in text, (verb, flag)


def test_all_names_are_honest() -> None:
    assert sorted(robustmix.__all__) == sorted(set(robustmix.__all__))
    for name in robustmix.__all__:
        assert getattr(robustmix, name) is not None
    assert set(robustmix._HOMES) | {"__version__", "attacks"} == set(robustmix.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        robustmix.nothing  # noqa: B018
