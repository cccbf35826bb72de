"""Where and in which precision things run, and what it means that memory ran out."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, cast

import torch
from torch import nn

from robustmix.errors import EvaluationError, SpecError
from robustmix.spec.names import Device, Precision

AUTOCAST: Final[dict[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Where PyTorch lets float32 mean less, by library and operation.
FLOAT32_SWITCHES: Final = {
    "cuda": ("matmul",),
    "cudnn": ("conv", "rnn"),
    "mkldnn": ("matmul", "conv", "rnn"),
}

# Versions of one piece of code: four of each network, since it is called with and without gradients, and the last
# batch may be smaller.
MOST_COMPILED: Final = 4096

NO_MEMORY: Final = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")


def pick_device(name: Device) -> torch.device:
    """The device to run on, made exact (`make_exact`); ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        SpecError: the device is not there.
    """
    make_exact()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        there = ", ".join(kind for kind, found in available.items() if found)
        raise SpecError(f"device {name!r} is not available to PyTorch {torch.__version__} here; choose from {there}")
    return torch.device(name)


def make_exact() -> None:
    """Let float32 mean float32, and each run of a network give the same bits, from now on in this process.

    Whatever has been switched before.
    """
    # cuDNN's TF32, on by default, keeps 10 bits of each factor and flips signs.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    # From PyTorch 2.9 on there is a switch for each operation as well, on a CPU too; unset it follows that of them all.
    for library, operations in FLOAT32_SWITCHES.items():
        for operation in operations:
            switch = getattr(getattr(torch.backends, library), operation, None)
            if switch is not None and hasattr(switch, "fp32_precision"):
                switch.fp32_precision = "ieee"
    # The fastest algorithms add in no fixed order, so that signs would differ from one run to the next; and which is
    # the fastest is found by trying.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on whatever device and in whatever library."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


@contextmanager
def memory_hint(way_out: str) -> Iterator[None]:
    """Turn exhausted memory into one line that names the way out.

    Raises:
        EvaluationError: memory ran out inside.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise EvaluationError(f"memory ran out; try {way_out}") from None
        raise


def describe_device(device: torch.device) -> str:
    """The device in words, for provenance."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def native_bf16() -> bool:
    """Whether the GPU computes in bf16 itself."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """The context in which forward passes run at a precision."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST
    )
    return context


def compile_network(model: nn.Module, *, graphs: bool) -> nn.Module:
    """The model by ``torch.compile``.

    Args:
        model: on its device.
        graphs: let a GPU start its operations together, as CUDA graphs. The memory of what it returns, outputs and
            gradients, is then used again by the next pass.
    """
    # Takes two seconds to import, which who compiles nothing need not wait for.
    from torch._dynamo import config

    # Networks behind one wrapper share its code, of which PyTorch compiles eight versions and then, in silence, none.
    config.recompile_limit = config.accumulated_recompile_limit = MOST_COMPILED
    config.fail_on_recompile_limit_hit = True
    return cast(nn.Module, torch.compile(model, mode="reduce-overhead" if graphs else "default"))


def is_idle(device: torch.device) -> bool:
    """Whether a device has finished all that it was asked for, without waiting; a CPU always has."""
    return device.type != "cuda" or torch.cuda.current_stream(device).query()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
