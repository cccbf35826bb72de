"""How the processes of a job hand on what each has measured of a unit: through files, which the first one joins."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustmix.errors import StoreError
from robustmix.measurement import Measured
from robustmix.store.atomic import write_atomically
from robustmix.store.gallery import DAMAGED
from robustmix.store.parts import measured_part, taken_over
from robustmix.store.workspace import Workspace
from robustmix.team import Team


def gathered(
    own: Measured | None, count: int, batches: Sequence[Tensor], place: Workspace, team: Team, making: str
) -> Measured | None:
    """What all processes have measured, in the examples' order.

    Args:
        own: what this process has measured of its share, every so many batches from its rank on; None if memory ran
            out.
        count: of all examples.
        batches: all, each the indices of its examples.
        place: the workspace.
        team: all processes.
        making: what this job calls its files in the making.

    Returns:
        On rank 0, all of it, or None if memory ran out in any process; None on the others.

    Raises:
        StoreError: a process's file cannot be written or read, or another job has taken the work over.
    """
    if team.size == 1:
        return own
    paths = [measured_part(place, making, rank) for rank in range(team.size)]
    parts = {"failed": np.array(1)} if own is None else {"failed": np.array(0), **vars(own)}
    write_atomically(paths[team.rank], lambda file: np.savez(file, **parts))
    team.barrier()
    if team.rank > 0:
        return None
    read: list[dict[str, Any]] = []
    for rank, path in enumerate(paths):
        try:
            with np.load(path, allow_pickle=False) as file:
                read.append({name: file[name] for name in file})
        except FileNotFoundError:
            raise taken_over(path) from None
        except (OSError, *DAMAGED) as error:
            raise StoreError(
                f"{path}, in which process {rank} handed over what it had measured, cannot be read "
                f"({type(error).__name__}): run the same command again; what had finished is kept"
            ) from None
        path.unlink(missing_ok=True)
    if any(part["failed"] for part in read):
        return None
    columns = np.empty((*read[0]["columns"].shape[:2], count))
    states = np.empty((len(batches) if len(read[0]["states"]) else 0, read[0]["states"].shape[1]))
    for rank, part in enumerate(read):
        shard = batches[rank :: team.size]
        if shard:
            columns[:, :, torch.cat(list(shard)).numpy()] = part["columns"]
            if len(states):
                states[rank :: team.size] = part["states"]
    forward, backward = (sum(int(part[what]) for part in read) for what in ("forward", "backward"))
    return Measured(columns, states, forward, backward, max(float(part["waited"]) for part in read))
