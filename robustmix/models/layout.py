"""How images lie in memory: all that is attacked lies channels-last, which not every network takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Contiguous(nn.Module):
    """A network that cannot take channels-last, behind a copy of its inputs in the usual layout.

    So it is with one that flattens by ``x.view(len(x), -1)``. Its weights stay as they lie: where they lie
    channels-last, so do the outputs of convolutions, whatever the inputs are.

    Attributes:
        network: the network itself.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, C, H, W] in any layout to what the network gives for them."""
        # Of one channel, contiguous() would keep the strides of channels-last, and convolutions go by them.
        outputs: Tensor = self.network(x.clone(memory_format=torch.contiguous_format))
        return outputs


def fitted(network: nn.Module, x: Tensor) -> nn.Module:
    """A caller's network for images in channels-last layout: itself if it takes them, or else behind `Contiguous`.

    Found by passes in eval mode without a gradient, of which only a RuntimeError counts. The network is left as it was
    found, its weights in their layout included.

    Args:
        network: takes images and gives anything.
        x: a few images [B, C, H, W] in any layout, on the network's device; inputs of other shapes have no layout.

    Returns:
        The network behind `Contiguous` if it takes x only so. Otherwise the network itself, also if it takes x in
        neither layout, so that the caller's own pass reports the mistake.
    """
    if x.ndim != 4 or _takes(network, x):
        return network
    other = Contiguous(network)
    return other if _takes(other, x) else network


def laid_out(network: nn.Module, x: Tensor) -> nn.Module:
    """A network whose weights nobody else cares for, for images in channels-last layout; see `fitted`.

    Args:
        network: its weights are moved into channels-last layout if it takes x so, or else into the usual one.
        x: a few images [B, C, H, W] in any layout, on the network's device.

    Returns:
        The network, behind `Contiguous` if it takes x only so.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not _takes(network, x):
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return fitted(network, x)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put off each module's train flag itself, so that no ``train()`` can keep it; restore each one's afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _takes(network: nn.Module, x: Tensor) -> bool:
    """Whether a network takes images [B, C, H, W] when they lie channels-last."""
    x = x.clone(memory_format=torch.channels_last)
    try:
        with evaluating(network), torch.no_grad():
            network(x)
    except RuntimeError:
        return False
    return True
