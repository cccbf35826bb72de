"""A plan applied: mixed inputs and hidden states, soft labels, the loss that is linear in them, parts of a batch."""

from dataclasses import fields, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustmix.mixing import Mix, add_noise, apply, mixed_correct, plan, soft_cross_entropy, soft_labels
from robustmix.rng import Stream, generator
from robustmix.spec.names import METHODS
from robustmix.spec.recipe import PAIRING, Recipe

LABELS = torch.tensor([0, 1, 2, 3, 1, 0, 2, 2])


def recipe(method: str, **given: Any) -> Recipe:
    return Recipe.model_validate({"method": method, **given}).resolved(None)


def planned(of: Recipe, labels: Tensor = LABELS, shape: tuple[int, ...] = (3, 6, 5), **given: Any) -> Mix | None:
    return plan(of, labels, shape, generator(0, Stream.MIX), 5, classes=4, **given)


def mixed_by(lam: list[float], partner: list[int], **given: Any) -> Mix:
    return Mix(torch.tensor(partner), torch.tensor(lam), torch.tensor(lam), **given)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


# ---- inputs and hidden states ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (8, 5), (8,)])
def test_mixed_states_are_those_of_the_definition(shape: tuple[int, ...]) -> None:
    x = random(*shape, dtype=torch.float64)
    mix = mixed_by([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 0.3], [1, 2, 3, 4, 5, 6, 7, 0])
    expected = torch.stack([float(lam) * x[i] + (1 - float(lam)) * x[(i + 1) % 8] for i, lam in enumerate(mix.lam_x)])
    before = x.clone()
    torch.testing.assert_close(apply(mix, x), expected, rtol=0, atol=1e-15)
    assert torch.equal(x, before)
    assert apply(mix, x.bfloat16()).dtype == torch.bfloat16


def test_lambda_one_keeps_the_example_and_lambda_zero_takes_the_partner() -> None:
    x = random(3, 1, 2, 2)
    assert torch.equal(apply(mixed_by([1.0, 0.0, 1.0], [1, 2, 0]), x), x[[0, 2, 2]])


def test_partners_may_be_rows_behind_the_examples() -> None:
    x = torch.tensor([[0.0], [1.0], [8.0], [4.0]])
    assert apply(mixed_by([0.25, 0.5], [2, 3]), x).tolist() == [[6.0], [2.5]]


def test_erm_mixes_nothing() -> None:
    x = random(8, 3, 4, 4)
    assert apply(None, x) is x
    assert torch.equal(soft_labels(None, LABELS, 4), F.one_hot(LABELS, 4).float())


