"""Whether a model's outputs can be right, whatever the labels are."""

from typing import Final, Literal

import torch
from torch import Tensor, nn

from robustmix.attacks.victim import Victim, frozen
from robustmix.errors import EvaluationError
from robustmix.factories import memory_ran_out, running

# What can be wrong with outputs whatever the labels are, in the order in which it is looked for.
OutputFault = Literal["mode", "classes", "repeat", "batch", "finite", "probabilities"]

CHUNK: Final = 64
# Rounding differs between batch sizes; a batch norm that uses the batch's own statistics, and dropout, by far more.
SAME: Final = 1e-3


def check_outputs(name: str, model: nn.Module, x: Tensor, classes: int) -> Tensor:
    """Refuse a model whose outputs cannot be right whatever the labels are, and say what to do about it.

    Args:
        name: of the model, for messages.
        model: on the device of the images; is left as it was found.
        x: some hundred images [B, C, H, W] in [0, 1].
        classes: K.

    Returns:
        Their logits [B, K], in eval mode.

    Raises:
        EvaluationError: modules stay in train mode; logits are of another number than the classes, different at every
            call, dependent on the other images of the batch or on the place in it, not finite, or probabilities.
    """
    faults, logits = output_faults(name, model, x, classes)
    for fault in faults.values():
        raise EvaluationError(fault)
    assert logits is not None
    return logits


def output_faults(name: str, model: nn.Module, x: Tensor, classes: int) -> tuple[dict[OutputFault, str], Tensor | None]:
    """What is wrong with a model's outputs whatever the labels are, and what to do about it.

    Args:
        name: of the model, for messages.
        model: on the device of the images; is left as it was found.
        x: some hundred images [B, C, H, W] in [0, 1].
        classes: K.

    Returns:
        A line for each fault, and the logits [B, K] in eval mode. Modules in train mode are found before any pass,
        which could change them: then nothing else is looked for, and there are no logits; nor are there where they are
        of another number than the classes.
    """
    found: dict[OutputFault, str] = {}
    modes = [(module, module.training) for module in model.modules()]
    with frozen(model):
        for module, mode in modes:
            module.training = mode
        model.eval()
        if training := [f"{path} ({type(part).__name__})" for path, part in model.named_modules() if part.training]:
            found["mode"] = (
                f"{name}: {training[0]} is in train mode even after .eval(): a train() of its own must call "
                "super().train(mode)"
            )
            return found, None
        few = x[:CHUNK].clone()
        logits = logits_of(model, few)
        if logits.shape[1] != classes:
            found["classes"] = (
                f"{name} gives {logits.shape[1]} logits, but there are {classes} classes: choose a model of these "
                "classes, or select their logits in a FILE.py:FACTORY"
            )
            return found, None
        if not torch.equal(few, x[: len(few)]):
            found["repeat"] = (
                f"{name} changes the images that it is given, which others are to see as well: let it work on a copy, "
                "without operations in place on its input"
            )
        elif _differ(logits_of(model, few), logits):
            found["repeat"] = (
                f"{name} gives other logits for the same images at every call: seed it or switch its noise off in eval "
                "mode, as functional dropout with training=self.training"
            )
        elif _differ(*_elsewhere(model, few, logits)):
            found["batch"] = (
                f"{name} gives an image other logits in another batch, or at another place of it: its batch norm must "
                "keep running statistics and use them in eval mode, and noise must be the same for every image"
            )
        if len(x) > len(few):
            logits = logits_of(model, x)
    if bad := int((~logits.isfinite()).any(dim=1).sum()):
        found["finite"] = (
            f"{name}: the logits of {bad} of {len(x)} images are NaN or infinite: check its weights and normalisation"
        )
    if seen := _as_probabilities(logits):
        found["probabilities"] = (
            f"{name} gives probabilities ({seen}), which spoil gradients: return logits, drop the softmax or sigmoid"
        )
    return found, logits


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The logits [B, K] of inputs [B, ...], some at a time, without a gradient."""
    # No inference mode: what a network keeps for later calls could not take part in a gradient then.
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(CHUNK)])


def check_gradient(name: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Refuse a model that no attack can follow the gradient of.

    Args:
        name: of the model, for messages.
        model: on the device of the images; is left as it was found.
        x: a few images [B, C, H, W] in [0, 1].
        y: their labels int64 [B].

    Raises:
        EvaluationError: its forward or its backward pass fails, or there is no gradient with respect to the images.
    """
    try:
        with running("its gradient fails"):
            Victim(model, y, "ce").gradient(x)
    except EvaluationError as error:
        raise EvaluationError(f"{name} cannot be attacked: {error}") from None
    except (RuntimeError, MemoryError) as error:
        # Whether any batch is small enough is found out by the attack itself.
        if not memory_ran_out(error):
            raise


def _as_probabilities(logits: Tensor) -> str:
    """How outputs [B, K] show that they are probabilities, or shares of something else, as percent are."""
    # Of a constant, which accuracy tells, nobody knows what it is.
    if not bool((logits >= 0).all()) or bool(logits.min() == logits.max()):
        return ""
    if bool((logits <= 1).all()):
        return "nothing outside [0, 1]"
    sums = logits.sum(dim=1)
    # From image to image the outputs change, by more than rounding, and their sum does not. Measured by the outputs'
    # changes: beside a large constant, as of logits that are shifted above 0, every sum would look the same.
    changes, of_sums = (float((each - each[:1]).abs().max()) for each in (logits, sums))
    if SAME * float(logits.max()) < changes and of_sums <= SAME * changes:
        return f"nothing below 0, and the same sum, {float(sums[0]):.4g}, for every image"
    return ""


def _elsewhere(model: nn.Module, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of some images at other places of another batch, and as they were."""
    if len(x) > 2:
        return logits_of(model, x[1:3]), logits[1:3]
    return logits_of(model, x.flip(0)), logits.flip(0)


def _differ(one: Tensor, other: Tensor) -> bool:
    """Whether logits [B, K] are others by more than rounding, each measured by itself and by the largest two.

    Not by the largest of all: a class that is ruled out by -1e9 would hide whatever the others do.
    """
    usual = other.topk(2, dim=1).values.abs().sum(dim=1).median()
    return bool(((one - other).abs() > SAME * torch.maximum(other.abs(), usual)).any())
