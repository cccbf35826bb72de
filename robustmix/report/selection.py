"""Which cells of a workspace a report is made of.

Without torch the data cannot be loaded to compute their digest, so cells are matched by the weights of runs, the attack
and the data set's name; all cells of one report are on the same test examples.
"""

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robustmix.errors import SpecError, StoreError
from robustmix.spec.suite import AttackSpec, Suite
from robustmix.store.cells import Cell, CellIdentity
from robustmix.store.runs import Run
from robustmix.units import format_budget

# What a suite leaves at its default in every cell's identity.
PLAIN = {
    "restarts": 1,
    "norm": "linf",
    "loss": "ce",
    "labels": "true",
    "seed": 0,
    "precision": "32",
    "impl": "robustmix",
}


@dataclass(frozen=True)
class Choice:
    """The cells of a report and what they have in common.

    Attributes:
        data: the data set's spec.
        like: the well-known data set that it resembles.
        sources: names of the runs that craft, in order.
        targets: names of the runs that are scored, in order.
        runs: all of them.
        cells: the attacked and the clean ones.
        commands: that compute them.
    """

    data: str
    like: str | None
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]
    commands: tuple[str, ...]


def choose_suite(
    cells: Iterable[Cell],
    suite: Suite,
    suite_name: str | None,
    runs: dict[str, Run],
    sources: list[str],
    targets: list[str],
    data: str,
    inputs: str | None,
) -> Choice:
    """The cells that a suite asks for.

    Args:
        cells: of the workspace.
        suite: with its attacks, budgets and limit.
        suite_name: of the suite.
        runs: its sources and targets by name.
        sources: names of the runs that craft.
        targets: names of the runs that are scored.
        data: the data set's spec.
        inputs: SHA-256 of the test examples, if it is known.

    Raises:
        StoreError: a cell is missing; names the command that computes it.
        SpecError: the data set was attacked with different test examples.
    """
    weights = {run.weights for run in runs.values()}
    ours = [cell for cell in cells if cell.identity.target in weights]
    ours = _one_test_set(ours, data, suite.limit, inputs)
    like = ours[0].facts.like if ours else next((run.facts.like for run in runs.values() if run.facts), None)
    command = _attack_command(suite_name, suite, sources, targets, data)

    wanted: list[tuple[Run | None, AttackSpec | None, float, Run]] = []
    wanted += [(None, None, 0.0, runs[target]) for target in targets]
    wanted += [
        (runs[source], spec, eps, runs[target])
        for source in sources
        for spec in suite.attack
        for eps in spec.at(like).eps or ()
        for target in targets
    ]
    chosen: list[Cell] = []
    missing: list[str] = []
    by_pair: dict[tuple[str | None, str], list[Cell]] = {}
    for cell in _preferred(ours):
        by_pair.setdefault((cell.identity.source, cell.identity.target), []).append(cell)
    for source, spec, eps, target in wanted:
        pair = (source.weights if source else None, target.weights or "")
        found = [cell for cell in by_pair.get(pair, []) if _matches(cell.identity, spec, eps)]
        if not found:
            missing.append(_describe(source, spec, eps, target))
        elif source is not None:  # each attacked cell brings the clean one that belongs to it
            chosen.append(found[0])
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise StoreError(f"no cell for {missing[0]} on {data}{more}; compute what is missing with: {command}")
    every = _with_clean(chosen, ours)
    return Choice(data, like, tuple(sources), tuple(targets), tuple(runs.values()), every, (command,))


def choose_unbound(cells: Iterable[Cell], runs: Sequence[Run], data: str | None, inputs: str | None) -> Choice:
    """Every cell between runs of a workspace, on one data set.

    Raises:
        SpecError: there are several data sets to choose from, or different test examples.
        StoreError: there is no such cell.
    """
    weights = {run.weights for run in runs if run.weights}
    attacked = [cell for cell in cells if cell.identity.source in weights and cell.identity.target in weights]
    specs = sorted({cell.facts.data_spec for cell in attacked})
    if data is not None and attacked and not any(_is_of(cell, data) for cell in attacked):
        raise SpecError(f"--data {data!r}: the workspace has cells of {', '.join(specs)}")
    if data is None and len(specs) > 1:
        raise SpecError(f"the workspace has cells of several data sets: choose with --data from {', '.join(specs)}")
    ours = [cell for cell in attacked if data is None or _is_of(cell, data)]
    if not ours:
        raise StoreError("there are no cells to report; make some with: robustmix attack --source RUN --target RUN")
    data = data or specs[0]
    ours = _one_test_set(ours, data, None, inputs)
    best: dict[tuple[object, ...], Cell] = {}
    for cell in _preferred(ours):
        fields = cell.identity.model_dump(exclude={"batch_size", "attack_version"})
        best.setdefault(tuple(fields.values()), cell)
    chosen = list(best.values())
    crafted = {cell.identity.source for cell in chosen}
    scored = {cell.identity.target for cell in chosen}
    sources = tuple(run.name for run in runs if run.weights in crafted)
    targets = tuple(run.name for run in runs if run.weights in scored)
    involved = tuple(run for run in runs if run.weights in crafted | scored)
    return Choice(
        data,
        ours[0].facts.like,
        sources,
        targets,
        involved,
        _with_clean(chosen, cells),
        _commands(chosen, data, sources, targets),
    )


