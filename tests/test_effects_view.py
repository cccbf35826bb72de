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
