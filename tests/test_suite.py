"""Suites: their grammar, their budgets, the runs that they name, and one clear line for every mistake."""

from pathlib import Path
from typing import Any

import pytest

from robustmix.errors import SpecError
from robustmix.spec.recipe import Recipe
from robustmix.spec.suite import (
    DEFAULT_STEPS,
    DEFAULT_SWEEP,
    SWEEPS,
    AttackSpec,
    Suite,
    check_reach,
    known_suites,
    load_suite,
    match_runs,
    shipped_suites,
    sweep_for,
)
from robustmix.spec.validation import validate

GOOD = """
version = 1
title = "T"
data = "digits"
headline_eps = 8
[train.erm]
seeds = [1, 2]
[train.mixup]
method = "mixup"
alpha = 0.2
[[attack]]
name = "fgsm"
eps = [8, "0.5/255", "16/255"]
[[attack]]
name = "bim"
steps = 5
step = 4
[published]
experiments = "zhang-table3"
white = ["erm1"]
source = "erm1"
targets = ["erm2", "mixup1"]
"""


def parsed(text: str, tmp_path: Path) -> Suite:
    (tmp_path / "mine.toml").write_text(text)
    return load_suite(tmp_path / "mine.toml")


# ---- the shipped ones ------------------------------------------------------------------------------------


def test_shipped_suites_are_there() -> None:
    assert {"demo", "ali-cifar10", "zhang-table3"} <= set(shipped_suites())


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suite_has_two_erm_and_two_mixup_runs_and_the_published_design(name: str) -> None:
    suite = load_suite(name)
    runs = suite.runs()
    for method in ("erm", "mixup"):
        group = [recipe for recipe in runs.values() if recipe.method == method]
        assert len(group) >= 2
        assert len({recipe.seed for recipe in group}) == len(group)
        assert len({recipe.digest(without_seed=True) for recipe in group}) == 1
    erm, mixup = (next(r for r in runs.values() if r.method == method) for method in ("erm", "mixup"))
    assert {text.split()[0] for text in erm.differences(mixup)} <= {"method", "alpha"}
    assert suite.headline_eps is not None
    assert suite.published is not None
    assert {*suite.published.white, suite.published.source, *suite.published.targets} <= set(runs)
    assert runs[suite.published.source].method == "erm"


def test_zhang_table_3_is_fgsm_and_ten_steps_of_ifgsm_at_eps_4() -> None:
    suite = load_suite("zhang-table3")
    assert [(a.name, a.eps, a.iterations) for a in suite.attack] == [("fgsm", (4,), 1), ("ifgsm", (4,), 10)]
    assert [a.step_at(4) for a in suite.attack] == [4, 0.4]


def test_ali_is_fgsm_on_resnet18_with_eps_4_at_the_head() -> None:
    suite = load_suite("ali-cifar10")
    assert {(recipe.model, recipe.width, recipe.data) for recipe in suite.runs().values()} == {
        ("resnet18", 64, "cifar10")
    }
    assert [a.name for a in suite.attack] == ["fgsm"]
    assert suite.headline_eps == 4


def test_suites_of_a_workspace_hide_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "demo.toml").write_text(GOOD)
    (tmp_path / "attacks" / "own.toml").write_text(GOOD)
    assert load_suite("demo", tmp_path).title == load_suite("own", tmp_path).title == "T"
    assert load_suite("demo").title != "T"
    assert set(known_suites(tmp_path)) == set(shipped_suites()) | {"own"}


# ---- grammar ---------------------------------------------------------------------------------------------


def test_budgets_are_read_in_every_form_and_sorted(tmp_path: Path) -> None:
    fgsm, ifgsm = parsed(GOOD, tmp_path).attack
    assert fgsm.eps == (8, 0.5, 16)
    assert fgsm.at("digits").eps == (0.5, 8, 16)
    assert (fgsm.iterations, ifgsm.iterations, ifgsm.name) == (1, 5, "ifgsm")
    assert ifgsm.eps is None


def test_runs_are_named_by_table_and_seed(tmp_path: Path) -> None:
    runs = parsed(GOOD, tmp_path).runs()
    assert runs == {
        "erm1": Recipe(data="digits", seed=1),
        "erm2": Recipe(data="digits", seed=2),
        "mixup1": Recipe(data="digits", method="mixup", alpha=0.2, seed=1),
    }


def test_fields_given_on_top_replace_those_of_every_recipe(tmp_path: Path) -> None:
    runs = parsed(GOOD, tmp_path).runs({"epochs": 3, "data": "cifar10"})
    assert {(recipe.epochs, recipe.data) for recipe in runs.values()} == {(3, "cifar10")}
    assert [recipe.seed for recipe in runs.values()] == [1, 2, 1]