def _is_of(cell: Cell, data: str) -> bool:
    return data in (cell.facts.data_spec, cell.facts.data)


def _one_test_set(cells: list[Cell], data: str, limit: int | None, inputs: str | None) -> list[Cell]:
    """The cells on one set of test examples: the given one, that of ``limit`` examples, else the largest."""
    if inputs is not None:
        return [cell for cell in cells if cell.identity.inputs == inputs]
    cells = [cell for cell in cells if _is_of(cell, data)]
    sizes = {cell.identity.inputs: cell.rows.num_rows for cell in cells}
    # A limit beyond the test set's size takes all of it.
    if limit is not None and max(sizes.values(), default=0) >= limit:
        sizes = {digest: size for digest, size in sizes.items() if size == limit}
    largest = sorted(digest for digest, size in sizes.items() if size == max(sizes.values()))
    if len(largest) > 1:
        digests = ", ".join(digest[:12] for digest in largest)
        raise SpecError(
            f"{data} was attacked with {len(largest)} different sets of {sizes[largest[0]]} test examples "
            f"(inputs {digests}): its files have changed in between; delete the cells of the old ones"
        )
    return [cell for cell in cells if cell.identity.inputs in largest]


def _preferred(cells: list[Cell]) -> list[Cell]:
    """Cells in the order in which to choose among those that differ by batch size or attack version only."""
    sizes = [cell.identity.batch_size for cell in cells]
    common = max(sorted(set(sizes), reverse=True), key=sizes.count, default=0)

    def order(cell: Cell) -> tuple[bool, int, int, str]:
        identity = cell.identity
        return identity.batch_size != common, -identity.attack_version, -identity.batch_size, cell.key

    return sorted(cells, key=order)


def _matches(identity: CellIdentity, spec: AttackSpec | None, eps: float) -> bool:
    if spec is None:
        return True
    return (
        identity.attack == spec.name
        and identity.steps == spec.iterations
        and math.isclose(identity.eps_255, eps)
        and math.isclose(identity.step_255, spec.step_at(eps))
        and all(getattr(identity, key) == value for key, value in PLAIN.items())
    )


def _with_clean(chosen: list[Cell], cells: Iterable[Cell]) -> tuple[Cell, ...]:
    by_key = {cell.key: cell for cell in cells}
    clean = [by_key.get(cell.identity.clean().key()) for cell in chosen]
    return tuple({cell.key: cell for cell in [*chosen, *filter(None, clean)]}.values())


def _describe(source: Run | None, spec: AttackSpec | None, eps: float, target: Run) -> str:
    if source is None or spec is None:
        return f"{target.name} on clean inputs"
    steps = f" of {spec.iterations} steps" if spec.iterations > 1 else ""
    return f"{target.name} under {spec.name}{steps} at {format_budget(eps)}/255 crafted on {source.name}"


def _commands(cells: Sequence[Cell], data: str, sources: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The commands that compute attacked cells: one per attack, step rule and batch size."""
    groups: dict[tuple[str, int, float | None, int, int], set[float]] = {}
    for cell in cells:
        at = cell.identity
        equal = math.isclose(at.step_255, at.eps_255 / at.steps)
        group = (at.attack, at.steps, None if equal else at.step_255, at.batch_size, cell.rows.num_rows)
        groups.setdefault(group, set()).add(at.eps_255)
    commands = []
    for (attack, steps, step, batch_size, examples), budgets in sorted(groups.items(), key=repr):
        words = ["robustmix", "attack", "--data", data, "--source", *sources, "--target", *targets, "--attack", attack]
        words += ["--eps", *map(_option, sorted(budgets))]
        words += ["--steps", str(steps)] if steps > 1 else []
        words += ["--step-size", _option(step)] if step is not None else []
        commands.append(shlex.join([*words, "--limit", str(examples), "--batch-size", str(batch_size)]))
    return tuple(commands)


def _attack_command(suite_name: str | None, suite: Suite, sources: list[str], targets: list[str], data: str) -> str:
    flags = [f"--data {shlex.quote(data)}"]
    if suite_name is not None:
        flags.insert(0, f"--suite {shlex.quote(suite_name)}")
    else:
        flags += [f"--source {shlex.join(sources)}", f"--target {shlex.join(targets)}"]
        flags.append(f"--attack {' '.join(sorted({spec.name for spec in suite.attack}))}")
        budgets = sorted({eps for spec in suite.attack for eps in spec.eps or ()})
        flags += [f"--eps {' '.join(map(_option, budgets))}"] if budgets else []
    if suite.limit is not None:
        flags.append(f"--limit {suite.limit}")
    return f"robustmix attack {' '.join(flags)}"


def _option(eps: float) -> str:
    exact = str(eps).removesuffix(".0")
    return exact if eps >= 1 else f"{exact}/255"
