"""What the attacks refuse, each in one line, and what they take all the same."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_checks import BLIND, GRADIENTS, linear, middle, refusal
from torch import Tensor, nn

from robustmix import attacks
from robustmix.errors import EvaluationError, RobustmixError, SpecError
from robustmix.spec.attack import FOREIGN

# The module: the package gives its name to the function.
engine = import_module("robustmix.attacks.sweep")

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
        (0, None, "steps=0 must be a whole number of at least 1"),
        (-3, None, "steps=-3"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(steps: int, step_size: float | None, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        attacks.ifgsm(linear(), X, Y, 0.1, steps, step_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "unknown norm 'l1'; choose from l2, linf"),
        ({"norm": "Linf"}, "unknown norm 'Linf' .*did you mean 'linf'"),
        ({"decay": -0.1}, "decay=-0.1 must be a number from 0 to 2"),
        ({"decay": 2.01}, "decay=2.01 must be a number from 0 to 2"),
        ({"decay": 1e39}, r"decay=1e\+39"),
        ({"decay": "a"}, "decay='a' must be a number from 0 to 2"),
        ({"decay": True}, "decay=True must be a number"),
        ({"decay": float("nan")}, "decay=nan"),
        ({"decay": float("inf")}, "decay=inf"),
        ({"restarts": 0}, "restarts=0 must be a whole number of at least 1"),
        ({"restarts": 1.5}, "restarts=1.5 must be a whole number"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"steps": "10"}, "steps='10' must be a whole number"),
        ({"steps": [10]}, "steps=list must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number of at least 0"),
        ({"step_size": "kurakin"}, "step_size must be a number, a length in pixel units; got 'kurakin'"),
        ({"step_size": True}, "step_size must be a number, .* got True"),
        ({"loss": None}, "loss must be a name, such as 'ce'; got None"),
        ({"loss": ["ce"]}, "loss must be a name, such as 'ce'; got list"),
        ({"norm": None}, "norm must be a name, such as 'linf'; got None"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"loss": "cw"}, "unknown loss 'cw'"),
        ({"norm": "l2", "step_size": 4.01}, "step_size=4.01 is longer than any perturbation .*(4)"),
    ],
)
def test_options_that_would_be_no_attack_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        attacks.sweep("pgd", linear(), X, Y, [0.1], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.1}, "eps must be a sequence, such as a tuple; got 0.1"),
        ({"eps": "4/255"}, "eps must be a sequence, such as a tuple; got '4/255'"),
        ({"eps": None}, "eps must be a sequence, such as a tuple; got None"),
        ({"eps": torch.tensor(0.5)}, "eps must be a sequence, such as a tuple; got 0.5"),
        ({"eps": ["4/255"]}, "eps must be a number, a length in pixel units; got '4/255'"),
        ({"eps": [0.1, None]}, "eps must be a number, a length in pixel units; got None"),
        ({"eps": []}, "eps is empty: name at least one"),
        ({"eps": [True]}, "eps must be a number, .* got True"),
        ({"eps": np.ones((2, 2))}, "eps must be a number, .* got list"),
        ({"name": None}, "name must be a name, such as 'fgsm'; got None"),
        ({"model": torch.relu}, "model must be a torch.nn.Module; got builtin_function_or_method"),
        ({"model": linear}, "model must be a torch.nn.Module; got function"),
        ({"name": "fgsm", "steps": "ten"}, "steps='ten' must be a whole number"),
        ({"name": "fgsm", "step_size": 4}, "step_size=4 is longer"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(arguments: dict[str, object], message: str) -> None:
    good = {"name": "ifgsm", "model": linear(), "x": X, "y": Y, "eps": [0.1]}
    with pytest.raises(SpecError, match=message) as caught:
        attacks.sweep(**good | arguments)
    assert "\n" not in str(caught.value)
    assert len(list(attacks.sweep(**good))) == 1


def test_attacks_at_one_budget_refuse_what_is_no_length() -> None:
    for call in (attacks.fgsm, attacks.ifgsm, attacks.mifgsm, attacks.pgd):
        for eps, got in (("4/255", "'4/255'"), ([0.1], "list"), (None, "None")):
            with pytest.raises(SpecError, match=f"^eps must be a number, a length in pixel units; got {got}$"):
                call(linear(), X, Y, eps)
        with pytest.raises(SpecError, match=r"^model must be"):
            call(torch.relu, X, Y, 0.1)


@pytest.mark.parametrize(
    "eps",
    [
        np.array([0.1, 0.25]),
        torch.tensor([0.1, 0.25]),
        (np.float32(0.1), np.float64(0.25)),
        (torch.tensor(0.1), torch.tensor(0.25)),
    ],
)
def test_budgets_may_be_numpy_s_or_torch_s(eps: Sequence[float]) -> None:
    found = list(attacks.sweep("fgsm", linear(), X, Y, eps))
    assert [length for length, _ in found] == pytest.approx([0.1, 0.25])
    assert all(type(length) is float for length, _ in found)
    assert torch.equal(found[1][1], attacks.fgsm(linear(), X, Y, 0.25))


def test_whole_numbers_may_be_numpy_s() -> None:
    steps, seed = np.int64(3), np.int64(1)
    (found,) = attacks.sweep("pgd", linear(), X, Y, [0.1], steps, seed=seed)
    assert torch.equal(found[1], attacks.pgd(linear(), X, Y, 0.1, 3, seed=1))


def test_l2_lengths_may_exceed_the_pixel_range_but_not_its_diagonal() -> None:
    """Sixteen pixels can move by 4 in L2."""
    for call in (attacks.ifgsm, attacks.mifgsm, attacks.pgd):
        x_adv = call(linear(), X, Y, 3.0, 3, 1.5, norm="l2")
        assert (x_adv - X).flatten(1).norm(dim=1).min() > 1
        with pytest.raises(SpecError, match=r"eps=4.01 is longer than any perturbation within .*\(4\)"):
            call(linear(), X, Y, 4.01, norm="l2")


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
        (X, Y[0], r"labels must be int64 \[3\], one per input; got torch.int64 \[\]"),
        (X, Y.numpy(), "y must be a torch.Tensor; got ndarray: torch.as_tensor makes one"),
        (X, Y.tolist(), "y must be a torch.Tensor; got list"),
        (X.numpy(), Y, "x must be a torch.Tensor; got ndarray: torch.as_tensor makes one"),
        (X[:, 0, 0, 0], Y, r"inputs must be \[B, ...\], one row per example; got \[3\]"),
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
        "one label",
        "numpy's labels",
        "a list of labels",
        "numpy's inputs",
        "no rows",
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


def test_model_without_a_gradient_is_refused_with_the_way_out() -> None:
    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = linear()(x.round(decimals=1))
            return logits

    for attack in GRADIENTS.values():
        with refusal(EvaluationError) as text:
            attack(Rounding(), X, Y, 0.1)
        assert "no gradient with respect to its input" in text[0]
        assert "square or hopskipjump" in text[0]
    for attack in BLIND.values():
        assert not torch.equal(attack(Rounding(), X, Y, 0.1), X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: (z, z), r"the model returns tuple, not logits \[B, K\] of \d inputs: return its logits alone"),
        (lambda z: {"logits": z}, "the model returns dict, not logits"),
        (lambda z: z[:, 0], r"the model returns \[\d\], not logits"),
        (lambda z: z.unsqueeze(2), r"the model returns \[\d, \d+, 1\], not logits"),
        (lambda z: z.mean(0, keepdim=True), r"the model returns \[1, \d+\], not logits"),
        (lambda z: z * 1j, "the model returns torch.complex128, which are no logits"),
        (lambda z: z[:, :1], r"the model gives a single logit z: return one for each class, \[0, z\] for two"),
    ],
)
def test_what_is_no_logits_is_refused_in_one_line(change: Callable[[Tensor], object], message: str) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> object:
            return change(linear()(x))

    for attack in (*GRADIENTS.values(), partial(attacks.pgd, restarts=2)):
        with pytest.raises(EvaluationError, match=message) as caught:
            attack(Other(), X, Y * 0, 0.1)
        assert "\n" not in str(caught.value)


def test_unknown_attack_is_refused_with_the_choices() -> None:
    with pytest.raises(SpecError, match=r"unknown attack 'fgms' \(did you mean 'fgsm'\?\); choose from bim, fgsm"):
        attacks.sweep("fgms", linear(), X, Y, [0.1])


@pytest.mark.parametrize("name", FOREIGN)
def test_attacks_of_other_libraries_are_refused_with_the_way_to_them(name: str) -> None:
    with pytest.raises(
        SpecError, match=f"attack '{name}' is another library's, which robustmix.transfer_matrix"
    ) as caught:
        attacks.sweep(name, linear(), X, Y, [0.1])
    assert "\n" not in str(caught.value)


def test_everything_is_checked_before_the_first_pass() -> None:
    model = linear()
    model.register_forward_hook(lambda *_: pytest.fail("a pass was made"))
    for budgets in ([0.1, 4], [0.1, float("nan")]):
        with pytest.raises(RobustmixError):
            attacks.sweep("ifgsm", model, X, Y, budgets)
    with pytest.raises(SpecError):
        attacks.sweep("ifgsm", model, X, Y, [0.1, 0.5], steps=2, step_size=0.1)


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        logits = (x * gate).flatten(1)
        gate.mul_(0.5)
        return logits


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(4, 3).double()),
            "has torch.float64 weights, the inputs are torch.float32",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 3, 2).bfloat16(), nn.Flatten()),
            "has torch.bfloat16 weights, the inputs are torch.fl",
        ),
        (
            nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()),
            "the model changes its input, or what a gradient needs, in p",
        ),
        (Gated(), "the model changes its input, or what a gradient needs, in place: let it work on a copy"),
    ],
    ids=["float64", "bfloat16", "first layer in place", "gate in place"],
)
def test_usual_failures_of_a_pass_are_one_line(model: nn.Module, message: str) -> None:
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(EvaluationError, match=message) as caught:
        attacks.fgsm(model, x, y, 0.1)
    assert "\n" not in str(caught.value)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).flatten(1)


@pytest.mark.parametrize("name", ["signs", "noise"])
def test_a_model_that_works_in_place_does_not_move_what_is_returned(name: str) -> None:
    """Where there is no gradient nothing else notices it."""
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    ((_, x_adv),) = attacks.sweep(name, InPlace(), x, y, [8 / 255], restarts=2)
    assert float((x_adv - x).abs().max()) <= 8 / 255 + 1e-6
    assert (x == 0.5).all()


class Failing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("something else of any type")


def test_other_failures_of_a_pass_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^something else of any type$"):
        attacks.fgsm(Failing(4, 3), torch.full((2, 4), 0.5), torch.zeros(2, dtype=torch.int64), 0.1)
