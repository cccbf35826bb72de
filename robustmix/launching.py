"""How one process becomes several, each with a device of its own, and how none outlives the others."""

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Final, NoReturn

import torch
import torch.distributed as dist

from robustmix import progress
from robustmix.device import pick_device
from robustmix.errors import SpecError
from robustmix.spec.names import Device
from robustmix.team import POLL_S, Team

# A rank may wait for another as long as that one lives: its death is noticed by other means.
PATIENCE: Final = timedelta(days=365)

# Tells a process which one started it: the process id of the first on this machine.
LEADER: Final = "ROBUSTMIX_LEADER"


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
    if where.type == "cpu" and devices > 1:
        _share_cores(devices, under_slurm=starter == "srun")
    if not starter:
        _start_others(devices, nodes)
    elif LEADER in os.environ and os.environ[LEADER] != str(os.getpid()):
        _die_with(int(os.environ[LEADER]), local_rank)
    rank = _join(devices, nodes, under_slurm=starter == "srun")
    progress.quiet = progress.quiet or rank > 0
    return Team(where, rank, devices * nodes)


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


def _share_cores(devices: int, *, under_slurm: bool) -> None:
    """Compute with this process's share of the machine's cores, unless ``OMP_NUM_THREADS`` says how many threads.

    Processes that each take a thread per core are many times slower.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Of a task with cores of its own, SLURM shows no others.
    own = os.environ.get("SLURM_CPUS_PER_TASK") if under_slurm else None
    torch.set_num_threads(int(own) if own else max(1, cores // devices))


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
