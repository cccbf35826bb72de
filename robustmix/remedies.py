"""What restores an accuracy that is chance: another normalisation, another order of the classes, or the other sign."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor, nn

from robustmix.factories import memory_ran_out
from robustmix.outputs import logits_of
from robustmix.participants import is_foreign
from robustmix.zoo import NORMALIZATIONS, Wrapped, is_factory, parse_normalize

# The label of predictions behind the normalisation that a model has.
AS_IT_IS: Final = ""
ALPHA: Final = 0.01
AS_GOOD: Final = 0.02
LISTED_CLASSES: Final = 20
# Besides the named ones: what maps pixels to [-1, 1], and pixels of 0 to 255.
MORE_NORMALIZATIONS: Final = ("0.5/0.5", "0/0.00392157")


def above_chance(right: Tensor, classes: int, y: Tensor | None = None) -> bool:
    """Whether an accuracy is significantly above chance, by the one-sided exact binomial test.

    Chance is 1/K, or what always the most frequent class would get, if that is more.

    Args:
        right: whether each prediction is right, bool [B].
        classes: K.
        y: the labels int64 [B]; if not given, chance is 1/K.
    """
    chance = 1 / classes if y is None else max(1 / classes, float(y.bincount().max()) / len(y))
    return bool(binomtest(int(right.sum()), len(right), chance, alternative="greater").pvalue < ALPHA)


def predictions(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What a model predicts behind each other usual normalisation or scale, and behind these images' own statistics.

    Args:
        model: on the device of the images, in eval mode.
        x: some hundred images [B, C, H, W] in [0, 1].

    Returns:
        The classes int64 [B] by normalisation, the most usual first, without those behind which the model fails; none
        if it is not `Wrapped`.
    """
    found = {}
    for label, other in _renormalized(model, x) if isinstance(model, Wrapped) else ():
        try:
            found[label] = logits_of(other, x).argmax(dim=1)
        except Exception as error:
            # A diagnosis, not a measurement: what the network refuses, as it asserts its range, is not the remedy.
            if memory_ran_out(error):
                raise
    return found


def better_normalization(name: str, predicted: dict[str, Tensor], y: Tensor) -> str:
    """Which other usual normalisation or scale makes a model significantly better (exact McNemar test), if any does.

    Args:
        name: of the model.
        predicted: classes int64 [B] by normalisation, those of the model as it is under `AS_IT_IS`.
        y: labels int64 [B].

    Returns:
        What to do and how accurate the model would be then; empty if none is better.
    """
    tried = {label: prediction == y for label, prediction in predicted.items()}
    right = tried.pop(AS_IT_IS)
    if not tried:
        return ""
    label = _best(tried)
    if _better(tried[label], right, len(tried)):
        return f"{_with(name, label)} it would be {percent(tried[label])}"
    return ""


def other_order(name: str, predicted: dict[str, Tensor], y: Tensor, classes: tuple[str, ...]) -> str:
    """Whether a model's classes stand in another order than the data's, whatever its accuracy is.

    Another order must restore the accuracy, come a third of the way from the order as it is to no error, and be
    significantly better than it (exact McNemar test), behind the same normalisation and on images that it was not
    fitted to. A right model on images that are flipped or turned gains less: of 43 % right, it came to 54 %.

    Args:
        name: of the model.
        predicted: classes int64 [B] by normalisation, those of the model as it is under `AS_IT_IS`.
        y: labels int64 [B].
        classes: names of the labels.

    Returns:
        The order, what to do and how accurate the model is then; empty if no other order is better.
    """
    orders = {label: _order(prediction, y, len(classes)) for label, prediction in predicted.items()}
    label = _best({label: found.right for label, found in orders.items()})
    found = orders[label]
    if not (_restored(found.right, found.held, len(classes)) and _better(found.right, found.before, len(orders))):
        return ""
    before, after = (float(each.float().mean()) for each in (found.before, found.right))
    if after <= before + (1 - before) / 3:
        return ""
    order = found.order
    names = ", ".join(f"{k} {classes[label]!r}" for k, label in enumerate(order[:3]))
    more = ", ..." if len(order) > 3 else ""
    listed = f": return logits[:, {np.argsort(order).tolist()}]" if len(order) <= LISTED_CLASSES else ""
    way = f"{_with(name, label)} and" if label else "with"
    return (
        f"its classes are in another order than the data's: its outputs are {names}{more}; {way} its outputs reordered "
        f"it is {percent(found.right)}{listed}"
    )


