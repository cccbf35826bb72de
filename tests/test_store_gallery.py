"""A few images of every unit, clean and adversarial, as files."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import INPUTS

from robustmix.errors import StoreError
from robustmix.store.cell_files import DamagedError
from robustmix.store.cells import CellIdentity
from robustmix.store.gallery import (
    Examples,
    examples_path,
    gallery_path,
    has_images,
    read_examples,
    trusted_examples,
    write_examples,
)


def identity(**changes: Any) -> CellIdentity:
    fields = {
        "source": "a" * 64, "target": "b" * 64, "inputs": INPUTS, "attack": "fgsm", "eps_255": 4.0, "steps": 1,
        "step_255": 4.0, "batch_size": 256,
    }  # fmt: skip
    return CellIdentity(**{**fields, **changes})


def examples(count: int = 3, channels: int = 3, size: int = 5) -> Examples:
    rng = np.random.default_rng(count)
    clean, adversarial = rng.integers(0, 256, (2, count, channels, size, size), dtype=np.uint8)
    return Examples(np.arange(count, dtype=np.int32), clean, adversarial)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(channels: int, tmp_path: Path) -> None:
    written = examples(channels=channels)
    path = write_examples(tmp_path / "gallery", identity(), written)
    read = read_examples(tmp_path / "gallery", identity())
    assert read is not None
    for name in ("index", "clean", "adversarial"):
        ours, theirs = getattr(written, name), getattr(read, name)
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()
    assert [one.name for one in path.parent.iterdir()] == [path.name], "nothing half done beside it"


def test_one_file_stands_for_all_targets_and_beside_all_images(tmp_path: Path) -> None:
    path = examples_path(tmp_path, identity())
    assert path == gallery_path(tmp_path, identity()).with_suffix(".npz")
    assert path == examples_path(tmp_path, identity(target="c" * 64))
    others: list[dict[str, Any]] = [{"source": "c" * 64}, {"eps_255": 2.0}, {"batch_size": 8}, {"inputs": "6" * 64}]
    for change in others:
        assert examples_path(tmp_path, identity(**change)) != path


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (write_examples(tmp_path / name, identity(), examples()) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_images_are_compressed(tmp_path: Path) -> None:
    flat = np.zeros((8, 3, 224, 224), np.uint8)
    path = write_examples(tmp_path, identity(), Examples(np.arange(8, dtype=np.int32), flat, flat))
    assert path.stat().st_size < 0.01 * 2 * flat.nbytes


def test_where_none_were_kept_there_are_none(tmp_path: Path) -> None:
    assert read_examples(tmp_path / "nowhere", identity()) is None


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {**vars(examples()), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no examples that can be read"),
        (b"PK\x03\x04 and then nothing", "holds no examples that can be read"),
        ({"index": np.arange(3, dtype=np.int32)}, "holds no examples that can be read"),
        (arrays(index=np.arange(2, dtype=np.int32)), "as many clean images as adversarial ones"),
        (arrays(index=np.arange(3)), "as many clean images as adversarial ones"),
        (arrays(clean=examples().clean.astype(float)), "as many clean images as adversarial ones"),
        (arrays(adversarial=examples(2).adversarial), "as many clean images as adversarial ones"),
        (vars(examples(channels=2)), r"inputs of shape \[2, 5, 5\], which are no images"),
        (arrays(clean=examples().clean[:, 0], adversarial=examples().clean[:, 0]), "which are no images"),
        (arrays(index=np.array([object()] * 3)), "holds no examples that can be read"),
    ],
)
def test_damaged_files_are_one_line(content: bytes | dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    path = examples_path(tmp_path, identity())
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(StoreError, match=message) as error:
        read_examples(tmp_path, identity())
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_flipped_byte_is_one_line_or_nothing(tmp_path: Path) -> None:
    path = write_examples(tmp_path, identity(), examples(size=2))
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
            try:
                read_examples(tmp_path, identity())
            except StoreError:
                refused += 1
    assert refused > len(content)


def test_damaged_examples_are_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trusted_examples(tmp_path, identity()) is None
    path = write_examples(tmp_path, identity(), examples())
    found = trusted_examples(tmp_path, identity())
    assert found is not None
    assert (found.clean == examples().clean).all()
    assert capsys.readouterr().err == ""
    path.write_bytes(path.read_bytes()[:300])
    assert trusted_examples(tmp_path, identity()) is None
    aside = f"{path.name}.damaged"
    assert [one.name for one in tmp_path.iterdir()] == [aside]
    assert capsys.readouterr().err == (
        f"warning: {path} holds no examples that can be read (BadZipFile); it is set aside as {aside}\n"
    )


def test_damaged_examples_that_cannot_be_set_aside_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_examples(tmp_path, identity(), examples())
    path.write_bytes(b"")
    monkeypatch.setattr(Path, "replace", refused)
    assert trusted_examples(tmp_path, identity()) is None
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {path} holds no examples that can be read")
    assert "cannot be set aside: " in err
    assert err.count("\n") == 1


REFUSALS = (errno.EMFILE, errno.ESTALE, errno.EIO, errno.EACCES)


def refuse(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """From now on the system does not let a file be opened."""
    real = io.open

    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file) == str(path):
            raise OSError(number, os.strerror(number), str(file))
        return real(file, *args, **kwargs)

    for module in ("io.open", "builtins.open"):
        monkeypatch.setattr(module, opened)


@pytest.mark.parametrize("number", REFUSALS)
def test_examples_that_the_system_does_not_let_be_read_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    path = write_examples(tmp_path, identity(), examples())
    with monkeypatch.context() as patch:
        refuse(patch, path, number)
        for read in (read_examples, trusted_examples):
            with pytest.raises(StoreError) as caught:
                read(tmp_path, identity())
            assert str(caught.value) == f"examples {path} cannot be read: {os.strerror(number)}"
            assert not isinstance(caught.value, DamagedError)
    assert capsys.readouterr().err == ""
    assert trusted_examples(tmp_path, identity()) is not None


def test_a_folder_in_the_place_of_examples_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = examples_path(tmp_path, identity())
    path.mkdir()
    assert trusted_examples(tmp_path, identity()) is None
    assert [one.name for one in tmp_path.iterdir()] == [f"{path.name}.damaged"]
    assert "it is a folder; it is set aside" in capsys.readouterr().err


# ---- all images ------------------------------------------------------------------------------------------

IMAGES = np.arange(20 * 3 * 5 * 5, dtype=np.uint8).reshape(20, 3, 5, 5)


def test_whole_images_are_there_and_missing_ones_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not has_images(tmp_path, identity(), 20)
    path = gallery_path(tmp_path, identity())
    np.save(path, IMAGES)
    assert not has_images(tmp_path, identity(), 20), "nobody knows what images these are"
    path.with_suffix(".json").write_text("{}")
    assert has_images(tmp_path, identity(), 20)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:500],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content.replace(b"(20, 3", b"(10, 3"),
        lambda content: content.replace(b"(20, 3", b"(10, 6"),
        lambda content: content.replace(b"|u1", b"|i1"),
        lambda content: b"no file of numpy's, but a longer one" * 100,
    ],
)
def test_damaged_images_are_set_aside(
    damage: Callable[[bytes], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gallery_path(tmp_path, identity())
    np.save(path, IMAGES)
    content = damage(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    assert not has_images(tmp_path, identity(), 20)
    aside = path.with_name(f"{path.name}.damaged")
    assert [*tmp_path.iterdir()] == [aside]
    assert aside.read_bytes() == content
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {path} ")
    assert err.endswith(f"; it is set aside as {aside.name}\n")
    assert err.count("\n") == 1
    assert not has_images(tmp_path, identity(), 20), "another job may have set it aside"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", REFUSALS)
def test_images_that_the_system_does_not_let_be_read_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    path = gallery_path(tmp_path, identity())
    np.save(path, IMAGES)
    path.with_suffix(".json").write_text("{}")
    with monkeypatch.context() as patch:
        refuse(patch, path, number)
        with pytest.raises(StoreError) as caught:
            has_images(tmp_path, identity(), 20)
    assert str(caught.value) == f"{path} cannot be read: {os.strerror(number)}"
    assert capsys.readouterr().err == ""
    assert has_images(tmp_path, identity(), 20)


def test_a_folder_in_the_place_of_images_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gallery_path(tmp_path, identity())
    path.mkdir()
    assert not has_images(tmp_path, identity(), 20)
    assert [one.name for one in tmp_path.iterdir()] == [f"{path.name}.damaged"]
    assert "(IsADirectoryError); it is set aside" in capsys.readouterr().err
