"""Published figures and what was measured beside them, with the reasons why they may differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from robustmix.comparability import level, published_method, reasons, same_model
from robustmix.published import CERTAINTY, Figure, Source, Statistic, experiments, find, sources
from robustmix.report.material import Material, Result
from robustmix.report.text import (
    NBSP,
    ROLES,
    budget,
    final,
    interval,
    join_names,
    method_name,
    percent,
    stated,
    train_examples,
    unusual,
)
from robustmix.spec.attack import ATTACK_TITLES
from robustmix.store.runs import Run

# Published tables of clean errors that a page shows beside its own; the others repeat them or mix in other things.
CLEAN_EXPERIMENTS: Final = ("ali-clean", "zhang-fig3a", "zhang-fig3a-corrected", "zhang-table1-90", "zhang-table1-200")
# Tables that vary one thing after the other: a page shows of them what none of the above has.
ABLATIONS: Final = ("liang-table1", "liang-table1-imagenet", "zhang-table5", "zhang-corrupted")
# The network of those tables that a run of another one stands beside.
USUAL_MODEL: Final = "preact_resnet18"
STATISTICS: Final[dict[Statistic, str]] = {
    "last": "last epoch",
    "best-on-test": "best on test",
    "median-last-10": "median of last 10",
    "unknown": "not stated",
}


@dataclass(frozen=True)
class Comparison:
    """One published figure and what was measured beside it.

    Attributes:
        role: and attack, in words.
        method: of the scored network.
        measured: (run, source or None, error, interval), as text; empty if nothing was measured.
        published: value in per cent, with a mark if it does not reproduce.
        certainty: a key of `robustmix.published.CERTAINTY`.
        statistic: which epoch's error it is.
        reproduces: whether it does.
        level: how far the two can be compared; None if nothing was measured.
        reasons: why they may differ.
    """

    role: str
    method: str
    measured: tuple[tuple[str, str | None, str, str], ...]
    published: str
    certainty: str
    statistic: str
    reproduces: bool
    level: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonTable:
    """The figures of one published table.

    Attributes:
        id: of the experiment.
        title: source and place in it.
        subject: published data set and model.
        note: of the experiment.
        rows: one per figure.
        shared: reasons that hold for every row, and stand in none of them.
    """

    id: str
    title: str
    subject: str
    note: str
    rows: tuple[Comparison, ...]
    shared: tuple[str, ...]


def comparison_tables(material: Material) -> list[ComparisonTable]:
    """The published designs of the suite, then clean errors, each beside what was measured."""
    suite = material.evidence.suite
    names = suite.published.experiments if suite and suite.published else ()
    found = [_table(name, _adversarial(name, material)) for name in names]
    found += [_table(name, _clean(name, material)) for name in (*CLEAN_EXPERIMENTS, *ABLATIONS)]
    return [table for table in found if table.rows]


def cited(tables: Sequence[ComparisonTable]) -> list[Source]:
    """The sources of the figures that the page shows."""
    known = experiments()
    keys = dict.fromkeys(known[table.id].source for table in tables)
    return [sources()[key] for key in keys]


def citation(source: Source) -> str:
    """A source in a few words: ``Zhang et al. 2018``."""
    authors = source.authors.split(", ")
    who = authors[0].split()[-1] + (" et al." if len(authors) > 1 else "")
    if source.authors == "not recorded":
        return source.title.split("(")[0].strip()
    return f"{who} {source.year}" if source.year else f"{who}, {source.title}"


def _table(name: str, rows: Sequence[tuple[Figure, Comparison]]) -> ComparisonTable:
    experiment = experiments()[name]
    source = sources()[experiment.source]
    compared = [set(row.reasons) for _, row in rows if row.level]
    shared = set.intersection(*compared) if compared else set()
    first: tuple[str, ...] = next((row.reasons for _, row in rows if row.level), ())
    return ComparisonTable(
        id=name,
        title=f"{citation(source)}, {experiment.where}",
        subject=", ".join(dict.fromkeys(f"{figure.data}, {figure.model}" for figure, _ in rows)),
        note=experiment.note,
        rows=tuple(_without(row, shared) for _, row in rows),
        shared=tuple(reason for reason in first if reason in shared),
    )


def _without(row: Comparison, shared: set[str]) -> Comparison:
    return replace(row, reasons=tuple(reason for reason in row.reasons if reason not in shared))


def _adversarial(name: str, material: Material) -> list[tuple[Figure, Comparison]]:
    suite = material.evidence.suite
    assert suite is not None
    design = suite.published
    assert design is not None
    found = []
    for figure in experiments()[name].figures:
        if figure.metric != "top1_error" or figure.role == "clean":
            continue
        names = design.white if figure.role == "white" else design.targets
        runs = [material.runs[run] for run in names if _trained_alike(figure, material.runs[run])]
        source = material.runs[design.source]
        if figure.role == "transfer" and figure.source_method not in (None, published_method(source.recipe.training)):
            runs = []
        results = []
        for run in runs:
            crafted = run.name if figure.role == "white" else source.name
            matching = material.find(figure.role, source=crafted, target=run.name, attack=figure.attack, plain=True)
            # Of those that differ in how they were computed, the plainest label comes first.
            at = {r.eps: r for r in reversed(matching) if figure.steps in (None, r.steps)}
            best = at.get(figure.eps_255 or 0) or at.get(material.evidence.headline_eps)
            results += [best] if best else []
        results = [r for r in results if r.eps == results[0].eps]
        found.append((figure, _row(figure, results, material)))
    order = list(dict.fromkeys((figure.role, figure.attack) for figure, _ in found))
    return sorted(found, key=lambda pair: order.index((pair[0].role, pair[0].attack)))


def _clean(name: str, material: Material) -> list[tuple[Figure, Comparison]]:
    """The figures of one table whose way of training is here, each beside the runs that are most like its own."""
    data = {material.facts.data, material.facts.like}
    figures = [figure for figure in find(experiment=name, role="clean", metric="top1_error") if figure.data in data]
    if name in ABLATIONS:
        shown = {_kind(figure) for usual in CLEAN_EXPERIMENTS for figure in find(experiment=usual, role="clean")}
        figures = [figure for figure in figures if _kind(figure) not in shown]
    found = []
    for figure in figures:
        alike = []
        for names in material.families.values():
            results = [r for r in material.find("clean") if r.target in names and r.target in material.runs]
            if results and _beside(figure, material.runs[results[0].target], figures):
                alike.append(results)
        if name in ABLATIONS:
            alike = [results for results in alike if _same_decay(figure, material.runs[results[0].target])]
        if alike:
            closest = min(alike, key=lambda results: len(reasons(figure, measured_facts(results, material))))
            found.append((figure, _row(figure, closest, material)))
    return found


def _beside(figure: Figure, run: Run, figures: Sequence[Figure]) -> bool:
    """Whether a run stands beside a figure: trained alike, and on its network, or on one that the table has not."""
    if any(same_model(run.recipe.model, other) for other in figures):
        return _trained_alike(figure, run) and same_model(run.recipe.model, figure)
    return _trained_alike(figure, run) and figure.model == USUAL_MODEL


def _trained_alike(figure: Figure, run: Run) -> bool:
    """Whether a run was trained in the way of a figure, with as much label noise, smoothing, noise and dropout."""
    recipe, theirs = run.recipe, figure.recipe
    amounts = (
        (100 * recipe.label_noise, theirs.label_noise),
        (recipe.label_smoothing, theirs.label_smoothing),
        (recipe.noise, theirs.noise_sd),
        # Where a source does not say how much was dropped, any run that drops stands beside it.
        (_dropout(run), _dropout(run) if theirs.dropout is None else theirs.dropout),
    )
    return published_method(recipe.training) == figure.method and all(
        math.isclose(here, there or 0, abs_tol=1e-9) for here, there in amounts
    )


def _kind(figure: Figure) -> tuple[str, float | None, float | None]:
    return figure.method, figure.recipe.label_noise, figure.recipe.weight_decay


def _dropout(run: Run) -> float:
    kind, rate = run.recipe.dropped or ("", 0.0)
    return rate if kind == "dropout" else 0.0


def _same_decay(figure: Figure, run: Run) -> bool:
    theirs, ours = figure.recipe.weight_decay, stated(run, "weight_decay")
    return theirs is None or (ours is not None and math.isclose(theirs, ours))


def _row(figure: Figure, results: Sequence[Result], material: Material) -> Comparison:
    facts = measured_facts(results, material) if results else {}
    at = f", {budget(results[0].eps or 0)}" if results and figure.role != "clean" else ""
    attack = f" {ATTACK_TITLES.get(figure.attack, figure.attack)}" if figure.attack else " error"
    return Comparison(
        role=f"{ROLES[figure.role]}{attack}{at}",
        method=method_name(figure.method),
        measured=tuple(
            (r.target, r.source if r.role == "transfer" else None, percent(r.error), interval(r.low, r.high))
            for r in results
        ),
        published=_published(figure),
        certainty=figure.certainty,
        statistic=STATISTICS[figure.statistic],
        reproduces=figure.reproduces,
        level=level(figure, facts) if results else None,
        reasons=tuple(reasons(figure, facts)) if results else (),
    )


def _published(figure: Figure) -> str:
    """The published error in per cent, with the decimals that the source prints."""
    decimals = max(1, len(figure.reported.partition(".")[2]))
    return f"{figure.value:.{decimals}f}{NBSP}%"


def measured_facts(results: Sequence[Result], material: Material) -> dict[str, Any]:
    """What `robustmix.comparability.reasons` must know of the cells beside one figure; their runs share a recipe."""
    result = results[0]
    run = material.runs[result.target]
    recipe = run.recipe
    source = material.runs[result.source].recipe.training if result.source else None
    return {
        "data": material.facts.data,
        "like": material.facts.like,
        "data_note": material.facts.data_note,
        "model": recipe.model,
        "width": recipe.width,
        "method": recipe.training,
        "also": join_names(words) if (words := unusual(recipe)) else None,
        "metric": "top1_error",
        "role": result.role,
        "attack": result.attack if result.source else None,
        "norm": result.norm if result.source else None,
        "source_method": source if result.role == "transfer" else None,
        "statistic": "last",
        "epochs": stated(run, "epochs"),
        "train_examples": train_examples(run),
        "train_error": 100 * final(run, "train_error"),
        "eps_255": result.eps,
        "step_255": result.step,
        "steps": result.steps,
        "n": result.n,
        **{field: stated(run, field) for field in ("alpha", "batch_size", "lr", "weight_decay")},
        "dropout": _dropout(run) or None,
        "label_noise": 100 * recipe.label_noise,
        "label_smoothing": recipe.label_smoothing or None,
        "noise_sd": recipe.noise or None,
        "seeds": [material.runs[r.target].recipe.seed for r in results],
    }


def marks(tables: Sequence[ComparisonTable]) -> list[tuple[str, str]]:
    """The certainty marks that the tables use, and what they mean."""
    used = {row.certainty for table in tables for row in table.rows}
    return [(mark, meaning) for mark, meaning in CERTAINTY.items() if mark in used]
