"""The attacks that torchattacks and foolbox make and we do not: seeded, watched for NaN, without side effects."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from robustmix.attacks.libraries import MAKERS, Watched, guest, open_foolbox
from robustmix.errors import EvaluationError
from robustmix.spec.attack import MINIMUM_NORM
from robustmix.spec.names import Norm

# Of the standard version (Croce and Hein 2020); torchattacks by itself makes 10 iterations and targets every class.
AUTOATTACK_STEPS: Final = 100
AUTOATTACK_TARGETS: Final = 9
_DLR_CLASSES: Final = 4
_CANDIDATES: Final = 10
_NOISE_STARTS: Final = 256
_NORMS: Final[dict[Norm, str]] = {"linf": "Linf", "l2": "L2"}


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
    with guest(name, model, x, seed) as (victim, number):
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


def check_attack_fits(name: str, classes: int) -> None:
    """Find out whether an attack can be made on models that tell so many classes apart.

    Raises:
        EvaluationError: it cannot.
    """
    if name == "autoattack" and classes < _DLR_CLASSES:
        raise EvaluationError(
            f"autoattack needs at least {_DLR_CLASSES} classes, for its targeted DLR loss; the model has {classes}: "
            "take pgd and square"
        )


def _check_fit(name: str, x: Tensor, y: Tensor, logits: Tensor, norm: Norm, classes: int) -> None:
    if logits.shape[1] != classes:
        raise EvaluationError(f"{name} was to tell {classes} classes apart, but the model has {logits.shape[1]}")
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise EvaluationError(
            f"labels run from {int(y.min())} to {int(y.max())}, but the model tells {classes} classes apart"
        )
    check_attack_fits(name, classes)
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
    victim: Watched,
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
    victim: Watched,
    x: Tensor,
    y: Tensor,
    norm: Norm,
    steps: int,
    classes: int,
    starts: Tensor | None,
) -> Tensor:
    """What a foolbox attack that looks for the smallest perturbation returns for examples that are classified as y."""
    attacks, wrapped = open_foolbox(victim)
    attack: Any
    if name == "deepfool":
        kind = attacks.L2DeepFoolAttack if norm == "l2" else attacks.LinfDeepFoolAttack
        attack = kind(steps=steps, candidates=min(_CANDIDATES, classes))
    elif name == "cw":
        attack = attacks.L2CarliniWagnerAttack(steps=steps)
    else:
        attack = _hopskipjump(attacks.HopSkipJumpAttack)(steps=steps, constraint=norm)
    more = {} if starts is None else {"starting_points": starts}
    crafted: Tensor = attack(wrapped, x, y, epsilons=None, **more)[0]
    # Where C&W finds nothing, foolbox returns a black image, which a model may well take for something else.
    nothing = (crafted == 0).flatten(1).all(dim=1) if name == "cw" else torch.zeros_like(y, dtype=torch.bool)
    return torch.where(nothing.view(-1, *[1] * (x.ndim - 1)), x, crafted)


def _hopskipjump(base: Any) -> Any:
    """foolbox's attack, but for the length of a direction, which it has from all of the batch.

    In L2 an example's step would be shorter the more examples there are: a batch of 100 found perturbations a quarter
    longer than batches of 10.
    """

    class PerExample(base):  # type: ignore[misc]
        def approximate_gradients(self, *args: Any) -> Any:
            directions = super().approximate_gradients(*args)
            sizes = directions.flatten(start=1).norms.l2(axis=-1)
            return directions / (sizes.reshape((-1, *[1] * (directions.ndim - 1))) + 1e-12)

    return PerExample


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
