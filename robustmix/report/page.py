"""From a report's folder to its page."""

import shlex
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustmix.report import checks, comparison, glossary, robustness, tables, words
from robustmix.report.evidence import Evidence
from robustmix.report.figures import Drawing, eps_curves, key, lines, transfer_matrices
from robustmix.report.histories import LOG_FROM, training_curves
from robustmix.report.material import Material
from robustmix.report.text import NONE, budget, stated
from robustmix.store.atomic import write_text

INDEX: Final = "index.html"
HERE: Final = Path(__file__).parent
# Errors of the last epoch, by column of a history, as the table of the runs heads them; some are always shown.
ERRORS: Final = {
    "train_error": "Training error",
    "train_error_real": "… real labels",
    "train_error_corrupted": "… corrupted labels",
    "train_error_mixed": "… as mixed",
    "val_error": "Validation error",
    "test_error": "Test error",
}
USUAL_ERRORS: Final = ("train_error", "train_error_mixed", "test_error")


def render(folder: Path) -> Path:
    """Write a report's page from its own folder: the same folder gives the same bytes.

    Args:
        folder: with ``evidence.json`` and ``cells/``, as `robustmix.report.evidence.collect` makes it.

    Returns:
        The page.

    Raises:
        StoreError: a file is missing, damaged or cannot be written.
        SpecError: a field of ``evidence.json`` is wrong.
    """
    material = Material.read(folder)
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    compared = comparison.comparison_tables(material)
    legend = [(name, material.family_of[name], Markup(key(name, line))) for name, line in lines(material).items()]
    training = tables.training_rows(material)
    text = environment.get_template("page.html.j2").render(
        evidence=material.evidence,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        warnings=words.warnings(material),
        answers=words.answers(material),
        scope=words.scope(material),
        comparisons=compared,
        marks=comparison.marks(compared),
        sources=comparison.cited(compared),
        families=list(material.families),
        means=[
            (f"{label} at {budget(eps)}", tables.headline_table(material, label))
            for label in material.attacks
            if (eps := material.headline(label)) is not None
        ],
        legend=legend,
        legend_of_runs=[entry for entry in legend if entry[0] in material.runs],
        curves=_safe(eps_curves(material)),
        matrices=_safe(transfer_matrices(material)),
        breaking=[table for table in robustness.breaking_tables(material) if table.rows],
        worst=robustness.worst_cases(material),
        gradients=checks.gradients(material),
        saturated=checks.saturated(material),
        faster=checks.faster(material),
        rounded=checks.rounded(material),
        results=tables.results_table(material),
        training=training,
        seeds=tables.seeds_table(material),
        errors=[(key, name) for key, name in ERRORS.items() if key in USUAL_ERRORS or _said(training, key)],
        shows_also=_said(training, "also"),
        histories=_safe(training_curves(material)),
        log_from=LOG_FROM,
        facts=tables.provenance(material),
        runs=list(material.runs.values()),
        models=list(material.models.values()),
        stated=stated,
        terms=glossary.terms(material),
        name=folder.name,
        report_command=_report_command(folder.name, material.evidence),
    )
    page = folder / INDEX
    write_text(page, text)
    return page


def _report_command(name: str, evidence: Evidence) -> str:
    suite = ["--suite", evidence.suite_name] if evidence.suite_name else []
    return shlex.join(["robustmix", "report", name, *suite, "--data", evidence.data])


def _said(rows: list[dict[str, str]], key: str) -> bool:
    """Whether a column of a table says anything."""
    return any(row[key] != NONE for row in rows)


def _safe(drawings: list[Drawing]) -> list[tuple[str, Markup]]:
    """Figures whose texts matplotlib and `figures` have escaped."""
    return [(drawing.title, Markup(drawing.svg)) for drawing in drawings]
