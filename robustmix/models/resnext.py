"""ResNeXt (Xie et al. 2017) for small images: bottlenecks whose 3x3 convolution is split into groups."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.models.network import Conv1x1, Dropping, Network, PooledLinear, conv3x3, he_normal
from robustmix.models.residual import Residual, conv_stem, normalised_projection, residual_stages

GROUPS = 8


class GroupedBlock(Residual):
    """Three post-activated convolutions, 1x1, grouped 3x3 and 1x1; the first two have twice the outputs."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: Dropping | None = None) -> None:
        super().__init__(drop)
        inner = 2 * outputs
        self.conv1 = Conv1x1(inputs, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, GROUPS)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = Conv1x1(inner, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = normalised_projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        hidden = F.relu(self.bn1(self.conv1(x)), inplace=True)
        hidden = F.relu(self.bn2(self.conv2(hidden)), inplace=True)
        branch = self.bn3(self.conv3(self.thinned(hidden)))
        return F.relu(self.joined(branch, self.shortcut(x)), inplace=True)


def resnext29_8x64d(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """ResNeXt-29, 8x64d: three stages of three blocks, 8 groups of ``width`` channels in the first stage.

    Width 64 with 3 channels and 10 classes: 34.4 M parameters.
    """
    stem = conv_stem(channels, width)
    stages = residual_stages(GroupedBlock, (3, 3, 3), width, 4 * width, drop)
    return he_normal(Network(stem, stages, PooledLinear(16 * width, classes)))
