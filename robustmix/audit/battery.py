"""The attacks of an audit."""

from dataclasses import dataclass
from typing import Final, Literal

from robustmix.errors import SpecError
from robustmix.spec.attack import AttackSpec, sweep_for
from robustmix.spec.validation import validate
from robustmix.units import GREY_LEVELS, format_budget

Part = Literal["fgsm", "ifgsm", "log-odds", "long", "longer", "restarts", "signs", "square"]

# Half the pixel range: any image can be made grey at it.
LARGE: Final = 128.0
STRIDE: Final = "2.5 eps/steps"
# What takes a hundred passes and more for each example is made on the first of them only.
COSTLY: Final[tuple[Part, ...]] = ("long", "longer", "restarts", "square")
FEW: Final = 200
SQUARE_QUERIES: Final = 1000


@dataclass(frozen=True)
class Battery:
    """What an audit attacks with.

    Attributes:
        eps: the budget at which attacks are compared, units of 1/255.
        sweep: budgets at which errors should rise, units of 1/255, ascending; `eps` among them.
        parts: the attacks by what they are for. All of them are in L-infinity and take true labels.
    """

    eps: float
    sweep: tuple[float, ...]
    parts: dict[Part, AttackSpec]


def check_budget(eps: float) -> None:
    """Refuse a budget (units of 1/255) at which attacks cannot be compared.

    Raises:
        SpecError: it is not between zero and half the pixel range.
    """
    if not 0 < eps < LARGE:
        raise SpecError(
            f"eps {format_budget(eps)}/255 is no budget to audit at: take one above 0 and below {LARGE:g}/255, where "
            "nearly every image should be broken anyway"
        )


def make_battery(like: str | None, eps: float | None) -> Battery:
    """The attacks of an audit.

    Args:
        like: the data set that the data resembles, whose sweep is taken.
        eps: the budget at which attacks are compared, units of 1/255; the middle one of the sweep if not given.
    """
    own = sweep_for(like)
    eps = own[len(own) // 2] if eps is None else eps
    return battery_over(tuple(sorted({*own, eps})), eps)


def battery_over(sweep: tuple[float, ...], eps: float) -> Battery:
    """The attacks of an audit over some budgets (units of 1/255), ascending, `eps` among them."""

    def spec(name: str, *budgets: float, **fields: object) -> AttackSpec:
        texts = [f"{budget!r}/{GREY_LEVELS}" for budget in budgets]
        return validate(AttackSpec, {"name": name, "eps": texts, **fields})

    parts: dict[Part, AttackSpec] = {
        "fgsm": spec("fgsm", *sweep),
        "ifgsm": spec("ifgsm", *sweep, LARGE),
        "log-odds": spec("ifgsm", eps, loss="logodds"),
        "long": spec("ifgsm", eps, steps=100, step=STRIDE),
        "longer": spec("ifgsm", eps, steps=200, step=STRIDE),
        "restarts": spec("pgd", eps, steps=100, restarts=3),
        "signs": spec("signs", eps),
        "square": spec("square", eps, queries=SQUARE_QUERIES),
    }
    return Battery(eps, sweep, parts)
