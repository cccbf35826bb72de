"""Intervals and tests, by scipy: of checkpoints, where only images are drawn, and of methods, where seeds are as well.

docs/statistics.md says which answers which question, and how often each was right in simulation.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit
from scipy.stats import binomtest

# From so many networks of each on, a sentence may speak of the methods and not of the runs alone.
SEEDS_FOR_METHODS: Final = 3


# ---- of checkpoints: images are drawn, weights are what they are -------------------------------------------


def wilson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927). It speaks of this checkpoint, not of the method.

    Args:
        count: of ``total``, at least 0.
        total: at least 1.
        confidence: level of the interval.

    Returns:
        The lower and upper end, as fractions.
    """
    # Not by scipy, which takes a millisecond for a p-value that nobody asked for: tables have thousands of cells.
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = count + z**2 / 2
    half = z * math.sqrt(count * (total - count) / total + z**2 / 4)
    # At the ends rounding would leave a little beside 0 and 1.
    low = (centre - half) / (total + z**2) if count else 0.0
    high = (centre + half) / (total + z**2) if count < total else 1.0
    return low, high


def paired_interval(only_first: int, only_second: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference of two error shares on the same examples (Tango 1998).

    It speaks of these two checkpoints, not of the methods that trained them.

    Args:
        only_first: examples that only the first gets wrong, at least 0.
        only_second: examples that only the second gets wrong, at least 0.
        n: all examples, at least 1 and at least the sum of the two.
        confidence: level of the interval.

    Returns:
        The lower and upper end of the first share less the second, as fractions.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    estimate = (only_first - only_second) / n

    def excess(shift: float) -> float:
        """How far the squared score lies beyond its bound if the true difference is ``shift``."""
        linear = (2 * n - only_first + only_second) * shift - only_first - only_second
        root = math.sqrt(max(linear**2 + 8 * n * only_second * shift * (1 - shift), 0.0))
        # The likeliest share of examples that only the second gets wrong
        share = (root - linear) / (4 * n)
        return (only_first - only_second - n * shift) ** 2 - z**2 * n * (2 * share + shift * (1 - shift))

    def end(limit: int) -> float:
        # At the estimate itself the score is 0 / 0 where no pair or every pair is discordant.
        return float(brentq(excess, limit, estimate + 1e-12 * (limit - estimate)))

    return end(-1), end(1)


def sign_test(first: int, second: int) -> float:
    """Exact two-sided sign test; of the examples that only one of two networks gets wrong, McNemar's (McNemar 1947).

    It speaks of these two networks, not of the methods that trained them.

    Args:
        first: pairs that fall to one side, at least 0.
        second: pairs that fall to the other; ties count for neither.

    Returns:
        The p value; 1 where there are only ties.
    """
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def exact_greater(first: int, second: int) -> float:
    """Exact one-sided sign test, McNemar's of paired errors: whether ``first`` is too large for a fair coin.

    Args:
        first: pairs that fall to the side in question, at least 0.
        second: pairs that fall to the other; ties count for neither.

    Returns:
        The probability of so many or more of ``first + second``; 1 where there are only ties.
    """
    return share_greater(first, first + second, 0.5) if first + second else 1.0


def share_greater(count: int, total: int, share: float) -> float:
    """Exact one-sided binomial test: whether ``count`` is too large for a true share of at most ``share``.

    Args:
        count: of ``total``, at least 0.
        total: at least 1.
        share: from 0 to 1.

    Returns:
        The probability of ``count`` or more of ``total`` at ``share``.
    """
    return float(binomtest(count, total, share, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of one family so that the chance of any false alarm stays below the level (Holm 1979).

    Args:
        p_values: of all tests of the family, from 0 to 1.

    Returns:
        The adjusted ones, in the given order.
    """
    m = len(p_values)
    adjusted = [1.0] * m
    largest = 0.0
    for rank, place in enumerate(sorted(range(m), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (m - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


# ---- of methods: seeds are drawn too -----------------------------------------------------------------------


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean over all seeds (Student 1908).

    Args:
        values: one per seed, at least 2.
        confidence: level of the interval.

    Returns:
        The lower and upper end, in the unit of the values.

    Raises:
        ValueError: there is a single value.
    """
    return _student(values, 1 / math.sqrt(len(values) or 1), confidence)


def prediction_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval for one new run of the same kind (Hahn 1969).

    Args:
        values: one per seed, at least 2.
        confidence: level of the interval.

    Returns:
        The lower and upper end, in the unit of the values.

    Raises:
        ValueError: there is a single value.
    """
    return _student(values, math.sqrt(1 + 1 / (len(values) or 1)), confidence)


def _student(values: Sequence[float], errors: float, confidence: float) -> tuple[float, float]:
    """The mean and so many standard deviations to either side, times Student's quantile."""
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 values, not {len(values)}")
    mean = float(np.mean(values))
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2) * np.std(values, ddof=1)) * errors
    return mean - half, mean + half


@dataclass(frozen=True)
class Difference:
    """How much more often the networks of a second method err than those of a first.

    Attributes:
        estimate: mean error of the second less that of the first, as a fraction.
        low: lower end of its interval.
        high: upper end.
        p: two-sided, for no difference.
        df: degrees of freedom of the t distribution.
    """

    estimate: float
    low: float
    high: float
    p: float
    df: float


def difference(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Difference:
    """Compare two ways of training, with sources, targets and images all drawn at random and crossed.

    A Welch t interval over the targets' means (Welch 1947), widened by the spread over sources and over images of their
    own difference between the methods; degrees of freedom are Satterthwaite's (1946). Networks of different seeds are
    scored on the same images by the same sources, so each part's mean square holds the interaction that it shares with
    the targets: as in multi-reader multi-case studies that is counted once, with the targets, and what is left of a
    part counts where it is positive (Dorfman, Berbaum and Metz 1992; Hillis, Berbaum and Metz 2008). Hence the variance
    is not below the true one on average, and above it by what is cut off at 0 and what sources and images share.

    Args:
        first: errors (bool or 0 to 1) of one method, [sources, targets, images]; in the white box one row, in which
            every target is attacked by itself. A single source is taken as given.
        second: errors of the other on the same sources and images. A pair of a source and a target that are one
            network is NaN throughout: means leave it out, and for the spread over networks the additive fit of sources
            and targets takes its place (Yates 1933), lest a target that one strong source leaves out look robust.
        confidence: level of the interval.

    Raises:
        ValueError: a method has fewer than 2 targets, or the two differ in sources or images.
    """
    one, two = (np.asarray(errors, dtype=float) for errors in (first, second))
    one, two = (errors[:, ~np.isnan(errors).all(axis=(0, 2))] for errors in (one, two))
    if one.shape[::2] != two.shape[::2] or min(one.shape[1], two.shape[1]) < 2:
        raise ValueError(f"two methods of at least 2 targets each on the same, not {one.shape} and {two.shape}")
    estimate = float(np.nanmean(two) - np.nanmean(one))
    parts = list(_parts(one, two))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        # All networks of a method err on the same images, and differ on none or on every one: what the images alone
        # leave open, as of two checkpoints.
        n = one.shape[2]
        more, less = (round(max(0.0, sign * estimate) * n) for sign in (1, -1))
        low, high = paired_interval(more, less, n, confidence)
        return Difference(estimate, low, high, sign_test(more, less), math.inf)
    df = variance**2 / sum(part**2 / own for part, own in parts)
    error = math.sqrt(variance)
    half = float(stdtrit(df, (1 + confidence) / 2)) * error
    p = float(2 * stdtr(df, -abs(estimate) / error))
    return Difference(estimate, estimate - half, estimate + half, p, df)


def _parts(one: np.ndarray, two: np.ndarray) -> Iterator[tuple[float, float]]:
    """The variance of the difference by what it comes from, and the degrees of freedom of each part."""
    pairs = _filled(one.mean(axis=2), two.mean(axis=2))
    for table in pairs:
        yield _error(table.mean(axis=0)), table.shape[1] - 1.0
    if len(one) > 1:
        yield _beside_targets([table.T for table in pairs]), len(one) - 1.0
    if one.shape[2] > 1:
        yield _beside_targets([np.nanmean(errors, axis=0) for errors in (one, two)]), one.shape[2] - 1.0


def _beside_targets(tables: Sequence[np.ndarray]) -> float:
    """What sources or images add to the targets' part of the variance, from a table [targets, them] per method."""
    first, second = (table.mean(axis=0) for table in tables)
    return max(0.0, _error(second - first) - sum(_interaction(table) for table in tables))


def _error(values: np.ndarray) -> float:
    """The squared standard error of a mean."""
    return float(np.var(values, ddof=1)) / len(values)


def _interaction(table: np.ndarray) -> float:
    """What the interaction of rows and columns adds to the squared standard error of a table's mean."""
    rows, columns = table.shape
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return float((rest**2).sum() / ((rows - 1) * (columns - 1) * rows * columns))


def _filled(*tables: np.ndarray) -> list[np.ndarray]:
    """Means [sources, targets] per method; what is missing is the additive least-squares fit of all methods' rest."""
    joint = np.hstack(tables)
    missing = np.isnan(joint)
    if not missing.any():
        return list(tables)
    source, target = np.nonzero(~missing)
    # The solution of least norm: what could be the one or the other is put down to the targets, so that where nothing
    # connects two sources they are taken to be equally strong.
    scales = np.repeat([1.0, 1e3], joint.shape)
    design = np.hstack([np.eye(len(joint))[source], np.eye(joint.shape[1])[target]]) * scales
    effects = np.linalg.lstsq(design, joint[~missing])[0] * scales
    fit = effects[: len(joint), None] + effects[len(joint) :]
    return np.split(np.where(missing, fit, joint), [tables[0].shape[1]], axis=1)
