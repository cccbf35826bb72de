"""Networks away from their start values, and what an independent computation of them needs."""

from typing import Any

import torch
from torch import Tensor, nn

from robustmix.models.network import Network


def shaken(network: nn.Module) -> nn.Module:
    """In eval mode and float64, every buffer and every parameter of a batch norm away from its start value."""
    draws = torch.Generator().manual_seed(3)
    for module in network.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            assert module.running_mean is not None
            for tensor, low in (
                (module.weight.data, 0.5),
                (module.running_var, 0.5),
                (module.bias.data, 0.0),  # mostly above 0, so that few ReLUs are silent
                (module.running_mean, -0.5),
            ):
                tensor.copy_(low + torch.rand(tensor.shape, generator=draws, dtype=torch.float64))
    return network


def images(count: int, channels: int, side: int) -> Tensor:
    """Normal numbers in float64 that want a gradient."""
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, side, side, generator=draws, dtype=torch.float64).requires_grad_()


def same_weights(source: nn.Module, target: nn.Module) -> nn.Module:
    """The target with the source's weights and buffers, which must have the same shapes in the same order."""
    target.double().eval()
    pairs = zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    for given, taken in pairs:
        assert given.shape == taken.shape
        taken.copy_(given)
    return target


def assert_same(one: Tensor, other: Tensor, x: Tensor) -> None:
    """Two outputs agree, and so do the gradients with respect to what they were computed from."""
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    weights = torch.linspace(1, 2, one.numel(), dtype=one.dtype).view_as(one)
    gradients = [torch.autograd.grad((output * weights).sum(), x)[0] for output in (one, other)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    assert gradients[0].abs().max() > 1e-6


def hidden_states(network: Network, x: Tensor) -> list[Tensor]:
    """What each stage gives, in order."""
    states = []
    for stage in (network.stem, *network.stages):
        x = stage(x)
        states.append(x)
    return states


def norm(state: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    """Batch norm in eval mode, written out."""
    mean, var, weight, bias = (
        state[f"{at}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


class Reusing(nn.Module):
    """A network whose outputs, and the gradients of its inputs, lie where those of the pass before lay."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.memory: dict[tuple[str, torch.Size], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of inputs [B, ...]."""
        for results in self.memory.values():
            results.fill_(torch.nan)
        found: Tensor = _Reuse.apply(x, self)
        return found

    def kept(self, what: str, value: Tensor) -> Tensor:
        """The value in the memory of that name."""
        return self.memory.setdefault((what, value.shape), torch.empty_like(value)).copy_(value).view_as(value)


class _Reuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, owner: Reusing) -> Tensor:  # type: ignore[override]
        ctx.owner = owner
        ctx.save_for_backward(x.detach().clone())
        with torch.no_grad():
            return owner.kept("output", owner.network(x)).detach()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        with torch.enable_grad():
            x = ctx.saved_tensors[0].requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.owner.network(x), x, slope)
        return ctx.owner.kept("gradient", gradient), None
