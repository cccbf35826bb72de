"""Cells: the result of one (source, attack with parameters, budget, target), a row per test example.

One parquet file each, under the SHA-256 of everything that determines it; see `CellIdentity`. A cell that exists is
never computed again.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from robustmix.errors import StoreError
from robustmix.progress import say
from robustmix.spec.validation import Spec
from robustmix.store.atomic import set_aside, write_atomically

ROWS: Final = pa.schema(
    [
        ("index", pa.int32()),
        ("label", pa.int32()),
        ("prediction", pa.int32()),
        ("in_top5", pa.bool_()),
        ("confidence", pa.float32()),
        ("gap", pa.float32()),
        ("norm", pa.float32()),
        ("min", pa.float32()),
        ("max", pa.float32()),
        ("prediction_uint8", pa.int32()),
    ]
)


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


# Of the schema of cells.
VERSION: Final = 2

# Stands in a file for the file's own SHA-256, in hexadecimal, while that is taken.
BLANK: Final = b"SHA-256 of this file with these words in its place".ljust(64, b".")


class CellIdentity(Spec):
    """Everything that determines a cell; its key is the SHA-256 of these fields.

    Attributes:
        source: SHA-256 of the weights (with the model's specification) that craft; None for clean inputs.
        target: SHA-256 of the weights that are scored.
        inputs: SHA-256 of the inputs and labels actually used.
        attack: its name; ``clean`` for no attack.
        attack_version: raised whenever an attack's results change.
        eps_255: budget in units of 1/255; 0 for clean inputs, None for an attack that looks for the smallest
            perturbation.
        steps: gradients, or a foreign attack's iterations.
        step_255: length of a step in units of 1/255.
        restarts: random starts, of which the worst is kept.
        options: parameters that few attacks have: ``decay`` of the momentum, ``queries`` per example.
        norm: in which the budget is measured.
        loss: that the attack ascends.
        labels: that the attack moves away from: ``true`` or ``predicted`` by the source.
        seed: of the attack's random numbers.
        precision: in which the attack is crafted; scoring is always in float32.
        impl: whose implementation of the attack.
        compiled: whether the models were compiled.
        library: that made the attack, with its version; None for our own.
        batch_size: examples per batch; another one may change a few signs.
        version: of this schema.
    """

    source: str | None
    target: str
    inputs: str
    attack: str
    attack_version: int = 1
    eps_255: float | None
    steps: int
    step_255: float
    restarts: int = 1
    options: dict[str, float] = Field(default_factory=dict)
    norm: str = "linf"
    loss: str = "ce"
    labels: str = "true"
    seed: int = 0
    precision: str = "32"
    impl: str = "robustmix"
    compiled: bool = False
    library: str | None = None
    batch_size: int
    version: Literal[2] = VERSION

    @property
    def maker(self) -> str:
        """Who made the attack: the other library with its version where one was asked, else whose code it is."""
        match self:
            case CellIdentity(library=str(asked)):
                return asked
        return self.impl

    def key(self) -> str:
        """SHA-256 over all fields, in hexadecimal; the file's name."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    def clean(self) -> "CellIdentity":
        """The cell of the same target on the same inputs without an attack."""
        return clean_identity(self.target, self.inputs, self.batch_size, compiled=self.compiled)


def clean_identity(target: str, inputs: str, batch_size: int, *, compiled: bool = False) -> CellIdentity:
    """The identity of a target's predictions on unattacked inputs."""
    return CellIdentity(
        source=None,
        target=target,
        inputs=inputs,
        attack="clean",
        eps_255=0,
        steps=0,
        step_255=0,
        compiled=compiled,
        batch_size=batch_size,
    )


GAP_QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class BatchState(Spec):
    """What the first gradient of a batch showed of the source: whether its loss had anything left to say.

    Attributes:
        gap: the `GAP_QUANTILES` of the gap between the label's logit and the largest other.
        saturated: share of examples whose label has a probability of exactly 1 in float32, so that cross-entropy has
            lost its true-class term.
        zero_gradient: share of examples whose gradient is exactly zero in every pixel.
    """

    gap: tuple[float, ...] = Field(min_length=len(GAP_QUANTILES), max_length=len(GAP_QUANTILES))
    saturated: float
    zero_gradient: float


class CellFacts(Spec):
    """What held when a cell was computed and does not change it.

    Attributes:
        data: name of the data set.
        like: the well-known data set that it resembles.
        data_note: how it differs from that one.
        data_spec: as it was asked for.
        classes: names of the classes.
        source_name: the run or model that crafted, at the time.
        target_name: the run or model that was scored, at the time.
        forward: forward passes per example of the cell's unit, scoring included, counted as they happened.
        backward: backward passes per example of the cell's unit, counted as they happened.
        batches: the state of the source in each batch; empty where nobody took a gradient that we saw.
        unit_seconds: duration of the unit.
        data_wait: share of that time that was spent waiting for data.
        normalize: what models from a ``FILE.py:FACTORY`` were put behind.
        halved_from: the batch size that was asked for and did not fit into memory.
        device: in words.
        torch: version.
        robustmix: version.
    """

    data: str
    like: str | None
    data_note: str | None
    data_spec: str
    classes: tuple[str, ...]
    source_name: str | None
    target_name: str
    forward: float
    backward: float
    batches: tuple[BatchState, ...] = ()
    unit_seconds: float
    data_wait: float = 0.0
    normalize: str | None = None
    halved_from: int | None = None
    device: str
    torch: str
    robustmix: str


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        identity: what determines it.
        facts: what held.
        rows: a row per example with the columns of `ROWS`. ``index`` counts within the test set, ``confidence`` is the
            predicted class's probability, ``gap`` the label's logit minus the largest other, ``norm`` the length of the
            perturbation in the identity's norm and ``min`` and ``max`` the range of the adversarial input, all in pixel
            units. ``prediction_uint8`` is the prediction on the image rounded to 8 bits within its budget; null where
            no image was kept.
    """

    identity: CellIdentity
    facts: CellFacts
    rows: pa.Table

    @cached_property
    def key(self) -> str:
        """The identity's SHA-256."""
        return self.identity.key()


def cell_path(folder: Path, identity: CellIdentity) -> Path:
    """Where a cell stands in a folder of cells."""
    return folder / f"{identity.key()}.parquet"


def gallery_path(folder: Path, identity: CellIdentity) -> Path:
    """Where the adversarial images of a cell stand in a gallery: one file for all targets."""
    what = identity.model_dump(exclude={"target"})
    return folder / f"{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()}.npy"


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
