"""Options that several verbs share."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from robustmix import progress
from robustmix.spec.names import Device
from robustmix.store.workspace import Workspace

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Several = Parameter(consume_multiple=True, negative="")
# Where things lie on this machine is nobody else's business and changes no result.
LOCAL: Final = ("--workspace", "--data-root")


@Parameter(name="*")
@dataclass(frozen=True)
class Place:
    """Where things lie.

    Attributes:
        workspace: The folder with runs, results and reports [default: ROBUSTMIX_WORKSPACE, else the current folder].
        quiet: No progress and no messages; errors are still shown.
    """

    workspace: Annotated[Path | None, Parameter(show_default=False)] = None
    quiet: Flag = False

    def enter(self) -> Workspace:
        """The workspace; from now on as quiet as asked for."""
        progress.quiet = self.quiet
        return Workspace.find(self.workspace)


@Parameter(name="*")
@dataclass(frozen=True)
class Machine:
    """What to compute on.

    Attributes:
        device: auto takes CUDA, then MPS, then the CPU.
        data_root: The folder with data sets [default: ROBUSTMIX_DATA, else the user's cache].
    """

    device: Device = "auto"
    data_root: Annotated[Path | None, Parameter(show_default=False)] = None


@Parameter(name="*")
@dataclass(frozen=True)
class Cluster:
    """Data and work beyond one process.

    Attributes:
        devices: Processes per machine, one per device. Leave it out under torchrun and srun, which say it themselves.
        nodes: Number of machines.
        stream: Read images from their folder batch by batch even if they fit into memory.
        workers: Processes that read streamed images.
    """

    devices: int = 1
    nodes: int = 1
    stream: Flag = False
    workers: int = 0


def command_line() -> str:
    """The command being run, as another person would type it."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word in LOCAL:
            next(words, None)
        elif word != "--quiet" and not word.startswith(tuple(f"{flag}=" for flag in LOCAL)):
            kept.append(word)
    return shlex.join(["robustmix", *kept])
