"""Nearest neighbours against a brute-force search in whole numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from robustmix import progress
from robustmix.errors import SpecError
from robustmix.mixing import nearest_neighbours, neighbours

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "quiet", True)


def by_brute_force(images: Tensor, labels: Tensor, k: int, same_class: bool) -> list[list[int]]:
    flat = images.flatten(1).numpy().astype(np.int64)
    found = []
    for index, row in enumerate(flat):
        distances = ((flat - row) ** 2).sum(axis=1)
        distances[index] = np.iinfo(np.int64).max
        if same_class:
            distances[labels.numpy() != int(labels[index])] = np.iinfo(np.int64).max
        found.append(np.argsort(distances, kind="stable")[:k].tolist())
    return found


def images_of(levels: list[int], count: int, *shape: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.choice(np.array(levels, np.uint8), (count, *shape)))


@pytest.mark.parametrize("same_class", [False, True])
@pytest.mark.parametrize("block", [1, 200, 2**23])
@pytest.mark.parametrize(
    ("levels", "shape"),
    [
        (list(range(256)), (3, 5, 5)),
        ([0, 1], (1, 2, 2)),  # full of ties
        ([0, 1, 254, 255], (3, 32, 32)),  # sums that float32 would round
    ],
)
def test_neighbours_are_the_nearest_in_order(
    monkeypatch: pytest.MonkeyPatch, levels: list[int], shape: tuple[int, ...], block: int, same_class: bool
) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    images, labels = images_of(levels, 40, *shape), torch.arange(40) % 3
    found = nearest_neighbours(images, labels, 7, same_class, CPU)
    assert found.shape == (40, 7)
    assert found.dtype == torch.int64
    assert found.tolist() == by_brute_force(images, labels, 7, same_class)


def test_distances_that_differ_by_one_grey_level_are_told_apart() -> None:
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    images[1:] = 255
    images[2, 0, 0, 0] = 253
    images[3, 2, 63, 63] = 254
    assert nearest_neighbours(images, torch.zeros(4, dtype=torch.int64), 3, False, CPU).tolist() == [
        [2, 3, 1],
        [3, 2, 0],
        [1, 3, 0],
        [1, 2, 0],
    ]


def test_a_copy_is_a_neighbour_and_the_example_itself_is_none() -> None:
    images = images_of(list(range(256)), 6, 1, 4, 4)
    images[4] = images[1]
    found = nearest_neighbours(images, torch.zeros(6, dtype=torch.int64), 5, False, CPU)
    assert int(found[1, 0]) == 4
    assert int(found[4, 0]) == 1
    for index, row in enumerate(found.tolist()):
        assert sorted([index, *row]) == list(range(6))


def test_too_few_examples_are_refused_by_name() -> None:
    images, labels = images_of([0, 255], 9, 1, 2, 2), torch.tensor([0, 0, 0, 0, 0, 0, 7, 7, 7])
    assert nearest_neighbours(images, labels, 2, True, CPU).shape == (9, 2)
    with pytest.raises(SpecError, match=r"nearest = 3: class 7 has 3 examples; choose at most 2"):
        nearest_neighbours(images, labels, 3, True, CPU)
    with pytest.raises(SpecError, match=r"nearest = 9: the training set has 9 examples; choose at most 8"):
        nearest_neighbours(images, labels, 9, False, CPU)


def test_other_inputs_than_images_are_refused() -> None:
    with pytest.raises(SpecError, match=r"nearest = 2 compares uint8 images; these inputs are torch\.float32"):
        nearest_neighbours(torch.rand(5, 4), torch.zeros(5, dtype=torch.int64), 2, False, CPU)


def test_progress_counts_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(progress.Progress, "advance", lambda self, steps, note="": counted.append((self.total, steps)))
    monkeypatch.setattr(neighbours, "BLOCK", 50)
    nearest_neighbours(images_of([0, 9], 20, 1, 2, 2), torch.arange(20) % 2, 2, True, CPU)
    assert {total for total, _ in counted} == {20}
    assert sum(steps for _, steps in counted) == 20
    assert len(counted) > 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("same_class", [False, True])
def test_a_gpu_finds_the_same(same_class: bool) -> None:
    images, labels = images_of(list(range(0, 256, 5)), 3000, 3, 32, 32), torch.arange(3000) % 10
    gpu = torch.device("cuda")
    on_gpu = nearest_neighbours(images.to(gpu), labels.to(gpu), 20, same_class, gpu)
    assert torch.equal(on_gpu, nearest_neighbours(images, labels, 20, same_class, CPU))
