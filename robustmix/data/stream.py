"""Images that stay in their files: decoded batch by batch, nothing kept."""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustmix.data.dataset import TensorSplit, as_pixels, split_digest
from robustmix.errors import DataError, StoreError
from robustmix.progress import Progress, say
from robustmix.store.atomic import write_text

DIGEST_BATCH = 256


@dataclass(frozen=True)
class StreamedSplit:
    """A split whose images are decoded from their files whenever they are asked for.

    Attributes:
        files: one image each.
        labels: int64 [N].
        shape: [C, H, W] of every image.
        shaped_by: the file that the shape was read from, for messages.
        spec: what the user wrote, for messages.
        cache: the folder that remembers digests.
        workers: processes that decode ahead; 0 decodes in this one.
    """

    files: tuple[str, ...]
    labels: Tensor
    shape: tuple[int, int, int]
    shaped_by: str
    spec: str
    cache: Path
    workers: int = 0

    def __len__(self) -> int:
        return len(self.files)

    def to(self, device: torch.device) -> "StreamedSplit":
        """The split itself: batches are moved one by one."""
        return self

    def first(self, count: int | None) -> "StreamedSplit":
        """The first examples; all for None."""
        return replace(self, files=self.files[:count], labels=self.labels[:count])

    def take(self, indices: Tensor) -> "StreamedSplit":
        """The examples with indices int64 [B]."""
        return replace(self, files=tuple(self.files[index] for index in indices.tolist()), labels=self.labels[indices])

    def in_memory(self) -> TensorSplit:
        """Nothing but an error.

        Raises:
            DataError: always, with the size that the images would have.
        """
        size = len(self) * math.prod(self.shape)
        raise DataError(
            f"{self.spec}: {len(self):,} images ({gib(size)} decoded) are streamed from their files, but training "
            "keeps them in memory: use a smaller folder or free more memory"
        )

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [B, C, H, W] in [0, 1] and labels int64 [B] for each of ``parts``; moved as uint8.

        Raises:
            DataError: a file cannot be decoded, or its image has another size.
        """
        for part, images in zip(parts, self._decoded(parts, pin=device.type == "cuda"), strict=True):
            yield as_pixels(images, device), self.labels[part.cpu()].to(device, non_blocking=True)

    def digest(self) -> str:
        """What `TensorSplit.digest` gives for the same images and labels, remembered while the files stay as they are.

        Raises:
            DataError: a file cannot be decoded, or its image has another size.
        """
        known = f"{PIL.__version__} {self.shape} {self.labels.tolist()} {stamps(self.files, self.spec)}"
        remembered = self.cache / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.digest"
        if remembered.exists():
            return remembered.read_text()
        with Progress(f"reading {self.spec} once", len(self), "images") as progress:

            def images() -> Iterator[Tensor]:
                for batch in self._decoded(torch.arange(len(self)).split(DIGEST_BATCH)):
                    yield batch
                    progress.advance(len(batch))

            digest = split_digest(self.shape, images(), self.labels)
        try:
            write_text(remembered, digest)
        except StoreError as error:
            say(f"warning: the digest of {self.spec} cannot be kept for the next time: {error}")
        return digest

    def _decoded(self, parts: Sequence[Tensor], pin: bool = False) -> Iterator[Tensor]:
        """Images as uint8 [B, C, H, W] for each of ``parts``."""
        loader: DataLoader[Tensor | DataError] = DataLoader(
            _Decoder(self),
            batch_sampler=[part.tolist() for part in parts],
            collate_fn=_unchanged,
            num_workers=self.workers,  # each pins itself to one thread
            pin_memory=pin,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        for batch in loader:
            if isinstance(batch, DataError):
                # Raised here: what a worker raises would come with its traceback in the text.
                raise batch
            yield batch


class _Decoder(Dataset[Tensor]):
    """What a worker runs."""

    def __init__(self, split: StreamedSplit) -> None:
        self.split = split

    def __getitems__(self, indices: list[int]) -> Tensor | DataError:
        split = self.split
        images = np.empty((len(indices), *split.shape), dtype=np.uint8)
        try:
            for image, index in zip(images, indices, strict=True):
                image[:] = read_image(split.files[index], split.spec, split.shape, split.shaped_by)
        except DataError as error:
            return error
        return torch.from_numpy(images)


def _unchanged(batch: Any) -> Any:
    return batch


def read_image(file: str, spec: str, shape: tuple[int, int, int], shaped_by: str) -> np.ndarray:
    """Decode one image into uint8 [C, H, W].

    Args:
        file: to decode.
        spec: what the user wrote, for messages.
        shape: that the image must have; with one channel the file must be grey.
        shaped_by: the file that the shape was read from.

    Raises:
        DataError: it cannot be decoded, has more than 8 bits per channel or another size.
    """
    channels, height, width = shape
    with _opened(file, spec) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would cut every level above 255 off
            raise DataError(f"{spec}: {file} has more than 8 bits per channel; convert it first")
        if image.size != (width, height):
            raise DataError(
                f"{spec}: images differ in size: {shaped_by} is {width}x{height}, {file} is "
                f"{image.size[0]}x{image.size[1]}; resize them to one size first"
            )
        pixels: np.ndarray = np.asarray(image.convert("RGB")).transpose(2, 0, 1)[:channels]
    return pixels


def read_shape(files: Sequence[str], spec: str) -> tuple[int, int, int]:
    """[C, H, W] of images, from headers alone: one channel if every file is grey, else three.

    Raises:
        DataError: a header cannot be read.
    """
    with _opened(files[0], spec) as image:
        width, height = image.size
    with Progress(f"looking for colour in {spec}", len(files), "files") as progress:
        for file in files:
            with _opened(file, spec) as image:
                if image.mode not in ("1", "L"):
                    return 3, height, width
            progress.advance(1)
    return 1, height, width


@contextmanager
def _opened(file: str, spec: str) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{spec}: {file} cannot be decoded: {error}") from None


def stamps(files: Sequence[str], spec: str) -> str:
    """SHA-256 of path, size and time of change of files, by which a changed one is noticed without reading it.

    Raises:
        DataError: there is no such file any more.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            stat = os.stat(file)
        except OSError as error:
            raise DataError(f"{spec}: {file} cannot be read: {error.strerror}") from None
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def gib(size: float) -> str:
    """A number of bytes in GiB, as people read it."""
    return f"{size / 2**30:.3g} GiB"
