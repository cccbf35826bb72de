"""Suites: their grammar, their budgets, the runs that they name, and one clear line for every mistake."""

import re
from pathlib import Path
from typing import Any

import pytest

from robustmix.errors import SpecError
from robustmix.spec.recipe import Recipe
from robustmix.spec.suite import Suite, known_suites, load_suite, match_runs, shipped_suites
from robustmix.spec.validation import validate

ROOT = Path(__file__).parents[1]
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


PAIRS = ("ali-cifar10", "cifar10-small", "demo", "zhang-table3")
MANY = {
    "controls": {
        "erm": {},
        "erm-decay": {"weight_decay": 5e-4},
        "smoothing": {"label_smoothing": 0.1},
        "mixup": {"method": "mixup"},
        "pgd": {"adversarial_eps": 8.0},
    },
    "mixup-family": {
        "erm": {},
        "mixup-c": {"method": "mixup"},
        "mixup-h": {"method": "mixup-h"},
        "mixup-v": {"method": "mixup-v"},
        "mixup-hv": {"method": "mixup-hv"},
        "mixup-hc": {"method": "mixup-hc"},
    },
}


def test_every_shipped_suite_is_tested_below() -> None:
    assert set(shipped_suites()) == {*PAIRS, *MANY}


@pytest.mark.parametrize("name", PAIRS)
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


