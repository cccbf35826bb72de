"""ResNeXt-29 has torchvision's blocks behind another stem."""

from types import ModuleType

import torch.nn.functional as F
from networks import assert_same, images, norm, same_weights, shaken
from torch import nn

from robustmix.models.resnext import resnext29_8x64d


def test_network_is_torchvisions_behind_the_stem(torchvision: ModuleType) -> None:
    from torchvision.models.resnet import Bottleneck

    blocks, inputs, width = [], 2, 2
    for stage in range(3):
        planes = width * 2**stage
        for number in range(3):
            stride = 2 if stage > 0 and number == 0 else 1
            down = nn.Sequential(nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
            # 64 channels per group at 64 planes, in 8 groups
            blocks.append(Bottleneck(inputs, planes, stride, down if number == 0 else None, groups=8, base_width=64))
            inputs = 4 * planes
    network = shaken(resnext29_8x64d(3, width, 5))
    theirs = same_weights(network.stages, nn.Sequential(*blocks))
    state, x = network.state_dict(), images(2, 3, 12)
    hidden = F.relu(norm(state, "stem.1", F.conv2d(x, state["stem.0.weight"], padding=1)))
    expected = F.linear(theirs(hidden).mean(dim=(2, 3)), state["head.weight"], state["head.bias"])
    assert_same(network(x), expected, x)
