"""Crops and flips: windows of their own image, torchvision's as the oracle, the same at a place in whatever share."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from robustmix.data import Augmentation, Share, check_augment, load_data
from robustmix.data.augment import TRIES, augment, part_numbers, random_part
from robustmix.data.imagenet import ImageNetSplit
from robustmix.rng import Stream, generator
from robustmix.spec.names import Augment


def images(count: int, shape: tuple[int, int, int] = (3, 8, 8)) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def whole(count: int, step: int = 0) -> Share:
    return Share(torch.arange(count), torch.arange(count), count, step)


def windows(image: torch.Tensor, pad: int) -> dict[bytes, tuple[int, int]]:
    """Every crop of an image within its black border, found slowly."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * pad, width + 2 * pad)
    padded[:, pad : pad + height, pad : pad + width] = image
    return {
        padded[:, down : down + height, right : right + width].contiguous().numpy().tobytes(): (down, right)
        for down in range(2 * pad + 1)
        for right in range(2 * pad + 1)
    }


SHAPES = [((1, 8, 8), 1), ((3, 16, 20), 2), ((1, 28, 28), 3), ((3, 32, 32), 4)]


@pytest.mark.parametrize(("shape", "pad"), SHAPES)
def test_each_crop_is_a_window_of_its_own_image_and_all_shifts_are_drawn(shape: tuple[int, int, int], pad: int) -> None:
    x = images(60, shape)
    cropped = augment(x, Augmentation("crop", 0, 0), whole(60))
    assert cropped.shape == x.shape
    places = [
        windows(image, pad).get(crop.contiguous().numpy().tobytes()) for image, crop in zip(x, cropped, strict=True)
    ]
    assert None not in places
    found = {place for place in places if place}
    assert {down for down, _ in found} == {right for _, right in found} == set(range(2 * pad + 1))
    assert any(down != right for down, right in found)


@pytest.mark.parametrize("how", ["crop", "crop-flip"])
@pytest.mark.parametrize(("shape", "pad"), SHAPES)
def test_crops_and_flips_are_those_of_torchvision_at_the_drawn_places(
    how: Augment, shape: tuple[int, int, int], pad: int, torchvision: ModuleType
) -> None:
    from torchvision.transforms.v2 import functional as F

    x = (images(40, shape) * 255).to(torch.uint8)
    augmentation, share = Augmentation(how, 5, 2), Share(torch.arange(40), torch.arange(40).flip(0), 50, 7)
    rng = generator(5, Stream.AUGMENT, 2, 7)
    down, right = (rng.integers(0, 2 * pad + 1, 50) for _ in range(2))
    mirrored = (rng.random(50) < 0.5) & (how == "crop-flip")
    found = augment(x, augmentation, share)
    assert found.dtype == torch.uint8
    for image, ours, place in zip(x, found, share.positions.tolist(), strict=True):
        expected = F.crop(F.pad(image, [pad] * 4), int(down[place]), int(right[place]), *shape[1:])
        assert torch.equal(ours, F.horizontal_flip(expected) if mirrored[place] else expected)
    assert mirrored.any() == (how == "crop-flip")
    assert torch.equal(augment(x.float() / 255, augmentation, share), found.float() / 255)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_about_half_of_the_crops_are_mirrored_independently_of_the_shift() -> None:
    x = images(400)
    moved = augment(x, Augmentation("crop-flip", 0, 0), whole(400))
    mirrored = 0
    for image, crop in zip(x, moved, strict=True):
        known = windows(image, 1)
        as_is, flipped = (c.contiguous().numpy().tobytes() in known for c in (crop, crop.flip(2)))
        assert as_is != flipped
        mirrored += flipped
    assert 200 - 5 * 10 < mirrored < 200 + 5 * 10


@pytest.mark.parametrize("how", ["crop", "crop-flip"])
def test_a_place_in_the_batch_gets_the_same_in_whatever_share_it_stands(how: Augment) -> None:
    x, augmentation = images(40), Augmentation(how, 1, 3)
    together = augment(x, augmentation, whole(40, step=4))
    for positions in (torch.arange(20), torch.arange(20, 40), torch.tensor([39, 3, 17, 3])):
        part = augment(x[positions], augmentation, Share(torch.zeros(0), positions, 40, 4))
        assert torch.equal(part, together[positions])
    # The number of places, not of examples, decides what is drawn.
    fewer = augment(x[:20], augmentation, whole(20, step=4))
    assert not torch.equal(fewer, together[:20])


