"""Interpret pickles of PyTorch without executing anything in them.

A pickle is a program. This interpreter knows no way to import or to call anything: names of classes stay names, whole
modules become records of their state, and the few functions that rebuild tensors are replaced by notes of where a
tensor's bytes lie. Whatever else a pickle asks for is refused by its name. `pickletools` says what the instructions do.
"""

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from robustmix.errors import CheckpointError

STORAGES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Where the classes of networks come from; what is named so is only ever recorded.
MODULES: Final = ("torch.nn", "models", "__main__")
MOST_DIMENSIONS: Final = 8
# The magic number has 80; arithmetic on one of millions would take forever.
MOST_BITS: Final = 128
DTYPES: Final = frozenset(f"torch.{str(dtype).removeprefix('torch.')}" for dtype in STORAGES.values())


@dataclass(frozen=True)
class Global:
    """The name of a class or function in a pickle; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """The bytes that tensors share.

    Attributes:
        key: in the file.
        dtype: of the elements.
        count: of the elements, as claimed.
    """

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class Stored:
    """A tensor that has not been read; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False, repr=False)
class Record:
    """A pickled module, of which only the state is kept.

    Attributes:
        kind: its class.
        state: its attributes.
    """

    kind: Global
    state: dict[Any, Any] = field(default_factory=dict)


def interpret(stream: io.BytesIO, storages: dict[str, Storage] | None = None) -> object:
    """Interpret the next pickle of a stream.

    Args:
        stream: at the pickle's first byte; afterwards behind its last.
        storages: gets every storage by its key.

    Raises:
        CheckpointError: it asks for what is not allowed; the message names it.
        ValueError, LookupError, TypeError: it is no pickle, or a damaged one.
    """
    machine = _Machine({} if storages is None else storages)
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    """The pickle machine of `pickletools`, with only those instructions that build plain values."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._below: list[list[Any]] = []
        self._storages = storages

    def step(self, code: str, argument: Any) -> None:
        """Do one instruction."""
        stack = self.stack
        if code in _IGNORED:
            return
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > MOST_BITS:
                raise ValueError("an impossible number")
            stack.append(argument)
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code == "MARK":
            self._below.append(stack)
            self.stack = []
        elif code == "POP":
            stack.pop()
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            stack[-count:] = [_tuple_of(stack[-count:], count)]
        elif code in ("TUPLE", "LIST", "DICT"):
            items = self._marked()
            made: Any = items if code == "LIST" else tuple(items)
            self.stack.append(_filled({}, items) if code == "DICT" else made)
        elif code in ("APPEND", "APPENDS"):
            items = [stack.pop()] if code == "APPEND" else self._marked()
            _of(list, self.stack[-1]).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if code == "SETITEM" else self._marked()
            _filled(_of(dict, self.stack[-1]), items)
        elif code == "ADDITEMS":
            items = self._marked()
            _of(set, self.stack[-1]).update(map(_scalar, items))
        elif code == "GLOBAL":
            stack.append(_allowed(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_allowed(_of(str, module), _of(str, name)))
        elif code == "REDUCE":
            arguments, called = _of(tuple, stack.pop()), _of(Global, stack.pop())
            stack.append(_rebuilt(called, arguments))
        elif code == "NEWOBJ":
            arguments, kind = _of(tuple, stack.pop()), _of(Global, stack.pop())
            stack.append(_created(kind, arguments))
        elif code == "BUILD":
            state = stack.pop()
            _restore(stack[-1], state)
        elif code == "BINPERSID":
            stack.append(self._persistent(_of(tuple, stack.pop())))
        else:
            raise CheckpointError(f"it holds the pickle instruction {code}, which torch.save never writes")

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def _persistent(self, what: tuple[Any, ...]) -> object:
        """What stands outside the pickle: a storage; in the older format also a module's class with its source."""
        if what[0] == "module":
            return _of(Global, what[1])
        kind, key, _, count = what[1:5]
        dtype = _STORAGE_NAMES.get(str(_of(Global, kind)))
        if what[0] != "storage" or dtype is None or any(more is not None for more in what[5:]):
            raise CheckpointError("it refers to something other than the storage of a tensor")
        storage = Storage(_of(str, key), dtype, _of(int, count))
        if self._storages.setdefault(storage.key, storage) != storage:
            raise CheckpointError(f"it claims two types or sizes of the storage {storage.key[:40]!r}")
        return storage


