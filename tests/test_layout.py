"""Networks that cannot take channels-last have the numbers of those that can; all others are left alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import robustmix
from robustmix.attacks import fgsm
from robustmix.data import load_data
from robustmix.errors import SpecError
from robustmix.models.layout import Contiguous, evaluating, fitted, laid_out
from robustmix.participants import Participant, find_participants
from robustmix.store.workspace import Workspace
from robustmix.zoo import Wrapped

# Each flattens as it is told; `make` of a kind and a way is the factory.
NETS: Final = """
import torch
from torch import nn
from safetensors.torch import load_file

def viewed(x):
    return x.view(x.size(0), -1)

def flat(x):
    return torch.flatten(x, 1)

class Lenet(nn.Module):
    def __init__(self, flatten, channels):
        super().__init__()
        self.flatten = flatten
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.linear = nn.Linear(64, 10)
    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        return self.linear(self.flatten(nn.functional.max_pool2d(self.conv2(x).relu(), 2)))

class Entering(Lenet):
    def forward(self, x):
        return super().forward(x.clone(memory_format=torch.contiguous_format))

class Perceptron(nn.Module):
    def __init__(self, flatten, channels):
        super().__init__()
        self.flatten = flatten
        self.hidden, self.linear = nn.Linear(64 * channels, 32), nn.Linear(32, 10)
    def forward(self, x):
        return self.linear(self.hidden(self.flatten(x)).relu())

