"""How fast training images come from their files, beside torchvision's reference way to read them.

The reference is what the classification scripts of pytorch/vision do: an ImageFolder, transforms of PIL images, the
default collation. Both sides decode the same files in the same number of processes, cut and flip them by the same
rules, and hand over float32 batches in [0, 1]; the normalisation, which is part of our models, is left out on both.

Run by ``scripts/bench``, or ``ROBUSTMIX_DATA=... python -m pytest tests/benchmarks/test_streaming.py``.
"""

import gc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import conftest
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from robustmix.data import Augmentation, Share, Split, load_data
from robustmix.packages import import_beside_torch
from robustmix.spec.names import Augment

# torch advises against more workers than there are cores.
pytestmark = pytest.mark.filterwarnings("default")

FOLDER: Final = "tiny-imagenet-20"
BATCH: Final = 128
WORKERS: Final = 2
TURNS: Final = 5
CPU: Final = torch.device("cpu")
# How the training images are changed, how we name the data for that, and how many are read.
JOBS: Final[dict[Augment, tuple[str, int]]] = {
    "resized-crop-flip": (f"imagenet:{FOLDER}", 10 * BATCH),
    "crop-flip": (f"folder:{FOLDER}", 40 * BATCH),
}


@pytest.fixture
def root() -> Path:
    if not conftest.DATA_ROOT or not (Path(conftest.DATA_ROOT) / FOLDER).is_dir():
        pytest.skip(f"streaming is timed only where ROBUSTMIX_DATA names a folder that holds {FOLDER}/")
    return Path(conftest.DATA_ROOT)


@cache
def ours(root: Path, how: Augment) -> Split:
    return load_data(JOBS[how][0], root, stream=True, workers=WORKERS).train


@cache
def theirs(root: Path, how: Augment) -> Any:
    """The images and transforms of torchvision's reference scripts."""
    datasets = import_beside_torch("torchvision.datasets")
    from torchvision.transforms import v2

    cut = v2.RandomResizedCrop(224) if how == "resized-crop-flip" else v2.RandomCrop(64, padding=8)
    steps = [cut, v2.RandomHorizontalFlip(), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    return datasets.ImageFolder(str(root / FOLDER / "train"), v2.Compose([*steps, v2.ToPureTensor()]))


def rows_of(how: Augment) -> list[int]:
    """The same number of images in random order."""
    return [int(row) for row in np.random.default_rng(0).permutation(10_000)[: JOBS[how][1]]]


def by_us(root: Path, how: Augment) -> Iterator[tuple[Tensor, Tensor]]:
    batches = torch.tensor(rows_of(how)).split(BATCH)
    shares = (Share(rows, torch.arange(len(rows)), len(rows), step) for step, rows in enumerate(batches))
    return ours(root, how).training_batches(shares, CPU, Augmentation(how, 0, 0))


def by_torchvision(root: Path, how: Augment) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(DataLoader(Subset(theirs(root, how), rows_of(how)), batch_size=BATCH, num_workers=WORKERS))


PARTS: Final[dict[str, Callable[[Path, Augment], Iterator[tuple[Tensor, Tensor]]]]] = {
    "ours": by_us,
    "torchvision": by_torchvision,
}


# Both take turns, so that a machine that slows down for a while slows down both.
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("how", JOBS)
def test_streaming(benchmark: Any, root: Path, how: Augment, turn: int, part: str) -> None:
    images = JOBS[how][1]
    benchmark.group = f"streaming, {how}"
    benchmark.extra_info.update(
        job=f"streaming, {how}", size=f"{WORKERS} workers", part=part, images=images, threads=torch.get_num_threads()
    )
    ours(root, how), theirs(root, how)
    gc.collect()

    def read() -> int:
        seen = 0
        for x, y in PARTS[part](root, how):
            assert x.dtype == torch.float32
            assert len(x) == len(y) == BATCH
            seen += len(x)
        return seen

    assert benchmark.pedantic(read, rounds=1, iterations=1) == images
    benchmark.extra_info["images_per_second"] = images / benchmark.stats.stats.min
