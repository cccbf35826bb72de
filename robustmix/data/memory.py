"""Splits in memory, and what they share with streamed ones."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import numpy as np
import torch
from torch import Tensor

from robustmix.data.augment import Augmentation, Share, augment
from robustmix.errors import DataError
from robustmix.moving import moved
from robustmix.spec.names import Augment
from robustmix.units import GREY_LEVELS, IMAGES

COUNTED_AT_ONCE: Final = 4096


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
                    f"float inputs must lie in [0, 1], without NaN; got values from {low:.8g} to {high:.8g} (divide "
                    "pixels by 255, and put the normalisation inside the model)"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input; [C, H, W] for images."""
        return tuple(self.images.shape[1:])

    @property
    def augments(self) -> tuple[Augment, ...]:
        """How its examples can be augmented."""
        return ("none", "crop", "crop-flip") if self.images.ndim == 4 else ("none",)

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """What `gather` gives for each of ``parts``."""
        return (self.gather(part, device) for part in parts)

    def gather(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs float32 [B, ...] in [0, 1] and labels int64 [B] for indices int64 [B]; images are moved as uint8."""
        rows = moved(indices, self.images.device)
        return as_pixels(moved(self.images[rows], device)), moved(self.labels[rows], device)

    def training_batches(
        self, shares: Iterable[Share], device: torch.device, augmentation: Augmentation
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented inputs float32 [R, ...] and labels int64 [R]; images stay uint8 until they are batches."""
        for share in shares:
            rows = moved(share.rows, self.images.device)
            images = moved(self.images.index_select(0, rows), device)
            yield as_pixels(augment(images, augmentation, share)), moved(self.labels[rows], device)

    def to(self, device: torch.device) -> "TensorSplit":
        """The split on a device, so that gathering moves nothing."""
        return TensorSplit(self.images.to(device), self.labels.to(device))

    def first(self, count: int | None) -> "TensorSplit":
        """The first examples; all for None."""
        return TensorSplit(self.images[:count], self.labels[:count])

    def take(self, indices: Tensor) -> "TensorSplit":
        """The examples with indices int64 [B]."""
        return TensorSplit(self.images[indices], self.labels[indices])

    def relabelled(self, labels: Tensor) -> "TensorSplit":
        """The same inputs with other labels int64 [N]."""
        return replace(self, labels=labels)

    def in_memory(self) -> "TensorSplit":
        """The split itself."""
        return self

    def digest(self) -> str:
        """SHA-256 of shape, images and labels."""
        return split_digest(self.shape, [self.images], self.labels)

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] of each channel of uint8 images, in [0, 1] pixel units, exact in float64."""
        return channel_statistics(self.images.split(COUNTED_AT_ONCE))


def as_pixels(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1], where they are; uint8 is divided."""
    return images if images.is_floating_point() else images.float().div_(GREY_LEVELS)


def channel_statistics(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation float32 [C] of each channel, in [0, 1] pixel units, exact in float64.

    A channel that is constant has the deviation 1, so that one can divide by it.

    Args:
        parts: uint8 images [B, C, H, W], some at a time.
    """
    counts = torch.zeros((), dtype=torch.int64)
    for part in parts:
        counts = counts + torch.stack([_histogram(channel) for channel in part.unbind(1)]).cpu()
    levels = torch.arange(GREY_LEVELS + 1, dtype=torch.float64) / GREY_LEVELS
    weights = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = (weights * levels).sum(dim=1)
    std = (weights * (levels - mean[:, None]) ** 2).sum(dim=1).sqrt()
    return mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float()


def _histogram(pixels: Tensor) -> Tensor:
    return torch.bincount(pixels.reshape(-1).long(), minlength=GREY_LEVELS + 1)


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
