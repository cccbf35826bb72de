"""What is usually wrong with a model that somebody else made, found before anything is attacked."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor, nn

from robustmix.attacks.victim import frozen
from robustmix.data import Split
from robustmix.errors import EvaluationError
from robustmix.participants import Participant, is_foreign
from robustmix.progress import say
from robustmix.zoo import NORMALIZATIONS, Wrapped, is_factory, parse_normalize

# What can be wrong with outputs whatever the labels are, in the order in which it is looked for.
OutputFault = Literal["mode", "classes", "repeat", "batch", "finite", "probabilities"]

CHECKED: Final = 512
ALPHA: Final = 0.01
CHUNK: Final = 64
# Rounding differs between batch sizes; a batch norm that uses the batch's own statistics, and dropout, by far more.
SAME: Final = 1e-3
AS_GOOD: Final = 0.02
LISTED_CLASSES: Final = 20
# Besides the named ones: what maps pixels to [-1, 1], and pixels of 0 to 255.
MORE_NORMALIZATIONS: Final = ("0.5/0.5", "0/0.00392157")


def check_model(participant: Participant, model: nn.Module, x: Tensor, y: Tensor, classes: tuple[str, ...]) -> None:
    """Refuse a model whose numbers would be wrong, and say what to do about it.

    Args:
        participant: whose model it is. A run near chance is legitimate, it may be undertrained: a warning.
        model: on the device of the images; is left in eval mode.
        x: some hundred images [B, C, H, W] in [0, 1] of all classes.
        y: their labels int64 [B].
        classes: names of the labels.

    Raises:
        EvaluationError: `check_outputs` raises it, or accuracy is chance.
    """
    name = participant.name
    model.eval()
    logits = check_outputs(name, model, x, len(classes))
    right = logits.argmax(dim=1) == y
    share = f"{name}: accuracy {_percent(right)} on {len(y)} images"
    if above_chance(right, len(classes)):
        if is_factory(name) and isinstance(model, Wrapped) and (better := better_normalization(name, model, x, y)):
            say(f"warning: {share}; {better}")
        return
    share += f" is chance ({len(classes)} classes)"
    if participant.run is not None:
        say(f"warning: {share}: has it been trained for long enough?")
        return
    raise EvaluationError(f"{share}; {way_out(name, model, x, y, classes)}")


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
            f"warning: {name}: accuracy {_percent(right)} on {len(right)} examples is chance ({classes} classes): does "
            "it take pixels in [0, 1], and are its classes those of the labels, in their order?"
        )


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
            call, dependent on the other images of the batch, not finite, or probabilities.
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
    with frozen(model):
        if training := [f"{path} ({type(part).__name__})" for path, part in model.named_modules() if part.training]:
            found["mode"] = (
                f"{name}: {training[0]} is in train mode even after .eval(): its train() must hand the mode on"
            )
            return found, None
        few = x[:CHUNK].clone()
        logits = _logits(model, few)
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
        elif _differ(_logits(model, few), logits):
            found["repeat"] = (
                f"{name} gives other logits for the same images at every call: seed it or switch its noise off in eval "
                "mode, as functional dropout with training=self.training"
            )
        elif _differ(_logits(model, few[:2]), logits[:2]):
            found["batch"] = (
                f"{name} gives an image other logits in another batch: its batch norm must keep running statistics and "
                "use them in eval mode"
            )
        if len(x) > len(few):
            logits = _logits(model, x)
    if bad := int((~logits.isfinite()).any(dim=1).sum()):
        found["finite"] = (
            f"{name}: the logits of {bad} of {len(x)} images are NaN or infinite: check its weights and normalisation"
        )
    if seen := _as_probabilities(logits):
        found["probabilities"] = (
            f"{name} gives probabilities ({seen}), which spoil gradients: return logits, drop the softmax or sigmoid"
        )
    return found, logits


def some_images(test: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Some hundred test images [B, ...] and their labels int64 [B]: spread, as the images of a class may lie together.

    Args:
        test: all of the test set: the examples in use may be too few to tell an accuracy from chance.
        device: that they are wanted on.
    """
    some = torch.linspace(0, len(test) - 1, min(CHECKED, len(test)), dtype=torch.float64).long()
    return next(iter(test.batches([some], device)))


def above_chance(right: Tensor, classes: int) -> bool:
    """Whether an accuracy is significantly above 1/K, by the one-sided exact binomial test.

    Args:
        right: whether each prediction is right, bool [B].
        classes: K.
    """
    return bool(binomtest(int(right.sum()), len(right), 1 / classes, alternative="greater").pvalue < ALPHA)


def better_normalization(name: str, model: Wrapped, x: Tensor, y: Tensor) -> str:
    """Which other usual normalisation or scale makes a model significantly better (exact McNemar test), if any does.

    Args:
        name: of the model.
        model: on the device of the images, in eval mode.
        x: some hundred images [B, C, H, W] in [0, 1].
        y: their labels int64 [B].

    Returns:
        What to do and how accurate the model would be then; empty if none is better.
    """
    right = _logits(model, x).argmax(dim=1) == y
    tried = {label: _logits(other, x).argmax(dim=1) == y for label, other in _renormalized(model, x)}
    label = _best(tried)
    best = tried[label]
    gained, lost = int((best & ~right).sum()), int((right & ~best).sum())
    if gained and binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue < ALPHA / len(tried):
        return f"{_with(name, label)} it would be {_percent(best)}"
    return ""


