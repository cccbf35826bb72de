"""Attacks as people ask for them: what fits together, how many steps of which length, and how it reads."""

import json
import tomllib
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustmix.errors import SpecError
from robustmix.spec import names
from robustmix.spec.attack import (
    DEFAULT_L2_SWEEP,
    DEFAULT_STEPS,
    DEFAULT_SWEEP,
    FOREIGN,
    FOREIGN_STEPS,
    ITERATED,
    L2_SWEEPS,
    MINIMUM_NORM,
    SWEEPS,
    TAKES,
    AttackSpec,
    Course,
    check_reach,
    parse_step,
    sweep_for,
)
from robustmix.spec.titles import ATTACK_TITLES, attack_label
from robustmix.spec.validation import validate

WITH_BUDGET = [name for name in names.ATTACKS if name not in MINIMUM_NORM]
# A value other than the usual one for every parameter that only some attacks take.
UNUSUAL: dict[str, Any] = {
    "loss": "margin",
    "steps": 20,
    "step": "2 eps/steps",
    "restarts": 3,
    "decay": 0.5,
    "queries": 100,
    "seed": 5,
    "impl": "foolbox",
}


def spec(name: str, **fields: Any) -> AttackSpec:
    return validate(AttackSpec, {"name": name, **fields})


def test_every_attack_has_its_parameters_and_its_title() -> None:
    assert set(TAKES) == set(names.ATTACKS) == set(ATTACK_TITLES) - {"clean"} == set(get_args(names.AttackName))
    assert set().union(*TAKES.values()) == set(UNUSUAL)
    assert {*ITERATED, *FOREIGN} < set(names.ATTACKS)
    assert set(FOREIGN_STEPS) == set(MINIMUM_NORM)


# ---- what an attack takes --------------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", UNUSUAL)
@pytest.mark.parametrize("name", names.ATTACKS)
def test_parameter_is_taken_or_refused_with_the_attacks_that_take_it(name: str, parameter: str) -> None:
    if parameter in TAKES[name]:
        assert getattr(spec(name, **{parameter: UNUSUAL[parameter]}), parameter) == UNUSUAL[parameter]
        return
    with pytest.raises(SpecError) as caught:
        spec(name, **{parameter: UNUSUAL[parameter]})
    owners = ", ".join(other for other in names.ATTACKS if parameter in TAKES[other])
    assert str(caught.value) == f"{name} takes no '{parameter}': it belongs to {owners}"


