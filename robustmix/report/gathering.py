"""Gathering what a report is made of from a workspace."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from robustmix._version import __version__
from robustmix.errors import SpecError, StoreError
from robustmix.published import experiment
from robustmix.report.evidence import CELLS, EVIDENCE, EXAMPLES, Evidence, ModelRecord, RunRecord
from robustmix.report.material import Material
from robustmix.report.naming import say_left_out, shown_names
from robustmix.report.selection import Choice, choose_suite, choose_unbound
from robustmix.report.text import join_names
from robustmix.spec.names import check_name, unknown
from robustmix.spec.suite import Suite, match_runs
from robustmix.store.atomic import write_atomically, write_text
from robustmix.store.audits import AuditRecord, read_audits
from robustmix.store.cell_files import cell_path, read_cells
from robustmix.store.cells import Cell
from robustmix.store.choosing import id_of, one_data_set
from robustmix.store.gallery import examples_path, trusted_examples
from robustmix.store.results import FOREIGN_MARK, Bearer, ForeignModel, foreign_bearers, results_table
from robustmix.store.runs import Run, common_data, finished_run, read_run, run_names
from robustmix.store.workspace import Workspace

# The budget of both publications; the head of a page whose suite names none, where it was measured.
USUAL_EPS: Final = 4.0


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

    One network under several names, such as a copied run, is shown once: names would count as seeds.

    Args:
        place: the workspace with runs and cells.
        name: of the report; the suite's name, else the data set's, if None.
        suite: report what it asks for; else every cell between runs of the workspace and models of others.
        suite_name: of the suite.
        data: the data set; the suite's, else the runs' own, if None.
        command: that is being run, for the page's provenance.
        inputs: SHA-256 of the test examples, where the caller knows it; else the largest set that was attacked.

    Returns:
        The report's folder.

    Raises:
        SpecError: a name that does not exist, several data sets to choose from, or one network for two of a
            publication's.
        CheckpointError: a run is missing or unfinished.
        StoreError: a cell is missing or damaged, or the folder cannot be written.
    """
    cells = read_cells(place.cells)
    title = note = None
    models = foreign_bearers(cells)
    if suite is not None:
        known = {model.name: model for model in models}
        sources, targets = (
            _names(patterns, place, known) for patterns in (suite.source_patterns, suite.target_patterns)
        )
        _check_published(suite, sources, targets)
        bearers: dict[str, Bearer] = {
            name: known.get(name) or finished_run(place, name) for name in dict.fromkeys([*sources, *targets])
        }
        shown = shown_names(bearers.values(), cells, suite)
        bearers = {name: bearer for name, bearer in bearers.items() if shown[name] == name}
        sources, targets = (list(dict.fromkeys(shown[name] for name in names)) for names in (sources, targets))
        runs = [bearer for bearer in bearers.values() if isinstance(bearer, Run)]
        crafting = [run for run in runs if run.name in sources]
        data = data or suite.data or (common_data(crafting) if crafting else one_data_set(cells, None)[0])
        like = next((run.facts.like for run in runs if run.facts), None)
        choice = choose_suite(cells, suite, suite_name, bearers, sources, targets, data, like, inputs)
        suite = _applied(suite, choice)
        title, note = suite.title, suite.note
    else:
        every: list[Bearer] = [*(read_run(place, name) for name in run_names(place)), *models]
        shown = shown_names(every, cells)
        choice = choose_unbound(cells, [bearer for bearer in every if shown[bearer.name] == bearer.name], data, inputs)
    folder = place.report(name or suite_name or _usable(choice.data))
    headline = (suite and suite.headline_eps) or _usual_eps(choice.cells)
    evidence = Evidence(
        robustmix=__version__,
        title=title or f"Adversarial error of {join_names(choice.targets)} on {choice.data}",
        note=note,
        data=choice.data,
        headline_eps=headline,
        suite_name=suite_name if suite else None,
        suite=suite,
        sources=choice.sources,
        targets=choice.targets,
        runs=tuple(_record(one) for one in choice.bearers if isinstance(one, Run)),
        models=tuple(
            ModelRecord(name=m.name, weights=m.weights) for m in choice.bearers if isinstance(m, ForeignModel)
        ),
        cells=tuple(sorted(cell.key for cell in choice.cells)),
        audits=tuple(_audits(choice, headline, read_audits(place.audits))),
        command=command,
        attack_commands=choice.commands,
    )
    # A clean cell that is missing must show before anything is written.
    results_table(choice.cells, choice.bearers)
    say_left_out(shown, [bearer.name for bearer in choice.bearers])
    _write(folder, evidence, choice, place)
    return folder


