"""From what the tests of an audit counted to their verdicts.

A comparison fails if the wrong side is significantly ahead (one-sided exact test, Holm over all comparisons of the
audit) and by more than a point; if only one of the two holds, it is a warning. What a single step does against
expectation is a finding if it is significant: it is no sign of a mistake. A comparison that could not have failed is
not made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from robustmix.judging.explained import TESTS, Explained
from robustmix.stats import exact_greater, holm, share_greater
from robustmix.store.audits import VERDICTS, AuditTest, Verdict

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
        room: examples that the second left unbroken, all that the first could have been ahead by.
    """

    contrary: int
    expected: int
    n: int
    room: int

    @property
    def excess(self) -> float:
        """Share of the examples by which the first is ahead."""
        return (self.contrary - self.expected) / self.n

    @property
    def p(self) -> float:
        """One-sided exact p value of the first being ahead."""
        return exact_greater(self.contrary, self.expected)

    @property
    def furthest(self) -> "Pair":
        """What could have been counted at worst."""
        return replace(self, contrary=self.room, expected=0)

    @property
    def seen(self) -> str:
        """What speaks against it, in words."""
        more = self.contrary - self.expected
        images, speak = ("image", "speaks") if more == 1 else ("images", "speak")
        return f"{more} more {images} of {self.n} {speak} against it than for it"

    @property
    def lack(self) -> str:
        """What to do where even the worst count would tell nothing."""
        return _few_left(self.room, self.n)


@dataclass(frozen=True)
class Share:
    """A share of the examples that should not be above a limit.

    Attributes:
        count: examples.
        n: all of them.
        most: the limit, a fraction.
        room: examples that could have been counted; all of them if not given.
    """

    count: int
    n: int
    most: float = MOST_RESISTING
    room: int | None = None

    @property
    def excess(self) -> float:
        """Share by which it is above the limit."""
        return self.count / self.n - self.most

    @property
    def p(self) -> float:
        """One-sided exact p value of the share being above the limit."""
        return share_greater(self.count, self.n, self.most)

    @property
    def furthest(self) -> "Share":
        """What could have been counted at worst."""
        return replace(self, count=self.n if self.room is None else self.room)

    @property
    def seen(self) -> str:
        """What speaks against it, in words."""
        examples, speak = ("example", "speaks") if self.n == 1 else ("examples", "speak")
        return f"{self.count} of {self.n} {examples} {speak} against it where {100 * self.most:g} % may"

    @property
    def lack(self) -> str:
        """What to do where even the worst count would tell nothing."""
        if self.room is not None:
            return _few_left(self.room, self.n)
        examples, tell = ("example", "tells") if self.n == 1 else ("examples", "tell")
        return f"Only {self.n} {examples} {tell} anything, too few to fail: choose a smaller --eps or more examples."


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


Outcome = tuple[Pair, ...] | Share | Fact | NotRun


@dataclass(frozen=True)
class Observation:
    """What one test counted.

    Attributes:
        name: of the test, a key of `TESTS`.
        measured: the numbers, in words.
        outcome: the counts. Of several comparisons each counts as a test, and the worst verdict is that of all.
    """

    name: str
    measured: str
    outcome: Outcome


def judge(observations: Sequence[Observation]) -> tuple[AuditTest, ...]:
    """The verdicts of all tests of one audit, in the order of `TESTS`.

    Args:
        observations: one for each test that was to be made.
    """
    ordered = sorted(observations, key=lambda one: list(TESTS).index(one.name))
    told = [[one for one in _comparisons(observation.outcome) if _could_fail(one)] for observation in ordered]
    adjusted = iter(holm([one.p for several in told for one in several]))
    return tuple(
        _judged(observation, [(one, next(adjusted)) for one in several])
        for observation, several in zip(ordered, told, strict=True)
    )


def _comparisons(outcome: Outcome) -> tuple[Pair | Share, ...]:
    if isinstance(outcome, Fact | NotRun):
        return ()
    return outcome if isinstance(outcome, tuple) else (outcome,)


def _could_fail(one: Pair | Share) -> bool:
    """Whether the worst that could have been counted would have been a failure, were it the only comparison."""
    return one.furthest.p < ALPHA and one.furthest.excess > LEAST_EXCESS


def _judged(one: Observation, told: Sequence[tuple[Pair | Share, float]]) -> AuditTest:
    """The verdict of a test from those of its comparisons that could have failed, with their adjusted p values."""
    test = TESTS[one.name]
    verdict: Verdict
    excess = p = None
    if isinstance(one.outcome, NotRun):
        verdict, meaning = "not run", one.outcome.reason
    elif isinstance(one.outcome, Fact):
        verdict = one.outcome.verdict
        meaning = test.passed if verdict == "pass" else test.failed
    elif not told:
        most = max(_comparisons(one.outcome), key=lambda comparison: comparison.furthest.excess)
        verdict, meaning = "not run", most.lack
    else:
        worst, p = max(told, key=lambda pair: (VERDICTS.index(_verdict(*pair)), -pair[1], pair[0].excess))
        verdict, meaning, excess = _verdict(worst, p), _meaning(test, worst, p), worst.excess
        if test.finding:
            verdict = "finding" if p < ALPHA else "pass"
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


def _verdict(one: Pair | Share, p: float) -> Verdict:
    significant, much = p < ALPHA, one.excess > LEAST_EXCESS
    return "fail" if significant and much else "warn" if significant or much else "pass"


def _meaning(test: Explained, one: Pair | Share, p: float) -> str:
    significant, much = p < ALPHA, one.excess > LEAST_EXCESS
    if significant:
        return test.failed if much else f"{test.failed.removesuffix('.')}; but by no more than a point."
    return f"{one.seen}, which chance may explain as well (p = {p:.2g})." if much else test.passed


def _few_left(room: int, n: int) -> str:
    left = f"Only {room} of {n} images {'is' if room == 1 else 'are'}" if room else f"None of {n} images is"
    return f"{left} left to tell anything at this budget: choose a smaller --eps."
