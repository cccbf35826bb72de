"""``robustmix attack``."""

from typing import TYPE_CHECKING, Annotated

from robustmix.cli.options import Flag, Machine, Place, Several
from robustmix.errors import SpecError
from robustmix.spec.names import ALIASES, ATTACKS, attack_name, unknown
from robustmix.spec.suite import AttackSpec, Suite, load_suite
from robustmix.spec.validation import validate
from robustmix.store.workspace import Workspace
from robustmix.units import echo_budget, format_budget, parse_budget

if TYPE_CHECKING:
    import torch

    from robustmix.planning import Plan

DEFAULTS = Place()
MACHINE = Machine()


def attack(
    *,
    source: Annotated[list[str] | None, Several] = None,
    target: Annotated[list[str] | None, Several] = None,
    attack: Annotated[list[str] | None, Several] = None,
    eps: Annotated[list[str] | None, Several] = None,
    steps: int | None = None,
    step_size: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    suite: str | None = None,
    dry_run: Flag = False,
    machine: Machine = MACHINE,
    place: Place = DEFAULTS,
) -> None:
    """Attack every target with examples crafted on every source, and print the errors.

    Examples are crafted once per source and attack; a target that is its own source is attacked in the white box.
    What was computed before is not computed again.

    Args:
        source: Runs that craft, names or globs.
        target: Runs that are scored, names or globs [default: the sources].
        attack: fgsm, ifgsm (also called bim) [default: both].
        eps: Budgets in L-infinity, in units of 1/255: 4, or 0.5/255 for half of one [default: the data set's sweep].
        steps: Iterations of ifgsm [default: 10].
        step_size: Length of an iteration in units of 1/255 [default: eps / steps].
        data: What to attack on [default: what the sources were trained on].
        limit: Attack the first N test examples only.
        batch_size: Examples per batch.
        suite: Take attacks, sources and targets from a suite's name or file.
        dry_run: Only say what would be computed, and how long it would take.
    """
    workspace = place.enter()
    wanted = _suite_on_top(suite, workspace, source, target, data, limit, attack, eps, steps, step_size)
    from robustmix.cli.tables import print_results
    from robustmix.device import pick_device
    from robustmix.evaluation import compute, planned_results
    from robustmix.planning import make_plan
    from robustmix.progress import say

    plan = make_plan(wanted, workspace, batch_size=batch_size, data_root=machine.data_root)
    where = pick_device(machine.device)
    for budget in sorted({identity.eps_255 for identity in plan.wanted if identity.eps_255}):
        say(f"eps {echo_budget(budget)}")
    if dry_run:
        _print_plan(plan, workspace, where)
        return
    compute(plan, workspace, where)
    results = planned_results(plan, workspace)
    print_results(results)
    forward = sum(unit.forward for unit in plan.units)
    backward = sum(unit.backward for unit in plan.units)
    say(f"computed now: {forward} forward and {backward} backward passes per example, in {len(plan.units)} units")


def _suite_on_top(
    suite: str | None,
    workspace: Workspace,
    source: list[str] | None,
    target: list[str] | None,
    data: str | None,
    limit: int | None,
    attack: list[str] | None,
    eps: list[str] | None,
    steps: int | None,
    step_size: str | None,
) -> Suite:
    """The suite that the options describe, or the named one with the options that may stand beside it."""
    on_top = {
        key: value
        for key, value in {"sources": source, "targets": target, "data": data, "limit": limit}.items()
        if value is not None
    }
    if suite:
        own = {"--attack": attack, "--eps": eps, "--steps": steps, "--step-size": step_size}
        if clash := [flag for flag, value in own.items() if value is not None]:
            raise SpecError(f"{clash[0]} and --suite exclude each other: the suite names its attacks")
        base = load_suite(suite, workspace.root)
        return validate(Suite, {**base.model_dump(exclude_unset=True), **on_top}, "attack")
    if not source:
        raise SpecError("--source is missing: name the runs that craft, or a --suite; 'robustmix ls' lists the runs")
    budgets = None if eps is None else [_budget("--eps", text) for text in eps]
    step = None if step_size is None else _budget("--step-size", step_size)
    names = list(dict.fromkeys(str(attack_name(name)) for name in attack or ATTACKS))
    if strange := [name for name in names if name not in ATTACKS]:
        raise SpecError(unknown("attack", strange[0], [*ATTACKS, *ALIASES]))
    if names == ["fgsm"] and (steps is not None or step is not None):
        raise SpecError("--steps and --step-size belong to ifgsm; fgsm takes one full step")
    iterated = {"steps": steps, "step": step}
    attacks = [
        validate(AttackSpec, {"name": name, "eps": budgets, **(iterated if name == "ifgsm" else {})}) for name in names
    ]
    return validate(Suite, {"version": 1, "title": "attack", "attack": attacks, **on_top})


def _budget(flag: str, text: str) -> str:
    try:
        return f"{parse_budget(text):.17g}/255"
    except SpecError as error:
        raise SpecError(f"{flag}: {error}") from None


def _print_plan(plan: "Plan", workspace: Workspace, device: "torch.device") -> None:
    from robustmix.cli.tables import print_table
    from robustmix.evaluation import estimate_seconds

    missing = sum(len(unit.cells) for unit in plan.units)
    cached = len(plan.wanted) - missing
    examples = f"{len(plan.inputs)} examples of {plan.data.name}"
    print(f"{len(plan.wanted)} cells on {examples}: {cached} cached, {missing} missing")
    if not plan.units:
        return
    rows = [
        [
            unit.title,
            ", ".join(format_budget(eps) for eps in unit.budgets),
            str(len(unit.cells)),
            str(unit.forward),
            str(unit.backward),
        ]
        for unit in plan.units
    ]
    print_table(["unit", "eps (1/255)", "cells missing", "forward", "backward"], rows, numeric=(2, 3, 4))
    seconds = estimate_seconds(plan, workspace, device)
    print(f"passes are per example; about {seconds:,.0f} s on {device}, judged by one timed batch")
