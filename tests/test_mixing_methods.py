"""The methods: what each one draws, against its definition, its distribution and torchvision."""

from collections import Counter
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustmix.errors import SpecError
from robustmix.mixing import METHODS, Mix, apply, plan, soft_labels
from robustmix.rng import Stream, generator
from robustmix.spec import names
from robustmix.spec.recipe import PAIRING, STITCHING, Recipe

CLASSES = 4
SHAPE = (1, 4, 4)
PAIRS = sorted(PAIRING)
STITCHES = sorted(STITCHING)


def recipe(method: str, **given: Any) -> Recipe:
    return Recipe.model_validate({"method": method, **given}).resolved(None)


def draw(
    of: Recipe,
    size: int = 8,
    *counters: int,
    shape: tuple[int, ...] = SHAPE,
    labels: Tensor | None = None,
    **given: Any,
) -> Mix | None:
    labels = torch.arange(size) % CLASSES if labels is None else labels
    return plan(of, labels, shape, generator(0, Stream.MIX, *counters), given.pop("epoch", 5), classes=CLASSES, **given)


def drawn(of: Recipe, *sizes: int, **given: Any) -> Mix:
    mix = draw(of, *sizes, **given)
    assert mix is not None
    return mix


def own_share(mix: Mix, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """The share of the example in each pixel of its mixed image: [B, H, W]."""
    size = len(mix.partner)
    apart = replace(mix, partner=torch.arange(size) + size)
    return apply(apart, torch.cat([torch.ones(size, *shape), torch.zeros(size, *shape)]))[:, 0]


def test_every_method_can_be_drawn() -> None:
    assert tuple(METHODS) == names.METHODS
    assert draw(recipe("erm")) is None
    for method in set(names.METHODS) - {"erm"}:
        mix = drawn(recipe(method, **({"rate": 1} if method == "patchshuffle" else {})))
        assert mix.partner.dtype == torch.int64
        assert mix.lam_x.shape == mix.lam_y.shape == mix.partner.shape == (8,)
        assert mix.lam_x.dtype == mix.lam_y.dtype == torch.float32
        for lam in (mix.lam_x, mix.lam_y):
            assert (lam.min() >= 0) & (lam.max() <= 1)


@pytest.mark.parametrize("method", sorted(set(names.METHODS) - {"erm"}))
def test_a_plan_is_a_function_of_seed_epoch_and_step(method: str) -> None:
    def numbers(*place: int) -> list[Any]:
        of = recipe(method, **({"rate": 0.9} if "rate" in recipe(method).model_dump(exclude_none=True) else {}))
        rng = generator(place[0], Stream.MIX, *place[1:])
        mix = plan(of, torch.arange(30) % CLASSES, SHAPE, rng, 5, classes=CLASSES)
        assert mix is not None
        tensors = (mix.partner, mix.lam_x, mix.boxes, mix.labels, mix.pixels)
        return [tensor.tolist() for tensor in tensors if tensor is not None]

    assert numbers(1, 2, 3) == numbers(1, 2, 3)
    for place in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)):
        assert numbers(*place) != numbers(1, 2, 3)


# ---- partners --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*PAIRS, "samplepairing"])
def test_partners_are_a_permutation_that_differs_from_step_to_step(method: str) -> None:
    partners = [drawn(recipe(method), 50, 0, step).partner for step in range(20)]
    for partner in partners:
        assert torch.equal(partner.sort().values, torch.arange(50))
    assert len({tuple(partner.tolist()) for partner in partners}) == 20


def test_every_example_is_as_likely_a_partner_as_any_other() -> None:
    counts = torch.zeros(5, 5)
    for step in range(2000):
        counts[torch.arange(5), drawn(recipe("mixup"), 5, step).partner] += 1
    # 2000 draws at 1/5 each: standard deviation 18
    assert (counts - 400).abs().max() < 5 * 18


@pytest.mark.parametrize("method", PAIRS)
def test_partners_of_the_same_class_are_a_permutation_of_it(method: str) -> None:
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 3, 2])
    for step in range(30):
        partner = drawn(recipe(method, same_class=True), 8, step, labels=labels).partner
        assert torch.equal(labels[partner], labels)
        assert torch.equal(partner.sort().values, torch.arange(8))
        assert int(partner[6]) == 6