@pytest.mark.parametrize("name", names.ATTACKS)
def test_what_every_attack_takes(name: str) -> None:
    own: dict[str, Any] = {"labels": "predicted", "compiled": True, "norm": "l2"}
    own |= {} if name in MINIMUM_NORM else {"precision": "bf16"}
    for field, value in own.items():
        assert getattr(spec(name, **{field: value}), field) == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cw", "norm": "linf"}, "cw is an attack in l2: norm = 'linf' does not fit"),
        ({"name": "deepfool", "eps": [4]}, "deepfool looks for the smallest perturbation: it takes no 'eps'"),
        ({"name": "cw", "eps": [4]}, "cw looks for the smallest perturbation"),
        (
            {"name": "cw", "precision": "bf16"},
            "cw stops where the prediction changes, which in bf16 is not where the network",
        ),
        ({"name": "hopskipjump", "eps": [4]}, "hopskipjump looks for the smallest perturbation"),
        ({"name": "ifgsm", "step": "kurakin", "steps": 5}, "'kurakin' sets the number of steps itself: leave 'steps'"),
        ({"name": "fgsm", "impl": "foolbox", "loss": "margin"}, "impl = 'foolbox' makes fgsm with loss ce, norm linf"),
        ({"name": "fgsm", "impl": "torchattacks", "norm": "l2"}, "impl = 'torchattacks' makes fgsm with loss ce"),
        ({"name": "pgd", "impl": "foolbox", "restarts": 2}, "one start only"),
        ({"name": "mifgsm", "decay": -0.1}, r"decay = -0.1: input should be greater than or equal to 0"),
        ({"name": "mifgsm", "decay": 2.01}, r"decay = 2.01: input should be less than or equal to 2"),
        ({"name": "mifgsm", "decay": 1e39}, r"decay = 1e\+39: input should be less than or equal to 2"),
        ({"name": "mifgsm", "decay": float("nan")}, "decay = nan"),
        ({"name": "mifgsm", "decay": float("inf")}, "decay = inf"),
        ({"name": "pgd", "restarts": 0}, "restarts = 0"),
        ({"name": "pgd", "seed": -1}, "seed = -1"),
        ({"name": "square", "queries": 0}, "queries = 0"),
        ({"name": "ifgsm", "steps": 0}, "steps = 0"),
        ({"name": "ifgsm", "steps": True}, "steps: true is not a number"),
        ({"name": "mifgsm", "decay": False}, "decay: false is not a number"),
        ({"name": "fgsm", "norm": "l1"}, "norm = 'l1': input should be 'linf' or 'l2'"),
        ({"name": "fgsm", "loss": "nll"}, "loss = 'nll': input should be 'ce', 'logodds', 'margin' or 'dlr'"),
        ({"name": "fgsm", "labels": "targeted"}, "labels = 'targeted': input should be 'true' or 'predicted'"),
        ({"name": "fgsm", "eps": []}, "eps"),
        ({"name": "fgsm", "eps": [0.1]}, "eps.1: budget '0.1' is ambiguous"),
        ({"name": "pgd", "restart": 2}, r"unknown key 'restart' \(did you mean 'restarts'\?\); choose from compiled"),
        ({"name": "fgms"}, "name = 'fgms': input should be 'fgsm', 'ifgsm'"),
        ({"name": "ifgsm", "step": "fast"}, r"budget 'fast' is not a number; .*also: kurakin, eps/steps, 2.5 eps/st"),
        ({"name": "ifgsm", "step": 0.5}, "step: budget '0.5' is ambiguous"),
        ({"name": "ifgsm", "step": True}, "step: true is not a number"),
        ({"name": "ifgsm", "step": -1}, "step: budget '-1' must be a positive"),
        (
            {"name": "ifgsm", "eps": [4], "step": "0.5 eps/steps"},
            "10 steps of 0.2/255 reach only 2/255, not the budget",
        ),
        ({"name": "ifgsm", "eps": [4], "step": "0 eps/steps"}, "reach only 0/255"),
        ({"name": "pgd", "eps": [4, 12], "step": 1}, "10 steps of 1/255 reach only 10/255, not the budget 12/255"),
        ({"name": "ifgsm", "step": 300}, "step 300/255 is larger than the whole pixel range, 255/255"),
        (
            {"name": "pgd", "eps": [8], "step": "1e9/255"},
            r"step 1e\+09/255 is larger than the whole pixel range",
        ),
        ({"name": "square", "eps": [256]}, "budget 256/255 is larger than the whole pixel range, 255/255"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        validate(AttackSpec, fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WITH_BUDGET)
def test_budget_beyond_the_pixel_range_has_a_meaning_in_l2_only(name: str) -> None:
    assert [course.eps for course in spec(name, norm="l2", eps=[256, 1000]).courses(None)] == [256, 1000]
    assert [course.eps for course in spec(name, eps=[255]).courses(None)] == [255]
    for norm in (None, "linf"):
        with pytest.raises(SpecError, match=r"budget 255\.5/255 is larger than the whole pixel range, 255/255"):
            spec(name, norm=norm, eps=["255.5/255"])


def test_steps_may_be_as_long_as_a_perturbation() -> None:
    """What a rule makes longer, only the projection shortens."""
    for fields in ({"step": 255}, {"step": 300, "norm": "l2"}, {"step": "2.5 eps/steps", "steps": 1}):
        (course,) = spec("pgd", eps=[255], **fields).courses(None)
        assert course.step in (255, 300, 2.5 * 255)


@pytest.mark.parametrize("name", names.ATTACKS)
def test_metric_is_the_norm_that_was_named_or_the_usual_one(name: str) -> None:
    assert spec(name).metric == ("l2" if name in MINIMUM_NORM else "linf")
    assert spec(name, norm="l2").metric == "l2"
    if name != "cw":
        assert spec(name, norm="linf").metric == "linf"


def test_options_are_the_parameters_that_few_attacks_have() -> None:
    assert spec("mifgsm").options == {"decay": 1}
    assert spec("mifgsm", decay=0).options == {"decay": 0}
    assert spec("square").options == {"queries": 5000}
    assert spec("square", queries=7).options == {"queries": 7}
    assert not any(spec(name).options for name in names.ATTACKS if name not in ("mifgsm", "square"))


# ---- steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "course"),
    [
        ("fgsm", {}, (8, 1, 8)),
        ("signs", {}, (8, 1, 8)),
        ("noise", {}, (8, 1, 8)),
        ("ifgsm", {}, (8, DEFAULT_STEPS, 0.8)),
        ("ifgsm", {"steps": 4}, (8, 4, 2)),
        ("ifgsm", {"steps": 4, "step": 3}, (8, 4, 3)),
        ("ifgsm", {"steps": 16, "step": "0.5/255"}, (8, 16, 0.5)),
        ("ifgsm", {"steps": 4, "step": "eps/steps"}, (8, 4, 2)),
        ("ifgsm", {"steps": 40, "step": "2.5 eps/steps"}, (8, 40, 0.5)),
        ("mifgsm", {"steps": 5}, (8, 5, 1.6)),
        ("mifgsm", {"step": 2, "decay": 0.5}, (8, 10, 2)),
        ("pgd", {}, (8, 10, 2)),
        ("pgd", {"steps": 40}, (8, 40, 0.5)),
        ("pgd", {"step": "1 eps/steps"}, (8, 10, 0.8)),
        ("pgd", {"step": 1}, (8, 10, 1)),
        ("pgd", {"step": "kurakin"}, (8, 10, 1)),
        ("autoattack", {}, (8, 0, 0)),
        ("square", {}, (8, 0, 0)),
    ],
)
def test_course_at_a_budget(name: str, fields: dict[str, Any], course: tuple[float, int, float]) -> None:
    (found,) = spec(name, eps=[8], **fields).courses(None)
    assert found == pytest.approx(course, rel=1e-12)
    assert isinstance(found, Course)


