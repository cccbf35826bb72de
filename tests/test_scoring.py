"""Errors and losses in eval mode, against what one counts by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustmix import scoring
from robustmix.data import TensorSplit
from robustmix.scoring import score, score_training
from robustmix.team import Team

ALONE = Team(torch.device("cpu"))
# Cross-entropy of the logits 1 and 0, where the first is right and where the second is.
RIGHT, WRONG = math.log(1 + math.exp(-1)), math.log(1 + math.e)


class FirstPixel(nn.Module):
    """Class 1 for a black first pixel, class 0 for a white one; remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.sizes.append(len(x))
        return torch.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], dim=1)


@pytest.fixture
def split() -> TensorSplit:
    """Of 1100 images, wrong are the 50 black ones of the first 100, and the 500 white ones of the rest."""
    images = torch.zeros(1100, 1, 8, 8, dtype=torch.uint8)
    images[::2, 0, 0, 0] = 255
    labels = torch.ones(1100, dtype=torch.int64)
    labels[:100] = 0
    return TensorSplit(images, labels)


@pytest.mark.parametrize("mode", [True, False])
def test_error_and_loss_are_means_in_eval_mode_and_the_mode_is_left(split: TensorSplit, mode: bool) -> None:
    model = FirstPixel().train(mode)
    found = score("val", model, split, ALONE)
    assert found == {"val_error": 0.5, "val_loss": pytest.approx((RIGHT + WRONG) / 2)}
    assert model.training is mode


def test_where_there_are_no_examples_all_is_nan() -> None:
    found = score("val", FirstPixel(), None, ALONE)
    assert set(found) == {"val_error", "val_loss"}
    assert all(map(math.isnan, found.values()))


def test_training_examples_count_by_whether_their_labels_are_corrupted(split: TensorSplit) -> None:
    corrupted = torch.arange(1100) < 100
    model = FirstPixel()
    assert score_training(model, split, None, ALONE, last=True) == {"train_error": 0.5}
    assert score_training(model, split, torch.arange(1100) < 101, ALONE, last=True) == {
        "train_error": 0.5,
        "train_error_real": pytest.approx(499 / 999),
        "train_error_corrupted": pytest.approx(51 / 101),
    }
    found = score_training(FirstPixel().train(), split, corrupted, ALONE, last=False)
    assert set(found) == {"train_error", "train_error_real", "train_error_corrupted"}
    assert all(map(math.isnan, found.values()))


def test_batches_of_large_images_are_smaller(split: TensorSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    for pixels, sizes in ((2**23, [512, 512, 76]), (64 * 400, [400, 400, 300]), (63, [1] * 1100)):
        monkeypatch.setattr(scoring, "EVALUATION_PIXELS", pixels)
        model = FirstPixel()
        assert score("test", model, split, ALONE)["test_error"] == 0.5
        assert model.sizes == sizes


def test_processes_share_the_batches(split: TensorSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[Tensor] = []

    def remember(self: Team, figures: Tensor) -> Tensor:
        parts.append(figures)
        return figures

    monkeypatch.setattr(Team, "sum", remember)
    sizes = []
    for team in (ALONE, Team(ALONE.device, 0, 2), Team(ALONE.device, 1, 2)):
        model = FirstPixel()
        score("test", model, split, team)
        sizes.append(model.sizes)
    assert sizes == [[512, 512, 76], [512, 76], [512]]
    whole, *halves = parts
    assert torch.equal(sum(halves, torch.zeros(2, 1100)), whole)
