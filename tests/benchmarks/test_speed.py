"""How long our attacks take beside torchattacks and foolbox in their natural loops, and beside the limit.

The limit is the passes that cannot be avoided, at the same precision and layout, on prepared batches. All are timed in
one run on the same networks and images; only ratios mean anything. `scripts/bench` prints them.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any, Final, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix import transfer_matrix
from robustmix.data import TensorSplit, load_data
from robustmix.matrix import LOOKED_AT
from robustmix.models import ModelSpec, build
from robustmix.spec.names import CraftPrecision

torchattacks: Any = pytest.importorskip("torchattacks", reason="pip install robustmix[attacks]")
foolbox: Any = pytest.importorskip("foolbox", reason="pip install robustmix[attacks]")

# Speed is measured here, not behaviour: the compiler's own warnings are nobody's business.
pytestmark = pytest.mark.filterwarnings("default")

WIDTHS: Final = {"narrow": 16, "full": 64}
STEPS: Final = 10
# Of what is to be told apart by a few hundredths, of what by a tenth, and of the rest.
TURNS: Final = {"limit": 15, "ours": 15, "torchattacks": 7}
FEWER_TURNS: Final = 3


@dataclass(frozen=True)
class Job:
    """What is to be computed.

    Attributes:
        models: how many networks craft and are scored.
        attacks: names.
        eps: budgets, units of 1/255.
        step: length of a step in units of 1/255; None for eps / steps.
        gradients: that the attacks of one source cannot do without, each by itself, per example.
        images: to attack with the narrow and with the full network.
        turns: at most, with the narrow and with the full network.
    """

    models: int
    attacks: tuple[str, ...]
    eps: tuple[float, ...]
    step: float | None
    gradients: int
    images: dict[str, int]
    turns: dict[str, int]

    @property
    def lengths(self) -> list[float]:
        return [eps / 255 for eps in self.eps]

    def step_at(self, eps: float) -> float:
        return (eps / STEPS if self.step is None else self.step) / 255


MANY: Final = {"narrow": 512, "full": 128}
ALL: Final = {"narrow": 128, "full": 32}
SOME: Final = {"narrow": 32, "full": 32}
OFTEN: Final = {"narrow": 15, "full": 15}
LESS_OFTEN: Final = {"narrow": 15, "full": 5}
JOBS: Final = {
    "FGSM x 8 budgets": Job(1, ("fgsm",), (0.5, 1, 2, 3, 4, 6, 8, 16), None, 1, MANY, OFTEN),
    "I-FGSM-10": Job(1, ("ifgsm",), (4,), None, 10, ALL, OFTEN),
    "3 x 3 matrix, steps of 1/255": Job(3, ("fgsm", "ifgsm"), (1, 2, 4, 8), 1, 1 + 10 + 5 + 7 + 8, SOME, LESS_OFTEN),
    "3 x 3 matrix, steps of eps/10": Job(3, ("fgsm", "ifgsm"), (1, 2, 4, 8), None, 1 + 1 + 4 * 9, SOME, LESS_OFTEN),
}


@cache
def images(count: int) -> tuple[Tensor, Tensor]:
    """Real digits drawn at the size of CIFAR's images."""
    x, y = _large(load_data("digits").train.in_memory()).gather(torch.arange(count), torch.device("cpu"))
    return x, y


def _large(split: TensorSplit) -> TensorSplit:
    return TensorSplit(
        split.images.repeat(1, 3, 1, 1).repeat_interleave(4, 2).repeat_interleave(4, 3).contiguous(), split.labels
    )


@cache
def networks(size: str, count: int) -> dict[str, nn.Module]:
    """PreAct ResNet-18s, trained for a moment so that they have something to lose, as `load_model` gives them."""
    train = _large(load_data("digits").train.in_memory())
    spec = ModelSpec(name="preact_resnet18", width=WIDTHS[size], classes=tuple("0123456789"), shape=(3, 32, 32))
    found = {}
    for seed in range(count):
        torch.manual_seed(seed)
        model = build(spec, *train.channel_statistics()).to(memory_format=torch.channels_last).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for indices in torch.randint(len(train), (32, 32)):
            x, y = train.gather(indices, torch.device("cpu"))
            optimiser.zero_grad()
            F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y).backward()
            optimiser.step()
        found[f"net{seed}"] = model.eval()
    return found


Predictions = dict[tuple[str, str, str, float], Tensor]


