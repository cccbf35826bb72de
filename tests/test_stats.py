"""Intervals and tests against their formulas, published examples, other tests and simulation."""

import re
import runpy
from itertools import combinations
from math import comb, inf, sqrt
from pathlib import Path
from statistics import NormalDist, fmean, variance
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, t, ttest_1samp, ttest_ind, ttest_rel

from robustmix.stats import (
    SEEDS_FOR_METHODS,
    difference,
    exact_greater,
    holm,
    mean_interval,
    paired_interval,
    prediction_interval,
    share_greater,
    sign_test,
    wilson,
)

ROOT = Path(__file__).parents[1]
Z2 = NormalDist().inv_cdf(0.975) ** 2


@given(total=st.integers(1, 10_000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_interval_is_scipys_wilson_interval(total: int, share: float, confidence: float) -> None:
    count = round(share * total)
    low, high = wilson(count, total, confidence)
    by_scipy = binomtest(count, total).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((by_scipy.low, by_scipy.high), abs=1e-12)
    assert 0 <= low <= count / total <= high <= 1


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_known_values(count: int, total: int, low: float, high: float) -> None:
    assert wilson(count, total) == pytest.approx((low, high), abs=1e-4)


def test_default_is_95_percent() -> None:
    assert wilson(3, 20) == wilson(3, 20, 0.95) != wilson(3, 20, 0.9)


@given(first=st.integers(0, 60), second=st.integers(0, 60))
def test_sign_test_is_twice_the_smaller_tail_of_a_fair_coin(first: int, second: int) -> None:
    n, most = first + second, min(first, second)
    tail = sum(comb(n, k) for k in range(most + 1)) / 2**n
    assert sign_test(first, second) == pytest.approx(min(1, 2 * tail))
    assert sign_test(first, second) == sign_test(second, first)


def test_sign_test_of_ties_alone_says_nothing() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(0, 5) == pytest.approx(2 / 32)


# ---- two checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_first", "only_second", "n", "low", "high"),
    [
        # Airway hyper-responsiveness before and after a transplantation (Bentur et al. 2009), as worked out by
        # Fagerland, Lydersen and Laake 2014 for Tango's interval
        (1, 7, 21, -0.517, -0.026),
        # Closed forms where the score equation is quadratic
        (0, 0, 50, -Z2 / (50 + Z2), Z2 / (50 + Z2)),
        (50, 0, 50, (50 - Z2) / (50 + Z2), 1),
    ],
)
def test_known_paired_intervals(only_first: int, only_second: int, n: int, low: float, high: float) -> None:
    assert paired_interval(only_first, only_second, n) == pytest.approx((low, high), abs=5e-4)


def score(only_first: int, only_second: int, n: int, shift: float) -> float:
    """Tango's statistic, its nuisance parameter from the trinomial likelihood itself."""
    agreed = n - only_first - only_second

    def unlikely(share: float) -> float:
        parts = ((only_first, share + shift), (only_second, share), (agreed, 1 - 2 * share - shift))
        return -sum(count * np.log(max(chance, 1e-300)) for count, chance in parts)

    bounds = max(0.0, -shift), (1 - shift) / 2
    share = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    return (only_first - only_second - n * shift) / sqrt(n * (2 * share + shift - shift**2))


@pytest.mark.parametrize(("only_first", "only_second", "n"), [(3, 11, 40), (150, 86, 944), (9, 8, 17), (1, 30, 1000)])
def test_the_ends_of_the_paired_interval_have_the_score_of_its_level(only_first: int, only_second: int, n: int) -> None:
    low, high = paired_interval(only_first, only_second, n, 0.9)
    z = NormalDist().inv_cdf(0.95)
    assert score(only_first, only_second, n, low) == pytest.approx(z, abs=1e-4)
    assert score(only_first, only_second, n, high) == pytest.approx(-z, abs=1e-4)


@given(counts=st.tuples(*3 * [st.integers(0, 300)]).filter(any))
def test_the_paired_interval_is_mcnemars_test_turned_round(counts: tuple[int, int, int]) -> None:
    first, second, _ = counts
    n = sum(counts)
    low, high = paired_interval(first, second, n)
    assert -1 <= low <= (first - second) / n <= high <= 1
    assert low < high
    assert paired_interval(second, first, n) == pytest.approx((-high, -low), abs=1e-9)
    statistic = (first - second) ** 2 / (first + second) if first + second else 0
    if abs(statistic - Z2) > 1e-6:
        assert (low <= 0 <= high) == (statistic < Z2)


# ---- one-sided tests and their correction -----------------------------------------------------------------


@given(first=st.integers(0, 60), second=st.integers(0, 60))
def test_exact_greater_is_the_upper_tail_of_a_fair_coin(first: int, second: int) -> None:
    n = first + second
    assert exact_greater(first, second) == pytest.approx(sum(comb(n, k) for k in range(first, n + 1)) / 2**n)
    if first > second:
        assert exact_greater(first, second) == pytest.approx(sign_test(first, second) / 2)


def test_exact_greater_of_ties_alone_says_nothing() -> None:
    assert exact_greater(0, 0) == 1
    assert exact_greater(5, 0) == pytest.approx(1 / 32)
    assert exact_greater(0, 5) == 1


def test_share_greater_is_the_upper_tail_from_the_count_on() -> None:
    assert share_greater(2, 3, 0.1) == pytest.approx(3 * 0.1**2 * 0.9 + 0.1**3)
    assert share_greater(0, 3, 0.1) == 1
    assert share_greater(1, 3, 0.0) == 0
    assert share_greater(30, 100, 0.25) == pytest.approx(float(binom.sf(29, 100, 0.25)))


@pytest.mark.parametrize(
    ("given_p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.04, 0.01, 0.03, 0.02], [0.06, 0.04, 0.06, 0.06]),
        ([0.6, 0.9], [1, 1]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_known_corrections(given_p: list[float], adjusted: list[float]) -> None:
    assert holm(given_p) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_on_every_subset(p_values: list[float]) -> None:
    places = range(len(p_values))
    subsets = [subset for size in range(1, len(places) + 1) for subset in combinations(places, size)]
    together = {subset: min(1.0, len(subset) * min(p_values[place] for place in subset)) for subset in subsets}
    closed = [max(p for subset, p in together.items() if place in subset) for place in places]
    assert holm(p_values) == pytest.approx(closed)


# ---- seeds of one method ----------------------------------------------------------------------------------


def test_intervals_over_seeds_by_the_table_of_t() -> None:
    assert mean_interval([1, 2, 3]) == pytest.approx((2 - 4.302653 / sqrt(3), 2 + 4.302653 / sqrt(3)))
    assert prediction_interval([1, 2, 3]) == pytest.approx((2 - 4.302653 * sqrt(4 / 3), 2 + 4.302653 * sqrt(4 / 3)))
    assert mean_interval([0, 2]) == pytest.approx((1 - 12.70620, 1 + 12.70620))
    assert mean_interval([0, 2], 0.5) == pytest.approx((0, 2))
    assert prediction_interval([4, 4]) == (4, 4)


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=9, unique=True), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_mean_interval_is_students(values: list[int], confidence: float) -> None:
    expected = ttest_1samp(values, 0).confidence_interval(confidence)
    assert mean_interval(values, confidence) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("interval", [mean_interval, prediction_interval])
@pytest.mark.parametrize("values", [[], [0.3]])
def test_one_seed_has_no_interval(interval: Any, values: list[float]) -> None:
    with pytest.raises(ValueError, match=f"at least 2 values, not {len(values)}"):
        interval(values)


def test_the_prediction_interval_holds_a_new_run() -> None:
    runs = np.random.default_rng(0).normal(size=(4000, 5))
    ends = np.array([prediction_interval(list(own[:4])) for own in runs])
    held = (ends[:, 0] <= runs[:, 4]) & (runs[:, 4] <= ends[:, 1])
    assert 0.94 <= held.mean() <= 0.96


# ---- two methods ------------------------------------------------------------------------------------------


def crossed(seed: int, sources: int, targets: tuple[int, int], images: int) -> list[Any]:
    """Effects of sources, targets and images for each of two methods."""
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=size) for size in (sources, own, images)] for own in targets]


