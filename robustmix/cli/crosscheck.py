"""``robustmix crosscheck``."""

from typing import TYPE_CHECKING, Annotated, Final, Literal

from robustmix.cli.attack import How
from robustmix.cli.options import Machine, Place, Several
from robustmix.errors import SpecError
from robustmix.spec.attack import AttackSpec, takes
from robustmix.spec.names import known_attack
from robustmix.spec.suite import match_runs
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
    limit: int | None = None,
    batch_size: int = 256,
    machine: Machine = MACHINE,
    place: Place = DEFAULTS,
) -> int:
    """Attack runs in the white box by our own code, by torchattacks and by foolbox, and print what differs.

    Exits with 1 if a prediction differs. A few pixels may, in a batch whose size is no power of two: torchattacks
    averages the loss over the batch, which then rounds.

    Args:
        target: Runs, names or globs.
        attack: fgsm, ifgsm (also called bim) [default: both].
        eps: Budgets in L-infinity, in units of 1/255: 4, or 0.5/255 for half of one [default: the data set's sweep].
        steps: Iterations of ifgsm [default: 10].
        step_size: Of an iteration of ifgsm: a length in units of 1/255, eps/steps, 2.5eps/steps, or kurakin [default:
            eps/steps].
        data: What to attack on [default: what each run was trained on].
        limit: Attack the first N test examples only.
        batch_size: Examples per batch.
    """
    workspace = place.enter()
    specs = _specs(attack or CHECKED, How(eps=eps, steps=steps, step_size=step_size))
    for flag, value in (("--limit", limit), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise SpecError(f"{flag} {value} must be at least 1")
    import torch

    from robustmix.checkpoints import load_model
    from robustmix.cli.tables import print_table
    from robustmix.crosscheck import crosscheck as compare
    from robustmix.data import load_data
    from robustmix.device import pick_device
    from robustmix.progress import say
    from robustmix.store.runs import finished_run, run_names

    device = pick_device(machine.device)
    rows, same = [], True
    for name in match_runs(tuple(target), run_names(workspace), "run"):
        run = finished_run(workspace, name)
        found = load_data(data or run.recipe.data, machine.data_root)
        test = found.test.first(limit)
        x, y = next(iter(test.batches([torch.arange(len(test))], device)))
        model = load_model(workspace.run(name)).to(device)
        for kind, course in [(kind, course) for kind, spec in specs.items() for course in spec.courses(found.like)]:
            assert course.eps is not None
            say(f"{name}: {kind}, eps {echo_budget(course.eps)}")
            budget, length = to_pixels(course.eps), to_pixels(course.step)
            for one in compare(
                model, x, y, name=kind, eps=budget, steps=course.steps, length=length, batch_size=batch_size
            ):
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
            f"attack {strange[0]!r} is not cross-checked: only of {' and '.join(CHECKED)} the libraries make the same"
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
