"""The names of everything that can be chosen, so that help and validation need no torch.

The registries (``models.MODELS``, ``mixing.METHODS``, ...) are dict literals keyed by these; a test compares the keys.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Final, Literal, get_args

from pydantic import BeforeValidator

from robustmix.errors import SpecError

Method = Literal[
    "erm",
    "mixup",
    "mixup-h",
    "mixup-v",
    "mixup-hv",
    "mixup-hc",
    "manifold",
    "cutmix",
    "samplepairing",
    "disturblabel",
    "patchshuffle",
]
ModelName = Literal[
    "preact_resnet18",
    "preact_resnet34",
    "preact_resnet50",
    "resnet18",
    "wrn28_10",
    "densenet_bc100",
    "densenet_bc190",
    "resnext29_8x64d",
    "vgg11",
    "lenet",
]
# Networks of other packages, as torchvision:resnet50 and timm:resnet50.
ModelPackage = Literal["torchvision", "timm"]
Drop = Literal["dropout", "dropconnect", "stochastic_depth", "swapout"]
Mixed = Literal["both", "inputs", "labels"]
AttackName = Literal[
    "fgsm",
    "ifgsm",
    "mifgsm",
    "pgd",
    "signs",
    "noise",
    "autoattack",
    "square",
    "deepfool",
    "cw",
    "hopskipjump",
]
Norm = Literal["linf", "l2"]
Loss = Literal["ce", "logodds", "margin", "dlr"]
LabelPolicy = Literal["true", "predicted"]
Impl = Literal["robustmix", "torchattacks", "foolbox"]
CraftPrecision = Literal["32", "bf16"]
DataName = Literal["digits", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"]
Schedule = Literal["step", "cosine", "constant"]
Augment = Literal["none", "crop", "crop-flip", "resized-crop-flip"]
LambdaPer = Literal["batch", "example"]
Precision = Literal["32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]

METHODS: Final[tuple[Method, ...]] = get_args(Method)
MODELS: Final[tuple[ModelName, ...]] = get_args(ModelName)
ATTACKS: Final[tuple[AttackName, ...]] = get_args(AttackName)
LOSSES: Final[tuple[Loss, ...]] = get_args(Loss)
DATA: Final[tuple[DataName, ...]] = get_args(DataName)
DATA_CHOICES: Final = f"{', '.join(DATA)}, imagenet:PATH, folder:NAME_OR_PATH, npz:PATH"
MODEL_PACKAGES: Final[tuple[ModelPackage, ...]] = get_args(ModelPackage)
DROPS: Final[tuple[Drop, ...]] = get_args(Drop)

ALIASES: Final = {
    "bim": "ifgsm",
    "i-fgsm": "ifgsm",
    "mi-fgsm": "mifgsm",
    "random-signs": "signs",
    "uniform-noise": "noise",
    "c&w": "cw",
    "cw-l2": "cw",
    "hsj": "hopskipjump",
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def attack_name(value: object) -> object:
    """Replace an attack's other names (``bim``) by the one used in results."""
    return ALIASES.get(value.lower(), value.lower()) if isinstance(value, str) else value


def known_attack(name: str) -> AttackName:
    """An attack by any of its names.

    Raises:
        SpecError: there is none.
    """
    for known in ATTACKS:
        if attack_name(name) == known:
            return known
    raise SpecError(unknown("attack", name, [*ATTACKS, *ALIASES]))


Attack = Annotated[AttackName, BeforeValidator(attack_name)]


def model_name(value: object) -> object:
    """Check the name of a network: one of `MODELS`, or of a package, as ``torchvision:resnet50``.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        package, colon, name = value.partition(":")
        if value not in MODELS and not (package in MODEL_PACKAGES and colon and _NAME.fullmatch(name)):
            raise ValueError(f"{unknown('model', value, MODELS)}, torchvision:NAME, timm:NAME")
    return value


Model = Annotated[str, BeforeValidator(model_name)]


def check_name(name: str, what: str) -> str:
    """Check a name that becomes a folder or a file.

    Raises:
        SpecError: it holds anything but letters, digits, ``.``, ``_`` and ``-``, starts with one of the last three, or
            is longer than 100 characters.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise SpecError(
            f"{what} {name!r} is not a usable name: it becomes a folder, so write up to 100 letters, digits, "
            "'.', '_' or '-', beginning with a letter or digit and without '..'"
        )
    return name


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """One line for a name that does not exist: the name, the closest choice, all choices."""
    known = sorted(choices)
    close = get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {what} {name!r}{hint}; choose from {', '.join(known) or 'nothing: there is none yet'}"
