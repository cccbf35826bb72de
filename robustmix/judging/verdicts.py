"""From what the tests of an audit counted to their verdicts.

A comparison fails if the wrong side is significantly ahead (one-sided exact test, Holm over all tests of the audit) and
by more than a point; if only one of the two holds, it is a warning. What a single step does against expectation is a
finding: it is no sign of a mistake.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from robustmix.judging.explained import TESTS
from robustmix.stats import exact_greater, holm, share_greater
from robustmix.store.audits import AuditTest, Verdict

ALPHA: Final = 0.05
# A point: what more steps, another source or another loss may differ by.
LEAST_EXCESS: Final = 0.01
# What is no image's own fault: of the examples, this share may resist.
MOST_RESISTING: Final = 0.01


@dataclass(frozen=True)
class Pair:
    """Two attacks on the same examples, the first of which should not break more than the second.

    Attributes:
        contrary: examples that only the first broke.
        expected: examples that only the second broke.
        n: examples.
    """

    contrary: int
    expected: int
    n: int

    @property
    def excess(self) -> float:
        """Share of the examples by which the first is ahead."""
        return (self.contrary - self.expected) / self.n

    @property
    def p(self) -> float:
        """One-sided exact p value of the first being ahead."""
        return exact_greater(self.contrary, self.expected)


@dataclass(frozen=True)
class Share:
    """A share of the examples that should not be above a limit.

    Attributes:
        count: examples.
        n: all of them.
        most: the limit, a fraction.
    """

    count: int
    n: int
    most: float = MOST_RESISTING

    @property
    def excess(self) -> float:
        """Share by which it is above the limit."""
        return self.count / self.n - self.most

    @property
    def p(self) -> float:
        """One-sided exact p value of the share being above the limit."""
        return share_greater(self.count, self.n, self.most)


@dataclass(frozen=True)
class Fact:
    """What leaves nothing to chance: the verdict itself."""

    verdict: Verdict


@dataclass(frozen=True)
class NotRun:
    """A test that was not made.

    Attributes:
        reason: why, and how to make it.
    """

    reason: str


@dataclass(frozen=True)
class Observation:
    """What one test counted.

    Attributes:
        name: of the test, a key of `TESTS`.
        measured: the numbers, in words.
        outcome: the counts. Of several comparisons each counts as a test, and the worst one decides.
    """

    name: str
    measured: str
    outcome: tuple[Pair, ...] | Share | Fact | NotRun


def judge(observations: Sequence[Observation]) -> tuple[AuditTest, ...]:
    """The verdicts of all tests of one audit, in the order of `TESTS`.

    Args:
        observations: one for each test that was to be made.
    """
    ordered = sorted(observations, key=lambda one: list(TESTS).index(one.name))
    decided = [_decisive(one.outcome) for one in ordered]
    adjusted = iter(holm([p for _, p in filter(None, decided)]))
    tests = []
    for one, decisive in zip(ordered, decided, strict=True):
        excess, p = (decisive[0], next(adjusted)) if decisive else (None, None)
        tests.append(_judged(one, excess, p))
    return tuple(tests)


def _decisive(outcome: tuple[Pair, ...] | Share | Fact | NotRun) -> tuple[float, float] | None:
    """Excess and p value that a test stands or falls by; of several comparisons the worst, by Bonferroni."""
    if isinstance(outcome, Share):
        return outcome.excess, outcome.p
    if isinstance(outcome, tuple):
        worst = min(outcome, key=lambda pair: (pair.p, -pair.excess))
        return worst.excess, min(1.0, len(outcome) * worst.p)
    return None


def _judged(one: Observation, excess: float | None, p: float | None) -> AuditTest:
    test = TESTS[one.name]
    verdict: Verdict
    if isinstance(one.outcome, NotRun):
        verdict, meaning = "not run", one.outcome.reason
    elif isinstance(one.outcome, Fact):
        verdict = one.outcome.verdict
        meaning = test.passed if verdict == "pass" else test.failed
    else:
        assert excess is not None
        assert p is not None
        significant, much = p < ALPHA, excess > LEAST_EXCESS
        verdict = "fail" if significant and much else "warn" if significant or much else "pass"
        meaning = test.passed if verdict == "pass" else test.failed
        if verdict == "warn":
            but = "but by no more than a point" if significant else f"unless it is chance (p = {p:.2g})"
            meaning = f"{test.failed.removesuffix('.')}; {but}."
        if test.finding and verdict != "pass":
            verdict = "finding"
    return AuditTest(
        name=one.name,
        title=test.title,
        kind=test.kind,
        verdict=verdict,
        measured=one.measured,
        meaning=meaning,
        excess=excess,
        p=p,
    )
