"""A report's evidence as the page needs it, with what is worked out of it once for all parts of the page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from robustmix.report.evidence import Evidence, load, load_cells
from robustmix.report.result import Result, read_results
from robustmix.report.text import method_name
from robustmix.spec.names import ATTACKS
from robustmix.store.cells import Cell
from robustmix.store.choosing import by_sweep, crafted, id_of, preferred
from robustmix.store.results import Bearer, ForeignModel, attack_columns, clean_cell, results_table, wrong
from robustmix.store.runs import Run
from robustmix.store.sweeps import Sweep, attack_id, sweeps

T = TypeVar("T")


@dataclass(frozen=True)
class Material:
    """What a page is rendered from.

    Attributes:
        evidence: of the report.
        runs: by name, in the order of the evidence.
        models: of others, by name.
        cells: of the report.
        known: the sweeps of every attack, by `robustmix.store.sweeps.attack_id`.
        results: clean, white box, transfer; then by source, attack, budget and target. A cell that belongs to two
            sweeps is there once for each.
        derived: what functions under `once` have made of it.
    """

    evidence: Evidence
    runs: dict[str, Run]
    models: dict[str, ForeignModel]
    cells: tuple[Cell, ...]
    known: dict[str, tuple[Sweep, ...]]
    results: tuple[Result, ...]
    derived: dict[Callable[["Material"], Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a report's folder.

        Raises:
            StoreError: a file is missing or damaged.
            SpecError: a field of ``evidence.json`` is wrong.
        """
        evidence = load(folder)
        return cls.of(evidence, load_cells(folder, evidence))

    @classmethod
    def of(cls, evidence: Evidence, cells: Sequence[Cell]) -> Self:
        """A report's evidence with its cells."""
        runs = {record.name: record.as_run() for record in evidence.runs}
        models = {record.name: ForeignModel(record.name, record.weights) for record in evidence.models}
        known = sweeps(attack_columns(cell.identity) for cell in cells)
        found = read_results(results_table(cells, [*runs.values(), *models.values()]), known, [*runs, *models])
        sources = (None, *evidence.sources)
        shown = tuple(result for result in found if result.target in evidence.targets and result.source in sources)
        return cls(evidence, runs, models, tuple(cells), known, shown)

    def find(self, role: str, **criteria: object) -> list[Result]:
        """The results of a role whose fields equal the given values."""
        wanted = criteria.items()
        return [r for r in self.results if r.role == role and all(getattr(r, key) == value for key, value in wanted)]

    @cached_property
    def facts(self) -> Any:
        """What held when the first clean cell was computed."""
        return next(cell.facts for cell in self.cells if cell.identity.source is None)

    @cached_property
    def names(self) -> list[str]:
        """Of all runs, then of all models of others."""
        return [*self.runs, *self.models]

    @cached_property
    def attacks(self) -> list[str]:
        """The attacks that have a budget in words, simple ones first; of one made faster too the exact one."""
        place: dict[str, tuple[int, int, str]] = {}
        for r in self.results:
            if r.source and r.eps is not None and r.label not in self._faster:
                kind = ATTACKS.index(r.attack)
                place[r.label] = max(place.get(r.label, (0, 0, "")), (kind, r.steps, r.label))
        return sorted(place, key=lambda label: place[label])

    @cached_property
    def _faster(self) -> set[str]:
        """The attacks in bf16 or on compiled models that were also made in float32 without compiling."""
        alone: dict[str, bool] = {}
        for cell in self.cells:
            exact = exact_id(cell)
            is_twin = exact != id_of(cell) and exact in self.known
            for sweep in self.known[id_of(cell)]:
                alone[sweep.label] = alone.get(sweep.label, False) or not is_twin
        return {label for label, is_alone in alone.items() if not is_alone}

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """Names of runs by what sets them apart but the seed, in the order of the evidence.

        A family is called by its way of training where that is unambiguous, else by its runs' common name. A model of
        somebody else's is a family of its own.
        """
        recipes: dict[str, set[str]] = {}
        for run in self.runs.values():
            recipes.setdefault(run.recipe.training, set()).add(run.recipe.digest(without_seed=True))
        found: dict[str, list[str]] = {}
        for run in self.runs.values():
            training = run.recipe.training
            name = method_name(training) if len(recipes[training]) == 1 else run.group
            found.setdefault(name, []).append(run.name)
        return found | {name: [name] for name in self.models}

    @cached_property
    def family_of(self) -> dict[str, str]:
        """The family of each run and model."""
        return {name: family for family, names in self.families.items() for name in names}

    @cached_property
    def base(self) -> list[str]:
        """The runs that the others are held against: the first family of plain ERM; empty if there is none."""
        plain = (names for names in self.families.values() if names[0] in self.runs)
        return next((names for names in plain if self.runs[names[0]].recipe.training == "erm"), [])

    @cached_property
    def base_family(self) -> str | None:
        """The family of `base`."""
        return self.family_of[self.base[0]] if self.base else None

    @cached_property
    def main_family(self) -> str | None:
        """The family that the page's first sentence is about: the published design's, else mixup, else the first.

        It is one of runs that is not the base; None if there is none.
        """
        others = [family for family in self.families if family not in self.models and family != self.base_family]
        suite = self.evidence.suite
        design = suite.published.white if suite and suite.published else ()
        chosen = [self.family_of[name] for name in design if self.family_of[name] in others]
        mixup = [family for family in others if self.runs[self.families[family][0]].recipe.training == "mixup"]
        return next(iter([*chosen, *mixup, *others]), None)

    def scored(self, family: str) -> list[str]:
        """The networks of a family that are scored."""
        return [name for name in self.families[family] if name in self.evidence.targets]

    def crafting(self, family: str) -> list[str]:
        """The networks of a family that craft."""
        return [name for name in self.families[family] if name in self.evidence.sources]

    def headline(self, label: str) -> float | None:
        """The budget at which an attack is shown where only one is: the page's own, if it was made at it.

        The page's own is mostly one in L-infinity. An attack in another norm that has not been made at it is shown at
        the middle one of its budgets.
        """
        budgets = {result.eps: result.norm for result in self.results if result.label == label and result.eps}
        wanted = self.evidence.headline_eps
        if wanted and (same := [eps for eps in budgets if math.isclose(eps, wanted)]):
            return same[0]
        others = sorted(eps for eps, norm in budgets.items() if norm != "linf")
        return others[(len(others) - 1) // 2] if others else None

    @cached_property
    def by_key(self) -> dict[str, Cell]:
        """The cells by their keys."""
        return {cell.key: cell for cell in self.cells}

    def clean(self, cell: Cell) -> Cell:
        """The cell of the same target without an attack."""
        return clean_cell(cell, self.by_key)

    @cached_property
    def by_names(self) -> dict[tuple[str | None, str, str, float | None], Cell]:
        """The cells by source (None for clean inputs), target, attack in words and budget; one of each."""
        bearers: dict[str, list[str]] = {}
        for name, weights in self.weights.items():
            bearers.setdefault(weights, []).append(name)
        found: dict[tuple[str | None, str, str, float | None], Cell] = {}
        for cell in sorted(preferred(self.cells), key=lambda cell: cell.identity.compiled):
            identity = cell.identity
            clean = identity.source is None
            labels = ["clean"] if clean else [sweep.label for sweep in self.known[id_of(cell)]]
            sources: Sequence[str | None] = [None] if clean else bearers.get(identity.source or "", [])
            for source in sources:
                for target in bearers.get(identity.target, []):
                    for label in labels:
                        found.setdefault((source, target, label, identity.eps_255), cell)
        return found

    def errs(self, source: str | None, target: str, label: str, eps: float | None) -> np.ndarray | None:
        """Whether a target errs on each example, bool [N]; None where no such cell is among the report's.

        Args:
            source: run or model that crafted; None for clean inputs.
            target: run or model that is scored.
            label: the attack in words, without its budget; ``clean`` for clean inputs.
            eps: budget in units of 1/255; 0 for clean inputs.
        """
        cell = self.by_names.get((source, target, label, eps))
        return None if cell is None else wrong(cell)

    @cached_property
    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of each run and model."""
        bearers: list[Bearer] = [*self.runs.values(), *self.models.values()]
        return {bearer.name: bearer.weights or "" for bearer in bearers}

    def white(self, name: str) -> dict[str, Cell]:
        """The white-box cells of a run or model, by `robustmix.store.choosing.id_of`."""
        return crafted(self.cells, self.weights[name], self.weights[name])

    def swept(self, name: str) -> dict[str, list[Cell]]:
        """The white-box cells of a run or model by attack in words, budgets ascending."""
        return {sweep.label: cells for sweep, cells in by_sweep(self.white(name).values(), self.known).items()}

    def label(self, cell: Cell) -> str:
        """The attack of a cell in words, without its budget."""
        return self.known[id_of(cell)][0].label


def exact_id(cell: Cell) -> str:
    """The id that a cell's attack has in float32 without compiling."""
    return attack_id({**attack_columns(cell.identity), "precision": "32", "compiled": False})


def once(make: Callable[[Material], T]) -> Callable[[Material], T]:
    """A function of a material that is worked out at its first call: several parts of a page rest on it.

    Args:
        make: the same material always gives the same; what it gives must not be changed.
    """

    @wraps(make)
    def kept(material: Material) -> T:
        if make not in material.derived:
            material.derived[make] = make(material)
        found: T = material.derived[make]
        return found

    return kept
