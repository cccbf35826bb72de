"""Networks and attacks that an audit has to catch, each with the test that is meant for it."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.attacks import geometry
from robustmix.data import load_data

Images = tuple[Tensor, Tensor]
Nets = dict[str, nn.Module]


class Behind(nn.Module):
    """A network between two changes."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)))


class Stubborn(nn.BatchNorm2d):
    """Batch norm that stays in train mode."""

    def train(self, mode: bool = True) -> "Stubborn":
        self.training = True
        return self


def digits(half: str, count: int | None = None) -> Images:
    """Images and labels of one half of digits."""
    split = getattr(load_data("digits"), half).first(count)
    x, y = split.gather(torch.arange(len(split)), torch.device("cpu"))
    return x, y


def trained(seed: int, before: Callable[[Tensor], Tensor] = lambda x: x) -> nn.Module:
    """Three layers on digits, in a second."""
    x, y = digits("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(20):
            for part in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(network(before(x[part])), y[part]).backward()
                optimiser.step()
        optimiser.zero_grad()
    return network.eval()


def honest_nets() -> Nets:
    """What the broken ones are made of: two that see pixels, and two that were trained on something else."""
    return {
        "erm": trained(1),
        "other": trained(2),
        "centred": trained(1, lambda x: (x - 0.5) / 0.25),
        "grey": trained(1, lambda x: x * 255),
    }


def rounded(x: Tensor) -> Tensor:
    """Nine grey levels, without any slope."""
    return (x * 8).round() / 8


def shattered(x: Tensor) -> Tensor:
    """Nearly the same image, but the slope of each pixel is from -9 to 11, whatever the network is."""
    return x + torch.sin(1000 * x) / 100


# Nothing may be attacked before these are mended.
BROKEN: Final[dict[str, tuple[str, Callable[[Nets], nn.Module]]]] = {
    "train-mode batch norm": ("eval-mode", lambda nets: nn.Sequential(Stubborn(1), nets["erm"])),
    "batch statistics": (
        "any-batch",
        lambda nets: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nets["erm"]),
    ),
    "random inference": ("same-twice", lambda nets: Behind(nets["erm"], after=partial(F.dropout, p=0.1))),
    "probabilities": ("logits", lambda nets: Behind(nets["erm"], after=lambda z: z.softmax(1))),
    "overflow": ("finite", lambda nets: Behind(nets["erm"], after=lambda z: z / (z.argmax(1, keepdim=True) != 3))),
    "wrong scale": ("accuracy", lambda nets: nets["grey"]),
    "no normalisation": ("accuracy", lambda nets: nets["centred"]),
    "wrong normalisation": ("accuracy", lambda nets: Behind(nets["erm"], before=lambda x: (x - 0.5) / 0.25)),
    "other order of classes": ("accuracy", lambda nets: Behind(nets["erm"], after=lambda z: z.roll(1, 1))),
    "thermometer": ("gradient", lambda nets: Behind(nets["erm"], before=lambda x: (x * 4).round().long() / 4)),
}

# Attacked, beside an honest one, these look robust.
MASKED: Final[dict[str, tuple[set[str], Callable[[Nets], nn.Module]]]] = {
    "rounded activations": (
        {"gradient", "transfer", "large-budget", "binarisation"},
        lambda nets: Behind(nets["erm"], before=rounded),
    ),
    "shattered gradients": (
        {"iterated", "transfer", "binarisation"},
        lambda nets: Behind(nets["erm"], before=shattered),
    ),
    "saturated logits": ({"log-odds"}, lambda nets: Behind(nets["erm"], after=lambda z: 100 * z)),
}


def _step_of_a_tenth(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Any) -> Tensor:
    short = length if length == eps else length / 10
    return geometry.step(x_adv, x, direction, eps, short, norm)


# In place of what stands in robustmix.attacks.gradient: any network looks robust.
WEAK: Final[dict[str, tuple[set[str], str, Callable[..., Tensor]]]] = {
    "steps too short": ({"iterated", "large-budget"}, "step", _step_of_a_tenth),
    "no-op attack": (
        {"large-budget", "binarisation"},
        "steepest",
        lambda slope, _norm: torch.zeros_like(slope),
    ),
    "wrong sign": (
        {"large-budget", "binarisation"},
        "steepest",
        lambda slope, _norm: -slope.sign(),
    ),
    "another image's gradient": ({"binarisation"}, "steepest", lambda slope, _norm: slope.roll(1, 0).sign()),
}
