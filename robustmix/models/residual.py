"""What residual networks share: how shortcut and branch are joined, what is dropped, and stages of blocks."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.models.network import Conv1x1, Dropping, conv3x3

Block = Callable[[int, int, int, Dropping | None], nn.Module]


class Residual(nn.Module):
    """The base of residual blocks: everything that they drop in training, and nothing in eval mode.

    What is kept is divided by its probability, so that the mean is the plain block.

    - ``dropout`` (Zagoruyko and Komodakis 2016, section 2.4): elements of the hidden state before the last convolution.
    - ``stochastic_depth`` (Huang et al. 2016): the branch as a whole, of each example by itself. Huang et al. draw once
      per batch, which would leave weights without a gradient and let processes disagree.
    - ``swapout`` (Singh et al. 2016, equation 4): elements of the shortcut and, independently, of the branch.

    Args:
        drop: what, and with which probability.
    """

    def __init__(self, drop: Dropping | None) -> None:
        super().__init__()
        self.drop = drop

    def thinned(self, hidden: Tensor) -> Tensor:
        """What the last convolution of the branch gets [B, C, H, W]."""
        if self.training and self.drop and self.drop[0] == "dropout":
            return F.dropout(hidden, self.drop[1])
        return hidden

    def joined(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """The sum of both [B, C, H, W]; the branch's memory is used for it."""
        kind, rate = self.drop or (None, 0.0)
        if self.training and kind == "stochastic_depth":
            return shortcut + branch * F.dropout(branch.new_ones(len(branch), 1, 1, 1), rate)
        if self.training and kind == "swapout":
            return F.dropout(branch, rate).add_(F.dropout(shortcut, rate))
        return branch.add_(shortcut)


def over_blocks(drop: Dropping | None, blocks: int) -> list[Dropping | None]:
    """What each of some blocks drops.

    Dropout has one probability; those of stochastic depth (Huang et al. 2016, equation 4) and swapout (the schedule
    "Linear(1, theta)" of Singh et al. 2016) rise linearly to the given one in the last block.
    """
    if drop is None or drop[0] == "dropout":
        return [drop] * blocks
    kind, rate = drop
    return [(kind, rate * number / blocks) for number in range(1, blocks + 1)]


def residual_stages(
    block: Block, depths: Sequence[int], inputs: int, outputs: int, drop: Dropping | None
) -> list[nn.Module]:
    """Stages of residual blocks; each after the first halves the image and doubles the channels.

    Args:
        block: makes one from its input channels, output channels, stride and what it drops.
        depths: blocks per stage.
        inputs: channels before the first stage.
        outputs: channels of the first stage.
        drop: see `over_blocks`.
    """
    drops = iter(over_blocks(drop, sum(depths)))
    stages: list[nn.Module] = []
    for index, depth in enumerate(depths):
        strides = [1 if index == 0 else 2] + [1] * (depth - 1)
        blocks = []
        for stride in strides:
            blocks.append(block(inputs, outputs * 2**index, stride, next(drops)))
            inputs = outputs * 2**index
        stages.append(nn.Sequential(*blocks))
    return stages


def conv_stem(channels: int, width: int) -> nn.Module:
    """A 3x3 convolution, batch norm and ReLU: how networks for small images begin."""
    return nn.Sequential(conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def normalised_projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A shortcut's 1x1 convolution and batch norm where the shape changes, nothing where it does not."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(Conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
