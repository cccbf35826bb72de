"""The two networks: their size, their exact form against an independent computation, and normalisation inside."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from robustmix.data import TensorSplit
from robustmix.errors import EvaluationError
from robustmix.models import Classifier, ModelSpec, build
from robustmix.models.resnet import PreActBlock, preact_resnet18, resnet18
from robustmix.spec.names import ModelName
from robustmix.training import error_rate

NAMES: tuple[ModelName, ...] = ("preact_resnet18", "resnet18")


def spec_of(name: ModelName, shape: tuple[int, int, int] = (3, 8, 8), width: int = 4) -> ModelSpec:
    return ModelSpec(name=name, width=width, classes=("a", "b", "c", "d"), shape=shape)


def random_classifier(name: ModelName, shape: tuple[int, int, int] = (3, 8, 8)) -> Classifier:
    """In eval mode and float64, every buffer and every batch-norm parameter away from its start value."""
    draws = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = build(spec_of(name, shape), torch.linspace(0.3, 0.6, shape[0]), torch.linspace(0.2, 0.4, shape[0]))
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var, module.bias.data, module.running_mean):
                assert tensor is not None
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draws, dtype=torch.float64))
    return model


# ---- size ------------------------------------------------------------------------------------------------


def count_by_hand(name: str, channels: int, width: int, classes: int) -> int:
    """Convolutions without bias, two numbers per channel of a batch norm, a linear layer with bias."""
    total = 9 * channels * width + 2 * width
    inputs = width
    for outputs in (width, 2 * width, 4 * width, 8 * width):
        for first in (inputs, outputs):
            total += 9 * first * outputs + 9 * outputs * outputs
            if name == "preact_resnet18":
                total += 2 * first + 2 * outputs + (first * outputs if first != outputs else 0)
            else:
                total += 4 * outputs + (first * outputs + 2 * outputs if first != outputs else 0)
        inputs = outputs
    return total + inputs * classes + classes


@pytest.mark.parametrize(
    ("factory", "name", "published"),
    [(preact_resnet18, "preact_resnet18", 11_171_274), (resnet18, "resnet18", 11_173_962)],
)
def test_width_64_has_11_17_million_parameters(factory: type, name: str, published: int) -> None:
    with torch.device("meta"):
        model = factory(3, 64, 10)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == count_by_hand(name, 3, 64, 10) == published
    assert round(count / 1e6, 2) == 11.17


@pytest.mark.parametrize("factory", [preact_resnet18, resnet18])
@pytest.mark.parametrize(("channels", "width", "classes"), [(1, 16, 10), (3, 2, 100), (1, 1, 2)])
def test_parameters_at_other_sizes(factory: type, channels: int, width: int, classes: int) -> None:
    model = factory(channels, width, classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == count_by_hand(model_name(model), channels, width, classes)


def model_name(model: nn.Module) -> str:
    return "preact_resnet18" if any(isinstance(part, PreActBlock) for part in model.modules()) else "resnet18"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 9, 14)])
def test_any_input_from_8x8_can_be_trained_on(name: ModelName, shape: tuple[int, int, int]) -> None:
    model = build(spec_of(name, shape, width=2), torch.zeros(shape[0]), torch.ones(shape[0]))
    draws = torch.Generator().manual_seed(0)
    logits = model(torch.rand(3, *shape, generator=draws))
    assert logits.shape == (3, 4)
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


# ---- form ------------------------------------------------------------------------------------------------


def norm(state: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{at}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def by_hand(state: dict[str, Tensor], x: Tensor, *, preact: bool, raw_shortcut: bool = False) -> Tensor:
    """Both networks written out from their weights alone, after mixup-cifar10's and He et al.'s definitions."""
    x = F.relu(norm(state, "stem.1", F.conv2d(x, state["stem.0.weight"], padding=1)))
    for stage in range(4):
        for block in range(2):
            at = f"stages.{stage}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            first, second = state[f"{at}.conv1.weight"], state[f"{at}.conv2.weight"]
            projection = state.get(f"{at}.shortcut.weight", state.get(f"{at}.shortcut.0.weight"))
            if preact:
                active = F.relu(norm(state, f"{at}.bn1", x))
                shortcut = x if raw_shortcut and projection is None else active
                if projection is not None:
                    shortcut = F.conv2d(active, projection, stride=stride)
                hidden = F.relu(norm(state, f"{at}.bn2", F.conv2d(active, first, stride=stride, padding=1)))
                x = F.conv2d(hidden, second, padding=1) + shortcut
            else:
                shortcut = x
                if projection is not None:
                    shortcut = norm(state, f"{at}.shortcut.1", F.conv2d(x, projection, stride=stride))
                hidden = F.relu(norm(state, f"{at}.bn1", F.conv2d(x, first, stride=stride, padding=1)))
                x = F.relu(norm(state, f"{at}.bn2", F.conv2d(hidden, second, padding=1)) + shortcut)
    return F.linear(x.mean(dim=(2, 3)), state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [8, 16, 20])
def test_network_is_the_one_written_out_by_hand(name: ModelName, size: int) -> None:
    network = random_classifier(name).network
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = by_hand(network.state_dict(), x, preact=name == "preact_resnet18")
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)


def test_preact_shortcut_carries_the_activated_input_where_nothing_is_projected() -> None:
    """As mixup-cifar10 has it; He et al. 2016b carry the raw input there, which is another function."""
    network = random_classifier("preact_resnet18").network
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    raw = by_hand(network.state_dict(), x, preact=True, raw_shortcut=True)
    assert (network(x) - raw).abs().max() > 1e-3 * raw.abs().max()

    block = PreActBlock(4, 4, 1).double().eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(block(x), F.relu(block.bn1(x)))


def test_fresh_weights_come_from_the_global_generator_alone() -> None:
    built = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built.append(build(spec_of("resnet18"), torch.zeros(3), torch.ones(3)).state_dict())
    assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])
    assert not torch.equal(built[0]["network.head.weight"], built[2]["network.head.weight"])


# ---- normalisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_normalisation_is_the_first_layer(name: ModelName) -> None:
    model = random_classifier(name)
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, std = (torch.linspace(*ends, 3).double().view(1, 3, 1, 1) for ends in ((0.3, 0.6), (0.2, 0.4)))
    torch.testing.assert_close(model(x), model.network((x - mean) / std), rtol=1e-12, atol=1e-12)
    assert (model(x) - model.network(x)).abs().max() > 1e-3


def test_normalisation_belongs_to_the_checkpoint_and_is_not_trained() -> None:
    model = build(spec_of("resnet18"), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6]))
    state = model.state_dict()
    assert state["normalize.mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert state["normalize.std"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert not [name for name, _ in model.named_parameters() if "normalize" in name]


# ---- what does not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 7, 8), (2, 3, 8, 7), (3, 8, 8), (2, 8, 8, 3)])
def test_input_of_another_shape_is_refused_with_what_is_wanted(shape: tuple[int, ...]) -> None:
    model = build(spec_of("resnet18"), torch.zeros(3), torch.ones(3))
    with pytest.raises(EvaluationError, match=r"resnet18 takes images \[B, 3, H, W\] of at least 8x8; got"):
        model(torch.rand(shape))


@pytest.mark.parametrize(
    "change", [{"name": "vgg"}, {"width": 0}, {"width": 5000}, {"classes": ("one",)}, {"depth": 3}]
)
def test_specification_is_validated(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(spec_of("resnet18").model_dump() | change)


class FirstPixel(nn.Module):
    """Predicts class 1 where the first pixel is white; counts dropout's mode."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training, "errors are counted in eval mode"
        return torch.stack([1 - x[:, 0, 0, 0], x[:, 0, 0, 0]], dim=1)


def test_error_rate_is_the_share_of_wrong_predictions_and_leaves_the_mode() -> None:
    images = torch.zeros(1100, 1, 8, 8, dtype=torch.uint8)
    images[::2, 0, 0, 0] = 255
    labels = torch.zeros(1100, dtype=torch.int64)
    labels[:100] = 1
    for training in (True, False):
        model = FirstPixel().train(training)
        # wrong: the 50 black ones of the first 100, and the 500 white ones of the rest
        assert error_rate(model, TensorSplit(images, labels)) == pytest.approx(550 / 1100)
        assert model.training is training
