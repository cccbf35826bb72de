"""What cells say example by example, beyond their errors.

Comparisons are made on the same examples and speak of two sets of weights, never of the methods that trained them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustmix.errors import StoreError
from robustmix.stats import sign_test
from robustmix.store.cells import Cell
from robustmix.store.results import smallest_norms, wrong
from robustmix.units import to_pixels

# ---- the examples that both classify correctly without an attack ------------------------------------------


@dataclass(frozen=True)
class BothCorrect:
    """Two targets under one attack, on all examples and on those that both classify correctly without one.

    Attributes:
        n: all examples.
        errors: of the first and the second target among all.
        n_both: examples that both classify correctly without an attack.
        errors_both: of the first and the second among these.
        only: of these, how many only the first and how many only the second gets wrong.
        p: of McNemar's exact test on ``only``.
    """

    n: int
    errors: tuple[int, int]
    n_both: int
    errors_both: tuple[int, int]
    only: tuple[int, int]
    p: float


def both_correct(first: Cell, second: Cell, first_clean: Cell, second_clean: Cell) -> BothCorrect:
    """Compare two targets under one attack.

    Args:
        first: cell of the first target.
        second: cell of the second under the same attack.
        first_clean: the first target's cell without an attack.
        second_clean: the second's.
    """
    a, b, a_clean, b_clean = _stacked([first, second, first_clean, second_clean])
    both = ~a_clean & ~b_clean
    only = int((both & a & ~b).sum()), int((both & b & ~a).sum())
    return BothCorrect(
        n=len(a),
        errors=(int(a.sum()), int(b.sum())),
        n_both=int(both.sum()),
        errors_both=(int((both & a).sum()), int((both & b).sum())),
        only=only,
        p=sign_test(*only),
    )


# ---- the smallest budget that breaks an example -----------------------------------------------------------


@dataclass(frozen=True)
class Breaking:
    """The smallest budget (units of 1/255) that breaks each of N examples, as far as a sweep can tell.

    It lies above ``low`` and is at most ``high``: both are 0 where the target errs without an attack, ``high`` is
    infinite where no budget broke the example.

    Attributes:
        low: [N].
        high: [N].
        reversals: examples that a budget above the first that broke them left unbroken; the first counts.
    """

    low: np.ndarray
    high: np.ndarray
    reversals: int

    @property
    def median(self) -> tuple[float, float]:
        """The median lies above the first and is at most the second; both are 0 if it is."""
        return float(np.median(self.low)), float(np.median(self.high))

    @property
    def never(self) -> float:
        """Share of examples that no budget broke."""
        return float(np.mean(np.isinf(self.high)))


def breaking(clean: Cell, sweep: Sequence[Cell]) -> Breaking:
    """The smallest budget that breaks each example.

    Args:
        clean: the target's cell without an attack.
        sweep: its cells under one attack from one source, budgets ascending, at least one.
    """
    broken = np.stack(_stacked([clean, *sweep]))
    eps = np.array([0.0, *(cell.identity.eps_255 or 0 for cell in sweep)])
    ever, first = broken.any(axis=0), broken.argmax(axis=0)
    after = np.arange(len(eps))[:, None] > first
    return Breaking(
        low=np.where(ever, eps[np.maximum(first - 1, 0)], eps[-1]),
        high=np.where(ever, eps[first], np.inf),
        reversals=int((ever & (after & ~broken).any(axis=0)).sum()),
    )


@dataclass(frozen=True)
class PairedBreaking:
    """Which of two targets breaks at a smaller budget, example by example.

    Attributes:
        earlier: examples that break earlier in the first target.
        later: examples that break later in it.
        undecided: examples that break in the same interval in both.
        p: of the sign test on the first two.
        difference: the median over all examples of the second target's smallest breaking budget less the first's
            (units of 1/255) lies between these two.
    """

    earlier: int
    later: int
    undecided: int
    p: float
    difference: tuple[float, float]


def paired_breaking(first: Breaking, second: Breaking) -> PairedBreaking:
    """Compare the smallest breaking budgets of two targets on the same examples, from the same budgets."""
    same = (first.low == second.low) & (first.high == second.high)
    earlier = int((~same & (first.high <= second.low)).sum())
    later = int((~same & (second.high <= first.low)).sum())
    return PairedBreaking(
        earlier=earlier,
        later=later,
        undecided=len(same) - earlier - later,
        p=sign_test(earlier, later),
        difference=(float(np.median(second.low - first.high)), float(np.median(second.high - first.low))),
    )


# ---- the smallest perturbation that an attack finds -------------------------------------------------------


@dataclass(frozen=True)
class PairedNorms:
    """The smallest perturbations that one attack without a budget finds against two targets, in units of 1/255.

    Attributes:
        medians: of the first and the second target, over all examples: 0 where it errs anyway, infinite where the
            attack fails.
        smaller: examples that take the smaller perturbation in the first target, and in the second.
        ties: examples that take the same in both, those included that the attack breaks in neither.
        p: of the sign test on ``smaller``.
        difference: median over the examples that it breaks in one target at least of the second's smallest
            perturbation less the first's; NaN where there is none.
    """

    medians: tuple[float, float]
    smaller: tuple[int, int]
    ties: int
    p: float
    difference: float


def paired_norms(first: Cell, second: Cell, first_clean: Cell, second_clean: Cell) -> PairedNorms:
    """Compare two targets under an attack that looks for the smallest perturbation, each in the white box.

    Args:
        first: cell of the first target.
        second: cell of the second under the same attack.
        first_clean: the first target's cell without an attack.
        second_clean: the second's.
    """
    _stacked([first, second, first_clean, second_clean])
    a, b = smallest_norms(first, first_clean), smallest_norms(second, second_clean)
    smaller = int((a < b).sum()), int((b < a).sum())
    broken = np.isfinite(a) | np.isfinite(b)
    # Half way between minus and plus infinity there is no median.
    with np.errstate(invalid="ignore"):
        difference = float(np.median(b[broken] - a[broken])) if broken.any() else np.nan
    return PairedNorms(
        medians=(float(np.median(a)), float(np.median(b))),
        smaller=smaller,
        ties=len(a) - sum(smaller),
        p=sign_test(*smaller),
        difference=difference,
    )


# ---- the worst of several attacks -------------------------------------------------------------------------


def common_attacks(cells: Mapping[str, Mapping[str, Cell]], norm: str, eps: float) -> dict[str, list[Cell]]:
    """The attacks that all targets have been under, within one budget: the same set for every target.

    Args:
        cells: for each target its white-box cells by `id_of`.
        norm: of the budget.
        eps: the budget (units of 1/255). Smaller ones belong to the set as well, and so do attacks that look for the
            smallest perturbation, which count where it is within the budget.

    Returns:
        For each target its cells, in one order.
    """
    shared = set.intersection(*(set(own) for own in cells.values()))
    any_target = next(iter(cells.values()))

    def within(cell: Cell) -> bool:
        budget = cell.identity.eps_255
        return cell.identity.norm == norm and (budget is None or budget <= eps)

    ids = sorted(key for key in shared if within(any_target[key]))
    return {target: [own[key] for key in ids] for target, own in cells.items()}


def worst_case(clean: Cell, attacked: Sequence[Cell], eps: float) -> np.ndarray:
    """Whether the target errs on each example without an attack or under any of some attacks, bool [N].

    Args:
        clean: the target's cell without an attack.
        attacked: its cells under attacks.
        eps: the smallest perturbation that an attack without a budget has found counts up to this length (units of
            1/255).
    """
    worst, *others = _stacked([clean, *attacked])
    for cell, errs in zip(attacked, others, strict=True):
        worst = worst | (errs if cell.identity.eps_255 else errs & (cell.rows["norm"].to_numpy() <= to_pixels(eps)))
    return worst


def _stacked(cells: Sequence[Cell]) -> list[np.ndarray]:
    """Whether each example is classified wrongly in each of some cells.

    Raises:
        StoreError: the cells are not on the same examples.
    """
    inputs = {cell.identity.inputs for cell in cells}
    if len(inputs) > 1:
        digests = ", ".join(digest[:12] for digest in sorted(inputs))
        raise StoreError(f"cells on different test examples cannot be compared (inputs {digests})")
    return [wrong(cell) for cell in cells]
