"""What a run's history says of a network: its errors and losses in eval mode."""

import math
from typing import Final

import torch
from torch import Tensor, nn

from robustmix.data import Split
from robustmix.team import Team

EVALUATION_BATCH: Final = 512
EVALUATION_PIXELS: Final = 2**23


def score(half: str, model: nn.Module, split: Split | None, team: Team) -> dict[str, float]:
    """Error and loss of examples that were not trained on, as columns of the history.

    Args:
        half: ``val`` or ``test``, with which the columns' names begin.
        model: on the team's device; its mode is left as found.
        split: the examples, on the device; None if there are none, whose columns are NaN.
        team: of processes, which share the batches.
    """
    if split is None:
        return {f"{half}_error": math.nan, f"{half}_loss": math.nan}
    loss, wrong = _losses(model, split, team)
    return {f"{half}_error": float(wrong.double().mean()), f"{half}_loss": float(loss.double().mean())}


def score_training(
    model: nn.Module, split: Split, corrupted: Tensor | None, team: Team, *, last: bool
) -> dict[str, float]:
    """The training examples' error, nothing mixed or augmented, as columns of the history.

    Where labels are corrupted, ``train_error_real`` is over the examples with their own labels and
    ``train_error_corrupted`` over the others, against the labels that they were given (Zhang et al. 2018, table 2).

    Args:
        model: on the team's device; its mode is left as found.
        split: the training examples, on the device.
        corrupted: bool [N], which of their labels are; None if none are.
        team: of processes, which share the batches.
        last: whether it is the last epoch; before, all is NaN.
    """
    wrong = _losses(model, split, team)[1].double() if last else torch.full((len(split),), math.nan)
    found = {"train_error": float(wrong.mean())}
    if corrupted is not None:
        found["train_error_real"] = float(wrong[~corrupted].mean())
        found["train_error_corrupted"] = float(wrong[corrupted].mean())
    return found


def _losses(model: nn.Module, split: Split, team: Team) -> tuple[Tensor, Tensor]:
    """Cross-entropy and whether the model errs, float32 [N] and bool [N] on the CPU, in eval mode.

    The model's mode is left as found. Several processes share the batches.
    """
    training = model.training
    model.eval()
    size = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // math.prod(split.shape[-2:])))
    parts = torch.arange(len(split)).split(size)
    own = parts[team.rank :: team.size]
    found = torch.zeros(2, len(split))
    with torch.inference_mode():
        for rows, (x, y) in zip(own, split.batches(own, team.device), strict=True):
            logits = model(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).float()
            loss = nn.functional.cross_entropy(logits, y, reduction="none")
            found[:, rows] = torch.stack([loss, (logits.argmax(dim=1) != y).float()]).cpu()
    model.train(training)
    loss, wrong = team.sum(found)
    return loss, wrong.bool()
