"""All networks: their size, what they take, mixing between their stages, and normalisation inside."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from networks import hidden_states, shaken
from pydantic import ValidationError
from torch import Tensor, nn

from robustmix.errors import EvaluationError, SpecError
from robustmix.models import Classifier, ModelSpec, build
from robustmix.models.choices import ABILITIES
from robustmix.models.classifier import MODELS
from robustmix.models.network import Network
from robustmix.spec.names import DROPS, ModelName
from robustmix.spec.recipe import PUBLISHED_WIDTHS

NAMES: tuple[ModelName, ...] = tuple(MODELS)
Shape = tuple[int, int, int]


def spec_of(name: ModelName, shape: Shape = (3, 8, 8), width: int = 2) -> ModelSpec:
    return ModelSpec(name=name, width=width, classes=("a", "b", "c", "d"), shape=shape)


def random_classifier(name: ModelName, shape: Shape = (3, 8, 8)) -> Classifier:
    """In eval mode and float64, every buffer and every batch-norm parameter away from its start value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = build(spec_of(name, shape), torch.linspace(0.3, 0.6, shape[0]), torch.linspace(0.2, 0.4, shape[0]))
    shaken(model)
    return model


def pixels(count: int, shape: Shape) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- size ------------------------------------------------------------------------------------------------

# Parameters with 3 channels and 10 classes: exactly, and as published in millions: Zhang et al.'s code (the ResNets),
# Zagoruyko and Komodakis 2016 table 4, Huang et al. 2017 table 2, Xie et al. 2017 table 7, code for CIFAR (VGG).
SIZES: dict[str, tuple[int, str]] = {
    "preact_resnet18": (11_171_274, "11.17"),
    "preact_resnet34": (21_279_434, "21.28"),
    "preact_resnet50": (23_509_194, "23.5"),
    "resnet18": (11_173_962, "11.17"),
    "wrn28_10": (36_479_194, "36.5"),
    "densenet_bc100": (769_162, "0.8"),
    "densenet_bc190": (25_624_430, "25.6"),
    "resnext29_8x64d": (34_426_698, "34.4"),
    "vgg11": (9_231_114, "9.2"),
    "lenet": (62_006, "0.06"),
}


def parameters(name: ModelName, channels: int, width: int, classes: int) -> int:
    with torch.device("meta"):
        network = MODELS[name](channels, width, classes, None)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_size_is_the_published_one(name: ModelName) -> None:
    exact, published = SIZES[name]
    count = parameters(name, 3, PUBLISHED_WIDTHS[name], 10)
    assert count == exact
    assert f"{count / 1e6:.{len(published.partition('.')[2])}f}" == published


def test_lenet_5_has_the_60_000_parameters_of_lecun_et_al() -> None:
    assert parameters("lenet", 1, 6, 10) == 61_706


