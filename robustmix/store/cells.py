"""Cells: the result of one (source, attack with parameters, budget, target), a row per test example.

One parquet file each, under the SHA-256 of everything that determines it; see `CellIdentity`. A cell that exists is
never computed again.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from robustmix.errors import StoreError
from robustmix.spec.validation import Spec
from robustmix.store.atomic import write_atomically

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
    ]
)


# Reports carry their cells: this takes little more than half the space of the defaults.
ENCODING: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 9,
    "use_dictionary": ["label", "prediction", "in_top5", "norm", "min", "max"],
    "column_encoding": {
        "index": "DELTA_BINARY_PACKED",
        "confidence": "BYTE_STREAM_SPLIT",
        "gap": "BYTE_STREAM_SPLIT",
    },
}


class CellIdentity(Spec):
    """Everything that determines a cell; its key is the SHA-256 of these fields.

    Attributes:
        source: SHA-256 of the weights (with the model's specification) that craft; None for clean inputs.
        target: SHA-256 of the weights that are scored.
        inputs: SHA-256 of the inputs and labels actually used.
        attack: its name; ``clean`` for no attack.
        attack_version: raised whenever an attack's results change.
        eps_255: budget in units of 1/255; 0 for clean inputs.
        steps: gradients.
        step_255: length of a step in units of 1/255.
        restarts: random starts, of which the worst is kept.
        norm: in which the budget is measured.
        loss: that the attack ascends.
        labels: ``true``, the labels that the attack moves away from.
        seed: of the attack's random numbers.
        precision: in which the attack is crafted; scoring is always in float32.
        impl: whose implementation of the attack.
        batch_size: examples per batch; another one may change a few signs.
        version: of this schema.
    """

    source: str | None
    target: str
    inputs: str
    attack: str
    attack_version: int = 1
    eps_255: float
    steps: int
    step_255: float
    restarts: int = 1
    norm: str = "linf"
    loss: str = "ce"
    labels: str = "true"
    seed: int = 0
    precision: str = "32"
    impl: str = "robustmix"
    batch_size: int
    version: int = 1

    def key(self) -> str:
        """SHA-256 over all fields, in hexadecimal; the file's name."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    def clean(self) -> "CellIdentity":
        """The cell of the same target on the same inputs without an attack."""
        return clean_identity(self.target, self.inputs, self.batch_size)


def clean_identity(target: str, inputs: str, batch_size: int) -> CellIdentity:
    """The identity of a target's predictions on unattacked inputs."""
    return CellIdentity(
        source=None,
        target=target,
        inputs=inputs,
        attack="clean",
        eps_255=0,
        steps=0,
        step_255=0,
        batch_size=batch_size,
    )


class CellFacts(Spec):
    """What held when a cell was computed and does not change it.

    Attributes:
        data: name of the data set.
        like: the well-known data set that it resembles.
        data_note: how it differs from that one.
        data_spec: as it was asked for.
        classes: names of the classes.
        source_name: the run that crafted, at the time.
        target_name: the run that was scored, at the time.
        forward: forward passes per example of the cell's unit, scoring included.
        backward: backward passes per example of the cell's unit.
        unit_seconds: duration of the unit.
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
    forward: int
    backward: int
    unit_seconds: float
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
            perturbation and ``min`` and ``max`` the range of the adversarial input, all in pixel units.
    """

    identity: CellIdentity
    facts: CellFacts
    rows: pa.Table

    @property
    def key(self) -> str:
        """The identity's SHA-256."""
        return self.identity.key()


def cell_path(folder: Path, identity: CellIdentity) -> Path:
    """Where a cell stands in a folder of cells."""
    return folder / f"{identity.key()}.parquet"


def write_cell(folder: Path, cell: Cell) -> None:
    """Write a cell under its key, atomically."""
    rows = cell.rows.cast(ROWS).replace_schema_metadata(
        {
            "robustmix.identity": cell.identity.model_dump_json(),
            "robustmix.facts": cell.facts.model_dump_json(),
        }
    )
    write_atomically(cell_path(folder, cell.identity), lambda file: pq.write_table(rows, file, **ENCODING))


def read_cell(path: Path) -> Cell:
    """Read a cell and check that it is the one that its name promises.

    Raises:
        StoreError: it is damaged, of another schema, or stands under another cell's name.
    """
    try:
        # Opened by hand: given a path, pyarrow would read ``key=value`` parts of the folder's name as columns.
        with path.open("rb") as file:
            rows = pq.read_table(file)
        metadata = rows.schema.metadata or {}
        identity = CellIdentity.model_validate_json(metadata[b"robustmix.identity"])
        facts = CellFacts.model_validate_json(metadata[b"robustmix.facts"])
    except (OSError, KeyError, ValidationError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} is no cell that can be read ({type(error).__name__}); delete it to compute it again"
        ) from None
    if identity.key() != path.stem or rows.schema.names != ROWS.names:
        raise StoreError(f"{path} does not hold the cell that its name promises; delete it to compute it again")
    return Cell(identity, facts, rows.replace_schema_metadata(None))


def read_cells(folder: Path) -> list[Cell]:
    """All cells of a folder, in the order of their keys."""
    return [read_cell(path) for path in sorted(folder.glob("*.parquet"))]