_STORAGE_NAMES = {f"{module}.{name}": dtype for module in ("torch", "torch.cuda") for name, dtype in STORAGES.items()}
_IGNORED = frozenset({"PROTO", "FRAME"})
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)


def _allowed(module: str, name: str) -> Global:
    """A name that may stand in a file, unlike all others; where it may be called is another question."""
    found = Global(module, name)
    inert = str(found) in _REBUILDERS or str(found) in _STORAGE_NAMES or str(found) in DTYPES
    if not inert and not any(module == root or module.startswith(f"{root}.") for root in MODULES):
        raise _refused("mentions", found)
    return found


def _refused(what: str, found: Global) -> CheckpointError:
    return CheckpointError(
        f"refused: its pickle {what} {str(found)[:100]!r}, and only tensors and modules are read, nothing is executed; "
        "save the state dict alone: torch.save(model.state_dict(), FILE)"
    )


def _rebuilt(called: Global, arguments: tuple[Any, ...]) -> object:
    if str(called) not in _REBUILDERS:
        raise _refused("calls", called)
    return _REBUILDERS[str(called)](*arguments)


def _created(kind: Global, arguments: tuple[Any, ...]) -> Record:
    if str(kind) in _REBUILDERS or str(kind) in _STORAGE_NAMES or str(kind) in DTYPES or arguments:
        raise _refused("makes an object of", kind)
    return Record(kind)


def _restore(target: object, state: object) -> None:
    """Give a record its state; the attributes that torch hangs on a state dict are not needed."""
    if isinstance(target, Record) and isinstance(state, dict):
        target.state = state
    elif not (isinstance(target, dict) and isinstance(state, dict)):
        raise CheckpointError("it sets the state of something other than a module")


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Stored:
    if not len(_of(tuple, size)) == len(_of(tuple, stride)) <= MOST_DIMENSIONS or not all(
        isinstance(number, int) and 0 <= number < 2**63 for number in (offset, *size, *stride)
    ):
        raise ValueError("a tensor with an impossible shape")
    return Stored(_of(Storage, storage), offset, size, stride)


def _parameter(data: Stored, *_: object) -> Stored:
    if not isinstance(data, Stored):
        raise TypeError("a parameter without a tensor")
    return data


def _ordered(items: list[Any] | tuple[Any, ...] = ()) -> dict[Any, Any]:
    return _filled({}, [part for item in items for part in _tuple_of(item, 2)])


def _set_of(items: list[Any]) -> set[Any]:
    return set(map(_scalar, items))


# What may be called, and what is done instead.
_REBUILDERS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda size: tuple(_of(tuple, size)),
    "torch.device": lambda *_: None,
    "collections.OrderedDict": _ordered,
    "builtins.set": _set_of,
    "__builtin__.set": _set_of,
}


def _of(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _tuple_of(items: list[Any] | tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(items) != count:
        raise ValueError(f"{count} values expected, {len(items)} found")
    return tuple(items)


def _filled(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    target.update(_pairs(items))
    return target


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    keys, values = items[::2], items[1::2]
    return zip(map(_scalar, keys), values, strict=True)


def _scalar(key: Any) -> Any:
    """A key; nested tuples, whose hash a few bytes could make take forever, are none."""
    if key is not None and not isinstance(key, (str, bytes, int, float)):
        raise CheckpointError(f"it has a key of type {type(key).__name__}, where text or a number is expected")
    return key
