"""``robustmix train``."""

from typing import Annotated

from cyclopts import Parameter

from robustmix.cli.options import Cluster, Flag, Machine, Place
from robustmix.spec.named import on_top, read_recipe
from robustmix.spec.recipe import Recipe, load_recipe_fields

DEFAULTS = Place()
MACHINE = Machine()
CLUSTER = Cluster()


def train(
    *,
    options: Annotated[Recipe, Parameter(name="*")] = Recipe(),
    recipe: str | None = None,
    name: str | None = None,
    overwrite: Flag = False,
    compiled: Annotated[bool, Parameter(name="--compile", negative="", show_default=False)] = False,
    tensorboard: Flag = False,
    machine: Machine = MACHINE,
    cluster: Cluster = CLUSTER,
    place: Place = DEFAULTS,
) -> None:
    """Train one network into runs/NAME, or go on with it from where it was stopped.

    The defaults shown are those for digits. On CIFAR, options that are not given are those of Zhang et al. 2018:
    width 64, 200 epochs, batch size 128, weight decay 1e-4, random crop and flip.

    Args:
        recipe: A named recipe or a file (.toml, .json); options given here count more.
        name: Of the run [default: the method, with the seed if one is given].
        overwrite: Replace a run of that name that has another recipe.
        compiled: Train by torch.compile: more images/s after a minute, other bits.
        tensorboard: Write event files into runs/NAME/tensorboard.
    """
    workspace = place.enter()
    given = options.model_dump(exclude_unset=True)
    wanted = load_recipe_fields(on_top(read_recipe(recipe) if recipe else {}, given))
    from robustmix import training
    from robustmix.launching import launch

    training.train(
        wanted,
        name=name,
        workspace=workspace.root,
        team=launch(machine.device, cluster.devices, cluster.nodes),
        data_root=machine.data_root,
        stream=cluster.stream or None,
        workers=cluster.workers,
        compiled=compiled,
        tensorboard=tensorboard,
        overwrite=overwrite,
    )
