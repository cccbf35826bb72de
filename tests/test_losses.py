"""Losses: their values and slopes by slow formulas, and the trap that cross-entropy is for confident networks.

Every ``check_*`` raises AssertionError if a loss is wrong; `test_mutants` proves of each that it can.
"""

from collections.abc import Callable
from functools import cache
from typing import Final, get_args

import pytest
import torch
import torch.nn.functional as F
from attack_checks import linear, middle, refusal
from torch import Tensor, nn

from robustmix import attacks
from robustmix.attacks import Victim
from robustmix.attacks.losses import LOSSES, loss_named
from robustmix.data import load_data
from robustmix.errors import EvaluationError, SpecError
from robustmix.spec import names

CLASSES: Final = 6


def logits_and_labels(spread: float = 3.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits of sixty examples without ties, and each class as the label of ten of them, in any rank."""
    draws = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(60, CLASSES, generator=draws, dtype=torch.float64)
    return logits.to(dtype), torch.arange(60) % CLASSES


def slope(name: str, logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of a loss with respect to the logits, as the attacks take it."""
    at = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss_named(name)(at, y).sum(), at)
    return found


def slow(name: str, z: list[float], own: int) -> tuple[float, list[float]]:
    """Value and slope of a loss for one example, from its formula."""
    others = [j for j in range(len(z)) if j != own]
    exps = [torch.tensor(value, dtype=torch.float64).exp().item() for value in z]
    rival = max(others, key=lambda j: z[j])
    first, _, third = sorted(range(len(z)), key=lambda j: -z[j])[:3]
    onehot = [float(j == own) for j in range(len(z))]
    if name == "ce":
        p = [value / sum(exps) for value in exps]
        return -torch.tensor(p[own]).log().item(), [p[j] - onehot[j] for j in range(len(z))]
    if name == "logodds":
        total = sum(exps[j] for j in others)
        value = torch.tensor(total / exps[own], dtype=torch.float64).log().item()
        return value, [exps[j] / total if j != own else -1.0 for j in range(len(z))]
    margin = [float(j == rival) - onehot[j] for j in range(len(z))]
    if name == "margin":
        return z[rival] - z[own], margin
    width, size = z[first] - z[third], z[rival] - z[own]
    inner = [float(j == first) - float(j == third) for j in range(len(z))]
    return size / width, [margin[j] / width - size * inner[j] / width**2 for j in range(len(z))]


def check_loss_values_and_slopes() -> None:
    """Each loss and its gradient with respect to the logits are those of its formula."""
    logits, y = logits_and_labels()
    for name in names.LOSSES:
        values = loss_named(name)(logits, y)
        slopes = slope(name, logits, y)
        for example, z in enumerate(logits.tolist()):
            value, by_hand = slow(name, z, int(y[example]))
            assert float(values[example]) == pytest.approx(value, rel=1e-6, abs=1e-9)
            assert slopes[example].tolist() == pytest.approx(by_hand, rel=1e-6, abs=1e-9)


def check_no_saturation() -> None:
    """In float32 and at any gap, log-odds and margin slope as in float64, where nothing is rounded away."""
    for spread in (1.0, 10.0, 100.0, 1000.0):
        logits, y = logits_and_labels(spread, torch.float32)
        for name in ("logodds", "margin"):
            exact = slope(name, logits.double(), y)
            torch.testing.assert_close(slope(name, logits, y).double(), exact, rtol=1e-4, atol=1e-6)
            assert (slope(name, logits, y).abs().amax(dim=1) == 1).all()


def check_scale_and_shift() -> None:
    """DLR ignores the logits' scale and shift."""
    logits, y = logits_and_labels()
    torch.testing.assert_close(loss_named("dlr")(7 * logits + 3, y), loss_named("dlr")(logits, y))


class Broken(nn.Module):
    """Linear logits, of which two examples have one that is no number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.linear, self.value = linear(5), value

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x).clone()
        logits[2, 1] += self.value
        logits[5, 3] += self.value
        return logits


def check_logits_not_finite() -> None:
    """A logit that is no number is an error under every loss, be it the label's or another class'."""
    for value in (float("nan"), float("inf")):
        for name in names.LOSSES:
            with refusal(EvaluationError) as text:
                attacks.fgsm(Broken(value), middle(40), torch.ones(40, dtype=torch.int64), 0.1, loss=name)
            assert "2 of 40 examples is NaN or infinite (first: number 2 of the batch)" in text[0]


@cache
def confident() -> nn.Module:
    """A network trained on digits until it is sure of itself."""
    split = load_data("digits").train
    x, y = split.gather(torch.arange(len(split)), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 48), nn.ReLU(),
            nn.Linear(48, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            for indices in torch.randperm(len(x)).split(256):
                optimiser.zero_grad()
                F.cross_entropy(model(x[indices]), y[indices]).backward()
                optimiser.step()
    return model.eval().requires_grad_(False)


class Scaled(nn.Module):
    """A network with its logits multiplied: the same predictions, only surer."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.model, self.scale = confident(), scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.model(x)
        return logits


def scaled_errors(loss: str) -> tuple[float, list[float], list[Victim]]:
    """Clean error, errors under FGSM at 24/255 with logits x 1, 10, 100, and what the gradients showed."""
    split = load_data("digits").test
    x, y = split.gather(torch.arange(len(split)), torch.device("cpu"))
    clean, victims, errors = float((confident()(x).argmax(dim=1) != y).double().mean()), [], []
    for scale in (1, 10, 100):
        model = Scaled(scale)
        x_adv = attacks.fgsm(model, x, y, 24 / 255, loss=loss)
        errors.append(float((model(x_adv).argmax(dim=1) != y).double().mean()))
        victims.append(Victim(model, y, loss))
        victims[-1].gradient(x)
    return clean, errors, victims


