"""DenseNet-BC has torchvision's dense blocks and transitions behind another stem."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, images, same_weights, shaken
from torch import nn

from robustmix.models.densenet import DenseLayer, Transition, densenet_bc100, densenet_bc190


@pytest.mark.parametrize(("make", "layers"), [(densenet_bc100, 16), (densenet_bc190, 31)])
def test_network_is_torchvisions_behind_the_stem(make: type, layers: int, torchvision: ModuleType) -> None:
    from torchvision.models import DenseNet

    theirs = DenseNet(
        growth_rate=2, block_config=(layers,) * 3, num_init_features=4, bn_size=4, num_classes=5, memory_efficient=False
    )
    network = shaken(make(3, 2, 5))
    # What stands in front of the dense blocks is made for large images there.
    theirs.features = nn.Sequential(*list(theirs.features.children())[4:])
    ours = nn.ModuleList([network.stages, network.head])
    same_weights(ours, theirs)
    x = images(2, 3, 12)
    expected = theirs(F.conv2d(x, network.state_dict()["stem.weight"], padding=1))
    assert_same(network(x), expected, x)


def plain_and_dropping(part: type, *sizes: int) -> tuple[nn.Module, nn.Module]:
    plain, dropping = part(*sizes, None).double(), part(*sizes, ("dropout", 0.25)).double()
    dropping.load_state_dict(plain.state_dict())
    return plain, dropping


def test_dropout_follows_every_convolution_but_the_first() -> None:
    for part, convolutions in ((DenseLayer, ("conv1", "conv2")), (Transition, ("conv",))):
        plain, dropping = plain_and_dropping(part, 4, *((2,) if part is DenseLayer else ()))
        calls: list[int] = []

        def counted(hidden: torch.Tensor, calls: list[int] = calls) -> torch.Tensor:
            calls.append(hidden.shape[1])
            return hidden

        dropping.thinned = counted  # type: ignore[assignment, method-assign]
        x = images(3, 4, 6)
        assert torch.equal(dropping(x), plain(x))
        assert calls == [getattr(plain, name).out_channels for name in convolutions]


def test_input_of_a_layer_is_passed_on_whole() -> None:
    _, dropping = plain_and_dropping(DenseLayer, 4, 2)
    x = images(3, 4, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = dropping(x)
    assert torch.equal(output[:, :4], x)
    assert 0.1 < (output[:, 4:] == 0).double().mean() < 0.4