@pytest.mark.parametrize("name", MANY)
def test_suite_of_many_kinds_has_three_seeds_of_each_that_differ_from_erm_by_one_field(name: str) -> None:
    runs = load_suite(name).runs()
    erm = {
        **{"data": "cifar10", "model": "preact_resnet18", "width": 64, "method": "erm", "epochs": 200},
        **{"batch_size": 128, "lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "augment": "crop-flip"},
    }
    expected = {
        f"{group}{seed}": Recipe.model_validate({**erm, **fields, "seed": seed}).resolved("cifar10")
        for group, fields in MANY[name].items()
        for seed in (1, 2, 3)
    }
    assert {run: recipe.resolved("cifar10") for run, recipe in runs.items()} == expected
    assert expected["erm1"].decay_epochs == (100, 150)
    # What results and reports tell methods apart by.
    kinds = [expected[f"{group}1"].digest(without_seed=True) for group in MANY[name]]
    assert len(set(kinds)) == len(kinds)


def test_no_control_is_called_erm_but_erm_itself() -> None:
    names = {name: recipe.training for name, recipe in load_suite("controls").runs().items() if name.endswith("1")}
    assert names == {
        "erm1": "erm",
        "erm-decay1": "erm",
        "smoothing1": "erm+smoothing-0.1",
        "mixup1": "mixup",
        "pgd1": "erm+pgd-8",
    }


def test_controls_are_attacked_by_both_losses_and_stand_beside_table_3() -> None:
    suite = load_suite("controls")
    made = [(attack.name, attack.loss, attack.eps) for attack in suite.attack]
    assert made == [
        ("fgsm", "ce", (1, 2, 4, 8)),
        ("fgsm", "logodds", (1, 2, 4, 8)),
        ("ifgsm", "ce", (4, 8)),
        ("ifgsm", "logodds", (4, 8)),
    ]
    assert [attack.course(4).steps for attack in suite.attack] == [1, 1, 10, 10]
    assert suite.headline_eps == 4
    assert suite.published is not None
    assert (suite.published.experiments, suite.published.source) == (("zhang-table3",), "erm1")


@pytest.mark.parametrize("name", MANY)
def test_suite_of_many_kinds_shrinks_to_a_laptop(name: str) -> None:
    """`robustmix run NAME --data digits --epochs 3 --width 4` keeps what the kinds differ by."""
    suite = validate(Suite, {**load_suite(name).model_dump(exclude_unset=True), "data": "digits"})
    runs = suite.runs({"data": "digits", "epochs": 3, "width": 4, "alpha": 0.5})
    resolved = {run: recipe.resolved("digits") for run, recipe in runs.items()}
    assert {(r.data, r.epochs, r.width) for r in resolved.values()} == {("digits", 3, 4)}
    assert {r.alpha for run, r in resolved.items() if r.method == "erm"} == {None}
    assert {r.alpha for run, r in resolved.items() if r.method != "erm"} == {0.5}
    for group, fields in MANY[name].items():
        assert all(getattr(resolved[f"{group}2"], key) == value for key, value in fields.items())


@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_shipped_suite_audits_runs_of_its_own_erm_among_them(name: str) -> None:
    suite = load_suite(name)
    recipes = suite.runs()
    audited = {recipes[run].method for run in suite.audit or ()}
    assert "erm" in audited
    assert len(audited) > 1


def test_zhang_table_3_is_fgsm_and_ten_steps_of_ifgsm_at_eps_4() -> None:
    suite = load_suite("zhang-table3")
    assert [a.name for a in suite.attack] == ["fgsm", "ifgsm"]
    assert [a.courses("cifar10") for a in suite.attack] == [((4, 1, 4),), ((4, 10, 0.4),)]


def test_ali_is_fgsm_on_resnet18_with_eps_4_at_the_head() -> None:
    suite = load_suite("ali-cifar10")
    recipes = [recipe.resolved("cifar10") for recipe in suite.runs().values()]
    assert {(recipe.model, recipe.width, recipe.data) for recipe in recipes} == {("resnet18", 64, "cifar10")}
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
    assert (ifgsm.name, ifgsm.eps, ifgsm.step) == ("ifgsm", None, 4)
    assert ifgsm.course(16) == (16, 5, 4)


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


KINDS: dict[str, Any] = {
    "erm": {},
    "mixup": {"method": "mixup", "alpha": 0.2},
    "hv": {"method": "mixup-hv"},
    "hidden": {"method": "manifold"},
    "noisy": {"method": "disturblabel", "rate": 0.3},
}


@pytest.mark.parametrize(
    ("top", "applies"),
    [
        ({"alpha": 0.4}, {"mixup", "hv", "hidden"}),
        ({"lam_per": "example"}, {"mixup", "hv", "hidden"}),
        ({"mix": "inputs"}, {"mixup", "hv", "hidden"}),
        ({"lam": "uniform:0.5,1"}, {"mixup", "hv", "hidden"}),
        ({"correct_lam": True}, {"hv"}),
        ({"layers": "1,2"}, {"hidden"}),
        ({"rate": 0.7}, {"noisy"}),
        ({"label_smoothing": 0.1}, set(KINDS)),
        ({"epochs": 3}, set(KINDS)),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_field_on_top_goes_only_where_the_method_has_it(top: dict[str, Any], applies: set[str]) -> None:
    suite = Suite.model_validate({"version": 1, "title": "T", "train": KINDS, "attack": [{"name": "fgsm"}]})
    before, after = suite.runs(), suite.runs(top)
    ((key, value),) = top.items()
    for kind in KINDS:
        recipe = after[f"{kind}1"]
        assert getattr(recipe, key) == (value if kind in applies else getattr(before[f"{kind}1"], key))
        assert recipe.resolved("digits").seed == 1
    assert after["mixup1"].alpha == (None if "lam" in top else top.get("alpha", 0.2))


def test_lambda_on_top_may_be_written_both_ways() -> None:
    """The command line hands over `beta:0.4` as alpha 0.4 without a lam: over a table's own lam, too."""
    table = {"method": "mixup", "lam": "uniform:0.5,1"}
    suite = Suite.model_validate({"version": 1, "title": "T", "train": {"x": table}, "attack": [{"name": "fgsm"}]})
    top = Recipe.model_validate({"lam": "beta:0.4"}).model_dump(exclude_unset=True)
    assert (suite.runs(top)["x1"].alpha, suite.runs(top)["x1"].lam) == (0.4, None)
    assert (suite.runs()["x1"].alpha, suite.runs()["x1"].lam) == (None, "uniform:0.5,1")


def test_table_may_start_from_a_shipped_recipe() -> None:
    table = {"recipe": "zhang-cifar10", "epochs": 5, "method": "mixup", "seeds": [3]}
    suite = Suite.model_validate({"version": 1, "title": "T", "train": {"x": table}, "attack": [{"name": "fgsm"}]})
    (recipe,) = (recipe.resolved("cifar10") for recipe in suite.runs().values())
    assert (recipe.epochs, recipe.width, recipe.weight_decay, recipe.seed) == (5, 64, 1e-4, 3)


@pytest.mark.parametrize(
    ("suite", "table", "data"),
    [({}, {}, "cifar10"), ({"data": "svhn"}, {}, "svhn"), ({"data": "svhn"}, {"data": "mnist"}, "mnist")],
)
def test_data_of_a_table_counts_more_than_the_suites_and_that_more_than_a_recipes(
    suite: dict[str, str], table: dict[str, str], data: str
) -> None:
    """Else ERM with a named recipe and mixup without one would be trained on different images, and compared."""
    fields = {"version": 1, "title": "T", "attack": [{"name": "fgsm"}], **suite}
    (recipe,) = Suite.model_validate({**fields, "train": {"x": {"recipe": "zhang-cifar10", **table}}}).runs().values()
    assert (recipe.data, recipe.weight_decay) == (data, 1e-4)


def test_the_suite_that_people_copy_compares_methods_and_nothing_else(tmp_path: Path) -> None:
    (text,) = re.findall(
        r"```toml\n(version.*?)```", (ROOT / "attacks" / "README.md").read_text(encoding="utf-8"), re.S
    )
    suite = parsed(text, tmp_path)
    runs = suite.runs()
    assert {recipe.data for recipe in runs.values()} == {suite.data}
    assert runs["mixup1"] == runs["erm1"].model_copy(update={"method": "mixup"})
    assert runs["mixup2"] == runs["erm2"].model_copy(update={"method": "mixup"})


# ---- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "", "key 'version' is missing"),
        ("version = 1", "version = 2", "version = 2: input should be 1"),
        ('title = "T"', "", "key 'title' is missing"),
        ('title = "T"', 'titel = "T"', "title"),
        ('eps = [8, "0.5/255", "16/255"]', "eps = []", r"attack.1.eps: at least 1 is needed$"),
        ("headline_eps = 8", "headline_esp = 8", r"unknown key 'headline_esp' \(did you mean 'headline_eps'\?\)"),
        ("headline_eps = 8", 'headline_eps = "0.1"', "headline_eps: budget '0.1' is ambiguous"),
        ("seeds = [1, 2]", "seeds = 3", r"train.erm.seeds = 3: should be a list of whole numbers, such as \[1, 2\]"),
        ("seeds = [1, 2]", "seeds = []", r"train.erm.seeds = \[\]"),
        ("seeds = [1, 2]", "seeds = [1.5]", r"train.erm.seeds = \[1.5\]"),
        ("seeds = [1, 2]", "seeds = [true]", r"train.erm.seeds = \[True\]"),
        ("seeds = [1, 2]", "seeds = [-1]", r"train.erm: seed = -1"),
        ("alpha = 0.2", "alpah = 0.2", r"train.mixup: unknown key 'alpah' \(did you mean 'alpha'\?\)"),
        ("alpha = 0.2", "alpha = 0", "train.mixup: alpha = 0"),
        (
            "alpha = 0.2",
            "rate = 0.2",
            "train.mixup: rate does not apply to method 'mixup'; choose",
        ),
        ("seeds = [1, 2]", "alpha = 0.2", "train.erm: alpha does not apply to method 'erm'"),
        (
            'method = "mixup"',
            'method = "mixpu"',
            "train.mixup: method = 'mixpu': input should be 'erm', 'mixup', ",
        ),
        ('method = "mixup"', 'recipe = "zhang"', "unknown recipe 'zhang'.*choose from ali-cifar10"),
        ("[train.mixup]", '[train."a/b"]', "run 'a/b' is not a usable name"),
        ('name = "fgsm"', 'name = "fgms"', r"attack.1.name = 'fgms': input should be 'fgsm', 'ifgsm', 'mifgsm'"),
        ('name = "bim"', 'name = "bam"', r"attack.2.name = 'bam'"),
        ("[8, ", "[0.1, ", r"attack.1.eps.1: budget '0.1' is ambiguous"),
        ("[8, ", "[0, ", r"attack.1.eps.1: budget '0' must be a positive"),
        ("[8, ", "[-3, ", r"attack.1.eps.1: budget '-3'"),
        ("[8, ", "[nan, ", r"attack.1.eps.1: budget 'nan'"),
        ("[8, ", "[300, ", r"attack.1: budget 300/255 is larger than the whole"),
        ('[8, "0.5/255", "16/255"]', "[]", r"attack.1.eps"),
        ("steps = 5", "step_count = 5", r"unknown key 'attack.2.step_count'.*choose from .*steps"),
        ("steps = 5", "steps = 0", r"attack.2.steps = 0"),
        ("steps = 5", "steps = 5\neps = [21]", r"attack.2: 5 steps of 4/255 reach only 20/255, not the budget 21/255"),
        ('eps = [8, "0.5/255"', 'steps = 3\neps = [8, "0.5/255"', r"attack.1: fgsm takes no 'steps': it belongs to if"),
        ("step = 4", 'step = "fast"', r"attack.2.step: budget 'fast' is not a number; .*as a step also: kurakin"),
        ("step = 4", 'step = "kurakin"', r"attack.2: step = 'kurakin' sets the number of steps itself"),
        ("step = 4", "step = 4\nrestarts = 2", r"attack.2: ifgsm takes no 'restarts': it belongs to pgd, signs, noise"),
        ("step = 4", 'step = 4\nloss = "nll"', r"attack.2.loss = 'nll': input should be 'ce', 'logodds', 'margin'"),
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
        (
            {"sources": None},
            r"nothing to attack: name a run or model in 'sources', or add a \[train.NAME\] table",
        ),
        ({"sources": []}, "nothing to attack: name a run or model in 'sources'"),
        ({"attack": []}, "attack"),
        ({"attack": [{"name": "fgsm"}, {"name": "fgsm"}]}, "the same attack stands twice"),
        ({"attack": [{"name": "ifgsm"}, {"name": "bim"}]}, "the same attack stands twice"),
        ({"attack": [{"name": "fgsm", "eps": [4]}, {"name": "fgsm", "eps": [8]}]}, "put its budgets into one eps list"),
        ({"headline_eps": 8}, "headline_eps = 8 is not among the eps of any attack"),
        ({"sources": 3}, "sources = 3"),
        ({"audit_eps": 4}, "audit_eps belongs to 'audit'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    assert validate(Suite, SMALL).sources == ("erm*",)
    with pytest.raises(SpecError, match=message):
        validate(Suite, SMALL | change)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 40},
        {"step": "kurakin"},
        {"step": 8},
        {"norm": "l2"},
        {"loss": "logodds"},
        {"labels": "predicted"},
        {"precision": "bf16"},
        {"impl": "foolbox"},
        {"compiled": True},
    ],
    ids=str,
)
def test_attacks_that_differ_in_anything_but_budgets_stand_side_by_side(change: dict[str, Any]) -> None:
    suite = validate(Suite, SMALL | {"attack": [{"name": "ifgsm"}, {"name": "ifgsm", **change}], "headline_eps": 24})
    assert len(suite.attack) == 2


def test_headline_must_be_among_the_budgets_where_all_are_listed() -> None:
    listed, own, without = {"name": "fgsm", "eps": [4]}, {"name": "ifgsm"}, {"name": "deepfool"}
    for attack, headline in (([listed], 4), ([listed, own], 8), ([listed, without], 4), ([without, own], 8)):
        assert validate(Suite, SMALL | {"attack": attack, "headline_eps": headline}).headline_eps == headline
    for attack in ([listed], [listed, without]):
        with pytest.raises(SpecError, match="headline_eps = 8 is not among the eps of any attack"):
            validate(Suite, SMALL | {"attack": attack, "headline_eps": 8})


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


@pytest.mark.parametrize("names", [RUNS, []])
def test_file_without_its_factory_is_told_how_code_is_named(names: list[str]) -> None:
    with pytest.raises(SpecError, match=r"; a network of your own is named FILE\.py:FACTORY, as my/net\.py:FACTORY$"):
        match_runs(("my/net.py",), names, "run")
    assert match_runs(("net.py",), [*RUNS, "net.py"], "run") == ["net.py"]


def test_where_nothing_was_trained_it_is_said_what_trains() -> None:
    with pytest.raises(SpecError, match=r"there is none yet; 'robustmix run SUITE' trains those of a suite$"):
        match_runs(("erm1",), [], "run")
    for names, what in ((RUNS, "run"), ([], "model")):
        with pytest.raises(SpecError) as caught:
            match_runs(("cutmix1",), names, what)
        assert "robustmix run" not in str(caught.value)
