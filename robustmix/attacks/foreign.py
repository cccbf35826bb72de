"""Attacks by torchattacks and foolbox: as they are, but seeded, watched for NaN and without side effects."""

import logging
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata, util
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustmix.attacks.victim import frozen
from robustmix.errors import EvaluationError, SpecError
from robustmix.rng import Stream, generator
from robustmix.spec.attack import MINIMUM_NORM
from robustmix.spec.names import Norm
from robustmix.units import IMAGES

Peer = Literal["torchattacks", "foolbox"]

MAKERS: Final[dict[str, Peer]] = {
    "autoattack": "torchattacks",
    "square": "torchattacks",
    "deepfool": "foolbox",
    "cw": "foolbox",
    "hopskipjump": "foolbox",
}
# Of the standard version (Croce and Hein 2020); torchattacks by itself makes 10 iterations and targets every class.
AUTOATTACK_STEPS: Final = 100
AUTOATTACK_TARGETS: Final = 9
_DLR_CLASSES: Final = 4
_CANDIDATES: Final = 10
_NOISE_STARTS: Final = 256
_NORMS: Final[dict[Norm, str]] = {"linf": "Linf", "l2": "L2"}


def check_installed(names: Iterable[str], impls: Iterable[str] = ()) -> None:
    """Check that the libraries that make some attacks are there.

    Args:
        names: attacks, ours among them or not.
        impls: whose implementations are asked for, ours among them or not.

    Raises:
        SpecError: a library is missing.
    """
    makers = {f"attack {name!r}": str(MAKERS[name]) for name in names if name in MAKERS}
    makers |= {f"impl = {impl!r}": impl for impl in impls if impl in MAKERS.values()}
    for what, library in makers.items():
        if util.find_spec(library) is None:
            raise SpecError(f"{what} needs {library}, which is not installed: pip install 'robustmix[attacks]'")


def library(name: str, impl: str) -> str | None:
    """The library that makes an attack, with its version, since another one may give other results; None for ours."""
    maker = MAKERS.get(name, impl if impl in MAKERS.values() else None)
    return f"{maker} {metadata.version(maker)}" if maker else None


def craft_foreign(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | None,
    *,
    norm: Norm,
    steps: int,
    options: Mapping[str, float],
    classes: int,
    seed: Sequence[int],
) -> Tensor:
    """One of the attacks that torchattacks or foolbox make.

    ``autoattack`` and ``square`` leave an example clean that they do not break, so transfer from them says little.
    ``deepfool``, ``cw`` and ``hopskipjump`` look for the smallest perturbation: an example that is misclassified
    already stays as it is, with norm 0, and so does one for which ``cw`` finds nothing; of the others whatever the
    library returns is taken, broken or not.

    Args:
        name: ``autoattack``, ``square``, ``deepfool``, ``cw`` or ``hopskipjump``.
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float, in [0, 1]; images [B, C, H, W] for ``autoattack`` and ``square``.
        y: labels to move away from, int64 [B].
        eps: budget, pixel units; None for an attack that looks for the smallest perturbation.
        norm: of the budget, or that is minimised.
        steps: iterations of ``deepfool``, ``cw`` and ``hopskipjump``.
        options: ``queries`` per example of ``square``.
        classes: K.
        seed: of all random numbers.

    Returns:
        Adversarial inputs [B, ...], as x.

    Raises:
        EvaluationError: shape, labels or classes do not fit the attack or the model, a logit or a gradient was NaN or
            infinite, or ``hopskipjump`` has no image to start from.
    """
    with _guest(name, model, x, seed) as (victim, number):
        x_adv, y = x.detach().clone(memory_format=torch.contiguous_format), y.detach().clone()
        with torch.no_grad():
            logits = victim(x_adv)
        _check_fit(name, x, y, logits, norm, classes)
        predicted = logits.argmax(dim=1)
        if name in MINIMUM_NORM:
            right = predicted == y
            if right.any():
                starts = _starts(victim, x_adv, y, predicted, right, norm) if name == "hopskipjump" else None
                x_adv[right] = _minimise(name, victim, x_adv[right], y[right], norm, steps, classes, starts)
        elif len(x):
            x_adv = _attack_within(name, victim, eps, norm, options, classes, number)(x_adv, y)
        return torch.empty_like(x).copy_(x_adv.detach())


