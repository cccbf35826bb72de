"""How long our training steps take beside a loop as mixup-cifar10 has it, and beside the limit.

That loop: PIL transforms of every image in a DataLoader, eager float32, the loss read after each step. The limit is
forward, backward and step on prepared batches, at the same precision and layout. All train the same network on
the same images in one run; only ratios mean anything. `scripts/bench` prints them.
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import robustmix
from robustmix import Recipe
from robustmix.device import autocast
from robustmix.models import ModelSpec, build
from robustmix.spec.names import Precision
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

# Speed is measured here, not behaviour: the compiler's own warnings are nobody's business.
pytestmark = pytest.mark.filterwarnings("default")

WIDTHS: Final = {"narrow": 16, "full": 64}
STEPS: Final = {"narrow": 8, "full": 3}
BATCH: Final = 128
TURNS: Final = 3
CPU: Final = torch.device("cpu")


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits at the size of CIFAR's images."""
    data = robustmix.load_data("digits")
    arrays = {}
    for half, split in (("train", data.train.in_memory()), ("test", data.test.in_memory().first(64))):
        images = split.images.repeat(1, 3, 1, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
        arrays |= {f"x_{half}": images.permute(0, 2, 3, 1).numpy(), f"y_{half}": split.labels.numpy()}
    path = tmp_path_factory.mktemp("data") / "digits32.npz"
    np.savez(path, **arrays)
    return path


def network(size: str) -> nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec(name="preact_resnet18", width=WIDTHS[size], classes=tuple("0123456789"), shape=(3, 32, 32))
    return build(spec, torch.full((3,), 0.5), torch.full((3,), 0.25)).train()


def ours(size: str, npz: Path, folder: Path, precision: Precision, *, compiled: bool = False) -> float:
    """Seconds of the second epoch: a run's first steps are slower, in every loop."""
    recipe = Recipe(
        data=f"npz:{npz}", method="mixup", model="preact_resnet18", width=WIDTHS[size], augment="crop-flip",
        batch_size=BATCH, limit=BATCH * STEPS[size], epochs=2, schedule="constant", precision=precision,
    )  # fmt: skip
    run = robustmix.train(recipe, name="ours", workspace=folder, compiled=compiled, overwrite=True)
    return float(read_run(Workspace(folder), run.name).history["seconds"].iloc[-1])


def limit(size: str, npz: Path, precision: Precision) -> float:
    model = network(size).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    x, y = prepared(npz)
    targets = F.one_hot(y, 10).float()
    for _ in range(2):
        started = perf_counter()
        for _ in range(STEPS[size]):
            with autocast(CPU, precision):
                logits = model(x)
            F.cross_entropy(logits.float(), targets).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seconds = perf_counter() - started
    return seconds


def prepared(npz: Path) -> tuple[Tensor, Tensor]:
    train = robustmix.load_data(f"npz:{npz}").train
    x, y = next(iter(train.batches([torch.arange(BATCH)], CPU)))
    return x.contiguous(memory_format=torch.channels_last), y


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images one by one through PIL, as torchvision's CIFAR10 gives them."""

    def __init__(self, npz: Path, count: int, transform: Callable[[Image.Image], Tensor]) -> None:
        with np.load(npz) as file:
            self.images, self.labels = file["x_train"][:count], file["y_train"][:count]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def usual(size: str, npz: Path, torchvision: ModuleType) -> float:
    """The usual script: transforms, loader and loop in the form that most repositories of 2018 share."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )
    pictures = Pictures(npz, BATCH * STEPS[size], transform)
    loader = torch.utils.data.DataLoader(pictures, batch_size=BATCH, shuffle=True, num_workers=0)
    model = network(size).network  # its normalisation is a transform here
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    rng = np.random.default_rng(0)
    for _ in range(2):
        started = perf_counter()
        total = 0.0
        for x, y in loader:
            lam, partner = float(rng.beta(1, 1)), torch.randperm(len(y))
            logits = model(lam * x + (1 - lam) * x[partner])
            loss = lam * F.cross_entropy(logits, y) + (1 - lam) * F.cross_entropy(logits, y[partner])
            total += loss.item()
            optimiser.zero_grad(set_to_none=False)
            loss.backward()
            optimiser.step()
        seconds = perf_counter() - started
    return seconds


PARTS: Final = ("limit", "ours", "usual loop", "limit, bf16", "ours, bf16", "ours, compiled")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustmix.progress.quiet", True)


# All parts take turns, so that a machine that slows down for a while slows down all of them.
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("size", WIDTHS)
def test_training(
    benchmark: Any, size: str, turn: int, part: str, npz: Path, tmp_path: Path, torchvision: ModuleType
) -> None:
    who, _, mode = part.partition(", ")
    precision: Precision = "bf16" if mode == "bf16" else "32"
    seconds = {
        "ours": lambda: ours(size, npz, tmp_path, precision, compiled=mode == "compiled"),
        "limit": lambda: limit(size, npz, precision),
        "usual loop": lambda: usual(size, npz, torchvision),
    }
    found = benchmark.pedantic(seconds[who], rounds=1, iterations=1)
    benchmark.extra_info.update(
        job="training by mixup", size=size, part=part, images=BATCH * STEPS[size], threads=torch.get_num_threads()
    )
    benchmark.extra_info["seconds"] = found  # of the steps alone
