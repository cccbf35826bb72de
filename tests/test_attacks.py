"""FGSM and I-FGSM: closed forms, and properties that a wrong implementation lacks.

Every ``check_*`` raises AssertionError if the attack is wrong; `test_mutants` proves of each that it can.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustmix import attacks
from robustmix.attacks import gradient
from robustmix.data import load_data
from robustmix.errors import EvaluationError, RobustmixError, SpecError

ULP: Final = 2.0**-24
EPS: Final = 24 / 255

Attack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
ATTACKS: Final[dict[str, Attack]] = {
    "fgsm": lambda model, x, y, eps: attacks.fgsm(model, x, y, eps),
    "ifgsm": lambda model, x, y, eps: attacks.ifgsm(model, x, y, eps, steps=4),
    "ifgsm, large steps": lambda model, x, y, eps: attacks.ifgsm(
        model, x, y, eps, steps=4, step_size=min(1, eps * 0.7)
    ),
}


@contextmanager
def refusal(*kinds: type[Exception]) -> Iterator[list[str]]:
    """Fails, by AssertionError, unless the block raises one of these errors; their text is one line."""
    text: list[str] = []
    try:
        yield text
    except kinds as error:
        text.append(str(error))
        assert "\n" not in text[0], text[0]
    else:
        raise AssertionError(f"nothing was refused; wanted {kinds}")


# ---- models and inputs -----------------------------------------------------------------------------------


def linear(classes: int = 3, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Logits W x + b over 1x4x4 inputs."""
    draws = torch.Generator().manual_seed(classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).to(dtype)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, 16, generator=draws, dtype=torch.float64))
        model[1].bias.copy_(torch.randn(classes, generator=draws, dtype=torch.float64) / 4)
    return model.requires_grad_(False)


