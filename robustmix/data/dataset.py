"""What a data set is, whatever it was read from."""

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robustmix.errors import DataError
from robustmix.rng import Stream, generator
from robustmix.units import GREY_LEVELS, IMAGES, Space


class Split(Protocol):
    """One half of a data set, whether it lies in memory or is streamed."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs, float32 in the data set's space, and labels, int64, both on the device."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split in memory.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8 or len(self.images) != len(self.labels):
            raise DataError(
                f"a split takes uint8 images [N, C, H, W] and as many labels; got {self.images.dtype} "
                f"{list(self.images.shape)} and {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images as float32 [B, C, H, W] in [0, 1] and labels int64 [B] for indices int64 [B]; moved as uint8."""
        indices = indices.to(self.images.device)
        images = self.images[indices].to(device, non_blocking=True)
        return images.float().div_(GREY_LEVELS), self.labels[indices].to(device, non_blocking=True)

    def to(self, device: torch.device) -> "TensorSplit":
        """The split on a device, so that gathering moves nothing."""
        return TensorSplit(self.images.to(device), self.labels.to(device))

    def first(self, count: int | None) -> "TensorSplit":
        """The first examples; all for None."""
        return TensorSplit(self.images[:count], self.labels[:count])

    def digest(self) -> str:
        """SHA-256 of shape, images and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] of each channel in [0, 1] pixel units, exact in float64."""
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
    train: TensorSplit
    test: TensorSplit
    classes: tuple[str, ...]
    like: str | None = None
    note: str | None = None
    val: TensorSplit | None = None
    space: Space = IMAGES

    def __post_init__(self) -> None:
        for half, split in (("train", self.train), ("test", self.test)):
            if len(split) == 0:
                raise DataError(f"{self.spec}: the {half} split is empty")
            if split.images.shape[1:] != self.train.images.shape[1:]:
                raise DataError(
                    f"{self.spec}: test images are {list(split.images.shape[1:])}, training images "
                    f"{list(self.train.images.shape[1:])}"
                )
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(f"{self.spec}: {half} labels run from {low} to {high}, for {len(self.classes)} classes")

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        channels, height, width = self.train.images.shape[1:]
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
        take = self.train
        return replace(
            self,
            train=TensorSplit(take.images[kept], take.labels[kept]),
            val=TensorSplit(take.images[held], take.labels[held]),
        )


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