def added(effects: list[Any]) -> np.ndarray:
    """Errors [sources, targets, images] without any interaction."""
    source, target, image = effects
    return source[:, None, None] + target[:, None] + image


def test_over_seeds_alone_it_is_welchs_t() -> None:
    (_, first, _), (_, second, _) = crossed(1, 1, (3, 5), 1)
    expected = ttest_ind(second, 0.5 + 3 * first, equal_var=False)
    ends = expected.confidence_interval(0.9)
    for images in (1, 7):
        found = difference(*(np.tile(x[None, :, None], (1, 1, images)) for x in (0.5 + 3 * first, second)), 0.9)
        assert (found.estimate, found.p, found.df) == pytest.approx(
            (second.mean() - 0.5 - 3 * first.mean(), expected.pvalue, expected.df)
        )
        assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


@pytest.mark.parametrize("axis", [0, 2])
def test_where_all_networks_agree_it_is_the_paired_t_of_what_is_left(axis: int) -> None:
    shape = [1, 1, 1]
    shape[axis] = 9
    one, two = (np.random.default_rng(seed).normal(seed, 1, 9) for seed in (1, 2))
    expected = ttest_rel(two, one)
    ends = expected.confidence_interval()
    spread = [np.broadcast_to(x.reshape(shape), (*shape[:1], 3, *shape[2:])) for x in (one, two)]
    found = difference(*spread)
    assert (found.p, found.df) == pytest.approx((expected.pvalue, 8))
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


