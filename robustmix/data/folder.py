"""Image folders: ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/CLASS/*``), decoded once or streamed."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from robustmix.data.dataset import Dataset, Split
from robustmix.data.images import gib, read_image, read_shape, stamps
from robustmix.data.memory import TensorSplit
from robustmix.data.stream import StreamedSplit
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


def load_folder(
    spec: str, name_or_path: str, root: Path, cache: Path, *, stream: bool | None = None, workers: int = 0
) -> Dataset:
    """Load an image folder.

    Args:
        spec: what the user wrote, for messages.
        name_or_path: a folder under the root, else a path.
        root: the data root.
        cache: where decoded images and digests are kept.
        stream: leave the images in their files; None does so if they would fill more than half of the free memory.
        workers: processes that decode ahead when streaming.

    Raises:
        DataError: there is no such folder, its classes or image sizes do not fit, or an image cannot be decoded.
    """
    tree = find_images(spec, name_or_path, root)
    if stream is None:
        stream = _too_large(spec, [files for files, _ in tree.halves.values()])
    splits: dict[str, Split] = {}
    for half, (files, labels) in tree.halves.items():
        if stream:
            splits[half] = FolderSplit(
                files=tuple(files),
                labels=labels,
                shape=read_shape(files, spec),
                shaped_by=files[0],
                spec=spec,
                cache=cache,
                workers=workers,
            )
        else:
            splits[half] = TensorSplit(_decoded(files, cache, spec, half), labels)
    return Dataset(
        name=tree.facts.name or tree.folder.resolve().name,
        spec=spec,
        train=splits["train"],
        test=splits["test"],
        classes=tree.classes,
        like=tree.facts.like,
        note=tree.facts.note,
    )


@dataclass(frozen=True, kw_only=True)
class FolderSplit(StreamedSplit):
    """Images of one size, streamed.

    Attributes:
        shaped_by: the file that the shape was read from, for messages.
    """

    shaped_by: str

    def read(self, index: int) -> np.ndarray:
        """Decode one image into uint8 [H, W, C].

        Raises:
            DataError: the file cannot be decoded, or its image has another size.
        """
        return read_image(self.files[index], self.spec, self.shape, self.shaped_by)


@dataclass(frozen=True)
class Tree:
    """The files of an image folder.

    Attributes:
        folder: that they lie in.
        facts: beside them.
        classes: names, in alphabetical order.
        halves: the files of ``train`` and ``test`` and their labels int64 [N], in one fixed random order.
    """

    folder: Path
    facts: FolderFacts
    classes: tuple[str, ...]
    halves: dict[str, tuple[list[str], Tensor]]


def find_images(spec: str, name_or_path: str, root: Path, tests: Sequence[str] = ("test", "val")) -> Tree:
    """List an image folder; no image is opened.

    Args:
        spec: what the user wrote, for messages.
        name_or_path: a folder under the root, else a path.
        root: the data root.
        tests: names that the folder with the test examples may have, the first that exists counts.

    Raises:
        DataError: there is no such folder, or its classes do not fit.
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
        "test": next((folder / n for n in tests if (folder / n).is_dir()), None),
    }
    for half, path in halves.items():
        if path is None or not path.is_dir():
            names = tests if half == "test" else ("train",)
            raise DataError(f"{spec}: {folder} has no folder {' or '.join(f'{name}/' for name in names)}")
    listings = {half: _list_images(path, spec) for half, path in halves.items() if path}
    classes = tuple(listings["train"])
    if tuple(listings["test"]) != classes:
        odd = sorted(set(listings["test"]) ^ set(classes))
        raise DataError(f"{spec}: the class {odd[0]!r} is not in both {halves['train']} and {halves['test']}")
    ordered = {half: _in_order(listing) for half, listing in listings.items()}
    return Tree(folder, facts, classes, ordered)


def _list_images(folder: Path, spec: str) -> dict[str, list[str]]:
    """The image files of each class, both in alphabetical order."""
    listing = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            raise DataError(f"{spec}: {entry} lies beside the class folders; images belong into {folder}/CLASS/")
        listing[entry.name] = _image_files(entry.absolute())
        if not listing[entry.name]:
            raise DataError(f"{spec}: {entry} holds no image ({', '.join(sorted(EXTENSIONS))})")
    if len(listing) < 2:
        raise DataError(f"{spec}: {folder} has {len(listing)} class folders; at least two are needed")
    return listing


def _image_files(folder: Path) -> list[str]:
    """The image files in a folder and its subfolders; without a Path each, because there can be a million."""
    paths = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted((path for path in paths if os.path.splitext(path)[1].lower() in EXTENSIONS), key=_parts)


def _parts(path: str) -> list[str]:
    return path.split(os.sep)


def _in_order(listing: dict[str, list[str]]) -> tuple[list[str], Tensor]:
    """All files and their labels, int64 [N], in one fixed random order."""
    files = [path for paths in listing.values() for path in paths]
    labels = np.repeat(np.arange(len(listing)), [len(paths) for paths in listing.values()])
    order = generator(0, Stream.FOLDER).permutation(len(files))
    return [files[index] for index in order], torch.from_numpy(labels[order].astype(np.int64))


def _too_large(spec: str, halves: Sequence[Sequence[str]]) -> bool:
    """Whether the decoded images would fill more than half of the free memory; says so."""
    _, height, width = read_shape(halves[0][:1], spec)
    available = available_memory()
    size = sum(len(files) for files in halves) * height * width
    if 3 * size <= available / 2:
        return False
    # Only now, because telling that all files are grey takes a look at each.
    size = sum(len(files) * math.prod(read_shape(files, spec)) for files in halves)
    if size <= available / 2:
        return False
    say(
        f"{spec}: {gib(size)} decoded are more than half of the free memory ({gib(available)}): images are streamed "
        "from their files"
    )
    return True


def available_memory() -> float:
    """Bytes that can be used now without swapping; all memory where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _decoded(files: list[str], cache: Path, spec: str, half: str) -> Tensor:
    """All images as one array, from the cache if these very files were decoded before."""
    cached = cache / f"{stamps(files, spec)[:32]}.npy"
    images = _from_cache(cached)
    if images is None:
        images = _decode(files, spec, half)
        try:
            write_atomically(cached, lambda file: np.save(file, images, allow_pickle=False))
        except StoreError as error:
            say(f"warning: the decoded images cannot be kept for the next time: {error}")
    return torch.from_numpy(images)


def _from_cache(cached: Path) -> np.ndarray | None:
    if not cached.exists():
        return None
    try:
        images: np.ndarray = np.load(cached, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        say(f"warning: {cached} is damaged and is made anew: {error}")
        return None
    return images


def _decode(files: list[str], spec: str, half: str) -> np.ndarray:
    """Decode images into uint8 [N, C, H, W]."""
    shape = read_shape(files, spec)
    images = np.empty((len(files), *shape), dtype=np.uint8)

    def fill(start: int) -> int:
        chunk = files[start : start + CHUNK]
        for index, file in enumerate(chunk, start):
            images[index] = read_image(file, spec, shape, files[0]).transpose(2, 0, 1)
        return len(chunk)

    with (
        Progress(f"decoding {spec} {half}", len(files), "images") as progress,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for count in pool.map(fill, range(0, len(files), CHUNK)):
            progress.advance(count)
    return images
