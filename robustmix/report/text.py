"""How the page writes numbers and names."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from robustmix.spec.recipe import Recipe
from robustmix.store.runs import Run
from robustmix.units import format_budget

METHODS: Final = {"erm": "ERM"}
# What `robustmix.spec.recipe.Recipe.training` adds to a method.
EXTRAS: Final = {
    "dropout": "dropout",
    "dropconnect": "DropConnect",
    "stochastic-depth": "stochastic depth",
    "swapout": "swapout",
    "smoothing": "label smoothing",
    "noise": "noise",
    "pgd": "PGD training at",
    "label-noise": "label noise",
}
# Fields of a recipe that no column shows and no method is named after, in words, where they are not the default.
UNUSUAL: Final = {
    "lam": "lambda from {}",
    "lam_per": "lambda per {}",
    "lam_labels": "the labels' lambda from {}",
    "mix": "only {} mixed",
    "same_class": "partners of the same class",
    "nearest": "partners among the {} nearest",
    "correct_lam": "labels by the share of pixels",
    "layers": "mixed at stages {}",
    "rate": "rate {:g}",
    "momentum": "momentum {:g}",
    "nesterov": "Nesterov",
    "precision": "{}",
    "sync_batch_norm": "batch norm over all devices",
    "val": "{:,} images held out",
}
ROLES: Final = {"clean": "clean", "white": "white box", "transfer": "transfer"}
NONE: Final = "–"
# Between a number and its unit, so that no line breaks there.
NBSP: Final = "\N{NO-BREAK SPACE}"
# As many runs as one sentence can name.
MOST_NAMED: Final = 4


def percent(share: float | None) -> str:
    """A share in per cent with one decimal: ``32.2 %``; a dash if there is none."""
    return NONE if share is None or share != share else f"{100 * share:.1f}{NBSP}%"


def interval(low: float, high: float) -> str:
    """An interval of shares in per cent: ``[27.6, 37.2]``."""
    # Plus 0, lest what rounds to nothing keeps its sign.
    return f"[{round(100 * low, 1) + 0:.1f},{NBSP}{round(100 * high, 1) + 0:.1f}]"


def spread(values: Sequence[float]) -> str:
    """The range of shares in per cent: ``27.6 to 37.2``; nothing for a single one."""
    return f"{100 * min(values):.1f} to {100 * max(values):.1f}" if len(values) > 1 else ""


def budget(eps: float) -> str:
    """A budget or a step in units of 1/255: ``4/255``."""
    return f"{format_budget(eps)}/255"


def length(value: float | None) -> str:
    """A length in units of 1/255; a dash if there is none, and in words if nothing is long enough."""
    return NONE if value is None else "none long enough" if math.isinf(value) else budget(value)


def span(low: float, high: float) -> str:
    """Where a budget lies that a sweep has bounded: ``2 to 4``; ``above 8``; ``0`` for no attack at all."""
    if high == 0:
        return "0"
    return f"above {format_budget(low)}" if math.isinf(high) else f"{format_budget(low)} to {format_budget(high)}"


def signed_span(low: float, high: float) -> str:
    """Where a difference of budgets lies: ``-1 to +3``; infinite ends in words."""
    ends = ["anything" if math.isinf(end) else f"{end:+.4g}" for end in (low, high)]
    return " to ".join(ends)


def probability(p: float) -> str:
    """A p value: ``0.031``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points: ``+0.4``."""
    # Plus 0, lest what rounds to nothing keeps its sign.
    return f"{round(100 * difference, 1) + 0:+.1f}"


def amount(difference: float) -> str:
    """A difference of two shares as a comparative: ``12.3 points less``; ``as often`` where it rounds to nothing."""
    size = f"{100 * abs(difference):.1f}"
    return "as often" if size == "0.0" else f"{size} points {'less' if difference < 0 else 'more'}"


def range_of(difference: float, low: float, high: float) -> str:
    """The interval of a difference as `amount` reads it: of ``12.3 points less`` ``[8.1, 16.5]``."""
    less = amount(difference).endswith("less")
    return interval(-high, -low) if less else interval(low, high)


def passes(forward: float, backward: float) -> str:
    """Forward and backward passes per example: ``11 + 10``."""
    return f"{forward:.4g} + {backward:.4g}"


def method_name(training: str) -> str:
    """A way of training as it is written: ``ERM``, ``mixup``, ``ERM, label smoothing 0.1``.

    Args:
        training: a method's name, or what `robustmix.spec.recipe.Recipe.training` makes of one.
    """
    method, *extras = training.split("+")
    words = [METHODS.get(method, method)]
    for extra in extras:
        kind, amount = re.fullmatch(r"([a-z-]+)-(.*)", extra).groups()  # type: ignore[union-attr]
        words.append(f"{EXTRAS[kind]} {amount}{'/255' if kind == 'pgd' else ''}")
    return ", ".join(words)


def also(recipe: Recipe) -> list[str]:
    """What sets a training apart and has no column of its own, in words: ``label smoothing 0.1``, ``Nesterov``."""
    eps = recipe.adversarial_eps
    kind, rate = recipe.dropped or ("", 0.0)
    found = [f"{EXTRAS[kind.replace('_', '-')]} {rate:g}"] if kind else []
    found += [f"label smoothing {recipe.label_smoothing:g}"] if recipe.label_smoothing else []
    found += [f"Gaussian noise {recipe.noise:g}"] if recipe.noise else []
    found += [f"PGD training at {budget(eps)} in {plural(recipe.adversarial_steps, 'step')}"] if eps else []
    found += [f"{100 * recipe.label_noise:g}{NBSP}% of the labels at random"] if recipe.label_noise else []
    found += unusual(recipe)
    if recipe.milestones:
        found.append(f"learning rate / 10 after {join_names(recipe.milestones.split(','))} epochs")
    if recipe.warmup:
        found.append(f"warm-up from {recipe.warmup_lr:g} over {plural(recipe.warmup, 'epoch')}")
    return found


def unusual(recipe: Recipe) -> list[str]:
    """The part of it that no method is named after and that publications do not do unless they say so."""
    set_fields = {field: getattr(recipe, field) for field in UNUSUAL}
    defaults = type(recipe).model_fields
    return [UNUSUAL[field].format(value) for field, value in set_fields.items() if value != defaults[field].default]


def imported(run: Run) -> bool:
    """Whether another program trained a run, so that of its recipe only that is known which was said at the import."""
    return bool(run.facts and run.facts.imported_from)


def stated(run: Run, field: str) -> Any:
    """A field of a run's recipe; None where another program trained it and nobody said."""
    return getattr(run.recipe, field) if not imported(run) or field in run.recipe.model_fields_set else None


def train_examples(run: Run) -> int | None:
    """How many images a run was trained on; None where that is not on record."""
    return run.facts.train_examples if run.facts and not imported(run) else None


def last_epoch(run: Run) -> int:
    """How many epochs a run was trained for; 0 for an imported one of which nobody said."""
    return int(run.history["epoch"].iloc[-1]) if len(run.history) else 0


def final(run: Run, column: str) -> float:
    """A figure of a run's last epoch; NaN where its history has none."""
    return run.final(column) if column in run.history else math.nan


def named(names: Sequence[str]) -> str:
    """Runs or models by name, as many of them as one sentence can name."""
    shown, more = names[:MOST_NAMED], len(names) - MOST_NAMED
    return join_names([*shown, f"{more} more"] if more > 0 else shown)


def join_names(names: Iterable[str]) -> str:
    """Names as a phrase: ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, noun: str) -> str:
    """A number and its noun: ``1 run``, ``1,797 images``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
