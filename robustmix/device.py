"""Where and in which precision things run."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import torch

from robustmix.errors import EvaluationError, SpecError
from robustmix.spec.names import Device, Precision

AUTOCAST: Final[dict[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: Device) -> torch.device:
    """The device to run on, with float32 meaning float32; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        SpecError: the device is not there.
    """
    exact_float32()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        there = ", ".join(kind for kind, found in available.items() if found)
        raise SpecError(f"device {name!r} is not available to PyTorch {torch.__version__} here; choose from {there}")
    return torch.device(name)


def exact_float32() -> None:
    """Let float32 mean float32: cuDNN's TF32, on by default, keeps 10 bits of each factor and flips signs."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def memory_hint(way_out: str) -> Iterator[None]:
    """Turn exhausted memory into one line that names the way out.

    Raises:
        EvaluationError: memory ran out inside.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise EvaluationError(f"memory ran out; try {way_out}") from None
        raise


def describe_device(device: torch.device) -> str:
    """The device in words, for provenance."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """The context in which forward passes run at a precision."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST
    )
    return context


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
