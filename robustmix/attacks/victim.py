"""A model under attack: in eval mode, its parameters frozen, and left exactly as it was found."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.errors import EvaluationError


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode and freeze every parameter; restore each one's own flag afterwards.

    Frozen parameters keep the backward pass from computing their gradients, which an attack has no use for.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy with respect to the inputs, each example's own.

    Summed, not averaged, so that it depends neither on the batch size nor underflows because of it.

    Args:
        model: maps inputs [B, ...] to logits [B, K].
        x: inputs [B, ...].
        y: labels int64 [B].

    Raises:
        EvaluationError: a label is no class of the model, or a gradient is not finite; either would silently be no
            attack at all.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # What was made in a caller's inference mode cannot take part in a graph; a copy can.
        x, y = (tensor.clone() if tensor.is_inference() else tensor.detach() for tensor in (x, y))
        logits = model(x.requires_grad_())
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < logits.shape[1]):
            raise EvaluationError(
                f"labels run from {int(y.min())} to {int(y.max())}, but the model tells {logits.shape[1]} classes apart"
            )
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    finite = gradient.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        bad = int((~finite).sum())
        raise EvaluationError(
            f"the gradient of {bad} of {len(x)} examples is NaN or infinite (first: number "
            f"{int((~finite).int().argmax())} of the batch): the loss or the model overflows there"
        )
    return gradient
