"""ResNet-18 for small images: a 3x3 stem, four stages of two blocks, global average pooling, one linear layer.

Any input from 8x8 works: three stages halve the image, and the pooling takes what is left.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (at stride 1) and has no bias, since batch norm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class PreActBlock(nn.Module):
    """Two pre-activated convolutions (He et al. 2016b) as mixup-cifar10 connects them.

    Its shortcut carries the *activated* input, also where no projection is needed; He et al. carry the raw one.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut: nn.Module = (
            nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        active = F.relu(self.bn1(x))
        hidden = self.conv2(F.relu(self.bn2(self.conv1(active))))
        total: Tensor = hidden + self.shortcut(active)
        return total


class BasicBlock(nn.Module):
    """Two post-activated convolutions (He et al. 2016a)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for small images.

    Args:
        block: the residual block.
        depths: blocks per stage; each stage after the first halves the image and doubles the channels.
        channels: of the input.
        width: channels of the first stage.
        classes: outputs.
    """

    def __init__(
        self,
        block: type[PreActBlock | BasicBlock],
        depths: Sequence[int],
        channels: int,
        width: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU())
        stages = []
        inputs = width
        for index, depth in enumerate(depths):
            outputs = width * 2**index
            strides = [1 if index == 0 else 2] + [1] * (depth - 1)
            stages.append(
                nn.Sequential(
                    *(block(inputs if first == 0 else outputs, outputs, s) for first, s in enumerate(strides))
                )
            )
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [B, C, H, W] to logits [B, classes]."""
        hidden = self.stem(x)
        for stage in self.stages:
            hidden = stage(hidden)
        logits: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return logits


def preact_resnet18(channels: int, width: int, classes: int) -> nn.Module:
    """The "PreAct ResNet-18" of Zhang et al. 2018, as their code defines it.

    Pre-activated blocks behind a conv-BN-ReLU stem, and neither batch norm nor ReLU before the pooling. Width 64 with
    10 classes and 3 channels: 11.17 M parameters.
    """
    return ResNet(PreActBlock, (2, 2, 2, 2), channels, width, classes)


def resnet18(channels: int, width: int, classes: int) -> nn.Module:
    """ResNet-18 (He et al. 2016a) with a 3x3 stem and no max pooling, as is usual for CIFAR: 11.17 M parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), channels, width, classes)
