"""DenseNet-BC (Huang et al. 2017) for small images: every layer sees the outputs of all before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.models.network import Conv1x1, Dropping, Network, PooledLinear, conv3x3, he_normal

BLOCKS = 3


class Thinned(nn.Module):
    """The base of what has convolutions after which dropout follows in training (Huang et al. 2017, section 4.2)."""

    def __init__(self, drop: Dropping | None) -> None:
        super().__init__()
        self.drop = drop

    def thinned(self, hidden: Tensor) -> Tensor:
        """What a convolution gives on [B, C, H, W]."""
        return F.dropout(hidden, self.drop[1]) if self.training and self.drop else hidden


class DenseLayer(Thinned):
    """A bottleneck (1x1, 4 k channels) and a 3x3 convolution (k channels), whose output joins the input."""

    def __init__(self, inputs: int, growth: int, drop: Dropping | None) -> None:
        super().__init__(drop)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = Conv1x1(inputs, 4 * growth)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, inputs + growth, H, W]."""
        hidden = self.thinned(self.conv1(F.relu(self.bn1(x), inplace=True)))
        hidden = self.thinned(self.conv2(F.relu(self.bn2(hidden), inplace=True)))
        return torch.cat((x, hidden), dim=1)


class Transition(Thinned):
    """Half of the channels, a quarter of the pixels."""

    def __init__(self, inputs: int, drop: Dropping | None) -> None:
        super().__init__(drop)
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = Conv1x1(inputs, inputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, inputs / 2, H / 2, W / 2]."""
        return F.avg_pool2d(self.thinned(self.conv(F.relu(self.bn(x), inplace=True))), 2)


def densenet_bc100(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """DenseNet-BC, L = 100. Growth rate (width) 12 with 3 channels and 10 classes: 0.8 M parameters."""
    return _densenet(100, channels, width, classes, drop)


def densenet_bc190(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """DenseNet-BC, L = 190. Growth rate (width) 40 with 3 channels and 10 classes: 25.6 M parameters."""
    return _densenet(190, channels, width, classes, drop)


def _densenet(depth: int, channels: int, growth: int, classes: int, drop: Dropping | None) -> Network:
    """Stages 2 and up are the dense blocks, each with the transition before it."""
    layers = (depth - 4) // (2 * BLOCKS)
    inputs = 2 * growth
    stem = conv3x3(channels, inputs)
    stages = []
    for block in range(BLOCKS):
        parts: list[nn.Module] = []
        if block > 0:
            parts.append(Transition(inputs, drop))
            inputs //= 2
        for _ in range(layers):
            parts.append(DenseLayer(inputs, growth, drop))
            inputs += growth
        stages.append(nn.Sequential(*parts))
    head = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), PooledLinear(inputs, classes))
    return he_normal(Network(stem, stages, head))
