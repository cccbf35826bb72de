"""Everything that a page is made of, gathered into the report's own folder.

``reports/<name>/evidence.json`` holds the suite as it was applied and every run; ``reports/<name>/cells/`` holds copies
of exactly the cells that the page shows. So anyone can render the page again without the workspace it came from.
"""

import json
import math
import re
from pathlib import Path
from typing import Annotated, Final, Literal

import pandas as pd
from pydantic import AfterValidator, Field

from robustmix._version import __version__
from robustmix.errors import SpecError, StoreError
from robustmix.published import experiment
from robustmix.report.selection import Choice, choose_suite, choose_unbound
from robustmix.report.text import join_names
from robustmix.spec.names import check_name, unknown
from robustmix.spec.recipe import Recipe
from robustmix.spec.suite import Suite, match_runs
from robustmix.spec.validation import Spec, validate
from robustmix.store.atomic import write_atomically, write_text
from robustmix.store.cells import Cell, cell_path, read_cell, read_cells
from robustmix.store.results import results_table
from robustmix.store.runs import Run, RunFacts, common_data, read_run, run_names, suite_runs
from robustmix.store.workspace import Workspace

EVIDENCE: Final = "evidence.json"
CELLS: Final = "cells"
# The budget of both publications; the head of a page whose suite names none, where it was measured.
USUAL_EPS: Final = 4.0

RunName = Annotated[str, AfterValidator(lambda name: check_name(name, "run"))]
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

    def as_run(self) -> Run:
        """The run as `robustmix.store.runs.read_run` would give it."""
        history = pd.DataFrame([{key: _nan(value) for key, value in row.items()} for row in self.history])
        return Run(self.name, self.recipe, self.facts, history, self.weights)


class Evidence(Spec):
    """What a page is made of, beside its cells.

    Attributes:
        version: of this schema.
        robustmix: version that gathered it.
        title: the page's heading.
        note: one sentence below it.
        data: the data set, as `robustmix.load_data` takes it.
        headline_eps: budget of the page's head, units of 1/255.
        suite_name: of the suite that was reported, if there was one.
        suite: that suite as it was applied: names and budgets resolved, and without its ``train`` tables, since the
            whole recipe of every run stands in ``runs``.
        sources: names of the runs that craft, in order.
        targets: names of the runs that are scored, in order.
        runs: every source and target.
        cells: keys of the cells.
        command: that wrote the report.
        attack_commands: that compute the cells.
    """

    version: Literal[1] = 1
    robustmix: str
    title: str
    note: str | None
    data: str
    headline_eps: float = Field(gt=0)
    suite_name: str | None
    suite: Suite | None
    sources: tuple[RunName, ...]
    targets: tuple[RunName, ...] = Field(min_length=1)
    runs: tuple[RunRecord, ...] = Field(min_length=1)
    cells: tuple[Sha256, ...] = Field(min_length=1)
    command: str
    attack_commands: tuple[str, ...]


def collect(
    place: Workspace,
    name: str | None,
    *,
    suite: Suite | None = None,
    suite_name: str | None = None,
    data: str | None = None,
    command: str = "robustmix report",
    inputs: str | None = None,
) -> Path:
    """Gather everything that a page is made of into ``reports/<name>/``; nothing is written if anything is missing.

    Args:
        place: the workspace with runs and cells.
        name: of the report; the suite's name, else the data set's, if None.
        suite: report what it asks for; else every cell between runs of the workspace.
        suite_name: of the suite.
        data: the data set; the suite's, else the runs' own, if None.
        command: that is being run, for the page's provenance.
        inputs: SHA-256 of the test examples, where the caller knows it; else the largest set that was attacked.

    Returns:
        The report's folder.

    Raises:
        SpecError: a name that does not exist, or several data sets to choose from.
        CheckpointError: a run is missing or unfinished.
        StoreError: a cell is missing or damaged, or the folder cannot be written.
    """
    cells = read_cells(place.cells)
    title = note = None
    if suite is not None:
        sources, targets, runs = suite_runs(place, suite)
        _check_published(suite, sources, targets)
        data = data or suite.data or common_data([runs[name] for name in sources])
        choice = choose_suite(cells, suite, suite_name, runs, sources, targets, data, inputs)
        suite = _applied(suite, choice)
        title, note = suite.title, suite.note
    else:
        workspace_runs = [read_run(place, name) for name in run_names(place)]
        choice = choose_unbound(cells, workspace_runs, data, inputs)
    folder = place.report(name or suite_name or _usable(choice.data))
    evidence = Evidence(
        robustmix=__version__,
        title=title or f"Adversarial error of {join_names(choice.targets)} on {choice.data}",
        note=note,
        data=choice.data,
        headline_eps=(suite and suite.headline_eps) or _usual_eps(choice.cells),
        suite_name=suite_name if suite else None,
        suite=suite,
        sources=choice.sources,
        targets=choice.targets,
        runs=tuple(_record(run) for run in choice.runs),
        cells=tuple(sorted(cell.key for cell in choice.cells)),
        command=command,
        attack_commands=choice.commands,
    )
    # A clean cell that is missing must show before anything is written.
    results_table(choice.cells, choice.runs)
    _write(folder, evidence, choice, place)
    return folder