def make(kind, flatten, channels, weights=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(flatten, channels)
    if weights:
        network.load_state_dict(load_file(weights))
    return network
"""
KINDS = ("Lenet", "Perceptron", "Entering")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def nets() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(NETS, found)
    return found


def made(nets: dict[str, Any], kind: str, way: str, channels: int = 1) -> nn.Module:
    network: nn.Module = nets["make"](nets[kind], nets[way], channels)
    return network


def some(channels: int) -> Tensor:
    return torch.rand(5, channels, 8, 8, generator=torch.Generator().manual_seed(2))


def lying(x: Tensor) -> list[Tensor]:
    """The same images in the usual layout and channels-last, in strides as well."""
    return [x.clone(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last)]


def strides(network: nn.Module) -> list[tuple[int, ...]]:
    return [value.stride() for value in network.state_dict().values()]


def gradient(network: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad((network(x) * torch.linspace(1, 2, 10)).sum(), x)
    return found


def assert_same(one: nn.Module, other: nn.Module, channels: int) -> None:
    """In any layout of the images the same outputs and gradients."""
    for x in lying(some(channels)):
        torch.testing.assert_close(one(x), other(x))
        torch.testing.assert_close(gradient(one, x), gradient(other, x))
    assert float(gradient(one, some(channels)).abs().max()) > 1e-4


# ---- a caller's network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "channels"), [("Lenet", 1), ("Lenet", 3), ("Perceptron", 3)])
def test_network_that_flattens_by_view_is_put_behind_a_copy(nets: dict[str, Any], kind: str, channels: int) -> None:
    for x in lying(some(channels)):
        network = made(nets, kind, "viewed", channels)
        with pytest.raises(RuntimeError, match="view size"):
            network(lying(x)[1])
        other = fitted(network, x)
        assert isinstance(other, Contiguous)
        assert other.network is network
        assert_same(other, made(nets, kind, "flat", channels), channels)
        assert list(other.state_dict()) == [f"network.{name}" for name in network.state_dict()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "way"), [("Lenet", "flat"), ("Perceptron", "flat")])
def test_network_that_takes_channels_last_is_left_alone(
    nets: dict[str, Any], kind: str, way: str, channels: int
) -> None:
    network = made(nets, kind, way, channels)
    assert fitted(network, some(channels)) is network
    assert laid_out(network, some(channels)) is network


def test_network_that_takes_neither_reports_the_mistake_itself(nets: dict[str, Any]) -> None:
    network = made(nets, "Lenet", "viewed", 3)
    for find in (fitted, laid_out):
        assert find(network, some(1)) is network
    with pytest.raises(RuntimeError, match="3 channels"):
        network(some(1))


def test_inputs_without_a_layout_are_not_tried() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    network = Never()
    assert fitted(network, torch.rand(4, 7)) is network


def test_only_a_runtime_error_is_about_the_layout() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("fc")

    with pytest.raises(KeyError, match="fc"):
        fitted(Fails(), some(1))


def test_weights_in_channels_last_are_left_so(nets: dict[str, Any]) -> None:
    """A caller's own: nothing but moving them would help, and the caller's pass says why."""
    network = made(nets, "Lenet", "viewed", 3).to(memory_format=torch.channels_last)
    before = strides(network)
    assert fitted(network, some(3)) is network
    assert strides(network) == before


class Stubborn(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> "Stubborn":
        self.training = True
        return self


@pytest.mark.parametrize("training", [False, True])
def test_network_and_images_are_left_as_found(nets: dict[str, Any], training: bool) -> None:
    network = nn.Sequential(made(nets, "Lenet", "viewed", 3), Stubborn(10), nn.Dropout(), nn.ReLU(inplace=True))
    network.train(training)
    network[2].train(not training)
    modes = [part.training for part in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    before, x = strides(network), some(3)
    other = fitted(network, x)
    assert isinstance(other, Contiguous)
    assert other.training == training
    assert [part.training for part in network.modules()] == modes
    assert strides(network) == before
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in network.parameters())
    assert torch.equal(x, some(3))


def test_images_are_not_changed_by_a_network_that_works_in_place() -> None:
    x = some(3)
    fitted(nn.ReLU(inplace=True), x.neg_())
    assert torch.equal(x, -some(3))


def test_train_flags_are_put_off_and_restored_whatever_train_does() -> None:
    network = nn.Sequential(Stubborn(3), nn.Dropout()).train()
    network[1].eval()
    seen: list[bool] = []

    def fail() -> None:
        with evaluating(network):
            seen.extend(part.training for part in network.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False] * 3
    assert [part.training for part in network.modules()] == [True, True, False]


# ---- a network of one's own ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [torch.contiguous_format, torch.channels_last])
def test_weights_are_moved_to_where_the_network_takes_images(
    nets: dict[str, Any], kind: str, channels: int, before: torch.memory_format
) -> None:
    network = laid_out(made(nets, kind, "viewed", channels).to(memory_format=before), some(channels))
    assert_same(network, made(nets, kind, "flat", channels), channels)
    kernels = [weight for weight in network.parameters() if weight.ndim == 4]
    assert [weight.stride() for weight in kernels] == [weight.contiguous().stride() for weight in kernels]
    other = laid_out(made(nets, kind, "flat", channels), some(channels))
    for weight in (weight for weight in other.parameters() if weight.ndim == 4):
        assert weight.stride() == weight.clone(memory_format=torch.channels_last).stride()


# ---- the user's own code ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(nets: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose factories, `lenet_viewed` and so on, make networks that know the digits."""
    folder = tmp_path_factory.mktemp("viewed")
    train = load_data("digits").train
    x, y = train.gather(torch.arange(len(train)), CPU)
    code = NETS
    for kind in ("Lenet", "Perceptron"):
        network = made(nets, kind, "flat")
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        draws = torch.Generator().manual_seed(1)
        for _ in range(8):
            for part in torch.randperm(len(x), generator=draws).split(32):
                optimiser.zero_grad()
                F.cross_entropy(network(x[part]), y[part]).backward()
                optimiser.step()
        weights = folder / f"{kind}.safetensors"
        save_file(network.state_dict(), weights)
        for way in ("viewed", "flat"):
            code += f"\ndef {kind.lower()}_{way}():\n    return make({kind}, {way}, 1, {str(weights)!r})\n"
    for kind in KINDS:
        for way in ("viewed", "flat"):
            code += f"\ndef {kind.lower()}3_{way}():\n    return make({kind}, {way}, 3)\n"
    (folder / "nets.py").write_text(code)
    return folder / "nets.py"


Find = Callable[..., Participant]


@pytest.fixture
def find(tiny: Path, trained: Path) -> Find:
    def find(name: str, channels: int = 1, **options: Any) -> Participant:
        shape = (channels, 8, 8)
        (one,) = find_participants(Workspace(tiny), [f"{trained}:{name}"], shape=shape, **options)
        return one

    return find


@pytest.mark.parametrize(
    ("name", "channels"), [("lenet", 1), ("perceptron", 1), ("lenet3", 3), ("perceptron3", 3), ("entering3", 3)]
)
def test_factory_whose_network_flattens_by_view_is_that_which_flattens(find: Find, name: str, channels: int) -> None:
    one, other = (find(f"{name}_{way}", channels, classes=10, normalize="0.5/0.25") for way in ("viewed", "flat"))
    assert one.classes == 10
    model, expected = one.load(), other.load()
    assert not any(part.training for part in model.modules())
    assert_same(model, expected, channels)
    assert_same(one.load(), expected, channels)
    for x in lying(some(channels)):
        y = expected(x).argmax(dim=1)
        attacked = [fgsm(each, x, y, 32 / 255) for each in (model, expected)]
        torch.testing.assert_close(*attacked)
        assert not torch.equal(attacked[0], x)


def test_digest_does_not_know_of_the_layout(tiny: Path, trained: Path) -> None:
    """Where the images' shape is unknown nothing is tried: neither a layout nor what the network makes of images."""
    digests = []
    for shape in ((3, 8, 8), (3, 8, 8), None):
        (one,) = find_participants(
            Workspace(tiny), [f"{trained}:lenet3_viewed"], normalize="0,0,0/1", shape=shape, classes=10
        )
        network = one.load()
        assert isinstance(network, Wrapped)
        assert isinstance(network.network, Contiguous) == (shape is not None)
        digests.append(one.digest)
    assert digests[0] == digests[1] != digests[2]


def test_mistake_in_any_layout_is_one_line(find: Find) -> None:
    with pytest.raises(SpecError, match=r"cannot take images \[3, 8, 8\]: RuntimeError: Given groups=1"):
        find("lenet_viewed", 3)


def test_network_behind_another_normalisation_takes_images_as_before(find: Find) -> None:
    model = find("lenet_viewed").load()
    assert isinstance(model, Wrapped)
    other = model.normalized(((0.5,), (0.25,)))
    expected = find("lenet_flat", normalize="0.5/0.25").load()
    assert_same(other, expected, 1)


def test_errors_are_those_of_the_network_that_flattens(trained: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    ways = ("lenet_viewed", "lenet_flat", "perceptron_viewed", "perceptron_flat")
    suite = robustmix.Suite.model_validate(
        {
            "version": 1,
            "title": "t",
            "data": "digits",
            "sources": tuple(f"{trained}:{way}" for way in ways),
            "targets": (*(f"{trained}:{way}" for way in ways), "erm1"),
            "limit": 60,
            "attack": (robustmix.AttackSpec(name="fgsm", eps=(24,)), robustmix.AttackSpec(name="ifgsm", eps=(24,))),
        }
    )
    table = robustmix.evaluate(suite, workspace=tmp_path, device="cpu")
    counts = {
        (*(str(name).rpartition(":")[2] for name in names), attack): errors
        for *names, attack, errors in table[["source", "target", "attack", "errors"]].itertuples(index=False)
    }
    assert len(counts) == 5 + 2 * 4 * 5
    assert len(set(counts.values())) > 6
    for (source, target, attack), errors in counts.items():
        assert counts[source.replace("viewed", "flat"), target.replace("viewed", "flat"), attack] == errors
