import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import environment
from torch import nn

from robustmix import launching, transfer_matrix
from robustmix.device import is_out_of_memory, memory_hint, pick_device
from robustmix.errors import EvaluationError, SpecError
from robustmix.launching import launch
from robustmix.team import Team

# Every rank writes what it knows; rank 1 comes late, and what rank 0 then finds shows that it waited.
MEMBER = """
import json, sys, time
from pathlib import Path
import torch
from robustmix import progress
from robustmix.launching import launch

team = launch("cpu", *map(int, sys.argv[1:]))
if team.rank == 1:
    time.sleep(0.5)
Path(f"came{team.rank}").touch()
team.barrier()
facts = {
    "size": team.size,
    "came": len(list(Path().glob("came*"))),
    "shared": team.share(["of", team.rank]),
    "quiet": progress.quiet,
    "tf32": torch.backends.cudnn.allow_tf32,
    "again": launch("cpu").rank,
}
Path(f"rank{team.rank}").write_text(json.dumps(facts, sort_keys=True))
team.barrier()
"""

# Something happens to one rank while the others compute, or to the first while it waits for the others.
VICTIM = """
import sys, time
from robustmix.launching import launch

event, devices = sys.argv[1:]
team = launch("cpu", int(devices))
sys.stdout.write("ready\\n")  # print() may write the end of the line apart
sys.stdout.flush()
team.barrier()
if team.rank == 1 and event == "exit":
    sys.exit(3)
if team.rank > 0 or event == "exit":
    time.sleep(600)
team.barrier()
"""

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TASKS = [
    {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "interactive",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "2",
        "SLURM_NODEID": rank,
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": "0",
    }
    for rank in ("0", "1")
]


def python(*arguments: str, cwd: Path, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**environment(), **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def in_memory() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    transfer_matrix({"net": network}, torch.rand(4, 1, 8, 8), torch.arange(4), ("signs",), (0.1,))


# What a caller's script may have switched, by code for a process of its own: the switches cannot all be put back.
SWITCHED = {
    "nothing": "",
    "TF32": "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True",
    "matrix products, high": "torch.set_float32_matmul_precision('high')",
    "matrix products, medium": "torch.set_float32_matmul_precision('medium')",
    "everything": "torch.backends.fp32_precision = 'bf16' if hasattr(torch.backends, 'fp32_precision') else None",
    "algorithms": "torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False",
}
BEGINNINGS = {
    "workspace": "from robustmix.device import pick_device; pick_device('cpu')",
    "in memory": """
from robustmix import transfer_matrix
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
transfer_matrix({"net": network}, torch.rand(4, 1, 8, 8), torch.arange(4), ("signs",), (0.1,))
""",
}
LOOK = """
x = torch.rand(64, 256, generator=torch.Generator().manual_seed(1))
exact = (x.double() @ x.double().T).float()
print(float((x @ x.T - exact).abs().max() / exact.max()) < 1e-6)
conv = torch.nn.functional.conv2d(x.view(1, 64, 16, 16), x.view(64, 64, 2, 2))
exact = torch.nn.functional.conv2d(x.double().view(1, 64, 16, 16), x.double().view(64, 64, 2, 2)).float()
print(float((conv - exact).abs().max() / exact.max()) < 1e-6)
cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
print(not cudnn.allow_tf32, not matmul.allow_tf32, cudnn.deterministic, not cudnn.benchmark)
print(torch.get_float32_matmul_precision() == "highest")
for library in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"):
    first, second = library.split(".")
    switch = getattr(getattr(torch.backends, first), second, None)
    print(getattr(switch, "fp32_precision", "ieee") == "ieee")
"""


@pytest.mark.parametrize(
    ("switched", "begin"), [*((switched, "workspace") for switched in SWITCHED), ("everything", "in memory")]
)
def test_float32_means_float32_and_a_run_repeats_another(switched: str, begin: str) -> None:
    code = "\n".join(["import torch", SWITCHED[switched], BEGINNINGS[begin], LOOK])
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"True"}, done.stdout


def test_a_device_that_is_not_there_is_named_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"'cuda' is not available .*cpu"):
        pick_device("cuda")


def test_exhausted_memory_is_one_line_with_a_way_out() -> None:
    with pytest.raises(EvaluationError, match="memory ran out; try half"), memory_hint("half"):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="something else"), memory_hint("half"):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_runs_out_in_many_words(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


def test_alone_there_is_nobody_to_wait_for_and_no_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # as in a batch script, outside srun
    team = launch("cpu")
    assert team == Team(torch.device("cpu"), rank=0, size=1)
    team.barrier()
    assert team.share("mine") == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["itself", "torchrun", "srun"])
