"""ResNet (He et al. 2016a) for small images: a 3x3 stem without max pooling, as is usual for CIFAR."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.models.network import Dropping, Network, PooledLinear, conv3x3
from robustmix.models.residual import Residual, conv_stem, normalised_projection, residual_stages


class BasicBlock(Residual):
    """Two post-activated convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: Dropping | None = None) -> None:
        super().__init__(drop)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = normalised_projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        hidden = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = self.bn2(self.conv2(self.thinned(hidden)))
        return F.relu(self.joined(branch, self.shortcut(x)), inplace=True)


def resnet18(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """ResNet-18: four stages of two blocks. Width 64 with 3 channels and 10 classes: 11.17 M parameters."""
    stem = conv_stem(channels, width)
    stages = residual_stages(BasicBlock, (2, 2, 2, 2), width, width, drop)
    return Network(stem, stages, PooledLinear(8 * width, classes))