def test_every_example_of_the_class_is_as_likely_a_partner() -> None:
    labels, members = torch.tensor([1, 0, 1, 1, 0]), [0, 2, 3]
    counts = torch.zeros(5, 5)
    for step in range(1800):
        counts[torch.arange(5), drawn(recipe("mixup", same_class=True), 5, step, labels=labels).partner] += 1
    assert (counts[members][:, members] - 600).abs().max() < 5 * 20
    assert (counts[[1, 4]][:, [1, 4]] - 900).abs().max() < 5 * 21


@pytest.mark.parametrize("method", PAIRS)
def test_nearest_neighbours_come_from_outside_with_equal_chance(method: str) -> None:
    of = recipe(method, nearest=3, **({"layers": "0"} if method == "manifold" else {}))
    neighbours = torch.arange(8)[:, None] * 10 + torch.arange(3)
    seen = torch.zeros(3)
    for step in range(200):
        mix = drawn(of, 8, step, neighbours=neighbours)
        assert torch.equal(mix.partner, torch.arange(8, 16))
        assert mix.outside is not None
        assert mix.outside.dtype == torch.int64
        assert torch.equal(mix.outside // 10, torch.arange(8))
        seen += torch.bincount(mix.outside % 10, minlength=3)
    # 1600 draws at 1/3: standard deviation 19
    assert (seen - 1600 / 3).abs().max() < 5 * 19


def test_nearest_without_neighbours_is_refused() -> None:
    with pytest.raises(SpecError, match="nearest = 5 needs the neighbours"):
        draw(recipe("mixup", nearest=5))


# ---- lambda ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["batch", "example"])
def test_mixup_draws_the_partners_first_and_then_lambda(per: str) -> None:
    rng = generator(0, Stream.MIX)
    partner, lam = rng.permutation(8), rng.beta(0.4, 0.4, 8 if per == "example" else 1)
    mix = drawn(recipe("mixup", alpha=0.4, lam_per=per))
    assert mix.partner.tolist() == partner.tolist()
    assert mix.lam_x.tolist() == np.broadcast_to(lam, 8).astype(np.float32).tolist()
    assert torch.equal(mix.lam_x, mix.lam_y)
    assert (mix.layer, mix.boxes, mix.outside, mix.labels, mix.pixels) == (0, None, None, None, None)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_lambda_per_example_is_beta_distributed(alpha: float) -> None:
    lam = drawn(recipe("mixup", alpha=alpha, lam_per="example"), 40_000).lam_x.double()
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(lam.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_lambda_per_batch_is_beta_distributed_over_the_steps() -> None:
    lam = torch.stack([drawn(recipe("mixup", alpha=8), 2, step).lam_x[0] for step in range(3000)]).double()
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(lam.var()) == pytest.approx(1 / (4 * 17), rel=0.1)


def test_lambda_may_be_uniform_or_fixed() -> None:
    lam = drawn(recipe("mixup", lam="uniform:0.4,0.7", lam_per="example"), 20_000).lam_x.double()
    assert float(lam.min()) == pytest.approx(0.4, abs=1e-3)
    assert float(lam.max()) == pytest.approx(0.7, abs=1e-3)
    assert float(lam.mean()) == pytest.approx(0.55, abs=0.003)
    assert float(lam.var()) == pytest.approx(0.09 / 12, rel=0.05)
    assert set(drawn(recipe("mixup", lam="0.3", lam_per="example")).lam_x.tolist()) == {float(np.float32(0.3))}


@pytest.mark.parametrize("method", ["mixup", "manifold"])
def test_one_lambda_per_batch_or_one_per_example(method: str) -> None:
    for lam in ("beta:1", "uniform:0,1"):
        assert len(drawn(recipe(method, lam=lam), 30).lam_x.unique()) == 1
        assert len(drawn(recipe(method, lam=lam, lam_per="example"), 30).lam_x.unique()) == 30


@pytest.mark.parametrize("per", ["batch", "example"])
def test_the_labels_may_have_an_independent_lambda(per: str) -> None:
    of = recipe("mixup", lam_per=per, lam_labels="uniform:0.5,1")
    pairs = []
    for step in range(500):
        mix = drawn(of, 4, step)
        alone = drawn(recipe("mixup", lam_per=per), 4, step)
        assert torch.equal(mix.lam_x, alone.lam_x)
        assert len(mix.lam_y.unique()) == (4 if per == "example" else 1)
        pairs.append(torch.stack([mix.lam_x[0], mix.lam_y[0]]))
    lam_x, lam_y = torch.stack(pairs).double().unbind(1)
    assert float(lam_y.min()) >= 0.5
    assert float(lam_y.mean()) == pytest.approx(0.75, abs=0.03)
    assert abs(float(torch.corrcoef(torch.stack([lam_x, lam_y]))[0, 1])) < 5 / 500**0.5


@pytest.mark.parametrize("method", PAIRS)
def test_inputs_or_labels_alone_can_be_mixed(method: str) -> None:
    labels = torch.arange(8) % CLASSES
    for step in range(20):
        both = drawn(recipe(method), 8, step)
        inputs, only_labels = (drawn(recipe(method, mix=mixed), 8, step) for mixed in ("inputs", "labels"))
        assert torch.equal(inputs.lam_y, torch.ones(8))
        assert torch.equal(soft_labels(inputs, labels, CLASSES), soft_labels(None, labels, CLASSES))
        assert torch.equal(own_share(inputs), own_share(both))
        assert torch.equal(only_labels.lam_y, both.lam_y)
        assert only_labels.boxes is None
        assert torch.equal(own_share(only_labels), torch.ones(8, 4, 4))
        for mix in (inputs, only_labels):
            assert torch.equal(mix.partner, both.partner)
            assert mix.layer == both.layer


# ---- spatial mixup ---------------------------------------------------------------------------------------

TOP, BOTTOM = [1.0] * 4, [0.0] * 4


def test_h_takes_the_top_and_v_the_left_of_the_example() -> None:
    # floor(0.6 * 4) = 2
    for method, by_hand in {"mixup-h": [TOP, TOP, BOTTOM, BOTTOM], "mixup-v": [[1.0, 1.0, 0.0, 0.0]] * 4}.items():
        mix = drawn(recipe(method, lam="0.6"))
        assert own_share(mix).tolist() == [by_hand] * 8
        assert mix.lam_y.tolist() == [float(np.float32(0.6))] * 8


def test_height_and_width_are_not_confused() -> None:
    shape = (1, 2, 5)
    assert own_share(drawn(recipe("mixup-h", lam="0.7"), shape=shape), shape)[0].tolist() == [[1.0] * 5, [0.0] * 5]
    assert own_share(drawn(recipe("mixup-v", lam="0.7"), shape=shape), shape)[0].tolist() == [[1, 1, 1, 0, 0]] * 2


@pytest.mark.parametrize("size", [8, 9])
def test_hv_and_hc_treat_the_second_half_of_the_batch_differently(size: int) -> None:
    horizontal, vertical = [TOP, BOTTOM, BOTTOM, BOTTOM], [[1.0, 0.0, 0.0, 0.0]] * 4
    convex = [[0.25] * 4] * 4
    for method, other in {"mixup-hv": vertical, "mixup-hc": convex}.items():
        mix = drawn(recipe(method, lam="0.25"), size)
        assert own_share(mix).tolist() == [horizontal] * 4 + [other] * (size - 4)
        assert mix.lam_y.tolist() == [0.25] * size


@pytest.mark.parametrize("method", STITCHES)
@pytest.mark.parametrize("lam", ["0", "1"])
def test_lambda_zero_and_one_are_the_partner_and_the_example(method: str, lam: str) -> None:
    mix = drawn(recipe(method, lam=lam))
    assert torch.equal(own_share(mix), torch.full((8, 4, 4), float(lam)))
    assert mix.lam_y.tolist() == [float(lam)] * 8


@pytest.mark.parametrize("method", STITCHES)
@pytest.mark.parametrize("per", ["batch", "example"])
def test_corrected_labels_have_the_share_of_the_pixels(method: str, per: str) -> None:
    shape = (1, 7, 5)
    for step in range(50):
        plain, corrected = (
            drawn(recipe(method, lam_per=per, correct_lam=correct), 8, step, shape=shape) for correct in (False, True)
        )
        assert torch.equal(own_share(plain, shape), own_share(corrected, shape))
        torch.testing.assert_close(corrected.lam_y, own_share(corrected, shape).mean(dim=(1, 2)))
        # floor: the label never has less of the example than the image, and misses less than a line of pixels
        assert (plain.lam_y >= corrected.lam_y - 1e-6).all()
        assert (plain.lam_y - corrected.lam_y < 1 / 5).all()


# ---- CutMix ----------------------------------------------------------------------------------------------


def cutmix_at(lam: float, row: int, column: int, shape: tuple[int, ...], **given: Any) -> Mix:
    """CutMix with partners and centre as given, the partner of each example being the one before it."""
    rng: Any = SimpleNamespace(
        permutation=lambda size: np.roll(np.arange(size), 1), integers=lambda sides, size: np.array([[row, column]])
    )
    mix = plan(recipe("cutmix", lam=str(lam), **given), torch.arange(4), shape, rng, 0, classes=CLASSES)
    assert mix is not None
    return mix


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 6), (2, 5, 12)])
def test_cutmix_is_that_of_torchvision(
    torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """Given the same lambda, centre and partners, images and labels agree."""
    from torchvision.transforms import v2

    theirs: Any = v2.CutMix(num_classes=CLASSES)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    for lam in np.linspace(0, 1, 9).tolist():
        for row in range(shape[1]):
            for column in range(0, shape[2], 2):
                centre = iter([torch.tensor([column]), torch.tensor([row])])
                theirs._dist = SimpleNamespace(sample=lambda size, lam=lam: torch.tensor([lam]))
                with monkeypatch.context() as patch:
                    patch.setattr(torch, "randint", lambda *_, centre=centre, **__: next(centre))
                    mixed, targets = theirs(x, torch.arange(4))
                mix = cutmix_at(lam, row, column, shape)
                assert torch.equal(apply(mix, x), mixed)
                torch.testing.assert_close(soft_labels(mix, torch.arange(4), CLASSES), targets)


def test_cutmix_by_hand() -> None:
    # A box of half the side, 2x2, in the middle; the same at the corner, of which a pixel remains.
    mix = cutmix_at(0.75, 2, 2, SHAPE)
    assert own_share(mix)[0].tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert mix.lam_y.tolist() == [0.75] * 4
    mix = cutmix_at(0.75, 0, 0, SHAPE)
    assert own_share(mix)[0].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert mix.lam_y.tolist() == [15 / 16] * 4
    assert cutmix_at(0.75, 0, 0, SHAPE, lam_labels="0.5").lam_y.tolist() == [0.5] * 4


@pytest.mark.parametrize("per", ["batch", "example"])
def test_cutmix_labels_have_the_share_of_the_pixels(per: str) -> None:
    shape = (1, 7, 5)
    for step in range(100):
        mix = drawn(recipe("cutmix", lam_per=per), 8, step, shape=shape)
        assert mix.boxes is not None
        assert len(mix.boxes.unique(dim=0)) == 1 or per == "example"
        torch.testing.assert_close(mix.lam_y, own_share(mix, shape).mean(dim=(1, 2)))


def test_centres_of_boxes_are_uniform_over_the_image() -> None:
    shape = (1, 3, 5)
    of = recipe("cutmix", lam="0.5", lam_per="example")
    counts = (1 - own_share(drawn(of, 15_000, shape=shape), shape)).sum(dim=0)
    # reach floor(0.35 * 3) = 1 row and floor(0.35 * 5) = 1 column: a pixel is covered by centres at it and at the next
    expected = torch.tensor([2.0, 2, 1])[:, None] * torch.tensor([2.0, 2, 2, 2, 1]) * 1000
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


# ---- hidden layers ---------------------------------------------------------------------------------------


def test_manifold_mixup_is_mixup_after_one_of_the_stages() -> None:
    layers = Counter()
    for step in range(600):
        mix, plain = drawn(recipe("manifold", layers="0,2,5"), 8, step), drawn(recipe("mixup"), 8, step)
        assert torch.equal(mix.partner, plain.partner)
        assert torch.equal(mix.lam_x, plain.lam_x)
        assert torch.equal(mix.lam_y, plain.lam_y)
        layers[mix.layer] += 1
    assert set(layers) == {0, 2, 5}
    assert all(abs(count - 200) < 5 * 12 for count in layers.values())
    assert {drawn(recipe("manifold", layers="3"), 8, step).layer for step in range(5)} == {3}


# ---- the others ------------------------------------------------------------------------------------------


def pairs_in(epochs: int) -> list[int]:
    of = recipe("samplepairing", epochs=epochs)
    return [epoch for epoch in range(epochs) if draw(of, epoch=epoch) is not None]


def test_samplepairing_averages_two_images_and_keeps_the_first_label() -> None:
    labels = torch.arange(8) % CLASSES
    mix = drawn(recipe("samplepairing"))
    assert torch.equal(own_share(mix), torch.full((8, 4, 4), 0.5))
    assert torch.equal(soft_labels(mix, labels, CLASSES), soft_labels(None, labels, CLASSES))


def test_samplepairing_is_on_for_eight_epochs_and_off_for_two() -> None:
    assert pairs_in(20) == [*range(2, 10), *range(12, 16)]
    # The paper's CIFAR schedule: without it 100 epochs at the start and 200 at the end of 1,000
    assert pairs_in(1000) == [epoch for epoch in range(100, 800) if epoch % 10 < 8]
    assert pairs_in(3) == [0, 1, 2]


def test_disturbed_labels_are_drawn_from_all_classes() -> None:
    labels = torch.full((40_000,), 1)
    mix = drawn(recipe("disturblabel", rate=0.4), labels=labels)
    assert mix.labels is not None
    shares = torch.bincount(mix.labels, minlength=CLASSES) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.7, 0.1, 0.1]), rtol=0, atol=0.01)
    x = torch.rand(8, *SHAPE)
    small = drawn(recipe("disturblabel", rate=1.0))
    assert torch.equal(apply(small, x), x)
    assert small.labels is not None
    targets = soft_labels(small, torch.zeros(8, dtype=torch.int64), CLASSES)
    assert torch.equal(targets.argmax(dim=1), small.labels)


