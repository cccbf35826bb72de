"""Properties that a wrong implementation of our attacks lacks, and closed forms.

Every ``check_*`` raises AssertionError if the attack is wrong; `test_mutants` proves of each that it can.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix import AttackSpec, attacks
from robustmix.attacks import Victim, geometry, gradient
from robustmix.data import load_data
from robustmix.errors import EvaluationError
from robustmix.spec.attack import Course
from robustmix.spec.names import AttackName, Norm
from robustmix.units import to_pixels

# The module: the package gives its name to the function.
engine = import_module("robustmix.attacks.sweep")

ULP: Final = 2.0**-24
EPS: Final = 24 / 255

Attack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def swept(name: str, **options: object) -> Attack:
    """An attack at one budget."""
    return lambda model, x, y, eps: next(attacks.sweep(name, model, x, y, [eps], **options))[1]


# In L-infinity, from the input itself.
ATTACKS: Final[dict[str, Attack]] = {
    "fgsm": attacks.fgsm,
    "ifgsm": partial(attacks.ifgsm, steps=4),
    "ifgsm, large steps": lambda model, x, y, eps: attacks.ifgsm(
        model, x, y, eps, steps=4, step_size=min(1, eps * 0.7)
    ),
    "mifgsm": partial(attacks.mifgsm, steps=4),
}
RANDOM: Final[dict[str, Attack]] = {
    "pgd": partial(attacks.pgd, steps=4),
    "pgd, restarts": partial(attacks.pgd, steps=4, restarts=3, seed=7),
}
IN_L2: Final[dict[str, Attack]] = {
    "fgsm, l2": partial(attacks.fgsm, norm="l2"),
    "ifgsm, l2": partial(attacks.ifgsm, steps=4, norm="l2"),
    "mifgsm, l2": partial(attacks.mifgsm, steps=4, norm="l2"),
    "pgd, l2": partial(attacks.pgd, steps=4, norm="l2"),
}
GRADIENTS: Final = ATTACKS | RANDOM | IN_L2
BLIND: Final[dict[str, Attack]] = {
    f"{name}, {norm}": swept(name, norm=norm) for name in ("signs", "noise") for norm in ("linf", "l2")
}
EVERY: Final = GRADIENTS | BLIND


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
    """Every attack changes a two-class linear margin by exactly eps times the 1-norm of its weights."""
    model, x, eps = linear(2), middle(), 0.07
    y = torch.tensor([0, 1] * 4)
    away = torch.where(y == 0, 1.0, -1.0).double()
    w = model[1].weight[1] - model[1].weight[0]
    for attack in (ATTACKS | RANDOM).values():
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


def check_linear_l2() -> None:
    """In L2 the margin changes by exactly eps times the 2-norm of the weights; FGSM on K classes goes along W^T dz."""
    model, x, eps = linear(2), middle(), 0.2
    y = torch.tensor([0, 1] * 4)
    away = torch.where(y == 0, 1.0, -1.0).double()
    w = model[1].weight[1] - model[1].weight[0]
    for name, attack in IN_L2.items():
        x_adv = attack(model, x, y, eps)
        before, after = (logits[:, 1] - logits[:, 0] for logits in (model(x), model(x_adv)))
        if name.startswith("pgd"):  # whose start lies off the line, which it approaches
            assert ((after - before) * away > 0.95 * eps * w.norm()).all()
            continue
        torch.testing.assert_close(after - before, away * eps * w.norm(), rtol=0, atol=1e-12)
        torch.testing.assert_close((x_adv - x).flatten(1), away[:, None] * eps * w / w.norm(), rtol=0, atol=1e-12)
    model, x, y = linear(5), middle(40), torch.arange(40) % 5
    slope = (model(x).softmax(dim=1) - F.one_hot(y, 5)) @ model[1].weight
    expected = x + eps * (slope / slope.norm(dim=1, keepdim=True)).view_as(x)
    torch.testing.assert_close(attacks.fgsm(model, x, y, eps, norm="l2"), expected, rtol=0, atol=1e-12)


def check_l2_tiny_gradients() -> None:
    """A gradient whose squares underflow has a direction all the same; a zero gradient has none."""
    x, y = middle(4, torch.float32), torch.tensor([0, 1, 2, 0])
    for size in (1.0, 1e-30):
        model = linear(3, torch.float32)
        with torch.no_grad():
            model[1].bias.zero_()
            model[1].weight.mul_(size)
            logits = model[1].weight.double() @ x.double().flatten(1).T
            slope = (logits.softmax(dim=0).T - F.one_hot(y, 3)) @ model[1].weight.double()
        expected = x + (0.2 * slope / slope.norm(dim=1, keepdim=True)).view_as(x)
        torch.testing.assert_close(attacks.fgsm(model, x, y, 0.2, norm="l2").double(), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        model[1].weight.zero_()
    assert torch.equal(attacks.fgsm(model, x, y, 0.2, norm="l2"), x)
    for sign in (-1, 1):
        slope = torch.full_like(x, sign * 1e-30)
        torch.testing.assert_close(gradient.steepest(slope, "l2"), torch.full_like(x, sign / 4))


def check_l2_projection() -> None:
    """What lies within the budget keeps its bits; what lies beyond is moved to the sphere along its own direction."""
    x, eps = middle(64, torch.float32), 0.25
    draws = torch.Generator().manual_seed(0)
    towards = torch.randn(x.shape, generator=draws)
    towards /= towards.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for share in (0.0, 0.5, 0.999):
        moved = x + share * eps * towards
        assert torch.equal(gradient.step(moved, x, torch.zeros_like(x), eps, 0.1, "l2"), x + (moved - x))
    at = gradient.step(x, x, towards, eps, 3 * eps, "l2")
    torch.testing.assert_close(at, x + eps * towards, rtol=0, atol=1e-6)


def check_steps_add_up() -> None:
    """k steps of eps/k reach, on a two-class linear model, the very point that one step of eps does."""
    model, x = linear(2), middle()
    y = torch.tensor([0, 1] * 4)
    once = attacks.fgsm(model, x, y, 0.09)
    for steps in (1, 2, 3, 7, 10):
        for call in (attacks.ifgsm, attacks.mifgsm):
            torch.testing.assert_close(call(model, x, y, 0.09, steps), once, rtol=0, atol=1e-14)


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


def check_momentum() -> None:
    """MI-FGSM steps along the sign of accumulated gradients, each over its 1-norm (Dong et al. 2018, eq. 6)."""
    model, (x, y) = convnet(), digits()
    for decay in (0.6, 1.0, 1.7):
        x_adv, momentum, step = x, torch.zeros_like(x), EPS / 4
        for _ in range(4):
            at = x_adv.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
            momentum = decay * momentum + slope / slope.flatten(1).norm(p=1, dim=1).view(-1, 1, 1, 1)
            x_adv = (x + (x_adv + step * momentum.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
        assert torch.equal(attacks.mifgsm(model, x, y, EPS, steps=4, decay=decay), x_adv)


def check_no_momentum() -> None:
    """Without decay, which forgets all but the last gradient, MI-FGSM is I-FGSM."""
    model, (x, y) = convnet(), digits()
    assert torch.equal(attacks.mifgsm(model, x, y, EPS, steps=4, decay=0), attacks.ifgsm(model, x, y, EPS, steps=4))


class Plateau(nn.Module):
    """Two classes whose margin w x grows no further from a height on."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.linear, self.height = linear(2), height

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x)
        margin = (logits[:, 1] - logits[:, 0]).clamp(max=self.height)
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def check_momentum_over_plateau() -> None:
    """Where the gradient vanishes on the way, momentum carries on; where it is zero from the start, nothing moves."""
    x, y, eps = middle(), torch.zeros(8, dtype=torch.int64), 0.08
    logits = linear(2)(x)
    heights = (logits[:, 1] - logits[:, 0]).sort().values
    height = float(heights[3] + heights[4]) / 2
    model = Plateau(height)
    below = heights[3] + 0.02 * (model.linear[1].weight[1] - model.linear[1].weight[0]).abs().sum()
    assert below > height, "one step must lead at least one example onto the plateau"
    x_adv = attacks.mifgsm(model, x, y, eps, steps=4)
    up = (model.linear[1].weight[1] - model.linear[1].weight[0]).sign().view(1, 1, 4, 4)
    climbs = ((logits[:, 1] - logits[:, 0]) < height).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_adv, torch.where(climbs, x + eps * up, x), rtol=0, atol=1e-14)


