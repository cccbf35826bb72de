"""What cells say about the attacks that made them."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np

from robustmix.audit.battery import COSTLY, LARGE, Battery, Part
from robustmix.audit.direct import FirstGradient
from robustmix.judging import Fact, NotRun, Observation, Pair, Share
from robustmix.spec.attack import AttackSpec
from robustmix.store.cells import Cell
from robustmix.store.results import wrong
from robustmix.units import format_budget, to_pixels

# Of the gradients' attacks, what together tells which examples gradients break.
GRADIENTS: Final[tuple[Part, ...]] = ("fgsm", "ifgsm", "log-odds", "long", "longer", "restarts")
ROUNDING: Final = 1e-4


class Evidence:
    """The cells of an audit, by what they are for.

    Args:
        battery: the attacks.
        cells: all that were made, clean ones among them.
    """

    def __init__(self, battery: Battery, cells: Iterable[Cell]) -> None:
        self.battery = battery
        self.cells = list(cells)
        self._found = {_key(cell): cell for cell in self.cells}

    def wrong(self, part: Part, target: str, source: str | None = None, eps: float | None = None) -> np.ndarray:
        """Which examples a target gets wrong under an attack, bool [N].

        Args:
            part: the attack.
            target: SHA-256 of the weights.
            source: SHA-256 of the weights that craft; the target's own if not given.
            eps: units of 1/255; that of the audit if not given.
        """
        spec, eps = self.battery.parts[part], self.battery.eps if eps is None else eps
        return wrong(self._found[(source or target, target, *_how(spec, eps))])

    def clean(self, target: str) -> np.ndarray:
        """Which examples a target gets wrong without an attack, bool [N]."""
        return next(wrong(one) for one in self.cells if (one.identity.source, one.identity.target) == (None, target))

    def attacked(self, target: str) -> list[Cell]:
        """The white-box cells of a target."""
        return [one for one in self.cells if one.identity.source == one.identity.target == target]


def read(
    evidence: Evidence,
    few: Evidence,
    target: str,
    others: Mapping[str, str],
    gradient: FirstGradient,
    no_square: str | None,
) -> list[Observation]:
    """What the attacks on one network say about themselves.

    Args:
        evidence: the attacks on all examples.
        few: the costly ones, on the first of them.
        target: SHA-256 of the network's weights.
        others: names of the other networks by the SHA-256 of their weights.
        gradient: what the first gradient showed.
        no_square: why the gradient-free attack was not made; None if it was.
    """
    return [
        _bounds([*evidence.attacked(target), *few.attacked(target)]),
        _against(evidence, "iterated", target, "fgsm", "ifgsm"),
        _monotone(evidence, "monotone", target, "ifgsm"),
        _large(evidence, target),
        _against(few, "convergence", target, "longer", "long"),
        _against(few, "restarts", target, "restarts", "long"),
        _against(evidence, "random-signs", target, "signs", "fgsm"),
        _log_odds(evidence, target, gradient),
        _transfer(evidence, "transfer", target, others, "ifgsm"),
        Observation("square", "-", NotRun(no_square)) if no_square else _square(evidence, few, target),
        _monotone(evidence, "fgsm-monotone", target, "fgsm"),
        _transfer(evidence, "fgsm-transfer", target, others, "fgsm"),
    ]


def paired(contrary: np.ndarray, expected: np.ndarray) -> Pair:
    """Two attacks on the same examples, from which of them each broke, bool [N]."""
    left = ~expected
    return Pair(int((contrary & left).sum()), int((expected & ~contrary).sum()), len(contrary), int(left.sum()))


WORDS: Final[dict[Part, str]] = {
    "fgsm": "FGSM",
    "ifgsm": "I-FGSM, 10 steps",
    "long": "I-FGSM, 100 steps",
    "longer": "I-FGSM, 200 steps",
    "restarts": "PGD, 100 steps, 3 restarts",
    "signs": "random signs",
    "log-odds": "I-FGSM on log-odds",
}


def _against(evidence: Evidence, name: str, target: str, contrary: Part, expected: Part) -> Observation:
    one, other = (evidence.wrong(part, target) for part in (contrary, expected))
    measured = f"{WORDS[expected]} {_percent(other)}, {WORDS[contrary]} {_percent(one)}"
    return Observation(name, f"{measured} ({_only(one, other)})", (paired(one, other),))


def _monotone(evidence: Evidence, name: str, target: str, part: Part) -> Observation:
    errors = {0.0: evidence.clean(target)}
    errors |= {eps: evidence.wrong(part, target, eps=eps) for eps in evidence.battery.sweep}
    pairs = tuple(paired(errors[small], errors[large]) for small, large in pairwise(errors))
    levels = ", ".join(f"{format_budget(eps)}: {_percent(found)}" for eps, found in errors.items())
    return Observation(name, f"error by eps (1/255) {levels}", pairs)


def _large(evidence: Evidence, target: str) -> Observation:
    broken = evidence.wrong("ifgsm", target, eps=LARGE)
    left = int((~broken).sum())
    measured = f"{left} of {len(broken)} images survive I-FGSM at {LARGE:g}/255 ({_percent(broken)} error)"
    return Observation("large-budget", measured, Share(left, len(broken)))


def _log_odds(evidence: Evidence, target: str, gradient: FirstGradient) -> Observation:
    one, other = evidence.wrong("log-odds", target), evidence.wrong("ifgsm", target)
    measured = f"cross-entropy {_percent(other)}, log-odds {_percent(one)} ({_only(one, other)}); {gradient.in_words}"
    return Observation("log-odds", measured, (paired(one, other),))


def _transfer(evidence: Evidence, name: str, target: str, others: Mapping[str, str], part: Part) -> Observation:
    if not others:
        return Observation(
            name, "-", NotRun("There is no other network to transfer from: name several after --target.")
        )
    white = evidence.wrong(part, target)
    errors = {source: evidence.wrong(part, target, weights) for weights, source in others.items()}
    levels = ", ".join(f"from {source} {_percent(found)}" for source, found in errors.items())
    pairs = tuple(paired(found, white) for found in errors.values())
    return Observation(name, f"{WORDS[part]}: white box {_percent(white)}, {levels}", pairs)


def _square(evidence: Evidence, few: Evidence, target: str) -> Observation:
    broken = few.wrong("square", target)
    n = len(broken)
    by_gradients = few.clean(target)
    for part in GRADIENTS:
        by_gradients = by_gradients | (few if part in COSTLY else evidence).wrong(part, target)[:n]
    new = int((broken & ~by_gradients).sum())
    measured = f"{new} of {n} images broken by Square alone (Square {_percent(broken)}, gradients "
    return Observation("square", f"{measured}{_percent(by_gradients)})", Share(new, n, room=int((~by_gradients).sum())))


def _bounds(attacked: Iterable[Cell]) -> Observation:
    """As `robustmix.measurement` has seen to; read again from what was written."""
    furthest, low, high, kept = 0.0, 1.0, 0.0, True
    for cell in attacked:
        norm, least, most = (cell.rows[column].to_numpy() for column in ("norm", "min", "max"))
        share = float(norm.max()) / to_pixels(cell.identity.eps_255 or 1)
        furthest, low, high = max(furthest, share), min(low, float(least.min())), max(high, float(most.max()))
        kept = kept and share <= 1 + ROUNDING and low >= 0 and high <= 1
    measured = f"largest perturbation {furthest:.6g} of the budget, pixels from {low:g} to {high:g}"
    return Observation("bounds", measured, Fact("pass" if kept else "fail"))


def _key(cell: Cell) -> tuple[Any, ...]:
    at = cell.identity
    return (at.source, at.target, at.attack, at.loss, at.restarts, at.eps_255, at.steps, at.step_255)


def _how(spec: AttackSpec, eps: float) -> tuple[Any, ...]:
    course = spec.course(eps)
    return (spec.name, spec.loss, spec.restarts, course.eps, course.steps, course.step)


def _percent(broken: np.ndarray) -> str:
    return f"{100 * broken.mean():.1f} %"


def _only(one: np.ndarray, other: np.ndarray) -> str:
    pair = paired(one, other)
    return f"only the latter broke {pair.contrary}, only the former {pair.expected}, of {pair.n}"
