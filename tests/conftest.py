"""What every test gets: one thread, a cache and a workspace of its own, and real data where it is at hand."""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny import Call

# What fails there is shown as in a test.
pytest.register_assert_rewrite("attack_checks")

# Before torch is imported, here and in every subprocess: workers that each start a thread per core crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The folder with the large data sets; tests do not see the variable itself, only `large_data`. The processes that share
# the tests are started afterwards, and are told by another one.
DATA_ROOT = os.environ.pop("ROBUSTMIX_DATA", None) or os.environ.get("PYTEST_ROBUSTMIX_DATA")
if DATA_ROOT:
    os.environ["PYTEST_ROBUSTMIX_DATA"] = DATA_ROOT

# matplotlib's font cache takes seconds to build: let it stay where it is although XDG_CACHE_HOME moves.
USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
os.environ.setdefault("MPLCONFIGDIR", str(USER_CACHE / "matplotlib"))


@pytest.fixture(scope="session", autouse=True)
def _session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache and workspace are never touched, not even by fixtures that many tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("ROBUSTMIX_WORKSPACE", raising=False)
        yield


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache for one test; returns the folder that robustmix keeps things in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "robustmix"


@pytest.fixture
def large_data() -> Path:
    """The folder that ``ROBUSTMIX_DATA`` names."""
    if not DATA_ROOT:
        pytest.skip("the large data sets are tested only where ROBUSTMIX_DATA names their folder")
    return Path(DATA_ROOT).expanduser()


@pytest.fixture
def torchvision() -> ModuleType:
    """torchvision by the way on which `robustmix.data` imports it, which works beside a CPU build of torch as well."""
    from robustmix.packages import import_beside_torch

    return import_beside_torch("torchvision")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the runs erm1, erm2, mixup1 and mixup2; tests only read it."""
    from tiny import train_tiny

    return train_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Call":
    """Run a command in this process, in ``tmp_path`` unless told otherwise; starting another takes seconds."""
    from tiny import Done

    from robustmix import progress
    from robustmix.cli import app, main

    monkeypatch.setattr(progress, "quiet", False)

    def called(*arguments: str, cwd: Path = tmp_path) -> Done:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["robustmix", *arguments])
        # Left to read sys.argv itself, it would warn of a test that forgot to give it arguments.
        monkeypatch.setattr("robustmix.cli.app", partial(app, arguments))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return Done(int(stopped.value.code or 0), printed.out, printed.err)

    return called
