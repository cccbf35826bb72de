"""Weights of other programs under our names: the same function of pixels, or one line that names what does not fit."""

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_nets import at_home, basic, preact
from safetensors.torch import save_file
from torch import nn

from robustmix.errors import CheckpointError
from robustmix.interchange.weights import NAMES, fill, read_weights, renamed
from robustmix.models import Classifier, ModelSpec

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
CLASSES = tuple("0123456789")


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    at_home(monkeypatch)


def ours(model: str = "preact_resnet18", width: int = 2) -> nn.Module:
    return Classifier(ModelSpec(name=model, width=width, classes=CLASSES, shape=(1, 8, 8))).eval().network


def filled(path: Path, model: str = "preact_resnet18", width: int = 2) -> nn.Module:
    network = ours(model, width)
    fill(network, model, read_weights(path), str(path), f"{model} of width {width}")
    return network


def assert_same_function(network: nn.Module, other: nn.Module) -> None:
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        logits = network(x)
        # Not to the bit: the average over pixels may add in another order.
        assert torch.allclose(logits, other(x), rtol=0, atol=1e-6)
    assert logits.std() > 0.01


@FORMATS
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_whole_network_as_mixup_cifar10_saves_it(tmp_path: Path, zipped: bool, parallel: bool) -> None:
    network = preact()
    net = nn.DataParallel(network) if parallel else network
    state = {"net": net, "acc": torch.tensor(95.8), "epoch": 199, "rng_state": torch.get_rng_state()}
    torch.save(state, tmp_path / "ckpt.t7", _use_new_zipfile_serialization=zipped)
    assert_same_function(filled(tmp_path / "ckpt.t7"), network)