def counted_by_hand(name: str, channels: int, width: int, classes: int) -> int:
    """From the papers' tables: convolutions without bias, two numbers per channel of a batch norm, a linear layer."""

    def block(inner: tuple[tuple[int, int, int], ...], norms: int, inputs: int, outputs: int, projected: int) -> int:
        convolutions = sum(kernel**2 * before * after for kernel, before, after in inner)
        return convolutions + 2 * norms + (inputs * outputs + projected if inputs != outputs else 0)

    total, inputs, w = 9 * channels * width + 2 * width, width, width
    if name == "wrn28_10":
        total, inputs = 9 * channels * 16, 16
    if name.startswith("densenet"):
        layers = {"densenet_bc100": 16, "densenet_bc190": 31}[name]
        total, inputs = 9 * channels * 2 * w, 2 * w
        for number in range(3):
            if number:
                total += 2 * inputs + inputs * (inputs // 2)
                inputs //= 2
            for _ in range(layers):
                total += 2 * inputs + inputs * 4 * w + 8 * w + 9 * 4 * w * w
                inputs += w
        return total + 2 * inputs + inputs * classes + classes
    depths = {"preact_resnet34": (3, 4, 6, 3), "preact_resnet50": (3, 4, 6, 3), "wrn28_10": (4, 4, 4)}.get(
        name, (3, 3, 3) if name == "resnext29_8x64d" else (2, 2, 2, 2)
    )
    for stage, depth in enumerate(depths):
        w = width * 2**stage
        for _ in range(depth):
            if name == "preact_resnet50":
                outputs = 4 * w
                total += block(((1, inputs, w), (3, w, w), (1, w, outputs)), inputs + 2 * w, inputs, outputs, 0)
            elif name == "resnext29_8x64d":
                outputs, inner = 4 * w, 8 * w
                grouped = (3, inner, inner // 8)
                norms = 2 * inner + outputs
                total += block(((1, inputs, inner), grouped, (1, inner, outputs)), norms, inputs, outputs, 2 * outputs)
            else:
                outputs = w
                both = ((3, inputs, w), (3, w, w))
                post = name == "resnet18"
                total += block(both, 2 * w if post else inputs + w, inputs, w, 2 * w if post else 0)
            # The first stage of a network whose stem has as many channels as its blocks needs no projection.
            inputs = outputs
    if name == "wrn28_10":
        total += 2 * inputs
    return total + inputs * classes + classes


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vgg11", "lenet")])
@pytest.mark.parametrize(("channels", "width", "classes"), [(3, 0, 10), (3, 0, 100), (1, 8, 10), (3, 2, 5)])
def test_size_follows_from_the_papers_tables(name: ModelName, channels: int, width: int, classes: int) -> None:
    width = width or PUBLISHED_WIDTHS[name]
    assert parameters(name, channels, width, classes) == counted_by_hand(name, channels, width, classes)


# ---- what they take --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 9, 14)])
def test_any_image_from_8x8_can_be_trained_on(name: ModelName, shape: Shape) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec_of(name, shape), torch.zeros(shape[0]), torch.ones(shape[0]))
    assert model.training
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    logits = model(pixels(3, shape).float().contiguous(memory_format=torch.channels_last))
    assert logits.shape == (3, 4)
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_gradient_reaches_every_parameter_and_pixel(name: ModelName, shape: Shape) -> None:
    model = random_classifier(name, shape)
    x = pixels(6, shape).requires_grad_()
    (model(x) * torch.linspace(1, 2, 24).view(6, 4)).sum().backward()
    silent = [at for at, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0]
    assert not silent
    assert x.grad is not None
    # Two poolings of LeNet's pass on the largest of some pixels only.
    assert (x.grad != 0).float().mean() > (0.5 if name == "lenet" else 0.99)


@pytest.mark.parametrize("name", NAMES)
def test_eval_mode_draws_nothing_and_no_example_sees_another(name: ModelName) -> None:
    model = random_classifier(name)
    x = pixels(5, (3, 8, 8))
    together = model(x)
    assert torch.equal(together, model(x))
    for one in range(5):
        torch.testing.assert_close(model(x[one : one + 1])[0], together[one], rtol=1e-9, atol=1e-9)
    assert (together[0] - together[1]).abs().max() > 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_of_images_stay_channels_last(name: ModelName) -> None:
    network = random_classifier(name, (3, 32, 32)).network
    assert isinstance(network, Network)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = pixels(2, (3, 32, 32)).contiguous(memory_format=torch.channels_last)
    for hidden in hidden_states(network, x):
        assert hidden.ndim == 2 or hidden.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 7, 8), (2, 3, 8, 7), (3, 8, 8), (2, 8, 8, 3)])
def test_input_of_another_shape_is_refused_with_what_is_wanted(shape: tuple[int, ...]) -> None:
    model = build(spec_of("resnet18"), torch.zeros(3), torch.ones(3))
    with pytest.raises(EvaluationError, match=r"resnet18 takes images \[B, 3, H, W\] of at least 8x8; got"):
        model(torch.rand(shape))


@pytest.mark.parametrize("name", NAMES)
def test_fresh_weights_come_from_the_global_generator_alone(name: ModelName) -> None:
    built = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built.append(build(spec_of(name), torch.zeros(3), torch.ones(3)).state_dict())
    assert all(torch.equal(built[0][at], built[1][at]) for at in built[0])
    weights = [at for at in built[0] if at.endswith("weight") and built[0][at].ndim > 1]
    assert not [at for at in weights if torch.equal(built[0][at], built[2][at])]


# ---- mixing between the stages ---------------------------------------------------------------------------