@pytest.mark.parametrize(
    ("name", "fields", "steps"),
    [
        ("deepfool", {}, 50),
        ("cw", {}, 1000),
        ("hopskipjump", {}, 64),
        ("cw", {"steps": 200}, 200),
    ],
)
def test_attacks_for_the_smallest_perturbation_have_one_course_without_a_budget(
    name: str, fields: dict[str, Any], steps: int
) -> None:
    asked = spec(name, **fields)
    assert asked.courses("digits") == ((None, steps, 0),)
    assert asked.at("digits") == asked


@pytest.mark.parametrize(
    ("eps", "steps"),
    [("0.25/255", 1), ("0.5/255", 1), (1, 1), (2, 2), (3, 3), (4, 5), (8, 10), (12, 15), (15, 18), (16, 20), (32, 36)],
)
def test_kurakin_takes_min_of_eps_plus_4_and_a_quarter_more_steps_of_1_255(eps: float | str, steps: int) -> None:
    (course,) = spec("ifgsm", eps=[eps], step="kurakin").courses(None)
    assert (course.steps, course.step) == (steps, 1)


@given(st.floats(0.01, 255))
def test_kurakin_always_reaches_its_budget(eps: float) -> None:
    (course,) = spec("ifgsm", eps=[f"{eps!r}/255"], step="kurakin").courses(None)
    check_reach(eps, course.steps, course.step)
    assert course.steps <= max(eps + 1, min(eps + 4, 1.25 * eps))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("kurakin", "kurakin"),
        (" Kurakin ", "kurakin"),
        ("eps/steps", "1 eps/steps"),
        ("eps / steps", "1 eps/steps"),
        ("2.5 eps/steps", "2.5 eps/steps"),
        ("2.5*eps/steps", "2.5 eps/steps"),
        ("2.5 EPS / STEPS", "2.5 eps/steps"),
        ("1.234567890123 eps/steps", "1.234567890123 eps/steps"),
        (2, 2),
        ("2/255", 2),
        ("0.5/255", 0.5),
    ],
)
def test_rule_for_steps_is_read(text: object, rule: object) -> None:
    assert parse_step(text) == rule
    assert parse_step(rule if isinstance(rule, str) else f"{rule}/255") == rule


@pytest.mark.parametrize("text", ["", "eps", "steps", "-2 eps/steps", "2.5 eps/step", "eps/4", "kurakin 3", None, [1]])
def test_rule_for_steps_that_is_none_is_refused_with_the_rules(text: object) -> None:
    with pytest.raises(SpecError, match=r"\(as a step also: kurakin, eps/steps, 2.5 eps/steps\)") as caught:
        parse_step(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("eps", "steps", "step"), [(8, 10, 0.8), (8, 1, 8), (8, 3, 8 / 3), (0.7, 7, 0.1)])
def test_budget_that_is_just_reached_is_accepted(eps: float, steps: int, step: float) -> None:
    check_reach(eps, steps, step)


@pytest.mark.parametrize(("eps", "steps", "step"), [(8, 10, 0.79), (8, 1, 7.9), (255, 100, 1)])
def test_budget_that_is_out_of_reach_is_refused_with_the_step_that_reaches_it(
    eps: float, steps: int, step: float
) -> None:
    with pytest.raises(SpecError, match=f"{steps} steps of .* not the budget {eps}/255: .* at least") as caught:
        check_reach(eps, steps, step)
    least = float(str(caught.value).rpartition("at least ")[2].removesuffix("/255"))
    check_reach(eps, steps, least)


