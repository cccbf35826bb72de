"""The methods: each plans a batch on its labels alone, before there are any images, and draws on the CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustmix.errors import SpecError
from robustmix.mixing.mix import Mix
from robustmix.spec.law import Law, parse_law
from robustmix.spec.names import Method
from robustmix.spec.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """What a method may know about a global batch of B examples.

    Attributes:
        labels: int64 [B], on the CPU.
        shape: [C, H, W] of one input.
        classes: how many there are.
        epoch: counted from 0.
        neighbours: int64 [B, k] or None: training examples that may be each example's partner.
    """

    labels: Tensor
    shape: tuple[int, ...]
    classes: int
    epoch: int
    neighbours: Tensor | None = None


def plan(
    recipe: Recipe,
    labels: Tensor,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    epoch: int,
    neighbours: Tensor | None = None,
    *,
    classes: int,
) -> Mix | None:
    """How one global batch is mixed.

    Args:
        recipe: resolved; gives the method and its options.
        labels: int64 [B], on the CPU.
        shape: [C, H, W] of one input.
        rng: the generator of this step.
        epoch: counted from 0.
        neighbours: int64 [B, k], rows of `nearest_neighbours`, if the recipe has ``nearest``.
        classes: how many there are.

    Returns:
        The plan, on the CPU; None if nothing is mixed in this step.

    Raises:
        SpecError: the recipe wants nearest neighbours, and none are given.
    """
    return METHODS[recipe.method](recipe, Batch(labels, shape, classes, epoch, neighbours), rng)


# ---- what the pairing methods share ---------------------------------------------------------------------


class Pairs(NamedTuple):
    """Partners and lambdas of a batch, before a method makes something of them.

    Attributes:
        partner: int64 [B].
        outside: int64 [B] or None, as in `Mix`.
        lam: float64 [B], share of each example in its input.
        lam_labels: float64 [B], share of its label.
    """

    partner: Tensor
    outside: Tensor | None
    lam: NDArray[np.float64]
    lam_labels: NDArray[np.float64]


def _pairs(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> Pairs:
    partner, outside = _partners(recipe, batch, rng)
    lam = _lambdas(recipe, recipe.law, len(partner), rng)
    lam_labels = lam
    if recipe.lam_labels is not None:
        lam_labels = _lambdas(recipe, parse_law(recipe.lam_labels), len(partner), rng)
    return Pairs(partner, outside, lam, lam_labels)


def _partners(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
    """A random permutation of the batch, of each class within the batch, or one of each example's neighbours."""
    size = len(batch.labels)
    if recipe.nearest is not None:
        if batch.neighbours is None:
            raise SpecError(f"nearest = {recipe.nearest} needs the neighbours of the batch's examples; none are given")
        drawn = torch.from_numpy(rng.integers(batch.neighbours.shape[1], size=(size, 1)))
        return torch.arange(size) + size, batch.neighbours.gather(1, drawn).squeeze(1)
    partner = rng.permutation(size)
    if recipe.same_class:
        labels = batch.labels.numpy()
        by_class, shuffled = np.argsort(labels, kind="stable"), partner[np.argsort(labels[partner], kind="stable")]
        partner = np.empty(size, np.int64)
        partner[by_class] = shuffled
    return torch.from_numpy(partner), None


