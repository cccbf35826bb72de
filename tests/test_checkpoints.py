"""Weights in and out: the same bits, and nothing from a file that is not ours is believed or executed."""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustmix.checkpoints import digest_model, load_model, load_state, read_model, save_model, save_state
from robustmix.errors import CheckpointError, SpecError, StoreError
from robustmix.models import Classifier, ModelSpec, build
from robustmix.spec.recipe import Recipe
from robustmix.store.atomic import write_atomically
from robustmix.store.runs import RunFacts, write_history, write_recipe

SPEC = ModelSpec(name="preact_resnet18", width=2, classes=("zero", "one", "zwölf"), shape=(1, 8, 8))


@pytest.fixture
def model() -> Classifier:
    """A network that has seen data, so that no buffer holds its start value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(SPEC, torch.tensor([0.3]), torch.tensor([0.4])).train()
        network(torch.rand(4, 1, 8, 8))
    return network


@pytest.fixture
def file(model: Classifier, tmp_path: Path) -> Path:
    save_model(tmp_path / "model.safetensors", model)
    return tmp_path / "model.safetensors"


def state_of(model: Classifier) -> dict[str, Any]:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    optimiser.step()
    return {
        "format": "robustmix-state-1",
        "recipe": Recipe(method="mixup").resolved("digits").model_dump(),
        "train_digest": "d" * 64,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scaler": {},
        "history": [{"epoch": 1, "train_loss": 0.1, "val_error": float("nan")}],
    }


# ---- models ----------------------------------------------------------------------------------------------


def test_model_survives_being_written_to_the_bit(model: Classifier, file: Path) -> None:
    again = read_model(file)
    assert again.spec == SPEC
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(again(x), model.eval().to(memory_format=torch.channels_last)(x))


def test_model_is_loaded_ready_to_be_attacked(file: Path) -> None:
    again = load_model(file)
    assert not any(module.training for module in again.modules())
    assert again(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    weight = next(weight for weight in again.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_same_weights_give_the_same_file(model: Classifier, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, model)
    save_model(tmp_path / "c", model.to(memory_format=torch.channels_last))
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1


def test_model_is_found_by_run_folder_and_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "place" / "runs" / "erm1"
    write_recipe(folder, Recipe(epochs=1))
    facts = RunFacts("digits", "digits", None, "0" * 64, 8, 3, 100, "cpu", 1, "0", "0")
    write_history(folder, [{"epoch": 1, "test_error": 0.5}], facts)
    file.rename(folder / "model.safetensors")
    expected = read_model(folder / "model.safetensors").state_dict()
    monkeypatch.setenv("ROBUSTMIX_WORKSPACE", str(tmp_path / "place"))
    for found in (
        load_model("erm1"),
        load_model("erm1", tmp_path / "place"),
        load_model(folder),
        load_model(folder / "model.safetensors"),
    ):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_unknown_unfinished_and_impossible_names_are_refused(tmp_path: Path) -> None:
    write_recipe(tmp_path / "runs" / "erm1", Recipe(epochs=7))
    with pytest.raises(CheckpointError, match=r"unknown run 'emr1' \(did you mean 'erm1'\?\); choose from erm1"):
        load_model("emr1", tmp_path)
    with pytest.raises(
        CheckpointError, match="run 'erm1' has not finished: 0 of 7 epochs; go on with: robustmix train"
    ):
        load_model("erm1", tmp_path)
    with pytest.raises(SpecError, match="not a usable name"):
        load_model("../erm1", tmp_path)
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: no such file"):
        load_model(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("length", [0, 4, 8, 100, 5000, -1, -4])
def test_truncated_model_is_refused(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is truncated or no safetensors file") as caught:
        read_model(file)
    assert "\n" not in str(caught.value)


def tensors(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def header(**changes: Any) -> dict[str, str]:
    return {"robustmix": json.dumps(SPEC.model_dump() | changes)}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "was not written by robustmix: its header names no model"),
        ({"format": "pt"}, "was not written by robustmix"),
        ({"robustmix": "no json"}, "its header describes no model"),
        ({"robustmix": "{}"}, "its header describes no model"),
        (header(width=4), "do not belong together"),
        (header(name="resnet18"), "do not belong together"),
        (header(name="vgg"), "its header describes no model"),
        (header(classes=["a", "b"]), "do not belong together"),
        (header(shape=[3, 8, 8]), "do not belong together"),
        (header(extra=1), "its header describes no model"),
    ],
)
def test_model_with_a_wrong_header_is_refused(
    model: Classifier, tmp_path: Path, metadata: dict[str, str] | None, message: str
) -> None:
    save_file(tensors(model), tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "additional", "other shape"])
def test_model_with_other_tensors_than_its_header_says_is_refused(
    model: Classifier, tmp_path: Path, change: str
) -> None:
    held = tensors(model)
    if change == "missing":
        del held["normalize.mean"]
    elif change == "additional":
        held["network.extra"] = torch.zeros(1)
    else:
        held["network.head.bias"] = torch.zeros(7)
    save_file(held, tmp_path / "x.safetensors", metadata=header())
    with pytest.raises(CheckpointError, match="do not belong together"):
        read_model(tmp_path / "x.safetensors")


# ---- states ----------------------------------------------------------------------------------------------


def assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert type(one) is type(other)
        assert one == other or (one != one and other != other)


def test_state_survives_being_written_to_the_bit(model: Classifier, tmp_path: Path) -> None:
    state = state_of(model)
    save_state(tmp_path / "state.ckpt", state)
    assert_same(state, load_state(tmp_path / "state.ckpt"))
    assert os.listdir(tmp_path) == ["state.ckpt"]


def test_failed_write_of_a_state_leaves_the_old_one(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.ckpt"
    save_state(path, state_of(model))
    before = path.read_bytes()

    class Full(io.BufferedWriter):
        def write(self, data: Any) -> int:
            super().write(memoryview(data)[:500])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("robustmix.store.atomic.os.fdopen", lambda handle, mode: Full(io.FileIO(handle, "w")))
    with pytest.raises(StoreError, match=r"state\.ckpt cannot be written: No space left on device"):
        save_state(path, state_of(model))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.ckpt"]


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def torch_saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("write", [pickled, torch_saved])
@pytest.mark.parametrize("place", ["alone", "inside"])
def test_nothing_in_a_state_is_executed(tmp_path: Path, write: Callable[[object], bytes], place: str) -> None:
    trap = Trap(tmp_path / "sprung")
    content = write(trap if place == "alone" else {"format": "robustmix-state-1", "history": [trap]})
    (tmp_path / "state.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a state that robustmix wrote") as caught:
        load_state(tmp_path / "state.ckpt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    if write is pickled:
        pickle.loads(content)
        assert (tmp_path / "sprung").exists(), "the trap works"


def test_pickle_under_the_name_of_a_model_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(pickled(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_model(tmp_path / "x.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "value", [{}, {"format": "robustmix-state-0"}, [1, 2], torch.zeros(3), {"state_dict": {"weight": torch.zeros(1)}}]
)
def test_foreign_state_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "state.ckpt").write_bytes(torch_saved(value))
    with pytest.raises(CheckpointError, match="is not a state that robustmix wrote"):
        load_state(tmp_path / "state.ckpt")


@pytest.mark.parametrize("length", [0, 1, 2, 10, 100, 1000, 20_000, -1, -20, -2000])
def test_truncated_state_is_refused(model: Classifier, tmp_path: Path, length: int) -> None:
    path = tmp_path / "state.ckpt"
    save_state(path, state_of(model))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is not a state that robustmix wrote") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"\x00" * 64, b"text that is no state\n", b"\x80\x02.", b"a", b"0.", b"\x80\x02]q\x00K\x01a.", b"\x8a\xff."],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bytes_that_are_no_state_are_refused(tmp_path: Path, content: bytes) -> None:
    write_atomically(tmp_path / "state.ckpt", lambda file: file.write(content))
    with pytest.raises(CheckpointError, match="is not a state that robustmix wrote") as caught:
        load_state(tmp_path / "state.ckpt")
    assert "\n" not in str(caught.value)


def test_missing_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.ckpt"):
        load_state(tmp_path / "state.ckpt")


# ---- what tells weights apart ----------------------------------------------------------------------------


def test_digest_is_of_names_types_shapes_and_bytes_in_the_order_of_names() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.fill_(3)
    floats = [value.to_bytes(4, "little") for value in (0x40400000, 0x3F800000, 0x40000000)]  # 3, 1, 2
    content = b"net" + b"bias torch.float32 [1]" + floats[0] + b"weight torch.float32 [1, 2]" + floats[1] + floats[2]
    assert digest_model("net", model) == hashlib.sha256(content).hexdigest()


def test_digest_tells_models_apart_and_only_models(model: Classifier) -> None:
    first = digest_model("net", model)
    assert digest_model("net", model.eval().requires_grad_(False)) == first
    assert digest_model("net", model.to(memory_format=torch.channels_last)) == first  # type: ignore[call-overload]
    others = [digest_model("other net", model)]
    model.normalize.mean.add_(1)
    others.append(digest_model("net", model))
    model.double()
    others.append(digest_model("net", model))
    assert len({first, *others}) == 4


def test_digest_counts_what_is_no_tensor() -> None:
    class Counting(nn.Module):
        count = 1

        def get_extra_state(self) -> object:
            return self.count

    model = Counting()
    before = digest_model("net", model)
    model.count = 2
    assert digest_model("net", model) != before