def test_patches_are_shuffled_within_themselves() -> None:
    shape = (1, 5, 7)
    image = torch.arange(35).view(5, 7)
    mix = drawn(recipe("patchshuffle", rate=1), shape=shape)
    shuffled = apply(mix, image.float().expand(8, 2, 5, 7)).long()
    assert torch.equal(shuffled[:, 0], shuffled[:, 1])
    assert torch.equal(shuffled[:, :, 4], image[4].expand(8, 2, 7))
    assert torch.equal(shuffled[..., 6], image[:, 6].expand(8, 2, 5))
    for row in (0, 2):
        for column in (0, 2, 4):
            patch = image[row : row + 2, column : column + 2].flatten()
            found = shuffled[:, 0, row : row + 2, column : column + 2].flatten(1)
            assert torch.equal(found.sort(dim=1).values, patch.expand(8, 4))
            assert len(found.unique(dim=0)) > 1


def test_every_order_of_a_patch_is_equally_likely_and_patches_are_independent() -> None:
    mix = drawn(recipe("patchshuffle", rate=1), 24_000, shape=(1, 2, 4))
    assert mix.pixels is not None
    left = Counter(map(tuple, mix.pixels[:, [0, 1, 4, 5]].tolist()))
    assert len(left) == 24
    assert all(abs(count - 1000) < 5 * 32 for count in left.values())
    same = (mix.pixels[:, [0, 1, 4, 5]] + 2 == mix.pixels[:, [2, 3, 6, 7]]).all(dim=1)
    assert int(same.sum()) == pytest.approx(1000, abs=5 * 32)


def test_a_share_of_the_images_has_shuffled_patches() -> None:
    mix = drawn(recipe("patchshuffle", rate=0.25), 4000, shape=(1, 8, 8))
    assert mix.pixels is not None
    touched = (mix.pixels != torch.arange(64)).any(dim=1)
    assert int(touched.sum()) == pytest.approx(1000, abs=5 * 28)
    assert draw(recipe("patchshuffle", rate=1e-9)) is None
