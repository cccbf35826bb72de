"""From counts to verdicts, against closed forms; the published tables in their own order."""

import re
from math import comb
from pathlib import Path

import pytest

from robustmix.judging import TESTS, Fact, NotRun, Observation, Pair, Share, judge, published_orderings
from robustmix.store.audits import KINDS, AuditTest


def judged(*outcomes: object, names: tuple[str, ...] = ("iterated", "random-signs", "square")) -> list[AuditTest]:
    return list(judge([Observation(name, "", one) for name, one in zip(names, outcomes, strict=False)]))


def only(outcome: object, name: str = "iterated") -> AuditTest:
    (test,) = judged(outcome, names=(name,))
    return test


# ---- one comparison --------------------------------------------------------------------------------------


def test_pair_is_the_one_sided_sign_test_with_its_share() -> None:
    test = only((Pair(8, 2, 300),))
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
    assert only((Pair(contrary, expected, n),)).verdict == verdict


def test_meaning_belongs_to_the_verdict() -> None:
    assert only((Pair(0, 9, 100),)).meaning == TESTS["iterated"].passed
    assert only((Pair(9, 0, 100),)).meaning == TESTS["iterated"].failed
    assert only((Pair(4, 0, 100),)).meaning.endswith("; unless it is chance (p = 0.062).")
    assert only((Pair(5, 0, 500),)).meaning.endswith("; but by no more than a point.")


def test_what_a_single_step_does_is_a_finding() -> None:
    for contrary in (4, 40):
        assert only((Pair(contrary, 0, 100),), "fgsm-monotone").verdict == "finding"
    assert only((Pair(0, 0, 100),), "fgsm-monotone").verdict == "pass"


def test_facts_and_what_was_not_run_have_no_p_value() -> None:
    assert [only(Fact(verdict), "finite").verdict for verdict in ("pass", "warn", "fail")] == ["pass", "warn", "fail"]
    test = only(NotRun("Install it."), "square")
    assert (test.verdict, test.meaning, test.p, test.excess) == ("not run", "Install it.", None, None)


# ---- several ---------------------------------------------------------------------------------------------


def test_holm_over_all_tests_of_an_audit_that_have_a_p_value() -> None:
    alone = only((Pair(5, 0, 100),))
    with_facts = judged((Pair(5, 0, 100),), Fact("pass"), names=("iterated", "finite"))
    three = judged((Pair(5, 0, 100),), (Pair(6, 0, 100),), Share(0, 100), names=("iterated", "random-signs", "square"))
    assert alone.p == with_facts[1].p == 1 / 32
    assert [test.p for test in three] == [pytest.approx(2 / 32), pytest.approx(3 / 64), 1]
    assert [test.verdict for test in three] == ["warn", "fail", "pass"]


def test_worst_of_several_comparisons_decides_after_bonferroni() -> None:
    test = only((Pair(0, 9, 100), Pair(7, 0, 100), Pair(2, 1, 100)), "transfer")
    assert test.p == pytest.approx(3 / 2**7)
    assert test.excess == pytest.approx(0.07)
    assert test.verdict == "fail"
    assert only((Pair(5, 0, 100), Pair(0, 0, 100)), "transfer").verdict == "warn"


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
    assert all(test.p is None for test in found.values())


def test_the_page_on_audits_has_a_heading_for_every_test() -> None:
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    headings = {name.strip() for line in re.findall(r"^### (.+)$", page, re.M) for name in line.split(",")}
    assert headings == set(TESTS)
