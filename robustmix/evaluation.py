"""The matrix, unit by unit: what is missing is computed, by as many processes and jobs as there are."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pandas as pd
import torch
from torch import Tensor, nn

from robustmix.device import compile_network, is_out_of_memory
from robustmix.errors import EvaluationError, StoreError
from robustmix.gallery import Gallery, Shown
from robustmix.handover import gathered
from robustmix.launching import launch
from robustmix.measurement import Keep, Measured, made_cells, measure, on_device
from robustmix.participants import Participant
from robustmix.planning import Plan, existing_cell, make_plan, missing_cells, missing_clean
from robustmix.progress import say
from robustmix.spec.names import Device
from robustmix.spec.suite import Suite, load_suite
from robustmix.store.cell_files import cell_path, read_cell, trusted_cell, write_cell
from robustmix.store.cells import Cell
from robustmix.store.claims import claim, holder
from robustmix.store.doubts import doubts
from robustmix.store.parts import new_making, remove_forsaken, remove_parts
from robustmix.store.results import results_table
from robustmix.store.workspace import Workspace
from robustmix.team import Team
from robustmix.work import DEFAULT_BATCH, Unit, clean_unit, halved, resized

POLL_S: Final = 1.0
WORTH_SAYING: Final = 0.05


def evaluate(
    suite: Suite | str | Path,
    *,
    workspace: str | Path | None = None,
    device: Device = "auto",
    data_root: str | Path | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> pd.DataFrame:
    """Attack every source of a suite and score every target; compute only what is not in the workspace yet.

    Under torchrun and srun the processes share the work, and each gets all results. Attacks that look weaker than
    they are (`robustmix.store.doubts`) are named in a warning.

    Args:
        suite: a suite, or the name or file of one; its runs must have been trained.
        workspace: the folder with ``runs/``, which gets ``results/``.
        device: to compute on.
        data_root: the folder with the data.
        batch_size: examples per batch, part of each cell's identity; halved where memory runs out.

    Returns:
        The suite's rows of `robustmix.store.results.results_table`.

    Raises:
        SpecError: a name matches nothing, or a budget cannot be reached.
        CheckpointError: a run is missing or unfinished.
        EvaluationError: a model does not fit the data, or a measurement would be wrong.
    """
    place = Workspace.find(workspace)
    suite = suite if isinstance(suite, Suite) else load_suite(suite, place.root)
    team = launch(device)
    plan = team.in_turn(lambda: make_plan(suite, place, batch_size=batch_size, data_root=data_root))
    compute(plan, place, team)
    # Rank 0 has written them: another machine's file system may not know of them yet.
    results = team.share(planned_results(plan, place) if team.rank == 0 else pd.DataFrame())
    for doubt in doubts(results) if team.rank == 0 else ():
        say(f"warning: {doubt}")
    return results


def planned_cells(plan: Plan, place: Workspace) -> list[Cell]:
    """The cells that a plan asks for, and the clean ones that they are compared with.

    Raises:
        StoreError: one is missing.
    """
    found: dict[str, Cell] = {}
    for identity in plan.wanted:
        cell = existing_cell(place, identity)
        if cell is None:
            raise StoreError(f"{cell_path(place.cells, identity)} is missing; attack again")
        for one in (cell, read_cell(cell_path(place.cells, cell.identity.clean()))):
            found[one.key] = one
    return list(found.values())


def planned_results(plan: Plan, place: Workspace) -> pd.DataFrame:
    """The results of a plan's cells, under the names of its participants."""
    return results_table(planned_cells(plan, place), plan.participants.values())


