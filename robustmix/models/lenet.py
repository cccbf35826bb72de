"""LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, for images of any size from 8x8."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.models.network import Dropping, Linear, Network

# LeCun et al. put 28x28 digits into the middle of 32x32 pixels; the second convolution leaves 5x5 of them.
SIDE = 32
MAP = 5


class Embed(nn.Module):
    """Put smaller images into the middle of 32x32 zeros, which are the mean after normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, max(H, 32), max(W, 32)]."""
        missing = [max(0, SIDE - size) for size in (x.shape[3], x.shape[2])]
        if not any(missing):
            return x
        return F.pad(x, [part for gap in missing for part in (gap // 2, gap - gap // 2)])


class Windows(nn.Module):
    """Average the maps of larger images over 5x5 windows of one size, and flatten them.

    Torch's adaptive pooling would do; its backward pass adds in no fixed order on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, 25 C]."""
        strides = [size // MAP for size in x.shape[2:]]
        sizes = [size - (MAP - 1) * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
        return F.avg_pool2d(x, sizes, strides).flatten(1)


def lenet(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """LeNet-5: two convolutions and three fully connected layers, before each of which dropout can stand.

    Width 6, and then 16, 120 and 84 as published (others in proportion), with 1 channel and 10 classes: 61,706
    parameters.
    """
    second, third, fourth = 8 * width // 3, 20 * width, 14 * width
    stem = nn.Sequential(Embed(), nn.Conv2d(channels, width, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    stages = (
        nn.Sequential(nn.Conv2d(width, second, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(Windows(), Linear(second * MAP**2, third, drop), nn.ReLU(inplace=True)),
        nn.Sequential(Linear(third, fourth, drop), nn.ReLU(inplace=True)),
    )
    return Network(stem, stages, Linear(fourth, classes, drop))