def test_the_parts_add_up() -> None:
    one, two = crossed(2, 4, (3, 5), 50)
    found = difference(added(one), added(two))
    parts = [
        (variance(one[1]) / 3, 2),
        (variance(two[1]) / 5, 4),
        (variance(two[0] - one[0]) / 4, 3),
        (variance(two[2] - one[2]) / 50, 49),
    ]
    total = sum(part for part, _ in parts)
    df = total**2 / sum(part**2 / own for part, own in parts)
    half = t.ppf(0.975, df) * sqrt(total)
    assert found.df == pytest.approx(df)
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half))
    assert found.p == pytest.approx(2 * t.sf(abs(found.estimate) / sqrt(total), df))


def test_the_images_part_is_that_of_an_analysis_of_variance() -> None:
    """Two methods with three networks each: the mean squares of networks, images and both, image by image."""
    one, two = np.random.default_rng(11).random((2, 3, 4)) + np.array([0, 1, 2, 4.0])[None, None] * [[[1]], [[2]]]
    difference_of = [fmean(two[:, i]) - fmean(one[:, i]) for i in range(4)]
    both = networks = 0.0
    for table in (one, two):
        rest = [
            (table[n, i] - fmean(table[n]) - fmean(table[:, i]) + table.mean()) ** 2 for n in range(3) for i in range(4)
        ]
        both += sum(rest) / (2 * 3) / (3 * 4)
        networks += variance([fmean(row) for row in table]) / 3
    found = difference(one[None], two[None])
    half = (found.high - found.low) / 2
    assert variance(difference_of) / 4 > both
    assert (half / t.ppf(0.975, found.df)) ** 2 == pytest.approx(networks + variance(difference_of) / 4 - both)


def test_sources_that_nothing_connects_count_as_equally_strong() -> None:
    one, two = np.random.default_rng(12).random((2, 2, 2, 1))
    one[[0, 1], [0, 1]] = two[[0, 1], [0, 1]] = np.nan
    expected = ttest_ind([two[0, 1, 0], two[1, 0, 0]], [one[0, 1, 0], one[1, 0, 0]], equal_var=False)
    found = difference(one, two)
    assert (found.p, found.df) == pytest.approx((expected.pvalue, expected.df), rel=1e-4)


