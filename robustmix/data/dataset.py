"""What a data set is, whatever it was read from."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robustmix.errors import DataError
from robustmix.rng import Stream, generator
from robustmix.units import GREY_LEVELS, IMAGES, Space


class Split(Protocol):
    """One half of a data set, whether it lies in memory or is streamed."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input; [C, H, W] for images."""
        ...

    def __len__(self) -> int: ...

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs float32 [B, ...] in [0, 1] and labels int64 [B], both on the device.

        Args:
            parts: indices int64 [B] of each batch.
            device: that the batches are wanted on.
        """
        ...

    def digest(self) -> str:
        """SHA-256 of shape, inputs and labels; the same in memory and streamed."""
        ...

    def first(self, count: int | None) -> "Split":
        """The first examples; all for None."""
        ...

    def take(self, indices: Tensor) -> "Split":
        """The examples with indices int64 [B]."""
        ...

    def to(self, device: torch.device) -> "Split":
        """The split with what it holds in memory on a device, so that batches move as little as possible."""
        ...

    def in_memory(self) -> "TensorSplit":
        """The split in memory, as training needs it.

        Raises:
            DataError: it is streamed.
        """
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split in memory.

    Attributes:
        images: uint8 [N, C, H, W], or inputs of any kind float32 [N, ...] in [0, 1].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        dimensions = {torch.uint8: images.ndim == 4, torch.float32: images.ndim >= 2}
        if not dimensions.get(images.dtype) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                "a split takes uint8 images [N, C, H, W] or float32 inputs [N, ...], and int64 labels [N]; got "
                f"{images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}"
            )
        if images.is_floating_point() and images.numel():
            low, high = (float(limit) for limit in images.aminmax())
            if not (low >= IMAGES.low and high <= IMAGES.high):  # so that NaN is refused as well
                raise DataError(
                    f"float inputs must lie in [0, 1], without NaN; got values from {low:g} to {high:g} (divide pixels "
                    "by 255, and put the normalisation inside the model)"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input; [C, H, W] for images."""
        return tuple(self.images.shape[1:])

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """What `gather` gives for each of ``parts``."""
        return (self.gather(part, device) for part in parts)

    def gather(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs float32 [B, ...] in [0, 1] and labels int64 [B] for indices int64 [B]; images are moved as uint8."""
        indices = indices.to(self.images.device)
        return as_pixels(self.images[indices], device), self.labels[indices].to(device, non_blocking=True)

    def to(self, device: torch.device) -> "TensorSplit":
        """The split on a device, so that gathering moves nothing."""
        return TensorSplit(self.images.to(device), self.labels.to(device))

    def first(self, count: int | None) -> "TensorSplit":
        """The first examples; all for None."""
        return TensorSplit(self.images[:count], self.labels[:count])

    def take(self, indices: Tensor) -> "TensorSplit":
        """The examples with indices int64 [B]."""
        return TensorSplit(self.images[indices], self.labels[indices])

    def in_memory(self) -> "TensorSplit":
        """The split itself."""
        return self

    def digest(self) -> str:
        """SHA-256 of shape, images and labels."""
        return split_digest(self.shape, [self.images], self.labels)

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] of each channel of uint8 images, in [0, 1] pixel units, exact in float64."""
        levels = torch.arange(GREY_LEVELS + 1, dtype=torch.float64) / GREY_LEVELS
        means, stds = [], []
        for channel in self.images.unbind(1):
            weights = torch.bincount(channel.reshape(-1).long(), minlength=GREY_LEVELS + 1).double()
            weights /= weights.sum()
            mean = (weights * levels).sum()
            means.append(mean)
            stds.append((weights * (levels - mean) ** 2).sum().sqrt())
        std = torch.stack(stds)
        return torch.stack(means).float(), torch.where(std > 0, std, torch.ones_like(std)).float()


@dataclass(frozen=True)
class Dataset:
    """A train and a test split.

    Attributes:
        name: for people and for results.
        spec: what `load_data` was given.
        train: training examples.
        test: test examples; nothing is ever selected on them.
        classes: names of the classes; label k is ``classes[k]``.
        like: the well-known data set that this one is or resembles; defaults and published figures follow it.
        note: one sentence on how it differs from that one.
        val: examples carved out of the training set, if asked for.
        space: the range of valid inputs.
    """

    name: str
    spec: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    like: str | None = None
    note: str | None = None
    val: Split | None = None
    space: Space = IMAGES

    def __post_init__(self) -> None:
        for half, split in (("train", self.train), ("test", self.test)):
            if len(split) == 0:
                raise DataError(f"{self.spec}: the {half} split is empty")
            if split.shape != self.train.shape:
                raise DataError(
                    f"{self.spec}: test images are {list(split.shape)}, training images {list(self.train.shape)}"
                )
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(f"{self.spec}: {half} labels run from {low} to {high}, for {len(self.classes)} classes")

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        channels, height, width = self.train.shape
        return channels, height, width

    def with_validation(self, count: int) -> "Dataset":
        """Move ``count`` training examples, drawn by a fixed permutation, into `val`.

        Raises:
            DataError: fewer than one training example would be left.
        """
        if count == 0:
            return self
        if count >= len(self.train):
            raise DataError(
                f"--val {count} leaves nothing to train on: {self.spec} has {len(self.train)} training examples"
            )
        order = torch.from_numpy(generator(0, Stream.VALIDATION).permutation(len(self.train)))
        held, kept = order[:count].sort().values, order[count:].sort().values
        return replace(self, train=self.train.take(kept), val=self.train.take(held))


def as_pixels(images: Tensor, device: torch.device) -> Tensor:
    """Images as float32 in [0, 1] on a device; uint8 is moved as such and divided there."""
    images = images.to(device, non_blocking=True)
    return images if images.is_floating_point() else images.float().div_(GREY_LEVELS)


def split_digest(shape: tuple[int, ...], images: Iterable[Tensor], labels: Tensor) -> str:
    """SHA-256 of a split.

    Args:
        shape: of one input.
        images: all inputs in order, in parts of any size.
        labels: int64 [N].
    """
    digest = hashlib.sha256(repr((len(labels), *shape)).encode())
    for part in chain(images, (labels,)):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def tensor_split(images: np.ndarray, labels: np.ndarray, where: str) -> TensorSplit:
    """A split from arrays: uint8 [N, H, W, C] or [N, C, H, W], C being 1 or 3, and whole-number labels [N].

    Raises:
        DataError: another type, shape or count.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"{where}: images must be uint8 [N, H, W, C] or [N, C, H, W]; got {images.dtype} {list(images.shape)}"
        )
    if images.shape[1] not in (1, 3):
        if images.shape[3] not in (1, 3):
            raise DataError(f"{where}: images must have 1 or 3 channels, first or last; got {list(images.shape)}")
        images = images.transpose(0, 3, 1, 2)
    labels = np.asarray(labels).reshape(-1)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: labels must be whole numbers; got {labels.dtype}")
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels")
    return TensorSplit(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))
