"""Cells as files: one parquet file each, under the SHA-256 of everything that determines it.

A cell that exists is never computed again.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from robustmix.errors import StoreError
from robustmix.progress import say
from robustmix.store.atomic import set_aside, write_atomically
from robustmix.store.cells import ROWS, VERSION, Cell, CellFacts, CellIdentity

# Reports carry their cells: this takes little more than half the space of the defaults.
ENCODING: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 9,
    "use_dictionary": ["label", "prediction", "in_top5", "norm", "min", "max", "prediction_uint8"],
    "column_encoding": {
        "index": "DELTA_BINARY_PACKED",
        "confidence": "BYTE_STREAM_SPLIT",
        "gap": "BYTE_STREAM_SPLIT",
    },
}

# Stands in a file for the file's own SHA-256, in hexadecimal, while that is taken.
BLANK: Final = b"SHA-256 of this file with these words in its place".ljust(64, b".")


def cell_path(folder: Path, identity: CellIdentity) -> Path:
    """Where a cell stands in a folder of cells."""
    return folder / f"{identity.key()}.parquet"


def write_cell(folder: Path, cell: Cell) -> None:
    """Write a cell under its key, atomically, with the SHA-256 of the file in its metadata."""
    rows = cell.rows.cast(ROWS).replace_schema_metadata(
        {
            "robustmix.identity": cell.identity.model_dump_json(),
            "robustmix.facts": cell.facts.model_dump_json(),
            "robustmix.sha256": BLANK,
        }
    )
    content = io.BytesIO()
    pq.write_table(rows, content, **ENCODING)
    write_atomically(cell_path(folder, cell.identity), lambda file: file.write(_sealed(content.getvalue())))


class DamagedError(StoreError):
    """A file whose content is not what it should be: the only reason to set one aside."""


class MissingError(StoreError):
    """A file that is not there, or no longer."""


class OtherVersionError(StoreError):
    """A cell that another version of robustmix wrote: neither damaged nor of use here."""


def read_cell(path: Path) -> Cell:
    """Read a cell and check that it is the one that its name promises, to the last bit.

    Raises:
        MissingError: it is not there.
        DamagedError: it is damaged, of another schema, or stands under another cell's name.
        OtherVersionError: another version of robustmix wrote it.
        StoreError: the system does not let it be read, which says nothing of what it holds.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{path} is no cell that can be read: it is missing") from None
    except IsADirectoryError:
        raise DamagedError(f"{path} is no cell that can be read: it is a folder") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        # As one file: `read_table` takes twice as long and reads ``key=value`` parts of the folder's name as columns.
        with pq.ParquetFile(io.BytesIO(content)) as file:
            metadata = file.metadata.metadata or {}
            digest = metadata.get(b"robustmix.sha256")
            if digest is not None and not _is_whole(content, digest):
                raise DamagedError(f"{path} is damaged: it does not have the SHA-256 that it names")
            if json.loads(metadata[b"robustmix.identity"]).get("version") != VERSION:
                raise OtherVersionError(f"{path} was written by another version of robustmix")
            if digest is None:
                raise DamagedError(f"{path} names no SHA-256 that it could be checked by")
            rows = file.read()
        identity = CellIdentity.model_validate_json(metadata[b"robustmix.identity"])
        facts = CellFacts.model_validate_json(metadata[b"robustmix.facts"])
    except (OSError, KeyError, AttributeError, ValueError, pa.ArrowException) as error:  # OSError: as Arrow has it
        raise DamagedError(f"{path} is no cell that can be read ({type(error).__name__})") from None
    if identity.key() != path.stem or rows.schema != ROWS:
        raise DamagedError(f"{path} does not hold the cell that its name promises")
    return Cell(identity, facts, rows.replace_schema_metadata(None))


def _sealed(content: bytes) -> bytes:
    """A file that has its SHA-256 in the place of `BLANK`."""
    before, _, after = content.rpartition(BLANK)
    return before + hashlib.sha256(content).hexdigest().encode() + after


def _is_whole(content: bytes, digest: bytes) -> bool:
    """Whether a file is as `_sealed` left it."""
    before, _, after = content.rpartition(digest)
    return hashlib.sha256(before + BLANK + after).hexdigest().encode() == digest


def read_cells(folder: Path) -> list[Cell]:
    """All cells of a folder, in the order of their keys; damaged ones are set aside with a message.

    Raises:
        StoreError: the system does not let the folder or a cell be read, or a damaged one cannot be set aside.
    """
    found = []
    others = 0
    for path in _files(folder):
        try:
            cell = _trusted(path)
        except OtherVersionError:
            others += 1
            continue
        if cell is not None:
            found.append(cell)
    if others:
        say(f"{others} cells in {folder} were written by another version of robustmix and are left out")
    return found


def trusted_cell(folder: Path, identity: CellIdentity) -> Cell | None:
    """A cell if it is there and whole; a damaged one is set aside with a message, and counts as missing.

    Raises:
        StoreError: the system does not let it be read, or a damaged one cannot be set aside.
    """
    return _trusted(cell_path(folder, identity))


def _files(folder: Path) -> list[Path]:
    try:
        # By hand: `glob` takes a folder that may not be read for an empty one.
        return sorted(path for path in folder.iterdir() if path.suffix == ".parquet")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror or error}") from None


def _trusted(path: Path) -> Cell | None:
    try:
        return read_cell(path)
    except MissingError:
        return None
    except DamagedError as damage:
        set_aside(path, path.with_suffix(".damaged"), damage)
        return None
