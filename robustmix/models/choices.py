"""What each network can do, so that what does not fit is refused before anything is built."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from robustmix.errors import SpecError
from robustmix.spec.names import Drop


class Abilities(NamedTuple):
    """What can be done with a network in training.

    Attributes:
        stages: after which its hidden states can be mixed, from 1, the stem.
        drops: what it can drop.
    """

    stages: int
    drops: tuple[Drop, ...]


RESIDUAL: Final[tuple[Drop, ...]] = ("dropout", "stochastic_depth", "swapout")
CONNECTED: Final[tuple[Drop, ...]] = ("dropout", "dropconnect")

ABILITIES: Final[dict[str, Abilities]] = {
    "preact_resnet18": Abilities(5, RESIDUAL),
    "preact_resnet34": Abilities(5, RESIDUAL),
    "preact_resnet50": Abilities(5, RESIDUAL),
    "resnet18": Abilities(5, RESIDUAL),
    "wrn28_10": Abilities(4, RESIDUAL),
    "densenet_bc100": Abilities(4, ("dropout",)),
    "densenet_bc190": Abilities(4, ("dropout",)),
    "resnext29_8x64d": Abilities(4, RESIDUAL),
    "vgg11": Abilities(5, CONNECTED),
    "lenet": Abilities(4, CONNECTED),
}


def check_drop(model: str, drop: tuple[Drop, float] | None) -> None:
    """Check that a network can drop what it is to drop in training.

    Args:
        model: its name, also one of torchvision's or timm's.
        drop: what, and with which probability in (0, 1); None for nothing.

    Raises:
        SpecError: it cannot.
    """
    if drop is None:
        return
    kind, rate = drop
    own = ABILITIES[model].drops if model in ABILITIES else ()
    if kind not in own:
        able = [name for name, abilities in ABILITIES.items() if kind in abilities.drops]
        instead = f"{' or '.join(own)}, or a model of" if own else "a model of"
        raise SpecError(f"drop {kind} does not apply to {model}: choose {instead} {', '.join(able)}")
    if not 0 < rate < 1:
        raise SpecError(f"drop {kind}:{rate:g}: its probability must lie between 0 and 1")


def check_layers(model: str, layers: Iterable[int]) -> None:
    """Check that a network has the stages after which is to be mixed.

    Args:
        model: its name, also one of torchvision's or timm's.
        layers: the stages; 0 is the input, which every network has.

    Raises:
        SpecError: it has not.
    """
    stages = ABILITIES[model].stages if model in ABILITIES else 0
    for layer in layers:
        if not 0 <= layer <= stages:
            own = f"choose 0 (the input) to {stages}" if stages else "choose 0 (the input)"
            able = [name for name, abilities in ABILITIES.items() if layer <= abilities.stages]
            others = f", or a model of {', '.join(able)}" if layer > 0 and able else ""
            raise SpecError(f"layer {layer} of {model} cannot be mixed: {own}{others}")