def test_table_may_start_from_a_shipped_recipe() -> None:
    table = {"recipe": "zhang-cifar10", "epochs": 5, "method": "mixup", "seeds": [3]}
    suite = Suite.model_validate({"version": 1, "title": "T", "train": {"x": table}, "attack": [{"name": "fgsm"}]})
    (recipe,) = suite.runs().values()
    assert (recipe.epochs, recipe.width, recipe.weight_decay, recipe.seed) == (5, 64, 1e-4, 3)


def test_repeated_budget_counts_once() -> None:
    assert AttackSpec(name="fgsm", eps=(4.0, 4.0, 2.0)).at(None).eps == (2, 4)


@pytest.mark.parametrize("like", [*SWEEPS, None, "imagenet"])
def test_sweep_belongs_to_the_data(like: str | None) -> None:
    expected = SWEEPS.get(like or "", DEFAULT_SWEEP)
    assert sweep_for(like) == AttackSpec(name="fgsm").at(like).eps == tuple(expected)
    assert sweep_for("digits") == (8, 16, 24, 32, 48, 64)
    assert sweep_for("cifar10") == (0.5, 1, 2, 4, 8)


def test_step_is_eps_over_steps_unless_it_is_given() -> None:
    assert AttackSpec(name="ifgsm").step_at(8) == 8 / DEFAULT_STEPS == 0.8
    assert AttackSpec(name="ifgsm", steps=4).step_at(8) == 2
    assert AttackSpec(name="ifgsm", steps=4, step=3).step_at(8) == 3
    assert AttackSpec(name="fgsm").step_at(8) == 8


@pytest.mark.parametrize(
    ("eps", "steps", "step"), [(8, 10, 0.8), (8, 10, None), (8, 1, 8), (8, 3, 8 / 3), (0.7, 7, 0.1)]
)
def test_budget_that_is_just_reached_is_accepted(eps: float, steps: int, step: float | None) -> None:
    check_reach(eps, steps, step)


@pytest.mark.parametrize(("eps", "steps", "step"), [(8, 10, 0.79), (8, 1, 7.9), (255, 100, 1)])
def test_budget_that_is_out_of_reach_is_refused_with_the_step_that_reaches_it(
    eps: float, steps: int, step: float
) -> None:
    with pytest.raises(SpecError, match=f"{steps} steps of .* not the budget {eps}/255: .* at least") as caught:
        check_reach(eps, steps, step)
    least = float(str(caught.value).rpartition("at least ")[2].removesuffix("/255"))
    check_reach(eps, steps, least)


def test_datas_own_sweep_must_be_within_reach_too() -> None:
    with pytest.raises(SpecError, match="not the budget 16/255"):
        AttackSpec(name="ifgsm", steps=10, step=1).at("digits")


