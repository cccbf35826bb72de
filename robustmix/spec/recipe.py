"""A recipe: everything that determines a training run, and nothing that does not."""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping
from typing import Any, Final, Self, cast

from pydantic import Field, field_validator, model_validator

from robustmix.errors import SpecError
from robustmix.spec.law import MOST_ALPHA, Law, parse_law
from robustmix.spec.names import (
    DROPS,
    METHODS,
    Augment,
    Drop,
    LambdaPer,
    Method,
    Mixed,
    Model,
    ModelName,
    Precision,
    Schedule,
)
from robustmix.spec.validation import Spec, validate
from robustmix.units import Budget

# Channels of the first stage of the published networks; the growth rate of DenseNet, the channels of each of ResNeXt's
# groups.
PUBLISHED_WIDTHS: Final[dict[ModelName, int]] = {
    "preact_resnet18": 64,
    "preact_resnet34": 64,
    "preact_resnet50": 64,
    "resnet18": 64,
    "wrn28_10": 160,
    "densenet_bc100": 12,
    "densenet_bc190": 40,
    "resnext29_8x64d": 64,
    "vgg11": 64,
    "lenet": 6,
}
SMALL_WIDTH: Final = 16

# What a field that nobody set becomes, by the data set that the data resembles. The class defaults below serve digits
# and anything small; CIFAR's are those of Zhang et al. 2018, section 3.2, ImageNet's those of section 3.1 for one
# machine.
CIFAR_DEFAULTS: Final[dict[str, Any]] = {
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 1e-4,
    "augment": "crop-flip",
}
DATA_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "cifar10": CIFAR_DEFAULTS,
    "cifar100": CIFAR_DEFAULTS,
    "svhn": {**CIFAR_DEFAULTS, "augment": "crop"},
    "mnist": {"batch_size": 128},
    "fashion_mnist": {"batch_size": 128},
    "imagenet": {
        "model": "torchvision:resnet50",
        "epochs": 90,
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "milestones": "30,60,80",
        "augment": "resized-crop-flip",
    },
}
# Data on which a network that nobody gave a width has its published one.
PUBLISHED_SCALE: Final = ("cifar10", "cifar100", "svhn")

PAIRING: Final = frozenset[Method]({"mixup", "mixup-h", "mixup-v", "mixup-hv", "mixup-hc", "manifold", "cutmix"})
STITCHING: Final = frozenset[Method]({"mixup-h", "mixup-v", "mixup-hv", "mixup-hc"})
RANDOM_RATE: Final = {"disturblabel": 0.1, "patchshuffle": 0.05}

# What only some methods have, and which.
FIELDS_OF_METHODS: Final[dict[str, frozenset[Method]]] = {
    **dict.fromkeys(("alpha", "lam", "lam_per", "lam_labels", "mix", "same_class", "nearest"), PAIRING),
    "correct_lam": STITCHING,
    "layers": frozenset({"manifold"}),
    "rate": frozenset({"disturblabel", "patchshuffle"}),
}
# What means nothing without another field.
NEEDS: Final = {"adversarial_steps": "adversarial_eps", "warmup_lr": "warmup"}
STAGES: Final = 5
# Verma et al. 2019 mix the input or what the first or second group of blocks makes of it; our stage 1 is the stem.
VERMA_LAYERS: Final = "0,2,3"


