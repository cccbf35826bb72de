"""The processes that share one job: what they wait for, hand on and add up."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustmix.errors import EvaluationError

# What gloo and NCCL say of a connection whose other end has gone.
BROKEN_CONNECTION: Final = ("connection", "gloo", "nccl")

# Longest time between two looks at whether another process has arrived, or still lives.
POLL_S: Final = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes that share one job, and this one's place among them.

    Attributes:
        device: that this process computes on.
        rank: of this process, from 0.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    def barrier(self) -> None:
        """Wait until every process has come here, for as long as it takes.

        Raises:
            EvaluationError: another process has ended without coming here.
        """
        if self.size == 1:
            return
        try:
            # Not barrier(), which would keep Ctrl-C waiting.
            arrived = dist.all_reduce(torch.zeros(()), async_op=True)
            pause = POLL_S / 100
            while not arrived.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, POLL_S)
            arrived.wait()
        except RuntimeError:
            self._left()

    def share(self, value: T) -> T:
        """Rank 0's value, in every process.

        Args:
            value: anything that can be pickled; what the other ranks pass does not matter.

        Raises:
            EvaluationError: another process has ended without coming here.
        """
        if self.size == 1:
            return value
        self.barrier()
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def in_turn(self, make: Callable[[], T]) -> T:
        """What every process makes for itself, rank 0 first: its mistakes are told once, its caches serve the others.

        Args:
            make: what is to be done.
        """
        mine = make() if self.rank == 0 else None
        self.barrier()
        return make() if self.rank > 0 else cast(T, mine)

    def sum(self, figures: Tensor) -> Tensor:
        """The sum over all processes of figures that each has of its own, on the CPU."""
        total = figures.detach().cpu().clone()
        if self.size > 1:
            self.barrier()
            dist.all_reduce(total)
        return total

    def learner(self, model: nn.Module, *, sync_batch_norm: bool = False) -> nn.Module:
        """The model as every process trains it: the gradients are averaged over all of them.

        Weights begin as rank 0's. So do batch norm's running statistics at every step; each process normalises by its
        own part of the batch.

        Args:
            model: on this process's device.
            sync_batch_norm: normalise by the statistics of the whole batch instead; on GPUs only.
        """
        if self.size == 1:
            return model
        on_gpu = self.device.type == "cuda"
        group = dist.new_group(backend="nccl") if on_gpu else None
        if sync_batch_norm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
        return DistributedDataParallel(model, device_ids=[self.device] if on_gpu else None, process_group=group)

    def share_buffers(self, model: nn.Module) -> None:
        """Give the model of every process rank 0's buffers, such as batch norm's running statistics."""
        if self.size == 1:
            return
        self.barrier()
        for buffer in model.buffers():
            value = buffer.cpu()
            dist.broadcast(value, src=0)
            buffer.copy_(value)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turn what the library of a connection says when another process has died into one line.

        Raises:
            EvaluationError: another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(word in str(error).lower() for word in BROKEN_CONNECTION):
                raise
            self._left()

    def _left(self) -> NoReturn:
        time.sleep(5)  # whoever started this process may know more, say so and end it
        raise EvaluationError(
            f"process {self.rank} of {self.size}: another process of this job has ended; what had finished is kept"
        ) from None
