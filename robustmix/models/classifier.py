"""A network together with the normalisation that belongs to it."""

from collections.abc import Callable
from typing import Final

import torch
from pydantic import Field
from torch import Tensor, nn

from robustmix.errors import EvaluationError
from robustmix.models.resnet import preact_resnet18, resnet18
from robustmix.spec.names import ModelName
from robustmix.spec.validation import Spec

MODELS: Final[dict[ModelName, Callable[[int, int, int], nn.Module]]] = {
    "preact_resnet18": preact_resnet18,
    "resnet18": resnet18,
}


# Three halvings leave one pixel of it.
SMALLEST_SIDE: Final = 8


class ModelSpec(Spec):
    """All that is needed to build a network again; stored beside its weights.

    Attributes:
        name: of the architecture.
        width: channels of the first stage.
        classes: names of the classes, in the order of the logits.
        shape: [C, H, W] of the inputs that it was trained on.
    """

    name: ModelName
    width: int = Field(ge=1, le=1024)
    classes: tuple[str, ...] = Field(min_length=2)
    shape: tuple[int, int, int]


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

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.normalize = Normalize(spec.shape[0])
        self.network = MODELS[spec.name](spec.shape[0], spec.width, len(spec.classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] in [0, 1] to logits [B, K].

        Raises:
            EvaluationError: the channels do not fit, or the image is smaller than 8x8.
        """
        if x.ndim != 4 or x.shape[1] != self.spec.shape[0] or min(x.shape[2:]) < SMALLEST_SIDE:
            raise EvaluationError(
                f"{self.spec.name} takes images [B, {self.spec.shape[0]}, H, W] of at least 8x8; got {list(x.shape)}"
            )
        logits: Tensor = self.network(self.normalize(x))
        return logits


def build(spec: ModelSpec, mean: Tensor, std: Tensor) -> Classifier:
    """A network with fresh weights, drawn from torch's global generator, and the given channel statistics [C]."""
    model = Classifier(spec)
    model.normalize.mean.copy_(mean.view(1, -1, 1, 1))
    model.normalize.std.copy_(std.view(1, -1, 1, 1))
    return model