@pytest.mark.parametrize("holder", ["", "state_dict", "model", "net", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dict_wherever_it_is_held(tmp_path: Path, holder: str, prefix: str) -> None:
    network = preact()
    state: Any = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    if holder:
        state = {holder: state, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "acc": torch.tensor(1.0)}
    torch.save(state, tmp_path / "x.pt")
    assert_same_function(filled(tmp_path / "x.pt"), network)


def torchvision_names(state: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("shortcut", "downsample").replace("linear", "fc"): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(("model", "make"), [("preact_resnet18", preact), ("resnet18", basic)])
@pytest.mark.parametrize("rename", [dict, torchvision_names])
def test_safetensors_by_the_names_of_each_family(
    tmp_path: Path, model: str, make: Callable[[], nn.Module], rename: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    network = make()
    save_file(rename(dict(network.state_dict())), tmp_path / "x.safetensors")
    assert_same_function(filled(tmp_path / "x.safetensors", model), network)


@pytest.mark.parametrize("model", sorted(NAMES))
@pytest.mark.parametrize("prefix", ["", "network.", "module.network."])
def test_our_own_names_are_kept(tmp_path: Path, model: str, prefix: str) -> None:
    network = ours(model)
    torch.save({f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "x.pt")
    assert_same_function(filled(tmp_path / "x.pt", model), network)


@pytest.mark.parametrize("model", sorted(NAMES))
def test_every_name_of_a_family_has_one_of_ours(model: str) -> None:
    def theirs(name: str) -> str:
        name = name.replace("stem.0.", "conv1.").replace("stem.1.", "bn1.").replace("head.", "linear.")
        if name.startswith("stages."):
            _, stage, rest = name.split(".", 2)
            name = f"layer{int(stage) + 1}.{rest}"
        return name.replace("shortcut.weight", "shortcut.0.weight")

    for name in ours(model).state_dict():
        assert renamed(theirs(name), NAMES[model]) == name  # type: ignore[index]


def test_counters_of_old_files_may_be_missing(tmp_path: Path) -> None:
    network = preact()
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "x.pt")
    assert_same_function(filled(tmp_path / "x.pt"), network)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    network = preact().half()
    torch.save(network.state_dict(), tmp_path / "x.pt")
    found = filled(tmp_path / "x.pt")
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert_same_function(found, network.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn1.weight": None}, r"holds no 'stem\.1\.weight' \[2\] of preact_resnet18 of width 2$"),
        ({"linear.bias": None, "odd": torch.zeros(3)}, r"holds no 'head\.bias' \[10\] of .*; it has 'odd'"),
        ({"extra.weight": torch.zeros(3, 4)}, r"holds 'extra\.weight' \[3, 4\], which preact_resnet18 of width 2 "),
        ({"linear.weight": torch.zeros(7, 16)}, r"'linear\.weight' has the shape \[7, 16\], and 'head\.weight' .* \[1"),
        ({"bn1.running_var": torch.zeros(3)}, r"'bn1\.running_var' has the shape \[3\]"),
        ({"linear.bias": torch.full((10,), torch.nan)}, r"'linear\.bias' holds values that are NaN or infinite"),
        ({"conv1.weight": torch.full((2, 1, 3, 3), torch.inf)}, r"'conv1\.weight' holds values that are NaN"),
        ({"fc.bias": torch.zeros(10)}, "holds two weights of one name"),
        ({"../../etc/passwd": torch.zeros(1)}, r"holds '\.\./\.\./etc/passwd' \[1\], which"),
        ({"a\nb\x1b[31m": torch.zeros(1)}, r"holds 'a\\nb\\x1b\[31m' \[1\], which"),
        ({"x" * 500: torch.zeros(1)}, r"holds 'x{80}\.\.\.' \[1\], which"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = {name: tensor for name, tensor in {**preact().state_dict(), **change}.items() if tensor is not None}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        filled(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "x.pt"))


def test_another_architecture_does_not_fit(tmp_path: Path) -> None:
    torch.save(basic().state_dict(), tmp_path / "basic.pt")
    torch.save(preact().state_dict(), tmp_path / "preact.pt")
    with pytest.raises(CheckpointError, match=r"basic\.pt"):
        filled(tmp_path / "basic.pt", "preact_resnet18")
    with pytest.raises(CheckpointError, match=r"preact\.pt holds no 'stages\.1\.0\.shortcut\.1\.weight'"):
        filled(tmp_path / "preact.pt", "resnet18")


def test_nothing_is_read_of_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({**preact().state_dict(), "extra": torch.zeros(3)}, tmp_path / "x.pt")
    monkeypatch.setattr("robustmix.interchange.saved.Saved.tensor", lambda *_: pytest.fail("read"))
    with pytest.raises(CheckpointError, match="'extra'"):
        filled(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds a list, not a state dict or a network"),
        (torch.zeros(3), "holds a Stored, not a state dict"),
        ({}, "holds no state dict: neither tensors nor one of state_dict, model_state_dict, model, net, but nothing"),
        ({"epoch": 1, "args": {}}, "but 'epoch', 'args'"),
        ({"net": {"epoch": 1}}, "holds no state dict"),
    ],
)
def test_what_holds_no_weights_is_one_line(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "x.pt")


def test_buffers_that_are_not_saved_are_left_out(tmp_path: Path) -> None:
    network = preact()
    network.register_buffer("passing", torch.zeros(3), persistent=False)
    torch.save(network, tmp_path / "x.pt")
    assert_same_function(filled(tmp_path / "x.pt"), network)


def test_network_that_contains_itself_is_refused(tmp_path: Path) -> None:
    network = preact()
    network.layer1._modules["again"] = network
    torch.save(network, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"contains itself, as 'layer1\.again\.'$"):
        read_weights(tmp_path / "x.pt")


def test_module_in_two_places_has_its_weights_in_both(tmp_path: Path) -> None:
    network = nn.Sequential(shared := nn.Linear(2, 3), nn.Sequential(shared))
    torch.save(network, tmp_path / "x.pt")
    assert set(read_weights(tmp_path / "x.pt")) == set(network.state_dict())
    assert "1.0.weight" in network.state_dict()


def doubling(levels: int) -> nn.Module:
    """A network in which the innermost module stands in 2 ** levels places."""
    network: nn.Module = nn.Linear(1, 1)
    for _ in range(levels):
        network = nn.Sequential(network, network)
    return network


def test_small_file_cannot_stand_for_a_network_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(doubling(30), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="a network of more than 10000 modules"):
        read_weights(tmp_path / "x.pt")
    torch.save(doubling(3), tmp_path / "x.pt")
    assert len(read_weights(tmp_path / "x.pt")) == 16
    monkeypatch.setattr("robustmix.interchange.weights.MOST_WEIGHTS", 15)
    with pytest.raises(CheckpointError, match="or 15 weights"):
        read_weights(tmp_path / "x.pt")


def test_names_have_an_end(tmp_path: Path) -> None:
    network = inner = nn.Sequential()
    for _ in range(30):
        inner._modules["a" * 40] = inner = nn.Sequential()
    torch.save(network, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"holds a module with '(a{40}\.)a{39}\.\.\.': that is no name"):
        read_weights(tmp_path / "x.pt")
    network._modules = {7: nn.Linear(1, 1)}  # type: ignore[dict-item]
    torch.save(network, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds a module with '7': that is no name"):
        read_weights(tmp_path / "x.pt")
    torch.save({"module." * 10_000: torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="a name of more than 1000 characters") as caught:
        read_weights(tmp_path / "x.pt")
    assert len(str(caught.value)) < 300


def nested(depth: int, path: Path) -> None:
    """A zip file of the format of torch.save: dictionaries named ``net``, each within the one before."""
    name = b"X\x03\0\0\0net"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + (b"}" + name) * depth + b"}" + b"s" * depth + b".")


def itself(path: Path) -> None:
    """A dictionary that holds itself."""
    content: dict[str, Any] = {}
    content["net"] = content
    torch.save(content, path)


@pytest.mark.parametrize("write", [itself, partial(nested, 3000), partial(nested, 8)])
def test_state_dict_is_not_looked_for_without_end(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds no state dict within 8 of state_dict, model_state_dict, model, "):
        read_weights(tmp_path / "x.pt")


def test_state_dict_within_several_holders_is_found(tmp_path: Path) -> None:
    network = preact()
    torch.save({"model": {"net": {"state_dict": network.state_dict()}}}, tmp_path / "x.pt")
    assert_same_function(filled(tmp_path / "x.pt"), network)


@pytest.mark.parametrize("length", [0, 4, 9, 100, 2000, -1])
def test_truncated_safetensors_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file(dict(preact().state_dict()), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is truncated") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read: "):
            read_weights(path)


def test_bytes_of_a_file_object_are_enough() -> None:
    """What is tested here is that torch itself still writes the format that is read."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(1)}, file)
    assert file.getvalue().startswith(b"PK\x03\x04")
