"""What lands in a user's site-packages, and what the repository must not hold."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LOAD_ALL = """
import sys
sys.path[:0] = sys.argv[1:]  # the wheel, then what it depends on: nothing else (-I -S) names a robustmix
import robustmix
from pathlib import Path
package = Path(robustmix.__file__).parent
assert package == Path(sys.argv[1], "robustmix"), package

from robustmix.published import figures
from robustmix.spec.named import load_recipe, shipped_recipes
from robustmix.spec.suite import load_suite, shipped_suites
for name, path in shipped_suites().items():
    assert path.is_relative_to(package), path
    load_suite(name)
    print("suite", name)
for name in shipped_recipes():
    load_recipe(name)
    print("recipe", name)
assert figures()
for name in ("page.html.j2", "page.js", "style.css", "templates/macros.html.j2"):
    assert (package / "report" / name).is_file(), name
"""


def run(*command: str | Path, cwd: Path = ROOT) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist, so that both are tried."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return next(out.glob("*.whl"))


def test_only_robustmix_lands_in_site_packages(wheel: Path) -> None:
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert top == {"robustmix", f"{'-'.join(wheel.stem.split('-')[:2])}.dist-info"}


def test_wheel_carries_all_that_it_reads(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    loaded = run(sys.executable, "-I", "-S", "-c", LOAD_ALL, site, sysconfig.get_path("purelib"), cwd=tmp_path)
    suites = {f"suite {path.stem}" for path in ROOT.glob("attacks/*.toml")}
    recipes = {f"recipe {path.stem}" for path in ROOT.glob("robustmix/spec/recipes/*.toml")}
    assert suites
    assert recipes
    assert set(loaded) == suites | recipes


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_repository_names_no_package_index() -> None:
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    assert "uv.lock" not in tracked
    hosts = [b"py" + b"pi.org", b"python" + b"hosted.org", b"download.py" + b"torch.org"]
    for name in tracked:
        text = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        assert not [host for host in hosts if host in text], name
        assert not name.startswith("requirements/") or b"://" not in text, name
