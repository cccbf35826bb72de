"""Which runs stand beside which published figure, what is known of them, and their errors by the figure's statistic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from robustmix.comparability import published_method, reasons, same_model
from robustmix.published import Figure, Statistic
from robustmix.report.material import Material
from robustmix.report.result import Result
from robustmix.report.text import (
    final,
    imported,
    interval,
    join_names,
    percent,
    plural,
    stated,
    train_examples,
    unusual,
)
from robustmix.store.runs import Run

# The network of a published table that a run of another one stands beside.
USUAL_MODEL: Final = "preact_resnet18"
MEDIAN_OF: Final = 10


def adversarial(figure: Figure, material: Material) -> list[Result]:
    """The results of the suite's published design beside a figure of an attack, all at one budget.

    At the figure's own budget where there is one and it was made at it, else at the page's.
    """
    suite = material.evidence.suite
    design = suite.published if suite else None
    if design is None:
        return []
    names = design.white if figure.role == "white" else design.targets
    source = material.runs[design.source]
    if figure.role == "transfer" and figure.source_method not in (None, published_method(source.recipe.training)):
        return []
    found = []
    for name in names:
        if not trained_alike(figure, material.runs[name]):
            continue
        crafted = name if figure.role == "white" else source.name
        matching = material.find(figure.role, source=crafted, target=name, attack=figure.attack, plain=True)
        # Of those that differ in how they were computed, the plainest label comes first.
        at = {r.eps: r for r in reversed(matching) if figure.steps in (None, r.steps)}
        best = at.get(figure.eps_255 or 0) or at.get(material.evidence.headline_eps)
        found += [best] if best else []
    return [r for r in found if r.eps == found[0].eps]


def clean(figure: Figure, table: Sequence[Figure], material: Material, *, same_decay: bool = False) -> list[Result]:
    """The clean results of the family whose training is most like that of a figure.

    Args:
        figure: of a clean error.
        table: every figure of its table on this data.
        material: of the report.
        same_decay: whether its weight decay, if stated, has to be the runs' own.
    """
    alike = []
    for names in material.families.values():
        results = [r for r in material.find("clean") if r.target in names and r.target in material.runs]
        run = material.runs[results[0].target] if results else None
        if run and _beside(figure, run, table) and (not same_decay or _same_decay(figure, run)):
            alike.append(results)
    return min(alike, key=lambda results: len(reasons(figure, measured_facts(results, material))), default=[])


def _beside(figure: Figure, run: Run, table: Sequence[Figure]) -> bool:
    """Whether a run stands beside a figure: trained alike, and on its network, or on one that the table has not.

    What a table has copied from another, and is shown for the sake of its own figures, takes the very network.
    """
    if not figure.independent or any(same_model(run.recipe.model, other) for other in table):
        return trained_alike(figure, run) and same_model(run.recipe.model, figure)
    return trained_alike(figure, run) and figure.model == USUAL_MODEL


def trained_alike(figure: Figure, run: Run) -> bool:
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


def _dropout(run: Run) -> float:
    kind, rate = run.recipe.dropped or ("", 0.0)
    return rate if kind == "dropout" else 0.0


def _same_decay(figure: Figure, run: Run) -> bool:
    theirs, ours = figure.recipe.weight_decay, stated(run, "weight_decay")
    return theirs is None or (ours is not None and math.isclose(theirs, ours))


@dataclass(frozen=True)
class Measured:
    """The errors of some results, by one statistic.

    Attributes:
        statistic: which epoch's errors they are.
        errors: one per result, fractions.
        texts: (run, source or None, error, interval or which epochs it is of) per result.
    """

    statistic: Statistic
    errors: tuple[float, ...]
    texts: tuple[tuple[str, str | None, str, str], ...]


def measured(figure: Figure, results: Sequence[Result], material: Material) -> Measured:
    """The errors beside a figure: of clean inputs by its own statistic where every run's history has it.

    The history's errors are on the whole test set. Else those of the last epoch, from the cells.
    """
    if figure.role == "clean" and figure.statistic in ("best-on-test", "median-last-10"):
        found = [_from_history(material.runs[r.target], figure.statistic, material.facts.data) for r in results]
        errors = [one for one in found if one is not None]
        if errors and len(errors) == len(results):
            values = [(r.target, None, percent(error), what) for r, (error, what) in zip(results, errors, strict=True)]
            return Measured(figure.statistic, tuple(error for error, _ in errors), tuple(values))
    texts = [
        (r.target, r.source if r.role == "transfer" else None, percent(r.error), interval(r.low, r.high))
        for r in results
    ]
    return Measured("last", tuple(r.error for r in results), tuple(texts))


def _from_history(run: Run, statistic: Statistic, data: str) -> tuple[float, str] | None:
    """A run's test error by a statistic over its epochs, and in words what it is; None where that is not on record."""
    if imported(run) or run.facts is None or run.facts.data != data or "test_error" not in run.history:
        return None
    errors = run.history["test_error"].to_numpy(float)
    if np.isnan(errors).any() or len(errors) < (MEDIAN_OF if statistic == "median-last-10" else 1):
        return None
    if statistic == "median-last-10":
        return float(np.median(errors[-MEDIAN_OF:])), f"median of the last {MEDIAN_OF} epochs"
    return float(errors.min()), f"best of {plural(len(errors), 'epoch')}"


def measured_facts(results: Sequence[Result], material: Material, statistic: Statistic = "last") -> dict[str, Any]:
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
        "statistic": statistic,
        "epochs": stated(run, "epochs"),
        "train_examples": train_examples(run),
        "train_error": 100 * final(run, "train_error"),
        "eps_255": result.eps,
        "step_255": result.step,
        "steps": result.steps,
        "n": result.n if statistic == "last" else None,
        **{field: stated(run, field) for field in ("alpha", "batch_size", "lr", "weight_decay")},
        "dropout": _dropout(run) or None,
        "label_noise": 100 * recipe.label_noise,
        "label_smoothing": recipe.label_smoothing or None,
        "noise_sd": recipe.noise or None,
        "seeds": [material.runs[r.target].recipe.seed for r in results],
    }
