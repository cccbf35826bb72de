"""What is looked at on the network itself, before anything is attacked."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from robustmix.attacks import Victim
from robustmix.data import Dataset, Split
from robustmix.errors import EvaluationError
from robustmix.judging import TESTS, Fact, NotRun, Observation, Share
from robustmix.models.classifier import Normalize
from robustmix.outputs import OutputFault, logits_of, output_faults
from robustmix.remedies import AS_IT_IS, above_chance, better_normalization, other_order, predictions, way_out
from robustmix.store.cells import GAP_QUANTILES
from robustmix.store.runs import Run
from robustmix.zoo import Wrapped

# Of the test error: what other batch sizes and another precision in training may change, and what they may not.
SAME_ACCURACY: Final = 0.001
OTHER_ACCURACY: Final = 0.01

_OUTPUTS: Final[dict[str, OutputFault]] = {
    "eval-mode": "mode",
    "same-twice": "repeat",
    "any-batch": "batch",
    "finite": "finite",
    "logits": "probabilities",
}


@dataclass(frozen=True)
class FirstGradient:
    """What the gradient of the cross-entropy at the images themselves shows.

    Attributes:
        gap: the label's logit minus the largest other, float32 [N].
        saturated: examples whose label has a probability of exactly 1 in float32.
        zero: examples whose gradient is exactly zero in every element.
    """

    gap: np.ndarray
    saturated: int
    zero: int

    @property
    def in_words(self) -> str:
        """The state of the loss in a few words."""
        levels = ", ".join(f"{value:.3g}" for value in np.quantile(self.gap, GAP_QUANTILES[1:-1]))
        named = ", ".join(f"{100 * level:g}" for level in GAP_QUANTILES[1:-1])
        return f"gap quantiles ({named} %) {levels}; p_y = 1 for {_percent(self.saturated / len(self.gap))}"


def look_at_outputs(name: str, model: nn.Module, x: Tensor, classes: int) -> list[Observation]:
    """Whether a network's outputs are those of a classifier in eval mode.

    Args:
        name: of the network.
        model: on the device of the images; is left as it was found.
        x: some hundred images [B, C, H, W] in [0, 1].
        classes: K.

    Raises:
        EvaluationError: it gives another number of logits.
    """
    faults, logits = output_faults(name, model, x, classes)
    if "classes" in faults:
        raise EvaluationError(faults["classes"])
    found = []
    for test, fault in _OUTPUTS.items():
        if fault in faults:
            found.append(Observation(test, faults[fault], Fact("fail")))
        elif logits is None or (fault == "batch" and "repeat" in faults):
            reason = "train mode" if logits is None else "difference between two calls"
            found.append(Observation(test, "-", NotRun(f"Nothing can be said of it before the {reason} is mended.")))
        else:
            found.append(Observation(test, f"so on {len(x)} images", Fact("pass")))
    return found


def look_at_accuracy(name: str, model: nn.Module, x: Tensor, y: Tensor, classes: tuple[str, ...]) -> Observation:
    """Whether a network of somebody else's is accurate, and no usual normalisation or other order makes it more so.

    Args:
        name: of the network.
        model: on the device of the images, in eval mode.
        x: some hundred images [B, C, H, W] in [0, 1] of all classes.
        y: their labels int64 [B].
        classes: names of the labels.
    """
    if not isinstance(model, Wrapped) and x.ndim == 4:
        model = Wrapped(name, nn.Identity(), Normalize(x.shape[1]).to(x.device), model)
    logits = logits_of(model, x)
    predicted = {AS_IT_IS: logits.argmax(dim=1)} | predictions(model, x)
    right = predicted[AS_IT_IS] == y
    measured = f"{_percent(float(right.float().mean()))} on {len(y)} images"
    if not above_chance(right, len(classes), y):
        remedy = way_out(name, predicted, y, classes, logits.argmin(dim=1))
        return Observation("accuracy", f"{measured}, chance; {remedy}", Fact("fail"))
    if wrong := other_order(name, predicted, y, classes) or better_normalization(name, predicted, y):
        return Observation("accuracy", f"{measured}; {wrong}", Fact("fail"))
    return Observation("accuracy", f"{measured}; no usual normalisation or other order is better", Fact("pass"))


def look_at_run(run: Run, model: nn.Module, data: Dataset, batch_size: int, device: torch.device) -> Observation:
    """Whether a run errs on the whole test set as often as at the end of its training.

    Args:
        run: whose history says so.
        model: its network on the device, in eval mode.
        data: that it was trained on.
        batch_size: examples per batch.
        device: to compute on.
    """
    before = run.final("test_error")
    wrong = 0
    with torch.no_grad():
        for x, y in data.test.batches(torch.arange(len(data.test)).split(batch_size), device):
            wrong += int((model(x).argmax(dim=1) != y).sum())
    error = wrong / len(data.test)
    measured = f"{100 * error:.2f} % error on all {len(data.test)} test images"
    if math.isnan(before):
        return Observation("accuracy", measured, NotRun("The run's history says nothing to compare with."))
    apart = abs(error - before)
    verdict = Fact("pass" if apart <= SAME_ACCURACY else "warn" if apart <= OTHER_ACCURACY else "fail")
    return Observation("accuracy", f"{measured}, {100 * before:.2f} % in training", verdict)


def look_at_gradient(
    name: str, model: nn.Module, inputs: Split, batch_size: int, device: torch.device
) -> tuple[Observation, FirstGradient | None]:
    """Whether there is a gradient to follow on every image.

    Args:
        name: of the network.
        model: on the device; it is left as it was found.
        inputs: the examples that are attacked.
        batch_size: examples per batch.
        device: to compute on.

    Returns:
        The observation, and what the gradients showed; None where there are none or they are no numbers.
    """
    gaps, saturated, zero = [], 0, 0
    try:
        for x, y in inputs.batches(torch.arange(len(inputs)).split(batch_size), device):
            victim = Victim(model, y, "ce")
            victim.gradient(x)
            victim.check()
            gaps.append(victim.gap.cpu().numpy())
            saturated += int(victim.saturated.sum())
            zero += int(victim.zero_gradient.sum())
    except EvaluationError as error:
        return Observation("gradient", f"{name}: {error}", Fact("fail")), None
    measured = f"exactly zero on {zero} of {len(inputs)} images"
    first = FirstGradient(np.concatenate(gaps), saturated, zero)
    return Observation("gradient", measured, Share(zero, len(inputs))), first


def blocked(observations: list[Observation]) -> str | None:
    """Why the attacks cannot be made, or would give wrong numbers; None if they can."""
    failed = [one.name for one in observations if one.outcome == Fact("fail")]
    if not failed:
        return None
    return f"Not attacked, as the numbers would be wrong: first mend that {TESTS[failed[0]].title} ({failed[0]})."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
