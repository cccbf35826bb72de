"""The parts that all networks share."""

import pytest
import torch
import torch.nn.functional as F
from networks import images
from torch import nn

from robustmix.models.network import Conv1x1, Linear, PooledLinear, he_normal
from robustmix.models.wide_resnet import wrn28_10

DRAWS = 40_000


@pytest.mark.parametrize("kind", ["dropout", "dropconnect"])
def test_mean_of_many_draws_of_a_linear_layer_is_the_plain_layer(kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Linear(3, 2, (kind, 0.4)).double()  # type: ignore[arg-type]
        x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).expand(DRAWS, 3)
        draws = layer(x)
        plain = layer.eval()(x[:1])
    error = draws.std(dim=0) / DRAWS**0.5
    assert ((draws.mean(dim=0) - plain).abs() <= 5 * error).all()
    assert (draws.std(dim=0) > 0.05).all()
    torch.testing.assert_close(plain, F.linear(x[:1], layer.weight, layer.bias))


def test_dropconnect_drops_weights_and_biases_of_each_example_by_themselves() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Linear(2, 2, ("dropconnect", 0.4)).double()
        layer.weight.data = torch.tensor([[1.0, 10.0], [100.0, 1000.0]], dtype=torch.float64)
        layer.bias.data = torch.tensor([10_000.0, 20_000.0], dtype=torch.float64)
        drawn = (layer(torch.ones(DRAWS, 2, dtype=torch.float64)) * 0.6).round()
    # Every sum tells by its digits which of its terms were kept.
    first, second = drawn.unbind(dim=1)
    kept = torch.stack(
        [first % 10, first // 10 % 10, first // 10_000, second // 100 % 10, second // 1000 % 10, second // 20_000]
    )
    assert set(kept.flatten().tolist()) == {0.0, 1.0}
    assert kept.mean(dim=1).tolist() == pytest.approx([0.6] * 6, abs=5 * (0.24 / DRAWS) ** 0.5)
    assert torch.corrcoef(kept).fill_diagonal_(0).abs().max() < 5 / DRAWS**0.5


def test_dropout_drops_inputs_of_each_example() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Linear(2, 2, ("dropout", 0.4)).double()
        layer.weight.data = torch.tensor([[1.0, 10.0], [1.0, 10.0]], dtype=torch.float64)
        layer.bias.data.zero_()
        drawn = (layer(torch.ones(DRAWS, 2, dtype=torch.float64)) * 0.6).round()
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    shares = [(drawn[:, 0] == total).double().mean().item() for total in (0, 1, 10, 11)]
    assert shares == pytest.approx([0.16, 0.24, 0.24, 0.36], abs=0.015)


def test_pooled_layer_takes_the_mean_of_all_pixels() -> None:
    layer, x = PooledLinear(3, 2).double(), images(2, 3, 5)
    torch.testing.assert_close(layer(x), F.linear(x.sum(dim=(2, 3)) / 25, layer.weight, layer.bias))


@pytest.mark.parametrize("inputs", [3, 15, 16, 17])
@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_of_few_channels_is_the_plain_one(inputs: int, side: int, stride: int) -> None:
    layer, x = Conv1x1(inputs, 4, stride).double(), images(2, inputs, side)
    expected = F.conv2d(x, layer.weight, stride=stride)
    torch.testing.assert_close(layer(x), expected)
    assert layer.bias is None
    ours, theirs = (torch.autograd.grad(y.square().sum(), layer.weight)[0] for y in (layer(x), expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("inputs", [4, 8])
def test_gradient_of_a_strided_convolution_of_few_channels_is_right_channels_last(inputs: int) -> None:
    """oneDNN's own writes past its memory here, which crashes or not."""
    layer, x = Conv1x1(inputs, 2 * inputs, 2), images(8, inputs, 64).detach().float()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(y.square().sum(), layer.weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


def test_he_normal_draws_by_the_outputs_of_a_convolution() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = he_normal(wrn28_10(3, 32, 10))
    for part in network.modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 4000:
            area = part.kernel_size[0] * part.kernel_size[1]
            assert part.weight.std().item() == pytest.approx((2 / (area * part.out_channels)) ** 0.5, rel=0.05)
