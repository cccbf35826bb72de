"""PreAct ResNets are those of mixup-cifar10, written out from their weights alone."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, images, norm, shaken
from torch import Tensor, nn

from robustmix.models.preact_resnet import (
    PreActBlock,
    PreActBottleneck,
    preact_resnet18,
    preact_resnet34,
    preact_resnet50,
)

CASES = [(preact_resnet18, (2, 2, 2, 2)), (preact_resnet34, (3, 4, 6, 3)), (preact_resnet50, (3, 4, 6, 3))]


def by_hand(state: dict[str, Tensor], x: Tensor, depths: Sequence[int], raw_shortcut: bool = False) -> Tensor:
    x = F.relu(norm(state, "stem.1", F.conv2d(x, state["stem.0.weight"], padding=1)))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            at = f"stages.{stage}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            active = F.relu(norm(state, f"{at}.bn1", x))
            shortcut = x if raw_shortcut else active
            if (projection := state.get(f"{at}.shortcut.weight")) is not None:
                shortcut = F.conv2d(active, projection, stride=stride)
            if f"{at}.conv3.weight" in state:
                hidden = F.conv2d(active, state[f"{at}.conv1.weight"])
                hidden = F.conv2d(
                    F.relu(norm(state, f"{at}.bn2", hidden)), state[f"{at}.conv2.weight"], stride=stride, padding=1
                )
                hidden = F.conv2d(F.relu(norm(state, f"{at}.bn3", hidden)), state[f"{at}.conv3.weight"])
            else:
                hidden = F.conv2d(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
                hidden = F.conv2d(F.relu(norm(state, f"{at}.bn2", hidden)), state[f"{at}.conv2.weight"], padding=1)
            x = hidden + shortcut
    return F.linear(x.mean(dim=(2, 3)), state["head.weight"], state["head.bias"])


@pytest.mark.parametrize(("make", "depths"), CASES)
@pytest.mark.parametrize("side", [8, 16, 20])
def test_network_is_the_one_written_out_by_hand(make: type, depths: Sequence[int], side: int) -> None:
    network, x = shaken(make(3, 2, 5)), images(2, 3, side)
    assert_same(network(x), by_hand(network.state_dict(), x, depths), x)


@pytest.mark.parametrize(("make", "depths"), CASES)
def test_shortcut_carries_the_activated_input_where_nothing_is_projected(make: type, depths: Sequence[int]) -> None:
    """As mixup-cifar10 has it; He et al. 2016b carry the raw input there, which is another function."""
    network, x = shaken(make(3, 4, 5)), images(2, 3, 8)
    raw = by_hand(network.state_dict(), x, depths, raw_shortcut=True)
    assert (network(x) - raw).abs().max() > 1e-3 * raw.abs().max()


@pytest.mark.parametrize(("block", "last"), [(PreActBlock(4, 4, 1), "conv2"), (PreActBottleneck(4, 4, 1), "conv3")])
def test_block_without_a_branch_is_its_activation(block: nn.Module, last: str) -> None:
    block = block.double().eval()
    nn.init.zeros_(getattr(block, last).weight)
    x = images(2, 4, 5)
    assert torch.equal(block(x), F.relu(block.bn1(x)))


def test_bottleneck_is_a_quarter_as_wide_inside() -> None:
    network = preact_resnet50(3, 4, 5)
    widths = [stage[0].conv2.in_channels for stage in network.stages]  # type: ignore[index, union-attr]
    assert widths == [4, 8, 16, 32]
    assert [stage[0].conv3.out_channels for stage in network.stages] == [16, 32, 64, 128]  # type: ignore[index, union-attr]


def test_names_of_the_weights_stay_those_of_files_that_exist() -> None:
    names = set(preact_resnet18(3, 4, 5).state_dict())
    assert {"stem.0.weight", "stem.1.running_var", "stages.0.0.bn1.bias", "stages.3.0.shortcut.weight"} <= names
    assert {"stages.3.1.conv2.weight", "head.weight", "head.bias"} <= names
    assert len(names) == 6 + 8 * 12 + 3 + 2


def test_fresh_weights_are_drawn_in_the_order_of_the_layers() -> None:
    """A seed gives the weights that it always gave, so that a recipe stays the same run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = preact_resnet18(3, 4, 5)
        torch.manual_seed(0)
        stem = nn.Conv2d(3, 4, 3, bias=False)
        first = nn.Conv2d(4, 4, 3, bias=False)
    state = network.state_dict()
    assert torch.equal(state["stem.0.weight"], stem.weight)
    assert torch.equal(state["stages.0.0.conv1.weight"], first.weight)
