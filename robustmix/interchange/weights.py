"""Weights that another program saved, under our names."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from robustmix.errors import CheckpointError
from robustmix.interchange.pickled import Record, Stored
from robustmix.interchange.saved import Saved, read_saved
from robustmix.spec.names import ModelName

# Under which a checkpoint keeps the state dict, or the whole network.
HOLDERS: Final = ("state_dict", "model_state_dict", "model", "net")
# What wrappers (DataParallel, torch.compile, ours) put in front of every name.
WRAPPERS: Final = ("module.", "_orig_mod.", "network.")
# Of every batch norm since PyTorch 0.4.1; no network of ours computes with it.
COUNTER: Final = "num_batches_tracked"
# The most that is followed or kept; no checkpoint has as much, and a small file can claim any of it.
MOST_HOLDERS: Final = 8
MOST_MODULES: Final = 10_000
MOST_WEIGHTS: Final = 100_000
MOST_CHARACTERS: Final = 1_000
MOST_SHOWN: Final = 80

# From the names of mixup-cifar10, of pytorch-cifar (``shortcut``, ``linear``) and of torchvision (``downsample``,
# ``fc``) to ours. Patterns are tried in order, each on what the one before has left.
Table = tuple[tuple[str, str | Callable[["re.Match[str]"], str]], ...]
RESNET: Final[Table] = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^layer(\d+)\.", lambda found: f"stages.{int(found[1]) - 1}."),
    (r"^(linear|fc)\.", "head."),
    (r"\.downsample\.", ".shortcut."),
)
PREACT: Final[Table] = (*RESNET, (r"\.shortcut\.0\.", ".shortcut."))
NAMES: Final[dict[ModelName, Table]] = {
    "resnet18": RESNET,
    "preact_resnet18": PREACT,
    "preact_resnet34": PREACT,
    "preact_resnet50": PREACT,
}


@dataclass(frozen=True)
class Weight:
    """A tensor of a file, which is read only when it has been found to fit.

    Attributes:
        shape: of the tensor.
        read: gives it.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def read_weights(path: Path) -> dict[str, Weight]:
    """The weights in a file of another program by their names there, without the prefixes of wrappers.

    Args:
        path: a safetensors file, or one of ``torch.save`` with a state dict, a dictionary that holds one, or a whole
            network. Nothing in it is executed.

    Raises:
        CheckpointError: it cannot be read, is truncated, or holds anything that cannot be read without executing it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    # A safetensors file begins with the length of its JSON header.
    if content[8:9] == b"{":
        try:
            tensors = safetensors.torch.load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is truncated or no safetensors file: {str(error)[:200]}") from None
        return _unwrapped(
            path, {name: Weight(tuple(tensor.shape), partial(_same, tensor)) for name, tensor in tensors.items()}
        )
    saved = read_saved(path, content)
    state = _state(path, saved.content)
    found = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Stored)}
    return _unwrapped(
        path, {name: Weight(value.shape, partial(_tensor, path, saved, value)) for name, value in found.items()}
    )


def fill(network: nn.Module, model: str, weights: Mapping[str, Weight], path: str, described: str) -> None:
    """Copy the weights of another program into a network of ours; each must be there, and no other.

    Args:
        network: that gets the weights, in float32.
        model: its name, which says how others name its parts.
        weights: by the names in the file.
        path: the file, for messages.
        described: the network, for messages.

    Raises:
        CheckpointError: the first weight that is missing, unexpected, of another shape, or not finite.
    """
    expected = network.state_dict()
    table = NAMES.get(cast(ModelName, model), ())
    ours = {name: name if name in expected else renamed(name, table) for name in weights}
    named = {name: theirs for theirs, name in ours.items()}
    if len(named) < len(weights):
        raise CheckpointError(f"{path} holds two weights of one name")
    counters = {name for name in expected if name.endswith(COUNTER)}
    missing = [name for name in expected if name not in named and name not in counters]
    unexpected = [theirs for name, theirs in named.items() if name not in expected]
    if missing:
        other = f"; it has {_few(unexpected)}" if unexpected else ""
        raise CheckpointError(
            f"{path} holds no {missing[0]!r} {list(expected[missing[0]].shape)} of {described}{other}"
        )
    if unexpected:
        shape = list(weights[unexpected[0]].shape)
        raise CheckpointError(f"{path} holds {_shown(unexpected[0])} {shape}, which {described} does not have")
    named = {name: named[name] for name in expected if name in named}
    for name, theirs in named.items():
        if weights[theirs].shape != tuple(expected[name].shape):
            raise CheckpointError(
                f"{path}: {_shown(theirs)} has the shape {list(weights[theirs].shape)}, and {name!r} of {described} "
                f"{list(expected[name].shape)}: choose another --model or --width, or data with as many classes"
            )
    loaded = {name: weights[theirs].read() for name, theirs in named.items()}
    for name, tensor in loaded.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {_shown(named[name])} holds values that are NaN or infinite")
    network.load_state_dict({**{name: expected[name] for name in counters}, **loaded})


def renamed(name: str, table: Table) -> str:
    """A name of another program under ours."""
    for pattern, ours in table:
        name = re.sub(pattern, ours, name)
    return name


def _state(path: Path, content: object) -> dict[Any, Any]:
    """The state dict in what was saved."""
    for _ in range(MOST_HOLDERS):
        if isinstance(content, Record):
            return _state_of(path, content)
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict or a network")
        held = (content.get(holder) for holder in HOLDERS)
        inner = next((value for value in held if isinstance(value, (dict, Record))), None)
        if inner is None:
            break
        content = inner
    else:
        raise CheckpointError(f"{path} holds no state dict within {MOST_HOLDERS} of {', '.join(HOLDERS)}")
    if not any(isinstance(value, Stored) for value in content.values()):
        keys = _few(str(key) for key in content)
        raise CheckpointError(
            f"{path} holds no state dict: neither tensors nor one of {', '.join(HOLDERS)}, but {keys}"
        )
    return content


def _state_of(path: Path, network: Record) -> dict[str, object]:
    """The state dict of a whole network, as torch.nn.Module.state_dict would give it."""
    found: dict[str, object] = {}
    # A module may stand in two places, and has its weights under both names, but not inside itself.
    waiting: list[tuple[str, Record, frozenset[int]]] = [("", network, frozenset())]
    for _ in range(MOST_MODULES):
        if not waiting:
            return found
        prefix, module, above = waiting.pop()
        if id(module) in above:
            raise CheckpointError(f"{path} holds a network that contains itself, as {_shown(prefix)}")
        parameters, buffers, modules = (
            _table(module.state.get(key)) for key in ("_parameters", "_buffers", "_modules")
        )
        passing = module.state.get("_non_persistent_buffers_set")
        for name in passing if isinstance(passing, set) else ():
            buffers.pop(name, None)
        for name in (*parameters, *buffers, *modules):
            if not isinstance(name, str) or len(prefix) + len(name) > MOST_CHARACTERS:
                raise CheckpointError(f"{path} holds a module with {_shown(f'{prefix}{name}')}: that is no name")
        found |= {f"{prefix}{name}": value for name, value in {**parameters, **buffers}.items()}
        if len(found) > MOST_WEIGHTS:
            break
        within = above | {id(module)}
        waiting += [(f"{prefix}{name}.", child, within) for name, child in modules.items() if isinstance(child, Record)]
    raise CheckpointError(f"{path} holds a network of more than {MOST_MODULES} modules or {MOST_WEIGHTS} weights")


def _table(value: object) -> dict[Any, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _unwrapped(path: Path, weights: dict[str, Weight]) -> dict[str, Weight]:
    """The same weights without what wrappers put in front of all names but those of our normalisation."""
    if long := next((name for name in weights if len(name) > MOST_CHARACTERS), None):
        raise CheckpointError(f"{path} holds {_shown(long)}: a name of more than {MOST_CHARACTERS} characters")
    while weights:
        prefix = next((p for p in WRAPPERS if all(n.startswith((p, "normalize.")) for n in weights)), None)
        if prefix is None or all(name.startswith("normalize.") for name in weights):
            break
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    return weights


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _tensor(path: Path, saved: Saved, stored: Stored) -> Tensor:
    try:
        return saved.tensor(stored)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _shown(name: str) -> str:
    return repr(name if len(name) <= MOST_SHOWN else f"{name[:MOST_SHOWN]}...")


def _few(names: Iterable[str], most: int = 4) -> str:
    shown = [_shown(name) for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more if shown else "nothing"
