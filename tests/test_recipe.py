"""Recipes: what is left open is filled by the data, and the whole determines a run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustmix.errors import SpecError
from robustmix.spec.recipe import DATA_DEFAULTS, Recipe, load_recipe, load_recipe_fields, read_recipe, shipped_recipes
from robustmix.training import default_name, learning_rate

# A value other than the default for every field, so that no field can be forgotten anywhere.
OTHER: dict[str, Any] = {
    "data": "cifar10",
    "limit": 100,
    "val": 10,
    "model": "resnet18",
    "width": 8,
    "method": "mixup",
    "alpha": 0.3,
    "lam_per": "example",
    "epochs": 3,
    "batch_size": 32,
    "lr": 0.05,
    "momentum": 0.8,
    "weight_decay": 1e-3,
    "schedule": "cosine",
    "augment": "crop",
    "precision": "bf16",
    "seed": 7,
}
MIXUP_ONLY = ("alpha", "lam_per")


def changed(field: str) -> Recipe:
    """A recipe for mixup with one field changed."""
    if field == "method":
        return Recipe(method="erm")
    return Recipe.model_validate({"method": "mixup", field: OTHER[field]})


def test_the_table_above_covers_every_field() -> None:
    assert set(OTHER) == set(Recipe.model_fields)
    assert all(OTHER[name] != field.default for name, field in Recipe.model_fields.items())


# ---- defaults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("like", ["cifar10", "cifar100"])
def test_cifar_gets_the_papers_values(like: str) -> None:
    recipe = Recipe().resolved(like)
    assert (recipe.model, recipe.width, recipe.epochs, recipe.batch_size) == ("preact_resnet18", 64, 200, 128)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.1, 0.9, 1e-4, "step")
    assert (recipe.augment, recipe.method, recipe.alpha) == ("crop-flip", "erm", None)


@pytest.mark.parametrize("like", ["digits", None, "imagenet"])
def test_everything_else_gets_small_values_and_no_augmentation(like: str | None) -> None:
    recipe = Recipe().resolved(like)
    assert (recipe.width, recipe.epochs, recipe.batch_size, recipe.augment) == (16, 20, 64, "none")


def test_mixup_gets_alpha_1_and_erm_gets_none() -> None:
    assert Recipe(method="mixup").resolved("digits").alpha == 1.0
    assert Recipe(method="mixup", alpha=0.2).resolved("digits").alpha == 0.2
    assert Recipe(method="erm").resolved("digits").alpha is None


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.parametrize("like", ["cifar10", "digits"])
def test_what_was_set_is_kept(field: str, like: str) -> None:
    recipe = changed(field)
    assert getattr(recipe.resolved(like), field) == getattr(recipe, field)


def test_setting_the_small_default_by_name_keeps_it_on_cifar() -> None:
    assert Recipe(epochs=20, augment="none").resolved("cifar10").epochs == 20
    assert Recipe(epochs=20, augment="none").resolved("cifar10").augment == "none"


@pytest.mark.parametrize("like", ["cifar10", "digits", None])
def test_resolving_twice_changes_nothing(like: str | None) -> None:
    once = Recipe(method="mixup", epochs=3).resolved(like)
    assert once.resolved(like) == once.resolved("cifar100") == once


# ---- identity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", OTHER)
def test_recipe_survives_json(field: str) -> None:
    for recipe in (changed(field), changed(field).resolved("cifar10")):
        again = load_recipe_fields(json.loads(json.dumps(recipe.model_dump())))
        assert again == recipe
        assert again.digest() == recipe.digest()


@given(lr=st.floats(1e-9, 1e3), alpha=st.floats(1e-6, 1000), seed=st.integers(0, 2**63 - 1))
def test_numbers_survive_json_exactly(lr: float, alpha: float, seed: int) -> None:
    recipe = Recipe(method="mixup", lr=lr, alpha=alpha, seed=seed)
    assert load_recipe_fields(json.loads(json.dumps(recipe.model_dump()))) == recipe


def test_digest_depends_on_every_field() -> None:
    digests = [Recipe(method="mixup").digest(), *(changed(field).digest() for field in OTHER if field != "method")]
    digests.append(changed("method").digest())
    assert len(set(digests)) == 1 + len(OTHER)
    assert all(len(digest) == 12 for digest in digests)


def test_digest_without_the_seed_is_shared_by_seeds_only() -> None:
    shared = {Recipe(epochs=5, seed=seed).digest(without_seed=True) for seed in (0, 1, 2)}
    assert len(shared) == 1
    assert Recipe(epochs=6).digest(without_seed=True) not in shared
    assert len({Recipe(seed=seed).digest() for seed in (0, 1, 2)}) == 3


def test_differences_name_field_and_both_values() -> None:
    assert Recipe().differences(Recipe()) == []
    assert Recipe().differences(Recipe(epochs=30, lr=0.2)) == ["epochs 20 -> 30", "lr 0.1 -> 0.2"]


@pytest.mark.parametrize("field", OTHER)
def test_every_difference_is_seen(field: str) -> None:
    (difference,) = Recipe(method="mixup").differences(changed(field))
    assert difference.startswith(f"{field} ")


def test_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().epochs = 3  # type: ignore[misc]


def test_name_of_a_run_is_the_method_with_the_seed_if_it_was_given() -> None:
    assert default_name(Recipe()) == "erm"
    assert default_name(Recipe(method="mixup")) == "mixup"
    assert default_name(Recipe(method="mixup", seed=2)) == "mixup2"
    assert default_name(Recipe(seed=0)) == "erm0"


# ---- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"method": "erm", "alpha": 1.0},
            "alpha does not apply to method 'erm', which mixes nothing; choose method 'mixup'",
        ),
        ({"method": "erm", "lam_per": "example"}, "lam_per does not apply to method 'erm'"),
        ({"method": "cutmix"}, r"method = 'cutmix': input should be 'erm'.* 'mixup'"),
        ({"model": "vgg"}, "model = 'vgg': input should be 'preact_resnet18'.* 'resnet18'"),
        ({"epoch": 3}, r"unknown key 'epoch' \(did you mean 'epochs'\?\); choose from .*batch_size"),
        ({"epochs": 0}, "epochs = 0: input should be greater than or equal to 1"),
        ({"epochs": 1.5}, "epochs = 1.5"),
        ({"epochs": "many"}, "epochs = 'many'"),
        ({"width": 4096}, "width = 4096"),
        ({"batch_size": 1}, "batch_size = 1"),
        ({"lr": 0}, "lr = 0"),
        ({"lr": math.nan}, "lr = nan: input should be a finite number"),
        ({"lr": math.inf}, "lr = inf"),
        ({"momentum": 1}, "momentum = 1"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"method": "mixup", "alpha": 0}, "alpha = 0: input should be greater than 0"),
        ({"method": "mixup", "alpha": -1}, "alpha = -1"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed = "),
        ({"limit": 0}, "limit = 0"),
        ({"val": -1}, "val = -1"),
        ({"schedule": "linear"}, "schedule = 'linear': input should be 'step' or 'cosine'"),
        ({"augment": "flip"}, "augment = 'flip'"),
        ({"precision": "64"}, "precision = '64'"),
    ],
)
def test_wrong_field_is_named_with_value_and_choices(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load_recipe_fields(fields, "mine.toml")
    assert str(caught.value).startswith("mine.toml: ")
    assert "\n" not in str(caught.value)


def test_alpha_may_wait_for_a_method_but_not_for_ever() -> None:
    """A file for both methods may set it; once the method is known to be ERM, it is a mistake."""
    shared = load_recipe_fields({"alpha": 0.2})
    assert load_recipe_fields({**shared.model_dump(exclude_unset=True), "method": "mixup"}).alpha == 0.2
    with pytest.raises(SpecError, match="alpha does not apply to method 'erm'"):
        shared.resolved("digits")


# ---- files -----------------------------------------------------------------------------------------------


def test_shipped_recipes_are_valid_and_are_the_papers() -> None:
    assert set(shipped_recipes()) == {"ali-cifar10", "zhang-cifar10"}
    for name, model in (("ali-cifar10", "resnet18"), ("zhang-cifar10", "preact_resnet18")):
        recipe = load_recipe(name)
        assert (recipe.data, recipe.model) == ("cifar10", model)
        for field, value in DATA_DEFAULTS["cifar10"].items():
            assert getattr(recipe, field) == (model if field == "model" else value)


def test_shipped_recipe_leaves_the_method_open() -> None:
    for name in shipped_recipes():
        assert not {"method", "alpha", "seed"} & set(read_recipe(name))


def test_recipe_from_a_toml_and_from_a_runs_json(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "mixup"\nalpha = 0.2\n')
    assert load_recipe(str(tmp_path / "mine.toml")) == Recipe(method="mixup", alpha=0.2)
    whole = Recipe(method="mixup", alpha=0.2).resolved("digits")
    (tmp_path / "recipe.json").write_text(json.dumps(whole.model_dump()))
    assert load_recipe(str(tmp_path / "recipe.json")) == whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.toml", "epochs = ", "mine.toml: not valid TOML"),
        ("mine.toml", "epochs = 0", r"mine.toml: epochs = 0"),
        ("mine.toml", "depth = 3", r"mine.toml: unknown key 'depth'"),
        ("mine.json", "{", "mine.json: cannot be read"),
        ("mine.json", '{"epochs": 0}', "mine.json: epochs = 0"),
        ("mine.json", "[1, 2]", "mine.json"),
        ("mine.json", "3", "mine.json"),
    ],
)
def test_recipe_file_that_is_wrong_is_refused_with_its_name(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SpecError, match=message) as caught:
        load_recipe(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_recipe_file_that_is_no_text_or_missing(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("mine.toml", "nothing.toml", "nothing.json"):
        with pytest.raises(SpecError, match=rf"{name}: cannot be read"):
            load_recipe(str(tmp_path / name))


def test_unknown_recipe_is_refused_with_the_choices() -> None:
    with pytest.raises(
        SpecError, match=r"unknown recipe 'zhang'.*choose from ali-cifar10, zhang-cifar10, or give a file"
    ):
        load_recipe("zhang")


# ---- the schedule ----------------------------------------------------------------------------------------


def test_step_schedule_divides_by_ten_after_half_and_three_quarters() -> None:
    recipe = Recipe(epochs=200, lr=0.1)
    rates = [learning_rate(recipe, epoch, step, 7) for epoch in range(200) for step in (0, 6)]
    assert rates == pytest.approx([0.1] * 200 + [0.01] * 100 + [0.001] * 100)


def test_step_schedule_of_few_epochs() -> None:
    rates = [learning_rate(Recipe(epochs=6, lr=1.0), epoch, 0, 1) for epoch in range(6)]
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])
    assert learning_rate(Recipe(epochs=1, lr=1.0), 0, 0, 1) == 1.0


def test_cosine_schedule_starts_at_lr_halves_in_the_middle_and_ends_near_0() -> None:
    recipe = Recipe(epochs=10, lr=0.2, schedule="cosine")
    rates = [learning_rate(recipe, epoch, step, 4) for epoch in range(10) for step in range(4)]
    assert rates[0] == 0.2
    assert rates[20] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.002
    assert rates[10] == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi / 4)))
