"""Files that are either whole or absent, whatever happens while they are written; what is damaged yet is set aside."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from robustmix.errors import StoreError
from robustmix.progress import say

# How the temporary names of `write_atomically` end, after a dot and the file's name.
TEMPORARIES: Final = "*.tmp"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it; the old file survives any failure.

    Args:
        path: where the file shall stand; missing folders are made.
        write: gets the open binary file.

    Raises:
        StoreError: no space, no permission, or anything else that the system refuses.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}; what stood there is unchanged"
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def set_aside(path: Path, aside: Path, damage: StoreError) -> None:
    """Move a damaged file out of the way, with a message, so that what it should hold counts as missing.

    Args:
        path: the damaged file; nothing happens if another job has set it aside.
        aside: its new place in the same folder.
        damage: what is wrong with it, in one line that names it.

    Raises:
        StoreError: it cannot be moved.
    """
    try:
        path.replace(aside)
    except FileNotFoundError:
        return
    except OSError as failure:
        raise StoreError(f"{damage}; and it cannot be set aside: {failure}") from None
    say(f"warning: {damage}; it is set aside as {aside.name}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
