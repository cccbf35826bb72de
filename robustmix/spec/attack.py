"""One attack as people ask for it: which, at which budgets, in how many steps, up which loss."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from robustmix.errors import SpecError
from robustmix.spec.names import Attack, AttackName, CraftPrecision, Impl, LabelPolicy, Loss, Norm
from robustmix.spec.validation import Spec
from robustmix.units import GREY_LEVELS, Budget, format_budget, parse_budget

# The sweep of budgets, in units of 1/255, by the data set that the data resembles: 8x8 digits need coarser ones.
SWEEPS: Final[dict[str, tuple[float, ...]]] = {
    "digits": (8, 16, 24, 32, 48, 64),
    "mnist": (8, 16, 32, 48, 64),
    "fashion_mnist": (2, 4, 8, 16, 32),
    "svhn": (0.5, 1, 2, 4, 8),
    "cifar10": (0.5, 1, 2, 4, 8),
    "cifar100": (0.5, 1, 2, 4, 8),
}

DEFAULT_SWEEP: Final = (1.0, 2.0, 4.0, 8.0)

L2_SWEEPS: Final[dict[str, tuple[float, ...]]] = {
    "digits": (64, 128, 192, 256, 384),
    "mnist": (128, 256, 384, 512),
    "fashion_mnist": (32, 64, 128, 256),
    "svhn": (16, 32, 64, 128, 256),
    "cifar10": (16, 32, 64, 128, 256),
    "cifar100": (16, 32, 64, 128, 256),
}

DEFAULT_L2_SWEEP: Final = (64.0, 128.0, 256.0, 512.0)

ITERATED: Final = ("ifgsm", "mifgsm", "pgd")

MINIMUM_NORM: Final = ("deepfool", "cw", "hopskipjump")

# Made by torchattacks or foolbox, never written again here.
FOREIGN: Final = ("autoattack", "square", *MINIMUM_NORM)

# They work on models that have no gradient.
GRADIENT_FREE: Final = ("signs", "noise", "square", "hopskipjump")

# The parameters of each attack that another one may lack.
_STEPPED: Final = frozenset({"loss", "steps", "step", "impl"})

TAKES: Final[dict[AttackName, frozenset[str]]] = {
    "fgsm": frozenset({"loss", "impl"}),
    "ifgsm": _STEPPED,
    "mifgsm": (_STEPPED - {"impl"}) | {"decay"},
    "pgd": _STEPPED | {"restarts", "seed"},
    "signs": frozenset({"restarts", "seed"}),
    "noise": frozenset({"restarts", "seed"}),
    "autoattack": frozenset({"seed"}),
    "square": frozenset({"queries", "seed"}),
    "deepfool": frozenset({"steps"}),
    "cw": frozenset({"steps"}),
    "hopskipjump": frozenset({"steps", "seed"}),
}

_COMMON: Final = frozenset({"norm", "labels", "compiled"})

_OWN: Final = frozenset().union(*TAKES.values())

DEFAULT_STEPS: Final = 10

# Steps from a random start have to be able to cross the ball (Madry et al. 2018).
PGD_STRIDE: Final = 2.5

# Those of foolbox, but a tenth for cw, whose 10,000 in each of nine searches take hours even on digits.
FOREIGN_STEPS: Final[dict[str, int]] = {"deepfool": 50, "cw": 1000, "hopskipjump": 64}

DEFAULT_QUERIES: Final = 5000

DEFAULT_DECAY: Final = 1.0

# As far as Dong et al. (2018, section 4.2) vary it: beyond, hardly anything but the first gradient would count.
MOST_DECAY: Final = 2.0

KURAKIN: Final = "kurakin"

_RELATIVE: Final = re.compile(r"(?:(\d+(?:\.\d+)?)\s*\*?\s*)?eps\s*/\s*steps")


def takes(name: AttackName) -> frozenset[str]:
    """The fields of an `AttackSpec` that an attack has a use for, beside its name."""
    # The smallest perturbation ends at the border of what bf16 makes of the network, on either side of the network's.
    budgeted = frozenset() if name in MINIMUM_NORM else frozenset({"eps", "precision"})
    return _COMMON | TAKES[name] | budgeted


class Course(NamedTuple):
    """How an attack goes at one budget; lengths in units of 1/255.

    Attributes:
        eps: the budget; None for an attack that looks for the smallest perturbation.
        steps: gradients, or a foreign attack's own iterations; 0 if it has none.
        step: length of one; 0 if it has none.
    """

    eps: float | None
    steps: int
    step: float


def parse_step(value: object) -> float | str:
    """Read the rule for the length of a step: a length, ``kurakin``, ``eps/steps`` or ``2.5 eps/steps``.

    Raises:
        SpecError: it is none of these.
    """
    text = str(value).strip().lower() if isinstance(value, str) else ""
    if text == KURAKIN:
        return KURAKIN
    if found := _RELATIVE.fullmatch(text):
        return f"{float(found[1] or 1):.15g} eps/steps"
    try:
        return parse_budget(value)
    except SpecError as error:
        raise SpecError(f"{error} (as a step also: kurakin, eps/steps, 2.5 eps/steps)") from None


Step = Annotated[
    float | str,
    BeforeValidator(parse_step),
    PlainSerializer(lambda step: step if isinstance(step, str) else f"{step:.17g}/{GREY_LEVELS}", return_type=str),
]


class AttackSpec(Spec):
    """One attack and its budgets.

    Attributes:
        name: ``fgsm`` (Goodfellow et al. 2015), ``ifgsm`` (Kurakin et al. 2017; also BIM), ``mifgsm`` (Dong et al.
            2018), ``pgd`` (Madry et al. 2018); the baselines ``signs`` (every pixel by plus or minus eps) and ``noise``
            (uniform in the ball); by torchattacks ``autoattack`` (standard; Croce and Hein 2020) and ``square``
            (Andriushchenko et al. 2020); by foolbox ``deepfool`` (Moosavi-Dezfooli et al. 2016), ``cw`` (Carlini and
            Wagner 2017, L2) and ``hopskipjump`` (Chen et al. 2020), which look for the smallest perturbation.
        eps: budgets, units of 1/255; the data set's own sweep if not set.
        norm: of the budget; if not set ``linf``, for the attacks that look for the smallest perturbation ``l2``.
        loss: to maximise: ``ce``, ``logodds``, ``margin`` or ``dlr``.
        steps: iterations; 10 if not set, 50 for ``deepfool``, 1,000 for ``cw``, 64 for ``hopskipjump``.
        step: length of one iteration in units of 1/255, or a rule: ``eps/steps``, a multiple of it, or ``kurakin``,
            min(eps + 4, 1.25 eps) steps of 1/255 (Kurakin et al. 2017). If not set, ``eps/steps`` (Zhang et al. 2018);
            for ``pgd``, whose start is random, ``2.5 eps/steps`` (Madry et al. 2018).
        restarts: random starts of which each example keeps the worst.
        decay: of the momentum of ``mifgsm``, from 0 to 2; 1 if not set.
        queries: forward passes per example of ``square``; 5,000 if not set.
        labels: that the attack moves away from: the ``true`` ones, or those that the source ``predicted`` without an
            attack. The error is against the truth either way.
        seed: of random starts, baselines and foreign attacks.
        precision: of the attack's forward and backward passes, float32 for what looks for the smallest perturbation;
            scoring is always in float32.
        impl: whose implementation of ``fgsm``, ``ifgsm`` and ``pgd``.
        compiled: whether the models are compiled and budgets share small passes, which may flip a few signs.
    """

    name: Attack
    eps: tuple[Budget, ...] | None = Field(default=None, min_length=1)
    norm: Norm | None = None
    loss: Loss = "ce"
    steps: int | None = Field(default=None, ge=1, le=100_000)
    step: Step | None = None
    restarts: int = Field(default=1, ge=1, le=10_000)
    decay: float | None = Field(default=None, ge=0, le=MOST_DECAY)
    queries: int | None = Field(default=None, ge=1, le=1_000_000)
    labels: LabelPolicy = "true"
    seed: int = Field(default=0, ge=0)
    precision: CraftPrecision = "32"
    impl: Impl = "robustmix"
    compiled: bool = False

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        fields = type(self).model_fields
        foreign = (self.model_fields_set & _OWN) - TAKES[self.name]
        if strange := sorted(name for name in foreign if getattr(self, name) != fields[name].default):
            own = [name for name, takes in TAKES.items() if strange[0] in takes]
            raise ValueError(f"{self.name} takes no {strange[0]!r}: it belongs to {', '.join(own)}")
        if self.name == "cw" and self.norm == "linf":
            raise ValueError("cw is an attack in l2: norm = 'linf' does not fit")
        if self.eps is not None and self.name in MINIMUM_NORM:
            raise ValueError(f"{self.name} looks for the smallest perturbation: it takes no 'eps'")
        if self.precision != "32" and self.name in MINIMUM_NORM:
            raise ValueError(
                f"{self.name} stops where the prediction changes, which in {self.precision} is not where the network's "
                "own does: leave 'precision' out"
            )
        if self.impl != "robustmix" and (self.loss != "ce" or self.metric != "linf" or self.restarts > 1):
            raise ValueError(f"impl = {self.impl!r} makes {self.name} with loss ce, norm linf and one start only")
        if self.step == KURAKIN and self.steps is not None:
            raise ValueError("step = 'kurakin' sets the number of steps itself: leave 'steps' out")
        if isinstance(self.step, float):
            _check_range("step", self.step, self.metric)
        for eps in self.eps or ():
            self.course(eps)
        return self

    @property
    def metric(self) -> Norm:
        """The norm of the budget, or that an attack without one minimises."""
        return self.norm or ("l2" if self.name in MINIMUM_NORM else "linf")

    @property
    def native(self) -> bool:
        """Whether it is made by code of ours."""
        return self.name not in FOREIGN and self.impl == "robustmix"

    @property
    def options(self) -> dict[str, float]:
        """The parameters that few attacks have, by name."""
        if self.name == "mifgsm":
            return {"decay": DEFAULT_DECAY if self.decay is None else self.decay}
        return {"queries": self.queries or DEFAULT_QUERIES} if self.name == "square" else {}

    def course(self, eps: float | None) -> Course:
        """How the attack goes at a budget (units of 1/255).

        Raises:
            SpecError: the budget is larger than any perturbation, or its steps can never reach it.
        """
        if eps is not None:
            _check_range("budget", eps, self.metric)
        if eps is None or self.name in FOREIGN:
            return Course(eps, self.steps or FOREIGN_STEPS.get(self.name, 0), 0)
        if self.name not in ITERATED:
            return Course(eps, 1, eps)
        if self.step == KURAKIN:
            return Course(eps, max(math.floor(min(eps + 4, 1.25 * eps)), math.ceil(eps)), 1)
        steps = self.steps or DEFAULT_STEPS
        rule = self.step or (f"{PGD_STRIDE} eps/steps" if self.name == "pgd" else "1 eps/steps")
        step = rule if isinstance(rule, float) else float(rule.split()[0]) * eps / steps
        check_reach(eps, steps, step)
        return Course(eps, steps, step)

    def gradients(self, courses: Sequence[Course]) -> int:
        """Gradients per example at several budgets: those of one of our attacks, 0 for another library's.

        Budgets share the first, and with steps of one length all up to where the smaller one is reached; rounding there
        may part them one step earlier.
        """
        if self.name not in ("fgsm", *ITERATED):
            return 0
        if self.name == "pgd":
            return self.restarts * sum(course.steps for course in courses)
        if self.impl != "robustmix":
            return sum(course.steps for course in courses)
        shared = set()
        for eps, steps, step in courses:
            for number in range(steps):
                covered = number * step
                together = eps is not None and covered <= eps * (1 + 1e-9)
                shared.add((number, step if number else 0, None if together else eps))
        return len(shared)

    def courses(self, like: str | None) -> tuple[Course, ...]:
        """How the attack goes at each of its budgets, ascending, each once.

        Args:
            like: the data set that the data resembles, whose own sweep serves where no budget was named.

        Raises:
            SpecError: a budget cannot be reached.
        """
        if self.name in MINIMUM_NORM:
            return (self.course(None),)
        return tuple(self.course(eps) for eps in sorted(set(self.eps or sweep_for(like, self.metric))))

    def at(self, like: str | None) -> "AttackSpec":
        """This attack with the data set's own sweep where no budget was named."""
        if self.name in MINIMUM_NORM:
            return self
        return self.model_copy(update={"eps": tuple(course.eps for course in self.courses(like))})


def sweep_for(like: str | None, norm: Norm = "linf") -> tuple[float, ...]:
    """The budgets (units of 1/255) that a data set is attacked at when nobody names one."""
    if norm == "l2":
        return L2_SWEEPS.get(like or "", DEFAULT_L2_SWEEP)
    return SWEEPS.get(like or "", DEFAULT_SWEEP)


def _check_range(what: str, length: float, norm: Norm) -> None:
    if norm == "linf" and length > GREY_LEVELS:
        raise SpecError(f"{what} {format_budget(length)}/255 is larger than the whole pixel range, 255/255")


def check_reach(eps: float, steps: int, step: float) -> None:
    """Refuse an attack that can never reach its budget (lengths in units of 1/255).

    Raises:
        SpecError: steps x step < eps.
    """
    if steps * step < eps * (1 - 1e-9):
        raise SpecError(
            f"{steps} steps of {format_budget(step)}/255 reach only {format_budget(steps * step)}/255, not the budget "
            f"{format_budget(eps)}/255: take more steps or a step of at least {format_budget(eps / steps)}/255"
        )
