"""Which cells of a workspace a report is made of.

Without torch the data cannot be loaded to compute their digest, so cells are matched by the weights of runs, the attack
and the data set's name; all cells of one report are on the same test examples.
"""

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robustmix.errors import StoreError
from robustmix.spec.attack import FOREIGN_STEPS, ITERATED, MINIMUM_NORM, AttackSpec, Course
from robustmix.spec.suite import Suite
from robustmix.spec.validation import validate
from robustmix.store.cells import Cell, CellIdentity
from robustmix.store.choosing import id_of, is_of, one_data_set, one_test_set, preferred
from robustmix.store.results import Bearer, attack_columns
from robustmix.store.sweeps import Sweep, exactly, sweeps
from robustmix.units import format_budget


@dataclass(frozen=True)
class Choice:
    """The cells of a report and what they have in common.

    Attributes:
        data: the data set's spec.
        like: the well-known data set that it resembles.
        sources: names of the runs and models that craft, in order.
        targets: names of those that are scored, in order.
        bearers: all of them.
        cells: the attacked and the clean ones.
        commands: that compute them.
    """

    data: str
    like: str | None
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    bearers: tuple[Bearer, ...]
    cells: tuple[Cell, ...]
    commands: tuple[str, ...]


def choose_suite(
    cells: Iterable[Cell],
    suite: Suite,
    suite_name: str | None,
    bearers: dict[str, Bearer],
    sources: Sequence[str],
    targets: Sequence[str],
    data: str,
    like: str | None,
    inputs: str | None,
) -> Choice:
    """The cells that a suite asks for.

    Args:
        cells: of the workspace.
        suite: with its attacks, budgets and limit.
        suite_name: of the suite.
        bearers: its sources and targets by name.
        sources: names of the runs and models that craft.
        targets: names of those that are scored.
        data: the data set's spec.
        like: the well-known data set that it resembles, where no cell says it.
        inputs: SHA-256 of the test examples, if it is known.

    Raises:
        StoreError: a cell is missing; names the command that computes it.
        SpecError: the data set was attacked with different test examples.
    """
    weights = {bearer.weights for bearer in bearers.values()}
    ours = [cell for cell in cells if cell.identity.target in weights]
    if inputs is not None:
        ours = [cell for cell in ours if cell.identity.inputs == inputs]
    else:
        ours = one_test_set([cell for cell in ours if is_of(cell, data)], data, suite.limit)
    like = ours[0].facts.like if ours else like

    wanted: list[tuple[str | None, AttackSpec | None, Course, str]] = []
    wanted += [(None, None, Course(0, 0, 0), target) for target in targets]
    wanted += [
        (source, spec, course, target)
        for source in sources
        for spec in suite.attack
        for course in spec.courses(like)
        for target in targets
    ]
    chosen: list[Cell] = []
    missing: list[str] = []
    by_pair: dict[tuple[str | None, str], list[Cell]] = {}
    for cell in preferred(ours):
        by_pair.setdefault((cell.identity.source, cell.identity.target), []).append(cell)
    for source, spec, course, target in wanted:
        pair = (bearers[source].weights if source else None, bearers[target].weights or "")
        found = [cell for cell in by_pair.get(pair, []) if _matches(cell.identity, spec, course)]
        if not found:
            missing.append(_describe(source, spec, course, target))
        elif source is not None:  # each attacked cell brings the clean one that belongs to it
            chosen.append(found[0])
    commands = _suite_commands(suite_name, suite, sources, targets, data, like)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        command = " && ".join(commands)
        raise StoreError(f"no cell for {missing[0]} on {data}{more}; compute what is missing with: {command}")
    every = _with_clean(chosen, ours)
    return Choice(data, like, tuple(sources), tuple(targets), tuple(bearers.values()), every, commands)


def choose_unbound(cells: Iterable[Cell], bearers: Sequence[Bearer], data: str | None, inputs: str | None) -> Choice:
    """Every cell between runs of a workspace and models of others, on one data set.

    Raises:
        SpecError: there are several data sets to choose from, or different test examples.
        StoreError: there is no such cell.
    """
    weights = {bearer.weights for bearer in bearers if bearer.weights}
    attacked = [
        cell
        for cell in cells
        if cell.identity.source in weights
        and cell.identity.target in weights
        # Made before they were refused, at bf16's border in place of the network's.
        and not (cell.identity.attack in MINIMUM_NORM and cell.identity.precision != "32")
    ]
    if not attacked:
        raise StoreError("there are no cells to report; make some with: robustmix attack --source RUN --target RUN")
    data, ours = one_data_set(attacked, data)
    ours = [c for c in ours if c.identity.inputs == inputs] if inputs else one_test_set(ours, data)
    best: dict[str, Cell] = {}
    for cell in preferred(ours):
        fields = cell.identity.model_dump(exclude={"batch_size", "attack_version"})
        best.setdefault(json.dumps(fields, sort_keys=True), cell)
    chosen = list(best.values())
    crafted = {cell.identity.source for cell in chosen}
    scored = {cell.identity.target for cell in chosen}
    sources = tuple(bearer.name for bearer in bearers if bearer.weights in crafted)
    targets = tuple(bearer.name for bearer in bearers if bearer.weights in scored)
    involved = tuple(bearer for bearer in bearers if bearer.weights in crafted | scored)
    return Choice(
        data,
        ours[0].facts.like,
        sources,
        targets,
        involved,
        _with_clean(chosen, cells),
        _commands(chosen, data, sources, targets),
    )


