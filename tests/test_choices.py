"""What does not fit a network is refused in one line with what would."""

import pytest

from robustmix.errors import SpecError
from robustmix.models import check_drop, check_layers
from robustmix.models.choices import ABILITIES
from robustmix.spec.names import DROPS, MODELS
from robustmix.spec.recipe import STAGES


def test_every_network_has_its_abilities() -> None:
    assert tuple(ABILITIES) == MODELS
    assert {kind for abilities in ABILITIES.values() for kind in abilities.drops} == set(DROPS)
    assert max(abilities.stages for abilities in ABILITIES.values()) == STAGES


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", DROPS)
def test_only_what_belongs_to_a_network_can_be_dropped(model: str, kind: str) -> None:
    check_drop(model, None)
    if kind in ABILITIES[model].drops:
        check_drop(model, (kind, 0.5))  # type: ignore[arg-type]
    else:
        with pytest.raises(SpecError, match=f"^drop {kind} does not apply to {model}: choose ") as caught:
            check_drop(model, (kind, 0.5))  # type: ignore[arg-type]
        assert all(own in str(caught.value) for own in ABILITIES[model].drops)


def test_refusal_names_the_choices() -> None:
    with pytest.raises(SpecError) as caught:
        check_drop("densenet_bc100", ("dropconnect", 0.5))
    assert str(caught.value) == (
        "drop dropconnect does not apply to densenet_bc100: choose dropout, or a model of vgg11, lenet"
    )
    with pytest.raises(SpecError) as caught:
        check_drop("torchvision:resnet50", ("dropconnect", 0.5))
    assert str(caught.value) == (
        "drop dropconnect does not apply to torchvision:resnet50: choose a model of vgg11, lenet"
    )


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_probability_lies_between_0_and_1(rate: float) -> None:
    with pytest.raises(SpecError, match="its probability must lie between 0 and 1"):
        check_drop("lenet", ("dropout", rate))


@pytest.mark.parametrize("model", MODELS)
def test_stages_that_are_there_can_be_mixed(model: str) -> None:
    stages = ABILITIES[model].stages
    check_layers(model, range(stages + 1))
    for layer in (-1, stages + 1):
        with pytest.raises(
            SpecError, match=rf"^layer {layer} of {model} cannot be mixed: .*0 \(the input\) to {stages}"
        ):
            check_layers(model, (0, layer))


def test_hidden_layers_of_other_packages_cannot_be_mixed() -> None:
    check_layers("timm:resnet18", (0,))
    with pytest.raises(SpecError) as caught:
        check_layers("timm:resnet18", (0, 5))
    assert str(caught.value) == (
        "layer 5 of timm:resnet18 cannot be mixed: choose 0 (the input), or a model of preact_resnet18, "
        "preact_resnet34, preact_resnet50, resnet18, vgg11"
    )
