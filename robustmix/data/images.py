"""Image files: decoded, looked at, told apart."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image

from robustmix.errors import DataError
from robustmix.progress import Progress


def read_image(file: str, spec: str, shape: tuple[int, int, int], shaped_by: str) -> np.ndarray:
    """Decode one image into uint8 [H, W, C].

    Args:
        file: to decode.
        spec: what the user wrote, for messages.
        shape: that the image must have; with one channel the file must be grey.
        shaped_by: the file that the shape was read from.

    Raises:
        DataError: it cannot be decoded, has more than 8 bits per channel or another size.
    """
    channels, height, width = shape
    with opened(file, spec) as image:
        check_depth(image, file, spec)
        if image.size != (width, height):
            raise DataError(
                f"{spec}: images differ in size: {shaped_by} is {width}x{height}, {file} is "
                f"{image.size[0]}x{image.size[1]}; resize them to one size first"
            )
        pixels: np.ndarray = np.asarray(coloured(image))[:, :, :channels]
    return pixels


def read_shape(files: Sequence[str], spec: str) -> tuple[int, int, int]:
    """[C, H, W] of images, from headers alone: one channel if every file is grey, else three.

    Raises:
        DataError: a header cannot be read.
    """
    with opened(files[0], spec) as image:
        width, height = image.size
    with Progress(f"looking for colour in {spec}", len(files), "files") as progress:
        for file in files:
            with opened(file, spec) as image:
                if image.mode not in ("1", "L"):
                    return 3, height, width
            progress.advance(1)
    return 1, height, width


def coloured(image: Image.Image) -> Image.Image:
    """The image in three channels; itself if it has them."""
    return image if image.mode == "RGB" else image.convert("RGB")


def check_depth(image: Image.Image, file: str, spec: str) -> None:
    """Refuse what Pillow would cut every level above 255 off of.

    Raises:
        DataError: the image has more than 8 bits per channel.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{spec}: {file} has more than 8 bits per channel; convert it first")


@contextmanager
def opened(file: str, spec: str) -> Iterator[Image.Image]:
    """An image file whose pixels are decoded when they are first asked for.

    Raises:
        DataError: it cannot be decoded.
    """
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
        status = file_status(file, spec)
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def file_status(file: str, spec: str) -> os.stat_result:
    """What the system knows of a file.

    Raises:
        DataError: there is no such file any more.
    """
    try:
        return os.stat(file)
    except OSError as error:
        raise DataError(f"{spec}: {file} cannot be read: {error.strerror}") from None


def gib(size: float) -> str:
    """A number of bytes in GiB, as people read it."""
    return f"{size / 2**30:.3g} GiB"
