"""What cells say example by example, against loops over the examples."""

import math
import statistics
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustmix.errors import SpecError, StoreError
from robustmix.stats import sign_test
from robustmix.store.cells import ROWS, Cell, CellFacts, CellIdentity, clean_identity
from robustmix.store.choosing import by_sweep, crafted, id_of, one_data_set, one_test_set, preferred, side_by_side
from robustmix.store.examples import both_correct, breaking, common_attacks, paired_breaking, paired_norms, worst_case
from robustmix.store.results import attack_columns
from robustmix.store.sweeps import sweeps

A, B, C, INPUTS = "a" * 64, "b" * 64, "c" * 64, "1" * 64
FACTS = CellFacts(
    data="digits", like="digits", data_note=None, data_spec="digits", classes=tuple("0123456789"), source_name="a",
    target_name="b", forward=1, backward=1, unit_seconds=1, device="cpu", torch="2", robustmix="0",
)  # fmt: skip


def cell(identity: CellIdentity, errs: list[bool], norms: list[float] | None = None) -> Cell:
    n = len(errs)
    columns = [range(n), [3] * n, [4 if wrong else 3 for wrong in errs], [True] * n, [0.5] * n, [0.0] * n]
    return Cell(identity, FACTS, pa.table([*columns, norms or [0] * n, [0] * n, [1] * n, [None] * n], schema=ROWS))


def clean(target: str, errs: list[bool], inputs: str = INPUTS) -> Cell:
    return cell(clean_identity(target, inputs, 8), errs)


def fgsm(eps: float | None, source: str = A, target: str = A, **changes: object) -> CellIdentity:
    fields = {"attack": "fgsm", "steps": 1, "step_255": eps or 0, "batch_size": 8, "inputs": INPUTS, **changes}
    return CellIdentity.model_validate({"source": source, "target": target, "eps_255": eps, **fields})


def table(rows: int) -> st.SearchStrategy[list[list[bool]]]:
    """Whether each example is wrong, for some cells of the same examples."""
    return st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=rows, max_size=rows)
    )


# ---- the examples that both classify correctly ------------------------------------------------------------


@given(table(4))
def test_both_correct_is_what_counting_gives(errs: list[list[bool]]) -> None:
    first, second, first_clean, second_clean = errs
    found = both_correct(
        cell(fgsm(4), first), cell(fgsm(4, B, B), second), clean(A, first_clean), clean(B, second_clean)
    )
    both = [i for i in range(len(first)) if not first_clean[i] and not second_clean[i]]
    assert (found.n, found.n_both) == (len(first), len(both))
    assert found.errors == (sum(first), sum(second))
    assert found.errors_both == (sum(first[i] for i in both), sum(second[i] for i in both))
    only = sum(first[i] and not second[i] for i in both), sum(second[i] and not first[i] for i in both)
    assert (found.only, found.p) == (only, sign_test(*only))


def test_other_examples_cannot_be_compared() -> None:
    other = clean(B, [False], inputs="2" * 64)
    with pytest.raises(StoreError, match=r"different test examples .*111111111111, 222222222222"):
        both_correct(cell(fgsm(4), [True]), cell(fgsm(4, B, B), [True]), clean(A, [False]), other)


# ---- the smallest budget that breaks an example -----------------------------------------------------------

BUDGETS = [0.5, 1.0, 4.0]


def by_loop(errs: list[list[bool]]) -> tuple[list[tuple[float, float]], int]:
    """The interval of each example, and how many a larger budget leaves unbroken."""
    intervals, reversals = [], 0
    for example in range(len(errs[0])):
        low, high = BUDGETS[-1], math.inf
        for number, eps in enumerate([0.0, *BUDGETS]):
            if errs[number][example]:
                low, high = ([0.0, *BUDGETS][number - 1] if number else 0.0), eps
                reversals += not all(row[example] for row in errs[number:])
                break
        intervals.append((low, high))
    return intervals, reversals


def swept(target: str, errs: list[list[bool]]) -> list[Cell]:
    return [cell(fgsm(eps, target, target), row) for eps, row in zip(BUDGETS, errs[1:], strict=True)]


