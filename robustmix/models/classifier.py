"""A network together with the normalisation that belongs to it."""

from collections.abc import Callable
from typing import Final, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from robustmix.errors import EvaluationError, SpecError
from robustmix.models.choices import check_drop, check_layers
from robustmix.models.densenet import densenet_bc100, densenet_bc190
from robustmix.models.lenet import lenet
from robustmix.models.network import Dropping, Mixer, Network
from robustmix.models.packaged import packaged_network
from robustmix.models.preact_resnet import preact_resnet18, preact_resnet34, preact_resnet50
from robustmix.models.resnet import resnet18
from robustmix.models.resnext import resnext29_8x64d
from robustmix.models.vgg import vgg11
from robustmix.models.wide_resnet import wrn28_10
from robustmix.packages import one_line
from robustmix.spec.names import Model, ModelName
from robustmix.spec.validation import Spec

# From channels, width, classes and what is dropped in training.
MODELS: Final[dict[ModelName, Callable[[int, int, int, Dropping | None], Network]]] = {
    "preact_resnet18": preact_resnet18,
    "preact_resnet34": preact_resnet34,
    "preact_resnet50": preact_resnet50,
    "resnet18": resnet18,
    "wrn28_10": wrn28_10,
    "densenet_bc100": densenet_bc100,
    "densenet_bc190": densenet_bc190,
    "resnext29_8x64d": resnext29_8x64d,
    "vgg11": vgg11,
    "lenet": lenet,
}


# Three halvings leave one pixel of it.
SMALLEST_SIDE: Final = 8


class ModelSpec(Spec):
    """All that is needed to build a network again; stored beside its weights.

    Attributes:
        name: of the architecture: one of `MODELS`, ``torchvision:NAME`` or ``timm:NAME``.
        width: channels of the first stage (DenseNet: growth rate; ResNeXt: channels per group); None for networks of
            other packages.
        classes: names of the classes, in the order of the logits.
        shape: [C, H, W] of the inputs that it was trained on.
    """

    name: Model
    width: int | None = Field(ge=1, le=1024)
    classes: tuple[str, ...] = Field(min_length=2)
    shape: tuple[int, int, int]

    @model_validator(mode="after")
    def _width_fits(self) -> Self:
        if self.width is None and self.name in MODELS:
            raise ValueError(f"{self.name} needs a width")
        if self.width is not None and self.name not in MODELS:
            raise ValueError(f"width {self.width} does not apply to {self.name}: its name says its size")
        return self


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation of each channel, both in [0, 1] pixel units."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels [B, C, H, W] in [0, 1] to normalised ones."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Pixels in [0, 1] in, logits out.

    Attributes:
        spec: what it was built from.
        normalize: the first layer.
        network: the rest.
    """

    def __init__(self, spec: ModelSpec, drop: Dropping | None = None) -> None:
        super().__init__()
        check_drop(spec.name, drop)
        self.spec = spec
        self.normalize = Normalize(spec.shape[0])
        classes = len(spec.classes)
        self.network: nn.Module = (
            packaged_network(spec.name, spec.shape[0], classes)
            if spec.width is None
            else MODELS[cast(ModelName, spec.name)](spec.shape[0], spec.width, classes, drop)
        )

    def forward(self, x: Tensor, layer: int = 0, mix: Mixer | None = None) -> Tensor:
        """Map images to logits.

        Args:
            x: [B, C, H, W] in [0, 1].
            layer: the stage, from 1, whose hidden state is mixed; 0 for none.
            mix: from that stage's hidden state [B, ...] to the mixed one; not called at layer 0.

        Returns:
            Logits [B, K].

        Raises:
            EvaluationError: the channels do not fit, or the image is smaller than 8x8; or a network of another package
                returns anything but logits.
            SpecError: the network has no such stage.
        """
        if x.ndim != 4 or x.shape[1] != self.spec.shape[0] or min(x.shape[2:]) < SMALLEST_SIDE:
            raise EvaluationError(
                f"{self.spec.name} takes images [B, {self.spec.shape[0]}, H, W] of at least 8x8; got {list(x.shape)}"
            )
        if layer:
            check_layers(self.spec.name, (layer,))
        x = self.normalize(x)
        logits: Tensor = self.network(x, layer, mix) if layer else self.network(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise EvaluationError(
                f"{self.spec.name} returns no logits [B, K] alone in training: choose another network"
            )
        return logits


def build(spec: ModelSpec, mean: Tensor, std: Tensor, drop: Dropping | None = None) -> Classifier:
    """A network with fresh weights, drawn from torch's global generator.

    Args:
        spec: the network.
        mean: of each channel [C], in [0, 1] pixel units.
        std: standard deviation of each channel [C], likewise.
        drop: what it drops in training, by torch's global generator, and with which probability; what is kept is scaled
            so that eval mode is the plain network, and the weights do not know of it.

    Raises:
        SpecError: the network cannot drop that, is unknown to its package or cannot take such images.
    """
    model = Classifier(spec, drop)
    model.normalize.mean.copy_(mean.view(1, -1, 1, 1))
    model.normalize.std.copy_(std.view(1, -1, 1, 1))
    if spec.width is None:
        with one_line(f"{spec.name} cannot take images {list(spec.shape)}", SpecError), torch.no_grad():
            model.eval()(torch.zeros(1, *spec.shape))
    return model.train()
