"""Wilson's interval and the sign test against their formulas and their known values."""

from math import comb
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustmix.stats import sign_test, wilson


def by_formula(count: int, total: int, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return centre - half, centre + half


@given(total=st.integers(1, 10_000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_interval_is_wilsons_formula(total: int, share: float, confidence: float) -> None:
    count = round(share * total)
    low, high = wilson(count, total, confidence)
    assert (low, high) == pytest.approx(by_formula(count, total, confidence), abs=1e-9)
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
