"""From counts to verdicts, against closed forms; the published tables in their own order."""

import re
from math import comb
from pathlib import Path

import pytest

from robustmix.judging import TESTS, Fact, NotRun, Observation, Pair, Share, judge, published_orderings
from robustmix.published import Figure, figures
from robustmix.store.audits import KINDS, AuditTest


def judged(*outcomes: object, names: tuple[str, ...] = ("iterated", "random-signs", "square")) -> list[AuditTest]:
    return list(judge([Observation(name, "", one) for name, one in zip(names, outcomes, strict=False)]))


def only(outcome: object, name: str = "iterated") -> AuditTest:
    (test,) = judged(outcome, names=(name,))
    return test


def pair(contrary: int, expected: int, n: int) -> Pair:
    """With all the room that the counts leave."""
    return Pair(contrary, expected, n, n - expected)


def sign_p(contrary: int, expected: int) -> float:
    m = contrary + expected
    return sum(comb(m, k) for k in range(contrary, m + 1)) / 2**m


# ---- one comparison --------------------------------------------------------------------------------------


def test_pair_is_the_one_sided_sign_test_with_its_share() -> None:
    test = only((pair(8, 2, 300),))
    assert test.p == pytest.approx(sum(comb(10, k) for k in (8, 9, 10)) / 2**10)
    assert test.excess == pytest.approx(6 / 300)


def test_share_is_the_one_sided_binomial_test_above_its_limit() -> None:
    test = only(Share(5, 200, 0.01), "square")
    assert test.p == pytest.approx(1 - sum(comb(200, k) * 0.01**k * 0.99 ** (200 - k) for k in range(5)))
    assert test.excess == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("contrary", "expected", "n", "verdict"),
    [
        (0, 0, 100, "pass"),
        (0, 50, 100, "pass"),  # the right way round
        (5, 0, 100, "fail"),  # 1/32 and five points
        (4, 0, 100, "warn"),  # 1/16: chance may do it
        (5, 0, 500, "warn"),  # 1/32, but exactly a point
        (5, 0, 499, "fail"),
        (1, 0, 100, "pass"),  # exactly a point, and chance
        (30, 10, 10_000, "warn"),  # certain, and a fifth of a point
        (20, 18, 100, "warn"),  # two points of pure chance
    ],
)
def test_failing_takes_significance_and_more_than_a_point(contrary: int, expected: int, n: int, verdict: str) -> None:
    assert only((pair(contrary, expected, n),)).verdict == verdict


def test_meaning_belongs_to_the_verdict() -> None:
    assert only((pair(0, 9, 100),)).meaning == TESTS["iterated"].passed
    assert only((pair(9, 0, 100),)).meaning == TESTS["iterated"].failed
    assert only((pair(5, 0, 500),)).meaning == f"{TESTS['iterated'].failed[:-1]}; but by no more than a point."


def test_what_chance_explains_as_well_is_said_as_it_was_seen() -> None:
    assert only((pair(6, 2, 100),)).meaning == (
        "4 more images of 100 speak against it than for it, which chance may explain as well (p = 0.14)."
    )
    assert only((pair(1, 0, 50),)).meaning.startswith("1 more image of 50 speaks against it than for it, which chance")
    p = 1 - sum(comb(20, k) * 0.05**k * 0.95 ** (20 - k) for k in range(3))
    assert only(Share(3, 20, 0.05), "binarisation").meaning == (
        f"3 of 20 examples speak against it where 5 % may, which chance may explain as well (p = {p:.2g})."
    )


def test_what_a_single_step_does_is_a_finding_if_it_is_significant() -> None:
    name = "fgsm-monotone"
    for contrary, n in ((5, 100), (40, 100), (5, 500)):
        assert only((pair(contrary, 0, n),), name).verdict == "finding"
    assert only((pair(0, 0, 100),), name).verdict == "pass"
    assert only((pair(0, 0, 100),), name).meaning == TESTS[name].passed
    assert only((pair(4, 0, 100),), name).verdict == "pass"
    assert only((pair(4, 0, 100),), name).meaning.startswith("4 more images of 100 speak against it than for it")
    assert only((pair(5, 0, 500),), name).meaning.endswith("; but by no more than a point.")
    # A smaller p value hides neither what chance may explain nor what it may not.
    assert only((pair(2, 0, 200), pair(10, 7, 200)), name).meaning.startswith("3 more images of 200")
    assert only((pair(5, 1, 100), pair(12, 0, 2000)), name).verdict == "finding"


