"""What is usually wrong with a model that somebody else made, found before anything is attacked."""

from typing import Final

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from robustmix.data import Split
from robustmix.errors import EvaluationError
from robustmix.outputs import check_gradient, check_outputs
from robustmix.participants import Participant
from robustmix.progress import say
from robustmix.remedies import (
    ALPHA,
    AS_IT_IS,
    above_chance,
    better_normalization,
    other_order,
    percent,
    predictions,
    way_out,
)
from robustmix.zoo import is_factory

CHECKED: Final = 512


def check_model(
    participant: Participant,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    classes: tuple[str, ...],
    *,
    differentiate: bool = False,
) -> None:
    """Refuse a model whose numbers would be wrong, and say what to do about it.

    Args:
        participant: whose model it is. A run near chance is legitimate, it may be undertrained: a warning.
        model: on the device of the images; is left in eval mode.
        x: some hundred images [B, C, H, W] in [0, 1] of all classes.
        y: their labels int64 [B].
        classes: names of the labels.
        differentiate: whether an attack will follow its gradient, which then must be there.

    Raises:
        EvaluationError: `check_outputs` raises it, or accuracy is chance, or the classes stand in another order, or
            there is no gradient to follow.
    """
    name = participant.name
    model.eval()
    logits = check_outputs(name, model, x, len(classes))
    predicted = {AS_IT_IS: logits.argmax(dim=1)}
    right = predicted[AS_IT_IS] == y
    share = f"{name}: accuracy {percent(right)} on {len(y)} images"
    chance = not above_chance(right, len(classes), y)
    if chance:
        share += f" is chance ({_chance(right, y, classes)})"
    if participant.run is not None:
        if chance:
            say(f"warning: {share}: has it been trained for long enough?")
        return
    # Above chance, a model that brings its own normalisation is trusted in it.
    if chance or is_factory(name):
        predicted |= predictions(model, x)
    if chance:
        raise EvaluationError(f"{share}; {way_out(name, predicted, y, classes, logits.argmin(dim=1))}")
    if order := other_order(name, predicted, y, classes):
        raise EvaluationError(f"{share}; {order}")
    if differentiate:
        check_gradient(name, model, x[:2], y[:2])
    if better := better_normalization(name, predicted, y):
        say(f"warning: {share}; {better}")


def warn_of_chance(name: str, right: Tensor, classes: int) -> None:
    """Say so where a model that nobody has looked at guesses; nothing where the examples are too few to tell.

    Args:
        name: of the model.
        right: whether each prediction is right, bool [B].
        classes: K.
    """
    # Not only not above chance, as one example always is: also below the middle between chance and no error.
    middle = (1 + 1 / classes) / 2
    below = binomtest(int(right.sum()), len(right), middle, alternative="less").pvalue < ALPHA
    if below and not above_chance(right, classes):
        say(
            f"warning: {name}: accuracy {percent(right)} on {len(right)} examples is chance ({classes} classes): does "
            "it take pixels in [0, 1], and are its classes those of the labels, in their order?"
        )


def some_images(test: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Some hundred test images [B, ...] and their labels int64 [B]: spread, as the images of a class may lie together.

    Args:
        test: all of the test set: the examples in use may be too few to tell an accuracy from chance.
        device: that they are wanted on.
    """
    some = torch.linspace(0, len(test) - 1, min(CHECKED, len(test)), dtype=torch.float64).long()
    return next(iter(test.batches([some], device)))


def _chance(right: Tensor, y: Tensor, classes: tuple[str, ...]) -> str:
    """Why an accuracy that is not above chance is not: the classes are so many, or one of them is so frequent."""
    if not above_chance(right, len(classes)):
        return f"{len(classes)} classes"
    most = int(y.bincount().argmax())
    return f"{percent(y == most)} of them are {classes[most]!r}"