# ---- properties on a network with batch norm -------------------------------------------------------------


def check_budget() -> None:
    """No pixel moves further than the budget (one float32 ulp aside), and every image uses all of it."""
    model = convnet().float()
    x, y = digits()[0].float(), digits()[1]
    for eps in (4 / 255, EPS, 64 / 255):
        for attack in (ATTACKS | RANDOM).values():
            moved = (attack(model, x, y, eps) - x).abs().flatten(1).amax(dim=1)
            assert moved.max() <= eps + ULP
            assert moved.min() >= eps * 0.999


def check_l2_budget() -> None:
    """No perturbation in L2 is longer than the budget, rounding aside; but for clipping and turns it uses all."""
    model, y = convnet().float(), digits()[1]
    for x, least in ((digits()[0].float(), 0.75), (digits()[0].float() * 0.2 + 0.4, 0.9)):
        for eps in (0.1, 0.3):
            for attack in IN_L2.values():
                moved = (attack(model, x, y, eps) - x).flatten(1).norm(dim=1)
                assert moved.max() <= eps * (1 + 1e-6) + ULP
                assert moved.min() >= least * eps


def check_range() -> None:
    """Adversarial inputs are valid inputs, although most digits' pixels stand at an end of the range."""
    model, (x, y) = convnet(), digits()
    for attack in EVERY.values():
        x_adv = attack(model, x, y, EPS)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


