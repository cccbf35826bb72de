"""FGSM and I-FGSM in L-infinity, without random start."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from robustmix.attacks.victim import frozen, loss_gradient
from robustmix.errors import EvaluationError, SpecError
from robustmix.spec.names import ATTACKS, AttackName, attack_name, unknown
from robustmix.spec.suite import DEFAULT_STEPS
from robustmix.units import IMAGES, check_length


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015, section 4): one full step along the gradient's sign.

    Args:
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float, in [0, 1].
        y: true labels, int64 [B].
        eps: budget in L-infinity, pixel units (``4/255``).

    Returns:
        Adversarial inputs [B, ...] within eps of x and within [0, 1].

    Raises:
        SpecError: eps is negative, not finite or above 1.
        EvaluationError: x, y or the gradient is unusable.
    """
    return next(sweep("fgsm", model, x, y, [eps]))[1]


def ifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = DEFAULT_STEPS,
    step_size: float | None = None,
) -> Tensor:
    """Iterated FGSM (Kurakin et al. 2017, eq. 2; also BIM), projected onto the budget after every step.

    Args:
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float, in [0, 1].
        y: true labels, int64 [B].
        eps: budget in L-infinity, pixel units (``4/255``).
        steps: number of gradients.
        step_size: length of a step, pixel units; eps / steps if not given (Zhang et al. 2018, "equal step size").

    Returns:
        Adversarial inputs [B, ...] within eps of x and within [0, 1].

    Raises:
        SpecError: a length is unusable, or steps x step_size is less than eps, which could never be reached.
        EvaluationError: x, y or the gradient is unusable.
    """
    return next(sweep("ifgsm", model, x, y, [eps], steps, step_size))[1]


def sweep(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Sequence[float],
    steps: int = DEFAULT_STEPS,
    step_size: float | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """One attack at many budgets, sharing the first gradient, which is the same for all of them.

    FGSM needs no other, so any number of budgets costs one gradient. Every result is bit for bit what the attack at
    that budget alone gives.

    Args:
        name: ``fgsm`` or ``ifgsm`` (``bim``).
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float, in [0, 1].
        y: true labels, int64 [B].
        eps: budgets in L-infinity, pixel units.
        steps: gradients per budget of ``ifgsm``.
        step_size: length of a step of ``ifgsm``, pixel units; each budget's eps / steps if not given.

    Yields:
        (eps, adversarial inputs [B, ...]) in the order given, each its own tensor.

    Raises:
        SpecError: the attack is unknown, a length is unusable, or a budget could never be reached.
        EvaluationError: x, y or a gradient is unusable.
    """
    attack = _check_name(name)
    if attack == "fgsm":
        steps, step_size = 1, None
    if steps < 1:
        raise SpecError(f"steps={steps!r} must be at least 1")
    lengths = [(check_length(e, "eps"), _step_length(e, steps, step_size)) for e in eps]
    _check_batch(x.detach(), y)
    return _sweep(model, x.detach(), y, lengths, steps)


def _sweep(
    model: nn.Module, x: Tensor, y: Tensor, lengths: list[tuple[float, float]], steps: int
) -> Iterator[tuple[float, Tensor]]:
    with frozen(model):
        first = loss_gradient(model, x, y).sign_()
    for eps, length in lengths:
        x_adv = _step(x, x, first, eps, length)
        for _ in range(steps - 1):
            with frozen(model):
                sign = loss_gradient(model, x_adv, y).sign_()
            x_adv = _step(x_adv, x, sign, eps, length)
        yield eps, x_adv


def _step(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    """One step along the sign, then the projection onto the budget around x and onto the valid range.

    Written in the form of torchattacks' and foolbox' PGD, so that results agree bit for bit.
    """
    moved = x_adv + length * sign
    return (x + (moved - x).clamp_(-eps, eps)).clamp_(IMAGES.low, IMAGES.high)


def _check_name(name: str) -> AttackName:
    known = attack_name(name)
    for choice in ATTACKS:
        if known == choice:
            return choice
    raise SpecError(unknown("attack", name, ATTACKS))


def _step_length(eps: float, steps: int, step_size: float | None) -> float:
    if step_size is None:
        return eps / steps
    check_length(step_size, "step_size")
    if steps * step_size < eps * (1 - 1e-9):
        raise SpecError(
            f"{steps} steps of step_size={step_size:g} reach only {steps * step_size:g}, not eps={eps:g}: take more "
            f"steps or a step_size of at least {eps / steps:g}"
        )
    return step_size


def _check_batch(x: Tensor, y: Tensor) -> None:
    if not x.is_floating_point():
        raise EvaluationError(f"inputs must be float in [0, 1]; got {x.dtype}: divide uint8 images by 255")
    if len(x) != len(y) or y.ndim != 1 or y.dtype != torch.int64:
        raise EvaluationError(f"labels must be int64 [{len(x)}], one per input; got {y.dtype} {list(y.shape)}")
    low, high = (float(end) for end in x.aminmax()) if x.numel() else (0.0, 0.0)
    if not (low >= IMAGES.low and high <= IMAGES.high):
        raise EvaluationError(
            f"inputs run from {low:g} to {high:g}, outside [0, 1]: pass pixels, and put normalisation inside the model"
        )