# ---- gradients, foreseen ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "gradients"),
    [
        ("fgsm", {"eps": [1, 2, 4, 8]}, 1),
        ("fgsm", {"eps": [1, 2, 4, 8], "impl": "foolbox"}, 4),
        ("ifgsm", {"eps": [4]}, 10),
        ("ifgsm", {"eps": [1, 2, 4, 8]}, 1 + 4 * 9),
        ("ifgsm", {"eps": [1, 2, 4, 8], "impl": "torchattacks"}, 40),
        ("ifgsm", {"eps": [1, 2, 4, 8, 16], "step": "kurakin"}, 21),
        ("mifgsm", {"eps": [1, 2, 4, 8, 16], "step": "kurakin"}, 21),
        ("ifgsm", {"eps": [1, 2, 3, 4, 6, 8], "step": 1}, 39),
        ("ifgsm", {"eps": [4, 4, 4], "step": 1}, 10),
        ("ifgsm", {"eps": ["1.5/255", 4], "step": 1, "steps": 5}, 5 + 3),
        ("pgd", {"eps": [1, 2, 4], "steps": 5, "restarts": 3}, 45),
        ("signs", {"restarts": 3}, 0),
        ("noise", {}, 0),
        *((name, {}, 0) for name in FOREIGN),
    ],
)
def test_gradients_are_counted_as_they_are_shared(name: str, fields: dict[str, Any], gradients: int) -> None:
    """That an attack takes as many is proved by `attack_checks`."""
    asked = spec(name, **fields)
    assert asked.gradients(asked.courses("digits")) == gradients


# ---- budgets ---------------------------------------------------------------------------------------------


def test_budgets_are_sorted_and_each_counts_once() -> None:
    asked = spec("fgsm", eps=[8, "0.5/255", 8, "16/255"])
    assert asked.eps == (8, 0.5, 8, 16)
    assert asked.at(None).eps == (0.5, 8, 16)
    assert [course.eps for course in asked.courses("digits")] == [0.5, 8, 16]


@pytest.mark.parametrize("like", [*SWEEPS, None, "imagenet"])
def test_sweep_belongs_to_the_data(like: str | None) -> None:
    for norm, sweeps, default in (("linf", SWEEPS, DEFAULT_SWEEP), ("l2", L2_SWEEPS, DEFAULT_L2_SWEEP)):
        expected = tuple(sweeps.get(like or "", default))
        assert sweep_for(like, norm) == expected
        for name in WITH_BUDGET:
            assert spec(name, norm=norm).at(like).eps == expected == tuple(sorted(set(expected)))
    assert sweep_for("digits") == (8, 16, 24, 32, 48, 64)
    assert sweep_for("cifar10") == (0.5, 1, 2, 4, 8)
    assert set(SWEEPS) == set(L2_SWEEPS)


def test_datas_own_sweep_must_be_within_reach_too() -> None:
    asked = spec("ifgsm", steps=10, step=1)
    with pytest.raises(SpecError, match="not the budget 16/255"):
        asked.at("digits")


# ---- there and back --------------------------------------------------------------------------------------

