"""ImageNet (Russakovsky et al. 2015): photographs of any size, always streamed, cut to 224x224."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustmix.data.augment import Augmentation, Part, Share, part_numbers, random_part
from robustmix.data.dataset import Dataset
from robustmix.data.folder import find_images
from robustmix.data.images import check_depth, coloured, file_status, opened
from robustmix.data.memory import as_pixels
from robustmix.data.stream import StreamedSplit
from robustmix.moving import moved
from robustmix.spec.names import Augment

# The shorter side before the cut, and the side of what is cut out (Krizhevsky et al. 2012; Zhang et al. 2018).
RESIZED: Final = 256
SIDE: Final = 224
# Of the training images, as published with torchvision's networks.
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)


def load_imagenet(spec: str, name_or_path: str, root: Path, cache: Path, *, workers: int = 0) -> Dataset:
    """Load ``train/CLASS/*`` and ``val/CLASS/*``.

    Args:
        spec: what the user wrote, for messages.
        name_or_path: a folder under the root, else a path.
        root: the data root.
        cache: where digests are kept.
        workers: processes that decode ahead.

    Raises:
        DataError: there is no such folder, or its classes do not fit.
    """
    tree = find_images(spec, name_or_path, root, tests=("val",))
    train, test = (
        ImageNetSplit(
            files=tuple(files),
            labels=labels,
            shape=(3, SIDE, SIDE),
            spec=spec,
            cache=cache,
            workers=workers,
            known_by_size=half == "train",
        )
        for half, (files, labels) in tree.halves.items()
    )
    return Dataset(
        name=tree.facts.name or "imagenet",
        spec=spec,
        train=train,
        test=test,
        classes=tree.classes,
        like=tree.facts.like or "imagenet",
        note=tree.facts.note,
    )


@dataclass(frozen=True, kw_only=True)
class ImageNetSplit(StreamedSplit):
    """Images of any size: their centre, or a random part in training.

    Attributes:
        known_by_size: the digest does not read the images.
    """

    known_by_size: bool

    @property
    def augments(self) -> tuple[Augment, ...]:
        """How its examples can be augmented; with ``none`` it is the centre that is trained on."""
        return "none", "resized-crop-flip"

    def read(self, index: int) -> np.ndarray:
        """The centre of one image, uint8 [224, 224, 3].

        Raises:
            DataError: the file cannot be decoded.
        """
        with opened(self.files[index], self.spec) as image:
            check_depth(image, self.files[index], self.spec)
            return np.asarray(centre(coloured(image)))

    def read_part(self, item: tuple[int, np.ndarray]) -> np.ndarray:
        """A random part of one image, uint8 [224, 224, 3].

        Args:
            item: which image, and the numbers that `random_part` takes.

        Raises:
            DataError: the file cannot be decoded.
        """
        index, numbers = item
        with opened(self.files[index], self.spec) as image:
            check_depth(image, self.files[index], self.spec)
            return np.asarray(resized(coloured(image), random_part(*image.size, numbers)))

    def training_batches(
        self, shares: Iterable[Share], device: torch.device, augmentation: Augmentation
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Random parts, mirrored or not, or centres, float32 [R, 3, 224, 224], and labels int64 [R].

        Raises:
            DataError: a file cannot be decoded.
        """
        if augmentation.how != "resized-crop-flip":
            yield from super().training_batches(shares, device, augmentation)
            return
        shares, ahead = tee(shares)
        items = (list(zip(s.rows.tolist(), part_numbers(augmentation, s), strict=True)) for s in ahead)
        for share, images in zip(shares, self._decoded(items, device, self.read_part), strict=True):
            yield as_pixels(moved(images, device)), moved(self.labels[share.rows], device)

    def digest(self) -> str:
        """SHA-256 of the images and labels; of training examples only names, sizes of the files and labels are read.

        Decoding 1.28 million images takes hours, so an image that is replaced by one of the same name and length is not
        noticed.

        Raises:
            DataError: a file cannot be read.
        """
        if not self.known_by_size:
            return super().digest()
        digest = hashlib.sha256(repr((len(self), *self.shape)).encode())
        for file in self.files:
            name = "/".join(file.rsplit(os.sep, 2)[1:])
            digest.update(f"{name}\0{file_status(file, self.spec).st_size}\n".encode())
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """The published ones of ImageNet's training images."""
        return torch.tensor(MEAN), torch.tensor(STD)


def centre(image: Image.Image) -> Image.Image:
    """The 224x224 pixels in the middle of an image whose shorter side is made 256 pixels long."""
    shorter = min(image.size)
    width, height = (RESIZED * side // shorter for side in image.size)
    left, top = (round((side - SIDE) / 2) for side in (width, height))
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + SIDE, top + SIDE))


def resized(image: Image.Image, part: Part) -> Image.Image:
    """A part of an image, resized to 224x224 and mirrored if it says so."""
    box = (part.left, part.top, part.left + part.width, part.top + part.height)
    # Cut out first: resizing with a box would look at pixels around it.
    found = image.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if part.mirrored else found