def test_augmentation_is_a_function_of_seed_epoch_and_step() -> None:
    x = images(40)
    for how in ("crop", "crop-flip"):
        made = [
            augment(x, Augmentation(how, seed, epoch), whole(40, step))  # type: ignore[arg-type]
            for seed, epoch, step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0))
        ]
        assert torch.equal(made[0], made[4])
        for one in range(4):
            assert not any(torch.equal(made[one], other) for other in made[one + 1 : 4])


def test_no_augmentation_changes_nothing_but_the_layout() -> None:
    x = images(4)
    found = augment(x, Augmentation("none", 0, 0), whole(4))
    assert torch.equal(found, x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    flat = x.flatten(1)
    assert augment(flat, Augmentation("none", 0, 0), whole(4)) is flat


# ---- random parts ----------------------------------------------------------------------------------------

SIZES = [(500, 375), (64, 64), (40, 300), (2, 1000), (1000, 3), (8, 6), (1, 1)]


def by_torchvision(width: int, height: int, numbers: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The box of RandomResizedCrop, fed with our numbers in the order in which it asks for its own."""
    from torchvision.transforms import transforms

    tries, (across, down) = iter(numbers[: 2 * TRIES]), numbers[2 * TRIES : 2 * TRIES + 2]
    places = iter((down, across))

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.tensor(float(low) + (float(high) - float(low)) * next(tries), dtype=torch.float64)

    fed = SimpleNamespace(
        log=torch.log,
        exp=torch.exp,
        tensor=lambda values: torch.tensor(values, dtype=torch.float64),
        empty=lambda _: SimpleNamespace(uniform_=uniform),
        randint=lambda low, high, size: torch.tensor(low + int(next(places) * (high - low))),
    )
    with monkeypatch.context() as patch:
        patch.setattr(transforms, "torch", fed)
        return transforms.RandomResizedCrop.get_params(torch.zeros(3, height, width), (0.08, 1), (3 / 4, 4 / 3))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_random_parts_are_those_of_torchvision_for_the_same_numbers(
    width: int, height: int, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = part_numbers(Augmentation("resized-crop-flip", 0, 0), whole(200))
    for row in numbers:
        part = random_part(width, height, row)
        expected = by_torchvision(width, height, row, monkeypatch)
        assert (part.top, part.left, part.height, part.width) == tuple(expected)
        assert part.mirrored == (row[-1] < 0.5)


def test_random_parts_reach_every_border_and_about_half_are_mirrored() -> None:
    numbers = part_numbers(Augmentation("resized-crop-flip", 0, 0), whole(2000))
    parts = [random_part(20, 15, row) for row in numbers]
    assert min(part.left for part in parts) == min(part.top for part in parts) == 0
    assert max(part.left + part.width for part in parts) == 20
    assert max(part.top + part.height for part in parts) == 15
    assert 1000 - 5 * 23 < sum(part.mirrored for part in parts) < 1000 + 5 * 23


def test_numbers_of_parts_belong_to_places_of_the_batch() -> None:
    augmentation = Augmentation("resized-crop-flip", 1, 2)
    together = part_numbers(augmentation, whole(12, step=3))
    positions = torch.tensor([11, 0, 5])
    np.testing.assert_array_equal(
        part_numbers(augmentation, Share(torch.tensor([1, 2, 3]), positions, 12, 3)), together[positions.numpy()]
    )
    others = [
        part_numbers(Augmentation("resized-crop-flip", seed, epoch), whole(12, step))
        for seed, epoch, step in ((0, 2, 3), (1, 0, 3), (1, 2, 0))
    ]
    assert all((other != together).all() for other in others)


# ---- what fits -------------------------------------------------------------------------------------------


def test_every_augmentation_is_for_some_examples() -> None:
    memory = load_data("digits").train
    none = torch.zeros(0, dtype=torch.int64)
    photos = ImageNetSplit(files=(), labels=none, shape=(3, 224, 224), spec="", cache=Path(), known_by_size=True)
    assert {*memory.augments, *photos.augments} == set(get_args(Augment))
    for split in (memory, photos):
        for how in split.augments:
            check_augment(how, split)
