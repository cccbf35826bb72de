"""Everything that a page is made of: the files of the report's own folder.

``reports/<name>/evidence.json`` holds the suite as it was applied, every run and every model of others;
``reports/<name>/cells/`` holds copies of exactly the cells that the page shows, and ``reports/<name>/examples/`` of the
images that were kept of those at the headline budget. So anyone can render the page again without the workspace it came
from.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pandas as pd
from pydantic import AfterValidator, Field, field_serializer

from robustmix.errors import SpecError, StoreError
from robustmix.spec.names import check_name, unknown
from robustmix.spec.recipe import Recipe
from robustmix.spec.suite import Suite
from robustmix.spec.validation import Spec, validate
from robustmix.store.audits import AuditRecord
from robustmix.store.cell_files import read_cell
from robustmix.store.cells import Cell
from robustmix.store.results import FOREIGN_MARK
from robustmix.store.runs import Run, RunFacts

EVIDENCE: Final = "evidence.json"
CELLS: Final = "cells"
EXAMPLES: Final = "examples"

RunName = Annotated[str, AfterValidator(lambda name: check_name(name, "run"))]
# No run's name holds a colon, every other model's does.
AnyName = Annotated[str, AfterValidator(lambda name: name if FOREIGN_MARK in name else check_name(name, "run"))]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RunRecord(Spec):
    """One run as the report keeps it.

    Attributes:
        name: of its folder.
        recipe: what it was asked to be.
        facts: what held when it was trained.
        history: a row per epoch; None where there is no figure. Errors are fractions.
        weights: SHA-256 of its weights.
    """

    name: RunName
    recipe: Recipe
    facts: RunFacts | None
    history: tuple[dict[str, int | float | None], ...]
    weights: Sha256

    @field_serializer("recipe")
    def _as_said(self, recipe: Recipe) -> dict[str, Any]:
        """Of an imported run only what was said: a default would be a claim."""
        return recipe.model_dump(mode="json", exclude_unset=True)

    def as_run(self) -> Run:
        """The run as `robustmix.store.runs.read_run` would give it."""
        history = pd.DataFrame([{key: _nan(value) for key, value in row.items()} for row in self.history])
        return Run(self.name, self.recipe, self.facts, history, self.weights)


class ModelRecord(Spec):
    """One model that was not trained by robustmix.

    Attributes:
        name: under which it was attacked.
        weights: SHA-256 that stands for it in cells.
    """

    name: str = Field(pattern=FOREIGN_MARK)
    weights: Sha256


class Evidence(Spec):
    """What a page is made of, beside its cells.

    Attributes:
        version: of this schema.
        robustmix: version that gathered it.
        title: the page's heading.
        note: one sentence below it.
        data: the data set, as `robustmix.load_data` takes it.
        headline_eps: budget of the page's head, units of 1/255; None where no attack has one.
        suite_name: of the suite that was reported, if there was one.
        suite: that suite as it was applied: names and budgets resolved, and without its ``train`` tables, since the
            whole recipe of every run stands in ``runs``.
        sources: names of the runs and models that craft, in order.
        targets: names of those that are scored, in order.
        runs: every source and target that was trained here.
        models: every other one.
        cells: keys of the cells.
        audits: of the targets on this data set, as far as there are any, in their order.
        command: that wrote the report.
        attack_commands: that compute the cells.
    """

    version: Literal[2] = 2
    robustmix: str
    title: str
    note: str | None
    data: str
    headline_eps: float | None = Field(gt=0)
    suite_name: str | None
    suite: Suite | None
    sources: tuple[AnyName, ...]
    targets: tuple[AnyName, ...] = Field(min_length=1)
    runs: tuple[RunRecord, ...]
    models: tuple[ModelRecord, ...] = ()
    cells: tuple[Sha256, ...] = Field(min_length=1)
    audits: tuple[AuditRecord, ...] = ()
    command: str
    attack_commands: tuple[str, ...]

    @field_serializer("suite")
    def _as_given(self, suite: Suite | None) -> dict[str, Any] | None:
        """Without what was left at its default: an attack takes only its own parameters."""
        return None if suite is None else suite.model_dump(mode="json", exclude_unset=True)


def load(folder: Path) -> Evidence:
    """Read what a page is made of.

    Raises:
        StoreError: there is no report, or it is not JSON.
        SpecError: a field is wrong.
    """
    path = folder / EVIDENCE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(found.parent.name for found in folder.parent.glob(f"*/{EVIDENCE}"))
        raise StoreError(f"{unknown('report', folder.name, known)} (in {folder.parent})") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise StoreError(f"{path} does not hold a report's evidence")
    evidence = validate(Evidence, values, str(path))
    known = sorted([*(run.name for run in evidence.runs), *(model.name for model in evidence.models)])
    if strangers := sorted({*evidence.sources, *evidence.targets} - set(known)):
        raise SpecError(f"{path}: {unknown('run', strangers[0], known)}")
    return evidence


def load_cells(folder: Path, evidence: Evidence) -> list[Cell]:
    """Read the cells that a page shows.

    Raises:
        StoreError: one is missing or damaged.
    """
    return [read_cell(folder / CELLS / f"{key}.parquet") for key in evidence.cells]


def _nan(value: int | float | None) -> int | float:
    return math.nan if value is None else value
