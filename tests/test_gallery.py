"""The examples that every unit leaves behind: which, where, and that they cost nothing."""

import json
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustmix import evaluation
from robustmix.errors import EvaluationError, StoreError
from robustmix.evaluation import compute
from robustmix.gallery import Gallery, Shown
from robustmix.planning import Plan, make_plan
from robustmix.spec.attack import AttackSpec, Course
from robustmix.spec.suite import Suite
from robustmix.store import claims, parts
from robustmix.store.cell_files import read_cells
from robustmix.store.cells import Cell
from robustmix.store.claims import claim
from robustmix.store.gallery import gallery_path, read_examples
from robustmix.store.parts import new_making, remove_forsaken, remove_parts
from robustmix.store.workspace import Workspace
from robustmix.team import Team

CPU = torch.device("cpu")
ATTACKS = AttackSpec(name="fgsm", eps=("3.7/255", 32)), AttackSpec(name="fgsm", eps=(64,), norm="l2")


def plan_of(place: Workspace, *attacks: AttackSpec, limit: int = 40, **options: Any) -> Plan:
    fields = {"title": "t", "sources": "erm1", "targets": ("erm1", "mixup1"), "data": "digits", "limit": limit}
    return make_plan(Suite.model_validate({"version": 1, "attack": attacks, **fields}), place, **options)


def attacked(place: Workspace) -> list[Cell]:
    return [cell for cell in read_cells(place.cells) if cell.identity.source]


def kept(place: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.gallery.iterdir()}


@pytest.fixture
def place(tiny: Path, tmp_path: Path) -> Workspace:
    """The trained runs, without any results."""
    (tmp_path / "runs").symlink_to(tiny / "runs")
    return Workspace(tmp_path)


def test_the_first_examples_of_every_budget_are_kept(place: Workspace) -> None:
    plan = plan_of(place, *ATTACKS, batch_size=16, save_images=True)
    compute(plan, place, Team(CPU))
    assert len(list(place.gallery.glob("*.npz"))) == 3, "two targets share them"
    clean = plan.inputs.in_memory().images[:8].numpy()
    for cell in attacked(place):
        found = read_examples(place.gallery, cell.identity)
        assert found is not None
        assert found.index.tolist() == list(range(8))
        assert (found.clean == clean).all()
        whole = np.load(gallery_path(place.gallery, cell.identity))
        assert (found.adversarial == whole[:8]).all(), "the same images as --save-images keeps"
        moved = found.adversarial.astype(int) - clean
        if cell.identity.norm == "linf":
            assert np.abs(moved).max() == int(cell.identity.eps_255 or 0)
        else:
            assert 0 < np.sqrt((moved**2).sum((1, 2, 3))).max() <= 64


