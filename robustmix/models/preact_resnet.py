"""Pre-activation ResNets (He et al. 2016b) as mixup-cifar10, the code of Zhang et al. 2018, connects them.

Its shortcut carries the *activated* input, also where no projection is needed; He et al. carry the raw one. Its stem is
convolution, batch norm and ReLU, and neither batch norm nor ReLU stand before the pooling.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.models.network import Conv1x1, Dropping, Network, PooledLinear, conv3x3
from robustmix.models.residual import Block, Residual, conv_stem, residual_stages

EXPANSION = 4


class PreActBlock(Residual):
    """Two pre-activated convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: Dropping | None = None) -> None:
        super().__init__(drop)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def branch(self, active: Tensor) -> Tensor:
        """From the activated input [B, inputs, H, W] to what is added [B, outputs, H / stride, W / stride]."""
        hidden = F.relu(self.bn2(self.conv1(active)), inplace=True)
        added: Tensor = self.conv2(self.thinned(hidden))
        return added

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        active = F.relu(self.bn1(x), inplace=True)
        return self.joined(self.branch(active), self.shortcut(active))


class PreActBottleneck(Residual):
    """Three pre-activated convolutions, 1x1, 3x3 and 1x1; the first two have a quarter of the outputs."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: Dropping | None = None) -> None:
        super().__init__(drop)
        inner = outputs // EXPANSION
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = Conv1x1(inputs, inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = Conv1x1(inner, outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        active = F.relu(self.bn1(x), inplace=True)
        hidden = F.relu(self.bn2(self.conv1(active)), inplace=True)
        hidden = F.relu(self.bn3(self.conv2(hidden)), inplace=True)
        return self.joined(self.conv3(self.thinned(hidden)), self.shortcut(active))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A shortcut's 1x1 convolution where the shape changes, nothing where it does not."""
    return nn.Identity() if stride == 1 and inputs == outputs else Conv1x1(inputs, outputs, stride)


def preact_resnet18(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """The "PreAct ResNet-18" of Zhang et al. 2018.

    Width 64 with 3 channels and 10 classes: 11.17 M parameters.
    """
    return _network(PreActBlock, (2, 2, 2, 2), channels, width, width, classes, drop)


def preact_resnet34(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """PreAct ResNet-34. Width 64 with 3 channels and 10 classes: 21.28 M parameters."""
    return _network(PreActBlock, (3, 4, 6, 3), channels, width, width, classes, drop)


def preact_resnet50(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """PreAct ResNet-50, of bottlenecks. Width 64 with 3 channels and 10 classes: 23.5 M parameters."""
    return _network(PreActBottleneck, (3, 4, 6, 3), channels, width, EXPANSION * width, classes, drop)


def _network(
    block: Block,
    depths: Sequence[int],
    channels: int,
    width: int,
    outputs: int,
    classes: int,
    drop: Dropping | None,
) -> Network:
    stem = conv_stem(channels, width)
    stages = residual_stages(block, depths, width, outputs, drop)
    return Network(stem, stages, PooledLinear(8 * outputs, classes))
