"""The page's tables of measured figures as plain rows; the template only lays them out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robustmix.report.material import Material
from robustmix.report.result import Result
from robustmix.report.text import (
    NONE,
    ROLES,
    also,
    budget,
    final,
    interval,
    join_names,
    last_epoch,
    length,
    method_name,
    passes,
    percent,
    stated,
    train_examples,
)
from robustmix.store.cells import Cell, CellIdentity
from robustmix.store.runs import Run


@dataclass(frozen=True)
class Table:
    """A table that is laid out as it is.

    Attributes:
        caption: what it shows.
        header: headings of the columns.
        rows: their texts.
        texts: how many columns, from the left, hold words; the others hold numbers.
        naming: the column that names a row.
    """

    caption: str
    header: tuple[str, ...]
    rows: list[list[str]]
    texts: int
    naming: int = 0


def training_rows(material: Material) -> list[dict[str, str]]:
    """A row per run: what it was asked to be and how it ended; for models of others, that nobody knows."""
    rows = [_training(run) for run in material.runs.values()]
    empty = dict.fromkeys(TRAINING, NONE)
    return rows + [empty | {"name": name, "method": "not trained by robustmix"} for name in material.models]


TRAINING = (
    "alpha",
    "seed",
    "model",
    "width",
    "parameters",
    "examples",
    "epochs",
    "batch",
    "lr",
    "schedule",
    "decay",
    "augment",
    "also",
    "train_error",
    "train_error_mixed",
    "train_error_real",
    "train_error_corrupted",
    "val_error",
    "test_error",
)


def _training(run: Run) -> dict[str, str]:
    recipe, facts = run.recipe, run.facts

    def shown(value: object, form: str = "") -> str:
        return NONE if value is None else format(value, form)

    return {
        "name": run.name,
        "method": method_name(recipe.method),
        "alpha": shown(stated(run, "alpha"), "g"),
        "seed": shown(stated(run, "seed")),
        "model": recipe.model,
        "width": shown(recipe.width),
        "parameters": shown(facts and facts.parameters, ","),
        "examples": shown(train_examples(run), ","),
        "epochs": shown(last_epoch(run) or None),
        "batch": shown(stated(run, "batch_size")),
        "lr": shown(stated(run, "lr"), "g"),
        "schedule": shown(stated(run, "schedule")),
        "decay": shown(stated(run, "weight_decay"), "g"),
        "augment": shown(stated(run, "augment")),
        "also": ", ".join(also(recipe)) or NONE,
        **{column: percent(final(run, column)) for column in TRAINING if "error" in column},
    }


def seeds_table(material: Material) -> Table:
    """The test error of the last epoch over the runs of each family that has several: mean, smallest and largest."""
    rows = []
    for family, names in material.families.items():
        errors = [final(material.runs[name], "test_error") for name in names if name in material.runs]
        if len(errors) > 1 and not any(map(math.isnan, errors)):
            figures = (sum(errors) / len(errors), min(errors), max(errors))
            rows.append([family, str(len(errors)), *map(percent, figures)])
    header = ("Runs of", "Runs", "Mean", "Smallest", "Largest")
    return Table("Test error of the last epoch, over the seeds", header, rows, texts=1)


def results_table(material: Material) -> Table:
    """Every result; columns that say nothing here are left out."""
    results = material.results
    columns = {
        "Role": [ROLES[r.role] for r in results],
        "Source": [r.source or NONE for r in results],
        "Target": [r.target for r in results],
        "Attack": [r.alone if r.source else NONE for r in results],
        "Step": [budget(r.step) if r.step else NONE for r in results],
        "Budget": [_budget(r) for r in results],
        "Median": [length(r.median) for r in results],
        "Error": [percent(r.error) for r in results],
        "[95 %]": [interval(r.low, r.high) for r in results],
        "Rounded": [percent(r.rounded) for r in results],
        "Clean error": [percent(r.clean_error) for r in results],
        "Success": [percent(r.success) for r in results],
        "Largest": [percent(r.share) for r in results],
        "Passes": [passes(r.forward, r.backward) for r in results],
    }
    shown = {name: texts for name, texts in columns.items() if set(texts) != {NONE}}
    # What belongs to two sweeps is one result.
    rows = [list(row) for row in dict.fromkeys(zip(*shown.values(), strict=True))]
    return Table("Every cell of this report", tuple(shown), rows, texts=4, naming=2)


def _budget(result: Result) -> str:
    return "smallest" if result.eps is None else budget(result.eps) if result.eps else "0"


def provenance(material: Material) -> list[tuple[str, str]]:
    """What held when the cells were computed, as terms and their values."""
    cells, facts = material.cells, material.facts
    attacked = [cell for cell in cells if cell.identity.source is not None]

    def several(values: Sequence[object]) -> str:
        return join_names(dict.fromkeys(map(str, values)))

    waited = max(cell.facts.data_wait for cell in cells)
    sizes = several([cell.rows.num_rows for cell in cells])
    return [
        ("Data", f"{facts.data_spec}" + (f": {facts.data_note}" if facts.data_note else "")),
        ("Test examples", f"{sizes}, SHA-256 {several([c.identity.inputs for c in cells])}"),
        ("Classes", ", ".join(facts.classes)),
        ("Cells", f"{len(cells)}, of which {len(attacked)} attacked"),
        ("Loss and labels", several([f"{c.identity.loss}, {c.identity.labels} labels" for c in attacked])),
        ("Precision of the attack", several([_precision(c.identity) for c in attacked])),
        ("Implementation", several([f"{c.identity.impl}, version {c.identity.attack_version}" for c in attacked])),
        ("Batch size", several([_batch_size(c) for c in attacked])),
        ("Attacked on", several([c.facts.device for c in cells])),
        ("Attacked with", several([f"robustmix {c.facts.robustmix}, torch {c.facts.torch}" for c in cells])),
        ("Gathered with", f"robustmix {material.evidence.robustmix}"),
    ] + ([("Waiting for data", f"up to {percent(waited)} of a unit's time")] if waited else [])


def _precision(identity: CellIdentity) -> str:
    return identity.precision.replace("32", "float32") + (", compiled" if identity.compiled else "")


def _batch_size(cell: Cell) -> str:
    asked = cell.facts.halved_from
    return str(cell.identity.batch_size) + (f" (halved from {asked}: memory ran out)" if asked else "")