def check_suite(place: Workspace, suite: Suite, name: str) -> None:
    """Find out what would keep a suite from being reported under a name, before anything is trained for it.

    Raises:
        SpecError: the name cannot be a folder's, a source or target matches nothing, or what is said to be published
            names an experiment or a run that is not there.
    """
    check_name(name, "report")
    own = list(suite.runs())
    known = list(dict.fromkeys([*own, *run_names(place)]))
    sources = match_runs(suite.sources or tuple(own), known, "run")
    targets = match_runs(suite.targets or suite.sources or tuple(own), known, "run")
    _check_published(suite, sources, targets)


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
    known = sorted(run.name for run in evidence.runs)
    if strangers := sorted({*evidence.sources, *evidence.targets} - set(known)):
        raise SpecError(f"{path}: {unknown('run', strangers[0], known)}")
    return evidence


def load_cells(folder: Path, evidence: Evidence) -> list[Cell]:
    """Read the cells that a page shows.

    Raises:
        StoreError: one is missing or damaged.
    """
    return [read_cell(folder / CELLS / f"{key}.parquet") for key in evidence.cells]


def _write(folder: Path, evidence: Evidence, choice: Choice, place: Workspace) -> None:
    """Cells first, then what lists them, then what is no longer listed: a page can be rendered at every moment."""
    for cell in choice.cells:
        path = cell_path(folder / CELLS, cell.identity)
        try:
            content = cell_path(place.cells, cell.identity).read_bytes()
            if path.exists() and path.read_bytes() == content:
                continue
        except OSError as error:
            raise StoreError(f"{path} cannot be copied: {error}") from None
        write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
    text = json.dumps(evidence.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / EVIDENCE, text + "\n")
    kept = set(evidence.cells)
    for path in (folder / CELLS).glob("*.parquet"):
        if path.stem not in kept:
            path.unlink(missing_ok=True)


def _applied(suite: Suite, choice: Choice) -> Suite:
    return suite.model_copy(
        update={
            "train": {},
            "data": choice.data,
            "sources": choice.sources,
            "targets": choice.targets,
            "attack": tuple(spec.at(choice.like) for spec in suite.attack),
        }
    )


def _check_published(suite: Suite, sources: list[str], targets: list[str]) -> None:
    if suite.published is None:
        return
    for name in suite.published.experiments:
        experiment(name)
    both = [name for name in sources if name in targets]
    for key, names, known in (
        ("white", suite.published.white, both),
        ("source", (suite.published.source,), sources),
        ("targets", suite.published.targets, targets),
    ):
        if missing := [name for name in names if name not in known]:
            raise SpecError(f"published.{key}: {unknown('run', missing[0], known)}")


def _record(run: Run) -> RunRecord:
    assert run.weights is not None
    rows = [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in run.history.to_dict("records")
    ]
    return RunRecord(name=run.name, recipe=run.recipe, facts=run.facts, history=tuple(rows), weights=run.weights)


def _usual_eps(cells: tuple[Cell, ...]) -> float:
    budgets = sorted({cell.identity.eps_255 for cell in cells if cell.identity.source is not None})
    return USUAL_EPS if USUAL_EPS in budgets else budgets[(len(budgets) - 1) // 2]


def _usable(data: str) -> str:
    """A data spec as the name of a folder: ``folder:/data/birds`` becomes ``birds``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data.partition(":")[2] or data).name)


def _nan(value: int | float | None) -> int | float:
    return math.nan if value is None else value
