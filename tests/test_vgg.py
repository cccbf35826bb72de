"""VGG-11 is torchvision's with one fully connected layer."""

from types import ModuleType

import pytest
import torch.nn.functional as F
from networks import assert_same, hidden_states, images, same_weights, shaken
from torch import nn

from robustmix.models.vgg import vgg11


def test_network_is_torchvisions_with_another_head(torchvision: ModuleType) -> None:
    from torchvision.models.vgg import make_layers

    network = shaken(vgg11(3, 2, 5))
    features = make_layers([2, "M", 4, "M", 8, 8, "M", 16, 16, "M", 16, 16, "M"], batch_norm=True)
    theirs = same_weights(nn.ModuleList([network.stem, network.stages]), features)
    state, x = network.state_dict(), images(2, 3, 32)
    assert_same(network(x), F.linear(theirs(x).flatten(1), state["head.weight"], state["head.bias"]), x)


@pytest.mark.parametrize(("side", "sides"), [(32, [16, 8, 4, 2, 1]), (28, [14, 7, 4, 2, 1]), (8, [4, 2, 1, 1, 1])])
def test_every_stage_halves_the_image_and_rounds_up(side: int, sides: list[int]) -> None:
    assert [hidden.shape[2] for hidden in hidden_states(shaken(vgg11(3, 2, 5)), images(1, 3, side))] == sides
