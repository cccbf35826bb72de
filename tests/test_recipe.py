"""Recipes: what is left open is filled by the data, what does not fit is one line, and the whole determines a run."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustmix.cli import app
from robustmix.data import load_data
from robustmix.errors import SpecError
from robustmix.preparation import default_name
from robustmix.spec.law import Law, parse_law
from robustmix.spec.named import load_recipe, on_top, read_recipe, shipped_recipes
from robustmix.spec.names import DROPS, METHODS, MODELS
from robustmix.spec.recipe import DATA_DEFAULTS, FIELDS_OF_METHODS, NEEDS, PUBLISHED_WIDTHS, Recipe, load_recipe_fields
from robustmix.trainee import learning_rate

# A value other than the default for every field, so that no field can be forgotten anywhere.
OTHER: dict[str, Any] = {
    "data": "cifar10",
    "limit": 100,
    "label_noise": 0.2,
    "val": 10,
    "model": "resnet18",
    "width": 8,
    "drop": "dropout:0.3",
    "method": "mixup",
    "alpha": 0.3,
    "lam": "uniform:0.5,1",
    "lam_per": "example",
    "lam_labels": "0.5",
    "mix": "inputs",
    "same_class": True,
    "nearest": 5,
    "correct_lam": True,
    "layers": "0,2",
    "rate": 0.2,
    "label_smoothing": 0.1,
    "noise": 0.05,
    "adversarial_eps": 8.0,
    "adversarial_steps": 7,
    "epochs": 3,
    "batch_size": 32,
    "lr": 0.05,
    "warmup": 2,
    "warmup_lr": 0.01,
    "schedule": "cosine",
    "milestones": "1,2",
    "momentum": 0.8,
    "nesterov": True,
    "weight_decay": 1e-3,
    "augment": "crop",
    "precision": "bf16",
    "sync_batch_norm": True,
    "seed": 7,
}
# Which methods have which field, said once more by hand.
PAIRING = {"mixup", "mixup-h", "mixup-v", "mixup-hv", "mixup-hc", "manifold", "cutmix"}
APPLIES = {
    **dict.fromkeys(("alpha", "lam", "lam_per", "lam_labels", "mix", "same_class", "nearest"), PAIRING),
    "correct_lam": {"mixup-h", "mixup-v", "mixup-hv", "mixup-hc"},
    "layers": {"manifold"},
    "rate": {"disturblabel", "patchshuffle"},
}


def method_for(field: str) -> str:
    """A method that has the field."""
    return min(APPLIES.get(field, {"mixup"}) - {"manifold"} or {"manifold"})


def beside(field: str) -> dict[str, Any]:
    """What a recipe must have for the field to mean anything."""
    needed = NEEDS.get(field)
    return {"method": method_for(field), **({needed: OTHER[needed]} if needed else {})}


def changed(field: str) -> Recipe:
    """A recipe with one field changed, for a method that has it."""
    if field == "method":
        return Recipe(method="cutmix")
    return Recipe.model_validate({**beside(field), field: OTHER[field]})


def test_the_table_above_covers_every_field() -> None:
    assert set(OTHER) == set(Recipe.model_fields)
    assert all(OTHER[name] != field.default for name, field in Recipe.model_fields.items())
    assert set(APPLIES) == set(FIELDS_OF_METHODS)


# ---- defaults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("like", ["cifar10", "cifar100"])
def test_cifar_gets_the_papers_values(like: str) -> None:
    recipe = Recipe().resolved(like)
    assert (recipe.model, recipe.width, recipe.epochs, recipe.batch_size) == ("preact_resnet18", 64, 200, 128)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.1, 0.9, 1e-4, "step")
    assert (recipe.augment, recipe.method, recipe.alpha) == ("crop-flip", "erm", None)
    assert (recipe.decay_epochs, recipe.warmup, recipe.nesterov) == ((100, 150), 0, False)


def test_imagenet_gets_the_papers_values_for_one_machine() -> None:
    recipe = Recipe().resolved("imagenet")
    assert (recipe.model, recipe.width, recipe.epochs, recipe.batch_size) == ("torchvision:resnet50", None, 90, 256)
    assert (recipe.lr, recipe.weight_decay, recipe.decay_epochs) == (0.1, 1e-4, (30, 60, 80))
    assert recipe.augment == "resized-crop-flip"


def test_digits_of_house_numbers_are_not_mirrored() -> None:
    assert Recipe().resolved("svhn").augment == "crop"
    assert Recipe().resolved("svhn").width == 64


@pytest.mark.parametrize("like", ["digits", None, "mnist", "fashion_mnist"])
def test_everything_else_gets_small_values_and_no_augmentation(like: str | None) -> None:
    recipe = Recipe().resolved(like)
    assert (recipe.width, recipe.epochs, recipe.augment) == (16, 20, "none")
    assert recipe.batch_size == (128 if like and "mnist" in like else 64)


@pytest.mark.parametrize("model", MODELS)
def test_network_has_its_published_width_on_cifar_and_at_most_16_elsewhere(model: str) -> None:
    published = PUBLISHED_WIDTHS[model]  # type: ignore[index]
    assert Recipe(model=model).resolved("cifar10").width == published
    assert Recipe(model=model).resolved("digits").width == min(16, published)
    assert Recipe(model=model, width=5).resolved("cifar10").width == 5


def test_published_widths() -> None:
    assert PUBLISHED_WIDTHS["wrn28_10"] == 160
    assert (PUBLISHED_WIDTHS["densenet_bc100"], PUBLISHED_WIDTHS["densenet_bc190"]) == (12, 40)
    assert (PUBLISHED_WIDTHS["resnext29_8x64d"], PUBLISHED_WIDTHS["preact_resnet18"]) == (64, 64)


def test_width_is_refused_where_the_name_says_the_size() -> None:
    assert Recipe(model="torchvision:resnet50").resolved("cifar10").width is None
    with pytest.raises(SpecError, match="--width 8 does not apply to torchvision:resnet50"):
        Recipe(model="torchvision:resnet50", width=8).resolved("cifar10")


@pytest.mark.parametrize("method", METHODS)
def test_alpha_is_1_where_lambda_is_drawn_and_nothing_elsewhere(method: Any) -> None:
    assert Recipe(method=method).resolved("digits").alpha == (1.0 if method in PAIRING else None)
    if method in PAIRING:
        assert Recipe(method=method, alpha=0.2).resolved("digits").alpha == 0.2
        assert Recipe(method=method, lam="0.5").resolved("digits").alpha is None


def test_methods_get_their_own_defaults() -> None:
    assert Recipe(method="manifold").resolved("digits").layers == "0,2,3"
    assert Recipe(method="manifold", layers="4").resolved("digits").layers == "4"
    assert Recipe(method="mixup").resolved("digits").layers is None
    assert Recipe(method="disturblabel").resolved("digits").rate == 0.1
    assert Recipe(method="patchshuffle").resolved("digits").rate == 0.05
    assert Recipe(method="samplepairing").resolved("digits").rate is None


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.parametrize("like", ["cifar10", "digits"])
def test_what_was_set_is_kept(field: str, like: str) -> None:
    recipe = changed(field)
    assert getattr(recipe.resolved(like), field) == getattr(recipe, field)


def test_setting_the_small_default_by_name_keeps_it_on_cifar() -> None:
    assert Recipe(epochs=20, augment="none").resolved("cifar10").epochs == 20
    assert Recipe(epochs=20, augment="none").resolved("cifar10").augment == "none"


@pytest.mark.parametrize("like", ["cifar10", "digits", "imagenet", None])
@pytest.mark.parametrize("method", METHODS)
def test_resolving_twice_changes_nothing(method: Any, like: str | None) -> None:
    once = Recipe(method=method, epochs=3).resolved(like)
    assert once.resolved(like) == once.resolved("cifar100") == once


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_imagenets_milestones_go_with_another_schedule(schedule: Any) -> None:
    assert Recipe(schedule=schedule).resolved("imagenet").milestones is None


# ---- how lambda is drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("beta:1", Law("beta", (1.0,))),
        ("beta:1000", Law("beta", (1000.0,))),
        ("beta:1e-3", Law("beta", (0.001,))),
        ("uniform:0.5,1", Law("uniform", (0.5, 1.0))),
        ("uniform:0,0", Law("uniform", (0.0, 0.0))),
        (" uniform:.2,.8 ", Law("uniform", (0.2, 0.8))),
        ("0.5", Law("fixed", (0.5,))),
        ("0", Law("fixed", (0.0,))),
        ("1", Law("fixed", (1.0,))),
    ],
)
def test_laws_of_lambda(text: str, law: Law) -> None:
    assert parse_law(text) == law


@pytest.mark.parametrize(
    "text",
    [
        *("", "beta", "beta:", "beta:0", "beta:-1", "beta:1001", "beta:1,2", "beta:nan", "beta:inf", "uniform:1,0.5"),
        *("uniform:0.5", "uniform:-0.1,1", "uniform:0,1.1", "uniform:0,nan", "1.1", "-0.1", "nan", "0.2,0.8", "x:1"),
    ],
)
def test_what_is_no_law_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no distribution of lambda: write beta:ALPHA"):
        parse_law(text)
    for field in ("lam", "lam_labels"):
        with pytest.raises(SpecError, match="no distribution of lambda") as caught:
            load_recipe_fields({"method": "mixup", field: text})
        assert "\n" not in str(caught.value)


def test_beta_has_one_way_to_be_written() -> None:
    recipe = Recipe(method="mixup", lam="beta:0.2")
    assert (recipe.alpha, recipe.lam) == (0.2, None)
    assert recipe == Recipe(method="mixup", alpha=0.2)
    assert recipe.digest() == Recipe(method="mixup", alpha=0.2).digest()
    with pytest.raises(SpecError, match="alpha and lam both say how lambda is drawn: give one of them"):
        load_recipe_fields({"method": "mixup", "alpha": 0.2, "lam": "beta:0.2"})
    with pytest.raises(SpecError, match="give one of them"):
        load_recipe_fields({"method": "mixup", "alpha": 0.2, "lam": "0.5"})


def test_law_of_a_recipe() -> None:
    assert Recipe(method="mixup").law == Recipe(method="mixup").resolved("digits").law == Law("beta", (1.0,))
    assert Recipe(method="mixup", alpha=0.2).law == Law("beta", (0.2,))
    assert Recipe(method="mixup", lam="uniform:0.5,1").resolved("cifar10").law == Law("uniform", (0.5, 1.0))


# ---- what a recipe says in other words -----------------------------------------------------------------------


def test_stages_that_are_mixed() -> None:
    assert Recipe(method="mixup").stages == (0,)
    assert Recipe(method="manifold").resolved("digits").stages == (0, 2, 3)
    assert Recipe(method="manifold", layers="5,3").stages == (5, 3)


@pytest.mark.parametrize("kind", DROPS)
def test_what_the_network_drops(kind: str) -> None:
    assert Recipe(drop=f"{kind}:0.25").dropped == (kind, 0.25)
    assert Recipe(drop=f"{kind}:.5").dropped == (kind, 0.5)
    assert Recipe().dropped is None


@pytest.mark.parametrize(
    ("fields", "epochs"),
    [
        ({"epochs": 200}, (100, 150)),
        ({"epochs": 90, "milestones": "30,60,80"}, (30, 60, 80)),
        ({"epochs": 6}, (3, 5)),
        ({"epochs": 5}, (3, 4)),
        ({"epochs": 1}, (1, 1)),
        ({"milestones": "7"}, (7,)),
    ],
)
def test_epochs_after_which_the_learning_rate_falls(fields: dict[str, Any], epochs: tuple[int, ...]) -> None:
    assert Recipe.model_validate(fields).decay_epochs == epochs


@pytest.mark.parametrize(
    ("fields", "training"),
    [
        ({}, "erm"),
        ({"method": "mixup", "alpha": 0.2}, "mixup"),
        ({"weight_decay": 5e-4}, "erm"),
        ({"drop": "dropout:0.25"}, "erm+dropout-0.25"),
        ({"method": "mixup", "drop": "stochastic_depth:.5", "noise": 0.1}, "mixup+stochastic-depth-0.5+noise-0.1"),
        ({"label_smoothing": 0.1}, "erm+smoothing-0.1"),
        ({"noise": 0.05}, "erm+noise-0.05"),
        ({"adversarial_eps": 8}, "erm+pgd-8"),
        ({"label_noise": 0.2}, "erm+label-noise-0.2"),
        ({"method": "mixup-hv", "label_smoothing": 0.1, "adversarial_eps": 4}, "mixup-hv+smoothing-0.1+pgd-4"),
    ],
)
def test_training_tells_kinds_of_networks_apart(fields: dict[str, Any], training: str) -> None:
    recipe = Recipe.model_validate(fields)
    assert recipe.training == recipe.resolved("cifar10").training == training


# ---- identity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", OTHER)
def test_recipe_survives_json(field: str) -> None:
    for recipe in (changed(field), changed(field).resolved("cifar10")):
        again = load_recipe_fields(json.loads(json.dumps(recipe.model_dump())))
        assert again == recipe
        assert again.digest() == recipe.digest()


@given(
    lr=st.floats(1e-9, 1e3),
    alpha=st.floats(1e-6, 1000),
    eps=st.floats(1, 255),
    seed=st.integers(0, 2**63 - 1),
)
def test_numbers_survive_json_exactly(lr: float, alpha: float, eps: float, seed: int) -> None:
    recipe = Recipe(method="mixup", lr=lr, alpha=alpha, adversarial_eps=eps, seed=seed)
    assert load_recipe_fields(json.loads(json.dumps(recipe.model_dump()))) == recipe


def test_digest_depends_on_every_field() -> None:
    plain = {method: Recipe.model_validate({"method": method}).digest() for method in METHODS}
    assert len(set(plain.values())) == len(METHODS)
    digests = [changed(field).digest() for field in OTHER]
    assert all(digest != plain[method_for(field)] for field, digest in zip(OTHER, digests, strict=True))
    assert len(set(digests)) == len(OTHER)
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
    (difference,) = Recipe.model_validate(beside(field)).differences(changed(field))
    assert difference.startswith(f"{field} ")


def test_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().epochs = 3  # type: ignore[misc]


def test_name_of_a_run_is_the_method_with_the_seed_if_it_was_given() -> None:
    assert default_name(Recipe()) == "erm"
    assert default_name(Recipe(method="mixup")) == "mixup"
    assert default_name(Recipe(method="mixup-hv", seed=2)) == "mixup-hv2"
    assert default_name(Recipe(seed=0)) == "erm0"


# ---- the command that trains it ------------------------------------------------------------------------------


def parsed(command: str) -> tuple[Recipe, str]:
    """The recipe and the name that a printed command line stands for."""
    program, *words = shlex.split(command)
    assert program == "robustmix"
    _, bound, unused = app.parse_args(words, print_error=False, exit_on_error=False)[:3]
    assert not unused
    return bound.arguments["options"], bound.arguments["name"]


@pytest.mark.parametrize("like", ["digits", "cifar10", "imagenet"])
@pytest.mark.parametrize("field", OTHER)
def test_command_stands_for_the_same_recipe(field: str, like: str) -> None:
    named = (
        {"model": "resnet18"} if field == "width" else {}
    )  # no width for ImageNet's own default, a torchvision model
    recipe = changed(field).model_copy(update=named).resolved(like)
    again, name = parsed(recipe.command("mine"))
    assert name == "mine"
    # Whatever the data resemble where it is typed: all that their defaults could change is written out.
    assert again.resolved(like) == recipe
    assert again.resolved("cifar10" if like == "digits" else "digits") == recipe


@pytest.mark.parametrize("method", METHODS)
def test_command_of_every_method(method: Any) -> None:
    recipe = Recipe(method=method, seed=3).resolved("cifar10")
    assert parsed(recipe.command("x"))[0].resolved("cifar10") == recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_command_of_every_shipped_recipe(name: str) -> None:
    recipe = load_recipe(name).resolved("imagenet" if "imagenet" in name else "cifar10")
    assert parsed(recipe.command("x"))[0].resolved("cifar10") == recipe


def test_command_is_short_where_nothing_is_unusual() -> None:
    assert Recipe(method="mixup", seed=1).resolved("digits").command("mixup1") == (
        "robustmix train --data digits --model preact_resnet18 --width 16 --method mixup --alpha 1.0 --epochs 20 "
        "--batch-size 64 --lr 0.1 --weight-decay 0.0005 --augment none --seed 1 --name mixup1"
    )


# ---- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("field", APPLIES)
def test_field_is_refused_for_methods_that_do_not_have_it(field: str, method: str) -> None:
    fields = {"method": method, field: OTHER[field], **({"layers": "0"} if method == "manifold" != field else {})}
    if field == "layers":
        fields = {"method": method, field: OTHER[field]}
    if method in APPLIES[field]:
        assert getattr(load_recipe_fields(fields), field) == OTHER[field]
        return
    with pytest.raises(SpecError, match=f"^mine.toml: {field} does not apply to method '{method}'; choose") as caught:
        load_recipe_fields(fields, "mine.toml")
    assert all(f"'{known}'" in str(caught.value) for known in APPLIES[field])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "cutmxi"}, r"method = 'cutmxi': input should be 'erm'.* 'mixup'"),
        ({"model": "vgg"}, r"model: unknown model 'vgg'.* preact_resnet18.* torchvision:NAME, timm:NAME"),
        ({"model": "torchvision:"}, "model: unknown model 'torchvision:'"),
        ({"model": "hub:resnet50"}, "model: unknown model 'hub:resnet50'"),
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
        ({"momentum": 0, "nesterov": True}, "nesterov needs a momentum above 0"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"method": "mixup", "alpha": 0}, "alpha = 0: input should be greater than 0"),
        ({"method": "mixup", "alpha": -1}, "alpha = -1"),
        ({"method": "mixup", "mix": "neither"}, "mix = 'neither': input should be 'both', 'inputs' or 'labels'"),
        ({"method": "mixup", "lam_per": "image"}, "lam_per = 'image'"),
        ({"method": "mixup", "nearest": 0}, "nearest = 0"),
        ({"method": "manifold", "nearest": 3}, "nearest does not apply to hidden layers"),
        ({"method": "manifold", "nearest": 3, "layers": "0,1"}, "nearest does not apply to hidden layers"),
        (
            {"method": "mixup", "lam_labels": "0.5", "mix": "inputs"},
            "lam_labels does nothing beside mix 'inputs': leave one of them out",
        ),
        ({"method": "mixup", "lam_labels": "0.5", "mix": "labels"}, "lam_labels does nothing beside mix 'labels'"),
        ({"method": "mixup-h", "correct_lam": True, "mix": "inputs"}, "correct_lam does nothing beside mix 'inputs'"),
        ({"method": "mixup-h", "correct_lam": True, "lam_labels": "0.5"}, "correct_lam does nothing beside lam_labels"),
        ({"method": "mixup", "same_class": True, "mix": "labels"}, "same_class does nothing beside mix 'labels'"),
        ({"method": "manifold", "layers": "6"}, "layers: '6' is no list of stages from 0"),
        ({"method": "manifold", "layers": ""}, "layers: '' is no list of stages"),
        ({"method": "manifold", "layers": "1-2"}, "layers: '1-2' is no list of stages"),
        ({"method": "disturblabel", "rate": 0}, "rate = 0"),
        ({"method": "disturblabel", "rate": 1.1}, "rate = 1.1"),
        (
            {"drop": "dropout"},
            "drop: 'dropout' is not KIND:PROBABILITY, such as dropout:0.3; choose from dropout",
        ),
        ({"drop": "dropout:1"}, "drop: 'dropout:1' is not"),
        ({"drop": "dropout:0.0"}, "drop: 'dropout:0.0' is not"),
        ({"drop": "shakeshake:0.5"}, "drop: 'shakeshake:0.5' is not"),
        ({"label_smoothing": 1}, "label_smoothing = 1"),
        ({"label_noise": 1.1}, "label_noise = 1.1"),
        ({"noise": -0.1}, "noise = -0.1"),
        ({"adversarial_eps": "0.1"}, "adversarial_eps: budget '0.1' is ambiguous"),
        ({"adversarial_eps": 0}, "adversarial_eps: budget '0'"),
        ({"adversarial_steps": 0}, "adversarial_steps = 0"),
        ({"warmup": -1}, "warmup = -1"),
        ({"warmup_lr": -0.1}, "warmup_lr = -0.1"),
        ({"milestones": "150,100"}, "milestones: '150,100' is no list of rising epochs, such as 100,150"),
        ({"milestones": "1.5"}, "milestones: '1.5' is no list"),
        ({"milestones": ""}, "milestones: '' is no list"),
        (
            {"milestones": "10", "schedule": "cosine"},
            "milestones do not apply to schedule 'cosine'; choose sch",
        ),
        ({"milestones": "10", "schedule": "constant"}, "milestones do not apply to schedule 'constant'"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed = "),
        ({"limit": 0}, "limit = 0"),
        ({"val": -1}, "val = -1"),
        ({"schedule": "linear"}, "schedule = 'linear': input should be 'step', 'cosine' or 'constant'"),
        ({"augment": "flip"}, "augment = 'flip'"),
        ({"precision": "64"}, "precision = '64'"),
    ],
    ids=str,
)
def test_wrong_field_is_named_with_value_and_choices(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load_recipe_fields(fields, "mine.toml")
    assert str(caught.value).startswith("mine.toml: ")
    assert "\n" not in str(caught.value)


def test_field_may_wait_for_a_method_but_not_for_ever() -> None:
    """A file for several methods may set it; once the method is known not to have it, it is a mistake."""
    for field in APPLIES:
        shared = load_recipe_fields({field: OTHER[field]})
        given = shared.model_dump(exclude_unset=True)
        assert getattr(load_recipe_fields({**given, **beside(field)}), field) == OTHER[field]
        with pytest.raises(SpecError, match=f"{field} does not apply to method 'erm'"):
            shared.resolved("digits")


# ---- files -----------------------------------------------------------------------------------------------

CIFAR = {"epochs": 200, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "augment": "crop-flip"}
SHIPPED: dict[str, dict[str, Any]] = {
    "zhang-cifar10": {**CIFAR, "model": "preact_resnet18", "width": 64},
    "zhang-cifar10-wrn": {**CIFAR, "model": "wrn28_10", "width": 160},
    "zhang-cifar10-densenet": {**CIFAR, "model": "densenet_bc190", "width": 40},
    "zhang-noise-20": {**CIFAR, "model": "preact_resnet18", "width": 64, "label_noise": 0.2},
    "zhang-noise-50": {**CIFAR, "model": "preact_resnet18", "width": 64, "label_noise": 0.5},
    "zhang-noise-80": {**CIFAR, "model": "preact_resnet18", "width": 64, "label_noise": 0.8},
    "liang-cifar10": {**CIFAR, "model": "preact_resnet18", "width": 64},
    "liang-cifar10-resnext": {**CIFAR, "model": "resnext29_8x64d", "width": 64},
    "ali-cifar10": {**CIFAR, "model": "resnet18", "width": 64},
    "madry-cifar10": {**CIFAR, "model": "preact_resnet18", "width": 64, "adversarial_eps": 8.0},
}
IMAGENET = {
    "model": "torchvision:resnet50", "batch_size": 1024, "lr": 0.4, "warmup": 5, "warmup_lr": 0.1,
    "weight_decay": 1e-4, "augment": "resized-crop-flip",
}  # fmt: skip
SHIPPED_IMAGENET: dict[str, dict[str, Any]] = {
    "zhang-imagenet-90": {**IMAGENET, "epochs": 90, "milestones": "30,60,80"},
    "zhang-imagenet-200": {**IMAGENET, "epochs": 200, "milestones": "60,120,180"},
}


def test_every_shipped_recipe_is_written_down_here() -> None:
    assert set(shipped_recipes()) == {*SHIPPED, *SHIPPED_IMAGENET}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_for_cifar_is_as_published(name: str) -> None:
    recipe = load_recipe(name).resolved("cifar10")
    assert recipe == Recipe.model_validate({"data": "cifar10", **SHIPPED[name]}).resolved("cifar10")
    assert recipe.decay_epochs == (100, 150)


@pytest.mark.parametrize("name", SHIPPED_IMAGENET)
def test_shipped_recipe_for_imagenet_is_as_published_and_waits_for_a_path(name: str) -> None:
    fields = {**read_recipe(name), "data": "imagenet:there"}
    expected = {"data": "imagenet:there", **SHIPPED_IMAGENET[name]}
    assert load_recipe_fields(fields).resolved("imagenet") == load_recipe_fields(expected).resolved("imagenet")
    with pytest.raises(SpecError, match=r"'imagenet:' names no path; choose from .*imagenet:PATH"):
        load_data(load_recipe(name).data)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_leaves_the_method_open_and_says_what_is_assumed(name: str) -> None:
    assert not {"method", "alpha", "seed"} & set(read_recipe(name))
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    head = text[: text.index("\ndata = ")]
    assert "# Stated: " in head
    assert all(line.startswith("# ") and len(line) <= 120 for line in head.splitlines())


def test_shipped_recipe_takes_another_network_at_its_own_width() -> None:
    fields = {**read_recipe("zhang-cifar10"), "model": "densenet_bc100"}
    assert load_recipe_fields(fields).resolved("cifar10").width == 12


def test_defaults_of_cifar_are_those_of_zhang() -> None:
    for field, value in DATA_DEFAULTS["cifar10"].items():
        assert getattr(load_recipe("zhang-cifar10"), field) == value


def test_recipe_from_a_toml_and_from_a_runs_json(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "mixup"\nalpha = 0.2\n')
    assert load_recipe(str(tmp_path / "mine.toml")) == Recipe(method="mixup", alpha=0.2)
    whole = Recipe(method="mixup", alpha=0.2).resolved("digits")
    (tmp_path / "recipe.json").write_text(json.dumps(whole.model_dump()))
    assert load_recipe(str(tmp_path / "recipe.json")) == whole


def test_recipe_of_an_older_run_is_read_as_what_it_was() -> None:
    """A recipe.json from before there were more fields than these."""
    old = {
        "data": "cifar10", "limit": None, "val": 0, "model": "resnet18", "width": 16, "method": "mixup", "alpha": 1.0,
        "lam_per": "batch", "epochs": 6, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        "schedule": "step", "augment": "crop-flip", "precision": "bf16", "seed": 1,
    }  # fmt: skip
    recipe = load_recipe_fields(old)
    assert recipe.model_dump(include=set(old)) == old
    assert recipe.decay_epochs == (3, 5)
    assert recipe.training == "mixup"
    assert recipe == recipe.resolved("cifar10")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.toml", "epochs = ", "mine.toml: not valid TOML"),
        ("mine.toml", "epochs = 0", r"mine.toml: epochs = 0"),
        ("mine.toml", "depth = 3", r"mine.toml: unknown key 'depth'"),
        ("mine.toml", 'drop = "0.3"', r"mine.toml: drop: '0.3' is not KIND:PROBABILITY"),
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
        SpecError, match=r"unknown recipe 'zhang'.*choose from ali-cifar10, .*, or give a file"
    ) as caught:
        load_recipe("zhang")
    assert all(name in str(caught.value) for name in shipped_recipes())


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


def test_constant_schedule_stays() -> None:
    recipe = Recipe(epochs=4, lr=0.3, schedule="constant")
    assert {learning_rate(recipe, epoch, 0, 5) for epoch in range(4)} == {0.3}


def test_schedule_of_zhangs_imagenet_rises_from_a_tenth_to_four_tenths_and_falls_at_its_milestones() -> None:
    recipe = load_recipe("zhang-imagenet-90").model_copy(update={"data": "imagenet:there"})
    rates = {epoch: learning_rate(recipe, epoch, 0, 10) for epoch in range(90)}
    assert [rates[epoch] for epoch in range(6)] == pytest.approx([0.1, 0.16, 0.22, 0.28, 0.34, 0.4])
    assert learning_rate(recipe, 0, 5, 10) == pytest.approx(0.13)
    falls = [epoch for epoch in range(6, 90) if rates[epoch] < rates[epoch - 1]]
    assert falls == [30, 60, 80]
    assert rates[89] == pytest.approx(0.0004)


@pytest.mark.parametrize(
    ("base", "fields", "expected"),
    [
        ({"alpha": 1.0}, {"lam": "0.5"}, {"lam": "0.5"}),
        ({"lam": "uniform:0,1"}, {"alpha": 0.4}, {"alpha": 0.4}),
        ({"milestones": "30,60"}, {"schedule": "cosine"}, {"schedule": "cosine"}),
        ({"epochs": 90, "milestones": "30,60,80"}, {"epochs": 9}, {"epochs": 9, "milestones": "3,6,8"}),
        ({"epochs": 90, "milestones": "30,60,80"}, {"epochs": 2}, {"epochs": 2, "milestones": "1"}),
        ({"epochs": 90, "milestones": "30,60,80"}, {"epochs": 1}, {"epochs": 1}),
        ({"epochs": 90, "milestones": "30"}, {"epochs": 9, "milestones": "1"}, {"epochs": 9, "milestones": "1"}),
    ],
)
def test_what_stands_on_top_replaces_what_it_leaves_no_room_for(
    base: dict[str, Any], fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert on_top(base, fields) == expected


def test_milestones_beyond_the_last_epoch_are_refused() -> None:
    with pytest.raises(SpecError, match="milestones 30,60 reach beyond the last of 60 epochs"):
        load_recipe_fields({"epochs": 60, "milestones": "30,60"})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "erm", "adversarial_steps": 3}, "adversarial_steps does nothing without adversarial_eps"),
        ({"method": "erm", "warmup_lr": 0.01}, "warmup_lr does nothing without warmup"),
    ],
)
def test_a_field_without_the_one_that_it_belongs_to_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load_recipe_fields(fields)
