"""Images that stay in their files: decoded batch by batch, nothing kept."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustmix.data.augment import Augmentation, Share, augment
from robustmix.data.images import gib, stamps
from robustmix.data.memory import TensorSplit, as_pixels, channel_statistics, split_digest
from robustmix.errors import DataError, StoreError
from robustmix.moving import moved
from robustmix.progress import Progress, say
from robustmix.spec.names import Augment
from robustmix.store.atomic import write_text

READ_AT_ONCE: Final = 256


@dataclass(frozen=True, kw_only=True)
class StreamedSplit(ABC):
    """A split whose images are decoded from their files whenever they are asked for.

    Attributes:
        files: one image each.
        labels: int64 [N].
        shape: [C, H, W] of every image.
        spec: what the user wrote, for messages.
        cache: the folder that remembers what costs a look at every image.
        workers: processes that decode ahead; 0 decodes in this one.
    """

    files: tuple[str, ...]
    labels: Tensor
    shape: tuple[int, int, int]
    spec: str
    cache: Path
    workers: int = 0

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Decode one image into uint8 [H, W, C].

        Raises:
            DataError: the file cannot be decoded, or does not fit the others.
        """

    @property
    def augments(self) -> tuple[Augment, ...]:
        """How its examples can be augmented."""
        return "none", "crop", "crop-flip"

    def __len__(self) -> int:
        return len(self.files)

    def to(self, device: torch.device) -> Self:
        """The split itself: batches are moved one by one."""
        return self

    def first(self, count: int | None) -> Self:
        """The first examples; all for None."""
        return replace(self, files=self.files[:count], labels=self.labels[:count])

    def take(self, indices: Tensor) -> Self:
        """The examples with indices int64 [B]."""
        return replace(self, files=tuple(self.files[index] for index in indices.tolist()), labels=self.labels[indices])

    def relabelled(self, labels: Tensor) -> Self:
        """The same images with other labels int64 [N]."""
        return replace(self, labels=labels)

    def in_memory(self) -> TensorSplit:
        """Nothing but an error.

        Raises:
            DataError: always, with the size that the images would have.
        """
        size = len(self) * math.prod(self.shape)
        raise DataError(
            f"{self.spec}: {len(self):,} images ({gib(size)} decoded) are streamed from their files, but what was "
            "asked for needs them in memory: use a smaller folder or free more memory"
        )

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [B, C, H, W] in [0, 1] and labels int64 [B] for each of ``parts``; moved as uint8.

        Raises:
            DataError: a file cannot be decoded, or its image has another size.
        """
        for part, images in zip(parts, self._decoded((part.tolist() for part in parts), device), strict=True):
            yield as_pixels(moved(images, device)), moved(self.labels[part.cpu()], device)

    def training_batches(
        self, shares: Iterable[Share], device: torch.device, augmentation: Augmentation
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images float32 [R, C, H, W] and labels int64 [R]; see `Split.training_batches`.

        Raises:
            DataError: a file cannot be decoded, or its image has another size.
        """
        shares, ahead = tee(shares)
        for share, images in zip(shares, self._decoded((share.rows.tolist() for share in ahead), device), strict=True):
            changed = augment(moved(images, device), augmentation, share)
            yield as_pixels(changed), moved(self.labels[share.rows], device)

    def digest(self) -> str:
        """What `TensorSplit.digest` gives for the same images and labels, remembered while the files stay as they are.

        Raises:
            DataError: a file cannot be decoded, or its image has another size.
        """
        return self._remembered(
            "digest", f"{self.labels.tolist()} ", lambda images: split_digest(self.shape, images, self.labels)
        )

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """What `TensorSplit.channel_statistics` gives for the same images; remembered as well.

        Raises:
            DataError: a file cannot be decoded, or its image has another size.
        """
        text = self._remembered(
            "statistics", "", lambda images: json.dumps([each.tolist() for each in channel_statistics(images)])
        )
        mean, std = (torch.tensor(each) for each in json.loads(text))
        return mean, std

    def _remembered(self, what: str, besides: str, of: Callable[[Iterator[Tensor]], str]) -> str:
        """A text that is made of all images uint8 [B, C, H, W] once, until a file or something besides changes."""
        known = f"{type(self).__name__} {PIL.__version__} {self.shape} {besides}{stamps(self.files, self.spec)}"
        remembered = self.cache / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.{what}"
        if remembered.exists():
            return remembered.read_text()
        with Progress(f"reading {self.spec} once", len(self), "images") as progress:

            def images() -> Iterator[Tensor]:
                parts = torch.arange(len(self)).split(READ_AT_ONCE)
                for batch in self._decoded((part.tolist() for part in parts), torch.device("cpu")):
                    yield batch
                    progress.advance(len(batch))

            text = of(images())
        try:
            write_text(remembered, text)
        except StoreError as error:
            say(f"warning: the {what} of {self.spec} cannot be kept for the next time: {error}")
        return text

    def _decoded(
        self,
        parts: Iterable[Sequence[Any]],
        device: torch.device,
        read: Callable[[Any], np.ndarray] | None = None,
    ) -> Iterator[Tensor]:
        """Images as uint8 [B, C, H, W], channels-last, for each of ``parts``; these are taken a few batches ahead.

        Args:
            parts: what ``read`` takes, for each image of each batch.
            device: that the batches will be moved to.
            read: gives one image, uint8 [H, W, C]; `read` by default.
        """
        loader: DataLoader[Tensor | DataError] = DataLoader(
            _Decoder(self.shape, read or self.read),
            batch_sampler=parts,  # type: ignore[arg-type] # any list reaches the decoder as it is
            collate_fn=_unchanged,
            num_workers=self.workers,  # each pins itself to one thread
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # or it would draw from the global one
        )
        for batch in loader:
            if isinstance(batch, DataError):
                # Raised here: what a worker raises would come with its traceback in the text.
                raise batch
            yield batch


class _Decoder(Dataset[Tensor]):
    """What a worker runs."""

    def __init__(self, shape: tuple[int, int, int], read: Callable[[Any], np.ndarray]) -> None:
        self.shape, self.read = shape, read

    def __getitems__(self, items: Sequence[Any]) -> Tensor | DataError:
        channels, height, width = self.shape
        images = np.empty((len(items), height, width, channels), dtype=np.uint8)
        try:
            for image, item in zip(images, items, strict=True):
                image[:] = self.read(item)
        except DataError as error:
            return error
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def _unchanged(batch: Any) -> Any:
    return batch
