"""How long an evaluation will take."""

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from robustmix.attacks import Victim
from robustmix.device import is_out_of_memory, synchronize
from robustmix.errors import EvaluationError
from robustmix.measurement import score
from robustmix.planning import Plan
from robustmix.work import DEFAULT_BATCH, halved


def estimate_seconds(plan: Plan, device: torch.device, processes: int = 1) -> float:
    """How long the missing work takes, from one timed batch of the first source: our own attacks only.

    Args:
        plan: with missing work.
        device: to compute on.
        processes: that share the batches of each unit.

    Returns:
        Seconds, without what compiling takes.

    Raises:
        EvaluationError: the evaluation itself would refuse the model, or memory runs out with a single example.
    """
    model = plan.load(next(iter(plan.participants.values())), device)
    gradients = sum(unit.backward for unit in plan.units)
    # Not of a model that nothing needs a gradient of: it may have none.
    forward, slope = _seconds_per_example(plan, model, device, differentiate=gradients > 0)
    passes = sum(unit.forward for unit in plan.units)
    # Whole batches are shared out: who gets most of them decides.
    batches = math.ceil(len(plan.inputs) / plan.units[0].batch_size)
    share = math.ceil(batches / processes) / batches
    return share * len(plan.inputs) * (gradients * slope + (passes - gradients) * forward)


def _seconds_per_example(
    plan: Plan, model: nn.Module, device: torch.device, *, differentiate: bool
) -> tuple[float, float]:
    """What a pass takes, and a gradient with its pass (0 if not asked for), in batches as large as memory allows."""
    for size in halved(min(DEFAULT_BATCH, plan.units[0].batch_size, len(plan.inputs))):
        try:
            return _time_batch(plan, model, device, size, differentiate=differentiate)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    raise EvaluationError("memory ran out with a single example")


def _time_batch(
    plan: Plan, model: nn.Module, device: torch.device, size: int, *, differentiate: bool
) -> tuple[float, float]:
    x, y = next(iter(plan.inputs.batches([torch.arange(size)], device)))
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def seconds(run: Callable[[], object]) -> float:
        run()
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        return (time.perf_counter() - started) / size

    victim = Victim(model, y, "ce", trusted=True)
    return seconds(lambda: score(model, x, y)), seconds(lambda: victim.gradient(x)) if differentiate else 0.0
