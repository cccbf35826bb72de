"""The audit of runs and other people's models, by way of the cells of a workspace."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from torch import nn

from robustmix.audit.battery import FEW, Battery, check_budget, make_battery
from robustmix.audit.direct import look_at_run
from robustmix.audit.procedure import (
    Look,
    audit_units,
    conclude,
    costly_units,
    look,
    make_record,
    plant,
    why_no_square,
)
from robustmix.audit.reading import Evidence
from robustmix.data import Split
from robustmix.evaluation import compute, planned_cells
from robustmix.participants import Participant, distinct
from robustmix.planning import Plan, make_plan, missing_cells
from robustmix.progress import say
from robustmix.spec.attack import AttackSpec
from robustmix.spec.suite import Suite
from robustmix.spec.validation import validate
from robustmix.store.audits import AuditRecord, write_audit
from robustmix.store.sweeps import exactly
from robustmix.store.workspace import Workspace
from robustmix.team import Team
from robustmix.units import echo_budget
from robustmix.work import DEFAULT_BATCH, Unit

DEFAULT_LIMIT: Final = 500


def audit(
    targets: Sequence[str],
    place: Workspace,
    team: Team,
    *,
    data: str | None = None,
    normalize: str | None = None,
    eps: float | None = None,
    limit: int = DEFAULT_LIMIT,
    batch_size: int = DEFAULT_BATCH,
    data_root: str | Path | None = None,
) -> list[AuditRecord]:
    """Test the evaluation of networks; what was attacked before is not attacked again.

    Args:
        targets: runs by name or glob, and other people's models, as ``robustmix attack --source`` takes them.
        place: the workspace with the runs, which gets cells and audits.
        team: to compute on.
        data: what to attack on; what the runs were trained on if not given.
        normalize: what a ``FILE.py:FACTORY`` expects.
        eps: the budget at which attacks are compared, units of 1/255; the middle one of the data set's if not given.
        limit: test examples that are attacked.
        batch_size: examples per batch.
        data_root: the folder with the data.

    Returns:
        A record for each network, in their order, for one under several names a single one, under the first; none in
        processes other than the first.

    Raises:
        SpecError: a name matches nothing, or the budget is too large.
        CheckpointError: a run is missing or unfinished.
        EvaluationError: a model does not fit the data, or a measurement would be wrong.
    """
    if eps is not None:
        check_budget(eps)
    fields: dict[str, object] = {"sources": list(targets), "data": data, "normalize": normalize, "limit": limit}
    given = {key: value for key, value in fields.items() if value is not None}
    suite = validate(Suite, {"version": 1, "title": "audit", "attack": [AttackSpec(name="fgsm")], **given})
    base = team.in_turn(lambda: make_plan(suite, place, batch_size=batch_size, data_root=data_root))
    battery = make_battery(base.data.like, eps)
    say(f"audit at eps {echo_budget(battery.eps)} on {len(base.inputs)} examples of {base.data.name}")
    everyone = distinct(base.participants.values())

    looks: dict[str, Look] = {}
    if team.rank == 0:
        looks = {one.digest: _look(one, base, batch_size, team) for one in everyone}
    looks = team.share(looks)
    crowd = [one for one in everyone if looks[one.digest].obstacle is None]
    units = audit_units(battery, crowd, base.inputs.digest(), batch_size)
    evidence = _computed(base, base.inputs, units, battery, place, team)
    no_square = team.share(why_no_square(base.inputs))
    first = base.inputs.first(FEW)
    units = costly_units(battery, crowd, first.digest(), batch_size, square=no_square is None)
    few = _computed(base, first, units, battery, place, team)
    if team.rank > 0:
        return []
    command = _command(targets, fields | {"limit": limit if limit != DEFAULT_LIMIT else None}, battery, eps, batch_size)
    records = []
    for one in everyone:
        planted = None
        if one in crowd:
            say(f"{one.name}: looking for planted adversarial examples")
            planted = plant(_loaded(one, team), base.inputs, battery, team.device)
        record = make_record(
            one.name,
            one.digest,
            conclude(looks[one.digest], one, crowd, (evidence, few), no_square, planted),
            data=base.data.name,
            inputs=base.inputs,
            battery=battery,
            device=team.device,
            command=command,
        )
        write_audit(place.audits, record)
        records.append(record)
    return records


def _look(one: Participant, plan: Plan, batch_size: int, team: Team) -> Look:
    model, data, accuracy = _loaded(one, team), plan.data, None
    if one.run is not None and one.run.recipe.data == data.spec:
        accuracy = look_at_run(one.run, model, data, batch_size, team.device)
    return look(one, model, plan.inputs, data.test, data.classes, batch_size, team.device, accuracy)


def _loaded(one: Participant, team: Team) -> nn.Module:
    return one.load().to(team.device).eval().requires_grad_(False)


def _computed(
    base: Plan, inputs: Split, units: Sequence[Unit], battery: Battery, place: Workspace, team: Team
) -> Evidence:
    """The cells of some units, of which only the missing ones are computed."""
    plan = replace(
        base,
        inputs=inputs,
        wanted=tuple(cell.identity for unit in units for cell in unit.cells),
        everything=tuple(units),
        missing=frozenset(key for unit in units for key in missing_cells(unit, place)),
    )
    compute(plan, place, team)
    return Evidence(battery, planned_cells(plan, place) if team.rank == 0 else [])


def _command(
    targets: Sequence[str], fields: dict[str, object], battery: Battery, eps: float | None, batch_size: int
) -> str:
    """What makes the same audit on the command line."""
    words = ["robustmix", "audit", "--target", *targets]
    for key in ("data", "normalize", "limit"):
        if fields[key] is not None:
            words += [f"--{key}", str(fields[key])]
    if eps is not None:
        words += ["--eps", exactly(battery.eps)]
    if batch_size != DEFAULT_BATCH:
        words += ["--batch-size", str(batch_size)]
    return shlex.join(words)