def check_loss_rises() -> None:
    """The attack moves away from the true label, also where the model is wrong to begin with."""
    model, x = linear(5), middle(40)
    y = torch.arange(40) % 5
    for attack in GRADIENTS.values():
        assert (losses(model, attack(model, x, y, 0.02), y) > losses(model, x, y)).all()
    model, (x, y) = convnet(), digits()
    for attack in (ATTACKS | RANDOM).values():
        assert losses(model, attack(model, x, y, EPS), y).mean() > losses(model, x, y).mean() + 0.1


def check_more_steps_find_more() -> None:
    """On a network, four small steps raise the loss above that of one large one."""
    model, (x, y) = convnet(), digits()
    once, often = attacks.fgsm(model, x, y, EPS), attacks.ifgsm(model, x, y, EPS, steps=4)
    assert losses(model, often, y).mean() > losses(model, once, y).mean()


def check_batch_split() -> None:
    """An example's gradient and attack do not depend on its neighbours in the batch, not even by a factor."""
    model, (x, y) = convnet(), digits()
    whole = Victim(model, y, "ce").gradient(x)
    split = zip(x.split(5), y.split(5), strict=True)
    parts = [Victim(model, part_y, "ce").gradient(part_x) for part_x, part_y in split]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-12)
    for attack in ATTACKS.values():
        whole = attack(model, x, y, EPS)
        for size in (1, 5, 8):
            parts = [attack(model, *part, EPS) for part in zip(x.split(size), y.split(size), strict=True)]
            assert torch.equal(torch.cat(parts), whole)


def check_mode_does_not_matter() -> None:
    """A model in training mode is attacked as it is deployed: batch norm by its statistics, no dropout."""
    model, (x, y) = convnet(), digits()
    for attack in GRADIENTS.values():
        expected = attack(model, x, y, EPS)
        for outermost in (model, Deaf(model)):
            model.train()
            before = snapshot(model)
            assert torch.equal(attack(outermost, x, y, EPS), expected)
            assert_same(before, model)
        model.eval()


class Deaf(nn.Module):
    """Does not hand its mode on to the network within."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> "Deaf":
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


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
    for attack in EVERY.values():
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
    for attack in EVERY.values():
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
    for name, attack in (ATTACKS | IN_L2).items():
        if name.startswith("pgd"):  # whose start lies off the black pixels
            continue
        with refusal(EvaluationError) as text:
            attack(NotFinite(), x, y, 0.01)
        assert "2 of 6 examples" in text[0]
        assert "number 2 " in text[0]


class Flaky(nn.Module):
    """Logits that are NaN in one of its passes."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.linear, self.passes, self.bad = linear(3), 0, bad

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.linear(x) * (float("nan") if self.passes == self.bad else 1)
        return logits


