"""Recipes by name or from a file, and what stands on top of them."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from robustmix.errors import SpecError
from robustmix.spec.names import unknown
from robustmix.spec.recipe import Recipe, load_recipe_fields
from robustmix.spec.validation import read_toml


def shipped_recipes() -> dict[str, Path]:
    """The recipes inside the package, by name."""
    folder = Path(str(files("robustmix") / "spec" / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The fields of a recipe, by the name of a shipped one or by file.

    Raises:
        SpecError: there is none of that name, or the file is not a valid recipe.
    """
    shipped = shipped_recipes()
    path = shipped.get(name_or_path, Path(name_or_path))
    if path.suffix == ".json":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SpecError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    elif path.suffix == ".toml":
        values = read_toml(path)
    else:
        raise SpecError(f"{unknown('recipe', name_or_path, shipped)}, or give a file that ends in .toml or .json")
    load_recipe_fields(values, str(path))
    return dict(values)


def on_top(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe with others on top, which also replace what they leave no room for.

    Another way to draw lambda takes the place of the recipe's own; another schedule or number of epochs that of its
    milestones, which stay at the same share of the epochs.

    Args:
        base: of a named recipe or a file.
        fields: that count more.
    """
    kept = dict(base)
    for one, other in (("lam", "alpha"), ("alpha", "lam")):
        if fields.get(one) is not None:
            kept.pop(other, None)
    if kept.get("milestones") and fields.get("schedule", "step") != "step":
        kept.pop("milestones")
    if kept.get("milestones") and not fields.get("milestones") and "epochs" in fields and "epochs" in kept:
        old, new = kept["epochs"], fields["epochs"]
        scaled = (-(-int(part) * new // old) for part in kept.pop("milestones").split(","))
        if within := sorted({epoch for epoch in scaled if epoch < new}):
            kept["milestones"] = ",".join(map(str, within))
    return {**kept, **fields}


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or one from a TOML or JSON file.

    Raises:
        SpecError: there is none of that name, or the file is not a valid recipe.
    """
    return load_recipe_fields(read_recipe(name_or_path), name_or_path)