def test_facts_and_what_was_not_run_have_no_p_value() -> None:
    assert [only(Fact(verdict), "finite").verdict for verdict in ("pass", "warn", "fail")] == ["pass", "warn", "fail"]
    test = only(NotRun("Install it."), "square")
    assert (test.verdict, test.meaning, test.p, test.excess) == ("not run", "Install it.", None, None)


# ---- what cannot fail -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "n", "runs"),
    [
        (0, 100, False),
        (4, 100, False),  # 1/16 at best
        (5, 100, True),  # 1/32
        (5, 500, False),  # a point at best
        (6, 500, True),
        (100, 10_000, False),
        (101, 10_000, True),
    ],
)
def test_what_could_not_have_failed_is_not_run(room: int, n: int, runs: bool) -> None:
    for expected in (0, n - room):
        test = only((Pair(0, expected, n, room),), "transfer")
        assert test.verdict == ("pass" if runs else "not run")
        assert (test.p is None, test.excess is None) == (not runs, not runs)
    if not runs:
        left = f"Only {room} of {n} images are" if room else f"None of {n} images is"
        assert test.meaning == f"{left} left to tell anything at this budget: choose a smaller --eps."


def test_share_of_too_little_is_not_run() -> None:
    # Of 200 at one in a hundred, 5 or more happen in 1 of 19 cases, 6 or more in 1 of 62.
    at_best = {room: only(Share(0, 200, room=room), "square") for room in (0, 1, 5, 6)}
    assert [test.verdict for test in at_best.values()] == ["not run", "not run", "not run", "pass"]
    assert at_best[1].meaning == "Only 1 of 200 images is left to tell anything at this budget: choose a smaller --eps."
    assert at_best[6].meaning == TESTS["square"].passed
    large = Share(0, 1000, room=20), Share(0, 1000, room=21)  # a point above the limit at best, and more
    assert [only(one, "square").verdict for one in large] == ["not run", "pass"]


def test_share_of_too_few_examples_is_not_run() -> None:
    one, two = only(Share(0, 1, 0.05), "binarisation"), only(Share(0, 2, 0.05), "binarisation")
    assert (one.verdict, two.verdict) == ("not run", "pass")  # one in twenty is not less than that
    assert one.meaning.startswith("Only 1 example tells anything, too few to fail: choose a smaller --eps")
    assert only(Share(1, 2, 0.3), "square").meaning.startswith("Only 2 examples tell anything")


def test_failure_is_one_however_little_was_left() -> None:
    for contrary in range(12):
        for expected in range(12):
            for n in (23, 100, 500):
                failed = sign_p(contrary, expected) < 0.05 and (contrary - expected) / n > 0.01
                test = only((Pair(contrary, expected, n, room=contrary),))
                assert (test.verdict == "fail") == failed
    for count in range(30):
        free, tight = Share(count, 200), Share(count, 200, room=count)
        assert (only(free).verdict == "fail") == (only(tight).verdict == "fail")


def test_comparison_that_cannot_fail_is_no_test_of_the_family() -> None:
    nothing = Pair(3, 0, 100, 3)
    test = only((nothing, Pair(5, 0, 100, 20), nothing), "transfer")
    assert (test.verdict, test.p, test.excess) == ("fail", 1 / 32, 0.05)
    assert [one.p for one in judged((nothing,), (Pair(5, 0, 100, 20),))] == [None, 1 / 32]
    assert only((nothing, Pair(0, 0, 100, 4)), "transfer").meaning.startswith("Only 4 of 100 images are left")


# ---- several ---------------------------------------------------------------------------------------------


def test_holm_over_all_tests_of_an_audit_that_have_a_p_value() -> None:
    alone = only((pair(5, 0, 100),))
    with_facts = judged((pair(5, 0, 100),), Fact("pass"), names=("iterated", "finite"))
    three = judged((pair(5, 0, 100),), (pair(6, 0, 100),), Share(0, 100), names=("iterated", "random-signs", "square"))
    assert alone.p == with_facts[1].p == 1 / 32
    assert [test.p for test in three] == [pytest.approx(2 / 32), pytest.approx(3 / 64), 1]
    assert [test.verdict for test in three] == ["warn", "fail", "pass"]


def test_each_comparison_is_a_test_of_its_own_and_the_worst_verdict_counts() -> None:
    test = only((pair(0, 9, 100), pair(7, 0, 100), pair(2, 1, 100)), "transfer")
    assert test.verdict == "fail"
    assert test.p == pytest.approx(3 / 2**7)
    assert test.excess == pytest.approx(0.07)
    assert only((pair(5, 0, 100), pair(0, 0, 100)), "transfer").verdict == "warn"
    first, other = judged((pair(7, 0, 100), pair(6, 0, 100)), (pair(8, 0, 100),), names=("iterated", "transfer"))
    assert other.p == pytest.approx(3 / 2**8)
    assert first.p == pytest.approx(2 / 2**7)  # its other comparison: 1 / 2**6