def _lambdas(recipe: Recipe, law: Law, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """One lambda for the batch or one per example: float64 [B]."""
    count = size if recipe.lam_per == "example" else 1
    match law.kind:
        case "beta":
            drawn = rng.beta(law.values[0], law.values[0], count)
        case "uniform":
            low, high = law.values
            drawn = rng.uniform(low, high, count)
        case _:
            drawn = np.full(count, law.values[0])
    return np.broadcast_to(drawn, size)


def _mixed(
    recipe: Recipe,
    pairs: Pairs,
    lam_x: NDArray[np.float64],
    lam_y: NDArray[np.float64],
    boxes: NDArray[np.int64] | None = None,
    layer: int = 0,
) -> Mix:
    """The plan, of which the recipe may want the inputs or the labels only: what is not mixed stays the example's."""
    alone = np.ones(len(lam_x))
    covered = None if boxes is None or recipe.mix == "labels" else torch.from_numpy(boxes)
    return Mix(
        partner=pairs.partner,
        lam_x=_float32(alone if recipe.mix == "labels" else lam_x),
        lam_y=_float32(alone if recipe.mix == "inputs" else lam_y),
        boxes=covered,
        layer=layer,
        outside=pairs.outside,
    )


def _float32(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


# ---- the methods ----------------------------------------------------------------------------------------


def plan_erm(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> None:
    """Empirical risk minimisation (Vapnik 1999): nothing is mixed."""


def plan_mixup(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> Mix:
    """mixup (Zhang et al. 2018, eq. 1): lambda of an example and 1 - lambda of another, of images and labels alike."""
    pairs = _pairs(recipe, batch, rng)
    return _mixed(recipe, pairs, pairs.lam, pairs.lam_labels)


Way = Literal["top-bottom", "left-right", "convex"]

# Of the first and of the second half of the batch.
WAYS: Final[dict[Method, tuple[Way, Way]]] = {
    "mixup-h": ("top-bottom", "top-bottom"),
    "mixup-v": ("left-right", "left-right"),
    "mixup-hv": ("top-bottom", "left-right"),
    "mixup-hc": ("top-bottom", "convex"),
}


def plan_spatial(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> Mix:
    """Spatial mixup (Liang et al. 2018, eq. 2): an image is stitched from a part of the example and one of its partner.

    The first P = floor(lambda H) rows (horizontal stitching, H) or P = floor(lambda W) columns (vertical stitching, V)
    are the example's, the others its partner's; the label has lambda of the example's although P / H may be less.
    ``correct_lam`` gives it P / H. HV stitches the first half of the batch, rounded down, horizontally and the second
    half vertically, HC mixes the second half convexly, as mixup does.
    """
    pairs = _pairs(recipe, batch, rng)
    size, (height, width) = len(batch.labels), batch.shape[1:]
    boxes = np.zeros((size, 4), np.int64)
    lam_x, lam_y = pairs.lam.copy(), pairs.lam_labels.copy()
    first, second = WAYS[recipe.method]
    for way, rows in ((first, slice(size // 2)), (second, slice(size // 2, size))):
        if way == "convex":
            continue
        side = height if way == "top-bottom" else width
        boxes[rows] = 0, height, 0, width
        boxes[rows, 0 if way == "top-bottom" else 2] = np.floor(pairs.lam[rows] * side)
        lam_x[rows] = 1
        if recipe.correct_lam:
            lam_y[rows] = np.floor(pairs.lam_labels[rows] * side) / side
    return _mixed(recipe, pairs, lam_x, lam_y, boxes)


def plan_cutmix(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> Mix:
    """CutMix (Yun et al. 2019, eq. 1 and 2): a box of the image is the partner's, the label follows its area.

    The box has sqrt(1 - lambda) of the image's height and width, rounded down to an even number of pixels around a
    centre that is uniform over the image; what lies outside the image is cut off, and the label's share is that of the
    pixels that remain (as in the paper's code). With ``lam_per`` batch all images have the same box.
    """
    pairs = _pairs(recipe, batch, rng)
    size, sides = len(batch.labels), np.array(batch.shape[1:])
    count = size if recipe.lam_per == "example" else 1
    centre = rng.integers(sides, size=(count, 2))
    reach = np.floor(0.5 * np.sqrt(1 - pairs.lam[:, None]) * sides).astype(np.int64)
    low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach, sides)
    boxes = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    kept = 1 - np.prod(high - low, axis=1) / np.prod(sides)
    # An independent lambda of the labels is meant as it is drawn: there is no area that it belongs to.
    return _mixed(recipe, pairs, np.ones(size), kept if recipe.lam_labels is None else pairs.lam_labels, boxes)


def plan_manifold(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> Mix:
    """Manifold mixup (Verma et al. 2019, section 2): mixup after a stage that is drawn anew for every batch."""
    pairs = _pairs(recipe, batch, rng)
    layer = recipe.stages[int(rng.integers(len(recipe.stages)))]
    return _mixed(recipe, pairs, pairs.lam, pairs.lam_labels, layer=layer)


def plan_samplepairing(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> Mix | None:
    """SamplePairing (Inoue 2018): the average of two images with the label of the first, in some of the epochs.

    The paper trains 100 epochs without it (one on ImageNet), then goes on with 8 epochs with it and 2 without, in turn,
    and ends without it: on CIFAR the last 200 of 1,000 epochs. Here that is off for the first tenth and the last fifth
    of the epochs, both rounded down.
    """
    start, end = recipe.epochs // 10, recipe.epochs - recipe.epochs // 5
    if not start <= batch.epoch < end or (batch.epoch - start) % 10 >= 8:
        return None
    size = len(batch.labels)
    return Mix(torch.from_numpy(rng.permutation(size)), torch.full((size,), 0.5), torch.ones(size))


def plan_disturblabel(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> Mix:
    """DisturbLabel (Xie et al. 2016, section 3): with probability ``rate`` a label is drawn from all classes.

    It is drawn anew whenever the example is seen, and may be drawn right.
    """
    assert recipe.rate is not None, "Recipe.resolved sets rate"
    size = len(batch.labels)
    disturbed, drawn = rng.random(size) < recipe.rate, rng.integers(batch.classes, size=size)
    labels = torch.where(torch.from_numpy(disturbed), torch.from_numpy(drawn), batch.labels)
    return Mix(torch.arange(size), torch.ones(size), torch.ones(size), labels=labels)


def plan_patchshuffle(recipe: Recipe, batch: Batch, rng: np.random.Generator) -> Mix | None:
    """PatchShuffle (Kang et al. 2017, section 3) of images: with probability ``rate`` each 2x2 patch is shuffled.

    Patches do not overlap and are shuffled independently, all channels alike; a last odd row or column stays.
    """
    assert recipe.rate is not None, "Recipe.resolved sets rate"
    size, (height, width) = len(batch.labels), batch.shape[1:]
    shuffled = np.flatnonzero(rng.random(size) < recipe.rate)
    if not len(shuffled):
        return None
    pixels = np.arange(height * width).reshape(height, width)
    even = pixels[: height // 2 * 2, : width // 2 * 2]
    patches = even.reshape(height // 2, 2, width // 2, 2).swapaxes(1, 2).reshape(-1, 4)
    within = np.argsort(rng.random((len(shuffled), *patches.shape)), axis=2)
    order = np.tile(pixels.ravel(), (size, 1))
    order[shuffled[:, None, None], patches] = patches[np.arange(len(patches))[:, None], within]
    return Mix(torch.arange(size), torch.ones(size), torch.ones(size), pixels=torch.from_numpy(order))


METHODS: Final[dict[Method, Callable[[Recipe, Batch, np.random.Generator], Mix | None]]] = {
    "erm": plan_erm,
    "mixup": plan_mixup,
    "mixup-h": plan_spatial,
    "mixup-v": plan_spatial,
    "mixup-hv": plan_spatial,
    "mixup-hc": plan_spatial,
    "manifold": plan_manifold,
    "cutmix": plan_cutmix,
    "samplepairing": plan_samplepairing,
    "disturblabel": plan_disturblabel,
    "patchshuffle": plan_patchshuffle,
}
