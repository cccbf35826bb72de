"""Other people's packages: beside any torch, and their errors in one line."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from robustmix.errors import CheckpointError, DataError, SpecError
from robustmix.packages import import_beside_torch, one_line, timm_models, told, torchvision_models


def test_modules_of_torchvision_are_imported_beside_any_torch(torchvision: ModuleType) -> None:
    assert import_beside_torch("torchvision.models") is sys.modules["torchvision.models"]
    with pytest.raises(ImportError):
        import_beside_torch("torchvision.nothing")


def test_names_are_looked_up(torchvision: ModuleType) -> None:
    assert torchvision_models("torchvision:resnet18", "resnet18").__name__ == "torchvision.models"
    with pytest.raises(SpecError, match=r"^unknown torchvision classifier 'zzz'$"):
        torchvision_models("torchvision:zzz", "zzz")
    timm = pytest.importorskip("timm")
    assert timm_models("timm:resnet18", "resnet18") is timm
    assert timm_models("hf-hub:a/b", None) is timm


def test_whatever_is_raised_becomes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def chatter() -> None:
        print("chatter")
        raise ValueError("\n first \nsecond")

    with pytest.raises(CheckpointError) as caught, one_line("reading", CheckpointError, "; try again"):
        chatter()
    assert str(caught.value) == "reading: ValueError: first; try again"
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "chatter\n")
    with pytest.raises(SpecError, match=r"^reading: SystemExit: 3$"), one_line("reading", SpecError):
        sys.exit(3)


def test_our_own_errors_and_interruptions_pass() -> None:
    with pytest.raises(DataError, match=r"^as it is$"), one_line("reading", SpecError):
        raise DataError("as it is")
    with pytest.raises(KeyboardInterrupt), one_line("reading", SpecError):
        raise KeyboardInterrupt


def test_line_of_the_users_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("def f():\n    raise KeyError\nf()\n")
    with (
        pytest.raises(SpecError, match=r"^it failed in line 2: KeyError: no message$"),
        one_line("it failed", SpecError, path=path),
    ):
        exec(compile(path.read_text(), str(path), "exec"), {})
    assert told(ValueError(" \n a\nb")) == "a"
