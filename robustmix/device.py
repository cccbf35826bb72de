"""Where, in which precision and in how many processes things run; the only module that knows Lightning Fabric."""

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustmix import progress
from robustmix.errors import EvaluationError, SpecError
from robustmix.spec.names import Device, Precision

AUTOCAST: Final[dict[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}

# What gloo and NCCL say of a connection whose other end has gone.
BROKEN_CONNECTION: Final = ("connection", "gloo", "nccl")

NO_MEMORY: Final = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")

# A rank may wait for another as long as that one lives: its death is noticed by other means.
PATIENCE: Final = timedelta(days=365)
POLL_S: Final = 0.05

# Tells a process which one started it: the process id of the first on this machine.
LEADER: Final = "ROBUSTMIX_LEADER"

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


def launch(device: Device = "auto", devices: int = 1, nodes: int = 1) -> Team:
    """Become one of several processes, each with a device of its own, or stay alone.

    Under torchrun and under SLURM's srun, which started the processes and say how many, this one joins the others.
    Otherwise it starts the others of its machine by running its own command line again; they come here themselves and
    are quiet from then on. When the first one ends, in whatever way, the others are ended, and when another one fails,
    all are; torchrun sees to that itself, and srun does with ``--kill-on-bad-exit``.

    Args:
        device: to compute on, by each process.
        devices: per machine.
        nodes: machines. Without torchrun and srun, the same command runs on each, with ``MASTER_ADDR``,
            ``MASTER_PORT`` and ``NODE_RANK`` set.

    Returns:
        This process's place.

    Raises:
        SpecError: the device is not there, or not as often as asked for, or whoever started this process started
            another number of them.
    """
    for flag, number in (("--devices", devices), ("--nodes", nodes)):
        if number < 1:
            raise SpecError(f"{flag} {number} is not possible: at least 1")
    if "LT_CLI_USED" in os.environ:
        raise SpecError("'fabric run' cannot start robustmix: use --devices, torchrun or srun")
    starter, local_rank, there = _started_by()
    if starter and (devices, nodes) not in ((1, 1), there):
        raise SpecError(
            f"--devices {devices} --nodes {nodes} does not fit what {starter} started, {there[0]} processes on each of "
            f"{there[1]} machines: leave both out"
        )
    devices, nodes = there if starter else (devices, nodes)
    where = pick_device(device)
    if devices * nodes == 1:
        return Team(where)
    where = _own_device(where, local_rank, devices, starter)
    if not starter:
        _start_others(devices, nodes)
    elif LEADER in os.environ and os.environ[LEADER] != str(os.getpid()):
        _die_with(int(os.environ[LEADER]), local_rank)
    rank = _join(devices, nodes, under_slurm=starter == "srun")
    progress.quiet = progress.quiet or rank > 0
    return Team(where, rank, devices * nodes)


def pick_device(name: Device) -> torch.device:
    """The device to run on, with float32 meaning float32; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        SpecError: the device is not there.
    """
    exact_float32()
    # The fastest algorithms add in no fixed order, so that signs would differ from one run to the next.
    torch.backends.cudnn.deterministic = True
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


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _started_by() -> tuple[str | None, int, tuple[int, int]]:
    """Who started the processes of this job, this one's rank on its machine, and (processes per machine, machines).

    The starter is None if there is but this process. torchrun's variables come first, since srun may start torchrun,
    and the processes started by `launch` have them too.

    Raises:
        SpecError: the machines have different numbers of processes.
    """
    env = os.environ
    if "RANK" in env and "LOCAL_WORLD_SIZE" in env and int(env.get("WORLD_SIZE", 1)) > 1:
        starter, local_rank, per_node, size = "torchrun", env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"], env["WORLD_SIZE"]
    # In the batch script itself SLURM_NTASKS is set as well, but there is only one process.
    elif int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if "SLURM_NTASKS_PER_NODE" not in env:
            raise SpecError("srun started several tasks without --ntasks-per-node: give it that instead of --ntasks")
        starter, local_rank, size = "srun", env["SLURM_LOCALID"], env["SLURM_STEP_NUM_TASKS"]
        per_node = env["SLURM_NTASKS_PER_NODE"]
    else:
        return None, 0, (1, 1)
    nodes, rest = divmod(int(size), int(per_node))
    if rest:
        raise SpecError(f"{starter} started {size} processes, but {per_node} on this machine: use as many on each")
    return starter, int(local_rank), (int(per_node), nodes)


def _own_device(kind: torch.device, local_rank: int, devices: int, starter: str | None) -> torch.device:
    """The device of one of several processes on a machine; CPU cores are shared."""
    if kind.type == "cpu":
        return kind
    there = torch.cuda.device_count() if kind.type == "cuda" else 1
    # SLURM can be set up to show each task no device but its own.
    alone = starter == "srun" and there == 1
    if kind.type != "cuda" or (devices > there and not alone):
        raise SpecError(f"{devices} processes need as many {kind.type} devices, but this machine has {there}")
    own = torch.device("cuda", 0 if alone else local_rank)
    torch.cuda.set_device(own)
    return own


def _start_others(devices: int, nodes: int) -> None:
    """Start the processes of the further devices of this machine, and end this one if one of them fails.

    Fabric could start them, but kills every process, this one included, up to five seconds after one has failed, lets
    them run on if this one is killed, and forgets the interpreter's options.
    """
    env = os.environ
    if nodes > 1 and (missing := [key for key in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in env]):
        raise SpecError(
            f"--nodes {nodes}, but {missing[0]} is not set: start the processes with torchrun or srun, or run the same "
            "command on each machine with NODE_RANK, MASTER_ADDR and MASTER_PORT set"
        )
    if nodes == 1:
        env.update(NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    first = int(env["NODE_RANK"]) * devices
    env.update(RANK=str(first), LOCAL_RANK="0", WORLD_SIZE=str(devices * nodes), LOCAL_WORLD_SIZE=str(devices))
    env[LEADER] = str(os.getpid())
    # Ctrl-C reaches every process of a terminal; this one shall answer, and end the others.
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    others = [
        subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**env, "RANK": str(first + local_rank), "LOCAL_RANK": str(local_rank)},
            stdin=subprocess.DEVNULL,
        )
        for local_rank in range(1, devices)
    ]
    signal.signal(signal.SIGINT, answer)
    leaving = threading.Event()

    def leave() -> None:
        leaving.set()
        for other in others:
            other.terminate()
        for other in others:
            other.wait()

    def watch(other: "subprocess.Popen[bytes]", rank: int) -> None:
        code = other.wait()
        if leaving.is_set() or (code == 0 and dist.is_initialized()):
            return
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        leave()
        _end(f"process {rank} of {devices * nodes} ended {how}, and the job with it", max(code, 1))

    for number, other in enumerate(others, first + 1):
        threading.Thread(target=watch, args=(other, number), daemon=True).start()
    atexit.register(leave)


def _die_with(leader: int, local_rank: int) -> None:
    """Let this process end as soon as the one that started it has ended."""

    def watch() -> None:
        while os.getppid() == leader:
            time.sleep(POLL_S)
        _end("the first process of this machine was killed, and the job with it" if local_rank == 1 else "", 1)

    threading.Thread(target=watch, daemon=True).start()


def _end(message: str, code: int) -> NoReturn:
    """End this process from any thread, whatever the main one is doing."""
    if message:
        print(f"robustmix: error: {message}; what had finished is kept", file=sys.stderr, flush=True)
    os._exit(code)


def _join(devices: int, nodes: int, *, under_slurm: bool) -> int:
    """Join the other processes; returns this one's rank."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        # Processes exchange a few small Python objects, never tensors of a device: gloo on the CPU serves them all, and
        # unlike NCCL notices at once that another process has died.
        accelerator="cpu",
        strategy=DDPStrategy(process_group_backend="gloo", timeout=PATIENCE),
        devices=devices,
        num_nodes=nodes,
        plugins=[SLURMEnvironment() if under_slurm else TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric.global_rank


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
