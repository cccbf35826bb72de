"""What a run's folder says about it, read without torch.

``recipe.json`` is what it was asked to be; ``history.parquet`` holds a row per finished epoch and, in the file's
metadata, the facts of the run; ``model.safetensors`` is there once it has finished.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robustmix.errors import CheckpointError, RobustmixError, SpecError, StoreError
from robustmix.spec.names import unknown
from robustmix.spec.recipe import Recipe, load_recipe_fields
from robustmix.store.atomic import write_atomically, write_text
from robustmix.store.workspace import Workspace

RECIPE, STATE, WEIGHTS, HISTORY = "recipe.json", "state.ckpt", "model.safetensors", "history.parquet"


@dataclass(frozen=True)
class RunFacts:
    """What held when a run was trained.

    Attributes:
        data: name of the data set.
        like: the well-known data set that it resembles.
        data_note: how it differs from that one.
        train_digest: SHA-256 of the training examples.
        train_examples: their number.
        classes: number of classes.
        parameters: of the model.
        device: in words.
        threads: of the CPU.
        robustmix: version.
        torch: version.
        compiled: whether it was trained by torch.compile, at the end.
        imported_from: name and SHA-256 of the file that the weights came in, if another program trained them: then the
            recipe and the training examples are what was said of them, and the only figures are those measured here.
        imported_by: the command that imported it.
    """

    data: str
    like: str | None
    data_note: str | None
    train_digest: str
    train_examples: int
    classes: int
    parameters: int
    device: str
    threads: int
    robustmix: str
    torch: str
    compiled: bool = False
    imported_from: str | None = None
    imported_by: str | None = None


@dataclass(frozen=True)
class Run:
    """One run as its files show it.

    Attributes:
        name: of its folder.
        recipe: what it was asked to be.
        facts: what held when it was trained; None before the first epoch has finished.
        history: a row per finished epoch: epoch, lr, train_loss, train_error_mixed, train_error, val_error, test_error,
            seconds. Errors are fractions; ``train_error`` (eval mode, nothing mixed or augmented) only after the last.
            Imported weights have one row, of the last epoch (0 if nobody said which), without the figures of training.
        weights: SHA-256 of ``model.safetensors``; None unless the run has finished.
    """

    name: str
    recipe: Recipe
    facts: RunFacts | None
    history: pd.DataFrame
    weights: str | None

    @property
    def method(self) -> str:
        """How it was trained: the method, and what else makes another kind of network of it."""
        return self.recipe.training

    @property
    def seed(self) -> int:
        """Of everything random in its training."""
        return self.recipe.seed

    @property
    def finished(self) -> bool:
        """Whether all epochs are done and the weights are written."""
        return self.weights is not None

    @property
    def command(self) -> str:
        """The command that makes it; for what was imported from Python, the name of the file and its digest."""
        if self.facts and self.facts.imported_from:
            return self.facts.imported_by or f"# imported from {self.facts.imported_from}"
        return self.recipe.command(self.name)

    @property
    def begun(self) -> bool:
        """Whether an epoch has finished, so that something would be lost with it."""
        return len(self.history) > 0

    @property
    def group(self) -> str:
        """The name that it shares with runs that differ by the seed: its own without the seed, if it ends in it."""
        stem, digits = re.fullmatch(r"(.*?)[-_.]?(\d*)", self.name).groups()  # type: ignore[union-attr]
        return stem if stem and digits == str(self.recipe.seed) else self.name

    def final(self, column: str) -> float:
        """A figure of the last finished epoch; NaN if there is none."""
        return float(self.history[column].iloc[-1]) if len(self.history) else float("nan")


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write what a run is asked to be."""
    write_text(folder / RECIPE, json.dumps(recipe.model_dump(), indent=1) + "\n")


def write_history(folder: Path, rows: list[dict[str, Any]], facts: RunFacts) -> None:
    """Write the finished epochs and the facts of a run."""
    table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
    table = table.replace_schema_metadata({b"robustmix": json.dumps(asdict(facts)).encode()})
    write_atomically(folder / HISTORY, lambda file: pq.write_table(table, file))


def read_run(workspace: Workspace, name: str) -> Run:
    """Read a run.

    Raises:
        CheckpointError: there is none of that name, or its files are damaged.
    """
    folder = workspace.run(name)
    if not (folder / RECIPE).is_file():
        raise CheckpointError(f"{unknown('run', name, run_names(workspace))} (in {workspace.runs})")
    try:
        recipe = load_recipe_fields(json.loads((folder / RECIPE).read_text(encoding="utf-8")), str(folder / RECIPE))
    except (OSError, ValueError) as error:
        if isinstance(error, RobustmixError):
            raise
        raise CheckpointError(f"{folder / RECIPE} cannot be read: {error}") from None
    facts, history = None, pd.DataFrame()
    if (folder / HISTORY).exists():
        try:
            table = pq.read_table(folder / HISTORY)
            values = json.loads(table.schema.metadata[b"robustmix"])
            facts = RunFacts(**{field.name: values[field.name] for field in fields(RunFacts) if field.name in values})
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise StoreError(f"{folder / HISTORY} cannot be read: {error}") from None
        history = table.to_pandas()
    weights = folder / WEIGHTS
    imported = facts is not None and facts.imported_from is not None
    finished = (imported or len(history) == recipe.epochs) and weights.exists()
    return Run(name, recipe, facts, history, file_digest(weights) if finished else None)


def run_names(workspace: Workspace) -> list[str]:
    """The names of all runs of a workspace, finished or not."""
    return sorted(path.parent.name for path in workspace.runs.glob(f"*/{RECIPE}"))


def finished_run(workspace: Workspace, name: str) -> Run:
    """Read a run that has finished.

    Raises:
        CheckpointError: there is none of that name, or it has not finished.
    """
    run = read_run(workspace, name)
    if not run.finished:
        raise CheckpointError(
            f"run {name!r} has not finished: {len(run.history)} of {run.recipe.epochs} epochs; go on with: "
            f"{run.recipe.command(name)}"
        )
    return run


def common_data(sources: Iterable[Run]) -> str:
    """The data that all of some runs were trained on.

    Raises:
        SpecError: they were trained on different data.
    """
    specs = sorted({run.recipe.data for run in sources})
    if len(specs) > 1:
        raise SpecError(f"the sources were trained on different data ({', '.join(specs)}): choose with --data")
    return specs[0]


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
