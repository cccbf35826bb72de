"""Cells: the result of one (source, attack with parameters, budget, target), a row per test example.

What one is, what identifies it and what it says; its file is `robustmix.store.cell_files`'s.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import pyarrow as pa
from pydantic import Field

from robustmix.spec.validation import Spec

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


# Of the schema of cells.
VERSION: Final = 2


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

    Of DeepFool and C&W, which ascend no loss of ours: the first gradients that they take.

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
        batches: the state of the source in each batch, for PGD at the random start of the smallest budget of those
            computed together; empty where nobody took a gradient that we saw.
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
