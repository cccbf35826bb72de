"""How long an evaluation will take."""

import time
from collections.abc import Callable

import torch

from robustmix.device import synchronize
from robustmix.measurement import score
from robustmix.planning import Plan
from robustmix.work import DEFAULT_BATCH


def estimate_seconds(plan: Plan, device: torch.device) -> float:
    """How long the missing work takes, from one timed batch of the first source: our own attacks only."""
    model = next(iter(plan.participants.values())).load().to(device).eval().requires_grad_(False)
    size = min(DEFAULT_BATCH, len(plan.inputs))
    x, y = next(iter(plan.inputs.batches([torch.arange(size)], device)))
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def gradient() -> None:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            torch.autograd.grad(model(at).sum(), at)

    timings = []
    passes: tuple[Callable[[], object], ...] = (lambda: score(model, x, y), gradient)
    for run in passes:
        run()
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        timings.append((time.perf_counter() - started) / size)
    forward, slope = timings
    return len(plan.inputs) * sum(
        unit.backward * slope + (unit.forward - unit.backward) * forward for unit in plan.units
    )
