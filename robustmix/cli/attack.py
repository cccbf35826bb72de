"""``robustmix attack``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from robustmix.cli.options import Cluster, Flag, Machine, Place, Several
from robustmix.errors import SpecError
from robustmix.spec.attack import MINIMUM_NORM, AttackSpec, parse_step, takes
from robustmix.spec.names import (
    ATTACKS,
    AttackName,
    CraftPrecision,
    Impl,
    LabelPolicy,
    Loss,
    Norm,
    known_attack,
)
from robustmix.spec.suite import Suite, load_suite
from robustmix.spec.validation import validate
from robustmix.store.workspace import Workspace
from robustmix.units import echo_budget, format_budget, parse_budget

if TYPE_CHECKING:
    import torch

    from robustmix.planning import Plan

DEFAULTS = Place()
MACHINE = Machine()
CLUSTER = Cluster()


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """How the attacks are made; each option applies to those of the attacks that take it.

    Attributes:
        eps: Budgets, in units of 1/255: 4, or 0.5/255 for half of one [default: the data set's sweep].
        norm: Norm in which budgets are measured [default: linf; l2 for deepfool, cw, hopskipjump].
        loss: Loss to maximise. Where a network is very sure, the gradient of ce vanishes; those of the others do not
            [default: ce].
        steps: Number of iterations [default: 10; 50 for deepfool, 1000 for cw, 64 for hopskipjump, which keep theirs
            beside attacks that take it too].
        step_size: Length of an iteration: in units of 1/255, eps/steps, 2.5eps/steps, or kurakin, which is min(eps + 4,
            1.25 eps) iterations of 1/255 [default: eps/steps; 2.5eps/steps for pgd].
        restarts: Random starts of pgd, signs and noise; the worst result per example is kept [default: 1].
        decay: Decay factor of mifgsm's momentum, from 0 to 2 [default: 1].
        queries: Query budget of square, per example [default: 5000].
        labels: Attack the true label, or the one that the source predicts without an attack; errors are always counted
            against the true one [default: true].
        seed: Seed of random starts, signs, noise and other libraries' attacks [default: 0].
        precision: Precision while crafting; scoring is always in float32, and so are deepfool, cw and hopskipjump
            [default: 32].
        impl: Whose code makes fgsm, ifgsm and pgd [default: robustmix].
        compile: Compile the models (on a GPU as CUDA graphs) and let budgets share small passes: faster after about a
            minute per network, and a few signs may flip.
    """

    eps: Annotated[list[str] | None, Several] = None
    norm: Norm | None = None
    loss: Loss | None = None
    steps: int | None = None
    step_size: str | None = None
    restarts: int | None = None
    decay: float | None = None
    queries: int | None = None
    labels: LabelPolicy | None = None
    seed: int | None = None
    precision: CraftPrecision | None = None
    impl: Impl | None = None
    compile: Flag = False

    def given(self) -> dict[str, Any]:
        """The fields of an `AttackSpec` that were given."""
        fields = {
            "eps": None if self.eps is None else [_budget("--eps", text) for text in self.eps],
            "step": None if self.step_size is None else _step(self.step_size),
            "compiled": self.compile or None,
        }
        names = ("norm", "loss", "steps", "restarts", "decay", "queries", "labels", "seed", "precision", "impl")
        fields |= {name: getattr(self, name) for name in names}
        return {name: value for name, value in fields.items() if value is not None}


HOW = How()


def attack(
    *,
    source: Annotated[list[str] | None, Several] = None,
    target: Annotated[list[str] | None, Several] = None,
    attack: Annotated[list[str] | None, Several] = None,
    how: How = HOW,
    data: str | None = None,
    normalize: str | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    suite: str | None = None,
    save_images: Flag = False,
    dry_run: Flag = False,
    machine: Machine = MACHINE,
    cluster: Cluster = CLUSTER,
    place: Place = DEFAULTS,
) -> None:
    """Attack every target with examples crafted on every source, and print the errors.

    Examples are crafted once per source and attack; a target that is its own source is attacked in the white box.
    What was computed before is not computed again.

    Args:
        source: What crafts: runs by name or glob, torchvision:NAME, timm:NAME, hf-hub:REPO, or FILE.py:FACTORY, which
            is your own code and is run.
        target: What is scored, likewise [default: the sources].
        attack: fgsm, ifgsm (bim), mifgsm, pgd, signs, noise; autoattack, square, deepfool, cw, hopskipjump by other
            libraries [default: fgsm ifgsm].
        data: What to attack on [default: what the sources were trained on].
        normalize: What a FILE.py:FACTORY expects: none, cifar10, imagenet, or MEAN/STD such as 0.5/0.5.
        limit: Attack the first N test examples only.
        batch_size: Examples per batch; halved where memory runs out.
        suite: Take attacks, sources and targets from a suite's name or file.
        save_images: Keep the adversarial images, rounded to 8 bits within the budget, in results/gallery.
        dry_run: Only say what would be computed, and how long it would take.
    """
    workspace = place.enter()
    fields = {"sources": source, "targets": target, "data": data, "limit": limit, "normalize": normalize}
    wanted = _suite_on_top(suite, workspace, {k: v for k, v in fields.items() if v is not None}, attack, how)
    from robustmix.cli.tables import print_results
    from robustmix.evaluation import compute, planned_results
    from robustmix.launching import launch
    from robustmix.planning import make_plan
    from robustmix.progress import say

    team = launch(machine.device, cluster.devices, cluster.nodes)
    plan = team.in_turn(
        lambda: make_plan(
            wanted,
            workspace,
            batch_size=batch_size,
            data_root=machine.data_root,
            stream=cluster.stream or None,
            workers=cluster.workers,
            save_images=save_images,
        )
    )
    for budget in sorted({identity.eps_255 for identity in plan.wanted if identity.eps_255}):
        say(f"eps {echo_budget(budget)}")
    if dry_run:
        if team.rank == 0:
            _print_plan(plan, team.device, team.size)
        return
    computed = compute(plan, workspace, team)
    if team.rank == 0:
        print_results(planned_results(plan, workspace))
        say(f"computed now: {computed} of {len(plan.wanted)} cells")


def _suite_on_top(
    name: str | None, workspace: Workspace, fields: dict[str, Any], attack: list[str] | None, how: How
) -> Suite:
    """The suite that the options describe, or the named one with the options that may stand beside it."""
    given = how.given()
    if name:
        flags = {"compiled": "--compile", "step": "--step-size"}
        if clash := (["--attack"] if attack else []) + [flags.get(key, f"--{key}") for key in given]:
            raise SpecError(f"{clash[0]} and --suite exclude each other: the suite says how it attacks")
        base = load_suite(name, workspace.root)
        return validate(Suite, {**base.model_dump(exclude_unset=True), **fields}, "attack")
    if "sources" not in fields:
        raise SpecError("--source is missing: name the runs that craft, or a --suite; 'robustmix ls' lists the runs")
    names = list(dict.fromkeys(known_attack(one) for one in attack or ("fgsm", "ifgsm")))
    return validate(Suite, {"version": 1, "title": "attack", "attack": _attacks(names, given), **fields})


def _attacks(names: list[AttackName], given: dict[str, Any]) -> list[AttackSpec]:
    """Each attack with those of the given fields that it takes."""
    # Beside attacks that take them, steps and norm are meant for those: what looks for the smallest perturbation has
    # its own defaults, and few steps would cripple it.
    elsewhere = frozenset().union(*(takes(name) for name in names if name not in MINIMUM_NORM))
    not_meant = elsewhere & {"steps", "norm"}
    own = {name: takes(name) - (not_meant if name in MINIMUM_NORM else frozenset()) for name in names}
    for field in given:
        if not any(field in fields for fields in own.values()):
            takers = ", ".join(name for name in ATTACKS if field in takes(name))
            flag = "--step-size" if field == "step" else f"--{field}"
            raise SpecError(
                f"{flag} belongs to {takers}; {' and '.join(names)} take{'s' if len(names) == 1 else ''} none"
            )
    return [
        validate(AttackSpec, {"name": name, **{key: value for key, value in given.items() if key in own[name]}})
        for name in names
    ]


def _budget(flag: str, text: str) -> str:
    try:
        return f"{parse_budget(text):.17g}/255"
    except SpecError as error:
        raise SpecError(f"{flag}: {error}") from None


def _step(text: str) -> str:
    try:
        step = parse_step(text)
    except SpecError as error:
        raise SpecError(f"--step-size: {error}") from None
    return step if isinstance(step, str) else f"{step:.17g}/255"


def _print_plan(plan: "Plan", device: "torch.device", processes: int) -> None:
    from robustmix.cli.tables import print_table
    from robustmix.estimate import estimate_seconds

    examples = f"{len(plan.inputs)} examples of {plan.data.name}"
    missing = len(plan.missing)
    print(f"{len(plan.wanted)} cells on {examples}: {len(plan.wanted) - missing} cached, {missing} missing")
    if not plan.units:
        return
    rows = []
    for unit in plan.units:
        own = unit.attack is None or unit.attack.native
        budgets = ", ".join("-" if course.eps is None else format_budget(course.eps) for course in unit.courses)
        passes = [str(unit.forward), str(unit.backward)] if own else ["?", "?"]
        rows.append([unit.title, budgets, str(len(unit.cells)), *passes])
    print_table(["unit", "eps (1/255)", "cells missing", "forward", "backward"], rows, numeric=(2, 3, 4))
    seconds = estimate_seconds(plan, device, processes)
    compiled = ", without compiling" if any(unit.compiled for unit in plan.units) else ""
    foreign = "" if all(row[-1] != "?" for row in rows) else "; other libraries' attacks not counted"
    place = f"{processes} devices like {device}" if processes > 1 else str(device)
    print(f"passes are per example; about {seconds:,.0f} s on {place}{compiled}, judged by one timed batch{foreign}")
