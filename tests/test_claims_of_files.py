"""Claims where the disk is full, and where something that is no claim stands in a claim's place."""

import errno
import json
import os
from pathlib import Path

import pytest

from robustmix.errors import StoreError
from robustmix.store import claims
from robustmix.store.claims import claim, forsaken, holder


def won(folder: Path, key: str = "unit") -> bool:
    with claim(folder, key) as ours:
        return ours


def aged(path: Path, seconds: float) -> None:
    touched = path.stat().st_mtime
    os.utime(path, (touched, touched - seconds))


# ---- a full disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusing", ["write", "utime"])
def test_a_full_disk_leaves_no_claim_and_no_open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    opened = []
    real = os.open

    def noted(*args: object) -> int:
        opened.append(real(*args))
        return opened[-1]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(claims.os, "open", noted)
        patch.setattr(claims.os, refusing, full)
        with pytest.raises(StoreError, match=r"unit\.claim cannot be written: No space left on device$"):
            won(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (handle,) = opened
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)
    assert won(tmp_path), "at once, when there is space again"


def test_a_claim_that_could_not_be_written_does_not_remove_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unit.claim"

    def stalled(*_: object) -> None:
        path.unlink()
        path.write_text("another job's")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(claims.os, "write", stalled)
    with pytest.raises(StoreError, match="No space left on device"):
        won(tmp_path)
    assert path.read_text() == "another job's"


# ---- what is no claim ------------------------------------------------------------------------------------


def like_ours(**changes: object) -> str:
    return json.dumps({**claims._self(), **changes})


STRANGE = [
    "{}",
    "[]",
    "null",
    "7",
    '"text"',
    '{"host": "a"}',
    "[" * 100_000,
    *(like_ours(pid=pid) for pid in (None, "self", 0, -1, 2**80, 1.5, [])),
    like_ours(realm=[]),
    like_ours(started="long ago"),
]


@pytest.mark.parametrize("content", STRANGE, ids=range(len(STRANGE)))
def test_strange_content_is_judged_by_its_age(tmp_path: Path, content: str) -> None:
    path = tmp_path / "unit.claim"
    path.write_text(content)
    assert holder(tmp_path, "unit") is None
    assert not won(tmp_path)
    assert forsaken(tmp_path) == []
    aged(path, claims.GONE + 1)
    assert forsaken(tmp_path) == ["unit"]
    assert won(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_ours_say_is_not_strange(tmp_path: Path) -> None:
    (tmp_path / "unit.claim").write_text(like_ours())
    assert holder(tmp_path, "unit") == f"{claims._self()['host']}, process {os.getpid()}"


@pytest.mark.parametrize("name", ["unit.claim", "unit.takeover"])
def test_a_folder_in_the_place_of_a_claim_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "unit.claim").write_text("")
    aged(tmp_path / "unit.claim", claims.STALE + 1)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError) as caught:
        won(tmp_path)
    assert str(caught.value) == f"{tmp_path / name} is a folder in a claim's place, which keeps all from it: remove it"
    assert holder(tmp_path, "unit") is None
    assert won(tmp_path, "another")


def test_a_folder_in_the_place_of_a_claim_does_not_hide_what_is_forsaken(tmp_path: Path) -> None:
    (tmp_path / "a.claim").mkdir()
    path = tmp_path / "b.claim"
    path.write_text("")
    aged(path, claims.GONE + 1)
    aged(tmp_path / "a.claim", claims.GONE + 1)
    assert forsaken(tmp_path) == ["b"]
