"""``robustmix import``."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from robustmix.cli.options import Machine, Place, command_line
from robustmix.errors import SpecError
from robustmix.spec.named import read_recipe
from robustmix.spec.names import Method
from robustmix.spec.recipe import load_recipe_fields

DEFAULTS = Place()
MACHINE = Machine()


def import_(
    file: Path,
    /,
    *,
    name: str,
    model: str | None = None,
    width: int | None = None,
    data: str | None = None,
    method: Method | None = None,
    seed: int | None = None,
    recipe: str | None = None,
    normalize: Annotated[str | None, Parameter(show_default=False)] = None,
    machine: Machine = MACHINE,
    place: Place = DEFAULTS,
) -> None:
    """Make a run from a checkpoint of another program, and measure its test error.

    FILE is a safetensors file or one of torch.save: a state dict, a dictionary that holds one, or a whole network as
    mixup-cifar10 saves it. Nothing in it is executed.

    Args:
        file: The checkpoint.
        name: Of the run.
        model: The network; mixup-cifar10's ResNet18 is preact_resnet18.
        width: Channels of its first stage [default: the published one on CIFAR].
        data: What it was trained on, and is measured on.
        method: How its training batches were mixed: erm for not at all.
        seed: Of its training.
        recipe: More that is known of its training: a named recipe or a file (.toml, .json); options given here count
            more.
        normalize: What it was trained behind: none, cifar10, imagenet, or MEAN/STD [default: what the file says, if it
            does].
    """
    workspace = place.enter()
    options = {"model": model, "width": width, "data": data, "method": method, "seed": seed}
    known = {**(read_recipe(recipe) if recipe else {}), **{k: v for k, v in options.items() if v is not None}}
    for key in ("model", "data", "method"):
        if key not in known:
            raise SpecError(f"--{key} is missing: the file does not say it, and a default would be a claim")
    wanted = load_recipe_fields(known)
    from robustmix.interchange.importing import import_run
    from robustmix.progress import say

    run = import_run(
        file,
        name,
        wanted,
        normalize,
        workspace=workspace.root,
        device=machine.device,
        data_root=machine.data_root,
        # Where the file lies on this machine is nobody else's business.
        command=command_line().replace(shlex.quote(str(file)), shlex.quote(file.name)),
    )
    error, chance = run.final("test_error"), 1 - 1 / (run.facts.classes if run.facts else 1)
    doubt = (
        "" if error < 0.9 * chance else "; that is about chance: are --model, --normalize and --data what they were?"
    )
    say(f"run {name!r} is there: test error {error:.2%} on {wanted.data}{doubt}")