# ---- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "", "key 'version' is missing"),
        ("version = 1", "version = 2", "version = 2: input should be 1"),
        ('title = "T"', "", "key 'title' is missing"),
        ('title = "T"', 'titel = "T"', "title"),
        ("headline_eps = 8", "headline_esp = 8", r"unknown key 'headline_esp' \(did you mean 'headline_eps'\?\)"),
        ("headline_eps = 8", 'headline_eps = "0.1"', "headline_eps: budget '0.1' is ambiguous"),
        ("seeds = [1, 2]", "seeds = 3", r"train.erm.seeds = 3: should be a list of whole numbers, such as \[1, 2\]"),
        ("seeds = [1, 2]", "seeds = []", r"train.erm.seeds = \[\]"),
        ("seeds = [1, 2]", "seeds = [1.5]", r"train.erm.seeds = \[1.5\]"),
        ("seeds = [1, 2]", "seeds = [true]", r"train.erm.seeds = \[True\]"),
        ("seeds = [1, 2]", "seeds = [-1]", r"train.erm: seed = -1"),
        ("alpha = 0.2", "alpah = 0.2", r"train.mixup: unknown key 'alpah' \(did you mean 'alpha'\?\)"),
        ("alpha = 0.2", "alpha = 0", "train.mixup: alpha = 0"),
        ('method = "mixup"', 'method = "mixpu"', "train.mixup: method = 'mixpu': input should be 'erm' or 'mixup'"),
        ('method = "mixup"', 'recipe = "zhang"', "unknown recipe 'zhang'.*choose from ali-cifar10"),
        ("[train.mixup]", '[train."a/b"]', "run 'a/b' is not a usable name"),
        ('name = "fgsm"', 'name = "fgms"', r"attack.1.name = 'fgms': input should be 'fgsm' or 'ifgsm'"),
        ('name = "bim"', 'name = "pgd"', r"attack.2.name = 'pgd'"),
        ("[8, ", "[0.1, ", r"attack.1.eps.1: budget '0.1' is ambiguous"),
        ("[8, ", "[0, ", r"attack.1.eps.1: budget '0' must be a positive"),
        ("[8, ", "[-3, ", r"attack.1.eps.1: budget '-3'"),
        ("[8, ", "[nan, ", r"attack.1.eps.1: budget 'nan'"),
        ("[8, ", "[300, ", r"attack.1.eps.1: budget '300' is larger"),
        ('[8, "0.5/255", "16/255"]', "[]", r"attack.1.eps"),
        ("steps = 5", "step_count = 5", r"unknown key 'attack.2.step_count'.*choose from .*steps"),
        ("steps = 5", "steps = 0", r"attack.2.steps = 0"),
        ("steps = 5", "steps = 5\neps = [21]", r"attack.2: 5 steps of 4/255 reach only 20/255, not the budget 21/255"),
        ('eps = [8, "0.5/255"', 'steps = 3\neps = [8, "0.5/255"', r"attack.1: fgsm takes one full step"),
        ("headline_eps = 8", "headline_eps = 8\nlimit = 0", "limit = 0"),
        (
            'white = ["erm1"]',
            'white = ["erm9"]',
            r"unknown run in \[published\] 'erm9' .*choose from erm1, erm2, mixup1",
        ),
        ('source = "erm1"', 'source = "emr1"', r"unknown run in \[published\] 'emr1' \(did you mean 'erm1'\?\)"),
        ('source = "erm1"', "", "key 'published.source' is missing"),
        ("[published]", "[publisht]", r"unknown key 'publisht' \(did you mean 'published'\?\)"),
        ("[[attack]]", "[attack", "not valid TOML"),
    ],
)
def test_mistake_is_named_by_file_key_value_and_choices(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(SpecError, match=message) as caught:
        parsed(GOOD.replace(old, new, 1), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'mine.toml'}: ")
    assert "\n" not in str(caught.value)


SMALL: dict[str, Any] = {"version": 1, "title": "T", "sources": "erm*", "attack": [{"name": "fgsm", "eps": [4]}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": None}, r"nothing to attack: give 'sources' or a \[train.NAME\] table"),
        ({"attack": []}, "attack"),
        ({"attack": [{"name": "fgsm"}, {"name": "fgsm"}]}, "the same attack stands twice"),
        ({"attack": [{"name": "ifgsm"}, {"name": "bim"}]}, "the same attack stands twice"),
        ({"headline_eps": 8}, "headline_eps = 8 is not among the eps of any attack"),
        ({"sources": 3}, "sources = 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    assert validate(Suite, SMALL).sources == ("erm*",)
    with pytest.raises(SpecError, match=message):
        validate(Suite, SMALL | change)


def test_two_attacks_that_differ_in_steps_stand_side_by_side() -> None:
    suite = validate(Suite, SMALL | {"attack": [{"name": "ifgsm"}, {"name": "ifgsm", "steps": 40}], "headline_eps": 24})
    assert [a.iterations for a in suite.attack] == [10, 40]


def test_unknown_suite_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"unknown suite 'dmeo' \(did you mean 'demo'\?\); choose from ali-cifar10"
    ) as caught:
        load_suite("dmeo")
    assert "or give a file that ends in .toml" in str(caught.value)
    with pytest.raises(SpecError, match=r"nothing.toml: cannot be read"):
        load_suite(tmp_path / "nothing.toml")


# ---- names and globs -------------------------------------------------------------------------------------

RUNS = ["erm1", "erm2", "mixup1", "mixup10"]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (("erm1",), ["erm1"]),
        (("mixup*", "erm1"), ["mixup1", "mixup10", "erm1"]),
        (("*1", "erm*"), ["erm1", "mixup1", "erm2"]),
        (("erm1", "erm1"), ["erm1"]),
        (("mixup?",), ["mixup1"]),
    ],
)
def test_names_and_globs_select_each_run_once_in_their_order(patterns: tuple[str, ...], chosen: list[str]) -> None:
    assert match_runs(patterns, RUNS, "run") == chosen


@pytest.mark.parametrize("pattern", ["emr1", "ERM1", "cutmix*", ""])
def test_pattern_that_matches_nothing_is_refused_even_beside_one_that_does(pattern: str) -> None:
    with pytest.raises(SpecError, match=r"unknown source .*choose from erm1, erm2, mixup1, mixup10"):
        match_runs(("erm1", pattern), RUNS, "source")