def by_us(job: Job, models: dict[str, nn.Module], x: Tensor, y: Tensor, precision: CraftPrecision = "32") -> np.ndarray:
    """Our own API at its defaults; errors in a fixed order."""
    step = None if job.step is None else job.step / 255
    table = transfer_matrix(models, x, y, job.attacks, job.lengths, STEPS, step, precision=precision)
    table = table[table["role"] != "clean"].sort_values(["source", "target", "attack", "eps_255"])
    return table["errors"].to_numpy()


def by_torchattacks(job: Job, models: dict[str, nn.Module], x: Tensor, y: Tensor) -> np.ndarray:
    """The loop that its users write: an attack object per budget, then a prediction per target."""
    errors = {}
    for target in models.values():
        with torch.no_grad():
            target(x).argmax(1)
    for source, model in models.items():
        for name in job.attacks:
            for eps in job.eps:
                if name == "fgsm":
                    attack = torchattacks.FGSM(model, eps=eps / 255)
                else:
                    step = job.step_at(eps)
                    attack = torchattacks.PGD(model, eps=eps / 255, alpha=step, steps=STEPS, random_start=False)
                x_adv = attack(x, y)
                for target, other in models.items():
                    with torch.no_grad():
                        errors[source, target, name, eps] = int((other(x_adv).argmax(1) != y).sum())
    return np.array([errors[key] for key in sorted(errors)])


def by_foolbox(job: Job, models: dict[str, nn.Module], x: Tensor, y: Tensor) -> np.ndarray:
    """The loop that its users write: all budgets in one call where the step allows it, then a prediction per target."""
    errors = {}
    for target in models.values():
        with torch.no_grad():
            target(x).argmax(1)
    for source, model in models.items():
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        for name in job.attacks:
            attack = foolbox.attacks.FGSM()
            if name != "fgsm":
                rule = {"rel_stepsize": 1 / STEPS} if job.step is None else {"abs_stepsize": job.step / 255}
                attack = foolbox.attacks.LinfPGD(steps=STEPS, random_start=False, **rule)
            _, clipped, _ = attack(wrapped, x, y, epsilons=job.lengths)
            for eps, x_adv in zip(job.eps, clipped, strict=True):
                for target, other in models.items():
                    with torch.no_grad():
                        errors[source, target, name, eps] = int((other(x_adv).argmax(1) != y).sum())
    return np.array([errors[key] for key in sorted(errors)])


@dataclass(frozen=True)
class Passes:
    """What one network was asked in an attack: the batches at which gradients were taken, and those predicted."""

    gradients: list[Tensor]
    predictions: list[Tensor]


