"""Our own attacks: the properties of `attack_checks`, and the form of what is returned."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import pytest
import torch
from attack_checks import (
    CHECKS,
    EPS,
    EVERY,
    ULP,
    Attack,
    convnet,
    counted,
    courses_of,
    crafted,
    digits,
    linear,
    middle,
    swept,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Reusing
from torch import nn

from robustmix import AttackSpec, attacks
from robustmix.attacks import Victim, gradient
from robustmix.spec.attack import Course
from robustmix.spec.names import AttackName, Norm

# The module: the package gives its name to the function.
engine = import_module("robustmix.attacks.sweep")


@pytest.mark.parametrize("name", CHECKS)
def test_property_of_the_attacks(name: str) -> None:
    CHECKS[name]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [0.25, 0.5, 1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 128, 255])
def test_one_step_is_clamp_of_x_plus_eps_sign_at_every_grey_level(budget: float, dtype: torch.dtype) -> None:
    x, eps = torch.arange(256).to(dtype) / 255, budget / 255
    for direction in (-1.0, 0.0, 1.0):
        sign = torch.full_like(x, direction)
        assert torch.equal(gradient.step(x, x, sign, eps, eps, "linf"), (x + eps * sign).clamp(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    eps=st.floats(0, 1, width=32),
    steps=st.integers(1, 4),
    stretch=st.floats(1, 3),
    pixels=st.lists(st.floats(0, 1, width=32), min_size=16, max_size=16),
)
def test_budget_and_range_hold_for_any_input(eps: float, steps: int, stretch: float, pixels: list[float]) -> None:
    model, y = linear(3, torch.float32), torch.tensor([1])
    x = torch.tensor(pixels).view(1, 1, 4, 4)
    x_adv = attacks.ifgsm(model, x, y, eps, steps, min(1.0, max(eps / steps, eps / steps * stretch)))
    assert (x_adv - x).abs().max() <= eps + ULP
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@cache
def _small_network() -> nn.Sequential:
    draws = torch.Generator().manual_seed(11)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 3)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return model


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["fgsm", "ifgsm", "mifgsm"]),
    norm=st.sampled_from(["linf", "l2"]),
    step=st.sampled_from([1 / 255, 4 / 255, 0.05, 1e-4]),
    multiples=st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from([0.0, 1e-8, -1e-8, 1e-7, -1e-7, 1e-6, -1e-6, 0.3, 0.5])),
        min_size=1,
        max_size=6,
    ),
    fixed=st.booleans(),
)
def test_any_budgets_in_any_order_get_what_each_gets_alone(
    name: str, norm: Norm, step: float, multiples: list[tuple[int, float]], fixed: bool
) -> None:
    """Multiples of the step, and budgets a little off them, where it is decided how long gradients are shared."""
    model, y = _small_network(), torch.tensor([0, 1, 2, 0])
    x = torch.cat([middle(2, torch.float32), digits()[0][:2, :, 2:6, 2:6].float()])
    budgets = [abs(step * (times + part)) for times, part in multiples]
    options = {"steps": 7, "step_size": step if fixed else None, "norm": norm}
    with counted(model) as (passes, _):
        together = list(attacks.sweep(name, model, x, y, budgets, **options))
    assert [eps for eps, _ in together] == budgets
    with counted(model) as (alone_passes, _):
        for eps, x_adv in together:
            assert torch.equal(x_adv, swept(name, **options)(model, x, y, eps))
    distinct = len(set(budgets))
    assert len(passes) <= distinct * len(alone_passes) // len(budgets) - (distinct - 1)


def test_zero_gradient_moves_nothing() -> None:
    model = linear(3)
    with torch.no_grad():
        model[1].weight[:, :8] = 0
    x = middle()
    moved = attacks.fgsm(model, x, torch.zeros(8, dtype=torch.int64), 0.1) != x
    assert not moved.flatten(1)[:, :8].any()
    assert moved.flatten(1)[:, 8:].all()


def test_each_budget_takes_its_own_steps_and_ends_where_they_end() -> None:
    """Kurakin's rule by hand: one step at 1/255, two at 2/255, five at 4/255, on inputs of every grey level."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2)).double().requires_grad_(False)
    model[1].weight.copy_(torch.stack([torch.zeros(256), torch.ones(256)]))
    x, y = torch.arange(256).double().view(1, 1, 16, 16) / 255, torch.tensor([0])
    courses = courses_of(AttackSpec(name="ifgsm", eps=[1, 2, 4], step="kurakin"))
    assert [course.steps for course in courses] == [1, 2, 5]
    for levels, x_adv in zip((1, 2, 4), crafted("ifgsm", Victim(model, y, "ce"), x, courses, "linf"), strict=True):
        expected = (torch.arange(256) + levels).clamp(max=255).view_as(x)
        torch.testing.assert_close(x_adv * 255, expected.double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", EVERY.values(), ids=EVERY)
def test_budget_zero_returns_a_copy_of_the_inputs(attack: Attack) -> None:
    model, (x, y) = convnet(), digits()
    x_adv = attack(model, x, y, 0.0)
    assert torch.equal(x_adv, x)
    assert x_adv.data_ptr() != x.data_ptr()


def test_default_is_ten_steps_of_a_tenth() -> None:
    model, (x, y) = convnet(), digits()
    default = attacks.ifgsm(model, x, y, EPS)
    assert torch.equal(default, attacks.ifgsm(model, x, y, EPS, steps=10, step_size=EPS / 10))
    assert not torch.equal(default, attacks.ifgsm(model, x, y, EPS, steps=9))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_default_of_pgd_is_ten_steps_of_a_quarter_and_of_momentum_all(norm: Norm) -> None:
    model, (x, y) = convnet(), digits()
    default = attacks.pgd(model, x, y, EPS, norm=norm)
    assert torch.equal(default, attacks.pgd(model, x, y, EPS, 10, 2.5 * EPS / 10, norm=norm, restarts=1, seed=0))
    assert not torch.equal(default, attacks.pgd(model, x, y, EPS, 10, EPS / 10, norm=norm))
    default = attacks.mifgsm(model, x, y, EPS, norm=norm)
    assert torch.equal(default, attacks.mifgsm(model, x, y, EPS, 10, EPS / 10, norm=norm, decay=1))


@pytest.mark.parametrize("name", ["bim", "BIM", "i-fgsm", "I-FGSM", "ifgsm"])
def test_other_names_of_ifgsm(name: str) -> None:
    model, (x, y) = convnet(), digits()
    ((_, x_adv),) = attacks.sweep(name, model, x, y, [EPS], steps=3)
    assert torch.equal(x_adv, attacks.ifgsm(model, x, y, EPS, steps=3))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("attack", EVERY.values(), ids=EVERY)
def test_works_where_the_caller_has_switched_gradients_off(
    attack: Attack, context: Callable[[], torch.no_grad | torch.inference_mode]
) -> None:
    model, (x, y) = convnet(), digits()
    expected = attack(model, x, y, EPS)
    with context():
        assert torch.equal(attack(model, x, y, EPS), expected)
        assert torch.equal(attack(model, x.clone(), y.clone(), EPS), expected)


def test_momentum_stays_finite() -> None:
    """However much it grows, over however many steps: a constant gradient is followed straight to the budget."""
    x, y = middle(dtype=torch.float32), torch.tensor([0, 1] * 4)
    for norm in ("linf", "l2"):
        along = attacks.fgsm(linear(2, torch.float32), x, y, 0.2, norm=norm)
        for decay in (1.0, 2.0):
            x_adv = attacks.mifgsm(linear(2, torch.float32), x, y, 0.2, 300, norm=norm, decay=decay)
            torch.testing.assert_close(x_adv, along, rtol=0, atol=1e-4)


def test_momentum_of_large_gradients() -> None:
    """Gradients are divided by their 1-norm where it is beyond float32 as well."""
    model, x = linear(2, torch.float32), middle(dtype=torch.float32)
    with torch.no_grad():
        model[1].bias.zero_()
        model[1].weight.copy_(torch.tensor([[0.0], [3e37]]).expand(2, 16))
    y = torch.tensor([0, 1] * 4)
    x_adv = attacks.mifgsm(model, x, y, 0.05, 4, loss="margin")
    up = torch.where(y == 0, 0.05, -0.05).view(-1, 1, 1, 1).expand_as(x)
    torch.testing.assert_close(x_adv - x, up, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm", "ifgsm", "mifgsm", "pgd"])
def test_networks_may_use_the_memory_of_their_results_again(name: str, norm: Norm) -> None:
    """As those do that run as CUDA graphs: outputs and gradients hold until the next pass."""
    model, (x, y) = convnet().float(), digits()
    reusing, x, eps = Reusing(model), x.float(), [0.02, 0.06, 0.1]
    for options in ({"restarts": 2},) if name == "pgd" else ({}, {"step_size": 0.03}):
        expected = attacks.sweep(name, model, x, y, eps, 4, norm=norm, **options)
        found = attacks.sweep(name, reusing, x, y, eps, 4, norm=norm, **options)
        assert all(torch.equal(one[1], other[1]) for one, other in zip(found, expected, strict=True))
    courses = [Course(one, 4, one / 4) for one in eps]
    victims = [Victim(one, y, "ce", stack=2) for one in (model, reusing)]
    results = []
    for victim in victims:
        results.append([])
        for _, x_adv in engine.craft(name, victim, x, courses, norm):
            with torch.no_grad():
                results[-1].append(victim.model(x_adv).clone())
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert torch.equal(victims[0].logits, victims[1].logits)


@pytest.mark.parametrize("name", engine.NATIVE)
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_labels_may_be_predicted_in_inference_mode(name: AttackName, inside: bool) -> None:
    model, x = linear(5), middle(40)
    courses = [Course(0.1, 2, 0.1)]
    expected = crafted(name, Victim(model, None, "ce"), x, courses, "linf")
    with torch.inference_mode():
        victim = Victim(model, None, "ce")
        found = crafted(name, victim, x.clone() if inside else x, courses, "linf")
    assert torch.equal(found[0], expected[0])
    victim.gradient(x)


@pytest.mark.parametrize("attack", EVERY.values(), ids=EVERY)
def test_batch_may_be_empty(attack: Attack) -> None:
    assert attack(linear(3), middle()[:0], torch.zeros(0, dtype=torch.int64), 0.1).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("attack", EVERY.values(), ids=EVERY)
def test_layout_in_memory_changes_nothing_but_rounding(attack: Attack) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double().requires_grad_(False)
    x, y = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3
    found = attack(model, x.contiguous(memory_format=torch.channels_last), y, 0.1)
    torch.testing.assert_close(found, attack(model, x, y, 0.1), rtol=0, atol=1e-12)


def test_shape_type_and_device_are_those_of_the_inputs() -> None:
    for dtype in (torch.float32, torch.float64):
        x_adv = attacks.fgsm(linear(3, dtype), middle(dtype=dtype), torch.zeros(8, dtype=torch.int64), 0.1)
        assert (x_adv.shape, x_adv.dtype) == ((8, 1, 4, 4), dtype)
