"""Runs that nobody trained and cells that nobody computed, for what only reads files."""

from typing import Any

import numpy as np
import pyarrow as pa

from robustmix.spec.attack import AttackSpec
from robustmix.spec.recipe import Recipe
from robustmix.spec.validation import validate
from robustmix.store.cell_files import cell_path, read_cell
from robustmix.store.cells import ROWS, Cell, CellFacts, CellIdentity
from robustmix.store.runs import RunFacts, write_history, write_recipe
from robustmix.store.workspace import Workspace

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}"
RUNS = {"erm1": ("erm", 1), "erm2": ("erm", 2), "mixup1": ("mixup", 1), "mixup2": ("mixup", 2)}
INPUTS = "5" * 64
N = 50


def add_run(place: Workspace, name: str, method: str, seed: int, data: str = "cifar10") -> None:
    """Write the files of a finished run."""
    folder = place.run(name)
    write_recipe(
        folder, Recipe(data=data, width=16, method=method, alpha=1 if method == "mixup" else None, epochs=2, seed=seed)
    )
    facts = RunFacts(
        data=data, like=data, data_note=f"its note {EVIL}", train_digest="d" * 64, train_examples=50_000, classes=10,
        parameters=700_506, device=f"cpu {EVIL}", threads=2, robustmix="0", torch="0",
    )  # fmt: skip
    common = {"lr": 0.1, "train_loss": 1.0, "val_error": None, "seconds": 1.0}
    rows = [
        {"epoch": 1, "train_error_mixed": 0.5, "train_error": None, "test_error": 0.4, **common},
        {"epoch": 2, "train_error_mixed": 0.456, "train_error": 0.221, "test_error": 0.3, **common},
    ]
    write_history(folder, rows, facts)
    (folder / "model.safetensors").write_bytes(f"weights of {name}".encode())


def make_cell(identity: CellIdentity, n: int, data: str = "cifar10", *, rounded: bool = False, **facts: Any) -> Cell:
    """A cell whose errors are drawn from its own key."""
    rng = np.random.default_rng(int(identity.key()[:8], 16))
    label = np.random.default_rng(int(identity.inputs[:8], 16)).integers(0, 10, n)
    eps = 4 if identity.eps_255 is None else identity.eps_255
    prediction = np.where(rng.random(n) < 0.2 + 0.15 * min(eps, 4), (label + 1) % 10, label)
    zeros = np.zeros(n, "float32")
    columns = [np.arange(n), label, prediction, np.ones(n, bool), zeros + 0.5, zeros, zeros + eps / 255, zeros]
    columns += [zeros + 1, prediction[::-1] if rounded else pa.nulls(n)]
    rows = pa.table([pa.array(part).cast(field.type) for part, field in zip(columns, ROWS, strict=True)], schema=ROWS)
    fields = {
        "data": data, "like": data, "data_note": f"a note, {EVIL}", "data_spec": data, "classes": (EVIL, *"123456789"),
        "source_name": None, "target_name": "t", "forward": 7, "backward": 2.5, "unit_seconds": 1.0, "device": "cpu",
        "torch": "0", "robustmix": "0",
    }  # fmt: skip
    return Cell(identity, CellFacts.model_validate({**fields, **facts}), rows)


def identities(fields: dict[str, Any], source: str, target: str, batch_size: int = 256) -> list[CellIdentity]:
    """The cells of an attack."""
    spec = validate(AttackSpec, fields)
    return [
        CellIdentity(
            source=source, target=target, inputs=INPUTS, attack=spec.name, eps_255=course.eps, steps=course.steps,
            step_255=course.step, restarts=spec.restarts, options=spec.options, norm=spec.metric, loss=spec.loss,
            labels=spec.labels, seed=spec.seed, precision=spec.precision, impl=spec.impl, compiled=spec.compiled,
            batch_size=batch_size,
        )
        for course in spec.courses("cifar10")
    ]  # fmt: skip


def clean_of(place: Workspace, cell: Cell) -> Cell:
    """The cell of the same target without an attack."""
    return read_cell(cell_path(place.cells, cell.identity.clean()))


def wrong(cell: Cell) -> list[bool]:
    """Whether each example is classified wrongly."""
    return [a != b for a, b in zip(cell.rows["label"].to_pylist(), cell.rows["prediction"].to_pylist(), strict=True)]