def way_out(name: str, model: nn.Module, x: Tensor, y: Tensor, classes: tuple[str, ...]) -> str:
    """What restores an accuracy that is chance: another normalisation, another order of the classes, or both.

    Args:
        name: of the model.
        model: on the device of the images, in eval mode.
        x: some hundred images [B, C, H, W] in [0, 1] of all classes.
        y: their labels int64 [B].
        classes: names of the labels.
    """
    predicted = {"": _logits(model, x).argmax(dim=1)}
    if isinstance(model, Wrapped):
        predicted |= {label: _logits(other, x).argmax(dim=1) for label, other in _renormalized(model, x)}
    found = {label: prediction == y for label, prediction in predicted.items()}
    label = _best(found)
    if _restored(found[label], y, len(classes)):
        return f"{_with(name, label)} it is {_percent(found[label])}"

    orders = {label: _order(prediction, y, len(classes)) for label, prediction in predicted.items()}
    label = _best({label: right for label, (_, right, _) in orders.items()})
    order, right, held = orders[label]
    if not _restored(right, held, len(classes)):
        tried = "no usual normalisation and " if len(predicted) > 1 else ""
        return f"{tried}no other order of its classes restores it: is it trained, and on these classes?"
    names = ", ".join(f"{k} {classes[label]!r}" for k, label in enumerate(order[:3]))
    more = ", ..." if len(order) > 3 else ""
    listed = f": return logits[:, {np.argsort(order).tolist()}]" if len(order) <= LISTED_CLASSES else ""
    way = f"{_with(name, label)} and" if label else "with"
    return (
        f"its classes are in another order than the data's: its outputs are {names}{more}; {way} its outputs reordered "
        f"it is {_percent(right)}{listed}"
    )


def _best(rights: dict[str, Tensor]) -> str:
    """The first whose accuracy is as good as the best: what changes less, or is more usual, stands first."""
    accuracies = {label: int(right.sum()) / max(len(right), 1) for label, right in rights.items()}
    return next(label for label, value in accuracies.items() if value >= max(accuracies.values()) - AS_GOOD)


def _with(name: str, label: str) -> str:
    if not is_foreign(name):
        return f"behind the normalisation {label}"
    if is_factory(name):
        return f"with --normalize {label}"
    return f"put into a FILE.py:FACTORY with --normalize {label}"


def _order(predicted: Tensor, y: Tensor, classes: int) -> tuple[list[int], Tensor, Tensor]:
    """The most likely class of the data behind each output.

    Fitted to every other image (the assignment that most of them agree with) and judged by the rest, as far as their
    classes occurred.

    Args:
        predicted: int64 [B].
        y: labels int64 [B].
        classes: K.

    Returns:
        The class of each output, which of the rest it gets right, and their labels.
    """
    outputs, labels = predicted.cpu().numpy(), y.cpu().numpy()
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (outputs[::2], labels[::2]), 1)
    order = linear_sum_assignment(confusion, maximize=True)[1]
    held = np.isin(labels[1::2], labels[::2])
    judged = labels[1::2][held]
    return order.tolist(), torch.from_numpy(order[outputs[1::2][held]] == judged), torch.from_numpy(judged)


def _restored(right: Tensor, y: Tensor, classes: int) -> bool:
    """Whether an accuracy is above chance and more than a third of the way from the most frequent class to all.

    The outputs of untrained networks, in the order that fits best, got a quarter of that way at most.
    """
    if not len(y) or not above_chance(right, classes):
        return False
    base = float(y.bincount().max()) / len(y)
    return float(right.float().mean()) > base + (1 - base) / 3


def _renormalized(model: Wrapped, x: Tensor) -> Iterator[tuple[str, Wrapped]]:
    """The model behind each other usual normalisation, and behind these images' own statistics."""
    own = "/".join(_listed(values) for values in (x.mean(dim=(0, 2, 3)), x.std(dim=(0, 2, 3)).clamp_min(1e-3)))
    for label in (*NORMALIZATIONS, *MORE_NORMALIZATIONS, own):
        statistics = parse_normalize(label)
        if max(map(len, statistics)) in (1, x.shape[1]):
            other = model.normalized(statistics)
            changed = zip(other.normalize.buffers(), model.normalize.buffers(), strict=True)
            if not all(torch.equal(new, old) for new, old in changed):
                yield label, other


def _listed(values: Sequence[float] | Tensor) -> str:
    return ",".join(f"{float(value):.4f}" for value in values)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    # No inference mode: what a network keeps for later calls could not take part in a gradient then.
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(CHUNK)])


def _as_probabilities(logits: Tensor) -> str:
    """How outputs [B, K] show that they are probabilities, or shares of something else, as percent are."""
    if not bool((logits >= 0).all()):
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


def _differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > SAME * other.abs().max())


def _percent(right: Tensor) -> str:
    return f"{float(right.float().mean()):.1%}".replace("%", " %")
