"""VGG (Simonyan and Zisserman 2015) for small images: batch norm, and one fully connected layer instead of three."""

from torch import nn

from robustmix.models.network import Dropping, Network, PooledLinear


def vgg11(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """VGG-11 (configuration A) as code for CIFAR has it; every stage ends with a max pooling.

    The pooling rounds up, so that five of them leave a pixel of an 8x8 image; on 32x32 this makes no difference.
    Width 64 with 3 channels and 10 classes: 9.2 M parameters.
    """
    stages = []
    inputs = channels
    for factors in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        parts: list[nn.Module] = []
        for factor in factors:
            outputs = factor * width
            parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        stages.append(nn.Sequential(*parts, nn.MaxPool2d(2, ceil_mode=True)))
    return Network(stages[0], stages[1:], PooledLinear(inputs, classes, drop))
