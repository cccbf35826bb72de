"""LeNet-5 is written out from its weights alone; images of other sizes are embedded, or their maps averaged."""

import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, images, shaken
from torch import Tensor

from robustmix.models.lenet import Embed, Windows, lenet


def features(state: dict[str, Tensor], x: Tensor) -> Tensor:
    for at in ("stem.1", "stages.0.0"):
        x = F.max_pool2d(F.relu(F.conv2d(x, state[f"{at}.weight"], state[f"{at}.bias"])), 2)
    return x


def connected(state: dict[str, Tensor], x: Tensor) -> Tensor:
    for at in ("stages.1.1", "stages.2.0"):
        x = F.relu(F.linear(x, state[f"{at}.weight"], state[f"{at}.bias"]))
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize(("side", "padding"), [(32, (0, 0)), (28, (2, 2)), (8, (12, 12)), (9, (11, 12)), (33, (0, 0))])
def test_network_is_the_one_written_out_by_hand(side: int, padding: tuple[int, int]) -> None:
    network, x = shaken(lenet(1, 6, 10)), images(2, 1, side)
    state = network.state_dict()
    assert [state[f"{at}.weight"].shape[0] for at in ("stem.1", "stages.0.0", "stages.1.1", "stages.2.0", "head")] == [
        6,
        16,
        120,
        84,
        10,
    ]
    maps = features(state, F.pad(x, (*padding, *padding)))
    assert maps.shape[2:] == (5, 5)
    assert_same(network(x), connected(state, maps.flatten(1)), x)


def test_height_and_width_are_embedded_by_themselves() -> None:
    x = images(1, 1, 40)[:, :, :20, :]
    embedded = Embed()(x)
    assert embedded.shape == (1, 1, 32, 40)
    assert torch.equal(embedded[:, :, 6:26], x)
    assert embedded[:, :, :6].abs().sum() == embedded[:, :, 26:].abs().sum() == 0


@pytest.mark.parametrize("shape", [(5, 5), (10, 15), (25, 5)])
def test_windows_are_torchs_adaptive_ones_where_they_divide_the_map(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Windows()(x), F.adaptive_avg_pool2d(x, 5).flatten(1))


@pytest.mark.parametrize(("size", "window", "stride"), [(6, 2, 1), (9, 5, 1), (11, 3, 2), (37, 9, 7)])
def test_windows_of_other_maps_have_one_size_and_reach_both_ends(size: int, window: int, stride: int) -> None:
    x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    pooled = Windows()(x).view(5, 5)
    for number in range(5):
        part = x[0, 0, number * stride : number * stride + window, size - window :]
        torch.testing.assert_close(pooled[number, 4], part.mean())
    assert 4 * stride + window == size
