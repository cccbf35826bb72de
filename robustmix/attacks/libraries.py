"""torchattacks and foolbox: whether they are there, and how they work on a model without leaving a trace."""

import logging
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata, util
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustmix.attacks.victim import NO_GRADIENT, frozen
from robustmix.errors import EvaluationError, SpecError
from robustmix.rng import Stream, generator
from robustmix.units import IMAGES

Peer = Literal["torchattacks", "foolbox"]

MAKERS: Final[dict[str, Peer]] = {
    "autoattack": "torchattacks",
    "square": "torchattacks",
    "deepfool": "foolbox",
    "cw": "foolbox",
    "hopskipjump": "foolbox",
}


def check_installed(names: Iterable[str], impls: Iterable[str] = ()) -> None:
    """Check that the libraries that make some attacks are there.

    Args:
        names: attacks, ours among them or not.
        impls: whose implementations are asked for, ours among them or not.

    Raises:
        SpecError: a library is missing.
    """
    makers = {f"attack {name!r}": str(MAKERS[name]) for name in names if name in MAKERS}
    makers |= {f"impl = {impl!r}": impl for impl in impls if impl in MAKERS.values()}
    for what, library in makers.items():
        if util.find_spec(library) is None:
            raise SpecError(f"{what} needs {library}, which is not installed: pip install 'robustmix[attacks]'")


def library(name: str, impl: str) -> str | None:
    """The library that makes an attack, with its version, since another one may give other results; None for ours."""
    maker = MAKERS.get(name, impl if impl in MAKERS.values() else None)
    return f"{maker} {metadata.version(maker)}" if maker else None


class Watched(nn.Module):
    """A model as the libraries see it: it tells them the device, and whether a number was none.

    It refuses to be followed without a gradient, shares no memory with them, and draws no numbers of theirs.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        # Both libraries look for the device of the first parameter or move the model to one; a model may have none.
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of inputs [B, ...].

        Raises:
            EvaluationError: there is no gradient where one is wanted.
        """
        if x.requires_grad:
            x.register_hook(self._note)
        # A model that seeds itself would have the library draw the same numbers again and again.
        with _forked(x.device, [x.device] if x.device.type == "cuda" else []):
            # A copy: Square writes into what it gets, which may be the model's own.
            logits: Tensor = self.model(x).clone()
        # foolbox's C&W would go on without one, and find the model robust.
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise EvaluationError(NO_GRADIENT)
        self._note(logits.detach())
        return logits

    def _note(self, numbers: Tensor) -> None:
        self.finite = self.finite & numbers.isfinite().all()


@contextmanager
def guest(name: str, model: nn.Module, x: Tensor, seed: Sequence[int]) -> Iterator[tuple[Watched, int]]:
    """A model for a library to work on, and a seed, so that the same call gives the same bits and leaves no trace."""
    number = int(generator(seed[0], Stream.ATTACK, *seed[1:]).integers(2**31))
    # torchattacks seeds every CUDA device, not only the model's.
    cuda_devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    states = random.getstate(), np.random.get_state()
    handlers = logging.root.handlers[:]
    with (
        _forked(x.device, cuda_devices),
        frozen(model),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        victim = Watched(model, x.device).eval()
        try:
            torch.manual_seed(number)
            random.seed(number)
            np.random.seed(number)
            yield victim, number
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            # foolbox logs by way of the root logger, which thereby gets a handler that nobody asked for.
            logging.root.handlers[:] = handlers
    if not victim.finite:
        raise EvaluationError(f"{name}: a logit or a gradient is NaN or infinite: the loss or the model overflows")


def _forked(device: torch.device, cuda_devices: Iterable[Any]) -> AbstractContextManager[None]:
    """A context after which torch's random numbers go on as before, those of a CPU and of a kind of device."""
    if device.type == "mps":
        return torch.random.fork_rng(["mps"], device_type="mps")
    return torch.random.fork_rng(cuda_devices)


def open_foolbox(victim: Watched) -> tuple[Any, Any]:
    """foolbox' attacks, and the model as they take it."""
    with warnings.catch_warnings():
        # It imports from a part of scipy that will go.
        warnings.simplefilter("ignore", DeprecationWarning)
        from foolbox import attacks
        from foolbox.models.pytorch import PyTorchModel
    return attacks, PyTorchModel(victim, bounds=(IMAGES.low, IMAGES.high), device=victim.place.device)
