"""The steps of an epoch: which examples each takes, how they are mixed, and what becomes of its inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from robustmix.attacks.gradient import from_start
from robustmix.attacks.victim import Victim, frozen
from robustmix.data import Dataset, Share
from robustmix.device import autocast
from robustmix.mixing import Mix, add_noise, apply, plan
from robustmix.rng import Stream, generator
from robustmix.spec.attack import PGD_STRIDE, Course
from robustmix.spec.recipe import Recipe
from robustmix.team import Team
from robustmix.units import to_pixels


@dataclass(frozen=True)
class Step:
    """One training batch as one process sees it.

    Attributes:
        epoch: from 0.
        number: of the step in its epoch, from 0.
        size: examples in the whole batch.
        share: what this process needs of them.
        mix: how they are mixed.
        rank: of the process.
    """

    epoch: int
    number: int
    size: int
    share: Share
    mix: Mix | None
    rank: int


def planned_steps(
    recipe: Recipe, data: Dataset, epoch: int, first: int, team: Team, neighbours: Tensor | None = None
) -> Iterator[Step]:
    """The steps of an epoch: a random order of the examples, and how each batch is mixed.

    Args:
        recipe: of the run.
        data: with the training examples.
        epoch: from 0.
        first: number of the first step that is wanted.
        team: of processes; each gets its part of every batch.
        neighbours: int64 [N, k], training examples that are near each; None unless partners are drawn from them.
    """
    split = data.train
    order = torch.from_numpy(generator(recipe.seed, Stream.ORDER, epoch).permutation(len(split)))
    for number, rows in list(enumerate(order.split(recipe.batch_size)))[first:]:
        low, high = (len(rows) * part // team.size for part in (team.rank, team.rank + 1))
        rng = generator(recipe.seed, Stream.MIX, epoch, number)
        near = None if neighbours is None else neighbours[rows]
        mix = plan(recipe, split.labels[rows], split.shape, rng, epoch, near, classes=len(data.classes))
        positions, places = torch.arange(low, high), rows
        if mix is not None:
            places = rows if mix.outside is None else torch.cat([rows, mix.outside])
            positions, mix = mix.part(low, high)
            mix = mix.to(team.device)
        share = Share(places[positions], positions, len(places), number)
        yield Step(epoch, number, len(rows), share, mix, team.rank)


def disturbed(recipe: Recipe, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
    """Inputs as the recipe changes them before mixing: by PGD (Madry et al. 2018), by Gaussian noise.

    Adversarial examples are crafted in eval mode, each against its own label, so that mixing remains what it is
    (as Lamb et al. 2019 mix them).

    Args:
        recipe: of the run.
        model: the network that is trained, by itself: not as several processes share it.
        x: inputs [R, ...] in [0, 1], the rows of the step's share.
        y: their labels [R].
        step: of which they are.
    """
    share, counters = step.share, (step.epoch, step.number)
    if recipe.adversarial_eps is not None:
        eps, steps = to_pixels(recipe.adversarial_eps), recipe.adversarial_steps
        drawn = generator(recipe.seed, Stream.START, *counters).random((share.size, *x.shape[1:]), dtype=np.float32)
        offsets = torch.empty_like(x).copy_(torch.from_numpy(drawn)[share.positions]).mul_(2).sub_(1)
        victim = Victim(_Autocast(model, recipe), y, "ce", trusted=True)
        with frozen(model):
            x = from_start(victim, x, offsets, Course(eps, steps, PGD_STRIDE * eps / steps), "linf")
    if recipe.noise:
        rng = generator(recipe.seed, Stream.NOISE, *counters)
        x = add_noise(x, recipe.noise, rng, share.positions, share.size)
    return x


def mixed_logits(model: nn.Module, x: Tensor, mix: Mix | None) -> Tensor:
    """Logits [n, K] of a step's examples.

    Args:
        model: to be trained.
        x: inputs [R, ...] before mixing.
        mix: how they are mixed, here or behind one of the model's stages; None for not at all.
    """
    if mix is None or mix.layer == 0:
        inputs = apply(mix, x)
        logits: Tensor = model(inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs)
    else:
        logits = model(x, mix.layer, partial(apply, mix))
    return logits


@contextmanager
def seeded(recipe: Recipe, step: Step, device: torch.device) -> Iterator[None]:
    """A context for the forward pass of one step, whose random numbers are a function of (seed, epoch, step, rank).

    Dropout takes no generator: torch's global one is seeded, and left as it was. Nothing happens where the recipe drops
    nothing.

    Args:
        recipe: of the run.
        step: that is made.
        device: of the network.
    """
    if recipe.drop is None:
        yield
        return
    counters = (step.epoch, step.number, step.rank)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(generator(recipe.seed, Stream.DROP, *counters).integers(2**63)))
        yield


class _Autocast(nn.Module):
    """A model in the precision that it is trained in."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        # fp16 needs its loss scaled, or small gradients vanish and their signs with them.
        self.model, self.precision = model, "32" if recipe.precision == "fp16" else recipe.precision

    def forward(self, x: Tensor) -> Tensor:
        with autocast(x.device, self.precision):
            logits: Tensor = self.model(x)
        return logits