def check_gradient_not_finite_at_any_step() -> None:
    """One bad gradient among many spoils the attack, whichever it is."""
    for bad in (1, 2, 3):
        for call in (attacks.ifgsm, attacks.mifgsm, attacks.pgd):
            with refusal(EvaluationError) as text:
                call(Flaky(bad), middle(3), torch.tensor([0, 1, 2]), 0.1, steps=3)
            assert "3 of 3 examples is NaN or infinite (first: number 0 of the batch)" in text[0]


def check_score_not_finite() -> None:
    """Restarts cannot be compared by a margin that is no number."""
    for name, scorings in (("pgd", (3, 6)), ("signs", (1, 2)), ("noise", (1, 2))):
        for bad in scorings:
            with refusal(EvaluationError) as text:
                swept(name, steps=2, restarts=2)(Flaky(bad), middle(3), torch.tensor([0, 1, 2]), 0.1)
            assert "3 of 3 examples is NaN or infinite" in text[0]


def check_sweep_is_the_attack_at_each_budget() -> None:
    """In the order given, repeats included, bit for bit what each budget alone gives, each its own tensor."""
    model, (x, y) = convnet(), digits()
    budgets = [0.2, 0.05, 0.1, 0.05]
    for name in engine.NATIVE:
        together = list(attacks.sweep(name, model, x, y, budgets, steps=3))
        assert [eps for eps, _ in together] == budgets
        assert len({x_adv.data_ptr() for _, x_adv in together} | {x.data_ptr()}) == len(budgets) + 1
        for eps, x_adv in together:
            assert torch.equal(x_adv, swept(name, steps=3)(model, x, y, eps))


def courses_of(spec: AttackSpec) -> list[Course]:
    """How an attack goes at its budgets, in pixel units."""
    return [Course(to_pixels(eps or 0), steps, to_pixels(step)) for eps, steps, step in spec.courses(None)]


def crafted(name: AttackName, victim: Victim, x: Tensor, courses: Sequence[Course], norm: Norm) -> list[Tensor]:
    """An attack at several budgets, as an evaluation makes it; checks that each comes once, the smaller first."""
    together = list(engine.craft(name, victim, x, courses, norm))
    assert [course for course, _ in together] == sorted(set(courses))
    return [x_adv for _, x_adv in together]


def check_sharing_is_exact() -> None:
    """Under every rule for steps, each budget gets bit for bit what it gets alone."""
    model, (x, y) = convnet().float(), digits()
    x, y = x[:8].float(), y[:8]
    rules = (
        {"step": "kurakin", "eps": [1, 2, 4, 8, 16]},
        {"step": 1, "steps": 8, "eps": [2, 3, 6, 6.5, 8]},
        {"steps": 3, "eps": [1, 4, 24]},
    )
    for name in ("ifgsm", "mifgsm"):
        for norm in ("linf", "l2"):
            for rule in rules:
                courses = courses_of(AttackSpec(name=name, norm=norm, **rule))
                together = crafted(name, Victim(model, y, "ce"), x, [*courses[::-1], courses[1]], norm)
                for course, x_adv in zip(courses, together, strict=True):
                    (alone,) = crafted(name, Victim(model, y, "ce"), x, [course], norm)
                    assert torch.equal(x_adv, alone), (name, norm, rule, course)