def middle(batch: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    """Inputs far from the ends of the range, so that nothing is clipped."""
    draws = torch.Generator().manual_seed(batch)
    return (0.3 + 0.4 * torch.rand(batch, 1, 4, 4, generator=draws, dtype=torch.float64)).to(dtype)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    split = load_data("digits").test.first(16)
    return split.images.double() / 255, split.labels


def digits() -> tuple[Tensor, Tensor]:
    """Sixteen real digits (with many pixels at exactly 0 and 1) and their labels."""
    x, y = _digits()
    return x.clone(), y.clone()


def convnet() -> nn.Sequential:
    """A small convolutional network with batch norm, whose statistics are those of real data, and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(6 * 64, 10),
        ).double()
        for _ in range(3):
            model(digits()[0][:12])
    with torch.no_grad():
        model[8].weight.mul_(8)
    return model.eval()


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


# ---- closed forms on a linear model ----------------------------------------------------------------------


def check_linear_margin() -> None:
    """FGSM changes a two-class linear margin by exactly eps times the 1-norm of its weights."""
    model, x, eps = linear(2), middle(), 0.07
    y = torch.tensor([0, 1] * 4)
    away = torch.where(y == 0, 1.0, -1.0).double()
    w = model[1].weight[1] - model[1].weight[0]
    for attack in ATTACKS.values():
        x_adv = attack(model, x, y, eps)
        before, after = (logits[:, 1] - logits[:, 0] for logits in (model(x), model(x_adv)))
        torch.testing.assert_close(after - before, away * eps * w.abs().sum(), rtol=0, atol=1e-12)
        assert torch.equal((x_adv - x).sign().flatten(1), away[:, None] * w.sign())


def check_linear_sign_pattern() -> None:
    """On K classes, FGSM is x + eps sign(W^T (p - onehot(y))), to the bit, on examples right and wrong alike."""
    model, x, eps = linear(5), middle(40), 0.05
    y = torch.arange(40) % 5
    wrong = model(x).argmax(dim=1) != y
    assert 0 < wrong.sum() < 40, "the check needs both kinds"
    weight = model[1].weight
    sign = ((model(x).softmax(dim=1) - F.one_hot(y, 5)) @ weight).sign().view_as(x)
    assert torch.equal(attacks.fgsm(model, x, y, eps), (x + eps * sign).clamp(0, 1))


def check_steps_add_up() -> None:
    """k steps of eps/k reach, on a two-class linear model, the very point that one step of eps does."""
    model, x = linear(2), middle()
    y = torch.tensor([0, 1] * 4)
    once = attacks.fgsm(model, x, y, 0.09)
    for steps in (1, 2, 3, 7, 10):
        torch.testing.assert_close(attacks.ifgsm(model, x, y, 0.09, steps), once, rtol=0, atol=1e-14)


def check_every_step_counts() -> None:
    """Each iteration takes a gradient at the point that the one before reached, and moves by one step."""
    model, (x, y) = convnet(), digits()
    step = EPS / 4
    expected = x
    for _ in range(4):
        at = expected.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
        expected = x + (expected + step * slope.sign() - x).clamp(-EPS, EPS)
        expected = expected.clamp(0, 1)
    assert torch.equal(attacks.ifgsm(model, x, y, EPS, steps=4), expected)


# ---- properties on a network with batch norm -------------------------------------------------------------


def check_budget() -> None:
    """No pixel moves further than the budget (one float32 ulp aside), and every image uses all of it."""
    model = convnet().float()
    x, y = digits()[0].float(), digits()[1]
    for eps in (4 / 255, EPS, 64 / 255):
        for attack in ATTACKS.values():
            moved = (attack(model, x, y, eps) - x).abs().flatten(1).amax(dim=1)
            assert moved.max() <= eps + ULP
            assert moved.min() >= eps * 0.999


def check_range() -> None:
    """Adversarial inputs are valid inputs, although most digits' pixels stand at an end of the range."""
    model, (x, y) = convnet(), digits()
    for attack in ATTACKS.values():
        x_adv = attack(model, x, y, EPS)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


def check_loss_rises() -> None:
    """The attack moves away from the true label, also where the model is wrong to begin with."""
    model, x = linear(5), middle(40)
    y = torch.arange(40) % 5
    for attack in ATTACKS.values():
        assert (losses(model, attack(model, x, y, 0.02), y) > losses(model, x, y)).all()
    model, (x, y) = convnet(), digits()
    for attack in ATTACKS.values():
        assert losses(model, attack(model, x, y, EPS), y).mean() > losses(model, x, y).mean() + 0.1


def check_more_steps_find_more() -> None:
    """On a network, four small steps raise the loss above that of one large one."""
    model, (x, y) = convnet(), digits()
    once, often = attacks.fgsm(model, x, y, EPS), attacks.ifgsm(model, x, y, EPS, steps=4)
    assert losses(model, often, y).mean() > losses(model, once, y).mean()


def check_batch_split() -> None:
    """An example's gradient and attack do not depend on its neighbours in the batch, not even by a factor."""
    model, (x, y) = convnet(), digits()
    whole = gradient.loss_gradient(model, x, y)
    parts = [gradient.loss_gradient(model, *part) for part in zip(x.split(5), y.split(5), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-12)
    for attack in ATTACKS.values():
        whole = attack(model, x, y, EPS)
        for size in (1, 5, 8):
            parts = [attack(model, *part, EPS) for part in zip(x.split(size), y.split(size), strict=True)]
            assert torch.equal(torch.cat(parts), whole)


def check_mode_does_not_matter() -> None:
    """A model in training mode is attacked as it is deployed: batch norm by its statistics, no dropout."""
    model, (x, y) = convnet(), digits()
    for attack in ATTACKS.values():
        expected = attack(model, x, y, EPS)
        model.train()
        assert torch.equal(attack(model, x, y, EPS), expected)
        model.eval()


def snapshot(model: nn.Module) -> dict[str, object]:
    """All of a model that an attack must leave as it found it."""
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "grad": {name: parameter.grad for name, parameter in model.named_parameters()},
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "hooks": [len(module._forward_hooks) for module in model.modules()],
    }


def mixed_flags() -> nn.Sequential:
    """A model in training mode with a module in eval mode, frozen and free parameters, some with a gradient."""
    model = convnet().train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    for index in (0, 1):
        for parameter in model[index].parameters():
            parameter.grad = torch.full_like(parameter, 0.125)
    return model


def assert_same(before: dict[str, object], model: nn.Module) -> None:
    after = snapshot(model)
    for name in ("training", "requires_grad", "hooks"):
        assert after[name] == before[name], name
    states, olds = after["state"], before["state"]
    assert isinstance(states, dict)
    assert isinstance(olds, dict)
    assert all(torch.equal(states[name], olds[name]) for name in olds), "parameters or buffers"
    grads, olds = after["grad"], before["grad"]
    assert isinstance(grads, dict)
    assert isinstance(olds, dict)
    for name, old in olds.items():
        assert grads[name] is old, f"gradient of {name}"
        assert old is None or (old == 0.125).all(), f"gradient of {name}"


def check_model_left_as_found() -> None:
    """Parameters, gradients, buffers, and each module's and each parameter's own flag."""
    for attack in ATTACKS.values():
        model, (x, y) = mixed_flags(), digits()
        before = snapshot(model)
        attack(model, x, y, EPS)
        assert_same(before, model)


def check_model_left_as_found_between_budgets() -> None:
    """While a sweep is suspended, its caller sees the model as it was."""
    model, (x, y) = mixed_flags(), digits()
    before = snapshot(model)
    for _ in attacks.sweep("ifgsm", model, x, y, [0.1, 0.2], steps=2):
        assert_same(before, model)


def check_exception_safety() -> None:
    """A model that raises midway is left as found as well, and its error is passed on."""
    for fails_at in (1, 2):
        model, (x, y) = mixed_flags(), digits()
        calls = []

        def fail(*_: object, calls: list[int] = calls, fails_at: int = fails_at) -> None:
            calls.append(1)
            if len(calls) == fails_at:
                raise RuntimeError("out of memory")

        model[4].register_forward_hook(fail)
        before = snapshot(model)
        with refusal(RuntimeError) as text:
            attacks.ifgsm(model, x, y, EPS, steps=3)
        assert text == ["out of memory"]
        assert_same(before, model)


def check_inputs_left_as_found() -> None:
    """x and y keep their values and flags; the result is a new tensor outside any graph."""
    for attack in ATTACKS.values():
        for wants_gradient in (False, True):
            model, (x, y) = convnet(), digits()
            x.requires_grad_(wants_gradient)
            old_x, old_y = x.detach().clone(), y.clone()
            x_adv = attack(model, x, y, EPS)
            assert torch.equal(x, old_x)
            assert torch.equal(y, old_y)
            assert x.requires_grad is wants_gradient
            assert x.grad is None
            assert not x_adv.requires_grad


class NotFinite(nn.Module):
    """Logits whose gradient is infinite or NaN for the inputs with a black pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.sqrt())
        return logits


def check_gradient_not_finite() -> None:
    """A gradient that is no number is an error that names the example; as a sign it would be no attack at all."""
    x, y = middle(6), torch.tensor([0, 1, 2, 0, 1, 2])
    x[2, 0, 1, 1] = x[4, 0, 3, 0] = 0
    for attack in ATTACKS.values():
        with refusal(EvaluationError) as text:
            attack(NotFinite(), x, y, 0.01)
        assert "2 of 6 examples" in text[0]
        assert "number 2 " in text[0]


def check_sweep_is_the_attack_at_each_budget() -> None:
    """In the order given, repeats included, bit for bit what each budget alone gives, each its own tensor."""
    model, (x, y) = convnet(), digits()
    budgets = [0.2, 0.05, 0.1, 0.05]
    for name in ("fgsm", "ifgsm"):
        swept = list(attacks.sweep(name, model, x, y, budgets, steps=3))
        assert [eps for eps, _ in swept] == budgets
        assert len({x_adv.data_ptr() for _, x_adv in swept} | {x.data_ptr()}) == len(budgets) + 1
        for eps, x_adv in swept:
            alone = attacks.fgsm(model, x, y, eps) if name == "fgsm" else attacks.ifgsm(model, x, y, eps, steps=3)
            assert torch.equal(x_adv, alone)


def count_passes(name: str, budgets: list[float], steps: int) -> tuple[int, int]:
    """Forward and backward passes of a sweep."""
    model, (x, y) = convnet(), digits()
    forward, backward = [], []

    def seen(module: nn.Module, args: object, logits: Tensor) -> None:
        forward.append(1)
        if logits.requires_grad:
            logits.register_hook(lambda slope: backward.append(1))

    model.register_forward_hook(seen)
    assert len(list(attacks.sweep(name, model, x, y, budgets, steps))) == len(budgets)
    return len(forward), len(backward)


def check_passes() -> None:
    """One gradient serves FGSM at every budget, and the first one I-FGSM at every budget; no pass is wasted."""
    budgets = [0.02, 0.04, 0.06, 0.08]
    assert count_passes("fgsm", budgets, 10) == (1, 1)
    assert count_passes("ifgsm", budgets, 5) == (1 + 4 * 4, 1 + 4 * 4)
    assert count_passes("ifgsm", budgets[:1], 3) == (3, 3)


def check_deterministic() -> None:
    """Nothing is random: no start but x itself, whatever the state of the global generator."""
    model, (x, y) = convnet(), digits()
    for attack in ATTACKS.values():
        results = []
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                results.append(attack(model, x, y, EPS))
                drawn = torch.rand(())
                torch.manual_seed(seed)
                assert torch.equal(drawn, torch.rand(())), "the attack drew from the global generator"
        assert torch.equal(*results)


CHECKS: Final[dict[str, Callable[[], None]]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_linear_margin,
        check_linear_sign_pattern,
        check_steps_add_up,
        check_every_step_counts,
        check_budget,
        check_range,
        check_loss_rises,
        check_more_steps_find_more,
        check_batch_split,
        check_mode_does_not_matter,
        check_model_left_as_found,
        check_model_left_as_found_between_budgets,
        check_exception_safety,
        check_inputs_left_as_found,
        check_gradient_not_finite,
        check_sweep_is_the_attack_at_each_budget,
        check_passes,
        check_deterministic,
    )
}


@pytest.mark.parametrize("name", CHECKS)
def test_property_of_the_attacks(name: str) -> None:
    CHECKS[name]()


# ---- the form --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [0.25, 0.5, 1, 2, 3, 4, 8, 12, 16, 24, 32, 48, 64, 128, 255])
def test_one_step_is_clamp_of_x_plus_eps_sign_at_every_grey_level(budget: float, dtype: torch.dtype) -> None:
    x, eps = torch.arange(256).to(dtype) / 255, budget / 255
    for direction in (-1.0, 0.0, 1.0):
        sign = torch.full_like(x, direction)
        assert torch.equal(gradient._step(x, x, sign, eps, eps), (x + eps * sign).clamp(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    eps=st.floats(0, 1),
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


def test_zero_gradient_moves_nothing() -> None:
    model = linear(3)
    with torch.no_grad():
        model[1].weight[:, :8] = 0
    x = middle()
    moved = attacks.fgsm(model, x, torch.zeros(8, dtype=torch.int64), 0.1) != x
    assert not moved.flatten(1)[:, :8].any()
    assert moved.flatten(1)[:, 8:].all()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
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


@pytest.mark.parametrize("name", ["bim", "BIM", "i-fgsm", "I-FGSM", "ifgsm"])
def test_other_names_of_ifgsm(name: str) -> None:
    model, (x, y) = convnet(), digits()
    ((_, x_adv),) = attacks.sweep(name, model, x, y, [EPS], steps=3)
    assert torch.equal(x_adv, attacks.ifgsm(model, x, y, EPS, steps=3))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_works_where_the_caller_has_switched_gradients_off(
    attack: Attack, context: Callable[[], torch.no_grad | torch.inference_mode]
) -> None:
    model, (x, y) = convnet(), digits()
    expected = attack(model, x, y, EPS)
    with context():
        assert torch.equal(attack(model, x, y, EPS), expected)
        assert torch.equal(attack(model, x.clone(), y.clone(), EPS), expected)


def test_shape_type_and_device_are_those_of_the_inputs() -> None:
    for dtype in (torch.float32, torch.float64):
        x_adv = attacks.fgsm(linear(3, dtype), middle(dtype=dtype), torch.zeros(8, dtype=torch.int64), 0.1)
        assert (x_adv.shape, x_adv.dtype) == ((8, 1, 4, 4), dtype)


# ---- what is refused -------------------------------------------------------------------------------------

X, Y = middle(3), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (4, r"eps=4 .* write eps=4/255"),
        (1.0001, "pixel units"),
        (-0.1, "at least 0"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
    ],
)
def test_budget_in_other_units_is_refused(eps: float, message: str) -> None:
    for call in (attacks.fgsm, attacks.ifgsm):
        with pytest.raises(SpecError, match=message):
            call(linear(), X, Y, eps)


@pytest.mark.parametrize(
    ("steps", "step_size", "message"),
    [
        (10, 0.001, r"10 steps of step_size=0.001 reach only 0.01, not eps=0.1.* at least 0.01"),
        (1, 0.0999, "reach only"),
        (10, 2.0, r"step_size=2.0 .* pixel units"),
        (10, -0.1, "at least 0"),
        (10, float("nan"), "finite"),
        (0, None, "steps=0 must be at least 1"),
        (-3, None, "steps=-3"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(steps: int, step_size: float | None, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        attacks.ifgsm(linear(), X, Y, 0.1, steps, step_size)


def test_steps_that_just_reach_the_budget_are_taken() -> None:
    for steps in range(1, 50):
        attacks.sweep("ifgsm", linear(), X, Y, [0.1], steps, 0.1 / steps)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((X * 255).byte(), Y, "uint8"),
        (X * 255, Y, r"outside \[0, 1\]"),
        (X - 0.5, Y, "normalisation inside the model"),
        (X * float("nan"), Y, "nan"),
        (X, Y.int(), "int64"),
        (X, Y.double(), "int64"),
        (X, Y[:2], r"int64 \[3\]"),
        (X, F.one_hot(Y, 3), "labels"),
        (X, Y + 1, "labels run from 1 to 3"),
        (X, Y - 1, "labels run from -1 to 1"),
        (X, Y - 100, "labels run from -100 to -98"),
    ],
    ids=[
        "uint8",
        "grey levels",
        "normalised",
        "nan",
        "int32",
        "float",
        "too few",
        "one-hot",
        "too large",
        "negative",
        "the label that cross-entropy ignores",
    ],
)
def test_inputs_and_labels_that_make_no_sense_are_refused(x: Tensor, y: Tensor, message: str) -> None:
    for call in (attacks.fgsm, attacks.ifgsm):
        with pytest.raises(EvaluationError, match=message) as caught:
            call(linear(), x, y, 0.1)
        assert "\n" not in str(caught.value)


def test_unknown_attack_is_refused_with_the_choices() -> None:
    with pytest.raises(SpecError, match=r"unknown attack 'fgms' \(did you mean 'fgsm'\?\); choose from fgsm, ifgsm"):
        attacks.sweep("fgms", linear(), X, Y, [0.1])


def test_everything_is_checked_before_the_first_pass() -> None:
    model = linear()
    model.register_forward_hook(lambda *_: pytest.fail("a pass was made"))
    for budgets in ([0.1, 4], [0.1, float("nan")]):
        with pytest.raises(RobustmixError):
            attacks.sweep("ifgsm", model, X, Y, budgets)
    with pytest.raises(SpecError):
        attacks.sweep("ifgsm", model, X, Y, [0.1, 0.5], steps=2, step_size=0.1)
