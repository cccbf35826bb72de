"""``robustmix crosscheck``."""

from typing import TYPE_CHECKING, Annotated, Final, Literal

from robustmix.cli.attack import How
from robustmix.cli.options import Machine, Place, Several
from robustmix.errors import SpecError
from robustmix.spec.attack import AttackSpec, takes
from robustmix.spec.names import known_attack
from robustmix.spec.suite import Suite
from robustmix.spec.validation import validate
from robustmix.units import echo_budget, format_budget, to_pixels

if TYPE_CHECKING:
    from robustmix.crosscheck import Comparison

DEFAULTS = Place()
MACHINE = Machine()

Checked = Literal["fgsm", "ifgsm"]
CHECKED: Final[tuple[Checked, ...]] = ("fgsm", "ifgsm")


def crosscheck(
    *,
    target: Annotated[list[str], Several],
    attack: Annotated[list[str] | None, Several] = None,
    eps: Annotated[list[str] | None, Several] = None,
    steps: int | None = None,
    step_size: str | None = None,
    data: str | None = None,
    normalize: str | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    machine: Machine = MACHINE,
    place: Place = DEFAULTS,
) -> int:
    """Attack models in the white box by our own code, by torchattacks and by foolbox, and print what differs.

    Exits with 1 if a prediction differs. A few pixels may, in a batch whose size is no power of two: torchattacks
    averages the loss over the batch, which then rounds.

    Args:
        target: Runs by name or glob, torchvision:NAME, timm:NAME, hf-hub:REPO, or FILE.py:FACTORY, which is your own
            code and is run.
        attack: fgsm, ifgsm (also called bim) [default: both].
        eps: Budgets in L-infinity, in units of 1/255: 4, or 0.5/255 for half of one [default: the data set's sweep].
        steps: Iterations of ifgsm [default: 10].
        step_size: Of an iteration of ifgsm: a length in units of 1/255, eps/steps, 2.5eps/steps, or kurakin [default:
            eps/steps].
        data: What to attack on [default: what the runs were trained on].
        normalize: What a FILE.py:FACTORY expects: none, cifar10, imagenet, or MEAN/STD such as 0.5/0.5.
        limit: Attack the first N test examples only.
        batch_size: Examples per batch.
    """
    workspace = place.enter()
    specs = _specs(attack or CHECKED, How(eps=eps, steps=steps, step_size=step_size))
    fields = {"sources": target, "data": data, "normalize": normalize, "limit": limit}
    given = {name: value for name, value in fields.items() if value is not None}
    suite = validate(Suite, {"version": 1, "title": "crosscheck", "attack": list(specs.values()), **given})
    import torch

    from robustmix.cli.tables import print_table
    from robustmix.crosscheck import PEERS, absent_peers
    from robustmix.crosscheck import crosscheck as compare
    from robustmix.device import memory_hint, pick_device
    from robustmix.planning import make_plan
    from robustmix.progress import say

    plan = make_plan(suite, workspace, batch_size=batch_size, data_root=machine.data_root)
    device = pick_device(machine.device)
    batches = torch.arange(len(plan.inputs)).split(batch_size)
    rows, same = [], True
    if len(absent := absent_peers()) < len(PEERS):
        for peer in absent:
            say(f"warning: {peer} is left out: it is not installed (pip install 'robustmix[attacks]')")
    for name, participant in plan.participants.items():
        model = plan.load(participant, device)
        for kind, course in [(kind, course) for kind, spec in specs.items() for course in spec.courses(plan.data.like)]:
            assert course.eps is not None
            say(f"{name}: {kind}, eps {echo_budget(course.eps)}")
            budget, length = to_pixels(course.eps), to_pixels(course.step)
            inputs = plan.inputs.batches(batches, device)
            with memory_hint("a smaller --batch-size"):
                found = compare(model, inputs, name=kind, eps=budget, steps=course.steps, length=length)
            for one in found:
                label = kind if kind == "fgsm" else f"{kind}-{course.steps}"
                rows.append([name, label, f"{format_budget(course.eps)}/255", *_columns(one)])
                same = same and one.predictions == 0
    header = ["target", "attack", "eps", "by", "error", "pixels that differ", "predictions that differ"]
    print_table([*header, "largest difference"], rows, numeric=(2, 4, 5, 6, 7))
    return 0 if same else 1


def _columns(one: "Comparison") -> list[str]:
    pixels, predictions = (f"{share:.4%}" if share else "0" for share in (one.pixels, one.predictions))
    return [one.by, f"{one.error:.1%}", pixels, predictions, f"{one.largest:.2g}" if one.largest else "0"]


def _specs(names: list[str] | tuple[Checked, ...], how: How) -> dict[Checked, AttackSpec]:
    """Each attack by its name, with those of the options that it takes."""
    wanted = {known_attack(name): name for name in names}
    if strange := [name for known, name in wanted.items() if known not in CHECKED]:
        raise SpecError(
            f"attack {strange[0]!r} cannot be cross-checked: only {' and '.join(CHECKED)} are deterministic and the "
            "same in all three libraries"
        )
    given = how.given()
    if foreign := [field for field in given if not any(field in takes(name) for name in wanted)]:
        flag = "--step-size" if foreign[0] == "step" else f"--{foreign[0]}"
        raise SpecError(f"{flag} belongs to ifgsm; fgsm takes one full step")
    return {
        kind: validate(AttackSpec, {"name": kind, **{key: value for key, value in given.items() if key in takes(kind)}})
        for kind in CHECKED
        if kind in wanted
    }
