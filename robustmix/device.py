"""Where and in which precision things run."""

from contextlib import AbstractContextManager
from typing import Final

import torch

from robustmix.errors import SpecError
from robustmix.spec.names import Device, Precision

AUTOCAST: Final[dict[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: Device) -> torch.device:
    """The device to run on; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        SpecError: the device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        there = ", ".join(kind for kind, found in available.items() if found)
        raise SpecError(f"device {name!r} is not available to PyTorch {torch.__version__} here; choose from {there}")
    return torch.device(name)


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