def check_scaled_logits() -> None:
    """The trap: the surer the network, the fewer errors FGSM on cross-entropy finds; log-odds and margin find all."""
    clean, errors, victims = scaled_errors("ce")
    assert errors[0] > clean + 0.3
    assert errors[0] > errors[1] + 0.05 > errors[2] + 0.1
    assert errors[2] < clean + 0.05
    saturated, vanished = (
        [float(getattr(victim, name).double().mean()) for victim in victims] for name in ("saturated", "zero_gradient")
    )
    assert saturated[0] < saturated[1] < saturated[2]
    assert saturated[1] > 0.7
    assert vanished[0] == 0
    assert vanished[2] > 0.8
    for victim, scale in zip(victims, (1, 10, 100), strict=True):
        torch.testing.assert_close(victim.gap, scale * victims[0].gap, rtol=1e-4, atol=1e-3 * scale)
    for loss, most in (("logodds", 0.025), ("margin", 0)):
        _, found, victims = scaled_errors(loss)
        assert max(found) - min(found) <= most, loss
        assert abs(found[0] - errors[0]) < 0.05
        assert not any(victim.zero_gradient.any() for victim in victims)


CHECKS: Final[dict[str, Callable[[], None]]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


@pytest.mark.parametrize("name", CHECKS)
def test_property_of_the_losses(name: str) -> None:
    CHECKS[name]()


def test_losses_are_those_that_can_be_chosen() -> None:
    assert tuple(LOSSES) == names.LOSSES == get_args(names.Loss)


def test_log_odds_have_the_direction_of_cross_entropy_on_every_example() -> None:
    logits, y = logits_and_labels()
    ce, odds = slope("ce", logits, y), slope("logodds", logits, y)
    p = logits.softmax(dim=1)[range(60), y]
    torch.testing.assert_close(ce, odds * (1 - p).unsqueeze(1), rtol=1e-9, atol=1e-12)
    model, x, y = linear(5), middle(40), torch.arange(40) % 5
    for norm, tolerance in (("linf", 0), ("l2", 1e-12)):
        of_ce, of_odds = (attacks.fgsm(model, x, y, 0.05, loss, norm) for loss in ("ce", "logodds"))
        torch.testing.assert_close(of_odds, of_ce, rtol=0, atol=tolerance)


@pytest.mark.parametrize("gap", [17.5, 60.0, 120.0])
def test_cross_entropy_loses_its_true_class_term_beyond_a_gap_of_17_in_float32(gap: float) -> None:
    """What the other losses are for: facts about float32, not a choice of ours."""
    logits, y = torch.tensor([[gap, 0.0, -1.0]]), torch.tensor([0])
    lost = slope("ce", logits, y)[0]
    assert lost[0] == 0
    assert (lost[1] > 0) == (gap < 104)
    assert slope("logodds", logits, y)[0, 0] == slope("margin", logits, y)[0, 0] == -1


def test_dlr_refuses_two_classes() -> None:
    model, x, y = linear(2), middle(), torch.tensor([0, 1] * 4)
    for call in (attacks.fgsm, attacks.ifgsm, attacks.mifgsm, attacks.pgd):
        with refusal(EvaluationError) as text:
            call(model, x, y, 0.1, loss="dlr")
        assert text == ["the loss 'dlr' needs three classes, the model tells 2 apart: choose ce, logodds or margin"]
    assert not torch.equal(attacks.fgsm(linear(3), x, y, 0.1, loss="dlr"), x)


def test_unknown_loss_is_refused_with_the_choices() -> None:
    for name in ("logodd", "CE", ""):
        with pytest.raises(SpecError, match=r"unknown loss .*; choose from ce, dlr, logodds, margin") as caught:
            attacks.sweep("fgsm", linear(), middle(), torch.zeros(8, dtype=torch.int64), [0.1], loss=name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", names.LOSSES)
def test_every_loss_rises_along_every_attack(loss: str) -> None:
    model, x, y = linear(5), middle(40), torch.arange(40) % 5
    before = LOSSES[loss](model(x), y)
    for call in (attacks.fgsm, attacks.ifgsm, attacks.mifgsm, attacks.pgd):
        for norm in ("linf", "l2"):
            assert (LOSSES[loss](model(call(model, x, y, 0.02, loss=loss, norm=norm)), y) > before).all()


@pytest.mark.parametrize("loss", ["ce", "logodds", "margin"])
def test_classes_that_a_model_rules_out_are_no_obstacle(loss: str) -> None:
    """A logit of minus infinity for another class is a legitimate way to mask it."""
    model, x, y = linear(5), middle(40), torch.arange(40) % 4
    masked = nn.Sequential(model, Masked())
    assert torch.equal(attacks.fgsm(masked, x, y, 0.05, loss=loss), attacks.fgsm(narrow(model), x, y, 0.05, loss=loss))


class Masked(nn.Module):
    """Rules out the last class."""

    def forward(self, logits: Tensor) -> Tensor:
        masked: Tensor = logits.index_fill(1, torch.tensor([4]), -torch.inf)
        return masked


def narrow(model: nn.Sequential) -> nn.Sequential:
    """A linear model without its last class."""
    without = linear(4)
    with torch.no_grad():
        without[1].weight.copy_(model[1].weight[:4])
        without[1].bias.copy_(model[1].bias[:4])
    return without
