"""Bit-equality with torchattacks and foolbox, within the group of implementations that share one form.

torchattacks' BIM is not among them: it clips to bounds per pixel and may differ in the last bit. Neither is anybody's
attack in L2: each divides by the length of a gradient in its own way, so that results agree up to rounding.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix import attacks
from robustmix.data import TensorSplit, load_data
from robustmix.models import ModelSpec, build
from robustmix.spec.names import ModelName

torchattacks: Any = pytest.importorskip("torchattacks", reason="pip install robustmix[attacks]")
foolbox: Any = pytest.importorskip("foolbox", reason="pip install robustmix[attacks]")

BUDGETS: Final = (4 / 255, 32 / 255)


@dataclass(frozen=True)
class Victim:
    """A network, images and labels to attack it on, and how many steps that takes in reasonable time."""

    model: nn.Module
    x: Tensor
    y: Tensor
    steps: int

    def errors(self, x: Tensor) -> Tensor:
        """Which of some inputs it gets wrong."""
        with torch.no_grad():
            wrong: Tensor = self.model(x).argmax(dim=1) != self.y
        return wrong


Peer = Callable[[Victim, float, float], Tensor]


@cache
def trained(name: ModelName, width: int, channels: int, scale: int, batch: int, steps: int) -> Victim:
    """A briefly trained network, and test images that it is right about for the most part."""
    data = load_data("digits")

    def images(split: TensorSplit) -> Tensor:
        return split.images.repeat(1, channels, 1, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    train, test = (TensorSplit(images(split), split.labels) for split in (data.train, data.test))
    spec = ModelSpec(name=name, width=width, classes=data.classes, shape=(channels, 8 * scale, 8 * scale))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build(spec, *train.channel_statistics()).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for indices in torch.randperm(len(train)).split(64)[:22]:
            x, y = train.gather(indices, torch.device("cpu"))
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    # torchattacks averages the loss over the batch, which is exact for a power of two.
    x, y = test.gather(torch.arange(batch), torch.device("cpu"))
    return Victim(model.eval(), x, y, steps)


def digits_net() -> Victim:
    return trained("preact_resnet18", 4, 1, 1, batch=32, steps=10)


def cifar_net() -> Victim:
    """Of the size of CIFAR's: digits drawn four times as large, in three channels."""
    return trained("resnet18", 8, 3, 4, batch=8, steps=4)


