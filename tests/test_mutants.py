"""Wrong attacks, most of them found in published code, each caught by a named check of `test_attacks`.

A test that a wrong attack passes proves nothing: an attack that is too weak reads as a robust model.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from test_attacks import CHECKS
from torch import Tensor, nn

from robustmix.attacks import gradient

Lengths = list[tuple[float, float]]
STEP, GRADIENT, FROZEN, SWEEP = gradient._step, gradient.loss_gradient, gradient.frozen, gradient._sweep

# ---- the step --------------------------------------------------------------------------------------------


def no_operation(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return x_adv.clone()


def four_for_four_255ths(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return STEP(x_adv, x, sign, eps * 255, length * 255)


def budget_in_normalised_units(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return STEP(x_adv, x, sign, eps * 0.25, length * 0.25)


def drifting_centre(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return STEP(x_adv, x_adv, sign, eps, length)


def no_projection(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return (x_adv + length * sign).clamp(0, 1)


def no_range(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return x + (x_adv + length * sign - x).clamp(-eps, eps)


def truncating(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return (STEP(x_adv, x, sign, eps, length) * 255).floor() / 255


def only_upwards(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return STEP(x_adv, x, sign.clamp(min=0), eps, length)


def in_place(x_adv: Tensor, x: Tensor, sign: Tensor, eps: float, length: float) -> Tensor:
    return x.copy_(STEP(x_adv, x, sign, eps, length))


# ---- the gradient ----------------------------------------------------------------------------------------


def wrong_sign(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return -GRADIENT(model, x, y)


def away_from_the_predicted_label(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return GRADIENT(model, x, model(x).argmax(dim=1))


def correct_examples_only(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    right = (model(x).argmax(dim=1) == y).view(-1, *[1] * (x.ndim - 1))
    return GRADIENT(model, x, y) * right


def nan_is_zero(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
    return slope.nan_to_num(0, 0, 0)


def backward_in_place_of_grad(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    model.requires_grad_()
    F.cross_entropy(model(at), y, reduction="sum").backward()
    assert at.grad is not None
    return at.grad


def of_the_whole_batch(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return GRADIENT(model, x, y).sum(dim=0, keepdim=True).expand_as(x).clone()


def averaged_over_the_batch(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return GRADIENT(model, x, y) / len(x)


def two_passes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model(x)
    return GRADIENT(model, x, y)


# ---- the model's state -----------------------------------------------------------------------------------


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    with FROZEN(model):
        model.train()
        yield


@contextmanager
def as_it_comes(model: nn.Module) -> Iterator[None]:
    yield


@contextmanager
def left_in_eval_mode(model: nn.Module) -> Iterator[None]:
    model.eval()
    yield


@contextmanager
def one_flag_for_all(model: nn.Module) -> Iterator[None]:
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


@contextmanager
def parameters_left_frozen(model: nn.Module) -> Iterator[None]:
    with FROZEN(model):
        yield
    model.requires_grad_(False)


@contextmanager
def restored_on_success_only(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    yield
    for module, mode in modes.items():
        module.training = mode


# ---- the sweep -------------------------------------------------------------------------------------------


def signs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with FROZEN(model):
        return GRADIENT(model, x, y).sign()


def last_iterate_never_returned(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    for eps, length in lengths:
        x_adv, before = x, x
        for _ in range(steps):
            before, x_adv = x_adv, STEP(x_adv, x, signs(model, x_adv, y), eps, length)
        yield eps, before.clone()


def first_gradient_throughout(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    first = signs(model, x, y)
    for eps, length in lengths:
        x_adv = x
        for _ in range(steps):
            x_adv = STEP(x_adv, x, first, eps, length)
        yield eps, x_adv


def each_budget_goes_on_from_the_last(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    x_adv = x
    for eps, length in lengths:
        for _ in range(steps):
            x_adv = STEP(x_adv, x, signs(model, x_adv, y), eps, length)
        yield eps, x_adv


def budgets_sorted(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    yield from SWEEP(model, x, y, sorted(lengths), steps)


def one_buffer(model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int) -> Iterator[tuple[float, Tensor]]:
    buffer = x.clone()
    for eps, x_adv in SWEEP(model, x, y, lengths, steps):
        yield eps, buffer.copy_(x_adv)


def nothing_shared(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    for one in lengths:
        yield from SWEEP(model, x, y, [one], steps)


def frozen_until_the_end(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    with FROZEN(model):
        yield from SWEEP(model, x, y, lengths, steps)


def random_start(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    for eps, length in lengths:
        x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(steps):
            x_adv = STEP(x_adv, x, signs(model, x_adv, y), eps, length)
        yield eps, x_adv


def one_step_short(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    yield from SWEEP(model, x, y, lengths, max(1, steps - 1))


def successes_only(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    for eps, x_adv in SWEEP(model, x, y, lengths, steps):
        with FROZEN(model), torch.no_grad():
            fooled = model(x_adv).argmax(dim=1) != y
        yield eps, torch.where(fooled.view(-1, *[1] * (x.ndim - 1)), x_adv, x)


def crash_counts_as_robust(
    model: nn.Module, x: Tensor, y: Tensor, lengths: Lengths, steps: int
) -> Iterator[tuple[float, Tensor]]:
    try:
        yield from SWEEP(model, x, y, lengths, steps)
    except Exception:
        for eps, _ in lengths:
            yield eps, x


# ---- which check catches which ---------------------------------------------------------------------------

Mutant = Callable[..., object]
CAUGHT: Final[dict[Mutant, tuple[str, ...]]] = {
    no_operation: ("linear_margin", "linear_sign_pattern", "budget", "loss_rises"),
    four_for_four_255ths: ("linear_margin", "budget"),
    budget_in_normalised_units: ("linear_margin", "budget"),
    drifting_centre: ("every_step_counts", "budget"),
    no_projection: ("budget",),
    no_range: ("range",),
    truncating: ("linear_margin", "linear_sign_pattern"),
    only_upwards: ("linear_margin", "linear_sign_pattern"),
    in_place: ("inputs_left_as_found",),
    wrong_sign: ("linear_margin", "linear_sign_pattern", "loss_rises"),
    away_from_the_predicted_label: ("linear_sign_pattern", "loss_rises"),
    correct_examples_only: ("linear_sign_pattern", "loss_rises"),
    nan_is_zero: ("gradient_not_finite",),
    backward_in_place_of_grad: ("model_left_as_found",),
    of_the_whole_batch: ("linear_margin", "batch_split"),
    averaged_over_the_batch: ("batch_split",),
    two_passes: ("passes",),
    training_mode: ("batch_split", "mode_does_not_matter", "model_left_as_found", "deterministic"),
    as_it_comes: ("mode_does_not_matter", "model_left_as_found"),
    left_in_eval_mode: ("model_left_as_found", "model_left_as_found_between_budgets"),
    one_flag_for_all: ("model_left_as_found", "exception_safety"),
    parameters_left_frozen: ("model_left_as_found",),
    restored_on_success_only: ("exception_safety",),
    last_iterate_never_returned: ("linear_margin", "steps_add_up", "budget"),
    first_gradient_throughout: ("every_step_counts", "more_steps_find_more", "passes"),
    each_budget_goes_on_from_the_last: ("sweep_is_the_attack_at_each_budget",),
    budgets_sorted: ("sweep_is_the_attack_at_each_budget",),
    one_buffer: ("sweep_is_the_attack_at_each_budget",),
    nothing_shared: ("passes",),
    frozen_until_the_end: ("model_left_as_found_between_budgets",),
    random_start: ("linear_margin", "deterministic"),
    one_step_short: ("steps_add_up", "every_step_counts"),
    crash_counts_as_robust: ("exception_safety", "gradient_not_finite"),
    successes_only: ("linear_margin", "linear_sign_pattern", "budget"),
}
# By its arguments, the function of the product that a mutant replaces.
REPLACES: Final = {
    ("x_adv", "x", "sign", "eps", "length"): "_step",
    ("model", "x", "y"): "loss_gradient",
    ("model",): "frozen",
    ("model", "x", "y", "lengths", "steps"): "_sweep",
}


@pytest.mark.parametrize(
    ("mutant", "check"), [(mutant, check) for mutant, checks in CAUGHT.items() for check in checks]
)
def test_wrong_attack_is_caught(mutant: Mutant, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = REPLACES[tuple(inspect.signature(mutant).parameters)]
    assert list(inspect.signature(mutant).parameters) == list(inspect.signature(getattr(gradient, name)).parameters)
    monkeypatch.setattr(gradient, name, mutant)
    with pytest.raises(AssertionError):
        CHECKS[check]()


def test_every_check_catches_something() -> None:
    assert set(CHECKS) == {check for checks in CAUGHT.values() for check in checks}
