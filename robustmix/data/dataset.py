"""What a data set is, whatever it was read from."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from robustmix.data.augment import Augmentation, Share
from robustmix.data.memory import TensorSplit
from robustmix.errors import DataError, SpecError
from robustmix.rng import Stream, generator
from robustmix.spec.names import Augment
from robustmix.units import IMAGES, Space


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

    @property
    def augments(self) -> tuple[Augment, ...]:
        """How its examples can be augmented."""
        ...

    def __len__(self) -> int: ...

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs float32 [B, ...] in [0, 1] and labels int64 [B], both on the device.

        Args:
            parts: indices int64 [B] of each batch.
            device: that the batches are wanted on.
        """
        ...

    def training_batches(
        self, shares: Iterable[Share], device: torch.device, augmentation: Augmentation
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented inputs float32 [R, ...] in [0, 1] and labels int64 [R], both on the device.

        Args:
            shares: what is wanted of each batch; taken one by one, a few batches ahead where images are streamed.
            device: that the batches are wanted on.
            augmentation: one of `augments`. The same place of a batch gets the same in whatever share it stands.

        Returns:
            The batches in order; images are channels-last. Workers end when the iterator is closed.

        Raises:
            DataError: a file cannot be decoded, or its image has another size.
        """
        ...

    def digest(self) -> str:
        """SHA-256 of shape, inputs and labels; the same in memory and streamed."""
        ...

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation float32 [C] of each channel, in [0, 1] pixel units."""
        ...

    def first(self, count: int | None) -> "Split":
        """The first examples; all for None."""
        ...

    def take(self, indices: Tensor) -> "Split":
        """The examples with indices int64 [B]."""
        ...

    def relabelled(self, labels: Tensor) -> "Split":
        """The same inputs with other labels int64 [N]."""
        ...

    def to(self, device: torch.device) -> "Split":
        """The split with what it holds in memory on a device, so that batches move as little as possible."""
        ...

    def in_memory(self) -> "TensorSplit":
        """The split in memory.

        Raises:
            DataError: it is streamed.
        """
        ...


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
        corrupted: bool [N], the training examples whose labels were replaced by random ones, if that was asked for.
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
    corrupted: Tensor | None = None

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
        return replace(self._training_on(kept), val=self.train.take(held))

    def with_limit(self, count: int | None) -> "Dataset":
        """Train on ``count`` examples only, of all classes alike; on all for None.

        Each class gives the first of its examples, the first classes one more where the count is no multiple of their
        number. What a class cannot give, the others do. The order of the examples stays.
        """
        if count is None or count >= len(self.train):
            return self
        labels = self.train.labels
        places = [(labels == label).nonzero().flatten() for label in range(len(self.classes))]
        quotas = balanced([len(of_class) for of_class in places], count)
        kept = torch.cat([of_class[:quota] for of_class, quota in zip(places, quotas, strict=True)])
        return self._training_on(kept.sort().values)

    def with_label_noise(self, share: float, seed: int) -> "Dataset":
        """Replace the labels of a fixed number of training examples by random ones (Zhang et al. 2018, section 3.4).

        A label is drawn from all classes, the true one included, as Zhang et al. 2017 do: only so does a network that
        ignores the noise err on about 90 % of the corrupted labels of ten classes, as published.

        Args:
            share: of the training examples, in [0, 1].
            seed: of the run.
        """
        if share == 0:
            return self
        rng, total = generator(seed, Stream.LABEL_NOISE), len(self.train)
        chosen = torch.from_numpy(rng.permutation(total)[: round(share * total)])
        drawn = torch.from_numpy(rng.integers(0, len(self.classes), len(chosen)))
        corrupted = torch.zeros(total, dtype=torch.bool).index_fill(0, chosen, True)
        labels = self.train.labels.index_copy(0, chosen, drawn)
        return replace(self, train=self.train.relabelled(labels), corrupted=corrupted)

    def _training_on(self, kept: Tensor) -> "Dataset":
        corrupted = None if self.corrupted is None else self.corrupted[kept]
        return replace(self, train=self.train.take(kept), corrupted=corrupted)


def balanced(available: Sequence[int], count: int) -> list[int]:
    """How many examples of each class make ``count`` together, as evenly as they can be given.

    Args:
        available: examples of each class, together at least ``count``.
        count: that are wanted.
    """
    level = bisect_right(range(count + 1), count, key=lambda most: sum(min(own, most) for own in available)) - 1
    quotas = [min(own, level) for own in available]
    more = [label for label, own in enumerate(available) if own > level][: count - sum(quotas)]
    return [quota + (label in more) for label, quota in enumerate(quotas)]


def check_augment(how: Augment, split: Split) -> None:
    """Refuse what these examples cannot be augmented by.

    Raises:
        SpecError: with what they can.
    """
    if how not in split.augments:
        raise SpecError(
            f"--augment {how} does not apply to these training examples {list(split.shape)}: choose from "
            f"{', '.join(split.augments)} (resized-crop-flip is for imagenet:PATH, crop and crop-flip for images of "
            "one size)"
        )