def test_processes_find_each_other_however_they_are_started(tmp_path: Path, starter: str) -> None:
    (tmp_path / "member.py").write_text(MEMBER)
    port = str(launching._free_port())
    processes = {
        "itself": lambda: [python("member.py", "2", cwd=tmp_path)],
        "torchrun": lambda: [python(*TORCHRUN, "member.py", cwd=tmp_path)],
        "srun": lambda: [python("member.py", cwd=tmp_path, MASTER_PORT=port, **task) for task in TASKS],
    }[starter]()
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == ""
        assert "registered" not in err  # Fabric's banner
    for rank, quiet in enumerate(["false", "true"]):
        assert (tmp_path / f"rank{rank}").read_text() == (
            f'{{"again": {rank}, "came": 2, "quiet": {quiet}, "shared": ["of", 0], "size": 2, "tf32": false}}'
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "devices", "code", "says"),
    [
        ("exit", 3, 3, "process 1 of 3 ended with exit code 3, and the job with it; what had finished is kept"),
        ("SIGKILL", 2, -signal.SIGKILL, "the first process of this machine was killed, and the job with it"),
        ("SIGINT", 2, -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_the_end_of_one_process_is_the_end_of_all(
    tmp_path: Path, event: str, devices: int, code: int, says: str
) -> None:
    (tmp_path / "victim.py").write_text(VICTIM)
    process = python("victim.py", event, str(devices), cwd=tmp_path)
    for _ in range(devices):
        assert process.stdout.readline() == "ready\n", process.communicate()
    if event != "exit":
        process.send_signal(signal.Signals[event])
    # The pipes stay open until the last process has ended.
    err = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert err.count(says) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (("cpu", 0), {}, "--devices 0 is not possible"),
        (("cpu", 1, -1), {}, "--nodes -1 is not possible"),
        (("cuda", 3), {}, "3 processes need as many cuda devices, but this machine has 2"),
        (("mps", 2), {}, "2 processes need as many mps devices, but this machine has 1"),
        (("cpu", 1, 2), {}, "--nodes 2, but NODE_RANK is not set: start the processes with torchrun or srun, or"),
        (("cpu",), {"LT_CLI_USED": "1"}, "'fabric run' cannot start robustmix: use --devices, torchrun or srun"),
        (
            ("cpu", 4),
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "--devices 4 --nodes 1 does not fit what torchrun started, 2 processes on each of 1 machines",
        ),
        (
            ("cpu",),
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"},
            "torchrun started 3 processes, but 2 on this machine",
        ),
        (("cpu",), {"SLURM_STEP_NUM_TASKS": "2"}, "srun started several tasks without --ntasks-per-node"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line(
    arguments: tuple[str, int, int], variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SpecError) as caught:
        launch(*arguments)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda = torch.device("cuda")
    assert launching._own_device(cuda, 2, 4, None) == torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert launching._own_device(cuda, 2, 4, "srun") == torch.device("cuda", 0)  # bound by SLURM
    with pytest.raises(SpecError, match="has 1"):
        launching._own_device(cuda, 2, 4, "torchrun")
    assert chosen == [torch.device("cuda", 2), torch.device("cuda", 0)]


@pytest.mark.parametrize(
    ("variables", "cores", "devices", "threads"),
    [
        ({}, 8, 2, [4]),
        ({}, 8, 3, [2]),
        ({}, 2, 4, [1]),
        ({}, 8, 1, []),
        ({"OMP_NUM_THREADS": "5"}, 8, 2, []),
        ({"SLURM_CPUS_PER_TASK": "3"}, 8, 2, [4]),
        ({"SLURM_CPUS_PER_TASK": "3", **TASKS[0], "SLURM_NTASKS_PER_NODE": "2"}, 3, 2, [3]),
        ({**TASKS[0], "SLURM_NTASKS_PER_NODE": "2"}, 8, 2, [4]),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 8, 1, [4]),
        ({"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, 8, 1, []),
    ],
)
def test_each_process_on_the_cpu_takes_its_share_of_the_cores(
    variables: dict[str, str], cores: int, devices: int, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(launching, "_start_others", lambda devices, nodes: None)
    monkeypatch.setattr(launching, "_join", lambda devices, nodes, *, under_slurm: 0)
    launch("cpu", devices)
    assert taken == threads


def test_cores_are_counted_where_a_process_has_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    launching._share_cores(3, under_slurm=False)
    assert taken == [4]


def test_machines_are_counted_by_the_variables_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"NODE_RANK": "3", "MASTER_ADDR": "node0", "MASTER_PORT": "1234"}
    monkeypatch.setattr(os, "environ", {**given})
    launching._start_others(devices=1, nodes=8)
    assert os.environ == {
        **given,
        "RANK": "3",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "1",
        "ROBUSTMIX_LEADER": str(os.getpid()),
    }
