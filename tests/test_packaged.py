"""Networks of torchvision and timm with fresh weights."""

import sys
from types import ModuleType

import pytest
import torch

from robustmix.errors import EvaluationError, SpecError
from robustmix.models import ModelSpec, build, check_packaged
from robustmix.models.packaged import packaged_network


def spec_of(name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 5) -> ModelSpec:
    return ModelSpec(name=name, width=None, classes=tuple(map(str, range(classes))), shape=shape)


# He et al. 2016 (25.56 M and 44.55 M with the head), Xie et al. 2017 (44.18 M and 83.46 M).
@pytest.mark.parametrize(
    ("name", "exact", "published"),
    [
        ("torchvision:resnet50", 25_557_032, 25.56),
        ("torchvision:resnet101", 44_549_160, 44.55),
        ("timm:resnext101_32x4d", 44_177_704, 44.18),
        ("torchvision:resnext101_64x4d", 83_455_272, 83.46),
    ],
)
def test_networks_for_imagenet_have_the_published_size(
    name: str, exact: int, published: float, torchvision: ModuleType
) -> None:
    pytest.importorskip(name.partition(":")[0])
    with torch.device("meta"):
        network = packaged_network(name, 3, 1000)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == exact
    assert round(count / 1e6, 2) == published


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_network_is_fresh_and_trained_like_ours(name: str, torchvision: ModuleType) -> None:
    pytest.importorskip(name.partition(":")[0])
    built = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built.append(build(spec_of(name), torch.full((3,), 0.4), torch.full((3,), 0.2)))
    states = [model.state_dict() for model in built]
    assert all(torch.equal(states[0][at], states[1][at]) for at in states[0])
    assert not torch.equal(states[0]["network.conv1.weight"], states[2]["network.conv1.weight"])
    assert states[0]["network.bn1.num_batches_tracked"] == 0
    model = built[0]
    assert model.training
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    x = x[:, :, :16, :16]
    torch.testing.assert_close(model.eval()(x), model.network((x - 0.4) / 0.2))


def test_timms_networks_take_any_number_of_channels_and_torchvisions_three(torchvision: ModuleType) -> None:
    pytest.importorskip("timm")
    model = build(spec_of("timm:resnet18", (1, 32, 32)), torch.zeros(1), torch.ones(1))
    assert model.network.conv1.weight.shape[1] == 1  # type: ignore[union-attr]
    with pytest.raises(
        SpecError, match="torchvision:resnet18 takes images of 3 channels, these have 1: choose timm:NAME"
    ):
        check_packaged("torchvision:resnet18", 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("torchvision:resnet5", r"unknown torchvision classifier 'resnet5' \(did you mean 'resnet50'"),
        ("timm:resnet_18", r"unknown timm model 'resnet_18' \(did you mean .*'resnet18'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown torchvision classifier"),
    ],
)
def test_unknown_name_comes_with_the_closest(name: str, text: str, torchvision: ModuleType) -> None:
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(SpecError, match=text):
        check_packaged(name, 3)


@pytest.mark.parametrize(
    ("missing", "name", "way_out"),
    [
        ("timm", "timm:resnet18", r"pip install 'robustmix\[zoo\]'"),
        ("torchvision.models", "torchvision:resnet18", "install the torchvision that fits this torch"),
    ],
)
def test_missing_package_is_one_line(
    missing: str, name: str, way_out: str, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SpecError, match=rf"^{name} needs [a-z]+, which cannot be imported .*: {way_out}$"):
        build(spec_of(name), torch.zeros(3), torch.ones(3))


def test_images_that_a_network_cannot_take_are_refused_at_once(torchvision: ModuleType) -> None:
    pytest.importorskip("timm")
    with pytest.raises(SpecError, match=r"^timm:vit_tiny_patch16_224 cannot take images \[3, 32, 32\]: AssertionError"):
        build(spec_of("timm:vit_tiny_patch16_224"), torch.zeros(3), torch.ones(3))


def test_hidden_layers_and_dropping_are_refused(torchvision: ModuleType) -> None:
    spec = spec_of("torchvision:resnet18")
    with pytest.raises(SpecError, match="drop dropout does not apply to torchvision:resnet18"):
        build(spec, torch.zeros(3), torch.ones(3), ("dropout", 0.5))
    model = build(spec, torch.zeros(3), torch.ones(3)).eval()
    x = torch.zeros(2, 3, 32, 32)
    with pytest.raises(
        SpecError, match=r"layer 1 of torchvision:resnet18 cannot be mixed: .* a model of preact_resnet18"
    ):
        model(x, 1, lambda hidden: hidden)
    assert torch.equal(model(x, 0, lambda hidden: 0 * hidden), model(x))
    with pytest.raises(EvaluationError, match="takes images"):
        model(x[:, :1])
