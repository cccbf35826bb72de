"""The attacks as functions of a model, inputs, labels and budgets; all lengths in pixel units."""

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Final, get_args

import torch
from torch import Tensor, nn

from robustmix.attacks.arguments import check_network, check_several, check_text, check_whole
from robustmix.attacks.geometry import longest
from robustmix.attacks.gradient import ascend, baseline, restarted
from robustmix.attacks.losses import loss_named
from robustmix.attacks.victim import Victim
from robustmix.errors import EvaluationError, SpecError
from robustmix.spec.attack import DEFAULT_DECAY, DEFAULT_STEPS, FOREIGN, ITERATED, MOST_DECAY, PGD_STRIDE, TAKES, Course
from robustmix.spec.names import ALIASES, ATTACKS, AttackName, Norm, attack_name, unknown
from robustmix.units import IMAGES, check_length, described

NORMS: Final[tuple[Norm, ...]] = get_args(Norm)
NATIVE: Final = tuple(name for name in ATTACKS if name not in FOREIGN)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, loss: str = "ce", norm: Norm = "linf") -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015, section 4): one full step along the gradient's sign.

    Args:
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float32 or float64, in [0, 1], on the model's device.
        y: true labels, int64 [B].
        eps: budget, pixel units (``4/255``).
        loss: to maximise: ``ce``, ``logodds``, ``margin`` or ``dlr``.
        norm: of the budget, ``linf`` or ``l2``; in L2 the step is along the gradient over its length.

    Returns:
        Adversarial inputs [B, ...] within eps of x and within [0, 1].

    Raises:
        SpecError: eps is negative, not finite or longer than any perturbation; or there is no such loss.
        EvaluationError: x, y or the gradient is unusable.
    """
    return next(sweep("fgsm", model, x, y, [eps], loss=loss, norm=norm))[1]


def ifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = DEFAULT_STEPS,
    step_size: float | None = None,
    loss: str = "ce",
    norm: Norm = "linf",
) -> Tensor:
    """Iterated FGSM (Kurakin et al. 2017, eq. 2; also BIM), projected onto the budget after every step.

    Args:
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float32 or float64, in [0, 1], on the model's device.
        y: true labels, int64 [B].
        eps: budget, pixel units (``4/255``).
        steps: number of gradients.
        step_size: length of a step, pixel units; eps / steps if not given (Zhang et al. 2018, "equal step size").
        loss: to maximise: ``ce``, ``logodds``, ``margin`` or ``dlr``.
        norm: of the budget, ``linf`` or ``l2``.

    Returns:
        Adversarial inputs [B, ...] within eps of x and within [0, 1].

    Raises:
        SpecError: a length is unusable, or steps x step_size is less than eps, which could never be reached; or there
            is no such loss.
        EvaluationError: x, y or a gradient is unusable.
    """
    return next(sweep("ifgsm", model, x, y, [eps], steps, step_size, loss, norm))[1]


def mifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = DEFAULT_STEPS,
    step_size: float | None = None,
    loss: str = "ce",
    norm: Norm = "linf",
    decay: float = DEFAULT_DECAY,
) -> Tensor:
    """Momentum iterative FGSM (Dong et al. 2018, eq. 6 and 7): as `ifgsm`, along the accumulated gradients.

    Args and errors are those of `ifgsm`; ``decay``, from 0 to 2, is that of the momentum, in which every gradient is
    first divided by its 1-norm.
    """
    return next(sweep("mifgsm", model, x, y, [eps], steps, step_size, loss, norm, decay=decay))[1]


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = DEFAULT_STEPS,
    step_size: float | None = None,
    loss: str = "ce",
    norm: Norm = "linf",
    restarts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018): as `ifgsm`, from uniformly random starts in the ball.

    Args and errors are those of `ifgsm`, but the step is 2.5 eps / steps if not given. Of ``restarts`` starts, each
    example keeps the one with the largest margin against its label; the starts are a function of ``seed``.
    """
    return next(sweep("pgd", model, x, y, [eps], steps, step_size, loss, norm, restarts=restarts, seed=seed))[1]


def sweep(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Sequence[float],
    steps: int = DEFAULT_STEPS,
    step_size: float | None = None,
    loss: str = "ce",
    norm: Norm = "linf",
    *,
    restarts: int = 1,
    decay: float = DEFAULT_DECAY,
    seed: int = 0,
) -> Iterator[tuple[float, Tensor]]:
    """One attack at many budgets, sharing every gradient that two of them have in common.

    FGSM costs one gradient for any number of budgets. Without a random start the first gradient is shared, and with a
    given step_size all others up to where the smaller budget is reached. Every result is bit for bit what the attack at
    that budget alone gives.

    Args:
        name: ``fgsm``, ``ifgsm`` (``bim``), ``mifgsm``, ``pgd``, or the baselines ``signs`` and ``noise``.
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float32 or float64, in [0, 1], on the model's device.
        y: true labels, int64 [B].
        eps: budgets, pixel units.
        steps: gradients per budget of the iterated attacks.
        step_size: length of a step of the iterated attacks, pixel units; if not given, each budget's eps / steps, and
            for ``pgd`` 2.5 times that.
        loss: to maximise: ``ce``, ``logodds``, ``margin`` or ``dlr``.
        norm: of the budgets, ``linf`` or ``l2``.
        restarts: of ``pgd`` and of the baselines: random starts, of which each example keeps the worst.
        decay: of the momentum of ``mifgsm``, from 0 to 2.
        seed: of random starts and baselines.

    Yields:
        (eps, adversarial inputs [B, ...]) in the order given, each its own tensor.

    Raises:
        SpecError: the attack, the loss or the norm is unknown, the model is no module, a number is unusable, or a
            budget cannot be reached.
        EvaluationError: x, y or a gradient is unusable.
    """
    attack = _check_name(check_text(name, "name", "fgsm"))
    check_network(model, "model")
    loss_named(check_text(loss, "loss", "ce"))
    if check_text(norm, "norm", "linf") not in NORMS:
        raise SpecError(unknown("norm", norm, NORMS))
    for what, count, least in (("steps", steps, 1), ("restarts", restarts, 1), ("seed", seed, 0)):
        check_whole(count, what, least)
    if isinstance(decay, bool) or not isinstance(decay, Real) or not 0 <= decay <= MOST_DECAY:
        raise SpecError(f"decay={described(decay)} must be a number from 0 to {MOST_DECAY:g}")
    for option, given, default in (("restarts", restarts, 1), ("decay", decay, DEFAULT_DECAY)):
        if given != default and option not in TAKES[attack]:
            takers = ", ".join(name for name in NATIVE if option in TAKES[name])
            raise SpecError(f"{option}={described(given)} belongs to {takers}; {attack} has no use for it")
    _check_batch(x, y)
    most = longest(x, norm)
    if step_size is not None:
        step_size = check_length(step_size, "step_size", most)
    if attack not in ITERATED:
        steps, step_size = 1, None
    courses = []
    for budget in check_several(eps, "eps"):
        length = check_length(budget, "eps", most)
        courses.append(Course(length, steps, _step_length(attack, length, steps, step_size)))
    x = x.detach()
    victim = Victim(model, y, loss)
    return _in_order(craft(attack, victim, x, courses, norm, restarts, float(decay), [seed]), courses, victim)


