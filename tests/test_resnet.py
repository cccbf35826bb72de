"""ResNet-18 is torchvision's behind another stem."""

from types import ModuleType

import torch
import torch.nn.functional as F
from networks import assert_same, images, norm, same_weights, shaken
from torch import Tensor, nn

from robustmix.models.resnet import BasicBlock, resnet18


def test_network_is_torchvisions_behind_the_stem(torchvision: ModuleType) -> None:
    from torchvision.models.resnet import BasicBlock as Block

    blocks, inputs = [], 4
    for outputs in (4, 8, 16, 32):
        for number in range(2):
            stride = 2 if outputs > 4 and number == 0 else 1
            down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            blocks.append(Block(inputs, outputs, stride, down if stride == 2 else None))
            inputs = outputs
    network = shaken(resnet18(3, 4, 5))
    theirs = same_weights(network.stages, nn.Sequential(*blocks))
    state, x = network.state_dict(), images(2, 3, 20)
    hidden = F.relu(norm(state, "stem.1", F.conv2d(x, state["stem.0.weight"], padding=1)))
    expected = F.linear(theirs(hidden).mean(dim=(2, 3)), state["head.weight"], state["head.bias"])
    assert_same(network(x), expected, x)


def test_names_of_the_weights_stay_those_of_files_that_exist() -> None:
    names = list(resnet18(3, 4, 5).state_dict())
    assert names[0] == "stem.0.weight"
    assert {"stem.1.running_var", "stages.0.0.bn2.bias", "stages.3.0.shortcut.1.weight", "head.bias"} <= set(names)


def test_block_adds_its_input_before_the_last_relu() -> None:
    block = BasicBlock(4, 4, 1).double().eval()
    nn.init.zeros_(block.conv2.weight)
    x: Tensor = images(2, 4, 5)
    assert torch.equal(block(x), F.relu(x))