def check_sharing_within_rounding() -> None:
    """Budgets part in time also where rounding alone reaches the smaller one, which in L2 all elements add to."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12288, 2)).requires_grad_(False)
    model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 12288))
    model[1].bias.zero_()
    x = 0.3 + 0.4 * torch.rand(4, 1, 1, 12288, generator=torch.Generator().manual_seed(0))
    y, step = torch.tensor([0, 1, 0, 1]), 64 / 255
    courses = [Course(3 * step * (1 + 1e-6), 5, step), Course(5 * step, 5, step)]
    together = crafted("ifgsm", Victim(model, y, "ce"), x, courses, "l2")
    (alone,) = crafted("ifgsm", Victim(model, y, "ce"), x, courses[:1], "l2")
    assert torch.equal(together[0], alone)


def check_stacking() -> None:
    """Stacked, budgets that have parted share passes and find what each finds by itself."""
    model, (x, y) = convnet(), digits()
    courses = [Course(eps, 5, eps / 5) for eps in (0.02, 0.04, 0.06, 0.08, 0.1)]
    for name in ("ifgsm", "mifgsm"):
        for norm in ("linf", "l2"):
            alone = crafted(name, Victim(model, y, "ce"), x, courses, norm)
            for stack, passes in ((2, 1 + 4 * 3), (5, 1 + 4), (9, 1 + 4)):
                victim = Victim(model, y, "ce", stack=stack)
                with counted(model) as (forward, backward):
                    together = crafted(name, victim, x, courses, norm)
                assert len(forward) == len(backward) == passes
                for one, other in zip(together, alone, strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
                assert victim.finite is not None
                assert victim.finite.shape == victim.gap.shape == y.shape


def count_passes(name: str, budgets: Sequence[float], steps: int = 10, **options: object) -> tuple[int, int]:
    """Forward and backward passes of a sweep."""
    model, (x, y) = convnet(), digits()
    with counted(model) as passes:
        assert len(list(attacks.sweep(name, model, x, y, budgets, steps, **options))) == len(budgets)
    return len(passes[0]), len(passes[1])


@contextmanager
def counted(model: nn.Module) -> Iterator[tuple[list[int], list[int]]]:
    """Counts the forward and backward passes of a model."""
    forward, backward = [], []

    def seen(module: nn.Module, args: object, logits: Tensor) -> None:
        forward.append(1)
        if logits.requires_grad:
            logits.register_hook(lambda slope: backward.append(1))

    handle = model.register_forward_hook(seen)
    yield forward, backward
    handle.remove()


def check_passes() -> None:
    """One gradient serves FGSM at every budget, and the first one I-FGSM at every budget; no pass is wasted."""
    budgets = [0.02, 0.04, 0.06, 0.08]
    assert count_passes("fgsm", budgets) == (1, 1)
    assert count_passes("ifgsm", budgets[:1], 3) == (3, 3)
    for name in ("ifgsm", "mifgsm"):
        assert count_passes(name, budgets, 5) == (1 + 4 * 4, 1 + 4 * 4)
    assert count_passes("pgd", budgets, 3) == (4 * 3, 4 * 3)
    assert count_passes("pgd", budgets, 3, restarts=3) == (4 * 3 * (3 + 1), 4 * 3 * 3)
    for name in ("signs", "noise"):
        assert count_passes(name, budgets) == (0, 0)
        assert count_passes(name, budgets, restarts=3) == (4 * 3, 0)


def check_passes_are_those_foreseen() -> None:
    """With steps of one length all gradients up to the smaller budget are shared, as `AttackSpec.gradients` says."""
    model, (x, y) = convnet().float(), digits()
    x = x.float()
    for rule, alone, together in (
        ({"step": "kurakin", "eps": [1, 2, 4, 8, 16]}, 38, 21),
        ({"step": "kurakin", "eps": ["0.5/255", 3, 7]}, 1 + 3 + 8, 8),
        ({"step": 1, "steps": 10, "eps": [2, 4, 8]}, 30, 10 + 5 + 7),
        ({"step": 3, "steps": 4, "eps": [4, 12]}, 8, 6),
        ({"steps": 5, "eps": [1, 2, 3, 4, 6, 8]}, 30, 25),
    ):
        for name in ("ifgsm", "mifgsm"):
            for norm in ("linf", "l2"):
                spec = AttackSpec(name=name, norm=norm, **rule)
                assert sum(course.steps for course in spec.courses(None)) == alone
                with counted(model) as (forward, backward):
                    crafted(name, Victim(model, y, "ce"), x, courses_of(spec), norm)
                assert len(forward) == len(backward) == together == spec.gradients(spec.courses(None)), (rule, name)


def check_deterministic() -> None:
    """Nothing hangs on the state of the global generator, which is left as it was."""
    model, (x, y) = convnet(), digits()
    for attack in EVERY.values():
        results = []
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                results.append(attack(model, x, y, EPS))
                drawn = torch.rand(())
                torch.manual_seed(seed)
                assert torch.equal(drawn, torch.rand(())), "the attack drew from the global generator"
        assert torch.equal(*results)


# ---- random starts, restarts and baselines ---------------------------------------------------------------


def first_seen(x: Tensor, eps: float, norm: Norm, seed: int = 0) -> Tensor:
    """Where PGD starts from."""
    model, seen = linear(2, x.dtype), []
    model.register_forward_hook(lambda module, args, logits: seen.append(args[0].detach().clone()))
    attacks.pgd(model, x, torch.zeros(len(x), dtype=torch.int64), eps, steps=1, norm=norm, seed=seed)
    return seen[0]


def check_uniform_in_the_ball() -> None:
    """PGD's start and the noise are uniform in the ball around the input, each element and example for itself."""
    x, y, eps = torch.full((512, 1, 4, 4), 0.5), torch.zeros(512, dtype=torch.int64), 0.25
    for norm in ("linf", "l2"):
        for drawn in (first_seen(x, eps, norm), swept("noise", norm=norm)(linear(2, x.dtype), x, y, eps)):
            point = ((drawn - x) / eps).flatten(1).double()
            length = point.abs().amax(dim=1) if norm == "linf" else point.norm(dim=1)
            assert length.max() <= 1 + 1e-6
            # Uniform in the ball: the share of its volume within an example's length is uniform in [0, 1].
            share = length**16
            quartiles = share.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
            torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75]).double(), rtol=0, atol=0.07)
            # Alike in every direction: each element's variance, no mean, no two elements alike.
            expected = torch.eye(16).double() * (1 / 3 if norm == "linf" else 1 / 18)
            torch.testing.assert_close(point.T @ point / 512, expected, rtol=0, atol=0.06 if norm == "linf" else 0.015)
            assert point.mean(dim=0).abs().max() < 0.1


