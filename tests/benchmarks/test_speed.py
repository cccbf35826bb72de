"""How long our attacks take beside torchattacks and foolbox in their natural loops, and beside the limit.

The limit is the passes that cannot be avoided, at the same precision and layout. All are timed in one run on the same
networks and images; only ratios mean anything. `scripts/bench` prints them.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
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
# Of what is not to be told apart by a tenth.
FEWER_TURNS: Final = 3


@dataclass(frozen=True)
class Job:
    """What is to be computed.

    Attributes:
        models: how many networks craft and are scored.
        attacks: names.
        eps: budgets, units of 1/255.
        step: length of a step in units of 1/255; None for eps / steps.
        gradients: that the attacks of one source cannot do without, per example; FGSM's is the first of I-FGSM's.
        images: to attack with the narrow and with the full network.
        turns: of ours and of torchattacks, with the narrow and with the full network.
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
OFTEN: Final = {"narrow": 7, "full": 7}
LESS_OFTEN: Final = {"narrow": 7, "full": 3}
JOBS: Final = {
    "FGSM x 8 budgets": Job(1, ("fgsm",), (0.5, 1, 2, 3, 4, 6, 8, 16), None, 1, MANY, OFTEN),
    "I-FGSM-10": Job(1, ("ifgsm",), (4,), None, 10, ALL, OFTEN),
    "3 x 3 matrix, steps of 1/255": Job(3, ("fgsm", "ifgsm"), (1, 2, 4, 8), 1, 10 + 5 + 7 + 8, SOME, LESS_OFTEN),
    "3 x 3 matrix, steps of eps/10": Job(3, ("fgsm", "ifgsm"), (1, 2, 4, 8), None, 1 + 4 * 9, SOME, LESS_OFTEN),
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
    """PreAct ResNet-18s, trained until they have something to lose, as `load_model` gives them."""
    train = _large(load_data("digits").train.in_memory())
    spec = ModelSpec(name="preact_resnet18", width=WIDTHS[size], classes=tuple("0123456789"), shape=(3, 32, 32))
    found = {}
    for seed in range(count):
        torch.manual_seed(seed)
        model = build(spec, *train.channel_statistics()).to(memory_format=torch.channels_last).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for indices in torch.randint(len(train), (64, 32)):
            x, y = train.gather(indices, torch.device("cpu"))
            optimiser.zero_grad()
            F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y).backward()
            optimiser.step()
        with torch.no_grad():
            wrong = float((model.eval()(x).argmax(1) != y).float().mean())
        # A network that guesses has gradients that vanish, at which a CPU computes at another speed.
        assert wrong < 0.2, f"{size} network {seed} errs on {wrong:.0%}"
        found[f"net{seed}"] = model
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


PEERS: Final[dict[str, Callable[[Job, dict[str, nn.Module], Tensor, Tensor], np.ndarray]]] = {
    "torchattacks": by_torchattacks,
    "foolbox": by_foolbox,
}


@dataclass
class Replay:
    """The passes of a call taken once more, each right after the call's own, as bare as it can be.

    These are the limit: what no attack can do without, at the same precision and layout, at the very points where ours
    takes them: where gradients are tiny a CPU computes them more slowly. The same passes minutes later may take half as
    long again on a shared machine; within the same second they do not.

    Attributes:
        seconds: that the replayed passes took.
        gradients: examples at which each network's gradient was taken, by name.
        predictions: examples that each network predicted, by name.
    """

    seconds: float = 0.0
    gradients: Counter[str] = field(default_factory=Counter)
    predictions: Counter[str] = field(default_factory=Counter)


@contextmanager
def replayed(models: dict[str, nn.Module], y: Tensor, precision: CraftPrecision) -> Iterator[Replay]:
    """Replay every pass within; the looks at a few images before the first are a call's own affair, and are not."""
    found = Replay()
    asked: list[tuple[str, Tensor]] = []
    replaying = [False]
    differentiate = torch.autograd.grad

    def again(run: Callable[[], object]) -> None:
        replaying[0] = True
        started = perf_counter()
        run()
        found.seconds += perf_counter() - started
        replaying[0] = False

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            (x,) = args
            if replaying[0] or len(x) <= LOOKED_AT:
                return
            if x.requires_grad:
                asked.append((name, x))
            else:
                found.predictions[name] += len(x)
                again(lambda: module(x).argmax(1))

        return hook

    def gradient(name: str, x: Tensor) -> None:
        with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = models[name](x)
        with torch.enable_grad():
            differentiate(F.cross_entropy(logits.float(), y[: len(x)], reduction="sum"), x)

    def grad(*args: Any, **options: Any) -> Any:
        result = differentiate(*args, **options)
        name, x = asked.pop()
        found.gradients[name] += len(x)
        at = x.detach().requires_grad_()
        again(lambda: gradient(name, at))
        return result

    hooks = [model.register_forward_hook(note(name)) for name, model in models.items()]
    torch.autograd.grad = grad
    try:
        yield found
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


PARTS: Final[Sequence[str]] = ("ours", "torchattacks", "foolbox", "ours, bf16", "ours, compiled")


# All parts take turns, back and forth, so that a machine that slows down for a while slows down all of them.
TAKES: Final = [
    (size, name, turn, part)
    for size in WIDTHS
    for name, job in JOBS.items()
    for turn in range(job.turns[size])
    for part in PARTS[:: -1 if turn % 2 else 1]
    if turn < FEWER_TURNS or part in ("ours", "torchattacks")
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
    if mode == "compiled":
        models = {name: cast(nn.Module, torch.compile(model)) for name, model in models.items()}
        # Compiling takes half a minute, once: what it gains is another question.
        by_us(job, models, x, y)
        errors = timed(benchmark, lambda: by_us(job, models, x, y))
    elif peer is None:
        kind: CraftPrecision = "bf16" if mode == "bf16" else "32"
        with replayed(models, y, kind) as replay:
            errors = timed(benchmark, lambda: by_us(job, models, x, y, kind))
        seconds = benchmark.stats.stats.min - replay.seconds
        benchmark.extra_info.update(seconds=seconds, limit=replay.seconds)
        assert set(replay.gradients.values()) == {job.gradients * len(x)}, "other gradients than it cannot do without"
        scored = len(job.attacks) * len(job.eps) * len(models) * len(x)
        if not mode:
            assert set(replay.predictions.values()) == {scored}, "other predictions than it cannot do without"
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
