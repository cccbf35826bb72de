"""Image folders: ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/CLASS/*``), decoded once into the user's cache."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from robustmix.data.dataset import Dataset, TensorSplit
from robustmix.errors import DataError, StoreError
from robustmix.progress import Progress, say
from robustmix.rng import Stream, generator
from robustmix.spec.validation import Spec, read_toml, validate
from robustmix.store.atomic import write_atomically

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"})

CHUNK = 256


class FolderFacts(Spec):
    """``dataset.toml`` in an image folder.

    Attributes:
        name: for people and for results.
        like: the well-known data set that it resembles.
        note: one sentence on how it differs from that one.
    """

    name: str | None = Field(default=None, min_length=1)
    like: str | None = None
    note: str | None = None


def load_folder(spec: str, name_or_path: str, root: Path, cache: Path) -> Dataset:
    """Load an image folder.

    Args:
        spec: what the user wrote, for messages.
        name_or_path: a folder under the root, else a path.
        root: the data root.
        cache: where decoded images are kept.

    Raises:
        DataError: there is no such folder, its classes or image sizes do not fit, or an image cannot be decoded.
    """
    candidates = [root / name_or_path, Path(name_or_path).expanduser()]
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is None:
        tried = ", ".join(str(path) for path in dict.fromkeys(candidates))
        raise DataError(f"{spec}: no such folder; looked for {tried} (--data-root or ROBUSTMIX_DATA name the root)")
    facts_file = folder / "dataset.toml"
    facts = validate(FolderFacts, read_toml(facts_file), str(facts_file)) if facts_file.exists() else FolderFacts()
    halves = {
        "train": folder / "train",
        "test": next((folder / n for n in ("test", "val") if (folder / n).is_dir()), None),
    }
    for half, path in halves.items():
        if path is None or not path.is_dir():
            raise DataError(f"{spec}: {folder} has no folder {half}/{' or val/' if half == 'test' else ''}")
    listings = {half: _list_images(path, spec) for half, path in halves.items() if path}
    classes = tuple(listings["train"])
    if tuple(listings["test"]) != classes:
        odd = sorted(set(listings["test"]) ^ set(classes))
        raise DataError(f"{spec}: the class {odd[0]!r} is not in both {halves['train']} and {halves['test']}")
    splits = {half: _decoded(listing, cache, spec, half) for half, listing in listings.items()}
    return Dataset(
        name=facts.name or folder.resolve().name,
        spec=spec,
        train=splits["train"],
        test=splits["test"],
        classes=classes,
        like=facts.like,
        note=facts.note,
    )


def _list_images(folder: Path, spec: str) -> dict[str, list[Path]]:
    """The image files of each class, both in alphabetical order."""
    listing = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            raise DataError(f"{spec}: {entry} lies beside the class folders; images belong into {folder}/CLASS/")
        listing[entry.name] = sorted(p for p in entry.rglob("*") if p.suffix.lower() in EXTENSIONS)
        if not listing[entry.name]:
            raise DataError(f"{spec}: {entry} holds no image ({', '.join(sorted(EXTENSIONS))})")
    if len(listing) < 2:
        raise DataError(f"{spec}: {folder} has {len(listing)} class folders; at least two are needed")
    return listing


def _decoded(listing: dict[str, list[Path]], cache: Path, spec: str, half: str) -> TensorSplit:
    """All images as one array in one fixed random order, from the cache if these very files were decoded before."""
    files = [path.absolute() for paths in listing.values() for path in paths]
    labels = np.repeat(np.arange(len(listing)), [len(paths) for paths in listing.values()])
    order = generator(0, Stream.FOLDER).permutation(len(files))
    stamps = (f"{path}\0{(stat := os.stat(path)).st_size}\0{stat.st_mtime_ns}\n" for path in files)
    cached = cache / f"{hashlib.sha256(''.join(stamps).encode()).hexdigest()[:32]}.npy"
    images = _from_cache(cached)
    if images is None:
        images = _decode([files[index] for index in order], spec, half)
        try:
            write_atomically(cached, lambda file: np.save(file, images, allow_pickle=False))
        except StoreError as error:
            say(f"warning: the decoded images cannot be kept for the next time: {error}")
    return TensorSplit(torch.from_numpy(images), torch.from_numpy(labels[order].astype(np.int64)))


def _from_cache(cached: Path) -> np.ndarray | None:
    if not cached.exists():
        return None
    try:
        images: np.ndarray = np.load(cached, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        say(f"warning: {cached} is damaged and is made anew: {error}")
        return None
    return images


def _decode(files: list[Path], spec: str, half: str) -> np.ndarray:
    """Decode images into uint8 [N, C, H, W]; one channel if every file is grey, else three."""
    first, _ = _read(files[0], spec)
    images = np.empty((len(files), *first.shape), dtype=np.uint8)

    def fill(start: int) -> tuple[int, bool]:
        grey = True
        chunk = files[start : start + CHUNK]
        for index, path in enumerate(chunk, start):
            image, is_grey = _read(path, spec)
            if image.shape != first.shape:
                raise DataError(
                    f"{spec}: images differ in size: {files[0]} is {first.shape[2]}x{first.shape[1]}, "
                    f"{path} is {image.shape[2]}x{image.shape[1]}; resize them to one size first"
                )
            images[index] = image
            grey &= is_grey
        return len(chunk), grey

    all_grey = True
    with (
        Progress(f"decoding {spec} {half}", len(files), "images") as progress,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for count, grey in pool.map(fill, range(0, len(files), CHUNK)):
            all_grey &= grey
            progress.advance(count)
    return np.ascontiguousarray(images[:, :1]) if all_grey else images


def _read(path: Path, spec: str) -> tuple[np.ndarray, bool]:
    """One image as uint8 [3, H, W], and whether its file is grey."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut every level above 255 off
                raise DataError(f"{spec}: {path} has more than 8 bits per channel; convert it first")
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1), image.mode in ("1", "L")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{spec}: {path} cannot be decoded: {error}") from None