def check_start_is_valid() -> None:
    """Where pixels stand at an end of the range, PGD starts within it too."""
    x = digits()[0][:, :, :4, :4].float()
    assert ((x == 0) | (x == 1)).any()
    for norm in ("linf", "l2"):
        start = first_seen(x, EPS, norm)
        assert start.min() >= 0
        assert start.max() <= 1
        assert geometry.lengths(start - x, norm).max() <= EPS * (1 + 1e-6)


def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By how much the largest other logit exceeds the label's."""
    with torch.no_grad():
        logits = model(x)
    others = [
        max(value for number, value in enumerate(row) if number != own) for row, own in zip(logits, y, strict=True)
    ]
    return torch.stack(others) - logits[range(len(y)), y]


def check_worst_restart_is_kept() -> None:
    """Of several random starts each example keeps, whatever its neighbours do, the one that fools the model most."""
    model, (x, y) = convnet(), digits()
    step, ends = 0.6 * EPS, []
    for number in range(4):
        x_adv = (x + EPS * geometry.random_point(x, "linf", [3, number])).clamp(0, 1)
        for _ in range(3):
            at = x_adv.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
            x_adv = (x + (x_adv + step * slope.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
        ends.append(x_adv)
    worst = torch.stack([margins(model, end, y) for end in ends]).argmax(dim=0)
    assert {0, 3} < set(worst.tolist()), "the check needs examples whose worst is the first, the last and another"
    expected = torch.stack([ends[number][example] for example, number in enumerate(worst)])
    found = attacks.pgd(model, x, y, EPS, steps=3, step_size=step, restarts=4, seed=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


class Flat(nn.Module):
    """Says the same of every input."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.flatten(1)[:, :10]


def check_more_restarts_never_find_less() -> None:
    """Further starts can only add to what the first ones found, on every example, and on some they do."""
    model, (x, y) = convnet(), digits()
    for name in ("pgd", "signs", "noise"):
        for norm in ("linf", "l2"):
            few, more = (
                margins(model, swept(name, steps=2, norm=norm, restarts=restarts)(model, x, y, EPS), y)
                for restarts in (1, 5)
            )
            assert (more >= few).all()
            assert (more > few).any()
            same = [swept(name, steps=2, norm=norm, restarts=restarts)(Flat(), x, y, EPS) for restarts in (1, 3)]
            assert torch.equal(*same), "of equals, the first is kept"


def check_seed() -> None:
    """A seed gives the same bits again, another one others; so do two restarts, two examples and two batches."""
    model, (x, y) = convnet(), digits()
    for name in ("pgd", "signs", "noise"):
        for norm in ("linf", "l2"):
            results = [swept(name, steps=2, norm=norm, seed=seed)(model, x, y, EPS) for seed in (1, 1, 2)]
            assert torch.equal(results[0], results[1])
            assert not torch.equal(results[0], results[2])
            courses = [Course(EPS, 2, EPS)]
            of_batches = [
                next(engine.craft(name, Victim(model, y, "ce"), x, courses, norm, seed=seed))[1]
                for seed in ([1, 0], [1, 1])
            ]
            assert not torch.equal(*of_batches)
    start = first_seen(x.float()[:1, :, :4, :4].expand(2, -1, -1, -1), EPS, "linf")
    assert not torch.equal(start[0], start[1])


def check_signs() -> None:
    """Random signs move every pixel by exactly the budget, in L2 by its share of it, up as often as down."""
    model, x, y = linear(3), middle(64), torch.zeros(64, dtype=torch.int64)
    for norm, length in (("linf", 0.1), ("l2", 0.1 / 4)):
        drawn = gradient.random_signs(x, norm, [0])
        torch.testing.assert_close(drawn.abs(), torch.full_like(x, 10 * length), rtol=0, atol=1e-15)
        for restarts in (1, 3):
            x_adv = swept("signs", norm=norm, restarts=restarts)(model, x, y, 0.1)
            torch.testing.assert_close((x_adv - x).abs(), torch.full_like(x, length), rtol=0, atol=1e-15)
        up = (swept("signs", norm=norm)(model, x, y, 0.1) > x).double()
        assert abs(up.mean() - 0.5) < 0.05
        assert (up.mean(dim=0) - 0.5).abs().max() < 0.25
        assert (up.flatten(1).mean(dim=1) - 0.5).abs().max() < 0.45


# ---- labels, and what the gradients show -----------------------------------------------------------------


def check_predicted_labels() -> None:
    """Without labels an attack moves away from the model's predictions on the inputs, wherever it gets to."""
    model, x = linear(5), middle(40)
    y, clean = torch.arange(40) % 5, model(x).argmax(dim=1)
    courses = [Course(eps, 3, eps) for eps in (0.1, 0.6)]
    assert 0 < (clean != y).sum() < 40, "the check needs both kinds"
    for name in engine.NATIVE:
        results = []
        for labels in (None, clean, y):
            victim = Victim(model, labels, "ce")
            results.append([x_adv for _, x_adv in engine.craft(name, victim, x, courses, "linf", restarts=2)])
            assert labels is not None or torch.equal(victim.labels, clean)
        of_none, of_clean, of_true = (torch.cat(result) for result in results)
        assert torch.equal(of_none, of_clean)
        assert not torch.equal(of_none, of_true)
        assert (model(of_none[40:]).argmax(dim=1) != clean).any(), "the check needs predictions that change"
    start = (x + 0.1 * geometry.random_point(x, "linf", [0, 0])).clamp(0, 1)
    assert (model(start).argmax(dim=1) != clean).any(), "the check needs predictions that change at the start"


def check_what_gradients_show() -> None:
    """Gap, saturation and vanished gradients are those of each example, at the first gradient."""
    model, x, y = linear(5, torch.float32), middle(40, torch.float32), torch.arange(40) % 5
    with torch.no_grad():
        model[1].weight.mul_(200)
        logits = model(x)
    victim = Victim(model, y, "ce")
    crafted("ifgsm", victim, x, [Course(0.2, 3, 0.2)], "linf")
    torch.testing.assert_close(victim.gap, -margins(model, x, y))
    exact = logits.double().softmax(dim=1)[range(40), y]
    # The float32 next to 1 is 1 - 2^-24; how sums around the middle are rounded is left open.
    certain = ((1 - exact) * 2**25).log().abs() > 1
    assert torch.equal(victim.saturated[certain], exact[certain] > 1 - 2**-25)
    at = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
    assert torch.equal(victim.zero_gradient, (slope == 0).flatten(1).all(dim=1))
    assert 0 < victim.zero_gradient.sum() < victim.saturated.sum() < 40, "the check needs each kind of example"


CHECKS: Final[dict[str, Callable[[], None]]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