STEPS: Sequence[Any] = (None, 4, "0.5/255", 1.1, "kurakin", "eps/steps", "2.5 eps/steps", "1.23456789 eps/steps")


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_step_and_budgets_survive_being_written(step: object) -> None:
    asked = spec("pgd", eps=[1.1, "0.3/255", 5, "2.0000000000000004/255"], step=step)
    assert AttackSpec.model_validate(asked.model_dump()) == asked
    assert AttackSpec.model_validate_json(asked.model_dump_json()) == asked
    table = asked.model_dump(exclude_none=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    assert validate(AttackSpec, tomllib.loads("\n".join(lines))) == asked


@pytest.mark.parametrize("name", names.ATTACKS)
def test_every_attack_survives_being_written(name: str) -> None:
    """With all that it takes set, and with nothing: what it does not take is written as its usual value."""
    fitting = {key: value for key, value in UNUSUAL.items() if key in TAKES[name] and key != "impl"}
    for asked in (spec(name), spec(name, **fitting, labels="predicted", compiled=True)):
        assert AttackSpec.model_validate(asked.model_dump()) == asked
        assert AttackSpec.model_validate_json(asked.model_dump_json()) == asked


# ---- in words --------------------------------------------------------------------------------------------

USUAL: dict[str, Any] = {
    "loss": "ce",
    "restarts": 1,
    "labels": "true",
    "seed": 0,
    "precision": "32",
    "impl": "robustmix",
    "compiled": False,
}


def row(asked: AttackSpec) -> dict[str, Any]:
    """What the results table says of an attack at its first budget."""
    course = asked.courses("digits")[0]
    return {
        **USUAL,
        **{key: getattr(asked, key) for key in USUAL},
        "attack": asked.name,
        "eps_255": float("nan") if course.eps is None else course.eps,
        "steps": course.steps,
        "step_255": course.step,
        "norm": asked.metric,
        "options": asked.options,
    }


@pytest.mark.parametrize(
    ("name", "fields", "brief", "long"),
    [
        ("fgsm", {}, "fgsm", "FGSM"),
        ("ifgsm", {}, "ifgsm-10", "I-FGSM, 10 steps"),
        ("ifgsm", {"steps": 40, "step": "2.5 eps/steps"}, "ifgsm-40 x 0.5/255", "I-FGSM, 40 steps of 0.5/255"),
        ("ifgsm", {"step": 1, "eps": [4]}, "ifgsm-10 x 1/255", "I-FGSM, 10 steps of 1/255"),
        ("ifgsm", {"steps": 4, "step": 2}, "ifgsm-4", "I-FGSM, 4 steps"),
        ("mifgsm", {}, "mifgsm-10", "MI-FGSM, 10 steps"),
        ("mifgsm", {"decay": 0.5}, "mifgsm-10 decay 0.5", "MI-FGSM, 10 steps, decay 0.5"),
        ("mifgsm", {"decay": 0}, "mifgsm-10 decay 0", "MI-FGSM, 10 steps, decay 0"),
        ("pgd", {}, "pgd-10", "PGD, 10 steps"),
        ("pgd", {"step": "eps/steps"}, "pgd-10 x 0.8/255", "PGD, 10 steps of 0.8/255"),
        ("pgd", {"restarts": 5, "seed": 3}, "pgd-10 5 restarts seed 3", "PGD, 10 steps, 5 restarts, seed 3"),
        ("fgsm", {"norm": "l2"}, "fgsm L2", "FGSM, L2"),
        ("fgsm", {"loss": "logodds"}, "fgsm loss logodds", "FGSM, loss logodds"),
        ("fgsm", {"labels": "predicted"}, "fgsm predicted labels", "FGSM, predicted labels"),
        ("fgsm", {"precision": "bf16", "compiled": True}, "fgsm bf16 compiled", "FGSM, bf16, compiled"),
        ("fgsm", {"impl": "foolbox"}, "fgsm by foolbox", "FGSM, by foolbox"),
        ("signs", {}, "signs", "random signs"),
        ("noise", {"norm": "l2"}, "noise L2", "uniform noise, L2"),
        ("autoattack", {}, "autoattack", "AutoAttack"),
        ("square", {}, "square", "Square"),
        ("square", {"queries": 100}, "square 100 queries", "Square, 100 queries"),
        ("deepfool", {}, "deepfool", "DeepFool"),
        ("deepfool", {"norm": "linf"}, "deepfool L-infinity", "DeepFool, L-infinity"),
        ("cw", {}, "cw", "C&W"),
        ("cw", {"steps": 200}, "cw-200", "C&W, 200 steps"),
        ("hopskipjump", {"seed": 1}, "hopskipjump seed 1", "HopSkipJump, seed 1"),
    ],
)
def test_attack_in_words_says_what_is_not_usual(name: str, fields: dict[str, Any], brief: str, long: str) -> None:
    asked = spec(name, **{"eps": [8], **fields}) if name not in MINIMUM_NORM else spec(name, **fields)
    assert attack_label(row(asked)) == long
    assert attack_label(row(asked), brief=True) == brief


def test_clean_predictions_in_words() -> None:
    clean = {**USUAL, "attack": "clean", "eps_255": 0.0, "steps": 0, "step_255": 0.0, "norm": "linf", "options": {}}
    assert attack_label(clean) == attack_label(clean, brief=True) == "clean"


def test_attacks_that_differ_are_told_apart() -> None:
    """No two settings of one parameter read alike."""
    for name in names.ATTACKS:
        own = {key: value for key, value in UNUSUAL.items() if key in TAKES[name]}
        other = {"norm": "linf" if name in MINIMUM_NORM else "l2", "labels": "predicted", "compiled": True}
        changes = [{key: value} for key, value in (own | other).items() if (name, key) != ("cw", "norm")]
        asked = [spec(name), *(spec(name, **change) for change in changes)]
        for brief in (False, True):
            texts = [attack_label(row(one), brief=brief) for one in asked]
            assert len(set(texts)) == len(texts), texts