def check_suite(place: Workspace, suite: Suite, name: str) -> None:
    """Find out what would keep a suite from being reported under a name, before anything is trained for it.

    Raises:
        SpecError: the name cannot be a folder's, a source or target matches nothing, or what is said to be published
            names an experiment or a run that is not there.
    """
    check_name(name, "report")
    known = list(dict.fromkeys([*suite.runs(), *run_names(place)]))
    sources, targets = (
        match_runs(tuple(pattern for pattern in patterns if FOREIGN_MARK not in pattern), known, "run")
        for patterns in (suite.source_patterns, suite.target_patterns)
    )
    _check_published(suite, sources, targets)


def _names(patterns: Sequence[str], place: Workspace, models: Iterable[str]) -> list[str]:
    """The runs and models that names and globs select, each once, in the patterns' order."""
    names: list[str] = []
    for pattern in patterns:
        foreign = FOREIGN_MARK in pattern
        names += match_runs((pattern,), [*models] if foreign else run_names(place), "model" if foreign else "run")
    return list(dict.fromkeys(names))


def _write(folder: Path, evidence: Evidence, choice: Choice, place: Workspace) -> None:
    """Cells first, then what lists them, then what is no longer listed: a page can be rendered at every moment."""
    for cell in choice.cells:
        _copy(cell_path(place.cells, cell.identity), cell_path(folder / CELLS, cell.identity))
    text = json.dumps(evidence.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / EVIDENCE, text + "\n")
    shown = {cell_path(folder / CELLS, cell.identity) for cell in choice.cells}
    examples = _copy_examples(folder, place, Material.of(evidence, choice.cells))
    for path in {*(folder / CELLS).glob("*.parquet"), *(folder / EXAMPLES).glob("*.npz")} - shown - examples:
        path.unlink(missing_ok=True)


def _copy_examples(folder: Path, place: Workspace, material: Material) -> set[Path]:
    """Copy the examples of a report's units at the headline budget, as far as whole ones are kept; gives the copies."""
    shown = {(label, material.headline(label)) for label in material.attacks}
    units = {
        examples_path(place.gallery, cell.identity): cell.identity
        for cell in material.cells
        if any((sweep.label, cell.identity.eps_255) in shown for sweep in material.known[id_of(cell)])
    }
    whole = [path for path, identity in units.items() if trusted_examples(place.gallery, identity)]
    found = {source: folder / EXAMPLES / source.name for source in whole}
    for source, copy in found.items():
        _copy(source, copy)
    return set(found.values())


def _copy(source: Path, target: Path) -> None:
    """Copy a file atomically, unless it is there already."""
    try:
        content = source.read_bytes()
        if target.exists() and target.read_bytes() == content:
            return
    except OSError as error:
        raise StoreError(f"{target} cannot be copied: {error}") from None
    write_atomically(target, lambda file: file.write(content))


def _audits(choice: Choice, eps: float | None, records: Iterable[AuditRecord]) -> Iterator[AuditRecord]:
    """One audit of each target: on the report's own examples, else on the largest set of the same data.

    Of several budgets that of the page's head is taken, else the smallest.
    """
    inputs = {cell.identity.inputs for cell in choice.cells}
    names = {choice.data, *(name for cell in choice.cells for name in (cell.facts.data, cell.facts.data_spec))}
    weights = {bearer.name: bearer.weights for bearer in choice.bearers}
    on_data = [record for record in records if record.data in names]
    for target in choice.targets:
        of_target = [record for record in on_data if record.weights == weights[target]]
        if of_target:
            yield max(of_target, key=lambda r: (r.inputs in inputs, r.n, r.inputs, r.eps_255 == eps, -r.eps_255))


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
    sources, targets = ([name for name in names if FOREIGN_MARK not in name] for names in (sources, targets))
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


def _usual_eps(cells: tuple[Cell, ...]) -> float | None:
    by_norm: dict[str, set[float]] = {}
    for identity in (cell.identity for cell in cells):
        if identity.eps_255:
            by_norm.setdefault(identity.norm, set()).add(identity.eps_255)
    budgets = sorted(by_norm.get("linf") or by_norm.get("l2") or ())
    if not budgets:
        return None
    return USUAL_EPS if USUAL_EPS in budgets else budgets[(len(budgets) - 1) // 2]


def _usable(data: str) -> str:
    """A data spec as the name of a folder: ``folder:/data/birds`` becomes ``birds``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data.partition(":")[2] or data).name)
