"""Files in the making of a unit: what they are called, and the end of those that a killed job has left behind."""

import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from robustmix.errors import StoreError
from robustmix.store.atomic import TEMPORARIES
from robustmix.store.claims import claim, forsaken, untouched
from robustmix.store.workspace import Workspace


def new_making(key: str) -> str:
    """What a job calls its files in the making of a unit: by the unit's key, but unlike any other job's.

    A job that was silent for long may go on beside the one that has taken its claim over. Neither reads what the other
    writes, and the old one removes nothing of the new one's.

    Args:
        key: that is claimed.
    """
    return f"{key}.{secrets.token_hex(8)}"


def images_part(path: Path, making: str) -> Path:
    """The file beside ``path`` into which images are written until all are there."""
    return path.with_name(f".{path.name}.{making}.part")


def measured_part(place: Workspace, making: str, rank: int) -> Path:
    """The file in which a process hands over what it has measured."""
    return place.parts / f"{making}.{rank}.npz"


def taken_over(part: Path) -> StoreError:
    """What to raise where a file in the making has gone."""
    return StoreError(
        f"{part} is gone: another job has taken the work over while this one was silent; what had finished is kept"
    )


def remove_parts(place: Workspace, key: str) -> None:
    """Remove what a job that was killed had made of a unit; for the one that has claimed the unit's key now."""
    _remove(place.gallery.glob(f".*.{key}.*.part"))
    _remove(place.parts.glob(f"{key}.*.npz"))
    _remove(place.parts.glob(f".{key}.{TEMPORARIES}"))


def remove_forsaken(place: Workspace) -> None:
    """Remove what jobs that were killed had made of units that nobody may ever ask for again, with their claims.

    Where it can be removed: that nobody may write there is no reason not to read what is there.
    """
    with suppress(StoreError):
        for key in forsaken(place.parts):
            with claim(place.parts, key) as ours:
                if ours:
                    remove_parts(place, key)
    for folder in (place.cells, place.gallery, place.parts):
        _remove(untouched(folder, f".{TEMPORARIES}"))
    # A process may have outlived the first one of its job, whose claim has been taken over and released since.
    claimed = {path.stem for path in place.parts.glob("*.claim")}
    _remove(path for path in untouched(place.parts, "*.npz") if path.name.partition(".")[0] not in claimed)
    _remove(untouched(place.parts, "*.takeover"))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # gone, or another user's
            path.unlink()