def craft_by_peer(
    impl: Peer,
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    steps: int,
    length: float,
    seed: Sequence[int],
) -> Tensor:
    """FGSM, I-FGSM or PGD in L-infinity up the cross-entropy, as torchattacks or foolbox make it.

    Args:
        impl: the library.
        name: ``fgsm``, ``ifgsm`` or ``pgd``, whose start is random.
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float, in [0, 1].
        y: labels to move away from, int64 [B].
        eps: budget, pixel units.
        steps: gradients.
        length: of a step, pixel units.
        seed: of the random start.

    Returns:
        Adversarial inputs [B, ...], as x.

    Raises:
        EvaluationError: a logit or a gradient was NaN or infinite.
    """
    start = name == "pgd"
    with _guest(name, model, x, seed) as (victim, _):
        attack: Any
        x_adv, y = x.detach().clone(), y.detach().clone()
        if impl == "torchattacks":
            import torchattacks

            iterated = {"alpha": length, "steps": steps, "random_start": start}
            attack = torchattacks.FGSM(victim, eps) if name == "fgsm" else torchattacks.PGD(victim, eps, **iterated)
            x_adv = attack(x_adv, y)
        else:
            attacks, wrapped = _foolbox(victim)
            if name == "fgsm":
                attack = attacks.LinfFastGradientAttack()
            else:
                attack = attacks.LinfPGD(abs_stepsize=length, steps=steps, random_start=start)
            x_adv = attack(wrapped, x_adv, y, epsilons=eps)[1]
        return torch.empty_like(x).copy_(x_adv.detach())


class _Watched(nn.Module):
    """A model as the libraries see it: it tells them the device, and whether a number was none."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        # Both libraries look for the device of the first parameter or move the model to one; a model may have none.
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of inputs [B, ...]."""
        if x.requires_grad:
            x.register_hook(self._note)
        logits: Tensor = self.model(x)
        self._note(logits.detach())
        return logits

    def _note(self, numbers: Tensor) -> None:
        self.finite = self.finite & numbers.isfinite().all()


