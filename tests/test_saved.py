"""Files of torch.save, in both formats: the same tensors as torch reads, and nothing executed, claimed or left out."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustmix.errors import CheckpointError
from robustmix.interchange.pickled import Record, Stored
from robustmix.interchange.saved import Saved, read_saved

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
PATH = Path("ckpt.t7")


def saved_by_torch(value: object, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in members.items():
            made.writestr(f"archive/{name}", content)
    return file.getvalue()


def sequence(value: bytes, keys: object, *storages: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(one, protocol=2) for one in (0x1950A86A20F9469CFC6C, 1001, system))
    return head + value + pickle.dumps(keys, protocol=2) + b"".join(storages)


class Claim:
    """A float32 tensor that a file claims to hold."""

    def __init__(
        self, count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, key: str = "0"
    ) -> None:
        self.storage = _StorageOf(count, key)
        self.rest = (offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (self.storage, *self.rest)


class _StorageOf:
    def __init__(self, count: int, key: str) -> None:
        self.count, self.key = count, key


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        if isinstance(value, _StorageOf):
            return ("storage", torch.FloatStorage, value.key, "cpu", value.count)
        return None


def claimed(value: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def everything(content: bytes) -> Any:
    """What a file holds, with all tensors read."""
    saved = read_saved(PATH, content)
    return tensors(saved, saved.content)


def tensors(saved: Saved, value: Any) -> Any:
    if isinstance(value, Stored):
        return saved.tensor(value)
    if isinstance(value, dict):
        return {key: tensors(saved, one) for key, one in value.items()}
    return value


@FORMATS
def test_tensors_are_those_that_torch_reads(zipped: bool) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    value = {
        "base": base, "view": base[1:, :, 2], "transposed": base.permute(2, 0, 1), "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.randn(3)), "channels": torch.randn(2, 3, 4, 5).to(
            memory_format=torch.channels_last), "size": torch.Size([1, 2]), "device": torch.device("cuda", 1),
        **{str(dtype): torch.arange(5).to(dtype) for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
            torch.uint8, torch.bool)},
        "dtype": torch.float32,
    }  # fmt: skip
    content = saved_by_torch(value, zipped)
    again = everything(content)
    assert list(again) == list(value)
    for name, tensor in value.items():
        if isinstance(tensor, Tensor):
            assert again[name].dtype == tensor.dtype
            assert again[name].is_contiguous()
            assert torch.equal(again[name], tensor), name
    assert again["size"] == (1, 2)
    assert again["device"] is None


@FORMATS
def test_state_dict_with_its_metadata_is_read(zipped: bool) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    again = everything(saved_by_torch({"state_dict": network.state_dict(), "epoch": 3}, zipped))
    assert again["epoch"] == 3
    assert all(torch.equal(again["state_dict"][name], tensor) for name, tensor in network.state_dict().items())


@FORMATS
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_whole_network_is_a_record(zipped: bool) -> None:
    network = nn.DataParallel(nn.Sequential(nn.Linear(2, 3)))
    found = read_saved(PATH, saved_by_torch({"net": network, "rng_state": torch.get_rng_state()}, zipped))
    assert isinstance(found.content, dict)
    record = found.content["net"]
    assert isinstance(record, Record)
    weight = record.state["_modules"]["module"].state["_modules"]["0"].state["_parameters"]["weight"]
    assert torch.equal(found.tensor(weight), network.module[0].weight)
    assert torch.equal(found.tensor(found.content["rng_state"]), torch.get_rng_state())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@FORMATS
@pytest.mark.parametrize("place", ["alone", "in a dictionary", "in a network", "before", "beside the storages"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_hostile_file_is_refused_in_one_line_and_not_executed(tmp_path: Path, zipped: bool, place: str) -> None:
    trap = Trap(tmp_path / "sprung")
    network = nn.Linear(1, 1)
    network.trap = trap
    value = {"alone": trap, "in a dictionary": {"net": {}, "acc": trap}, "in a network": {"net": network}}.get(place)
    content = saved_by_torch(value, zipped)
    if place == "before":
        content = archive({"data.pkl": pickle.dumps(trap, 2)}) if zipped else pickle.dumps(trap, 2)
    elif place == "beside the storages":
        if zipped:
            content = archive({"data.pkl": b"}.", "constants.pkl": pickle.dumps(trap, 2)})
            assert read_saved(PATH, content).content == {}
            return
        content = sequence(b"}.", [trap])
    with pytest.raises(CheckpointError, match=r"^ckpt\.t7: refused: its pickle mentions '(posix|nt)\.mkdir'") as caught:
        read_saved(PATH, content)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@FORMATS
def test_truncated_file_is_refused_in_one_line(zipped: bool) -> None:
    content = saved_by_torch({"state_dict": {"weight": torch.randn(50), "bias": torch.randn(5)}}, zipped)
    for length in [*range(0, 60), *range(60, len(content), 37), len(content) - 1]:
        with pytest.raises(CheckpointError, match=r"^ckpt\.t7") as caught:
            read_saved(PATH, content[:length])
        assert "\n" not in str(caught.value)


@FORMATS
def test_damaged_file_is_read_or_refused_and_nothing_else(zipped: bool) -> None:
    content = saved_by_torch({"state_dict": {"weight": torch.randn(4), "bias": torch.randn(2)}, "n": (1, "x")}, zipped)
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(400):
        damaged = bytearray(content)
        for place in rng.integers(len(content) if rng.random() < 0.5 else 400, size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            everything(bytes(damaged))
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Claim(2**40, (2**40,), (1,)), "claimed"),
        (Claim(2**62, (2**62,), (1,)), "claimed"),
        (Claim(5, (5,), (1,)), "claimed"),
        (Claim(3, (3,), (1,)), "claimed"),
        (Claim(4, (2**40,), (0,)), "does not lie in its 4 elements"),
        (Claim(4, (2**20, 2**20), (0, 0)), "does not lie in its 4 elements"),
        (Claim(4, (4,), (2,)), "does not lie in its 4 elements"),
        (Claim(4, (4,), (1,), offset=1), "does not lie in its 4 elements"),
        (Claim(4, (5,), (1,)), "does not lie in its 4 elements"),
        (Claim(4, (-4,), (1,)), "is truncated, or neither"),
        (Claim(4, (4,), (-1,)), "is truncated, or neither"),
        (Claim(4, (4,), (1,), offset=-1), "is truncated, or neither"),
        (Claim(4, (4, 1), (1,)), "is truncated, or neither"),
        (Claim(4, (1,) * 9, (1,) * 9), "is truncated, or neither"),
        (Claim(2**200, (4,), (1,)), "is truncated, or neither"),
    ],
)
@FORMATS
def test_claim_of_more_than_there_is_is_refused(claim: Claim, message: str, zipped: bool) -> None:
    elements = np.arange(4, dtype="<f4").tobytes()
    if zipped:
        content = archive({"data.pkl": claimed(claim), "data/0": elements})
    else:
        content = sequence(claimed(claim), ["0"], (4).to_bytes(8, "little") + elements)
    with pytest.raises(CheckpointError, match=message):
        everything(content)


@pytest.mark.parametrize("count", [-1, -(2**63), 5, 2**40, 2**63 - 1])
def test_length_of_a_storage_is_not_believed(count: int) -> None:
    content = sequence(claimed(Claim(4, (4,), (1,))), ["0"], count.to_bytes(8, "little", signed=True) + bytes(16))
    with pytest.raises(CheckpointError, match="claimed, where the file ends"):
        read_saved(PATH, content)


@FORMATS
def test_honest_claim_is_read(zipped: bool) -> None:
    elements = np.arange(4, dtype="<f4").tobytes()
    value = claimed({"a": Claim(4, (2, 2), (1, 2)), "b": Claim(4, (2,), (2,), offset=1)})
    content = (
        archive({"data.pkl": value, "data/0": elements})
        if zipped
        else sequence(value, ["0"], (4).to_bytes(8, "little") + elements)
    )
    again = everything(content)
    assert again["a"].tolist() == [[0, 2], [1, 3]]
    assert again["b"].tolist() == [1, 3]


@pytest.mark.parametrize("key", ["../../../../etc/hostname", "/etc/hostname", "1", "data.pkl", "\n"])
def test_key_of_a_storage_is_no_path(key: str) -> None:
    content = archive({"data.pkl": claimed(Claim(4, (4,), (1,), key=key)), "data/0": bytes(16)})
    found = read_saved(PATH, content)
    with pytest.raises(CheckpointError, match="is missing in the archive") as caught:
        tensors(found, found.content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_compressed_archive_is_refused(member: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in (("data.pkl", claimed(Claim(2**20, (2**20,), (1,)))), ("data/0", bytes(2**22))):
            made.writestr(f"archive/{name}", content, zipfile.ZIP_DEFLATED if name == member else zipfile.ZIP_STORED)
    with pytest.raises(CheckpointError, match="is compressed"):
        everything(file.getvalue())


@pytest.mark.parametrize("members", [{}, {"data/0": b""}, {"data.pkl": b"}.", "x/data.pkl": b"}."}])
def test_other_archives_are_refused(members: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match=r"^ckpt\.t7 is truncated, or neither"):
        read_saved(PATH, archive({"x": b"", **members}))


def test_big_endian_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="big-endian"):
        read_saved(PATH, archive({"data.pkl": b"}.", "byteorder": b"big"}))
    assert read_saved(PATH, archive({"data.pkl": b"}.", "byteorder": b"little"})).content == {}
    other = pickle.dumps({"little_endian": True}, 2).replace(b"\x88", b"\x89")
    head = b"".join(pickle.dumps(one, protocol=2) for one in (0x1950A86A20F9469CFC6C, 1001))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_saved(PATH, head + other + b"}.].")


def test_two_claims_of_one_storage_must_agree() -> None:
    with pytest.raises(CheckpointError, match="two types or sizes of the storage '0'"):
        read_saved(
            PATH, archive({"data.pkl": claimed([Claim(4, (4,), (1,)), Claim(5, (4,), (1,))]), "data/0": bytes(16)})
        )


def test_torchscript_archive_is_refused_unread() -> None:
    file = io.BytesIO()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), file)
    with pytest.raises(CheckpointError, match="refused: its pickle mentions '__torch__"):
        read_saved(PATH, file.getvalue())