def test_what_is_shared_counts_once() -> None:
    """With interactions alone, the spread over sources and images is what the targets' already holds."""
    rng = np.random.default_rng(3)
    ratios = []
    for shape in ((1, 4, 60), (5, 4, 1)):
        found = [difference(*rng.normal(size=(2, *shape))) for _ in range(1500)]
        true = np.var([one.estimate for one in found])
        ratios.append(fmean(((one.high - one.low) / 2 / t.ppf(0.975, one.df)) ** 2 for one in found) / true)
    # Between 1 and, were it counted twice, 2; above 1 by what truncation at 0 adds
    assert all(0.95 < ratio < 1.5 for ratio in ratios), ratios


def test_swapping_the_methods_turns_the_sign() -> None:
    one, two = (rng.random((3, 4, 30)) < 0.4 for rng in map(np.random.default_rng, (4, 5)))
    there, back = difference(one, two), difference(two, one)
    assert (back.estimate, back.low, back.high) == pytest.approx((-there.estimate, -there.high, -there.low))
    assert (back.p, back.df) == pytest.approx((there.p, there.df))
    assert there.estimate == pytest.approx(two.mean() - one.mean())


def test_a_network_against_itself_changes_nothing_where_networks_only_add_up() -> None:
    one, two = (added(effects) for effects in crossed(6, 3, (3, 4), 20))
    one += two.mean(axis=(1, 2), keepdims=True) - one.mean(axis=(1, 2), keepdims=True)
    # A source is as strong against both methods, be it as strong as it may
    shared = np.array([0, 5, -9.0])[:, None, None]
    complete = difference(one + shared, two + shared)
    one[range(3), range(3)] = np.nan
    missing = difference(one + shared, two + shared)
    for field in ("estimate", "low", "high", "p", "df"):
        assert getattr(missing, field) == pytest.approx(getattr(complete, field)), field


def test_a_target_that_nothing_else_attacked_is_left_out() -> None:
    one, two = (added(effects) for effects in crossed(9, 1, (4, 3), 30))
    without = difference(one[:, 1:], two)
    one[0, 0] = np.nan
    assert difference(one, two) == without


def test_without_any_spread_the_images_of_two_checkpoints_are_what_is_left() -> None:
    nothing, everything = np.zeros((2, 3, 10), bool), np.ones((2, 2, 10), bool)
    same, more, less = (
        difference(*pair) for pair in ((nothing, nothing), (nothing, everything), (everything, nothing))
    )
    assert (same.estimate, same.low, same.high, same.p, same.df) == (0, *paired_interval(0, 0, 10), 1, inf)
    assert same.low < -0.2 < 0.2 < same.high
    assert (more.estimate, more.low, more.high, more.p, more.df) == (1, *paired_interval(10, 0, 10), 2 / 2**10, inf)
    assert 0.4 < more.low < more.high == 1
    assert (less.low, less.high, less.p) == pytest.approx((-more.high, -more.low, more.p))


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 3, 6), (1, 3, 5)])
def test_what_cannot_be_compared_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"not (2, 3, 5) and {shape}")):
        difference(np.zeros((2, 3, 5)), np.zeros(shape))


# ---- coverage ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "coverage"))


@pytest.fixture(scope="module")
def tables(script: dict[str, Any]) -> list[list[list[str]]]:
    """The rows of every table that the script has written."""
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    written = page.partition(script["BEGIN"])[2].partition(script["END"])[0]
    found = re.findall(r"(?:^\|.*\n?)+", written, re.M)
    return [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in text.split("\n")[2:] if row] for text in found
    ]


def numbers(cells: list[str]) -> list[float]:
    return [float(number) for cell in cells for number in re.findall(r"\d+\.\d", cell)]


def test_the_page_has_the_intervals_of_checkpoints(script: dict[str, Any], tables: list[list[list[str]]]) -> None:
    wilsons, paired = tables[:2]
    assert len(wilsons) == len(paired) == len(script["SHARES"])
    for row, share in zip(wilsons, script["SHARES"], strict=True):
        exact = [script["wilson_coverage"](n, share) for n in script["EXAMPLES"]]
        assert row == [f"{100 * share:g} %", *map(script["percent"], exact)]
        assert all(0.93 <= coverage <= 0.97 for coverage in exact)
    assert all(93 <= coverage <= 97 for row in paired for coverage in numbers(row[1:]))
    row = paired[2]
    every = [
        script["paired_coverage"](360, 0.3, shift, correlation)
        for shift in script["SHIFTS"]
        for correlation in script["CORRELATIONS"]
    ]
    known = [coverage for coverage in every if coverage is not None]
    assert numbers(row[1:2]) == [round(100 * end, 1) for end in (min(known), max(known))]


