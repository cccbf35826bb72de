"""Weights in and out: the state that training resumes from, and finished models; what tells weights apart."""

import hashlib
import io
import json
import pickle
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustmix.errors import CheckpointError
from robustmix.models import Classifier, ModelSpec
from robustmix.spec.validation import explain
from robustmix.store.atomic import write_atomically
from robustmix.store.runs import WEIGHTS, finished_run
from robustmix.store.workspace import Workspace

# What torch raises for bytes that are no archive and no pickle, besides the errors that it means to raise.
_NO_STATE = (
    OSError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    ValueError,
    LookupError,
    TypeError,
    struct.error,
)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write everything that training resumes from into one atomic file."""
    # By way of memory: torch turns a full disk into an error about positions in its archive.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; tensors and plain values only, nothing is executed.

    Raises:
        CheckpointError: it is truncated, foreign, or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _NO_STATE as error:
        raise CheckpointError(f"{path} is not a state that robustmix wrote: {_first_line(error)}") from None
    if not isinstance(state, dict) or state.get("format") != "robustmix-state-1":
        raise CheckpointError(f"{path} is not a state that robustmix wrote")
    return state


def save_model(path: Path, model: Classifier) -> None:
    """Write a finished model: its weights, and in the header what is needed to build it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {"robustmix": json.dumps(model.spec.model_dump(), sort_keys=True)}
    data = save(tensors, metadata=header)
    write_atomically(path, lambda file: file.write(data))


def load_model(name_or_path: str | Path, workspace: str | Path | None = None) -> nn.Module:
    """Load a trained model.

    Args:
        name_or_path: a run of the workspace, a run's folder, or a ``.safetensors`` file that robustmix wrote.
        workspace: the folder with ``runs/``; ``ROBUSTMIX_WORKSPACE`` or the current folder if not given.

    Returns:
        The model in eval mode and channels-last: images [B, C, H, W] in [0, 1] in, logits [B, K] out.

    Raises:
        CheckpointError: there is no such run, it has not finished, or the file is truncated or foreign.
    """
    path = Path(name_or_path)
    if path.suffix == ".safetensors":
        return read_model(path)
    if path.is_dir() and (path / WEIGHTS).exists():
        return read_model(path / WEIGHTS)
    found = Workspace.find(workspace)
    run = finished_run(found, str(name_or_path))
    return read_model(found.run(run.name) / WEIGHTS)


def read_model(path: Path) -> Classifier:
    """Read a model file.

    Raises:
        CheckpointError: it is missing, truncated or foreign.
    """
    with _opened(path) as file:
        model = Classifier(_spec_of(file, path))
        try:
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: weights and header do not belong together: {_first_line(error)}") from None
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def read_spec(path: Path) -> ModelSpec:
    """Read what a model file says about its model, without its weights.

    Raises:
        CheckpointError: it is missing, truncated or foreign.
    """
    with _opened(path) as file:
        return _spec_of(file, path)


def digest_model(identity: str, model: nn.Module) -> str:
    """SHA-256 that tells models in memory apart.

    Args:
        identity: what tells their code apart.
        model: whose state counts, each part with its name, type and shape; how it lies in memory does not.
    """
    digest = hashlib.sha256(identity.encode())
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {_first_line(error)}") from None


def _spec_of(file: Any, path: Path) -> ModelSpec:
    header = (file.metadata() or {}).get("robustmix")
    if header is None:
        raise CheckpointError(f"{path} was not written by robustmix: its header names no model")
    try:
        return ModelSpec.model_validate_json(header)
    except ValidationError as error:
        raise CheckpointError(f"{path}: its header describes no model: {explain(error, ModelSpec)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