class Recipe(Spec):
    """One training run. A field that is not set takes the default of the data set (`resolved`).

    Attributes:
        data: the data set: digits, mnist, fashion_mnist, svhn, cifar10, cifar100, imagenet:PATH, folder:NAME_OR_PATH or
            npz:PATH.
        limit: use N training examples only, of all classes alike.
        label_noise: share of the training labels that are replaced by a class drawn from all of them.
        val: examples carved out of the training set for validation.
        model: the network: preact_resnet18, preact_resnet34, preact_resnet50, resnet18, wrn28_10, densenet_bc100,
            densenet_bc190, resnext29_8x64d, vgg11, lenet, torchvision:NAME or timm:NAME.
        width: channels of the first stage (DenseNet: growth rate; ResNeXt: channels per group); the published one on
            CIFAR, else 16 or the published one if that is smaller.
        drop: what the network drops at random in training, as ``dropout:0.3``: ``dropout``, ``dropconnect``,
            ``stochastic_depth`` or ``swapout`` with the probability.
        method: how a training batch is mixed.
        alpha: lambda is drawn from Beta(alpha, alpha); 1 if neither this nor ``lam`` is set.
        lam: how lambda is drawn: ``beta:ALPHA``, ``uniform:LOW,HIGH`` or one number.
        lam_per: one lambda for the whole batch (Zhang et al. 2018) or one per example.
        lam_labels: how the labels' own lambda is drawn, independently of the inputs'; the same lambda if not set.
        mix: what is mixed; the rest stays the first example's.
        same_class: mix only examples of one class.
        nearest: draw the partner among the N nearest training examples instead of the batch.
        correct_lam: mix labels by the share of pixels instead of lambda (Liang et al. 2018 do not).
        layers: stages after which is mixed, one of them per step, as ``0,2,3``; 0 is the input.
        rate: probability by which a label (disturblabel) or an image (patchshuffle) is disturbed.
        label_smoothing: share of every label that is spread over all classes.
        noise: standard deviation of Gaussian noise on the inputs, in [0, 1] pixel units.
        adversarial_eps: train on adversarial examples (PGD, L-infinity) of this budget, units of 1/255.
        adversarial_steps: of their PGD, each 2.5 eps / steps long.
        epochs: passes over the training set.
        batch_size: examples per step, of all processes together.
        lr: learning rate, after the warm-up.
        warmup: epochs in which the learning rate rises linearly.
        warmup_lr: learning rate that the warm-up starts from.
        schedule: ``step`` divides the learning rate by 10 after each of the milestones, ``cosine`` takes it to 0.
        milestones: epochs, as ``100,150``; 50 % and 75 % of them if not set.
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        weight_decay: L2 penalty on every parameter.
        augment: ``crop`` shifts each image by up to an eighth of its height, ``flip`` mirrors half of them,
            ``resized-crop`` cuts out a random part and resizes it (streamed ImageNet).
        precision: of the forward and backward pass; weights stay in float32.
        sync_batch_norm: several GPUs normalise by the statistics of the whole batch instead of their own part.
        seed: of everything random.
    """

    data: str = "digits"
    limit: int | None = Field(default=None, ge=1)
    label_noise: float = Field(default=0.0, ge=0, le=1)
    val: int = Field(default=0, ge=0)
    model: Model = "preact_resnet18"
    width: int | None = Field(default=None, ge=1, le=1024)
    drop: str | None = None
    method: Method = "erm"
    alpha: float | None = Field(default=None, gt=0, le=MOST_ALPHA)
    lam: str | None = None
    lam_per: LambdaPer = "batch"
    lam_labels: str | None = None
    mix: Mixed = "both"
    same_class: bool = False
    nearest: int | None = Field(default=None, ge=1, le=1000)
    correct_lam: bool = False
    layers: str | None = None
    rate: float | None = Field(default=None, gt=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, le=1)
    adversarial_eps: Budget | None = None
    adversarial_steps: int = Field(default=10, ge=1)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=0.1, gt=0)
    warmup: int = Field(default=0, ge=0)
    warmup_lr: float = Field(default=0.0, ge=0)
    schedule: Schedule = "step"
    milestones: str | None = None
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    augment: Augment = "none"
    precision: Precision = "32"
    sync_batch_norm: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("drop")
    @classmethod
    def _drop(cls, value: str | None) -> str | None:
        if value is not None:
            kind, _, rate = value.partition(":")
            if kind not in DROPS or not re.fullmatch(r"0?\.\d+", rate) or not float(rate):
                raise ValueError(
                    f"{value!r} is not KIND:PROBABILITY, such as dropout:0.3; choose from {', '.join(DROPS)}"
                )
        return value

    @field_validator("lam", "lam_labels")
    @classmethod
    def _law(cls, value: str | None) -> str | None:
        if value is not None:
            parse_law(value)
        return value

    @field_validator("layers")
    @classmethod
    def _layers(cls, value: str | None) -> str | None:
        if value is not None and not all(re.fullmatch(rf"[0-{STAGES}]", part) for part in value.split(",")):
            raise ValueError(f"{value!r} is no list of stages from 0 (the input) to {STAGES}, such as 0,2,3")
        return value

    @field_validator("milestones")
    @classmethod
    def _milestones(cls, value: str | None) -> str | None:
        if value is not None:
            parts = value.split(",")
            if not all(part.isdecimal() for part in parts) or sorted(map(int, parts)) != [int(part) for part in parts]:
                raise ValueError(f"{value!r} is no list of rising epochs, such as 100,150")
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_write_beta(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("lam"), str):
            kind, _, alpha = values["lam"].strip().partition(":")
            if values.get("alpha") is not None:
                raise ValueError("alpha and lam both say how lambda is drawn: give one of them")
            if kind == "beta" and parse_law(values["lam"]):
                return {**values, "lam": None, "alpha": float(alpha)}
        return values

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        # Fields that stand on top of another recipe's, without a method of their own, are checked once they are there.
        if "method" in self.model_fields_set:
            for name, methods in FIELDS_OF_METHODS.items():
                if getattr(self, name) != type(self).model_fields[name].default and self.method not in methods:
                    named = " or ".join(repr(method) for method in METHODS if method in methods)
                    raise ValueError(f"{name} does not apply to method {self.method!r}; choose method {named}")
            for name, needed in NEEDS.items():
                if getattr(self, name) != type(self).model_fields[name].default and not getattr(self, needed):
                    raise ValueError(f"{name} does nothing without {needed}: give both or neither")
        if self.method == "manifold" and self.nearest and self.layers != "0":
            raise ValueError("nearest does not apply to hidden layers: choose layers 0 or method 'mixup'")
        idle = {
            "lam_labels": self.lam_labels is not None and self.mix != "both",
            "correct_lam": self.correct_lam and (self.mix == "inputs" or self.lam_labels is not None),
            "same_class": self.same_class and self.mix == "labels",
        }
        if pointless := next((name for name, given in idle.items() if given), None):
            beside = "lam_labels" if self.mix == "both" else f"mix {self.mix!r}"
            raise ValueError(f"{pointless} does nothing beside {beside}: leave one of them out")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"milestones do not apply to schedule {self.schedule!r}; choose schedule 'step'")
        if self.milestones and "epochs" in self.model_fields_set and self.decay_epochs[-1] >= self.epochs:
            raise ValueError(f"milestones {self.milestones} reach beyond the last of {self.epochs} epochs")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @property
    def law(self) -> Law:
        """How lambda is drawn."""
        return (
            parse_law(self.lam) if self.lam is not None else Law("beta", (1.0 if self.alpha is None else self.alpha,))
        )

    @property
    def stages(self) -> tuple[int, ...]:
        """Where is mixed: 0 is the input, 1 behind the stem, 2 and up behind the stages of blocks."""
        return tuple(int(part) for part in self.layers.split(",")) if self.layers else (0,)

    @property
    def dropped(self) -> tuple[Drop, float] | None:
        """What the network drops in training, and with which probability."""
        kind, _, rate = (self.drop or "").partition(":")
        return (cast(Drop, kind), float(rate)) if self.drop else None

    @property
    def decay_epochs(self) -> tuple[int, ...]:
        """The epochs, counted from 0, from which on the learning rate is a tenth of what it was."""
        if self.milestones:
            return tuple(int(part) for part in self.milestones.split(","))
        return tuple(math.ceil(self.epochs * share) for share in (0.5, 0.75))

    @property
    def training(self) -> str:
        """The method together with what else makes a network another kind of network, for results and reports."""
        kind, rate = self.dropped or ("", 0.0)
        extras = {
            kind.replace("_", "-"): rate,
            "smoothing": self.label_smoothing,
            "noise": self.noise,
            "pgd": self.adversarial_eps,
            "label-noise": self.label_noise,
        }
        return "+".join([self.method, *(f"{name}-{value:g}" for name, value in extras.items() if value)])

    def resolved(self, like: str | None) -> "Recipe":
        """Fill every field that was not set with the default for data that resembles ``like``.

        Raises:
            SpecError: fields do not fit each other.
        """
        given = self.model_dump(exclude_unset=True)
        filled = {**self.model_dump(), **DATA_DEFAULTS.get(like or "", {}), **given}
        if (filled["schedule"] != "step" or "epochs" in given) and "milestones" not in given:
            filled["milestones"] = None
        if filled["method"] in PAIRING and filled["lam"] is None and filled["alpha"] is None:
            filled["alpha"] = 1.0
        if filled["method"] == "manifold" and filled["layers"] is None:
            filled["layers"] = VERMA_LAYERS
        if filled["method"] in RANDOM_RATE and filled["rate"] is None:
            filled["rate"] = RANDOM_RATE[filled["method"]]
        published = PUBLISHED_WIDTHS.get(filled["model"])
        if published is None and filled["width"] is not None:
            raise SpecError(f"--width {filled['width']} does not apply to {filled['model']}: its name says its size")
        if published is not None and filled["width"] is None:
            filled["width"] = published if like in PUBLISHED_SCALE else min(SMALL_WIDTH, published)
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
        idle = {key for key, field in type(self).model_fields.items() if getattr(self, key) == field.default}
        # What the data set has defaults of its own for is written out, so that the command holds for itself.
        idle -= {key for defaults in DATA_DEFAULTS.values() for key in defaults} | {"data", "method", "seed"}
        flags = []
        for key, value in self.model_dump(exclude_none=True, exclude=idle).items():
            flag = f"--{key.replace('_', '-')}"
            flags += [flag] if value is True else [flag, str(value)]
        return shlex.join(["robustmix", "train", *flags, "--name", name])


def load_recipe_fields(values: Mapping[str, Any], where: str = "") -> Recipe:
    """Validate the fields of a recipe.

    Raises:
        SpecError: the first field that is wrong.
    """
    return validate(Recipe, values, where)
