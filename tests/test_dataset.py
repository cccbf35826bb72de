"""Fewer examples, other labels: balanced, counted, drawn from a generator of their own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustmix.data import Augmentation, Dataset, Share, TensorSplit, check_augment, load_data
from robustmix.data.dataset import balanced
from robustmix.errors import SpecError


def numbered(labels: list[int], classes: int = 3) -> Dataset:
    """Training examples that show their number in their first pixel."""
    count = len(labels)
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    train = TensorSplit(images, torch.tensor(labels))
    return Dataset("numbered", "numbered", train, train, tuple(str(label) for label in range(classes)))


def numbers(data: Dataset) -> list[int]:
    assert isinstance(data.train, TensorSplit)
    return data.train.images[:, 0, 0, 0].tolist()


# ---- limit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "count", "expected"),
    [
        ([5, 5, 5], 6, [2, 2, 2]),
        ([5, 5, 5], 7, [3, 2, 2]),
        ([5, 5, 5], 8, [3, 3, 2]),
        ([7, 6, 5], 10, [4, 3, 3]),
        ([5, 6, 7], 10, [4, 3, 3]),
        ([1, 5, 5], 7, [1, 3, 3]),
        ([1, 5, 5], 8, [1, 4, 3]),
        ([5, 1, 2], 6, [3, 1, 2]),
        ([0, 3], 2, [0, 2]),
        ([4, 4], 1, [1, 0]),
        ([2, 3], 5, [2, 3]),
    ],
)
def test_classes_share_the_limit_evenly_the_first_get_what_is_over(
    available: list[int], count: int, expected: list[int]
) -> None:
    assert balanced(available, count) == expected


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), st.data())
def test_quotas_are_possible_complete_and_as_even_as_they_can_be(available: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(available)))
    quotas = balanced(available, count)
    assert sum(quotas) == count
    assert all(0 <= quota <= own for quota, own in zip(quotas, available, strict=True))
    unfilled = [quota for quota, own in zip(quotas, available, strict=True) if quota < own]
    if unfilled:
        assert max(quotas) <= min(unfilled) + 1
        assert unfilled == sorted(unfilled, reverse=True) or max(quotas) == min(unfilled)


def test_limit_takes_the_first_of_each_class_in_the_order_of_the_examples() -> None:
    data = numbered([2, 0, 0, 1, 2, 0, 1, 2, 2, 0])
    limited = data.with_limit(7)
    assert numbers(limited) == [0, 1, 2, 3, 4, 5, 6]
    assert numbers(data.with_limit(4)) == [0, 1, 2, 3]
    assert numbers(data.with_limit(3)) == [0, 1, 3]
    assert numbers(data.with_limit(9)) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert limited.train.labels.tolist() == [2, 0, 0, 1, 2, 0, 1]
    assert limited.test is data.test


@pytest.mark.parametrize("count", [None, 10, 11, 10**9])
def test_limit_that_limits_nothing(count: int | None) -> None:
    data = numbered([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    assert data.with_limit(count) is data


def test_limited_digits_have_each_class_alike() -> None:
    counts = load_data("digits").with_limit(503).train.labels.bincount().tolist()
    assert counts == [51, 51, 51] + [50] * 7


# ---- label noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_label_noise_replaces_a_fixed_number_by_classes_drawn_from_all(share: float) -> None:
    clean = load_data("digits")
    noisy = clean.with_label_noise(share, 3)
    assert noisy.corrupted is not None
    assert noisy.corrupted.dtype == torch.bool
    assert int(noisy.corrupted.sum()) == round(share * 1437)
    same = noisy.train.labels == clean.train.labels
    assert same[~noisy.corrupted].all()
    # The true class is among those drawn: the published training errors on corrupted labels are near 90, not 100 %.
    count = int(noisy.corrupted.sum())
    assert abs(int(same[noisy.corrupted].sum()) - count / 10) < 5 * np.sqrt(count * 0.09)
    drawn = noisy.train.labels[noisy.corrupted].bincount(minlength=10)
    assert ((drawn - count / 10).abs() < 5 * np.sqrt(count * 0.09)).all()
    assert isinstance(clean.train, TensorSplit)
    assert isinstance(noisy.train, TensorSplit)
    assert torch.equal(noisy.train.images, clean.train.images)
    assert torch.equal(noisy.test.labels, clean.test.labels)
    assert clean.train.digest() != noisy.train.digest()


def test_label_noise_is_a_function_of_its_seed() -> None:
    data = load_data("digits")
    first, again, other = (data.with_label_noise(0.5, seed) for seed in (0, 0, 1))
    assert first.corrupted is not None
    assert again.corrupted is not None
    assert other.corrupted is not None
    assert torch.equal(first.train.labels, again.train.labels)
    assert torch.equal(first.corrupted, again.corrupted)
    assert not torch.equal(first.corrupted, other.corrupted)


def test_no_label_noise() -> None:
    data = load_data("digits")
    assert data.with_label_noise(0, 0) is data
    assert data.corrupted is None


def test_what_is_corrupted_follows_the_examples_that_are_kept() -> None:
    noisy = numbered([0, 1, 2] * 20).with_label_noise(0.5, 0)
    assert noisy.corrupted is not None
    for part in (noisy.with_validation(17), noisy.with_limit(20)):
        assert part.corrupted is not None
        assert torch.equal(part.corrupted, noisy.corrupted[numbers(part)])


def test_batches_have_the_noisy_labels() -> None:
    noisy = load_data("digits").with_label_noise(0.9, 0)
    share = Share(torch.arange(50), torch.arange(50), 50, 0)
    ((_, y),) = noisy.train.training_batches([share], torch.device("cpu"), Augmentation("none", 0, 0))
    assert torch.equal(y, noisy.train.labels[:50])


# ---- what fits -------------------------------------------------------------------------------------------


def test_augmentation_that_does_not_fit_is_refused_with_what_does() -> None:
    images = load_data("digits").train
    with pytest.raises(
        SpecError, match=r"--augment resized-crop-flip .* \[1, 8, 8\]: choose from none, crop, crop-flip"
    ):
        check_augment("resized-crop-flip", images)
    inputs = TensorSplit(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
    check_augment("none", inputs)
    with pytest.raises(SpecError, match=r"--augment crop does not apply .* \[5\]: choose from none \(") as caught:
        check_augment("crop", inputs)
    assert "\n" not in str(caught.value)