def way_out(
    name: str, predicted: dict[str, Tensor], y: Tensor, classes: tuple[str, ...], least: Tensor | None = None
) -> str:
    """What restores an accuracy that is chance: another normalisation, the other sign, or another order of the classes.

    Args:
        name: of the model.
        predicted: classes int64 [B] by normalisation, those of the model as it is under `AS_IT_IS`.
        y: labels int64 [B].
        classes: names of the labels.
        least: the classes int64 [B] of the model's smallest outputs, if known.
    """
    found = {label: prediction == y for label, prediction in predicted.items()}
    label = _best(found)
    if _restored(found[label], y, len(classes)):
        return f"{_with(name, label)} it is {percent(found[label])}"
    # Of two classes, the negative is the other order.
    if least is not None and len(classes) > 2:
        lowest, ordered = least == y, _order(predicted[AS_IT_IS], y, len(classes)).right
        # The least likely class goes with the right one: either remedy helps where the other is meant, but less.
        if _restored(lowest, y, len(classes)) and not float(ordered.float().mean()) > float(lowest.float().mean()):
            return (
                f"with the class of the smallest output it is {percent(lowest)}: does it return losses or distances? "
                "Return their negative"
            )
    if order := other_order(name, predicted, y, classes):
        return order
    tried = "no usual normalisation and " if len(predicted) > 1 else ""
    return f"{tried}no other order of its classes restores it: is it trained, and on these classes?"


def percent(right: Tensor) -> str:
    """The share that is right, as text."""
    return f"{float(right.float().mean()):.1%}".replace("%", " %")


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


@dataclass(frozen=True)
class _Order:
    """The most likely class of the data behind each output, and what that changes on the images it is judged by.

    Attributes:
        order: the class of each output.
        held: labels int64 of the images that it is judged by.
        right: which of them it gets right.
        before: which of them the order as it is gets right.
    """

    order: list[int]
    held: Tensor
    right: Tensor
    before: Tensor


def _order(predicted: Tensor, y: Tensor, classes: int) -> _Order:
    """Fit an order of the classes to half of the images, and judge it by the rest, as far as their classes occurred.

    Args:
        predicted: int64 [B].
        y: labels int64 [B].
        classes: K.
    """
    outputs, labels = predicted.cpu().numpy(), y.cpu().numpy()
    # Drawn: where labels follow each other in a cycle, every other image would be every other class.
    fit, judge = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    # The assignment that most images agree with; of equally good ones the one that changes least.
    votes = np.eye(classes) / (2 * classes)
    np.add.at(votes, (outputs[fit], labels[fit]), 1)
    order = linear_sum_assignment(votes, maximize=True)[1]
    judge = judge[np.isin(labels[judge], labels[fit])]
    held = labels[judge]
    right, before = order[outputs[judge]] == held, outputs[judge] == held
    return _Order(order.tolist(), *(torch.from_numpy(each) for each in (held, right, before)))


def _better(new: Tensor, old: Tensor, tried: int) -> bool:
    """Whether more of the same images are right than before, by the one-sided exact McNemar test.

    Args:
        new: which images are right now, bool [B].
        old: which were right before, bool [B].
        tried: changes of which the best is judged; the level is shared among them.
    """
    gained, lost = int((new & ~old).sum()), int((old & ~new).sum())
    return bool(gained and binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue < ALPHA / tried)


def _restored(right: Tensor, y: Tensor, classes: int) -> bool:
    """Whether an accuracy is above chance and more than a third of the way from the most frequent class to all.

    The outputs of untrained networks, in the order that fits best, got a quarter of that way at most.
    """
    if not len(y) or not above_chance(right, classes, y):
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