@given(table(4))
def test_smallest_breaking_budget_is_what_a_search_finds(errs: list[list[bool]]) -> None:
    found = breaking(clean(A, errs[0]), swept(A, errs))
    intervals, reversals = by_loop(errs)
    assert list(zip(found.low.tolist(), found.high.tolist(), strict=True)) == intervals
    assert found.reversals == reversals
    assert found.median == tuple(statistics.median(ends) for ends in zip(*intervals, strict=True))
    assert found.never == sum(high == math.inf for _, high in intervals) / len(intervals)


def test_a_budget_that_breaks_counts_though_a_larger_one_does_not() -> None:
    #            always, at 1 and never again, wrong anyway but right at 4, never
    errs = [
        [False, False, True, False],
        [True, False, True, False],
        [True, True, True, False],
        [True, False, False, False],
    ]
    found = breaking(clean(A, errs[0]), swept(A, errs))
    assert found.low.tolist() == [0, 0.5, 0, 4]
    assert found.high.tolist() == [0.5, 1, 0, math.inf]
    assert found.reversals == 2
    assert (found.median, found.never) == ((0.25, 0.75), 0.25)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(*[st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=4, max_size=4)] * 2)
    )
)
def test_paired_budgets_are_compared_where_they_can_be(both: tuple[list[list[bool]], list[list[bool]]]) -> None:
    found = paired_breaking(
        *(breaking(clean(t, errs[0]), swept(t, errs)) for t, errs in zip((A, B), both, strict=True))
    )
    earlier = later = 0
    lows, highs = [], []
    for (low_a, high_a), (low_b, high_b) in zip(by_loop(both[0])[0], by_loop(both[1])[0], strict=True):
        lows.append(low_b - high_a)
        highs.append(high_b - low_a)
        if (low_a, high_a) != (low_b, high_b):
            earlier += high_a < high_b
            later += high_b < high_a
    assert (found.earlier, found.later, found.undecided) == (earlier, later, len(lows) - earlier - later)
    assert found.p == sign_test(earlier, later)
    assert found.difference == (statistics.median(lows), statistics.median(highs))


@given(st.lists(st.tuples(st.floats(0.01, 6), st.floats(0.01, 6)), min_size=1, max_size=15))
def test_bounds_hold_for_the_true_budgets(truth: list[tuple[float, float]]) -> None:
    first, second = (
        breaking(
            clean(t, [False] * len(truth)),
            swept(t, [[False] * len(truth), *([pair[k] <= eps for pair in truth] for eps in BUDGETS)]),
        )
        for k, t in enumerate((A, B))
    )
    for k, found in enumerate((first, second)):
        low, high = found.median
        assert low < statistics.median(pair[k] for pair in truth) <= high
    paired = paired_breaking(first, second)
    low, high = paired.difference
    assert low <= statistics.median(b - a for a, b in truth) <= high
    assert paired.earlier <= sum(a < b for a, b in truth)
    assert paired.later <= sum(b < a for a, b in truth)


# ---- the smallest perturbation that an attack finds -------------------------------------------------------

DEEPFOOL = {"attack": "deepfool", "norm": "linf", "steps": 50, "step_255": 0}


@given(
    st.lists(
        st.tuples(*[st.tuples(st.booleans(), st.booleans(), st.sampled_from([0.5, 1.0, 2.0, 3.0]))] * 2),
        min_size=1,
        max_size=12,
    )
)
def test_smallest_perturbations_are_compared_example_by_example(
    examples: list[tuple[tuple[bool, bool, float], tuple[bool, bool, float]]],
) -> None:
    cells = []
    for side, target in enumerate((A, B)):
        anyway, broken, norms = (list(part) for part in zip(*(both[side] for both in examples), strict=True))
        attacked = cell(fgsm(None, target, target, **DEEPFOOL), broken, [norm / 255 for norm in norms])
        cells.append((attacked, clean(target, anyway)))
    (first, first_clean), (second, second_clean) = cells
    found = paired_norms(first, second, first_clean, second_clean)
    one, other = (
        [0 if now else norm if then else math.inf for now, then, norm in (both[side] for both in examples)]
        for side in (0, 1)
    )
    smaller = sum(a < b for a, b in zip(one, other, strict=True)), sum(b < a for a, b in zip(one, other, strict=True))
    assert (found.smaller, found.ties) == (smaller, len(one) - sum(smaller))
    assert found.p == sign_test(*smaller)
    assert found.medians == pytest.approx((statistics.median(one), statistics.median(other)))
    differences = [b - a for a, b in zip(one, other, strict=True) if min(a, b) < math.inf]
    expected = statistics.median(differences) if differences else math.nan
    assert found.difference == pytest.approx(expected, nan_ok=True)


