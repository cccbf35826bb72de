"""Wide ResNet (Zagoruyko and Komodakis 2016): few, wide, pre-activated blocks."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.models.network import Dropping, Network, PooledLinear, conv3x3, he_normal
from robustmix.models.preact_resnet import PreActBlock
from robustmix.models.residual import residual_stages

STEM = 16


class WideBlock(PreActBlock):
    """Two pre-activated convolutions (He et al. 2016b): the shortcut carries the raw input unless it is projected."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        active = F.relu(self.bn1(x), inplace=True)
        shortcut = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return self.joined(self.branch(active), shortcut)


def wrn28_10(channels: int, width: int, classes: int, drop: Dropping | None = None) -> Network:
    """WRN-28-10: a stem of 16 channels, three stages of four blocks, batch norm and ReLU before the pooling.

    Width 160, ten times the stem's, with 3 channels and 10 classes: 36.5 M parameters.
    """
    stem = conv3x3(channels, STEM)
    stages = residual_stages(WideBlock, (4, 4, 4), STEM, width, drop)
    outputs = 4 * width
    head = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), PooledLinear(outputs, classes))
    return he_normal(Network(stem, stages, head))
