"""How a training batch is mixed. A method plans on the labels alone; the plan is then applied to inputs and labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustmix.spec.names import Method
from robustmix.spec.recipe import Recipe


@dataclass(frozen=True)
class Mix:
    """The plan of one batch of B examples: which example each is mixed with, and how much of itself it keeps.

    Attributes:
        partner: int64 [B], the index in the batch of each example's partner.
        lam_x: float32 [B], share of the example in its mixed input, in [0, 1].
        lam_y: float32 [B], share of the example's label in its soft label, in [0, 1].
    """

    partner: Tensor
    lam_x: Tensor
    lam_y: Tensor


def plan_erm(labels: Tensor, rng: np.random.Generator, recipe: Recipe) -> None:
    """Empirical risk minimisation (Vapnik 1999): nothing is mixed."""


def plan_mixup(labels: Tensor, rng: np.random.Generator, recipe: Recipe) -> Mix:
    """mixup (Zhang et al. 2018, eq. 1): lambda ~ Beta(alpha, alpha), partners are a random permutation of the batch.

    Args:
        labels: int64 [B].
        rng: the generator of this step.
        recipe: gives ``alpha`` and ``lam_per``.
    """
    size = len(labels)
    partner = torch.from_numpy(rng.permutation(size))
    alpha = recipe.alpha
    assert alpha is not None, "Recipe.resolved sets alpha"
    draws = rng.beta(alpha, alpha, size if recipe.lam_per == "example" else 1)
    lam = torch.from_numpy(draws.astype(np.float32)).expand(size)
    return Mix(partner.to(labels.device), lam.to(labels.device), lam.to(labels.device))


Planner = Callable[[Tensor, np.random.Generator, Recipe], Mix | None]

METHODS: Final[dict[Method, Planner]] = {"erm": plan_erm, "mixup": plan_mixup}


def apply(mix: Mix | None, hidden: Tensor) -> Tensor:
    """Mix inputs or hidden states [B, ...]: lambda of each example and 1 - lambda of its partner."""
    if mix is None:
        return hidden
    lam = mix.lam_x.to(hidden.dtype).view(-1, *[1] * (hidden.ndim - 1))
    return lam * hidden + (1 - lam) * hidden[mix.partner]


def soft_labels(mix: Mix | None, labels: Tensor, classes: int) -> Tensor:
    """The mixed one-hot labels [B, classes] of int64 labels [B]."""
    one_hot = F.one_hot(labels, classes).float()
    if mix is None:
        return one_hot
    lam = mix.lam_y.unsqueeze(1)
    return lam * one_hot + (1 - lam) * one_hot[mix.partner]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, K] against soft labels [B, K].

    It is linear in the labels, hence equal to lambda CE(y_a) + (1 - lambda) CE(y_b) (Zhang et al. 2018).
    """
    return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def mixed_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Training accuracy's numerator: the label share of the predicted class, summed over the batch."""
    return targets.gather(1, logits.argmax(dim=1, keepdim=True)).sum()