@contextmanager
def _guest(name: str, model: nn.Module, x: Tensor, seed: Sequence[int]) -> Iterator[tuple[_Watched, int]]:
    """A model for a library to work on, and a seed, so that the same call gives the same bits and leaves no trace."""
    number = int(generator(seed[0], Stream.ATTACK, *seed[1:]).integers(2**31))
    on_mps = x.device.type == "mps"
    # torchattacks seeds every CUDA device, not only the model's.
    cuda_devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    states = random.getstate(), np.random.get_state()
    handlers = logging.root.handlers[:]
    with (
        torch.random.fork_rng(["mps"] if on_mps else cuda_devices, device_type="mps" if on_mps else "cuda"),
        frozen(model),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        victim = _Watched(model, x.device).eval()
        try:
            torch.manual_seed(number)
            random.seed(number)
            np.random.seed(number)
            yield victim, number
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            # foolbox logs by way of the root logger, which thereby gets a handler that nobody asked for.
            logging.root.handlers[:] = handlers
    if not victim.finite:
        raise EvaluationError(f"{name}: a logit or a gradient is NaN or infinite: the loss or the model overflows")


def _check_fit(name: str, x: Tensor, y: Tensor, logits: Tensor, norm: Norm, classes: int) -> None:
    if logits.shape[1] != classes:
        raise EvaluationError(f"{name} was to tell {classes} classes apart, but the model has {logits.shape[1]}")
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise EvaluationError(
            f"labels run from {int(y.min())} to {int(y.max())}, but the model tells {classes} classes apart"
        )
    if name == "autoattack" and classes < _DLR_CLASSES:
        raise EvaluationError(
            f"autoattack needs at least {_DLR_CLASSES} classes, for its targeted DLR loss; the model has {classes}: "
            "take pgd and square"
        )
    if MAKERS[name] == "torchattacks" and (x.ndim != 4 or (norm == "l2" and not _squares_fit(*x.shape[2:]))):
        raise EvaluationError(
            f"{name} takes images [B, C, H, W], in l2 of at least 5x5 and about as high as wide; got {list(x.shape)}"
        )


def _squares_fit(height: int, width: int) -> bool:
    """Whether the largest square of the Square attack in L2, of odd side on 80 % of the pixels, lies in the image."""
    side = max(round(math.sqrt(0.8 * height * width)), 3) | 1
    return min(height, width) >= max(side, 5)


def _attack_within(
    name: str,
    victim: _Watched,
    eps: float | None,
    norm: Norm,
    options: Mapping[str, float],
    classes: int,
    number: int,
) -> Any:
    """A torchattacks attack with a budget."""
    import torchattacks

    shared = {"norm": _NORMS[norm], "eps": eps, "seed": number}
    if name == "square":
        return torchattacks.Square(victim, n_queries=int(options["queries"]), **shared)
    # The number of classes decides on nothing but that of targets, which is one less.
    targeted = min(classes, AUTOATTACK_TARGETS + 1)
    attack = torchattacks.AutoAttack(victim, version="standard", n_classes=targeted, **shared)
    for part in attack._autoattack.attacks:
        if not isinstance(part, torchattacks.Square):
            part.steps = AUTOATTACK_STEPS
    return attack


def _minimise(
    name: str,
    victim: _Watched,
    x: Tensor,
    y: Tensor,
    norm: Norm,
    steps: int,
    classes: int,
    starts: Tensor | None,
) -> Tensor:
    """What a foolbox attack that looks for the smallest perturbation returns for examples that are classified as y."""
    attacks, wrapped = _foolbox(victim)
    attack: Any
    if name == "deepfool":
        kind = attacks.L2DeepFoolAttack if norm == "l2" else attacks.LinfDeepFoolAttack
        attack = kind(steps=steps, candidates=min(_CANDIDATES, classes))
    elif name == "cw":
        attack = attacks.L2CarliniWagnerAttack(steps=steps)
    else:
        attack = attacks.HopSkipJumpAttack(steps=steps, constraint=norm)
    more = {} if starts is None else {"starting_points": starts}
    crafted: Tensor = attack(wrapped, x, y, epsilons=None, **more)[0]
    # Where C&W finds nothing, foolbox returns a black image, which a model may well take for something else.
    nothing = (crafted == 0).flatten(1).all(dim=1) if name == "cw" else torch.zeros_like(y, dtype=torch.bool)
    return torch.where(nothing.view(-1, *[1] * (x.ndim - 1)), x, crafted)


def _starts(victim: nn.Module, x: Tensor, y: Tensor, predicted: Tensor, right: Tensor, norm: Norm) -> Tensor:
    """For each example that is classified right the nearest of the batch that the model classifies otherwise.

    Where the batch has none, as the last one of a single example has not, the nearest of some images of uniform noise.
    """
    found, lone = _nearest(x[right], y[right], x, predicted, norm)
    if lone.any():
        noise = torch.rand(_NOISE_STARTS, *x.shape[1:], device=x.device, dtype=x.dtype)
        with torch.no_grad():
            seen = victim(noise).argmax(dim=1)
        found[lone], lone = _nearest(x[right][lone], y[right][lone], noise, seen, norm)
    if count := int(lone.sum()):
        raise EvaluationError(
            f"hopskipjump starts from an image that the model classifies otherwise: for {count} of {len(x)} examples "
            "there is none in the batch, nor is noise one: take larger batches, or examples of several classes"
        )
    return found


def _nearest(x: Tensor, y: Tensor, images: Tensor, predicted: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The nearest image to each example that is not of its class, and for which examples there is none."""
    distances = torch.cdist(x.flatten(1), images.flatten(1), p=2 if norm == "l2" else math.inf)
    distances[y.unsqueeze(1) == predicted] = math.inf
    nearest, index = distances.min(dim=1)
    return images[index], nearest.isinf()


def _foolbox(victim: _Watched) -> tuple[Any, Any]:
    """foolbox' attacks, and the model as they take it."""
    with warnings.catch_warnings():
        # It imports from a part of scipy that will go.
        warnings.simplefilter("ignore", DeprecationWarning)
        from foolbox import attacks
        from foolbox.models.pytorch import PyTorchModel
    return attacks, PyTorchModel(victim, bounds=(IMAGES.low, IMAGES.high), device=victim.place.device)