def test_a_box_is_the_partners_and_the_rest_is_mixed_by_lambda() -> None:
    own, partner = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    mix = mixed_by([0.75], [1], boxes=torch.tensor([[1, 3, 0, 2]]))
    by_hand = torch.tensor(
        [[0.25, 0.25, 0.25, 0.25], [1.0, 1.0, 0.25, 0.25], [1.0, 1.0, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]
    )
    mixed = apply(mix, torch.cat([own, partner]))
    assert torch.equal(mixed, by_hand.expand(1, 2, 4, 4))


def test_each_example_has_its_own_box_and_an_empty_one_covers_nothing() -> None:
    x = torch.stack([torch.full((1, 2, 3), float(value)) for value in range(3)])
    boxes = torch.tensor([[0, 2, 1, 3], [1, 1, 0, 3], [0, 1, 0, 3]])
    mixed = apply(mixed_by([1.0, 1.0, 1.0], [1, 2, 0], boxes=boxes), x)
    assert mixed[:, 0].tolist() == [
        [[0, 1, 1], [0, 1, 1]],
        [[1, 1, 1], [1, 1, 1]],
        [[0, 0, 0], [2, 2, 2]],
    ]


def test_pixels_are_put_in_the_given_order_in_all_channels_alike() -> None:
    x = torch.arange(2 * 2 * 4).view(2, 2, 2, 2).float()
    mix = mixed_by([1.0, 1.0], [0, 1], pixels=torch.tensor([[1, 0, 3, 2], [0, 1, 2, 3]]))
    assert apply(mix, x).tolist() == [[[[1, 0], [3, 2]], [[5, 4], [7, 6]]], x[1].tolist()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_memory_layout_stays(method: str, channels: int) -> None:
    mix = planned(recipe(method, **({"rate": 1} if method == "patchshuffle" else {})), shape=(channels, 6, 5))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = random(8, channels, 6, 5).contiguous(memory_format=layout)
        assert apply(mix, x).stride() == x.stride()


def test_gradients_reach_the_example_and_its_partner() -> None:
    hidden = random(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(apply(mixed_by([0.25, 1.0], [1, 1]), hidden).sum(), hidden)
    assert gradient.tolist() == [[0.25] * 3, [1.75] * 3]


def test_mixed_batch_agrees_with_torchvision(torchvision: ModuleType) -> None:
    """torchvision pairs each example with the one before it; given those partners, both mix alike."""
    from torchvision.transforms import v2

    theirs: Any = v2.MixUp(num_classes=4)
    theirs._dist = SimpleNamespace(sample=lambda shape: torch.tensor(0.3))
    x = random(8, 3, 4, 4)
    mixed, targets = theirs(x, LABELS)
    mix = mixed_by([0.3] * 8, torch.arange(8).roll(1).tolist())
    torch.testing.assert_close(apply(mix, x), mixed)
    torch.testing.assert_close(soft_labels(mix, LABELS, 4), targets)


# ---- labels and loss -------------------------------------------------------------------------------------


def test_soft_labels_of_four_examples_by_hand() -> None:
    mix = mixed_by([0.75, 1.0, 0.0, 0.25], [1, 2, 0, 3])
    assert soft_labels(mix, torch.tensor([0, 1, 2, 1]), 3).tolist() == [
        [0.75, 0.25, 0.0],
        [0.0, 1.0, 0.0],
        [1.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
    ]


def test_labels_follow_their_own_lambda_not_that_of_the_inputs() -> None:
    mix = Mix(torch.tensor([1, 0]), torch.tensor([0.9, 0.9]), torch.tensor([0.25, 0.5]))
    assert soft_labels(mix, torch.tensor([0, 1]), 2).tolist() == [[0.25, 0.75], [0.5, 0.5]]


def test_given_labels_replace_the_examples_own() -> None:
    mix = mixed_by([1.0, 1.0], [0, 1], labels=torch.tensor([2, 1]))
    assert soft_labels(mix, torch.tensor([0, 1]), 3).tolist() == [[0, 0, 1], [0, 1, 0]]


def test_smoothing_spreads_a_share_of_every_label_over_all_classes() -> None:
    smooth = soft_labels(None, torch.tensor([1, 0]), 4, 0.2)
    torch.testing.assert_close(smooth, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    mix = mixed_by([0.75, 0.5], [1, 0])
    mixed = soft_labels(mix, torch.tensor([1, 0]), 4, 0.2)
    torch.testing.assert_close(mixed, torch.tensor([[0.25, 0.65, 0.05, 0.05], [0.45, 0.45, 0.05, 0.05]]))
    torch.testing.assert_close(mixed, mix.lam_y[:, None] * smooth + (1 - mix.lam_y[:, None]) * smooth[[1, 0]])


def test_smoothed_cross_entropy_is_that_of_torch() -> None:
    logits = random(8, 4) * 5
    loss = soft_cross_entropy(logits, soft_labels(None, LABELS, 4, 0.1))
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS, label_smoothing=0.1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_soft_labels_sum_to_one(method: str, smoothing: float) -> None:
    targets = soft_labels(planned(recipe(method)), LABELS, 4, smoothing)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    assert float(targets.min()) >= smoothing / 4 - 1e-7


@pytest.mark.parametrize("per", ["batch", "example"])
def test_soft_cross_entropy_is_the_lambda_weighted_sum_of_two(per: str) -> None:
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    mix = planned(recipe("mixup", lam_per=per))
    assert mix is not None
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


# ---- parts of a batch ------------------------------------------------------------------------------------

SIZE = 11
OPTIONS: list[dict[str, Any]] = [
    *({"method": method} for method in METHODS if method not in ("erm", "patchshuffle")),
    *({"method": method, "lam_per": "example", "lam_labels": "uniform:0,1"} for method in sorted(PAIRING)),
    *({"method": method, "nearest": 3} for method in sorted(PAIRING - {"manifold"})),
    *({"method": method, "same_class": True} for method in ("mixup", "cutmix")),
    {"method": "manifold", "layers": "2,3"},
    {"method": "patchshuffle", "rate": 0.5},
    {"method": "disturblabel", "rate": 0.5},
    {"method": "mixup-hc", "correct_lam": True, "mix": "labels"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_parts_put_together_are_the_whole_bit_for_bit(options: dict[str, Any], processes: int) -> None:
    labels = torch.arange(SIZE) % 4
    neighbours = generator(0, Stream.ORDER).integers(100, size=(SIZE, 3))
    whole = planned(recipe(**options), labels, neighbours=torch.from_numpy(neighbours))
    assert whole is not None
    # Places SIZE and up are those of the partners from outside.
    x, y = random(2 * SIZE, 3, 6, 5), torch.cat([labels, labels.flip(0)])
    mixed, targets = [], []
    for process in range(processes):
        low, high = (SIZE * part // processes for part in (process, process + 1))
        positions, mix = whole.part(low, high)
        assert torch.equal(positions[: high - low], torch.arange(low, high))
        assert len(mix.partner) == high - low
        assert mix.layer == whole.layer
        if whole.outside is not None:
            assert mix.outside is not None
            assert torch.equal(mix.outside, whole.outside[low:high])
        mixed.append(apply(mix, x[positions]))
        targets.append(soft_labels(mix, y[positions], 4, 0.1))
    assert torch.equal(torch.cat(mixed), apply(whole, x))
    assert torch.equal(torch.cat(targets), soft_labels(whole, y, 4, 0.1))


def test_the_whole_batch_needs_itself_only_and_its_plan_unchanged() -> None:
    whole = planned(recipe("cutmix", lam_per="example"))
    assert whole is not None
    positions, mix = whole.part(0, 8)
    assert torch.equal(positions, torch.arange(8))
    assert_same(mix, whole)


def test_the_whole_batch_with_partners_from_outside_needs_their_rows_behind_it() -> None:
    whole = planned(recipe("mixup", nearest=1), neighbours=torch.arange(50, 58)[:, None])
    assert whole is not None
    positions, mix = whole.part(0, 8)
    assert torch.equal(positions, torch.arange(16))
    assert_same(mix, whole)
    assert whole.part(6, 8)[0].tolist() == [6, 7, 14, 15]


def test_a_part_lists_its_partners_behind_its_own_examples() -> None:
    mix = mixed_by([0.5] * 5, [4, 0, 3, 2, 1])
    positions, part = mix.part(0, 2)
    assert positions.tolist() == [0, 1, 4, 0]
    assert part.partner.tolist() == [2, 3]
    positions, part = mix.part(2, 4)
    assert positions.tolist() == [2, 3]
    assert part.partner.tolist() == [1, 0]


def test_to_moves_every_tensor_and_keeps_the_layer() -> None:
    filled = Mix(*(torch.arange(4) if field.name != "layer" else 3 for field in fields(Mix)))  # type: ignore[arg-type]
    moved = filled.to(torch.device("meta"))
    for field in fields(Mix):
        value = getattr(moved, field.name)
        assert value == 3 if field.name == "layer" else value.device.type == "meta"
    assert replace(filled, boxes=None).to(torch.device("meta")).boxes is None


def assert_same(one: Mix, other: Mix) -> None:
    for field in fields(Mix):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs, field.name


# ---- noise -----------------------------------------------------------------------------------------------


def noise(x: Tensor, positions: Tensor, size: int, std: float = 0.2, step: int = 0) -> Tensor:
    return add_noise(x, std, generator(0, Stream.MIX, step), positions, size)


def test_noise_has_the_mean_and_deviation_in_pixel_units_and_is_not_clipped() -> None:
    x = torch.full((20, 3, 32, 32), 0.5)
    noisy = noise(x, torch.arange(20), 20)
    assert float((noisy - x).mean()) == pytest.approx(0, abs=0.003)
    assert float((noisy - x).std()) == pytest.approx(0.2, rel=0.01)
    assert float(noisy.min()) < 0
    assert float(noisy.max()) > 1
    kurtosis = float((((noisy - x) / 0.2) ** 4).mean())
    assert kurtosis == pytest.approx(3, abs=0.1)


def test_noise_belongs_to_the_place_in_the_global_batch() -> None:
    x = random(7, 3, 4, 4)
    whole = noise(x, torch.arange(7), 7)
    for positions in (torch.tensor([3, 1]), torch.tensor([6, 0, 6])):
        assert torch.equal(noise(x[positions], positions, 7), whole[positions])
    assert not torch.equal(noise(x, torch.arange(7), 7, step=1), whole)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_noise_keeps_type_and_layout(layout: torch.memory_format) -> None:
    x = random(4, 3, 5, 6).contiguous(memory_format=layout)
    noisy = noise(x, torch.arange(4), 4)
    assert noisy.stride() == x.stride()
    assert noisy.dtype == torch.float32
    assert noise(random(4, 9), torch.arange(4), 4).shape == (4, 9)


def test_noise_is_that_of_the_generator() -> None:
    x = torch.zeros(3, 2)
    drawn = generator(0, Stream.MIX, 0).standard_normal((3, 2), dtype=np.float32)
    torch.testing.assert_close(noise(x, torch.arange(3), 3, std=0.5), torch.from_numpy(0.5 * drawn))
