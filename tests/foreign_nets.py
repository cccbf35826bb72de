"""Networks as other programs define them, for checkpoints such as theirs; written for these tests."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOME = "models.resnet"


class PreActBlock(nn.Module):
    """Two pre-activated convolutions, whose shortcut carries the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + self.shortcut(active)


class BasicBlock(nn.Module):
    """Two post-activated convolutions; ``shortcut`` as pytorch-cifar names it, ``downsample`` as torchvision does."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, four layers of two blocks, the average over all pixels, one linear layer."""

    def __init__(self, block: Callable[[int, int, int], nn.Module], channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.in_planes = width
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(block(width, width, 1), block(width, width, 1))
        self.layer2 = nn.Sequential(block(width, 2 * width, 2), block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(block(2 * width, 4 * width, 2), block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(block(4 * width, 8 * width, 2), block(8 * width, 8 * width, 1))
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.linear(x.mean(dim=(2, 3)))


def at_home(patch: pytest.MonkeyPatch) -> None:
    """Let the classes be those of ``models.resnet``, where mixup-cifar10 has them."""
    package, module = ModuleType("models"), ModuleType(HOME)
    patch.setitem(sys.modules, "models", package)
    patch.setitem(sys.modules, HOME, module)
    for kind in (PreActBlock, BasicBlock, ResNet):
        patch.setattr(kind, "__module__", HOME)
        setattr(module, kind.__name__, kind)


def _seen(block: Callable[[int, int, int], nn.Module], channels: int, width: int, classes: int) -> nn.Module:
    """A network in eval mode, the same each time, that has seen data, so that no buffer holds its start value."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        network = ResNet(block, channels, width, classes)
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        network.train()(torch.rand(16, channels, 8, 8))
    return network.eval()


def preact(channels: int = 1, width: int = 2, classes: int = 10) -> nn.Module:
    """What mixup-cifar10 calls ResNet18, small."""
    return _seen(PreActBlock, channels, width, classes)


def basic(channels: int = 1, width: int = 2, classes: int = 10) -> nn.Module:
    """What pytorch-cifar calls ResNet18, small."""
    return _seen(BasicBlock, channels, width, classes)
