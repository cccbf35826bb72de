"""What an attack ascends: one loss per example from logits and labels."""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from robustmix.errors import EvaluationError, SpecError
from robustmix.spec.names import LOSSES as NAMES
from robustmix.spec.names import Loss, unknown

DLR_CLASSES: Final = 3


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy [B], as the papers ascend it.

    In float32 its gradient loses the true-class term once the logit gap exceeds about 17, and vanishes near 104.
    """
    return F.cross_entropy(logits, y, reduction="none")


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """The negative log-odds of the label [B]: logsumexp over the other classes minus z_y.

    Its logit gradient is softmax over the others minus onehot(y): that of cross-entropy divided by 1 - p_y, so the same
    direction for each example, and it cannot saturate.
    """
    return _others(logits, y).logsumexp(dim=1) - _own(logits, y)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus z_y [B] (Carlini and Wagner 2017, f_6): its sign ignores the logits' scale."""
    return _others(logits, y).amax(dim=1) - _own(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The difference of logits ratio [B] (Croce and Hein 2020, eq. 6): the margin over z_1 - z_3, sorted descending.

    Invariant to shift and scale of the logits; needs three classes.
    """
    top = logits.topk(DLR_CLASSES, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES: Final[dict[Loss, Callable[[Tensor, Tensor], Tensor]]] = {
    "ce": cross_entropy,
    "logodds": log_odds,
    "margin": margin,
    "dlr": dlr,
}


def loss_named(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss by its name.

    Raises:
        SpecError: there is none.
    """
    for known, loss in LOSSES.items():
        if known == name:
            return loss
    raise SpecError(unknown("loss", name, NAMES))


def check_loss_fits(name: str, classes: int) -> None:
    """Find out whether a loss is defined for models that tell so many classes apart.

    Raises:
        EvaluationError: it is not.
    """
    if name == "dlr" and classes < DLR_CLASSES:
        raise EvaluationError(
            f"the loss 'dlr' needs three classes, the model tells {classes} apart: choose ce, logodds or margin"
        )


def _own(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y.unsqueeze(1)).squeeze(1)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y.unsqueeze(1), -torch.inf)
