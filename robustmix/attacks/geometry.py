"""The two norms that budgets are measured in: steepest directions, projections, lengths and random points."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from robustmix.moving import moved
from robustmix.rng import Stream, generator
from robustmix.spec.names import Norm
from robustmix.units import GREY_LEVELS, IMAGES

# Relative to a budget: what float32 makes of a whole number of grey levels, and of the length of many.
ROUNDING: Final = 1e-6


def steepest(slope: Tensor, norm: Norm) -> Tensor:
    """The direction of unit length [B, ...] that ascends fastest: the sign, or in L2 the slope over its length.

    Where the slope is zero, so is the direction.
    """
    if norm == "linf":
        return slope.sign()
    dims = _each(slope)
    largest = slope.abs().amax(dims, keepdim=True)
    # Scaled first: the squares of a saturated loss' slopes would underflow.
    scaled = slope / torch.where(largest > 0, largest, 1)
    return scaled / scaled.square().sum(dims, keepdim=True).sqrt().clamp(min=1)


def step(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    """One step along a direction, then the projection onto the budget around x and onto the valid range.

    In L-infinity written in the form of torchattacks' and foolbox' PGD, so that results agree bit for bit.
    """
    # In place: for large batches the memory of every temporary costs as much as what is computed into it.
    perturbation = (length * direction).add_(x_adv).sub_(x)
    if norm == "linf":
        return perturbation.clamp_(-eps, eps).add_(x).clamp_(IMAGES.low, IMAGES.high)
    size = perturbation.square().sum(_each(x), keepdim=True).sqrt()
    # What lies within the budget is multiplied by exactly 1, so that it keeps its bits.
    shrink = (eps / size.clamp(min=torch.finfo(x.dtype).tiny)).clamp_(max=1)
    return (x + perturbation * shrink).clamp_(IMAGES.low, IMAGES.high)


def lengths(perturbation: Tensor, norm: Norm) -> Tensor:
    """The length [B] of perturbations [B, ...]."""
    if norm == "linf":
        low, high = extremes(perturbation)
        return torch.maximum(-low, high)
    return perturbation.flatten(1).square().sum(dim=1).sqrt()


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest element [B] of each example of x [B, ...]; NaN if one is."""
    # Not by aminmax of what is flattened: channels-last inputs would be copied for it.
    return x.amin(_each(x)), x.amax(_each(x))


def longest(x: Tensor, norm: Norm) -> float:
    """The length of the longest perturbation of one example of x [B, ...] within the valid range."""
    span = IMAGES.high - IMAGES.low
    return span if norm == "linf" else span * math.sqrt(x.shape[1:].numel())


def random_signs(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    """Directions like x of unit length, every element by plus or minus the same."""
    signs = _rng(seed).integers(0, 2, tuple(x.shape), dtype=np.int8) * 2 - 1
    unit = 1 if norm == "linf" else 1 / math.sqrt(x.shape[1:].numel())
    return torch.empty_like(x).copy_(moved(torch.from_numpy(signs), x.device)).mul_(unit)


def random_point(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    """Perturbations like x, uniform in the ball of radius 1."""
    rng, shape = _rng(seed), tuple(x.shape)
    if norm == "linf":
        uniform = torch.from_numpy(rng.random(shape, dtype=np.float32))
        return torch.empty_like(x).copy_(moved(uniform, x.device)).mul_(2).sub_(1)
    normal = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    direction = torch.empty_like(x).copy_(moved(normal, x.device))
    radius = moved(torch.from_numpy(rng.random(len(x)) ** (1 / x.shape[1:].numel())).to(x.dtype), x.device)
    return direction * (radius / lengths(direction, "l2")).view(-1, *[1] * (x.ndim - 1))


def round_within(x_adv: Tensor, x: Tensor, eps: float | None, norm: Norm) -> Tensor:
    """Adversarial inputs as uint8 images that keep within the budget around x, itself made of whole grey levels.

    Args:
        x_adv: adversarial inputs [B, ...] in [0, 1].
        x: inputs [B, ...], multiples of 1/255.
        eps: budget, pixel units; None for the nearest level everywhere.
        norm: of the budget.
    """
    levels = (x * GREY_LEVELS).round()
    moved = x_adv * GREY_LEVELS - levels
    nearest = moved.round()
    if eps is not None and norm == "linf":
        most = math.floor(eps * GREY_LEVELS * (1 + ROUNDING))
        nearest = nearest.clamp(-most, most)
    elif eps is not None:
        # Rounded towards x where rounding to the nearest level leaves the budget.
        beyond = lengths(nearest, norm) > eps * GREY_LEVELS * (1 + ROUNDING)
        nearest = torch.where(beyond.view(-1, *[1] * (x.ndim - 1)), moved.trunc(), nearest)
    return (levels + nearest).clamp(0, GREY_LEVELS).to(torch.uint8)


def _rng(seed: Sequence[int]) -> np.random.Generator:
    return generator(seed[0], Stream.ATTACK, *seed[1:])


def _each(x: Tensor) -> tuple[int, ...]:
    """All dimensions of an example."""
    return tuple(range(1, x.ndim))