@cache
def unavoidable(size: str, name: str) -> dict[str, Passes]:
    """The passes that no attack by itself can do without, at the very points where our own takes them.

    FGSM's gradient is the first of I-FGSM's: each counts it, since each is computed, claimed and resumed by itself.

    Very sure networks have gradients so small that a CPU computes them more slowly, at some points more than at others:
    the same passes elsewhere would be another amount of work. Ours may take no more gradients than the job asks for;
    the predictions by which a call looks its networks over first are its own affair and left out.
    """
    job = JOBS[name]
    models, x, y = prepared(size, job, torch.channels_last)
    passes = {key: Passes([], []) for key in models}

    def note(key: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            (at,) = args
            kind = passes[key].gradients if at.requires_grad else passes[key].predictions
            kind.append(at.detach().clone())

        return hook

    hooks = [model.register_forward_pre_hook(note(key)) for key, model in models.items()]
    by_us(job, models, x, y)
    for hook in hooks:
        hook.remove()
    scored = len(job.attacks) * len(job.eps) * len(models) * len(x)
    for asked in passes.values():
        assert sum(map(len, asked.gradients)) == job.gradients * len(x)
        while sum(map(len, asked.predictions)) > scored:
            asked.predictions.pop(0)
        assert sum(map(len, asked.predictions)) == scored
    return passes


def limit(models: dict[str, nn.Module], y: Tensor, passes: dict[str, Passes], precision: CraftPrecision) -> None:
    """Only the passes, on prepared batches."""
    for name, model in models.items():
        for batch in passes[name].gradients:
            at = batch.detach().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                logits = model(at)
            torch.autograd.grad(F.cross_entropy(logits.float(), y[: len(at)], reduction="sum"), at)
    with torch.inference_mode():
        for name, model in models.items():
            for batch in passes[name].predictions:
                model(batch).argmax(1)


PEERS: Final[dict[str, Callable[[Job, dict[str, nn.Module], Tensor, Tensor], np.ndarray]]] = {
    "torchattacks": by_torchattacks,
    "foolbox": by_foolbox,
}


@contextmanager
def within_passes(models: dict[str, nn.Module]) -> Iterator[list[float]]:
    """The seconds that each pass of the networks takes, forward or backward, as it happens.

    What a call takes beside them is its own work. Both are of the same moments, so that their ratio does not depend on
    how fast the machine happens to be. The looks at a few images before the first pass are own work as well.
    """
    seconds: list[float] = []
    begun = [0.0]
    differentiate = torch.autograd.grad

    def begin(module: nn.Module, args: tuple[Tensor]) -> None:
        begun[0] = perf_counter()

    def end(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        if len(out) > LOOKED_AT:
            seconds.append(perf_counter() - begun[0])

    def grad(*args: Any, **options: Any) -> Any:
        started = perf_counter()
        found = differentiate(*args, **options)
        seconds.append(perf_counter() - started)
        return found

    hooks = [model.register_forward_pre_hook(begin) for model in models.values()]
    hooks += [model.register_forward_hook(end) for model in models.values()]
    torch.autograd.grad = grad
    try:
        yield seconds
    finally:
        torch.autograd.grad = differentiate
        for hook in hooks:
            hook.remove()


def timed(benchmark: Any, run: Callable[[], Any]) -> Any:
    """The result of a function that is timed once; the turns repeat it."""
    return benchmark.pedantic(run, rounds=1, iterations=1)


def prepared(size: str, job: Job, layout: torch.memory_format) -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    x, y = images(job.images[size])
    models = networks(size, job.models)
    if layout == torch.contiguous_format:
        models = {name: deepcopy(model).to(memory_format=layout) for name, model in models.items()}
    return models, x.contiguous(memory_format=layout), y


@cache
def our_errors(size: str, name: str) -> np.ndarray:
    models, x, y = prepared(size, JOBS[name], torch.channels_last)
    return by_us(JOBS[name], models, x, y)


PARTS: Final[Sequence[str]] = (
    "limit",
    "ours",
    "torchattacks",
    "foolbox",
    "limit, bf16",
    "ours, bf16",
    "ours, compiled",
)


# All parts take turns, back and forth, so that a machine that slows down for a while slows down all of them.
TAKES: Final = [
    (size, name, turn, part)
    for size in WIDTHS
    for name, job in JOBS.items()
    for turn in range(job.turns[size])
    for part in PARTS[:: -1 if turn % 2 else 1]
    if turn < TURNS.get(part, FEWER_TURNS)
]


@pytest.mark.parametrize(("size", "name", "turn", "part"), TAKES)
def test_attack(benchmark: Any, size: str, name: str, turn: int, part: str) -> None:
    job = JOBS[name]
    who, _, mode = part.partition(", ")
    if mode == "compiled" and job.models > 1:
        pytest.skip("compiling three networks takes minutes and tells no more than one does")
    peer = PEERS.get(who)
    layout = torch.contiguous_format if peer else torch.channels_last
    models, x, y = prepared(size, job, layout)
    benchmark.group = f"{name}, {size}"
    benchmark.extra_info.update(job=name, size=size, part=part, images=len(x), threads=torch.get_num_threads())
    if who == "limit":
        passes = unavoidable(size, name)
        for model in models.values():
            model.requires_grad_(False)
        timed(benchmark, lambda: limit(models, y, passes, "bf16" if mode else "32"))
        for model in models.values():
            model.requires_grad_(True)
        return
    if peer is None:
        if mode == "compiled":
            models = {name: cast(nn.Module, torch.compile(model)) for name, model in models.items()}
            # Compiling takes half a minute, once: what it gains is another question.
            by_us(job, models, x, y)
        kind: CraftPrecision = "bf16" if mode == "bf16" else "32"
        with within_passes(models) as seconds:
            errors = timed(benchmark, lambda: by_us(job, models, x, y, kind))
        if not mode:
            benchmark.extra_info["passes"] = sum(seconds)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            errors = timed(benchmark, lambda: peer(job, models, x, y))
    ours = our_errors(size, name)
    if not mode:
        assert errors.tolist() == ours.tolist(), "not the same errors"
    benchmark.extra_info.update(
        errors=int(errors.sum()), of=len(x) * len(errors), changed=float(np.abs(errors - ours).max() / len(x))
    )
