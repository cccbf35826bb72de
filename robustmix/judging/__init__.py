"""The verdicts of an audit: from counts alone, and from the published tables."""

from robustmix.judging.explained import TESTS
from robustmix.judging.orderings import published_orderings
from robustmix.judging.verdicts import Fact, NotRun, Observation, Pair, Share, judge

__all__ = ["TESTS", "Fact", "NotRun", "Observation", "Pair", "Share", "judge", "published_orderings"]
