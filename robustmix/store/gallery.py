"""The first test images of a unit beside what the attack made of them, so that a page can show both.

They are kept whenever a unit is computed; all adversarial images only where somebody asks for them
(`robustmix.gallery.Gallery`). One file of numpy's per unit and budget, which all targets share.
"""

import hashlib
import io
import json
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np

from robustmix.errors import StoreError
from robustmix.progress import say
from robustmix.store.atomic import set_aside, write_atomically
from robustmix.store.cell_files import DamagedError
from robustmix.store.cells import CellIdentity

# As many examples of a unit as are kept at each budget.
KEPT: Final = 8
# What numpy, zipfile and zlib raise of a file that is not what it was; NotImplementedError and other kinds of
# RuntimeError are of packings that were never used, MemoryError of a shape that was never written. Of the system's
# errors only that of a folder: what it does not let be read may be whole.
DAMAGED: Final = (
    IsADirectoryError,
    LookupError,
    EOFError,
    ValueError,
    AttributeError,
    TypeError,
    SyntaxError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
# Of images that can be shown: grey, or red, green and blue.
CHANNELS: Final = (1, 3)


@dataclass(frozen=True)
class Examples:
    """A few images of one unit at one budget.

    Attributes:
        index: of each within the test set, int32 [k].
        clean: as they were, uint8 [k, C, H, W].
        adversarial: the same after the attack, rounded within its budget, uint8 [k, C, H, W].
    """

    index: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray


def gallery_path(folder: Path, identity: CellIdentity) -> Path:
    """Where the adversarial images of a cell stand in a gallery: one file for all targets."""
    what = identity.model_dump(exclude={"target"})
    return folder / f"{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()}.npy"


def examples_path(folder: Path, identity: CellIdentity) -> Path:
    """Where the examples of a cell stand in a gallery: one file for all targets."""
    return gallery_path(folder, identity).with_suffix(".npz")


def write_examples(folder: Path, identity: CellIdentity, examples: Examples) -> Path:
    """Write the examples of a cell's unit at its budget, atomically; the same examples give the same bytes.

    Raises:
        StoreError: the file cannot be written.
    """
    path = examples_path(folder, identity)
    arrays = {field.name: getattr(examples, field.name) for field in fields(Examples)}
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
    return path


def read_examples(folder: Path, identity: CellIdentity) -> Examples | None:
    """Read the examples of a cell's unit at its budget; None where none were kept.

    Raises:
        DamagedError: the file is damaged.
        StoreError: the system does not let it be read, which says nothing of what it holds.
    """
    path = examples_path(folder, identity)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise DamagedError(f"{path} holds no examples that can be read: it is a folder") from None
    except OSError as error:
        raise StoreError(f"examples {path} cannot be read: {error.strerror or error}") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            examples = Examples(**{field.name: arrays[field.name] for field in fields(Examples)})
    except (OSError, *DAMAGED) as error:  # OSError: as bz2 has it
        raise DamagedError(f"{path} holds no examples that can be read ({type(error).__name__})") from None
    count, shape = len(examples.index), examples.clean.shape
    kinds = [array.dtype for array in (examples.index, examples.clean, examples.adversarial)]
    if kinds != [np.int32, np.uint8, np.uint8] or examples.adversarial.shape != shape or shape[:1] != (count,):
        raise DamagedError(f"{path} does not hold as many clean images as adversarial ones")
    if len(shape) != 4 or shape[1] not in CHANNELS:
        raise DamagedError(f"{path} holds inputs of shape {list(shape[1:])}, which are no images")
    return examples


def trusted_examples(folder: Path, identity: CellIdentity) -> Examples | None:
    """Read the examples of a cell's unit; damaged ones are set aside with a message, and count as not kept.

    Raises:
        StoreError: the system does not let the file be read.
    """
    try:
        return read_examples(folder, identity)
    except DamagedError as damage:
        path = examples_path(folder, identity)
        try:
            set_aside(path, path.with_suffix(".npz.damaged"), damage)
        except StoreError as failure:  # worth no report
            say(f"warning: {failure}")
        return None


def has_images(folder: Path, identity: CellIdentity, count: int) -> bool:
    """Whether all adversarial images of a cell's unit and what they are stand there; damage is set aside and told.

    Only its beginning is read and its size compared: images may take gigabytes.

    Args:
        folder: of the gallery.
        identity: of the cell.
        count: as many images as there must be.

    Raises:
        StoreError: the system does not let the file be read, or a damaged one cannot be set aside.
    """
    path = gallery_path(folder, identity)
    try:
        images = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    except DAMAGED as error:
        damage = f"holds no images that can be read ({type(error).__name__})"
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None
    else:
        complete = size == images.offset + images.nbytes
        if complete and images.dtype == np.uint8 and images.shape[:1] == (count,):
            # Without what the images are, nobody else knows what to do with them.
            return path.with_suffix(".json").is_file()
        damage = f"does not hold {count} images"
    set_aside(path, path.with_suffix(".npy.damaged"), DamagedError(f"{path} {damage}"))
    return False