def _matches(identity: CellIdentity, spec: AttackSpec | None, course: Course) -> bool:
    if spec is None:
        return True
    return (
        identity.attack == spec.name
        and (identity.eps_255 is None) == (course.eps is None)
        and math.isclose(identity.eps_255 or 0, course.eps or 0)
        and identity.norm == spec.metric
        and identity.steps == course.steps
        and math.isclose(identity.step_255, course.step)
        and identity.options == spec.options
        and all(
            getattr(identity, key) == getattr(spec, key)
            for key in ("loss", "restarts", "labels", "seed", "precision", "impl", "compiled")
        )
    )


def _with_clean(chosen: list[Cell], cells: Iterable[Cell]) -> tuple[Cell, ...]:
    by_key = {cell.key: cell for cell in cells}
    clean = [by_key.get(cell.identity.clean().key()) for cell in chosen]
    return tuple({cell.key: cell for cell in [*chosen, *filter(None, clean)]}.values())


def _describe(source: str | None, spec: AttackSpec | None, course: Course, target: str) -> str:
    if source is None or spec is None:
        return f"{target} on clean inputs"
    steps = f" of {course.steps} steps" if course.steps > 1 else ""
    budget = f" at {format_budget(course.eps)}/255" if course.eps is not None else ""
    return f"{target} under {spec.name}{steps}{budget} crafted on {source}"


def _commands(cells: Sequence[Cell], data: str, sources: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The commands that compute attacked cells: one per attack, rule for its steps and batch size."""
    known = sweeps(attack_columns(cell.identity) for cell in cells)
    groups: dict[tuple[Sweep, int, int], list[CellIdentity]] = {}
    for cell in cells:
        group = (known[id_of(cell)][0], cell.identity.batch_size, cell.rows.num_rows)
        groups.setdefault(group, []).append(cell.identity)
    commands = []
    for (sweep, batch_size, examples), identities in sorted(groups.items(), key=lambda item: repr(item[0])):
        spec = _spec(identities[0], sweep, {one.eps_255 for one in identities if one.eps_255 is not None})
        words = _command(spec, sources, targets, data)
        normalize = next((cell.facts.normalize for cell in cells if cell.facts.normalize), None)
        words += ["--normalize", normalize] if normalize else []
        commands.append(shlex.join([*words, "--limit", str(examples), "--batch-size", str(batch_size)]))
    return tuple(commands)


def _spec(identity: CellIdentity, sweep: Sweep, budgets: set[float]) -> AttackSpec:
    """The attack that cells were made by, with those fields set that say more than what is usual."""
    usual = AttackSpec(name=identity.attack)  # type: ignore[arg-type]
    own = {key: getattr(identity, key) for key in ("loss", "restarts", "labels", "seed", "precision", "impl")}
    own |= {"norm": identity.norm, "compiled": identity.compiled, **identity.options}
    defaults = usual.model_dump() | {"norm": usual.metric, **usual.options}
    fields: dict[str, object] = {"eps": [exactly(eps) for eps in sorted(budgets)]} if budgets else {}
    if identity.attack in ITERATED or sweep.steps != FOREIGN_STEPS.get(identity.attack, sweep.steps):
        fields |= {key: value for key, value in (("steps", sweep.steps), ("step", sweep.step)) if value is not None}
    fields |= {key: value for key, value in own.items() if value != defaults[key]}
    return validate(AttackSpec, {"name": identity.attack, **fields})


def _command(spec: AttackSpec, sources: Sequence[str], targets: Sequence[str], data: str) -> list[str]:
    """The words of the command that makes an attack."""
    # Behind the @ stands the digest that tells apart what once bore the same name.
    own, other = ([name.partition("@")[0] for name in names] for names in (sources, targets))
    words = ["robustmix", "attack", "--data", data, "--source", *own, "--target", *other, "--attack", spec.name]
    flags = {"step": "--step-size", "compiled": "--compile"}
    for key in AttackSpec.model_fields:
        value = getattr(spec, key)
        if key == "name" or key not in spec.model_fields_set or value is None or value is False:
            continue
        words.append(flags.get(key, f"--{key}"))
        if key == "eps":
            words += map(exactly, value)
        elif key != "compiled":
            is_length = key == "step" and isinstance(value, float)
            words.append(exactly(value) if is_length else str(value).removesuffix(".0"))
    return words


def _suite_commands(
    suite_name: str | None, suite: Suite, sources: Sequence[str], targets: Sequence[str], data: str, like: str | None
) -> tuple[str, ...]:
    limit = [] if suite.limit is None else ["--limit", str(suite.limit)]
    if suite_name is not None:
        return (shlex.join(["robustmix", "attack", "--suite", suite_name, "--data", data, *limit]),)
    more = [*(["--normalize", suite.normalize] if suite.normalize else []), *limit]
    return tuple(shlex.join([*_command(spec.at(like), sources, targets, data), *more]) for spec in suite.attack)