def compute(plan: Plan, place: Workspace, team: Team) -> int:
    """Compute the missing cells, unit by unit; each unit's cells are written when it is done.

    Several processes share the batches of a unit; several jobs on one workspace share the units. When one process
    returns, all cells are there.

    Returns:
        How many of the missing cells this job has computed; another job may have computed the rest.

    Raises:
        EvaluationError: a model is not what it should be or not the same in every process, an output or a gradient is
            not finite, an adversarial input leaves its budget or the range, or memory runs out with a single example.
        StoreError: a file cannot be written, or another job has taken over a unit while this one was silent.
    """
    # What is missing may have changed between one process's look and another's: all go by rank 0's.
    plan = replace(plan, missing=team.share(plan.missing))
    if team.share([one.key() for one in plan.wanted]) != [one.key() for one in plan.wanted]:
        raise EvaluationError(
            f"process {team.rank} has other models or images than the first one: give all the same files and settings; "
            "what machines of several kinds compute may differ too much"
        )
    job = _Job(plan, place, team)
    team.in_turn(job.check_strangers)
    if team.rank == 0:
        remove_forsaken(place)
    computed = job.work_through(plan.units, job.finish)
    # Only now does it show in which batches everything was attacked.
    job.work_through(job.clean_counterparts(), job.finish_clean)
    team.barrier()  # rank 0 writes the last cells while the others are here already
    return computed


@contextmanager
def _claimed(place: Workspace, unit: Unit, team: Team) -> Iterator[bool]:
    """Whether this job is the one that computes a unit."""
    if team.rank == 0:
        with claim(place.parts, unit.key) as ours:
            if ours:
                remove_parts(place, unit.key)
            yield team.share(ours)
    else:
        yield team.share(False)


