"""A workspace with four networks that take a second each to train, and subprocesses that use it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import robustmix
from robustmix import Recipe


@dataclass(frozen=True)
class Done:
    """What a command has left behind."""

    code: int
    out: str
    err: str


Call = Callable[..., Done]

# Somebody's code, of a network that takes pixels from -1 to 1; to be formatted with the workspace.
CENTRED = """
from torch import nn
import robustmix

class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = robustmix.load_model("mixup1", workspace={workspace!r})

    def forward(self, x):
        return self.network((x + 1) / 2)
"""

# Somebody's code, of networks on the run erm1 that fail; to be formatted with its workspace.
FAILING = """
import torch
from torch import nn
import robustmix

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = robustmix.load_model("erm1", workspace={workspace!r})

    def forward(self, x):
        return self.network(x)

class Greedy(Net):
    def forward(self, x):
        if len(x) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.network(x)

class Insatiable(Net):
    def forward(self, x):
        if torch.is_grad_enabled():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return self.network(x)

class Enormous(Net):
    def forward(self, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")
        return self.network(x)

class Probable(Net):
    def forward(self, x):
        return self.network(x).softmax(dim=1)

class Broken(Net):
    def forward(self, x):
        if torch.is_grad_enabled():
            raise RuntimeError("no kernel for this")
        return self.network(x)
"""

TINY = {"width": 4, "epochs": 4, "limit": 480, "lr": 0.05, "batch_size": 32}


def tiny_flags(**changes: object) -> list[str]:
    """The options of ``robustmix train`` that say the same as `TINY` with changes."""
    fields = {**TINY, **changes}
    return [text for key, value in fields.items() for text in (f"--{key.replace('_', '-')}", str(value))]


def train_tiny(workspace: Path) -> Path:
    """Train erm1, erm2, mixup1 and mixup2 on a part of the digits."""
    for method in ("erm", "mixup"):
        for seed in (1, 2):
            robustmix.train(Recipe(method=method, seed=seed, **TINY), workspace=workspace)
    return workspace


def environment() -> dict[str, str]:
    """One thread per process: two processes with two threads each would be many times slower on two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    """Start the command line in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "robustmix", *arguments],
        cwd=cwd,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A background job inherits that SIGINT is ignored, and the tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a folder to its end."""
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def stop_when(process: "subprocess.Popen[str]", happened: Callable[[], bool], how: signal.Signals) -> str:
    """Send a signal as soon as something has happened; give back what stood on standard error."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(how)
    return process.communicate()[1]
