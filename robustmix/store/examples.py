"""What cells say example by example, beyond their errors.

Comparisons are made on the same examples and speak of two sets of weights, never of the methods that trained them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustmix.errors import SpecError, StoreError
from robustmix.stats import sign_test
from robustmix.store.cells import Cell
from robustmix.store.results import attack_columns, wrong
from robustmix.store.sweeps import Sweep, attack_id
from robustmix.units import to_pixels


def one_data_set(cells: Iterable[Cell], data: str | None) -> tuple[str, list[Cell]]:
    """The cells on one data set, and its spec.

    Args:
        cells: at least one.
        data: the data set's spec or name; the only one that the cells are on, if None.

    Raises:
        SpecError: the cells are on others, or on several to choose from.
    """
    cells = list(cells)
    specs = sorted({cell.facts.data_spec for cell in cells})
    if data is None and len(specs) > 1:
        raise SpecError(f"the workspace has cells of several data sets: choose with --data from {', '.join(specs)}")
    data = data or specs[0]
    ours = [cell for cell in cells if is_of(cell, data)]
    if not ours:
        raise SpecError(f"--data {data!r}: the workspace has cells of {', '.join(specs)}")
    return data, ours


def is_of(cell: Cell, data: str) -> bool:
    """Whether a cell is on a data set, given by its spec or its name."""
    return data in (cell.facts.data_spec, cell.facts.data)


def one_test_set(cells: Sequence[Cell], data: str, limit: int | None = None) -> list[Cell]:
    """The cells on one set of test examples.

    Args:
        cells: on one data set.
        data: its spec.
        limit: the number of examples, if the data set has so many; else the largest set.

    Raises:
        SpecError: there are several sets of that size.
    """
    sizes = {cell.identity.inputs: cell.rows.num_rows for cell in cells}
    # A limit beyond the test set's size takes all of it.
    if limit is not None and max(sizes.values(), default=0) >= limit:
        sizes = {digest: size for digest, size in sizes.items() if size == limit}
    largest = sorted(digest for digest, size in sizes.items() if size == max(sizes.values()))
    if len(largest) > 1:
        digests = ", ".join(digest[:12] for digest in largest)
        raise SpecError(
            f"{data} was attacked with {len(largest)} different sets of {sizes[largest[0]]} test examples "
            f"(inputs {digests}): its files have changed in between; delete the cells of the old ones"
        )
    return [cell for cell in cells if cell.identity.inputs in largest]


def preferred(cells: Sequence[Cell]) -> list[Cell]:
    """Cells in the order in which to choose among those that differ by batch size or attack version only."""
    sizes = [cell.identity.batch_size for cell in cells]
    common = max(sorted(set(sizes), reverse=True), key=sizes.count, default=0)

    def order(cell: Cell) -> tuple[bool, int, int, str]:
        identity = cell.identity
        return identity.batch_size != common, -identity.attack_version, -identity.batch_size, cell.key

    return sorted(cells, key=order)


def id_of(cell: Cell) -> str:
    """Which attack was made, at which budget, whoever crafted and was scored."""
    return attack_id(attack_columns(cell.identity))


def crafted(cells: Sequence[Cell], source: str, target: str) -> dict[str, Cell]:
    """The attacked cells of one source and one target (SHA-256 of their weights), by `id_of`, one of each."""
    pair = (source, target)
    found: dict[str, Cell] = {}
    for cell in preferred([c for c in cells if (c.identity.source, c.identity.target) == pair]):
        found.setdefault(id_of(cell), cell)
    return found


def side_by_side(
    cells: Sequence[Cell], first: str, second: str
) -> dict[str | None, tuple[dict[str, Cell], dict[str, Cell]]]:
    """The cells of two targets (SHA-256 of their weights) under the same attacks, by who crafted.

    Args:
        cells: on one set of test examples.
        first: one target.
        second: the other.

    Returns:
        Under None the white box of each, then under its weights every third network that attacked both: for each
        target its cells by `id_of`. An example that one of the two crafted is no fair test of the other.
    """
    sources = sorted({cell.identity.source for cell in cells if cell.identity.source} - {first, second})
    found: dict[str | None, tuple[dict[str, Cell], dict[str, Cell]]] = {}
    for source in (None, *sources):
        a, b = crafted(cells, source or first, first), crafted(cells, source or second, second)
        shared = [key for key in a if key in b]
        if shared:
            found[source] = {key: a[key] for key in shared}, {key: b[key] for key in shared}
    return found


def by_sweep(cells: Iterable[Cell], known: Mapping[str, tuple[Sweep, ...]]) -> dict[Sweep, list[Cell]]:
    """The cells of each sweep, budgets ascending; without clean cells and attacks that have no budget.

    Args:
        cells: of one source and one target.
        known: the sweeps by `id_of`, as `robustmix.store.sweeps.sweeps` finds them.
    """
    found: dict[Sweep, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.identity.eps_255 or 0, cell.key)):
        for sweep in known[id_of(cell)] if cell.identity.eps_255 else ():
            found.setdefault(sweep, []).append(cell)
    return found


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