@pytest.fixture(scope="module", params=[torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def layout(request: pytest.FixtureRequest) -> torch.memory_format:
    assert isinstance(request.param, torch.memory_format)
    return request.param


@pytest.fixture(scope="module", params=[digits_net, cifar_net], ids=["digits", "3x32x32"])
def victim(request: pytest.FixtureRequest, layout: torch.memory_format) -> Victim:
    found: Victim = request.param()
    return replace(
        found, model=deepcopy(found.model).to(memory_format=layout), x=found.x.contiguous(memory_format=layout)
    )


def _torchattacks(kind: str, **options: Any) -> Peer:
    def craft(victim: Victim, eps: float, step: float) -> Tensor:
        own = {} if kind == "FGSM" else {"alpha": step, "steps": victim.steps}
        crafted: Tensor = getattr(torchattacks, kind)(victim.model, eps=eps, **own, **options)(victim.x, victim.y)
        return crafted

    return craft


def _foolbox(kind: str) -> Peer:
    def craft(victim: Victim, eps: float, step: float) -> Tensor:
        own = {} if "FastGradient" in kind else {"abs_stepsize": step, "steps": victim.steps}
        attack = getattr(foolbox.attacks, kind)(random_start=False, **own)
        wrapped = foolbox.PyTorchModel(victim.model, bounds=(0, 1), device="cpu")
        criterion = foolbox.criteria.Misclassification(victim.y)
        _, crafted, success = attack(wrapped, victim.x, criterion, epsilons=eps)
        assert isinstance(crafted, Tensor)
        assert torch.equal(success, victim.errors(crafted)), "foolbox counts other errors on its own inputs"
        return crafted

    return craft


ONE_STEP: Final[dict[str, Peer]] = {
    "torchattacks.FGSM": _torchattacks("FGSM"),
    "foolbox.LinfFastGradientAttack": _foolbox("LinfFastGradientAttack"),
}
ITERATED: Final[dict[str, Peer]] = {
    "torchattacks.PGD": _torchattacks("PGD", random_start=False),
    "foolbox.LinfPGD": _foolbox("LinfPGD"),
    "foolbox.LinfBasicIterativeAttack": _foolbox("LinfBasicIterativeAttack"),
}
ONE_STEP_L2: Final[dict[str, Peer]] = {"foolbox.L2FastGradientAttack": _foolbox("L2FastGradientAttack")}
ITERATED_L2: Final[dict[str, Peer]] = {
    "foolbox.L2PGD": _foolbox("L2PGD"),
    "foolbox.L2BasicIterativeAttack": _foolbox("L2BasicIterativeAttack"),
}


@pytest.mark.parametrize("peer", ONE_STEP)
def test_fgsm_is_bit_for_bit_that_of(peer: str, victim: Victim) -> None:
    for eps, ours in attacks.sweep("fgsm", victim.model, victim.x, victim.y, BUDGETS):
        theirs = ONE_STEP[peer](victim, eps, eps)
        assert torch.equal(ours, theirs)
        assert torch.equal(victim.errors(ours), victim.errors(theirs))


@pytest.mark.parametrize("peer", ITERATED)
def test_ifgsm_is_bit_for_bit_that_of(peer: str, victim: Victim) -> None:
    for eps, ours in attacks.sweep("ifgsm", victim.model, victim.x, victim.y, BUDGETS, victim.steps):
        theirs = ITERATED[peer](victim, eps, eps / victim.steps)
        assert torch.equal(ours, theirs)
        assert torch.equal(victim.errors(ours), victim.errors(theirs))


@pytest.mark.parametrize("peer", ITERATED)
def test_ifgsm_with_steps_beyond_the_budget_is_bit_for_bit_that_of(peer: str, victim: Victim) -> None:
    """Here the projection is at work in most iterations."""
    eps = BUDGETS[1]
    ours = attacks.ifgsm(victim.model, victim.x, victim.y, eps, victim.steps, eps / 2)
    assert torch.equal(ours, ITERATED[peer](victim, eps, eps / 2))


@pytest.mark.parametrize(("decay", "stretch"), [(1.0, 1), (0.5, 2)])
def test_mifgsm_is_bit_for_bit_that_of_torchattacks(victim: Victim, decay: float, stretch: float) -> None:
    eps, steps = BUDGETS[1], victim.steps
    ours = attacks.mifgsm(victim.model, victim.x, victim.y, eps, steps, stretch * eps / steps, decay=decay)
    assert torch.equal(ours, _torchattacks("MIFGSM", decay=decay)(victim, eps, stretch * eps / steps))


@pytest.mark.parametrize("peer", ONE_STEP_L2 | ITERATED_L2)
def test_l2_is_up_to_rounding_that_of(peer: str, victim: Victim) -> None:
    eps, one_step = 0.5, peer in ONE_STEP_L2
    step = eps if one_step else 2 * eps / victim.steps
    theirs = (ONE_STEP_L2 | ITERATED_L2)[peer](victim, eps, step)
    if one_step:
        ours = attacks.fgsm(victim.model, victim.x, victim.y, eps, norm="l2")
    else:
        ours = attacks.ifgsm(victim.model, victim.x, victim.y, eps, victim.steps, step, norm="l2")
    apart = (ours - theirs).flatten(1).norm(dim=1)
    # Where rounding carries an example across a kink of the network, its next gradient is another.
    assert apart.quantile(0.75) < 1e-5 * eps
    assert apart.max() < 0.05 * eps
    assert torch.equal(victim.errors(ours), victim.errors(theirs))


def test_the_networks_have_something_to_lose_and_lose_it(victim: Victim) -> None:
    """Without correct predictions to begin with and errors to end with, equal counts would say little."""
    clean = float(victim.errors(victim.x).double().mean())
    attacked = attacks.ifgsm(victim.model, victim.x, victim.y, BUDGETS[1], victim.steps)
    assert clean < 0.6
    assert float(victim.errors(attacked).double().mean()) > clean + 0.25