def test_they_cost_no_pass_and_change_no_cell(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(place, *ATTACKS, batch_size=16)
    compute(plan, place, Team(CPU))
    (forward,) = {cell.facts.forward for cell in attacked(place) if cell.identity.norm == "linf"}
    assert forward == 1 + 4, "the gradient's, and two targets at two budgets"
    assert not list(place.gallery.glob("*.npy"))
    cells = {cell.key: cell.rows for cell in attacked(place)}
    monkeypatch.setattr(Shown, "show", lambda *arguments: None)
    for path in place.cells.iterdir():
        path.unlink()
    compute(plan, place, Team(CPU))
    assert all(cells[cell.key].equals(cell.rows) for cell in attacked(place))


def test_a_small_batch_has_fewer(place: Workspace) -> None:
    compute(plan_of(place, ATTACKS[0], batch_size=3, limit=7), place, Team(CPU))
    sizes = [len(found.index) for cell in attacked(place) if (found := read_examples(place.gallery, cell.identity))]
    assert sizes == [3] * 4


def test_the_number_of_processes_changes_nothing(place: Workspace, tiny: Path, tmp_path: Path) -> None:
    compute(plan_of(place, *ATTACKS, batch_size=16), place, Team(CPU))
    others = Workspace(tmp_path / "others")
    others.root.mkdir()
    (others.root / "runs").symlink_to(tiny / "runs")
    meeting, box = threading.Barrier(2), []  # type: ignore[var-annotated]

    class Member(Team):
        """One of two processes, as a thread."""

        def __init__(self, rank: int) -> None:
            super().__init__(CPU, rank, 2)

        def barrier(self) -> None:
            meeting.wait(60)

        def share(self, value: Any) -> Any:
            if self.rank == 0:
                box.append(value)
            meeting.wait(60)
            shared = box[-1]
            meeting.wait(60)
            return shared

    plans = [plan_of(others, *ATTACKS, batch_size=16) for _ in range(2)]
    threads = [threading.Thread(target=compute, args=(plans[rank], others, Member(rank))) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept(place)) == 3
    assert kept(others) == kept(place)


def test_what_is_wrong_is_not_kept(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = evaluation.measure

    def wrong(unit: Any, *rest: Any) -> Any:
        measured = measure(unit, *rest)
        if unit.source:
            raise EvaluationError("a logit is NaN")
        return measured

    monkeypatch.setattr(evaluation, "measure", wrong)
    with pytest.raises(EvaluationError, match="a logit is NaN"):
        compute(plan_of(place, ATTACKS[0], batch_size=16), place, Team(CPU))
    assert not place.gallery.exists()


def test_only_what_is_computed_leaves_examples(place: Workspace) -> None:
    compute(plan_of(place, ATTACKS[0], batch_size=16), place, Team(CPU))
    names = set(kept(place))
    for path in place.gallery.iterdir():
        path.unlink()
    both = AttackSpec(name="fgsm", eps=("3.7/255", 16, 32))
    compute(plan_of(place, both, batch_size=16), place, Team(CPU))
    assert len(kept(place)) == 1, "of the budgets that were there nothing was computed again"
    assert not names & set(kept(place))


@pytest.mark.parametrize("shape", [(4, 30), (4, 2, 5, 5), (4, 3, 9)])
def test_what_is_no_image_is_not_kept(shape: tuple[int, ...], place: Workspace) -> None:
    unit = plan_of(place, ATTACKS[0]).everything[1]
    shown = Shown(unit)
    x = torch.zeros(shape)
    shown.show(unit.courses[0], torch.arange(4), x, x)
    shown.write(place)
    assert not place.gallery.exists()


def test_channels_last_images_are_kept_in_their_own_order(place: Workspace) -> None:
    unit = plan_of(place, ATTACKS[0]).everything[1]
    course: Course = unit.courses[1]
    levels = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    x: Tensor = (levels / 255).contiguous(memory_format=torch.channels_last)
    shown = Shown(unit)
    shown.show(course, torch.tensor([0, 1]), x, x + 32 / 255)
    shown.write(place)
    found = read_examples(place.gallery, unit.at(course)[0].identity)
    assert found is not None
    assert (found.clean == levels.numpy()).all()
    assert (found.adversarial == levels.numpy() + 32).all()


# ---- what is damaged or half done ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 500])
def test_damaged_images_are_computed_again(place: Workspace, capsys: pytest.CaptureFixture[str], length: int) -> None:
    compute(plan_of(place, ATTACKS[0], save_images=True), place, Team(CPU))
    whole = kept(place)
    path = next(place.gallery.glob("*.npy"))
    path.write_bytes(whole[path.name][:length])
    capsys.readouterr()
    again = plan_of(place, ATTACKS[0], save_images=True)
    assert len(again.missing) == 2, "one budget, two targets"
    assert capsys.readouterr().err.count(f"warning: {path} holds no images that can be read") == 1
    assert compute(again, place, Team(CPU)) == 2
    assert kept(place) == {**whole, f"{path.name}.damaged": whole[path.name][:length]}
    assert not plan_of(place, ATTACKS[0], save_images=True).missing


def killed(place: Workspace, plan: Plan) -> tuple[str, list[Path]]:
    """What a job leaves that was killed while it kept the images of a plan's attack: its claim's key, and files."""
    unit = plan.everything[1]
    for file in opened(place, plan)._files.values():
        os.close(file)
    place.parts.mkdir(parents=True, exist_ok=True)
    dead = {**claims._self(), "started": -1}
    (place.parts / f"{unit.key}.claim").write_text(json.dumps(dead))
    return unit.key, sorted(place.gallery.glob(".*.part"))


def opened(place: Workspace, plan: Plan) -> Gallery:
    """The images of a plan's attack, begun."""
    unit = plan.everything[1]
    images = Gallery(unit, place, plan.inputs, Team(CPU), new_making(unit.key))
    images.open()
    return images


@contextmanager
def full_disk(space: int) -> Iterator[None]:
    """No file can become longer than so many bytes: what would go beyond is written in part, then refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_keeps_no_image(place: Workspace) -> None:
    compute(plan_of(place, ATTACKS[1]), place, Team(CPU))
    before = kept(place)
    plan = plan_of(place, ATTACKS[0], save_images=True)
    with full_disk(1000), pytest.raises(StoreError, match=r"\.part cannot be written: File too large$"):
        compute(plan, place, Team(CPU))
    assert kept(place) == before, "not even a beginning"


def test_images_that_are_written_in_part_are_an_error(place: Workspace) -> None:
    plan = plan_of(place, ATTACKS[0], save_images=True)
    unit = plan.everything[1]
    images = opened(place, plan)
    levels = torch.arange(40 * 64).view(40, 1, 8, 8).to(torch.uint8)
    images.keep(unit.courses[0], torch.arange(40), levels)
    with full_disk(2000), pytest.raises(StoreError, match=r"\.part cannot be written: File too large$"):
        images.keep(unit.courses[1], torch.arange(40), levels)
    images.finish(plan)
    images.close()
    assert (np.load(gallery_path(place.gallery, unit.at(unit.courses[0])[0].identity)) == levels.numpy()).all()


knows_processes = pytest.mark.skipif(claims._realm() is None, reason="the system has no /proc")


@knows_processes
def test_parts_of_a_killed_job_are_removed_before_anything_else_is_computed(place: Workspace) -> None:
    _, left = killed(place, plan_of(place, ATTACKS[0], save_images=True))
    assert len(left) == 2
    compute(plan_of(place, ATTACKS[1]), place, Team(CPU))
    assert not list(place.gallery.glob(".*"))
    assert not list(place.parts.iterdir())


@knows_processes
def test_parts_of_a_killed_job_are_removed_where_nothing_is_missing(place: Workspace) -> None:
    compute(plan_of(place, ATTACKS[1]), place, Team(CPU))
    _, left = killed(place, plan_of(place, ATTACKS[0], save_images=True))
    takeover = place.parts / f"{'2' * 64}.takeover"
    takeover.touch()
    os.utime(takeover, (0, 0))
    assert len(left) == 2
    assert compute(plan_of(place, ATTACKS[1]), place, Team(CPU)) == 0
    assert not list(place.gallery.glob(".*"))
    assert not list(place.parts.iterdir())


def test_what_is_forsaken_keeps_nobody_from_what_is_there(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise StoreError("Read-only file system")

    compute(plan_of(place, ATTACKS[1]), place, Team(CPU))
    monkeypatch.setattr(parts, "forsaken", lambda folder: ["2" * 64])
    monkeypatch.setattr(parts, "claim", refused)
    assert compute(plan_of(place, ATTACKS[1]), place, Team(CPU)) == 0


def test_parts_of_a_live_job_stay(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(place, ATTACKS[0], save_images=True)
    key, left = killed(place, plan)
    (place.parts / f"{key}.claim").unlink()
    with claim(place.parts, key):
        remove_forsaken(place)
        compute(plan_of(place, ATTACKS[1]), place, Team(CPU))
        monkeypatch.setattr(parts, "forsaken", lambda folder: [key])
        remove_forsaken(place)  # a job that has taken over a moment ago
        assert sorted(place.gallery.glob(".*.part")) == left
    assert len(left) == 2


def test_parts_of_other_budgets_go_with_the_unit_that_is_computed_again(place: Workspace) -> None:
    key, left = killed(place, plan_of(place, ATTACKS[0], save_images=True))
    (place.parts / f"{key}.claim").unlink()
    stranger = place.gallery / f".{'0' * 64}.npy.{new_making('1' * 64)}.part"
    stranger.touch()
    compute(plan_of(place, AttackSpec(name="fgsm", eps=(32,)), save_images=True), place, Team(CPU))
    assert len(left) == 2
    assert list(place.gallery.glob(".*")) == [stranger], "nobody knows whose it is"


def test_a_job_whose_work_was_taken_over_leaves_the_other_one_s_parts_alone(place: Workspace) -> None:
    plan = plan_of(place, ATTACKS[0], save_images=True)
    unit = plan.everything[1]
    slow = opened(place, plan)
    remove_parts(place, unit.key)
    other = opened(place, plan)
    theirs = sorted(place.gallery.glob(".*.part"))
    with pytest.raises(StoreError, match="is gone: another job has taken the work over"):
        slow.finish(plan)
    slow.close()
    assert sorted(place.gallery.glob(".*.part")) == theirs
    assert len(theirs) == 2
    other.finish(plan)
    other.close()
    assert len(list(place.gallery.glob("*.npy"))) == 2
    assert not list(place.gallery.glob(".*"))
