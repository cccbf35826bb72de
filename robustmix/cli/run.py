"""``robustmix run``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from robustmix.cli.options import Cluster, Flag, Machine, Place, command_line
from robustmix.errors import SpecError
from robustmix.spec.recipe import Recipe
from robustmix.spec.suite import Suite, load_suite, match_runs
from robustmix.spec.validation import validate
from robustmix.store.workspace import Workspace

DEFAULTS = Place()
MACHINE = Machine()
CLUSTER = Cluster()


def run(
    suite: str,
    /,
    *,
    on_top: Annotated[Recipe, Parameter(name="*", show_default=False)] = Recipe(),
    test_limit: int | None = None,
    overwrite: Flag = False,
    compiled: Annotated[bool, Parameter(name="--compile", negative="", show_default=False)] = False,
    machine: Machine = MACHINE,
    cluster: Cluster = CLUSTER,
    place: Place = DEFAULTS,
) -> None:
    """Train the runs of a suite that are missing, attack and audit them, write the report.

    It goes on wherever it was stopped.

    Recipe options given here replace those of every recipe in the suite.

    Args:
        suite: A suite's name or file; 'robustmix ls' lists the names.
        test_limit: Attack the first N test examples only.
        overwrite: Replace runs of those names that have another recipe.
        compiled: Train by torch.compile: more images/s after a minute, other bits.
    """
    workspace = place.enter()
    fields = on_top.model_dump(exclude_unset=True)
    for own in ("method", "seed"):
        if own in fields:
            raise SpecError(
                f"--{own} cannot replace that of every run: the suite says which methods and seeds it compares"
            )
    wanted = load_suite(suite, workspace.root)
    changes = {"data": fields.get("data"), "limit": test_limit}
    changes = {key: value for key, value in changes.items() if value is not None}
    wanted = validate(Suite, {**wanted.model_dump(exclude_unset=True), **changes}, suite)
    run_suite(wanted, suite, workspace, machine, fields, cluster=cluster, compiled=compiled, overwrite=overwrite)


def run_suite(
    wanted: Suite,
    name: str,
    workspace: Workspace,
    machine: Machine,
    fields: Mapping[str, object],
    *,
    cluster: Cluster = CLUSTER,
    compiled: bool = False,
    overwrite: bool = False,
) -> None:
    """Train, attack, audit, report and print where the page is; several processes share each step of it."""
    from robustmix.report import check_suite, collect, render

    stem = Path(name).stem
    check_suite(workspace, wanted, stem)
    recipes = wanted.runs(fields)

    from robustmix import evaluation, training
    from robustmix.audit import DEFAULT_LIMIT, audit
    from robustmix.audit.battery import check_budget
    from robustmix.cli import tables
    from robustmix.cli.audit import print_audits
    from robustmix.launching import launch
    from robustmix.participants import is_foreign
    from robustmix.planning import check_suite_installed, make_plan
    from robustmix.store.runs import run_names

    check_suite_installed(wanted)
    if wanted.audit:
        # Before hours of training, not after them.
        named = tuple(one for one in wanted.audit if not is_foreign(one))
        match_runs(named, [*recipes, *run_names(workspace)], "run to audit")
    # A headline in another norm is no budget to audit at.
    in_linf = any(spec.metric == "linf" for spec in wanted.attack)
    audit_eps = wanted.audit_eps or (wanted.headline_eps if wanted.audit and in_linf else None)
    if audit_eps is not None:
        check_budget(audit_eps)
    team = launch(machine.device, cluster.devices, cluster.nodes)
    for run_name, recipe in recipes.items():
        training.train(
            recipe,
            name=run_name,
            workspace=workspace.root,
            team=team,
            data_root=machine.data_root,
            stream=cluster.stream or None,
            workers=cluster.workers,
            compiled=compiled,
            overwrite=overwrite,
        )
    plan = team.in_turn(
        lambda: make_plan(
            wanted,
            workspace,
            data_root=machine.data_root,
            stream=cluster.stream or None,
            workers=cluster.workers,
        )
    )
    evaluation.compute(plan, workspace, team)

    def write() -> Path:
        inputs = plan.inputs.digest()
        return render(collect(workspace, stem, suite=wanted, suite_name=name, command=command_line(), inputs=inputs))

    if team.rank == 0:
        results = evaluation.planned_results(plan, workspace)
        if wanted.headline_eps:
            budget = results["eps_255"]
            results = results[budget.isin([0, wanted.headline_eps]) | budget.isna()]
        tables.print_results(results)
        page = write()
    if wanted.audit:
        # The page is there already: an audit takes longer than the attacks, and may find something that stops it.
        records = audit(
            wanted.audit,
            workspace,
            team,
            data=wanted.data,
            normalize=wanted.normalize,
            eps=audit_eps,
            limit=min(wanted.limit or DEFAULT_LIMIT, DEFAULT_LIMIT),
            data_root=machine.data_root,
        )
        if team.rank == 0:
            print_audits(records)
            page = write()
    if team.rank == 0:
        print(f"report: {page}")
