"""Which attacks are one attack at several budgets: steps of every kind, apart and mixed."""

from typing import Any

import pytest

from robustmix.spec.attack import AttackSpec
from robustmix.store.results import ATTACK_COLUMNS
from robustmix.store.sweeps import Sweep, attack_id, exactly, sweeps
from robustmix.units import parse_budget

Row = dict[str, Any]


def rows(spec: AttackSpec) -> list[Row]:
    """What the cells of an attack say of it, a row per budget."""
    found = []
    for eps, steps, step in spec.courses(None):
        row = {
            "attack": spec.name, "norm": spec.metric, "loss": spec.loss, "steps": steps, "step_255": step,
            "eps_255": float("nan") if eps is None else eps, "restarts": spec.restarts, "labels": spec.labels,
            "seed": spec.seed, "options": spec.options, "precision": spec.precision, "impl": spec.impl,
            "compiled": spec.compiled,
        }  # fmt: skip
        assert set(row) == set(ATTACK_COLUMNS)
        found.append(row)
    return found


SPECS = {
    "FGSM": {"name": "fgsm"},
    "FGSM, loss logodds": {"name": "fgsm", "loss": "logodds"},
    "I-FGSM, 10 steps": {"name": "ifgsm"},
    "I-FGSM, 40 steps of 2.5 eps/steps": {"name": "ifgsm", "steps": 40, "step": "2.5 eps/steps"},
    "I-FGSM, 20 steps of 0.5/255": {"name": "ifgsm", "steps": 20, "step": "0.5/255"},
    "I-FGSM, min(eps + 4, 1.25 eps) steps of 1/255": {"name": "ifgsm", "step": "kurakin"},
    "PGD, 10 steps": {"name": "pgd"},
    "PGD, 10 steps of 1 eps/steps, 5 restarts": {"name": "pgd", "step": "eps/steps", "restarts": 5},
    "MI-FGSM, 10 steps, L2, decay 0.9": {"name": "mifgsm", "norm": "l2", "decay": 0.9, "eps": [64, 300]},
    "random signs, seed 4": {"name": "signs", "seed": 4},
    "Square, 100 queries": {"name": "square", "queries": 100},
    "DeepFool, 20 steps": {"name": "deepfool", "steps": 20},
    "AutoAttack": {"name": "autoattack"},
}


@pytest.mark.parametrize("label", SPECS)
def test_every_rule_for_the_steps_is_one_sweep(label: str) -> None:
    spec = AttackSpec.model_validate(SPECS[label])
    (sweep,) = set(sweeps(rows(spec)).values())
    (only,) = sweep
    assert only.label == label
    again = AttackSpec.model_validate(
        {**SPECS[label], "steps": only.steps, "step": only.step} if only.step else SPECS[label]
    )
    assert again.courses(None) == spec.courses(None), "what it says gives the same attack again"


def test_all_attacks_together_stay_apart() -> None:
    every = [row for fields in SPECS.values() for row in rows(AttackSpec.model_validate(fields))]
    found = sweeps(every)
    assert len(found) == len({attack_id(row) for row in every}) == len(every)
    labels = {sweep.label for each in found.values() for sweep in each}
    assert labels == set(SPECS)


def test_one_budget_belongs_to_the_plainest_rule() -> None:
    for fields, sweep in (
        ({"steps": 5, "step": 1}, Sweep("I-FGSM, 5 steps of 1/255", 5, "1")),
        ({"steps": 4}, Sweep("I-FGSM, 4 steps", 4, None)),
        ({"steps": 4, "step": 1}, Sweep("I-FGSM, 4 steps", 4, None)),
        ({"step": "kurakin"}, Sweep("I-FGSM, 5 steps of 1/255", 5, "1")),
    ):
        (row,) = rows(AttackSpec.model_validate({"name": "ifgsm", "eps": [4], **fields}))
        assert list(sweeps([row]).values()) == [(sweep,)]


def test_attack_of_two_sweeps_belongs_to_both() -> None:
    usual = rows(AttackSpec(name="ifgsm", eps=(1, 2, 10)))
    fixed = rows(AttackSpec(name="ifgsm", eps=(1, 2, 4, 10), step=1))
    found = sweeps([*usual, *fixed])
    assert attack_id(usual[2]) == attack_id(fixed[3])
    names = {sweep.label for sweep in found[attack_id(usual[2])]}
    assert names == {"I-FGSM, 10 steps", "I-FGSM, 10 steps of 1/255"}
    assert [len(found[attack_id(row)]) for row in (*usual[:2], *fixed[:3])] == [1] * 5


def test_lengths_are_written_so_that_they_are_read_back() -> None:
    for length, text in ((4.0, "4"), (0.5, "0.5/255"), (1 / 3, "0.3333333333333333/255"), (12.25, "12.25")):
        assert exactly(length) == text
        assert parse_budget(text) == length


def test_id_tells_apart_what_differs_in_anything() -> None:
    (row,) = rows(AttackSpec(name="pgd", eps=(4,)))
    others: Row = {
        "attack": "ifgsm", "norm": "l2", "loss": "dlr", "steps": 11, "step_255": 2.0, "eps_255": 5.0, "restarts": 2,
        "labels": "predicted", "seed": 1, "options": {"decay": 1.0}, "precision": "bf16", "impl": "foolbox",
        "compiled": True,
    }  # fmt: skip
    assert set(others) == set(ATTACK_COLUMNS)
    for key, value in others.items():
        assert attack_id({**row, key: value}) != attack_id(row), key
    assert attack_id({**row, "steps": 10.0, "eps_255": 4}) == attack_id(row), "however a number is written"
    (least,) = rows(AttackSpec(name="cw"))
    assert attack_id(least) == attack_id(dict(least))
