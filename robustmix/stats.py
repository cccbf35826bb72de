"""Intervals and tests, by scipy."""

from scipy.stats import binomtest


def wilson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927). It speaks of this checkpoint, not of the method.

    Args:
        count: of ``total``, at least 0.
        total: at least 1.
        confidence: level of the interval.

    Returns:
        The lower and upper end, as fractions.
    """
    interval = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


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
