"""Random crops and flips: drawn on the CPU for the whole batch, made where the images are."""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustmix.moving import moved
from robustmix.rng import Stream, generator
from robustmix.spec.names import Augment

# Of a random part of an image, as torchvision's RandomResizedCrop has them.
AREAS: Final = (0.08, 1.0)
RATIOS: Final = (3 / 4, 4 / 3)
TRIES: Final = 10


@dataclass(frozen=True)
class Share:
    """What one process needs of one training batch.

    Attributes:
        rows: int64 [R], the training examples.
        positions: int64 [R], the place of each in the whole batch, from 0.
        size: places in the whole batch.
        step: number of the batch in its epoch.
    """

    rows: Tensor
    positions: Tensor
    size: int
    step: int


@dataclass(frozen=True)
class Augmentation:
    """How the training examples of an epoch are augmented.

    Attributes:
        how: what is done.
        seed: of the run.
        epoch: from 0.
    """

    how: Augment
    seed: int
    epoch: int

    def rng(self, step: int) -> np.random.Generator:
        """The generator of one batch, from which numbers for all of its places are drawn, in whatever process."""
        return generator(self.seed, Stream.AUGMENT, self.epoch, step)


def augment(images: Tensor, augmentation: Augmentation, share: Share) -> Tensor:
    """Shift each image within a black border of an eighth of its height, and mirror half of them.

    At 32x32 this is the usual crop with a padding of 4 (Zhang et al. 2018). The same place of a batch gets the same
    crop in every process.

    Args:
        images: [R, C, H, W] of any type, 0 being black, on any device; with ``none`` also inputs [R, ...].
        augmentation: ``none``, ``crop`` or ``crop-flip``.
        share: which places of which batch they stand at.

    Returns:
        The images in the same type, channels-last.
    """
    if augmentation.how == "none":
        return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
    count, _, height, width = images.shape
    pad = max(1, height // 8)
    rng = augmentation.rng(share.step)
    drawn = [rng.integers(0, 2 * pad + 1, share.size) for _ in range(2)]
    mirrored = rng.random(share.size) < 0.5
    down, right = (moved(torch.from_numpy(numbers)[share.positions], images.device) for numbers in drawn)
    # Bytes are padded and gathered, a whole window at a time: some times faster than single pixels or floats.
    padded = F.pad(images.contiguous(memory_format=torch.channels_last), (pad, pad, pad, pad))
    windows = padded.permute(0, 2, 3, 1).unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    crops = windows[torch.arange(count, device=images.device), down, right]
    if augmentation.how == "crop-flip":
        flipped = moved(torch.from_numpy(mirrored)[share.positions].nonzero().flatten(), images.device)
        crops.index_copy_(0, flipped, crops.index_select(0, flipped).flip(2))
    return crops.permute(0, 3, 1, 2)


class Part(NamedTuple):
    """A part of an image, and whether it is mirrored.

    Attributes:
        left: first column.
        top: first row.
        width: in pixels.
        height: in pixels.
        mirrored: left and right change places.
    """

    left: int
    top: int
    width: int
    height: int
    mirrored: bool


def part_numbers(augmentation: Augmentation, share: Share) -> np.ndarray:
    """What `random_part` needs for each example of a share, float64 [R, 2 * TRIES + 3] in [0, 1)."""
    drawn: np.ndarray = augmentation.rng(share.step).random((share.size, 2 * TRIES + 3))[share.positions.numpy()]
    return drawn


def random_part(width: int, height: int, numbers: np.ndarray) -> Part:
    """A random part of an image, as RandomResizedCrop of torchvision draws it (Szegedy et al. 2015), maybe mirrored.

    Args:
        width: of the image.
        height: of the image.
        numbers: float64 [2 * TRIES + 3] in [0, 1).
    """
    *tries, across, down, flip = numbers.tolist()
    mirrored = flip < 0.5
    low, high = (math.log(ratio) for ratio in RATIOS)
    for share, position in zip(tries[::2], tries[1::2], strict=True):
        area = width * height * (AREAS[0] + (AREAS[1] - AREAS[0]) * share)
        ratio = math.exp(low + (high - low) * position)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Part(int(across * (width - w + 1)), int(down * (height - h + 1)), w, h, mirrored)
    # No try fits into an image that is very long: the largest part in its middle whose ratio is allowed.
    w, h = min(width, round(height * RATIOS[1])), min(height, round(width / RATIOS[0]))
    return Part((width - w) // 2, (height - h) // 2, w, h, mirrored)
