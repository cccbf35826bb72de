"""What several processes have measured becomes one: in the examples' order, and never another job's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustmix.errors import StoreError
from robustmix.handover import gathered
from robustmix.measurement import Measured
from robustmix.store.parts import new_making, remove_parts
from robustmix.store.workspace import Workspace
from robustmix.team import Team

KEY = "1" * 64
COUNT = 10
BATCHES = torch.arange(COUNT).split(4)


class Member(Team):
    """One of several processes, whose others have come already."""

    def barrier(self) -> None:
        return


def share(rank: int, size: int, value: float) -> Measured:
    """One cell, two columns: the examples' numbers, and a value that tells jobs apart."""
    own = list(BATCHES[rank::size])
    numbers = torch.cat(own).numpy() if own else np.empty(0)
    states = np.array([[float(batch[0]), value] for batch in own]).reshape(-1, 2)
    return Measured(np.stack([numbers, np.full(len(numbers), value)])[None], states, len(numbers), 2, 0.5 + rank)


def hand_over(place: Workspace, rank: int, size: int, making: str, value: float | None = 1.0) -> Measured | None:
    own = None if value is None else share(rank, size, value)
    return gathered(own, COUNT, BATCHES, place, Member(torch.device("cpu"), rank, size), making)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_shares_are_put_in_the_examples_order(tmp_path: Path, size: int) -> None:
    place, making = Workspace(tmp_path), new_making(KEY)
    for rank in range(1, size):
        assert hand_over(place, rank, size, making) is None
    whole = hand_over(place, 0, size, making)
    assert whole is not None
    assert whole.columns[0].tolist() == [[*range(COUNT)], [1.0] * COUNT]
    assert whole.states.tolist() == [[0, 1], [4, 1], [8, 1]]
    assert (whole.forward, whole.backward, whole.waited) == (COUNT, 2 * size, size - 0.5)
    assert not list(place.parts.iterdir())


def test_memory_that_ran_out_in_one_process_leaves_nothing_of_any(tmp_path: Path) -> None:
    place, making = Workspace(tmp_path), new_making(KEY)
    hand_over(place, 1, 2, making, value=None)
    assert hand_over(place, 0, 2, making) is None
    assert not list(place.parts.iterdir())


def test_of_two_jobs_on_the_same_unit_none_reads_what_the_other_hands_over(tmp_path: Path) -> None:
    """One was suspended, and the other has taken its claim over."""
    place = Workspace(tmp_path)
    makings = {1.0: new_making(KEY), 2.0: new_making(KEY)}
    for rank in (1, 0):
        for value, making in makings.items():
            whole = hand_over(place, rank, 2, making, value)
            if rank == 0:
                assert whole is not None
                assert (whole.columns[0, 1] == value).all()
    assert not list(place.parts.iterdir())


def test_what_another_job_has_removed_is_one_line(tmp_path: Path) -> None:
    place, making = Workspace(tmp_path), new_making(KEY)
    hand_over(place, 1, 2, making)
    remove_parts(place, KEY)
    with pytest.raises(StoreError, match=r"1\.npz is gone: another job has taken the work over"):
        hand_over(place, 0, 2, making)


@pytest.mark.parametrize("damage", [b"", b"PK", None], ids=["empty", "cut", "flipped"])
def test_a_part_that_cannot_be_read_is_one_line_and_nothing_is_trusted(tmp_path: Path, damage: bytes | None) -> None:
    place, making = Workspace(tmp_path), new_making(KEY)
    hand_over(place, 1, 2, making)
    path = place.parts / f"{making}.1.npz"
    content = path.read_bytes()
    at = content.index(b"columns.npy") + 200
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] if damage is None else damage)
    with pytest.raises(StoreError, match=r"\.1\.npz, in which process 1 .* cannot be read .*: run the same") as caught:
        hand_over(place, 0, 2, making)
    assert "\n" not in str(caught.value)
    remove_parts(place, KEY)
    assert not list(place.parts.iterdir()), "as the next run of the unit removes it"
