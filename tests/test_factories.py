"""The user's own code: what it may import, what tells it apart, and what it leaves behind."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch

from robustmix.errors import EvaluationError, SpecError
from robustmix.factories import find_factory, running

NET = """
from torch import nn
import beside

class Net(nn.Flatten):
    def forward(self, x):
        import {called}
        return super().forward(x) * beside.factor

def net():
    import late
    return Net()

ready = Net()
"""


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "beside.py").write_text("factor = 3\n")
    (folder / "late.py").write_text("")
    (folder / "unused.py").write_text("")
    (folder / "net.py").write_text(NET.format(called="math"))
    return folder / "net.py"


def test_identity_is_the_name_the_file_and_what_it_has_imported_from_its_folder(file: Path) -> None:
    own, ready = find_factory(f"{file}:net")(), find_factory(f"{file}:ready")()
    neighbours = [f"{name}.py {sha(file.parent / f'{name}.py')}" for name in ("beside", "late")]
    assert own.identity == ("file", sha(file), "net", *neighbours)
    assert ready.identity == ("file", sha(file), "ready", neighbours[0])
    x = torch.rand(2, 1, 2, 2)
    for made in (own, ready):
        assert torch.equal(made.network(x), 3 * x.flatten(1))


def test_factory_is_called_each_time_and_a_network_is_handed_on(file: Path) -> None:
    for name, same in (("net", False), ("ready", True)):
        make = find_factory(f"{file}:{name}")
        assert (make().network is make().network) is same


def test_nothing_is_left_behind(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = list(sys.path), sys.dont_write_bytecode, set(sys.modules)
    own = find_factory(f"{file}:net")()
    with own.alone():
        own.network(torch.zeros(1, 1, 2, 2))
    assert (list(sys.path), sys.dont_write_bytecode) == before[:2]
    assert {name for name in set(sys.modules) - before[2] if not name.startswith("_robustmix_")} == set()
    assert not (file.parent / "__pycache__").exists()


@pytest.mark.parametrize("called", ["beside", "unused"])
def test_what_lies_in_the_folder_cannot_be_imported_alone(file: Path, called: str) -> None:
    file.write_text(NET.format(called=called))
    spec = f"{file}:net"
    own = find_factory(spec)()
    expected = f"{spec} imports {called} when it is called: import it at the top of the file or in the factory, "
    with pytest.raises(SpecError) as caught, own.alone():
        own.network(torch.zeros(1, 1, 2, 2))
    assert str(caught.value).startswith(expected)


def test_what_is_missing_elsewhere_is_the_codes_own_error(file: Path) -> None:
    file.write_text(NET.format(called="nowhere_to_be_found"))
    own = find_factory(f"{file}:net")()
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"), own.alone():
        own.network(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def net(): return 1", "returns int, not a torch.nn.Module"),
        ("def net():\n    raise KeyError('weight')", "failed in line 2: KeyError: 'weight'"),
    ],
)
def test_factory_that_makes_no_network_is_one_line(file: Path, source: str, expected: str) -> None:
    file.write_text(source)
    make = find_factory(f"{file}:net")
    with pytest.raises(SpecError) as caught:
        make()
    assert str(caught.value) == f"{file}:net {expected}"


def test_file_without_the_factory_is_one_line(file: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown factory 'nets' \(did you mean 'net'\?\).* \(in .*net\.py\)"):
        find_factory(f"{file}:nets")
    with pytest.raises(SpecError, match="No such file"):
        find_factory(f"{file.parent}/other.py:net")
    file.write_text("import nowhere_to_be_found")
    with pytest.raises(SpecError, match=r"failed in line 1: ModuleNotFoundError"):
        find_factory(f"{file}:net")


def test_empty_factory_is_refused_before_the_file_is_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("raise KeyError")
    with pytest.raises(SpecError) as caught:
        find_factory(f"{file}:")
    assert str(caught.value) == f"'{file}:' names no factory: write {file}:FACTORY"
    assert "running your code" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "line"),
    [("\nfrom .beside import factor", 2), ("def net():\n    from . import beside", 2), ("from ..x import y", 1)],
)
def test_relative_import_is_told_what_to_write(file: Path, source: str, line: int) -> None:
    file.write_text(source)
    with pytest.raises(SpecError) as caught:
        find_factory(f"{file}:net")()
    text = str(caught.value)
    assert text.startswith(f"{file}:net failed in line {line}: ImportError: attempted relative import")
    assert text.endswith("; what lies beside the file is imported without a dot: from sub import ...")


def test_relative_imports_within_a_package_beside_the_file_work(file: Path) -> None:
    package = file.parent / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from .deep import factor\n")
    (package / "deep.py").write_text("factor = 3\n")
    file.write_text("from torch import nn\nimport package\nready = nn.Flatten()\n")
    assert len(find_factory(f"{file}:ready")().identity) == 5
    (package / "deep.py").write_text("from ... import factor\n")
    with pytest.raises(SpecError, match=r"beyond top-level package$"):
        find_factory(f"{file}:ready")


@pytest.mark.parametrize("error", [MemoryError("numpy"), torch.OutOfMemoryError("CUDA"), RuntimeError("out of memory")])
def test_exhausted_memory_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, running("this failed"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), AssertionError("a"), SystemExit("a")])
def test_what_a_network_raises_is_one_line_and_what_it_prints_no_output(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        print("hello")
        raise error

    line = fails.__code__.co_firstlineno + 2
    with pytest.raises(EvaluationError) as caught, running("this failed", Path(__file__)):
        fails()
    assert str(caught.value) == f"this failed in line {line}: {type(error).__name__}: a"
    print("after")
    assert capsys.readouterr() == ("after\n", "hello\n")