def test_exact_coverage_is_what_simulation_gives(script: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    counts, often = np.unique(rng.binomial(360, 0.1, 3000), return_counts=True)
    ends = np.array([wilson(int(count), 360) for count in counts])
    held = (ends[:, 0] <= 0.1) & (ends[:, 1] >= 0.1)
    assert np.average(held, weights=often) == pytest.approx(script["wilson_coverage"](360, 0.1), abs=0.012)
    both = 0.3 * 0.35 + 0.5 * sqrt(0.3 * 0.7 * 0.35 * 0.65)
    counts = rng.multinomial(360, [0.3 - both, 0.35 - both, 1 - 0.65 + 2 * both], 3000)
    ends = np.array([paired_interval(int(a), int(b), 360) for a, b, _ in counts])
    held = (ends[:, 0] <= -0.05) & (ends[:, 1] >= -0.05)
    assert np.mean(held) == pytest.approx(script["paired_coverage"](360, 0.3, 0.05, 0.5), abs=0.012)
    assert script["paired_coverage"](360, 0.05, 0.05, 0.9) is None


def test_the_page_has_the_intervals_of_methods(script: dict[str, Any], tables: list[list[list[str]]]) -> None:
    *blocks, overall = tables[2:]
    assert len(blocks) == len(script["BLOCKS"])
    drawn: dict[int, list[float]] = {seeds: [] for seeds in script["SEEDS"]}
    for rows in blocks:
        assert [row[:2] for row in rows] == [
            [str(seeds), f"{100 * spread:g} points"] for seeds in script["SEEDS"] for spread in script["SPREADS"]
        ]
        for row in rows:
            shares = numbers(row[2:])
            drawn[int(row[0])].append(shares[0])
            # Two to three standard errors of the simulation below 94 %
            assert min(shares[:2]) >= 93
            assert shares[0] <= 98
    for row, (seeds, own) in zip(overall, drawn.items(), strict=True):
        assert row[0] == str(seeds)
        assert numbers(row[1:]) == pytest.approx([fmean(own), min(own), max(own)], abs=0.051)
        assert seeds < SEEDS_FOR_METHODS or fmean(own) >= 94.5


@pytest.mark.parametrize("block", range(5))
def test_a_coarse_simulation_agrees(script: dict[str, Any], block: int) -> None:
    first = script["method_coverage"](block, 3, 0.03, 100)
    assert first == script["method_coverage"](block, 3, 0.03, 100)
    methods, _, checkpoints = first
    assert methods >= 0.89
    assert checkpoints < 0.82
    assert script["method_coverage"](block, 3, 0.03, 60, kept=True)[0] >= 0.88


@pytest.mark.parametrize("block", range(5))
def test_the_simulation_knows_its_truth(script: dict[str, Any], block: int) -> None:
    kind, rng = script["BLOCKS"][block], np.random.default_rng(block)
    images = script["draw_images"](rng, kind)
    drawn = [script["draw"](rng, kind, images, 3, 0.01) for _ in range(400)]
    estimates = [float(np.nanmean(second) - np.nanmean(first)) for first, second in drawn]
    error = np.std(estimates) / 20
    assert abs(fmean(estimates) - script["true_difference"](kind, images, 0.01)) < 4 * error


def test_the_script_writes_between_its_marks(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script["table"](["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script['BEGIN']}\nold\n{script['END']}\nafter\n", encoding="utf-8")
    monkeypatch.setitem(script["main"].__globals__, "checkpoint_tables", lambda: iter(["one"]))
    monkeypatch.setitem(script["main"].__globals__, "method_tables", lambda: iter(["two"]))
    script["main"](page)
    assert page.read_text(encoding="utf-8") == (f"before\n{script['BEGIN']}\n\none\n\ntwo\n\n{script['END']}\nafter\n")