def craft(
    name: AttackName,
    victim: Victim,
    x: Tensor,
    courses: Sequence[Course],
    norm: Norm,
    restarts: int = 1,
    decay: float = DEFAULT_DECAY,
    seed: Sequence[int] = (0,),
) -> Iterator[tuple[Course, Tensor]]:
    """One of our own attacks at several budgets, without a check and without waiting for the device.

    Args:
        name: of the attack.
        victim: the model and the labels.
        x: inputs [B, ...] in [0, 1].
        courses: budgets, steps and their lengths, pixel units.
        norm: of the budgets.
        restarts: random starts.
        decay: of the momentum.
        seed: of random numbers, which are a function of it and the shape of x.

    Yields:
        (course, adversarial inputs [B, ...]), ascending budgets in their order.
    """
    distinct = list(dict.fromkeys(courses))
    if name in ("fgsm", "ifgsm"):
        yield from ascend(victim, x, distinct, norm)
    elif name == "mifgsm":
        yield from ascend(victim, x, distinct, norm, decay)
    else:
        if victim.labels is None:
            victim.margin(x)  # the labels that are predicted are those of the input, not of a random start
        for course in distinct:
            if name == "pgd":
                yield course, restarted(victim, x, course, norm, restarts, seed)
            else:
                yield course, baseline(victim, x, course, norm, restarts, seed, signs=name == "signs")


def _in_order(
    crafted: Iterator[tuple[Course, Tensor]], courses: Sequence[Course], victim: Victim
) -> Iterator[tuple[float, Tensor]]:
    """What is crafted in the order of the courses, repeats included, each checked and a tensor of its own."""
    ready: dict[Course, Tensor] = {}
    for place, wanted in enumerate(courses):
        while wanted not in ready:
            course, x_adv = next(crafted)
            victim.check()
            ready[course] = x_adv.clone()
        again = wanted in courses[place + 1 :]
        yield wanted.eps or 0.0, ready[wanted].clone() if again else ready.pop(wanted)


def _check_name(name: str) -> AttackName:
    known = attack_name(name)
    for choice in NATIVE:
        if known == choice:
            return choice
    if known in FOREIGN:
        raise SpecError(
            f"attack {name!r} is another library's, which robustmix.transfer_matrix, robustmix.evaluate and 'robustmix "
            "attack' run"
        )
    raise SpecError(unknown("attack", name, [*NATIVE, *(alias for alias in ALIASES if ALIASES[alias] in NATIVE)]))


def _step_length(name: AttackName, eps: float, steps: int, step_size: float | None) -> float:
    if step_size is None:
        return (PGD_STRIDE if name == "pgd" else 1) * eps / steps
    if steps * step_size < eps * (1 - 1e-9):
        raise SpecError(
            f"{steps} steps of step_size={step_size:g} reach only {steps * step_size:g}, not eps={eps:g}: take more "
            f"steps or a step_size of at least {eps / steps:g}"
        )
    return step_size


def _check_batch(x: object, y: object) -> None:
    if not isinstance(x, Tensor):
        raise EvaluationError(f"x must be a torch.Tensor; got {type(x).__name__}: torch.as_tensor makes one")
    if not isinstance(y, Tensor):
        raise EvaluationError(f"y must be a torch.Tensor; got {type(y).__name__}: torch.as_tensor makes one")
    if x.ndim < 2:
        raise EvaluationError(f"inputs must be [B, ...], one row per example; got {list(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        way_out = "half precision could not keep to a budget" if x.is_floating_point() else "divide uint8 images by 255"
        raise EvaluationError(f"inputs must be float32 or float64 in [0, 1]; got {x.dtype}: {way_out}")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise EvaluationError(f"labels must be int64 [{len(x)}], one per input; got {y.dtype} {list(y.shape)}")
    low, high = (float(end) for end in x.detach().aminmax()) if x.numel() else (0.0, 0.0)
    if not (low >= IMAGES.low and high <= IMAGES.high):
        raise EvaluationError(
            f"inputs run from {low:.8g} to {high:.8g}, outside [0, 1]: pass pixels, and put normalisation inside the "
            "model"
        )
