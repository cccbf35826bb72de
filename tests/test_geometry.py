"""Rounding to 8 bits within the budget; the other functions of `geometry` are proven by the attacks in test_attacks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustmix.attacks import geometry
from robustmix.attacks.geometry import lengths, round_within
from robustmix.spec.names import Norm

Rounding = Callable[[Tensor, Tensor, float | None, Norm], Tensor]


def pair(eps: float, norm: Norm) -> tuple[Tensor, Tensor]:
    """Images of whole grey levels, and neighbours anywhere within the budget and the range."""
    draws = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (40, 3, 6, 6), generator=draws).float() / 255
    shift = 2 * torch.rand(x.shape, generator=draws) - 1
    if norm == "l2":
        shift = shift / lengths(shift, "l2").view(-1, 1, 1, 1)
    return x, (x + eps * shift).clamp(0, 1)


def check_within(rounding: Rounding) -> None:
    for norm, budgets in {"linf": (0.5, 0.9995, 1, 3.7, 8), "l2": (20, 64.5)}.items():
        for eps in budgets:
            x, x_adv = pair(eps / 255, norm)  # type: ignore[arg-type]
            moved = rounding(x_adv, x, eps / 255, norm).float() / 255 - x  # type: ignore[arg-type]
            assert float(lengths(moved, norm).max()) <= eps / 255 + 1e-6, (norm, eps)  # type: ignore[arg-type]


def check_nearest(rounding: Rounding) -> None:
    """Where the nearest level lies within the budget, it is taken; below one grey level nothing is left."""
    x, x_adv = pair(8 / 255, "linf")
    assert torch.equal(rounding(x_adv, x, 8 / 255, "linf"), (x_adv * 255).round().to(torch.uint8))
    assert torch.equal(rounding(x_adv, x, None, "l2"), (x_adv * 255).round().to(torch.uint8))
    x, x_adv = pair(0.5 / 255, "linf")
    assert torch.equal(rounding(x_adv, x, 0.5 / 255, "linf"), (x * 255).round().to(torch.uint8))
    whole = (x + 4 / 255).clamp(0, 1)
    assert torch.equal(rounding(whole, x, 4 / 255, "linf"), (whole * 255).round().to(torch.uint8))


def truncating(x_adv: Tensor, x: Tensor, eps: float | None, norm: Norm) -> Tensor:
    return (x_adv * 255).to(torch.uint8)


def nearest_whatever_the_budget(x_adv: Tensor, x: Tensor, eps: float | None, norm: Norm) -> Tensor:
    return (x_adv * 255).round().to(torch.uint8)


def never_moved(x_adv: Tensor, x: Tensor, eps: float | None, norm: Norm) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def generous(x_adv: Tensor, x: Tensor, eps: float | None, norm: Norm) -> Tensor:
    return round_within(x_adv, x, None if eps is None else eps + 1e-3 / 255, norm)


CHECKS = (check_within, check_nearest)


@pytest.mark.parametrize("check", CHECKS)
def test_images_are_rounded_within_their_budget(check: Callable[[Rounding], None]) -> None:
    check(round_within)


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (truncating, check_within),
        (truncating, check_nearest),
        (nearest_whatever_the_budget, check_within),
        (never_moved, check_nearest),
        (generous, check_within),
    ],
)
def test_a_wrong_rounding_is_caught(wrong: Rounding, check: Callable[[Rounding], None]) -> None:
    with pytest.raises(AssertionError):
        check(wrong)


def test_directions_and_points_have_the_length_they_promise() -> None:
    x = torch.full((8, 3, 6, 6), 0.5)
    assert torch.equal(lengths(geometry.random_signs(x, "linf", (1,)), "linf"), torch.ones(8))
    torch.testing.assert_close(lengths(geometry.random_signs(x, "l2", (1,)), "l2"), torch.ones(8))
    for norm in ("linf", "l2"):
        assert float(lengths(geometry.random_point(x, norm, (1,)), norm).max()) <= 1 + 1e-6  # type: ignore[arg-type]
