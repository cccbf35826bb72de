"""One number of a page: a row of the table of results, once for each sweep that it belongs to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import pandas as pd

from robustmix.report.text import ROLES
from robustmix.spec.titles import attack_label
from robustmix.store.sweeps import Sweep, attack_id

# What publications mean by an attack's name alone.
PLAIN: Final = {"norm": "linf", "loss": "ce", "restarts": 1, "labels": "true", "precision": "32"}


@dataclass(frozen=True)
class Result:
    """One row of `robustmix.store.results.results_table`; rates are fractions, lengths in units of 1/255.

    Attributes:
        role: ``clean``, ``white`` or ``transfer``.
        source: run or model that crafted; None for clean inputs.
        target: run or model that was scored.
        attack: name in results.
        label: the attack in words, without its budget, as its sweep is called: ``I-FGSM, 10 steps``.
        alone: the same as this cell alone would be called: ``I-FGSM, 5 steps of 1/255``.
        plain: whether it is the attack that publications mean by its name.
        norm: of the budget.
        steps: gradients, or a foreign attack's iterations.
        step: length of one; 0 if there is none.
        eps: budget; 0 for clean inputs, None for an attack that looks for the smallest perturbation.
        n: test examples.
        error: share of them that is classified wrongly.
        low: lower end of its 95 % Wilson interval.
        high: upper end.
        rounded: error on the images rounded to 8 bits; None if none were kept.
        clean_error: the target's error without an attack.
        success: share of the initially correct that is now wrong; None for clean inputs.
        share: largest perturbation as a share of the budget; None where there is no budget.
        median: length of the perturbation that breaks half of the examples, infinite if none does; None for attacks
            with a budget and under transfer.
        forward: passes per example of the unit that the cell was computed in.
        backward: passes per example of the unit that the cell was computed in.
    """

    role: str
    source: str | None
    target: str
    attack: str
    label: str
    alone: str
    plain: bool
    norm: str
    steps: int
    step: float
    eps: float | None
    n: int
    error: float
    low: float
    high: float
    rounded: float | None
    clean_error: float
    success: float | None
    share: float | None
    median: float | None
    forward: float
    backward: float

    @classmethod
    def of(cls, row: dict[str, Any], label: str) -> Self:
        """One row of the table."""
        return cls(
            role=row["role"],
            source=row["source"] if isinstance(row["source"], str) else None,
            target=row["target"],
            attack=row["attack"],
            label=label,
            alone=attack_label(row),
            plain=all(row[key] == usual for key, usual in PLAIN.items()),
            norm=row["norm"],
            steps=int(row["steps"]),
            step=float(row["step_255"]),
            eps=_number(row["eps_255"]),
            n=int(row["n"]),
            error=float(row["error"]),
            low=float(row["error_low"]),
            high=float(row["error_high"]),
            rounded=_number(row["error_uint8"]),
            clean_error=float(row["clean_error"]),
            success=_number(row["success"]),
            share=_number(row["delta_max"]),
            median=_number(row["norm_median_255"]),
            forward=float(row["forward"]),
            backward=float(row["backward"]),
        )


def read_results(table: pd.DataFrame, known: Mapping[str, Sequence[Sweep]], names: Sequence[str]) -> list[Result]:
    """Read a table of results in the order of a page: clean, white box, transfer; then by source, attack and budget.

    Of rows that a page could not tell apart the first is kept: cells of several batch sizes have a clean cell each,
    compiled models another.

    Args:
        table: of `robustmix.store.results.results_table`.
        known: the sweeps of every attack in it, by `robustmix.store.sweeps.attack_id`; a row is there once for each.
        names: of all runs and models in it, in the order of the page.
    """
    rank = {name: number for number, name in enumerate(names)}
    roles = list(ROLES)

    def order(result: Result) -> tuple[Any, ...]:
        source = rank[result.source] if result.source else -1
        place = roles.index(result.role), source, result.label, result.eps or 0, rank[result.target]
        return *place, result.alone

    unique: dict[tuple[object, ...], Result] = {}
    for result in sorted(_read(table, known), key=order):
        unique.setdefault((result.role, result.source, result.target, result.label, result.eps), result)
    return list(unique.values())


def _read(table: pd.DataFrame, known: Mapping[str, Sequence[Sweep]]) -> Iterator[Result]:
    for record in table.to_dict("records"):
        row = {str(key): value for key, value in record.items()}
        for sweep in known[attack_id(row)]:
            yield Result.of(row, sweep.label if row["role"] != "clean" else "clean")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