@dataclass
class Mixing:
    """Mixes each example with the one before it, and keeps what it got."""

    lam: float
    got: list[Tensor] = field(default_factory=list)

    def __call__(self, hidden: Tensor) -> Tensor:
        self.got.append(hidden.detach().clone())
        return self.lam * hidden + (1 - self.lam) * hidden.roll(1, dims=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_can_be_mixed_once(name: ModelName) -> None:
    model = random_classifier(name)
    network = model.network
    assert isinstance(network, Network)
    parts = (network.stem, *network.stages, network.head)
    assert len(parts) - 1 == ABILITIES[name].stages
    x = pixels(3, (3, 8, 8))
    states = hidden_states(network, model.normalize(x))
    for layer in range(1, len(parts)):
        mix = Mixing(0.3)
        mixed = model(x, layer, mix)
        (got,) = mix.got
        assert torch.equal(got, states[layer - 1])
        expected = 0.3 * got + 0.7 * got.roll(1, dims=0)
        for part in parts[layer:]:
            expected = part(expected)
        torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)
        assert not torch.equal(mixed, model(x))
        torch.testing.assert_close(model(x, layer, Mixing(1.0)), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_mixing_at_the_input_is_not_the_networks(name: ModelName) -> None:
    model, x, mix = random_classifier(name), pixels(2, (3, 8, 8)), Mixing(0.3)
    assert torch.equal(model(x, 0, mix), model(x))
    assert not mix.got


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beyond", [1, 2])
def test_stage_that_is_not_there_is_refused(name: ModelName, beyond: int) -> None:
    layer = ABILITIES[name].stages + beyond
    with pytest.raises(SpecError, match=rf"layer {layer} of {name} cannot be mixed"):
        random_classifier(name)(pixels(2, (3, 8, 8)), layer, Mixing(0.3))


# ---- dropping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in NAMES for kind in ABILITIES[name].drops])
def test_what_is_dropped_in_training_leaves_no_trace_in_eval_mode(name: ModelName, kind: str) -> None:
    plain = random_classifier(name)
    dropping = build(spec_of(name), torch.zeros(3), torch.ones(3), (kind, 0.5)).double()  # type: ignore[arg-type]
    assert dropping.spec == plain.spec
    dropping.load_state_dict(plain.state_dict())
    x = pixels(4, (3, 8, 8))
    assert torch.equal(dropping.eval()(x), plain(x))

    outputs = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dropping.load_state_dict(plain.state_dict())
            outputs.append(dropping.train()(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    F.cross_entropy(outputs[2], torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dropping.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_belong_is_refused(name: ModelName) -> None:
    for kind in set(DROPS) - set(ABILITIES[name].drops):
        with pytest.raises(SpecError, match=f"drop {kind} does not apply to {name}"):
            build(spec_of(name), torch.zeros(3), torch.ones(3), (kind, 0.5))


# ---- normalisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_normalisation_is_the_first_layer(name: ModelName) -> None:
    model = random_classifier(name)
    x = pixels(2, (3, 8, 8))
    mean, std = (torch.linspace(*ends, 3).double().view(1, 3, 1, 1) for ends in ((0.3, 0.6), (0.2, 0.4)))
    torch.testing.assert_close(model(x), model.network((x - mean) / std), rtol=1e-12, atol=1e-12)
    assert (model(x) - model.network(x)).abs().max() > 1e-6


def test_normalisation_belongs_to_the_checkpoint_and_is_not_trained() -> None:
    model = build(spec_of("resnet18"), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6]))
    state = model.state_dict()
    assert state["normalize.mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert state["normalize.std"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert not [name for name, _ in model.named_parameters() if "normalize" in name]


# ---- specification ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"name": "vgg"},
        {"name": "torchvision:"},
        {"name": "hub:resnet50"},
        {"width": 0},
        {"width": 5000},
        {"width": None},
        {"name": "torchvision:resnet50"},
        {"classes": ("one",)},
        {"depth": 3},
    ],
)
def test_specification_is_validated(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(spec_of("resnet18").model_dump() | change)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.flatten(1)


def test_network_that_returns_more_than_logits_is_refused() -> None:
    model = random_classifier("resnet18")
    model.network = TwoOutputs()
    with pytest.raises(EvaluationError, match=r"resnet18 returns no logits \[B, K\] alone"):
        model(pixels(2, (3, 8, 8)))