class _Job:
    """One plan on one team, with the models that it has loaded."""

    def __init__(self, plan: Plan, place: Workspace, team: Team) -> None:
        self.plan, self.place, self.team = plan, place, team
        self.inputs = on_device(plan.inputs, team.device)
        self._models: dict[tuple[str, bool, bool], nn.Module] = {}

    def check_strangers(self) -> None:
        """Look at other people's models before anything is computed, not when their turn comes."""
        for unit in self.plan.units:
            for one in (*(cell.target for cell in unit.cells), unit.source):
                if one is not None and one.run is None:
                    self._model(one, compiled=False)

    def work_through(self, units: Sequence[Unit], finish: Callable[[Unit, str], int]) -> int:
        """Finish units, but for those that another job computes, and wait for these; counts the cells."""
        pending = list(enumerate(units, 1))
        computed, told = 0, False
        while pending:
            held = []
            for number, unit in pending:
                with _claimed(self.place, unit, self.team) as ours:
                    if ours:
                        computed += finish(unit, f"{number}/{len(units)} {unit.title}")
                    else:
                        held.append((number, unit))
            if len(held) == len(pending):
                if not told:
                    other = holder(self.place.parts, held[0][1].key) or "another job"
                    say(f"waiting for {other}, which computes {held[0][1].title}")
                    told = True
                time.sleep(POLL_S)
            pending = held
        return computed

    def finish(self, unit: Unit, title: str) -> int:
        """Compute what is missing of a unit, in smaller batches if memory runs out, and write it; counts the cells."""
        missing = self._still_missing(unit)
        if missing is None:
            return 0
        for size in halved(unit.batch_size):
            smaller = resized(missing, size)
            if self._measured(smaller, unit, title):
                break
            say(f"memory ran out with batches of {size}: {title} starts again with {size // 2}")
        else:
            raise EvaluationError(f"{title}: memory ran out with a single example")
        return len(missing.cells)

    def clean_counterparts(self) -> list[Unit]:
        """The clean predictions that are missing beside what has been attacked, at the batch size of that."""
        keys = set(self.team.share(missing_clean(self.plan, self.place) if self.team.rank == 0 else frozenset()))
        found = []
        for unit in self.plan.everything:
            for size in halved(unit.batch_size) if unit.source else ():
                if clean := clean_unit(resized(unit, size)).only(keys):
                    found.append(clean)
                    keys -= {cell.identity.key() for cell in clean.cells}
        return found

    def finish_clean(self, unit: Unit, title: str) -> int:
        """Compute what is missing of clean predictions in batches of this very size; counts the cells."""
        keys = [one.identity.key() for one in unit.cells if trusted_cell(self.place.cells, one.identity) is None]
        missing = unit.only(self.team.share(keys))
        if missing is None:
            return 0
        if not self._measured(missing, unit, title):
            raise EvaluationError(
                f"{title}: memory ran out with batches of {unit.batch_size}, in which attacks were made that are "
                f"compared with them; take --batch-size {max(1, unit.batch_size // 2)}"
            )
        return len(missing.cells)

    def _still_missing(self, unit: Unit) -> Unit | None:
        """What of a unit nobody has computed in the meantime, as rank 0 sees it."""
        return unit.only(self.team.share(missing_cells(unit, self.place) if self.team.rank == 0 else []))

    def _measured(self, unit: Unit, claimed: Unit, title: str) -> bool:
        """Compute and write the cells of a unit; False if memory ran out in any process."""
        started = time.perf_counter()
        # Anew after memory ran out: a network's file system may remember of a removed file's name that it has gone.
        making = self.team.share(new_making(claimed.key))
        batches = torch.arange(len(self.inputs)).split(unit.batch_size)
        images = Gallery(unit, self.place, self.inputs, self.team, making) if unit.save_images else None
        shown = Shown(unit)
        try:
            if images:
                images.open()
            own = self._attempt(unit, batches, title, images, shown)
            everything = gathered(own, len(self.inputs), batches, self.place, self.team, making)
            complete = self.team.share(everything is not None)
            if images and everything is not None:
                images.finish(self.plan)
        finally:
            if images:
                images.close()
        if everything is not None:
            # Before the cells: whoever finds these finds the examples.
            shown.write(self.place)
            seconds = time.perf_counter() - started
            if everything.waited > WORTH_SAYING * seconds:
                say(f"{title}: {everything.waited / seconds:.0%} of the time went into waiting for data (--workers)")
            data = self.plan.data
            for cell in made_cells(
                unit,
                everything,
                self.inputs.labels,
                self.team.device,
                data=data.name,
                like=data.like,
                data_note=data.note,
                data_spec=data.spec,
                classes=data.classes,
                unit_seconds=round(seconds, 3),
                data_wait=round(everything.waited / seconds, 4),
                normalize=self.plan.normalize,
                halved_from=claimed.batch_size if unit.batch_size < claimed.batch_size else None,
            ):
                write_cell(self.place.cells, cell)
        return complete

    def _attempt(
        self, unit: Unit, batches: tuple[Tensor, ...], title: str, images: Gallery | None, shown: Shown
    ) -> Measured | None:
        team = self.team
        keep: Keep | None = images.keep if images else None

        def load(one: Participant) -> nn.Module:
            return self._model(one, compiled=unit.compiled, graphs=as_graphs(unit, team.device))

        try:
            shard, numbers = batches[team.rank :: team.size], range(team.rank, len(batches), team.size)
            return measure(unit, self.inputs, shard, numbers, load, team.device, title, keep, shown.show)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Compiled networks keep memory of their own for the size that was too large.
        self._models = {key: model for key, model in self._models.items() if not key[1]}
        if unit.compiled:
            torch.compiler.reset()
        gc.collect()
        if team.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _model(self, one: Participant, *, compiled: bool, graphs: bool = False) -> nn.Module:
        key = one.digest, compiled, compiled and graphs
        if key not in self._models:
            if compiled:
                self._models[key] = compile_network(self._model(one, compiled=False), graphs=graphs)
            else:
                self._models[key] = self.plan.load(one, self.team.device)
        return self._models[key]


def as_graphs(unit: Unit, device: torch.device) -> bool:
    """Whether compiled networks run as CUDA graphs: on a GPU, but not for another library's attack.

    These keep what several passes return, whose memory graphs use again.
    """
    return device.type == "cuda" and (unit.attack is None or unit.attack.native)
