"""ERM and mixup: partners, lambdas, soft labels, and the loss that is linear in them."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustmix.mixing import METHODS, Mix, apply, mixed_correct, plan_mixup, soft_cross_entropy, soft_labels
from robustmix.rng import Stream, generator
from robustmix.spec.recipe import Recipe

LABELS = torch.tensor([0, 1, 2, 3, 1, 0, 2, 2])


def mixup(alpha: float = 1.0, per: str = "batch") -> Recipe:
    return Recipe.model_validate({"method": "mixup", "alpha": alpha, "lam_per": per})


def plan(recipe: Recipe, size: int = 8, *counters: int) -> Mix:
    return plan_mixup(torch.zeros(size, dtype=torch.int64), generator(0, Stream.MIX, *counters), recipe)


@pytest.mark.parametrize("per", ["batch", "example"])
def test_partners_are_a_permutation_that_differs_from_step_to_step(per: str) -> None:
    partners = [plan(mixup(per=per), 50, 0, step).partner for step in range(20)]
    for partner in partners:
        assert partner.dtype == torch.int64
        assert torch.equal(partner.sort().values, torch.arange(50))
    assert len({tuple(partner.tolist()) for partner in partners}) == 20


def test_every_example_is_as_likely_a_partner_as_any_other() -> None:
    counts = torch.zeros(5, 5)
    for step in range(2000):
        counts[torch.arange(5), plan(mixup(), 5, step).partner] += 1
    # 2000 draws at 1/5 each: standard deviation 18
    assert (counts - 400).abs().max() < 5 * 18


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_lambda_per_example_is_beta_distributed(alpha: float) -> None:
    lam = plan(mixup(alpha, "example"), 40_000).lam_x.double()
    assert (lam.min() >= 0) & (lam.max() <= 1)
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(lam.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("alpha", [0.2, 8.0])
def test_lambda_per_batch_is_beta_distributed_over_the_steps(alpha: float) -> None:
    lam = torch.stack([plan(mixup(alpha), 2, step).lam_x[0] for step in range(3000)]).double()
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(lam.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_one_lambda_per_batch_or_one_per_example() -> None:
    assert len(plan(mixup(per="batch"), 30).lam_x.unique()) == 1
    assert len(plan(mixup(per="example"), 30).lam_x.unique()) == 30


def test_inputs_and_labels_keep_the_same_share() -> None:
    for per in ("batch", "example"):
        mix = plan(mixup(per=per), 30)
        assert torch.equal(mix.lam_x, mix.lam_y)
        assert mix.lam_x.shape == (30,)
        assert mix.lam_x.dtype == torch.float32


def test_plan_is_a_function_of_seed_epoch_and_step() -> None:
    def drawn(*place: int) -> tuple[list[float], list[int]]:
        mix = plan_mixup(LABELS, generator(place[0], Stream.MIX, *place[1:]), mixup(per="example"))
        return mix.lam_x.tolist(), mix.partner.tolist()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    for place in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)):
        assert drawn(*place)[0] != drawn(1, 2, 3)[0]


def test_streams_share_no_numbers() -> None:
    drawn = [generator(1, stream, 0, 0).random() for stream in Stream]
    assert len(set(drawn)) == len(drawn)


# ---- inputs ----------------------------------------------------------------------------------------------


def slowly(mix: Mix, x: Tensor) -> Tensor:
    """mixup as its definition has it, one example at a time."""
    mixed = torch.empty_like(x)
    for index in range(len(x)):
        lam = float(mix.lam_x[index])
        mixed[index] = lam * x[index] + (1 - lam) * x[int(mix.partner[index])]
    return mixed


@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (8, 5), (8,)])
@pytest.mark.parametrize("per", ["batch", "example"])
def test_mixed_inputs_are_those_of_the_definition(shape: tuple[int, ...], per: str) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mix = plan(mixup(per=per), 8)
    assert not torch.equal(mix.partner, torch.arange(8))
    before = x.clone()
    torch.testing.assert_close(apply(mix, x), slowly(mix, x), rtol=0, atol=1e-15)
    assert torch.equal(x, before)
    assert apply(mix, x.float()).dtype == torch.float32


def test_lambda_one_keeps_the_example_and_lambda_zero_takes_the_partner() -> None:
    x, partner = torch.rand(3, 1, 2, 2), torch.tensor([1, 2, 0])
    lam = torch.tensor([1.0, 0.0, 1.0])
    mixed = apply(Mix(partner, lam, lam), x)
    assert torch.equal(mixed, x[[0, 2, 2]])


def test_erm_mixes_nothing() -> None:
    x = torch.rand(8, 3, 4, 4)
    mix = METHODS["erm"](LABELS, generator(0, Stream.MIX), Recipe())
    assert mix is None
    assert apply(mix, x) is x
    assert torch.equal(soft_labels(mix, LABELS, 4), F.one_hot(LABELS, 4).float())


def test_mixed_batch_agrees_with_torchvision(torchvision: ModuleType) -> None:
    """torchvision pairs each example with the one before it; given those partners, both mix alike."""
    from torchvision.transforms import v2

    theirs: Any = v2.MixUp(num_classes=4)
    theirs._dist = SimpleNamespace(sample=lambda shape: torch.tensor(0.3))
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mixed, targets = theirs(x, LABELS)
    mix = Mix(torch.arange(8).roll(1), torch.full((8,), 0.3), torch.full((8,), 0.3))
    torch.testing.assert_close(apply(mix, x), mixed)
    torch.testing.assert_close(soft_labels(mix, LABELS, 4), targets)


# ---- labels and loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["batch", "example"])
def test_soft_labels_hold_lambda_of_the_label_and_the_rest_of_the_partners(per: str) -> None:
    mix = plan(mixup(per=per), 8)
    targets = soft_labels(mix, LABELS, 5)
    assert targets.shape == (8, 5)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    for index in range(8):
        expected = np.zeros(5)
        expected[LABELS[index]] += float(mix.lam_y[index])
        expected[LABELS[mix.partner[index]]] += 1 - float(mix.lam_y[index])
        np.testing.assert_allclose(targets[index].numpy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("per", ["batch", "example"])
def test_soft_cross_entropy_is_the_lambda_weighted_sum_of_two(per: str) -> None:
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    mix = plan(mixup(per=per), 8)
    own = F.cross_entropy(logits, LABELS, reduction="none")
    partners = F.cross_entropy(logits, LABELS[mix.partner], reduction="none")
    lam = mix.lam_y.double()
    expected = (lam * own + (1 - lam) * partners).mean()
    loss = soft_cross_entropy(logits, soft_labels(mix, LABELS, 4))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_soft_cross_entropy_of_hard_labels_is_cross_entropy_and_has_its_gradient() -> None:
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = soft_cross_entropy(logits, F.one_hot(LABELS, 4).float()), F.cross_entropy(logits, LABELS)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses))


def test_training_accuracy_counts_the_label_share_of_the_predicted_class() -> None:
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    logits = torch.tensor([[0.0, 9.0, 1.0], [0.0, 9.0, 1.0], [0.0, 9.0, 1.0]])
    assert float(mixed_correct(logits, targets)) == pytest.approx(1.3)