def test_smallest_perturbations_on_different_examples_cannot_be_compared() -> None:
    one, other = (
        (cell(fgsm(None, **DEEPFOOL, inputs=inputs), [True]), clean(A, [False], inputs)) for inputs in (INPUTS, B)
    )
    with pytest.raises(StoreError, match="different test examples"):
        paired_norms(one[0], other[0], one[1], other[1])


# ---- the worst of several attacks -------------------------------------------------------------------------


@given(table(3))
def test_worst_case_is_wrong_wherever_anything_is(errs: list[list[bool]]) -> None:
    unattacked, first, second = errs
    found = worst_case(clean(A, unattacked), [cell(fgsm(1), first), cell(fgsm(4), second)], 4)
    assert found.tolist() == [any(row) for row in zip(*errs, strict=True)]


def test_smallest_perturbation_counts_where_it_is_within_the_budget() -> None:
    least = cell(fgsm(None, attack="deepfool", steps=50), [True, True, False, True], [3.9 / 255, 4.1 / 255, 0, 1])
    found = worst_case(clean(A, [False, False, False, True]), [least], 4)
    assert found.tolist() == [True, False, False, True]


def test_common_attacks_are_the_same_for_every_target() -> None:
    def cells(target: str, *identities: CellIdentity) -> dict[str, Cell]:
        made = (cell(i.model_copy(update={"source": target, "target": target}), [True]) for i in identities)
        return {id_of(one): one for one in made}

    slow = {"attack": "ifgsm", "steps": 10, "step_255": 0.4}
    of_a = cells(A, fgsm(1), fgsm(4), fgsm(8), fgsm(4, norm="l2"), fgsm(4, **slow), fgsm(None, attack="deepfool"))
    of_b = cells(
        B, fgsm(4), fgsm(1), fgsm(8), fgsm(4, norm="l2"), fgsm(4, **slow, seed=1), fgsm(None, attack="deepfool")
    )
    found = common_attacks({A: of_a, B: of_b}, "linf", 4)
    for target, chosen in found.items():
        assert {one.identity.target for one in chosen} == {target}
        assert sorted((one.identity.attack, one.identity.eps_255 or 0) for one in chosen) == [
            ("deepfool", 0),
            ("fgsm", 1),
            ("fgsm", 4),
        ]
    assert [id_of(one) for one in found[A]] == [id_of(one) for one in found[B]]
    assert [one.identity.norm for one in common_attacks({A: of_a, B: of_b}, "l2", 4)[A]] == ["l2"]


# ---- which cells stand beside each other ------------------------------------------------------------------


def test_cells_of_two_targets_by_who_crafted() -> None:
    pairs = [(A, A), (B, B), (A, B), (C, A), (C, B)]
    cells = [cell(fgsm(eps, *pair), [True]) for pair in pairs for eps in (1, 4)]
    cells += [
        cell(fgsm(8, A, A), [True]),
        cell(fgsm(8, C, B), [True]),
        cell(fgsm(1, "d" * 64, A), [True]),
        clean(A, [True]),
    ]
    found = side_by_side(cells, A, B)
    assert list(found) == [None, C]
    for source, sides in found.items():
        for target, own in zip((A, B), sides, strict=True):
            assert {(one.identity.source, one.identity.target) for one in own.values()} == {(source or target, target)}
            assert sorted(one.identity.eps_255 or 0 for one in own.values()) == [1, 4]
        assert list(sides[0]) == list(sides[1])


