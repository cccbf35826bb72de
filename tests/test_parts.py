"""Files in the making: nobody's but their job's, and gone when it is."""

import os
from pathlib import Path

import pytest

from robustmix.errors import StoreError
from robustmix.store import claims
from robustmix.store.atomic import write_atomically
from robustmix.store.claims import claim
from robustmix.store.parts import images_part, measured_part, new_making, remove_forsaken, remove_parts
from robustmix.store.workspace import Workspace

KEY, ANOTHER = "1" * 64, "2" * 64


def made(place: Workspace, key: str) -> set[Path]:
    """What two processes leave that are killed while one hands over and the other is about to."""
    making = new_making(key)
    whole = measured_part(place, making, 0)
    files = {whole, whole.with_name(f".{making}.1.npz.k3x_9a.tmp"), images_part(place.gallery / "a.npy", making)}
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def there(place: Workspace) -> set[Path]:
    return {path for path in place.root.rglob("*") if path.is_file()}


def age(path: Path, seconds: float) -> None:
    os.utime(path, (0, path.stat().st_mtime - seconds))


def test_parts_of_a_unit_are_removed_and_no_others(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    remove_parts(place, KEY)
    others = made(place, ANOTHER)
    assert not others & (made(place, KEY) | made(place, KEY))
    assert len(there(place)) == 3 * 3, "two jobs share no name"
    remove_parts(place, KEY)
    assert there(place) == others


def test_what_is_being_written_is_a_part(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    with pytest.raises(StoreError, match="cannot be written"):
        write_atomically(measured_part(place, new_making(KEY), 1), lambda file: remove_parts(place, KEY))
    assert there(place) == set()


@pytest.mark.parametrize("folder", ["cells", "gallery", "parts"])
def test_what_a_killed_job_was_writing_is_removed_when_it_is_old(tmp_path: Path, folder: str) -> None:
    place = Workspace(tmp_path)
    seen = []

    def killed_now(age_s: float) -> None:
        def write(file: object) -> None:
            (written,) = there(place)
            age(written, age_s)
            remove_forsaken(place)
            seen.append(written.exists())
            raise OSError

        with pytest.raises(StoreError):
            write_atomically(getattr(place, folder) / "cell.parquet", write)

    killed_now(claims.GONE - 60)
    killed_now(claims.GONE + 60)
    assert seen == [True, False]


def test_what_nobody_has_claimed_any_more_is_removed_when_it_is_old(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    with claim(place.parts, KEY):
        for key in (KEY, ANOTHER):
            for name in ("old", "young"):
                part = measured_part(place, f"{key}.{name}", 0)
                part.touch()
                age(part, claims.GONE + (60 if name == "old" else -60))
        remove_forsaken(place)
    left = {f"{KEY}.old.0.npz", f"{KEY}.young.0.npz", f"{ANOTHER}.young.0.npz"}
    assert {path.name for path in there(place)} == left
