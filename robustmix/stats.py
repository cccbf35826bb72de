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
