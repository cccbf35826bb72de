"""Read files of ``torch.save`` without executing anything in them; the bytes of a tensor only when it is asked for.

Both formats are read: zip archives, and the older sequence of pickles (see `torch.serialization`).
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from robustmix.errors import CheckpointError
from robustmix.interchange.pickled import Storage, Stored, interpret

ZIP: Final = b"PK\x03\x04"
# The first object of the older format, and the version that follows it.
LEGACY: Final = (0x1950A86A20F9469CFC6C, 1001)

_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, struct.error, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class Saved:
    """What a file of ``torch.save`` holds.

    Attributes:
        content: plain values, dictionaries, `Record` and `Stored`.
        read: gives the bytes of a storage.
    """

    content: object
    read: Callable[[Storage], bytes]

    def tensor(self, stored: Stored) -> Tensor:
        """The tensor itself.

        Raises:
            CheckpointError: its bytes are not in the file, or are fewer or more than it claims.
        """
        storage, size = stored.storage, math.prod(stored.shape)
        last = stored.offset + sum((n - 1) * step for n, step in zip(stored.shape, stored.strides, strict=True))
        # A tensor of more elements than its storage repeats some: no weights do, and a small file could claim any size.
        if size and not (size <= storage.count and last < storage.count):
            raise CheckpointError(
                f"a tensor of shape {list(stored.shape)} does not lie in its {storage.count} elements"
            )
        if not size:
            return torch.empty(stored.shape, dtype=storage.dtype)
        content = self.read(storage)
        if len(content) != storage.count * storage.dtype.itemsize:
            raise CheckpointError(f"{storage.count} elements of {storage.dtype} claimed, {len(content)} bytes there")
        elements = torch.frombuffer(bytearray(content), dtype=storage.dtype)
        return elements.as_strided(stored.shape, stored.strides, stored.offset).clone(
            memory_format=torch.contiguous_format
        )


def read_saved(path: Path, content: bytes) -> Saved:
    """Read a file of ``torch.save``.

    Args:
        path: for messages.
        content: of the file.

    Raises:
        CheckpointError: it is truncated or something else, or holds what cannot be read without executing it.
    """
    try:
        return _from_zip(content) if content.startswith(ZIP) else _from_sequence(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path} is truncated, or neither a safetensors file nor one of torch.save: {_first_line(error)}"
        ) from None


def _from_zip(content: bytes) -> Saved:
    archive = zipfile.ZipFile(io.BytesIO(content))
    (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and _entry(archive, f"{folder}byteorder") != b"little":
        raise CheckpointError("its numbers are big-endian; save it again on another machine")
    found = interpret(io.BytesIO(_entry(archive, pickled)))
    return Saved(found, lambda storage: _entry(archive, f"{folder}data/{storage.key}"))


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """One file of an archive; not compressed, so that it cannot be larger than the archive."""
    try:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{name[:100]!r} is compressed, which torch.save never does")
        return archive.read(name)
    except KeyError:
        raise CheckpointError(f"{name[:100]!r} is missing in the archive") from None
    except (*_DAMAGED, EOFError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{name[:100]!r} is damaged: {_first_line(error)}") from None


def _from_sequence(content: bytes) -> Saved:
    stream = io.BytesIO(content)
    if (interpret(stream), interpret(stream)) != LEGACY:
        raise ValueError("it does not begin as such a file does")
    system = interpret(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("its numbers are big-endian; save it again on another machine")
    known: dict[str, Storage] = {}
    found = interpret(stream, known)
    keys = interpret(stream)
    places = {}
    for key in _texts(keys):
        dtype = known[key].dtype
        (count,) = struct.unpack("<q", stream.read(8))
        size = count * dtype.itemsize
        if not 0 <= size <= len(content) - stream.tell():
            raise CheckpointError(f"{count} elements of {dtype} claimed, where the file ends")
        places[key] = slice(stream.tell(), stream.tell() + size)
        stream.seek(size, io.SEEK_CUR)
    return Saved(found, lambda storage: content[places[storage.key]] if storage.key in places else b"")


def _texts(keys: object) -> list[str]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise TypeError("a list of storages expected")
    return keys


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
