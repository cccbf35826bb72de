"""A recipe: everything that determines a training run, and nothing that does not."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, model_validator

from robustmix.errors import SpecError
from robustmix.spec.names import Augment, LambdaPer, Method, ModelName, Precision, Schedule, unknown
from robustmix.spec.validation import Spec, read_toml, validate

# What a field that nobody set becomes, by the data set that the data resembles. The class defaults below serve digits
# and anything small; CIFAR's are those of Zhang et al. 2018, section 3.2.
DATA_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    name: {
        "model": "preact_resnet18",
        "width": 64,
        "epochs": 200,
        "batch_size": 128,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "augment": "crop-flip",
    }
    for name in ("cifar10", "cifar100")
}


# What only a recipe that mixes has.
MIXING_FIELDS: Final = ("alpha", "lam_per")


class Recipe(Spec):
    """One training run. A field that is not set takes the default of the data set (`resolved`).

    Attributes:
        data: the data set, as `robustmix.load_data` takes it.
        limit: use the first N training examples only.
        val: examples carved out of the training set for validation.
        model: the network.
        width: channels of the first stage; 64 is the published network.
        method: how a training batch is mixed.
        alpha: mixup's lambda is drawn from Beta(alpha, alpha); 1 if not set.
        lam_per: one lambda for the whole batch (Zhang et al. 2018) or one per example.
        epochs: passes over the training set.
        batch_size: examples per step.
        lr: learning rate at the start.
        momentum: of SGD.
        weight_decay: L2 penalty on every parameter.
        schedule: ``step`` divides the learning rate by 10 after 50 % and 75 % of the epochs, ``cosine`` takes it to 0.
        augment: ``crop`` shifts each image by up to an eighth of its height, ``flip`` mirrors half of them.
        precision: of the forward and backward pass; weights stay in float32.
        seed: of everything random.
    """

    data: str = "digits"
    limit: int | None = Field(default=None, ge=1)
    val: int = Field(default=0, ge=0)
    model: ModelName = "preact_resnet18"
    width: int = Field(default=16, ge=1, le=1024)
    method: Method = "erm"
    alpha: float | None = Field(default=None, gt=0, le=1000)
    lam_per: LambdaPer = "batch"
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Schedule = "step"
    augment: Augment = "none"
    precision: Precision = "32"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> Self:
        # Fields that stand on top of another recipe's, without a method of their own, are checked once they are there.
        if self.method == "erm" and "method" in self.model_fields_set:
            idle = [
                name
                for name, given in (("alpha", self.alpha is not None), ("lam_per", self.lam_per != "batch"))
                if given
            ]
            if idle:
                raise ValueError(
                    f"{idle[0]} does not apply to method 'erm', which mixes nothing; choose method 'mixup'"
                )
        return self

    def resolved(self, like: str | None) -> "Recipe":
        """Fill every field that was not set with the default for data that resembles ``like``.

        Raises:
            SpecError: fields do not fit each other.
        """
        given = self.model_dump(exclude_unset=True)
        filled = {**self.model_dump(), **DATA_DEFAULTS.get(like or "", {}), **given}
        if filled["method"] != "erm" and filled["alpha"] is None:
            filled["alpha"] = 1.0
        return load_recipe_fields(filled)

    def digest(self, *, without_seed: bool = False) -> str:
        """A short name for the content, so that two runs can be told to share a recipe."""
        fields = self.model_dump(exclude={"seed"} if without_seed else None)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: "Recipe") -> list[str]:
        """The fields in which two recipes differ, as ``epochs 20 -> 30``."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{key} {mine[key]} -> {theirs[key]}" for key in mine if mine[key] != theirs[key]]

    def command(self, name: str) -> str:
        """The command that trains this run."""
        options = {
            key: value for key, value in self.model_dump(exclude_none=True).items() if key != "momentum" or value != 0.9
        }
        if self.method == "erm":
            options.pop("lam_per")
        flags = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return shlex.join(["robustmix", "train", *flags, "--name", name])


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
            raise SpecError(f"{path}: cannot be read: {error}") from None
    elif path.suffix == ".toml":
        values = read_toml(path)
    else:
        raise SpecError(f"{unknown('recipe', name_or_path, shipped)}, or give a file that ends in .toml or .json")
    load_recipe_fields(values, str(path))
    return dict(values)


def load_recipe_fields(values: Mapping[str, Any], where: str = "") -> Recipe:
    """Validate the fields of a recipe.

    Raises:
        SpecError: the first field that is wrong.
    """
    return validate(Recipe, values, where)


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or one from a TOML or JSON file.

    Raises:
        SpecError: there is none of that name, or the file is not a valid recipe.
    """
    return load_recipe_fields(read_recipe(name_or_path), name_or_path)
