"""From a report's folder to its page."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustmix.report import (
    audit_block,
    bibliography,
    checks,
    comparison,
    effects_view,
    glossary,
    robustness,
    tables,
    words,
)
from robustmix.report.answer import answer, question
from robustmix.report.checklist import checklist
from robustmix.report.claims import claims
from robustmix.report.cost import cost
from robustmix.report.distributions import distributions, scored_first
from robustmix.report.drawing import Drawing, key, lines
from robustmix.report.effects import effects
from robustmix.report.evidence import Evidence
from robustmix.report.figures import eps_curves, transfer_matrices
from robustmix.report.gallery_view import gallery
from robustmix.report.headline import HeadlineTable, headline_tables
from robustmix.report.histories import LOG_FROM, training_curves
from robustmix.report.markup import Script, sort_value
from robustmix.report.material import Material
from robustmix.report.methods_text import paragraphs
from robustmix.report.text import NONE, imported, stated
from robustmix.store.atomic import write_text

INDEX: Final = "index.html"
HERE: Final = Path(__file__).parent
# As many tables as a first screen has room for.
MOST_HEADS: Final = 2
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
# The sections that are there only if what is named behind them says anything.
CONTENTS: Final = (
    ("before", "Before any number", "warnings"),
    ("effects", "Effects", "effects"),
    ("comparison", "Published and measured", ""),
    ("claims", "Claims", "claims"),
    ("curves", "Error against budget", ""),
    ("matrices", "Transfer", ""),
    ("paired", "Two networks", "paired"),
    ("breaking", "Smallest breaking budget", "breaking"),
    ("worst", "Worst case", "worst"),
    ("gallery", "Adversarial examples", ""),
    ("distributions", "How sure", "distributions"),
    ("gradients", "Was there a gradient?", "gradients"),
    ("faster", "Faster crafting", "faster"),
    ("rounded", "Rounded to 8 bits", "rounded"),
    ("results", "All results", ""),
    ("training", "Training", ""),
    ("histories", "Training curves", "histories"),
    ("cost", "Cost", ""),
    ("audit", "Audit", ""),
    ("checklist", "Checklist", ""),
    ("provenance", "Provenance", ""),
    ("methods", "Methods", ""),
    ("bibtex", "BibTeX", ""),
    ("reading", "How to read it", ""),
    ("sources", "Sources", ""),
)


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
    environment.filters["sort_value"] = sort_value
    parts = {
        "name": folder.name,
        "evidence": material.evidence,
        "style": Markup((HERE / "style.css").read_text(encoding="utf-8")),
        "script": Script.read(HERE / "page.js"),
        **_first_screen(material),
        **_compared(material),
        **_figures(material),
        **_trust(material),
        **_training(material),
        **_record(material),
        "gallery": gallery(material, folder),
        "report_command": _report_command(folder.name, material.evidence),
    }
    contents = [(id, text) for id, text, part in CONTENTS if not part or _says_anything(parts[part])]
    text = environment.get_template("page.html.j2").render(**parts, contents=contents)
    page = folder / INDEX
    write_text(page, text)
    return page


def _first_screen(material: Material) -> dict[str, Any]:
    heads, others = _heads(material)
    return {
        "question": question(material),
        "answer": answer(material),
        "heads": heads,
        "other_heads": others,
        "warnings": words.warnings(material),
        "answers": words.answers(material),
        "scope": words.scope(material),
        "audits": audit_block.audit_blocks(material),
        "unaudited": audit_block.unaudited(material),
        "orderings": audit_block.orderings(),
    }


def _heads(material: Material) -> tuple[list[HeadlineTable], list[HeadlineTable]]:
    """The tables of the first screen, of the attacks that publications mean by their names, and all others."""
    found = headline_tables(material)
    plain = {result.label for result in material.results if result.plain}
    first = [table for table in found if table.label in plain] or found
    first = first[:MOST_HEADS]
    return first, [table for table in found if table not in first]


def _compared(material: Material) -> dict[str, Any]:
    found, compared = effects(material), comparison.comparison_tables(material)
    beside = [table for table in compared if table.against]
    apart = [table for table in compared if not table.comparable and table not in beside]
    cited = comparison.cited(compared)
    return {
        "effects": effects_view.effects_table(found),
        "effects_scope": effects_view.effects_scope(found),
        "effects_speak_of_methods": effects_view.speak_of_methods(found),
        "comparisons": [table for table in compared if table not in apart and table not in beside],
        "apart": apart,
        "beside": beside,
        "marks": comparison.marks(compared),
        "sources": cited,
        "claims": claims(material),
        "paired": robustness.paired_tests(material),
        "bibtex": bibliography.bibtex(material, cited),
    }


def _figures(material: Material) -> dict[str, Any]:
    legend = [(name, material.family_of[name], Markup(key(name, line))) for name, line in lines(material).items()]
    return {
        "legend": legend,
        "legend_of_families": [
            (f"{family}: {name}", family, sample) for name, family, sample in legend if name in scored_first(material)
        ],
        "legend_of_runs": [entry for entry in legend if entry[0] in material.runs],
        "curves": _safe(eps_curves(material)),
        "matrices": _safe(transfer_matrices(material)),
        "distributions": _safe(distributions(material)),
        "histories": _safe(training_curves(material)),
        "log_from": LOG_FROM,
        "breaking": [table for table in robustness.breaking_tables(material) if table.rows],
        "worst": robustness.worst_cases(material),
    }


def _trust(material: Material) -> dict[str, Any]:
    items = [[item.what, item.state, item.where] for item in checklist(material)]
    return {
        "gradients": checks.gradients(material),
        "saturated": checks.saturated(material),
        "unrecorded": checks.unrecorded(material),
        "faster": checks.faster(material),
        "rounded": checks.rounded(material),
        "results": tables.results_table(material),
        "checklist": tables.Table(
            "Done, done in part, not done or not applicable", ("Item", "State", "Where, and how"), items, texts=3
        ),
    }


def _training(material: Material) -> dict[str, Any]:
    training = tables.training_rows(material)
    return {
        "training": training,
        "seeds": tables.seeds_table(material),
        "imported": [run.name for run in material.runs.values() if imported(run)],
        "errors": [(key, name) for key, name in ERRORS.items() if key in USUAL_ERRORS or _said(training, key)],
        "shows_also": _said(training, "also"),
        "cost": cost(material),
    }


def _record(material: Material) -> dict[str, Any]:
    return {
        "facts": tables.provenance(material),
        "runs": list(material.runs.values()),
        "models": list(material.models.values()),
        "stated": stated,
        "audit_commands": list(dict.fromkeys(record.command for record in material.evidence.audits)),
        "methods": paragraphs(material),
        "terms": glossary.terms(material),
    }


def _report_command(name: str, evidence: Evidence) -> str:
    suite = ["--suite", evidence.suite_name] if evidence.suite_name else []
    return shlex.join(["robustmix", "report", name, *suite, "--data", evidence.data])


def _says_anything(part: object) -> bool:
    return bool(part.rows if isinstance(part, tables.Table) else part)


def _said(rows: list[dict[str, str]], key: str) -> bool:
    """Whether a column of a table says anything."""
    return any(row[key] != NONE for row in rows)


def _safe(drawings: Iterable[Drawing]) -> list[tuple[str, Markup]]:
    """Figures whose texts matplotlib and `figures` have escaped."""
    return [(drawing.title, Markup(drawing.svg)) for drawing in drawings]
