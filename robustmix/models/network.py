"""What all networks share: stages that run one after another, between which can be mixed, and a head."""

from collections.abc import Callable, Iterable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.spec.names import Drop

Mixer = Callable[[Tensor], Tensor]
# Channels that oneDNN handles at once.
ONEDNN_BLOCK: Final = 16
# What is dropped in training, and with which probability.
Dropping = tuple[Drop, float]


class Network(nn.Module):
    """Stages and a head.

    Attributes:
        stem: stage 1.
        stages: stages 2 and up.
        head: from the last hidden state to the logits.
    """

    def __init__(self, stem: nn.Module, stages: Iterable[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head

    def forward(self, x: Tensor, layer: int = 0, mix: Mixer | None = None) -> Tensor:
        """Map normalised images to logits.

        Args:
            x: [B, C, H, W].
            layer: the stage, from 1, after which is mixed; 0 for none.
            mix: from that stage's hidden state [B, ...] to the mixed one.

        Returns:
            Logits [B, classes].
        """
        for number, stage in enumerate((self.stem, *self.stages), start=1):
            x = stage(x)
            if number == layer and mix is not None:
                x = mix(x)
        logits: Tensor = self.head(x)
        return logits


class Linear(nn.Linear):
    """A fully connected layer, in eval mode the plain one.

    ``dropout`` drops its inputs, ``dropconnect`` its weights and biases with a mask per example (Wan et al. 2013,
    section 3). What is kept is divided by its probability, so that eval mode needs the mean only, where Wan et al. draw
    from a normal distribution.

    Args:
        inputs: features.
        outputs: features.
        drop: ``dropout`` or ``dropconnect``; it does nothing of another kind.
    """

    def __init__(self, inputs: int, outputs: int, drop: Dropping | None = None) -> None:
        super().__init__(inputs, outputs)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs] to [B, outputs]."""
        kind, rate = self.drop or (None, 0.0)
        if self.training and kind == "dropconnect":
            weight = F.dropout(self.weight.expand(len(x), -1, -1), rate)
            bias = F.dropout(self.bias.expand(len(x), -1), rate)
            return torch.einsum("bi,boi->bo", x, weight) + bias
        return super().forward(F.dropout(x, rate) if self.training and kind == "dropout" else x)


class PooledLinear(Linear):
    """The average over all pixels, then a fully connected layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs]."""
        return super().forward(x.mean(dim=(2, 3)))


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (at stride 1) and has no bias, since batch norm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution without bias, since batch norm follows.

    With a stride and few channels it leaves out pixels before it convolves, which is the same map: on a CPU, the
    gradient of the strided, channels-last one writes past its memory (oneDNN issue 6035).

    Args:
        inputs: channels.
        outputs: channels.
        stride: in both directions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        rows, columns = self.stride
        if rows > 1 and self.in_channels < ONEDNN_BLOCK:
            return F.conv2d(x[:, :, ::rows, ::columns], self.weight)
        return super().forward(x)


def he_normal(network: Network) -> Network:
    """Draw the weights of all convolutions from N(0, 2 / (kernel area x outputs)) (He et al. 2015).

    The code of Wide ResNet, DenseNet and ResNeXt does; mixup-cifar10's ResNets start from torch's own weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
