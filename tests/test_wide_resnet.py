"""WRN-28-10 is written out from its weights alone."""

import torch
import torch.nn.functional as F
from networks import assert_same, images, norm, shaken
from torch import nn

from robustmix.models.wide_resnet import WideBlock, wrn28_10


def test_network_is_the_one_written_out_by_hand() -> None:
    network, x = shaken(wrn28_10(3, 4, 5)), images(2, 3, 20)
    state = network.state_dict()
    hidden = F.conv2d(x, state["stem.weight"], padding=1)
    assert hidden.shape[1] == 16
    for stage in range(3):
        for block in range(4):
            at = f"stages.{stage}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            active = F.relu(norm(state, f"{at}.bn1", hidden))
            projection = state.get(f"{at}.shortcut.weight")
            shortcut = hidden if projection is None else F.conv2d(active, projection, stride=stride)
            assert (projection is None) == (block > 0)
            inner = F.conv2d(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            hidden = shortcut + F.conv2d(
                F.relu(norm(state, f"{at}.bn2", inner)), state[f"{at}.conv2.weight"], padding=1
            )
    pooled = F.relu(norm(state, "head.0", hidden)).mean(dim=(2, 3))
    assert_same(network(x), F.linear(pooled, state["head.2.weight"], state["head.2.bias"]), x)


def test_block_without_a_branch_is_the_identity() -> None:
    block = WideBlock(4, 4, 1).double().eval()
    nn.init.zeros_(block.conv2.weight)
    x = images(2, 4, 5)
    assert torch.equal(block(x), x)