def test_smaller_p_value_does_not_hide_a_worse_comparison() -> None:
    certain, worse = pair(60, 10, 10_000), pair(9, 0, 100)
    assert certain.p < worse.p
    for order in ((certain, worse), (worse, certain)):
        test = only(order, "transfer")
        assert (test.verdict, test.excess) == ("fail", 0.09)
        assert test.p == 1 / 2**9
        assert test.meaning == TESTS["transfer"].failed
    chance = only((pair(0, 0, 100), pair(20, 18, 100)), "transfer")
    assert chance.verdict == "warn"
    assert chance.excess == pytest.approx(0.02)


def test_harmless_comparison_changes_a_verdict_by_no_more_than_holms_factor() -> None:
    for worst in (pair(9, 0, 100), pair(30, 10, 10_000), pair(20, 18, 100), pair(0, 3, 100)):
        alone = only((worst,), "transfer")
        assert alone.p is not None
        for harmless in (pair(0, 0, 100), pair(0, 50, 100), pair(3, 2, 10_000)):
            test = only((harmless, worst), "transfer")
            assert test.p is not None
            assert test.verdict == alone.verdict
            assert test.p <= min(1, 2 * alone.p)


def test_tests_stand_in_one_order() -> None:
    names = [test.name for test in judge([Observation(name, "", NotRun("no")) for name in reversed(TESTS)])]
    assert names == list(TESTS)


def test_every_test_is_explained() -> None:
    for test in TESTS.values():
        assert test.kind in KINDS
        assert test.passed != test.failed
        for sentence in (test.passed, test.failed):
            assert sentence.endswith(".")
            assert ". " not in sentence
    assert {test.kind for test in TESTS.values()} == set(KINDS)


# ---- published -------------------------------------------------------------------------------------------


def test_slides_fail_the_ordering_and_zhang_passes_both() -> None:
    found = {test.name: test for test in published_orderings()}
    assert {name: test.verdict for name, test in found.items()} == {
        "zhang-table3-iterated": "pass",
        "zhang-table3-transfer": "pass",
        "ali-cifar10-transfer": "fail",
    }
    slides = found["ali-cifar10-transfer"]
    assert slides.excess == pytest.approx((55.07 - 53.7) / 100)
    assert "erm: white FGSM 53.7 % < transfer FGSM 55.07 %" in slides.measured
    assert "mixup: white FGSM 49.25 % < transfer FGSM 49.76 %" in slides.measured
    assert found["zhang-table3-transfer"].measured.count(">=") == 8
    assert "erm (top 5): white I-FGSM 93.4 % >= white FGSM 63.1 %" in found["zhang-table3-iterated"].measured
    assert "a single step may overshoot, and of FGSM our own audit calls it a finding" in slides.meaning
    assert "whether chance explains it cannot be tested" in slides.meaning
    assert found["zhang-table3-transfer"].meaning == "The published errors are ordered as an audit expects."
    assert all(test.p is None for test in found.values())


@pytest.mark.parametrize(
    ("attack", "role", "name", "said"),
    [
        ("fgsm", "white", "iterated", "One step is published to break more than several: the iterated attack may not"),
        ("ifgsm", "transfer", "transfer", "the white-box attack may be too weak, or its gradients masked"),
    ],
)
def test_what_is_published_of_several_steps_is_no_overshooting(
    attack: str, role: str, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(figure: Figure) -> Figure:
        if (figure.experiment, figure.attack, figure.role) == ("zhang-table3", attack, role):
            return figure.model_copy(update={"value": 100.0})
        return figure

    changed = [spoilt(figure) for figure in figures()]
    monkeypatch.setattr("robustmix.judging.orderings.figures", lambda: changed)
    found = {test.name: test for test in published_orderings()}[f"zhang-table3-{name}"]
    assert found.verdict == "fail"
    assert said in found.meaning
    assert "overshoot" not in found.meaning
    assert found.meaning.endswith("; whether chance explains it cannot be tested from published figures.")


def test_the_page_on_audits_has_a_heading_for_every_test() -> None:
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    headings = {name.strip() for line in re.findall(r"^### (.+)$", page, re.M) for name in line.split(",")}
    assert headings == set(TESTS)
