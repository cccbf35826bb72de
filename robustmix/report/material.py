"""A report's evidence as the page needs it: one result per cell and pair of names, in the order of the page."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from robustmix.report.evidence import Evidence, load, load_cells
from robustmix.report.text import ATTACKS, ROLES, budget, method_name
from robustmix.store.cells import Cell
from robustmix.store.results import results_table
from robustmix.store.runs import Run


@dataclass(frozen=True)
class Result:
    """One row of `robustmix.store.results.results_table`; rates are fractions, lengths in units of 1/255.

    Attributes:
        role: ``clean``, ``white`` or ``transfer``.
        source: run that crafted; None for clean inputs.
        target: run that was scored.
        attack: name in results.
        label: the attack in words, without its budget: ``I-FGSM, 10 steps``.
        norm: of the budget.
        steps: gradients.
        step: length of one.
        eps: budget; 0 for clean inputs.
        n: test examples.
        error: share of them that is classified wrongly.
        low: lower end of its 95 % Wilson interval.
        high: upper end.
        clean_error: the target's error without an attack.
        success: share of the initially correct that is now wrong; None for clean inputs.
        share: largest perturbation as a share of the budget; None for clean inputs.
        forward: passes per example of the unit that the cell was computed in.
        backward: passes per example of the unit that the cell was computed in.
    """

    role: str
    source: str | None
    target: str
    attack: str
    label: str
    norm: str
    steps: int
    step: float
    eps: float
    n: int
    error: float
    low: float
    high: float
    clean_error: float
    success: float | None
    share: float | None
    forward: int
    backward: int

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """One row of the table."""
        return cls(
            role=row["role"],
            source=row["source"] if isinstance(row["source"], str) else None,
            target=row["target"],
            attack=row["attack"],
            label=attack_label(row),
            norm=row["norm"],
            steps=int(row["steps"]),
            step=float(row["step_255"]),
            eps=float(row["eps_255"]),
            n=int(row["n"]),
            error=float(row["error"]),
            low=float(row["error_low"]),
            high=float(row["error_high"]),
            clean_error=float(row["clean_error"]),
            success=_number(row["success"]),
            share=_number(row["delta_max"]),
            forward=int(row["forward"]),
            backward=int(row["backward"]),
        )


@dataclass(frozen=True)
class Material:
    """What a page is rendered from.

    Attributes:
        evidence: of the report.
        runs: by name, in the order of the evidence.
        cells: of the report.
        results: clean, white box, transfer; then by source, attack, budget and target.
    """

    evidence: Evidence
    runs: dict[str, Run]
    cells: tuple[Cell, ...]
    results: tuple[Result, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a report's folder."""
        evidence = load(folder)
        runs = {record.name: record.as_run() for record in evidence.runs}
        cells = load_cells(folder, evidence)
        table = results_table(cells, runs.values())
        rank = {name: number for number, name in enumerate(runs)}
        roles = list(ROLES)

        def order(result: Result) -> tuple[Any, ...]:
            source = rank[result.source] if result.source else -1
            return roles.index(result.role), source, result.label, result.eps, rank[result.target]

        found = (Result.of({str(key): value for key, value in row.items()}) for row in table.to_dict("records"))
        wanted = (
            result
            for result in found
            if result.target in evidence.targets and (result.source is None or result.source in evidence.sources)
        )
        # Cells of several batch sizes have a clean cell each; one is enough to read.
        unique = {(r.role, r.source, r.target, r.label, r.eps): r for r in sorted(wanted, key=order)}
        return cls(evidence, runs, tuple(cells), tuple(unique.values()))

    def find(self, role: str, **criteria: object) -> list[Result]:
        """The results of a role whose fields equal the given values."""
        wanted = criteria.items()
        return [r for r in self.results if r.role == role and all(getattr(r, key) == value for key, value in wanted)]

    @cached_property
    def facts(self) -> Any:
        """What held when the first clean cell was computed."""
        return next(cell.facts for cell in self.cells if cell.identity.source is None)

    @cached_property
    def attacks(self) -> list[str]:
        """The attacks in words, single-step ones first."""
        attacked = [result for result in self.results if result.source]
        return list(dict.fromkeys(r.label for r in sorted(attacked, key=lambda r: (r.steps, r.label))))

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """Names of runs by what sets them apart but the seed, in the order of the evidence.

        A family is called by its method where that is unambiguous, else by its runs' common name.
        """
        recipes: dict[str, set[str]] = {}
        for run in self.runs.values():
            recipes.setdefault(run.recipe.method, set()).add(run.recipe.digest(without_seed=True))
        found: dict[str, list[str]] = {}
        for run in self.runs.values():
            method = run.recipe.method
            name = method_name(method) if len(recipes[method]) == 1 else run.group
            found.setdefault(name, []).append(run.name)
        return found

    @cached_property
    def family_of(self) -> dict[str, str]:
        """The family of each run."""
        return {name: family for family, names in self.families.items() for name in names}

    def headline(self, label: str) -> float | None:
        """The budget of the page's head, if an attack was made at it."""
        budgets = {result.eps for result in self.results if result.label == label}
        return next((eps for eps in budgets if math.isclose(eps, self.evidence.headline_eps)), None)


def attack_label(row: dict[str, Any]) -> str:
    """An attack in words, without its budget; says all that is not usual."""
    name = ATTACKS.get(row["attack"], row["attack"])
    parts = [name]
    if row["attack"] not in ("fgsm", "clean"):
        equal = math.isclose(row["steps"] * row["step_255"], row["eps_255"])
        parts.append(f"{row['steps']} steps" + ("" if equal else f" of {budget(row['step_255'])}"))
    unusual: dict[str, tuple[object, Callable[[Any], str]]] = {
        "norm": ("linf", lambda value: f"norm {value}"),
        "loss": ("ce", lambda value: f"loss {value}"),
        "restarts": (1, lambda value: f"{value} restarts"),
        "labels": ("true", lambda value: f"{value} labels"),
        "precision": ("32", str),
        "impl": ("robustmix", lambda value: f"by {value}"),
    }
    parts += [write(row[key]) for key, (usual, write) in unusual.items() if row[key] != usual]
    return ", ".join(parts)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
