"""What a suite asks for, and what of it is missing in the workspace."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from robustmix.checkpoints import read_spec
from robustmix.data import Dataset, TensorSplit, load_data
from robustmix.errors import EvaluationError, SpecError
from robustmix.progress import say
from robustmix.spec.suite import AttackSpec, Suite
from robustmix.store.cells import CellIdentity, cell_path, clean_identity
from robustmix.store.runs import WEIGHTS, Run, common_data, suite_runs
from robustmix.store.workspace import Workspace
from robustmix.units import format_budget

DEFAULT_BATCH: Final = 256


@dataclass(frozen=True)
class Unit:
    """One source under one attack: the least that is computed at once.

    Attributes:
        source: the run that crafts; None for clean predictions.
        attack: with its budgets; None for clean predictions.
        cells: the missing cells, as (budget in units of 1/255, target, identity), budgets ascending.
    """

    source: Run | None
    attack: AttackSpec | None
    cells: tuple[tuple[float, Run, CellIdentity], ...]

    @property
    def budgets(self) -> list[float]:
        """The budgets (units of 1/255) that a cell is missing at."""
        return sorted({eps for eps, _, _ in self.cells})

    @property
    def backward(self) -> int:
        """Gradients per example: the first is shared by all budgets."""
        return 1 + len(self.budgets) * (self.attack.iterations - 1) if self.attack else 0

    @property
    def forward(self) -> int:
        """Forward passes per example, those of the scoring included."""
        return self.backward + len(self.cells)

    def at(self, eps: float) -> list[tuple[Run, CellIdentity]]:
        """The missing cells of one budget (units of 1/255)."""
        return [(target, identity) for budget, target, identity in self.cells if budget == eps]

    @property
    def title(self) -> str:
        """What is computed, in a few words."""
        if self.source is None or self.attack is None:
            return "clean predictions"
        return f"{self.attack.name} from {self.source.name}"


@dataclass(frozen=True)
class Plan:
    """What a suite asks for and what of it is missing.

    Attributes:
        data: the data set.
        inputs: the test examples in use.
        runs: sources and targets by name.
        wanted: the identities of all cells.
        units: the missing work.
        batch_size: examples per batch.
    """

    data: Dataset
    inputs: TensorSplit
    runs: dict[str, Run]
    wanted: tuple[CellIdentity, ...]
    units: tuple[Unit, ...]
    batch_size: int


def make_plan(
    suite: Suite, place: Workspace, *, batch_size: int = DEFAULT_BATCH, data_root: str | Path | None = None
) -> Plan:
    """Resolve names, data and budgets, and find out which cells are missing.

    Raises:
        SpecError: a name matches no run, or a budget cannot be reached.
        CheckpointError: a run is missing or unfinished.
        EvaluationError: a model does not fit the data.
    """
    if batch_size < 1:
        raise SpecError(f"batch size {batch_size} must be at least 1")
    sources, targets, runs = suite_runs(place, suite)
    data = load_data(suite.data or common_data([runs[name] for name in sources]), data_root)
    for run in runs.values():
        _check_fit(run, data, place)
    inputs = data.test.first(suite.limit)
    _warn(suite, data, inputs)

    digest = inputs.digest()
    wanted: dict[str, CellIdentity] = {}
    units = []

    def unit(source: Run | None, attack: AttackSpec | None, budgets: Sequence[float]) -> None:
        cells = []
        for eps in budgets:
            for target in (runs[name] for name in targets):
                identity = _identity(source, target, attack, eps, digest, batch_size)
                if identity.key() not in wanted and not cell_path(place.cells, identity).exists():
                    cells.append((eps, target, identity))
                wanted[identity.key()] = identity
        if cells:
            units.append(Unit(source, attack, tuple(cells)))

    unit(None, None, [0])
    for name in sources:
        for spec in suite.attack:
            attack = spec.at(data.like)
            unit(runs[name], attack, attack.eps or ())
    return Plan(data, inputs, runs, tuple(wanted.values()), tuple(units), batch_size)


def _identity(
    source: Run | None, target: Run, attack: AttackSpec | None, eps: float, inputs: str, batch_size: int
) -> CellIdentity:
    assert target.weights is not None
    if source is None or attack is None:
        return clean_identity(target.weights, inputs, batch_size)
    return CellIdentity(
        source=source.weights,
        target=target.weights,
        inputs=inputs,
        attack=attack.name,
        eps_255=eps,
        steps=attack.iterations,
        step_255=attack.step_at(eps),
        batch_size=batch_size,
    )


def _check_fit(run: Run, data: Dataset, place: Workspace) -> None:
    spec = read_spec(place.run(run.name) / WEIGHTS)
    if len(spec.classes) != len(data.classes):
        raise EvaluationError(
            f"run {run.name!r} tells {len(spec.classes)} classes apart, {data.spec} has {len(data.classes)}: attack it "
            f"on what it was trained on (--data {run.recipe.data})"
        )
    if spec.classes != data.classes:
        if set(spec.classes) == set(data.classes):
            raise EvaluationError(
                f"run {run.name!r} knows the classes of {data.spec} in another order ({', '.join(spec.classes)}): "
                "labels would be wrong"
            )
        say(f"warning: run {run.name!r} calls its classes {_few(spec.classes)}, {data.spec} {_few(data.classes)}")
    if spec.shape != data.shape:
        raise EvaluationError(
            f"run {run.name!r} takes images {list(spec.shape)}, {data.spec} has {list(data.shape)}: attack it on what "
            f"it was trained on (--data {run.recipe.data})"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _warn(suite: Suite, data: Dataset, inputs: TensorSplit) -> None:
    levels = inputs.images.unique().int()
    if len(levels) < 2:
        raise EvaluationError(f"{data.spec}: all test pixels have the same value; there is nothing to attack")
    grey_level = int(levels.diff().min())
    budgets = {eps for spec in suite.attack for eps in spec.at(data.like).eps or ()}
    below = [format_budget(eps) for eps in sorted(budgets) if eps < grey_level]
    if below:
        say(f"warning: eps {', '.join(below)} is below one grey level of {data.name}, which is {grey_level}/255")
