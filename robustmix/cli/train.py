"""``robustmix train``."""

from typing import Annotated

from cyclopts import Parameter

from robustmix.cli.options import Flag, Machine, Place
from robustmix.spec.recipe import Recipe, load_recipe_fields, read_recipe

DEFAULTS = Place()
MACHINE = Machine()


def train(
    *,
    options: Annotated[Recipe, Parameter(name="*")] = Recipe(),
    recipe: str | None = None,
    name: str | None = None,
    overwrite: Flag = False,
    machine: Machine = MACHINE,
    place: Place = DEFAULTS,
) -> None:
    """Train one network into runs/NAME, or go on with it from its last finished epoch.

    The defaults shown are those for digits. On CIFAR, options that are not given are those of Zhang et al. 2018:
    width 64, 200 epochs, batch size 128, weight decay 1e-4, random crop and flip.

    Args:
        recipe: A named recipe or a file (.toml, .json); options given here count more.
        name: Of the run [default: the method, with the seed if one is given].
        overwrite: Replace a run of that name that has another recipe.
    """
    workspace = place.enter()
    given = options.model_dump(exclude_unset=True)
    wanted = load_recipe_fields({**(read_recipe(recipe) if recipe else {}), **given})
    from robustmix import training

    training.train(
        wanted,
        name=name,
        workspace=workspace.root,
        device=machine.device,
        data_root=machine.data_root,
        overwrite=overwrite,
    )