def test_one_of_the_cells_that_differ_by_batch_size_alone_is_taken() -> None:
    odd = [cell(fgsm(eps, batch_size=4), [True]) for eps in (1, 4)]
    usual = [cell(fgsm(eps), [False]) for eps in (4, 8, 16)]
    found = crafted([*odd, *usual], A, A)
    assert {one.identity.eps_255: one.identity.batch_size for one in found.values()} == {1: 4, 4: 8, 8: 8, 16: 8}
    newer = cell(fgsm(4, attack_version=2), [True])
    assert preferred([*odd, *usual, newer])[0] is newer


@pytest.mark.parametrize("newer_first", [True, False])
def test_of_two_versions_of_a_library_the_newer_is_taken(newer_first: bool) -> None:
    made = [cell(fgsm(4, impl="foolbox", library=f"foolbox 3.{minor}.0"), [True]) for minor in (10, 9)]
    assert preferred(made if newer_first else made[::-1]) == made


def test_cells_made_alike_stand_beside_each_other() -> None:
    """One target was attacked in batches of 8 and 4, the other in 4 alone, as by `crafted` it would meet 8 here."""
    ones = [cell(fgsm(eps, batch_size=size), [True]) for eps in (1, 4) for size in (8, 4)]
    others = [cell(fgsm(1, B, B, batch_size=4), [True]), cell(fgsm(4, B, B, batch_size=2), [True])]
    assert {one.identity.batch_size for one in crafted(ones, A, A).values()} == {8}
    for first, second, cells in ((A, B, [*ones, *others]), (B, A, [*others, *ones])):
        sides = side_by_side(cells, first, second)[None]
        of = {side: {one.identity.eps_255: one.identity.batch_size for one in sides[side].values()} for side in (0, 1)}
        a, b = (of[0], of[1]) if first == A else (of[1], of[0])
        assert (a[1], b[1]) == (4, 4)
        assert b[4] == 2, "nothing was made alike: each its own"
    newer = [cell(fgsm(1, t, t, library=f"foolbox {v}"), [True]) for t, v in ((A, "3.4"), (A, "3.3"), (B, "3.3"))]
    sides = side_by_side(newer, A, B)[None]
    assert {one.identity.model_dump()["library"] for side in sides for one in side.values()} == {"foolbox 3.3"}


def test_budgets_of_a_sweep_ascend_and_attacks_without_one_are_left_out() -> None:
    cells = [cell(fgsm(eps), [True]) for eps in (16, 2, 4)]
    cells += [clean(A, [True]), cell(fgsm(None, attack="deepfool", steps=50), [True])]
    found = by_sweep(cells, sweeps(attack_columns(one.identity) for one in cells))
    assert {sweep.label: [one.identity.eps_255 for one in own] for sweep, own in found.items()} == {"FGSM": [2, 4, 16]}


def test_data_set_is_chosen_or_asked_for() -> None:
    facts = FACTS.model_copy(update={"data": "birds", "data_spec": "folder:birds"})
    digits, birds = cell(fgsm(1), [True]), replace(cell(fgsm(4), [True]), facts=facts)
    assert one_data_set([digits], None) == ("digits", [digits])
    for name in ("birds", "folder:birds"):
        assert one_data_set([digits, birds], name) == (name, [birds])
    with pytest.raises(SpecError, match="choose with --data from digits, folder:birds"):
        one_data_set([digits, birds], None)
    with pytest.raises(SpecError, match="--data 'cifar10': the workspace has cells of digits"):
        one_data_set([digits], "cifar10")


def test_examples_are_the_largest_set_or_as_many_as_asked_for() -> None:
    few, many = cell(fgsm(1, inputs="2" * 64), [True] * 3), cell(fgsm(1), [True] * 5)
    assert one_test_set([few, many], "digits") == [many]
    assert one_test_set([few, many], "digits", 3) == [few]
    assert one_test_set([few, many], "digits", 100) == [many], "a limit beyond the test set's size takes all of it"
    assert one_test_set([few, many], "digits", 4) == []
    with pytest.raises(SpecError, match="2 different sets of 5 test examples"):
        one_test_set([many, cell(fgsm(1, inputs="3" * 64), [True] * 5)], "digits")
