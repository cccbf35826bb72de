"""Pickles are interpreted without executing anything: what is allowed is recorded, all else is refused by its name."""

import builtins
import functools
import io
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustmix.errors import CheckpointError
from robustmix.interchange.pickled import Global, Record, interpret


def read(content: bytes) -> Any:
    return interpret(io.BytesIO(content))


class Call:
    """Asks for a call when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_makes_of_them(protocol: int) -> None:
    shared = ["x", 1.5]
    value = {
        "text": "zwölf\n", "none": None, "true": True, "false": False,
        "ints": [0, -1, 255, 256, 65536, -(2**40), 2**100],
        "floats": (1.5, -0.0, float("inf")), "nested": {"a": ([], {}, ())}, "long": list(range(2000)), 3: (1, 2, 3, 4),
        "once": shared, "twice": shared, "t1": (1,), "t2": (1, 2), "ordered": OrderedDict(b=1, a=2),
    }  # fmt: skip
    again = read(pickle.dumps(value, protocol=protocol))
    assert again == {**value, "ordered": {"b": 1, "a": 2}}
    assert list(again["ordered"]) == ["b", "a"]
    assert again["once"] is again["twice"]
    assert repr(again["floats"]) == "(1.5, -0.0, inf)"


@pytest.mark.parametrize("protocol", [2, 4])
def test_bytes_and_sets_are_read(protocol: int) -> None:
    assert read(pickle.dumps({"s": {1, "a"}, "e": set()}, protocol=protocol)) == {"s": {1, "a"}, "e": set()}
    assert read(pickle.dumps(b"\x00\xff", protocol=4)) == b"\x00\xff"


@pytest.mark.parametrize("protocol", [2, 4])
def test_modules_become_records_of_their_state(protocol: int) -> None:
    network = nn.Sequential(nn.Dropout(0.25), nn.ReLU())
    record = read(pickle.dumps(network, protocol=protocol))
    assert isinstance(record, Record)
    assert str(record.kind) == "torch.nn.modules.container.Sequential"
    assert [str(child.kind).rpartition(".")[2] for child in record.state["_modules"].values()] == ["Dropout", "ReLU"]
    assert record.state["_modules"]["0"].state["p"] == 0.25
    assert not isinstance(record, nn.Module)


# By the name that Python 3 gives it; protocols up to 2 write builtins under that of Python 2.
HOSTILE = {
    f"{os.system.__module__}.system": Call(os.system, "true"),
    "builtins.eval": Call(eval, "1"),
    "builtins.exec": Call(exec, "1"),
    "builtins.getattr": Call(getattr, "x", "y"),
    "builtins.__import__": Call(builtins.__import__, "os"),
    "shutil.rmtree": Call(shutil.rmtree, "x"),
    "functools.partial": Call(functools.partial, print),
    "torch.hub.load": Call(torch.hub.load, "a/b", "c"),
    "torch.serialization.load": Call(torch.load, "x"),
    "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, b"x"),
    "numpy._core.multiarray.scalar": np.float64(3),
    "numpy._core.multiarray._reconstruct": np.zeros(3),
    "pathlib.PosixPath": Path("x"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_every_other_function_is_refused_by_its_name(name: str, protocol: int) -> None:
    for value in (
        HOSTILE[name],
        {"net": [1, {"deep": (HOSTILE[name],)}]},
        Call(OrderedDict, state={"x": HOSTILE[name]}),
    ):
        with pytest.raises(CheckpointError, match="refused: its pickle mentions") as caught:
            read(pickle.dumps(value, protocol=protocol))
        found = str(caught.value).replace("__builtin__", "builtins").replace("numpy.core", "numpy._core")
        assert f"'{name}'" in found
        assert "\n" not in found


def test_nothing_is_executed(tmp_path: Path) -> None:
    content = pickle.dumps(Call(os.mkdir, str(tmp_path / "sprung")), protocol=2)
    with pytest.raises(CheckpointError, match=r"posix\.mkdir|nt\.mkdir"):
        read(content)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(content)
    assert (tmp_path / "sprung").exists(), "the trap works"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Classes of modules may be made and filled, never called.
        (b"c__main__\nrun\n(tR.", "calls '__main__.run'"),
        (b"c__main__\nrun\n)R.", "calls '__main__.run'"),
        (b"\x80\x02ctorch.nn.modules.linear\nLinear\nK\x01K\x01\x86R.", "calls 'torch.nn.modules.linear.Linear'"),
        (b"\x80\x02c__main__\nNet\nX\x01\x00\x00\x00a\x85\x81.", "makes an object of '__main__.Net'"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "makes an object of 'collections.OrderedDict'"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.", "makes an object of"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls 'torch.FloatStorage'"),
        # Names that only look like those that are allowed.
        (b"cmodelsx\nrun\n.", "'modelsx.run'"),
        (b"ctorch.nnx\nrun\n.", "'torch.nnx.run'"),
        (b"ctorch\nnn.x\n.", "'torch.nn.x'"),
        (b"ctorch.cuda\nSize\n.", "'torch.cuda.Size'"),
        (b"cbuiltins\nset.__init__\n.", "'builtins.set.__init__'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
        # The state of anything but a module or a dictionary cannot be set.
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__N\x86b.", "sets the state"),
        (b"\x80\x02]}b.", "sets the state"),
        (b"\x80\x02c__main__\nNet\n)\x81]b.", "sets the state"),
        (b"\x80\x02c__main__\nNet\n)\x81N}\x86b.", "sets the state"),
        # Other ways to call or to import, which torch.save has no use for.
        (b"(ios\nsystem\n.", "instruction INST"),
        (b"(cmodels\nNet\no.", "instruction OBJ"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"Pkey\n.", "instruction PERSID"),
        (b"\x80\x04cmodels\nNet\n)}\x92.", "instruction NEWOBJ_EX"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", None),
        # Keys whose hash could take forever.
        (b"\x80\x02})\x85K\x01s.", "a key of type tuple"),
        (b"\x80\x02cbuiltins\nset\n])\x85a\x85R.", "a key of type tuple"),
        # Storages are claims of the file alone.
        (b"\x80\x02(X\x07\x00\x00\x00storageK\x00X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.", None),
        (b"\x80\x02(X\x04\x00\x00\x00evilctorch\nFloatStorage\nX\x01\x00\x00\x000X\x02\x00\x00\x00cpK\x01tQ.", "refer"),
        (b"\x80\x02(X\x07\x00\x00\x00storagecmodels\nNet\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.", "refers to"),
    ],
)  # fmt: skip
def test_what_only_a_hostile_pickle_does_is_refused(content: bytes, message: str | None) -> None:
    with pytest.raises(CheckpointError if message else (CheckpointError, ValueError, TypeError)) as caught:
        read(content)
    assert (message or "") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_state_is_set_without_a_look_at_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net:
        def __setstate__(self, state: Any) -> None:
            raise AssertionError("executed")

    monkeypatch.setattr("__main__.Net", Net, raising=False)
    Net.__module__, Net.__qualname__ = "__main__", "Net"
    net = Net()
    net.__dict__["x"] = 1
    record = read(pickle.dumps(net, protocol=2))
    assert (record.kind, record.state) == (Global("__main__", "Net"), {"x": 1})


@pytest.mark.parametrize(
    "content",
    [
        b"", b".", b"\x80\x02", b"\x80\x02K\x01", b"0.", b"a.", b"\x80\x02K\x01a.", b"t.", b"\x80\x02]K\x01K\x02s.",
        b"h\x00.", b"\x80\x02\x8a\x14" + b"\xff" * 19 + b"\x7f.", b"\x93.", b"\x80\x02K\x01K\x02\x93.", b"\xff.",
        b"\x80\x02K\x01K\x02R.", b"\x80\x02]K\x01\x85R.", b"\x80\x02(K\x01d.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.", b"K\x01\x85Q.",
    ],
)  # fmt: skip
def test_damaged_pickles_raise_what_a_reader_expects(content: bytes) -> None:
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        read(content)
