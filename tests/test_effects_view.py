from dataclasses import replace

from robustmix.report.effects import Effect
from robustmix.report.effects_view import effects_scope, effects_table, speak_of_methods
from robustmix.stats import Difference

DECLARED = Effect(
    role="white", label="FGSM", attack="fgsm", eps=4, base="ERM", family="mixup", source=None,
    names=(("erm1", "erm2", "erm3"), ("mixup1", "mixup2", "mixup3")), n=100, observed=-0.123,
    difference=Difference(-0.123, -0.165, -0.081, 0.0002, 4.0), p=0.0008, declared=True, about="methods",
)  # fmt: skip
DESCRIPTIVE = replace(DECLARED, role="transfer", source="ERM", declared=False, p=None)
SINGLE = replace(DECLARED, names=(("erm1",), ("mixup1",)), difference=None, p=None, about="runs")


def test_declared_effects_come_first() -> None:
    table = effects_table([DESCRIPTIVE, DECLARED, SINGLE])
    assert [len(row) for row in table.rows] == [len(table.header)] * 3
    assert table.rows[0] == [
        "white box", "FGSM at 4/255", "itself", "ERM", "mixup", "declared", "3 and 3", "-12.3",
        "[-16.5,\N{NO-BREAK SPACE}-8.1]", "< 0.001",
    ]  # fmt: skip
    assert table.rows[1][6:] == ["1 and 1", "-12.3", "–", "–"]
    assert table.rows[2][0:3] == ["transfer", "FGSM at 4/255", "ERM"]
    assert (table.rows[2][5], table.rows[2][-1]) == ("descriptive", "–")


def test_what_may_be_concluded() -> None:
    assert speak_of_methods([DECLARED, DESCRIPTIVE])
    assert speak_of_methods([DECLARED, replace(DESCRIPTIVE, about="runs")]), "what is descriptive does not count"
    assert not speak_of_methods([DECLARED, replace(DECLARED, about="runs")])
    assert not speak_of_methods([])
    one, several = effects_scope([DECLARED]), effects_scope([DECLARED, DECLARED, DESCRIPTIVE])
    assert one.startswith("1 test of ")
    assert "was declared beforehand" in one
    assert several.startswith("2 tests of ")
    assert "At least 3 seeds" not in several
    assert several.endswith("With at least 3 seeds of each, they speak of the methods.")
    nothing = effects_scope([SINGLE])
    assert nothing.startswith("Without two runs of each there is no test and no interval")
    assert nothing.endswith("they speak of the runs and not of the methods that trained them.")


def test_without_a_declared_effect_all_are_judged() -> None:
    pgd = replace(SINGLE, label="PGD", declared=False)
    assert not speak_of_methods([pgd]), "that nothing is declared makes no methods of runs"
    assert speak_of_methods([DESCRIPTIVE])
    assert not speak_of_methods([DESCRIPTIVE, pgd])


def test_scope_tells_nothing_declared_from_too_few_runs() -> None:
    counts = (
        "Only FGSM, and I-FGSM with 10 steps of a 10th of the budget each, on cross-entropy and in float32, count as "
        "declared"
    )
    scopes = [
        effects_scope(found) for found in ([DECLARED], [SINGLE], [replace(DESCRIPTIVE, label="I-FGSM, 20 steps")])
    ]
    assert all(counts in scope for scope in scopes)
    assert ["nothing is declared" in scope for scope in scopes] == [False, False, True]
    assert "Without two runs" not in scopes[2]


def test_scope_names_what_else_sets_the_kinds_apart() -> None:
    apart = replace(DECLARED, about="runs", unlike=("width 16 or 64",))
    scope = effects_scope([apart])
    assert "more than the method (width 16 or 64)" in scope
    assert "fewer than 3 seeds" not in scope


def test_clean_errors_have_a_row_without_an_attack() -> None:
    clean = replace(DECLARED, role="clean", label="clean", attack="clean", eps=0, declared=False, p=None)
    assert effects_table([clean]).rows[0][:6] == ["clean", "none", "–", "ERM", "mixup", "descriptive"]
