"""The page's tables of measured figures as plain rows; the template only lays them out."""

from collections.abc import Sequence

from robustmix.report.material import Material
from robustmix.report.text import NONE, ROLES, budget, interval, join_names, method_name, percent, plural, spread
from robustmix.store.runs import Run


def headline_table(material: Material, label: str) -> list[tuple[str, list[tuple[str, str, str] | None]]]:
    """Rows of family x family means at the headline budget: (source, [(mean, range, number of pairs) per family])."""
    eps = material.headline(label)
    rows: list[tuple[str, list[tuple[str, str, str] | None]]] = []
    for source, crafters in {"no attack": None, "itself (white box)": None, **material.families}.items():
        role = "transfer" if crafters else "white" if "box" in source else "clean"
        at = {"eps": 0.0} if role == "clean" else {"eps": eps, "label": label}
        results = [r for r in material.find(role, **at) if crafters is None or r.source in crafters]
        cells = []
        for family in material.families:
            errors = [r.error for r in results if material.family_of[r.target] == family]
            noun = "pair" if crafters else "run"
            mean = sum(errors) / len(errors) if errors else 0
            cells.append((percent(mean), spread(errors), plural(len(errors), noun)) if errors else None)
        if any(cells):
            rows.append((f"a run of {source}" if crafters else source, cells))
    return rows


def training_rows(material: Material) -> list[dict[str, str]]:
    """A row per run: what it was asked to be and how it ended."""
    return [_training(run) for run in material.runs.values()]


def _training(run: Run) -> dict[str, str]:
    recipe, facts = run.recipe, run.facts

    def final(column: str) -> str:
        return percent(run.final(column)) if column in run.history else NONE

    return {
        "name": run.name,
        "method": method_name(recipe.method),
        "alpha": NONE if recipe.alpha is None else f"{recipe.alpha:g}",
        "seed": str(recipe.seed),
        "model": recipe.model,
        "width": str(recipe.width),
        "parameters": f"{facts.parameters:,}" if facts else NONE,
        "examples": f"{facts.train_examples:,}" if facts else NONE,
        "epochs": str(len(run.history)),
        "batch": str(recipe.batch_size),
        "lr": f"{recipe.lr:g}",
        "schedule": recipe.schedule,
        "decay": f"{recipe.weight_decay:g}",
        "augment": recipe.augment,
        "train_error": final("train_error"),
        "train_error_mixed": final("train_error_mixed"),
        "test_error": final("test_error"),
    }


def result_rows(material: Material) -> list[list[str]]:
    """Every result as texts, in the order of the columns of the page's last table."""
    return [
        [
            ROLES[r.role],
            r.source or NONE,
            r.target,
            r.label.split(",")[0] if r.source else NONE,
            str(r.steps) if r.source else NONE,
            budget(r.step) if r.source else NONE,
            budget(r.eps) if r.source else "0",
            percent(r.error),
            interval(r.low, r.high),
            percent(r.clean_error),
            percent(r.success),
            percent(r.share),
            f"{r.forward} + {r.backward}",
        ]
        for r in material.results
    ]


def provenance(material: Material) -> list[tuple[str, str]]:
    """What held when the cells were computed, as terms and their values."""
    cells, facts = material.cells, material.facts
    attacked = [cell for cell in cells if cell.identity.source is not None]

    def several(values: Sequence[object]) -> str:
        return join_names(dict.fromkeys(map(str, values)))

    sizes = several([cell.rows.num_rows for cell in cells])
    return [
        ("Data", f"{facts.data_spec}" + (f": {facts.data_note}" if facts.data_note else "")),
        ("Test examples", f"{sizes}, SHA-256 {several([c.identity.inputs for c in cells])}"),
        ("Classes", ", ".join(facts.classes)),
        ("Cells", f"{len(cells)}, of which {len(attacked)} attacked"),
        ("Loss and labels", several([f"{c.identity.loss}, {c.identity.labels} labels" for c in attacked])),
        ("Precision of the attack", several([c.identity.precision.replace("32", "float32") for c in attacked])),
        ("Implementation", several([f"{c.identity.impl}, version {c.identity.attack_version}" for c in attacked])),
        ("Batch size", several([c.identity.batch_size for c in attacked])),
        ("Attacked on", several([c.facts.device for c in cells])),
        ("Attacked with", several([f"robustmix {c.facts.robustmix}, torch {c.facts.torch}" for c in cells])),
        ("Gathered with", f"robustmix {material.evidence.robustmix}"),
    ]
