"""What must hold before the first step: recipe, data and the run's folder fit each other."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from robustmix._version import __version__
from robustmix.checkpoints import load_state
from robustmix.data import Dataset, TensorSplit, check_augment, load_data
from robustmix.device import describe_device, native_bf16
from robustmix.errors import CheckpointError, SpecError, StoreError
from robustmix.models import SMALLEST_SIDE, check_drop, check_layers, check_packaged
from robustmix.progress import say
from robustmix.spec.names import MODELS
from robustmix.spec.recipe import Recipe
from robustmix.store.runs import (
    HISTORY,
    RECIPE,
    STATE,
    WEIGHTS,
    Run,
    RunFacts,
    read_run,
    run_names,
    write_recipe,
)
from robustmix.store.workspace import Workspace
from robustmix.team import Team
from robustmix.trainee import fits

LOCK: Final = ".lock"


@dataclass(frozen=True)
class Task:
    """A run that is to be trained.

    Attributes:
        recipe: every field filled in.
        data: what it asks for: validation examples held out, limited, labels corrupted.
        digest: SHA-256 of the training examples.
        folder: of the run.
        finished: the run, if there is nothing left to do.
        anew: whether what stands in the folder is to be replaced.
    """

    recipe: Recipe
    data: Dataset
    digest: str
    folder: Path
    finished: Run | None
    anew: bool

    def facts(self, model: nn.Module, team: Team, *, compiled: bool) -> RunFacts:
        """What holds while it is trained."""
        device = describe_device(team.device)
        return RunFacts(
            data=self.data.name,
            like=self.data.like,
            data_note=self.data.note,
            train_digest=self.digest,
            train_examples=len(self.data.train),
            classes=len(self.data.classes),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            device=device if team.size == 1 else f"{team.size} x {device}",
            threads=torch.get_num_threads(),
            compiled=compiled,
            robustmix=__version__,
            torch=torch.__version__,
        )

    @contextmanager
    def begun(self, team: Team) -> Iterator[None]:
        """The run's folder, ready to be written, for as long as the run is trained; rank 0 does it for all.

        Raises:
            SpecError: another job trains this run right now.
            StoreError: the folder cannot be written.
        """
        if team.rank > 0:
            team.barrier()
            yield
            return
        with _locked(self.folder):
            if self.anew:
                # What would make it look finished first, so that a kill leaves nothing that could be mistaken.
                for name in (WEIGHTS, HISTORY, STATE, RECIPE):
                    (self.folder / name).unlink(missing_ok=True)
            write_recipe(self.folder, self.recipe)
            team.barrier()
            yield


def prepare(
    recipe: Recipe,
    name: str,
    place: Workspace,
    team: Team,
    *,
    data_root: str | Path | None,
    stream: bool | None,
    workers: int,
    overwrite: bool,
) -> Task:
    """Load the data, and refuse what cannot be trained before anything is written.

    Raises:
        SpecError: the recipe does not fit the data, or a run of that name has another recipe.
        DataError: the data cannot be loaded.
    """
    folder = place.run(name)
    data = team.in_turn(lambda: load_data(recipe.data, data_root, stream=stream, workers=workers))
    recipe = recipe.resolved(data.like)
    data = data.with_validation(recipe.val).with_limit(recipe.limit).with_label_noise(recipe.label_noise, recipe.seed)
    _check_fit(recipe, data, team)
    digest = team.share(data.train.digest() if team.rank == 0 else "")
    known = read_run(place, name) if team.rank == 0 and name in run_names(place) else None
    finished = None
    if known and known.begun and not overwrite:
        _check_same(known, recipe, digest)
    if known and known.finished and known.recipe == recipe and known.facts and known.facts.train_digest == digest:
        finished = known
    anew = overwrite and team.rank == 0 and not _resumable(folder, recipe, digest)
    return Task(recipe, data, digest, folder, team.share(finished), anew)


def default_name(recipe: Recipe) -> str:
    """The method, with the seed where the recipe sets one: ``mixup``, ``erm1``."""
    return f"{recipe.method}{recipe.seed}" if "seed" in recipe.model_fields_set else recipe.method


def _check_same(known: Run, recipe: Recipe, digest: str) -> None:
    """Refuse to go on with a run that is another one."""
    if known.recipe != recipe:
        raise SpecError(
            f"run {known.name!r} exists with another recipe ({', '.join(known.recipe.differences(recipe))}): choose "
            "another name or workspace, or replace it with --overwrite"
        )
    if known.facts and known.facts.train_digest != digest:
        raise SpecError(
            f"run {known.name!r} was trained on other data than {recipe.data} holds now: choose another name or "
            "workspace, or replace it with --overwrite"
        )


def _check_fit(recipe: Recipe, data: Dataset, team: Team) -> None:
    if min(data.shape[1:]) < SMALLEST_SIDE:
        raise SpecError(f"{recipe.model} takes images of at least 8x8; those of {data.spec} are {list(data.shape)}")
    if recipe.model not in MODELS:
        check_packaged(recipe.model, data.shape[0])
    check_drop(recipe.model, recipe.dropped)
    if recipe.method == "manifold" and recipe.model not in MODELS:
        raise SpecError(
            f"method manifold mixes hidden states, which {recipe.model} does not offer: choose method mixup, or a "
            f"model of {', '.join(MODELS)}"
        )
    check_layers(recipe.model, recipe.stages)
    if recipe.sync_batch_norm and team.device.type != "cuda":
        raise SpecError(f"--sync-batch-norm works on GPUs only, not on {team.device.type}")
    if recipe.precision == "bf16" and team.device.type == "cuda" and not native_bf16():
        say(f"bf16 is emulated on {describe_device(team.device)}: --precision fp16 is faster")
    if recipe.nearest is not None:
        _check_nearest(recipe, data)
    check_augment(recipe.augment, data.train)
    if recipe.warmup >= recipe.epochs:
        raise SpecError(f"--warmup {recipe.warmup} leaves nothing of {recipe.epochs} epochs")
    last = len(data.train) % recipe.batch_size or recipe.batch_size
    smallest = last // team.size
    if smallest < 2:
        each = "" if team.size == 1 else f" for each of {team.size} processes"
        raise SpecError(
            f"the last batch would hold {'no' if smallest == 0 else 'a single'} example{each}, on which batch norm is "
            f"undefined: choose another --batch-size than {recipe.batch_size} for {len(data.train)} training examples, "
            "or another --limit"
        )


def _check_nearest(recipe: Recipe, data: Dataset) -> None:
    if not isinstance(data.train, TensorSplit):
        raise SpecError(f"--nearest {recipe.nearest} needs images in memory, but those of {data.spec} are streamed")
    sizes = data.train.labels.bincount() if recipe.same_class else torch.tensor([len(data.train)])
    fewest = int(sizes[sizes > 0].min())
    if recipe.nearest is not None and recipe.nearest >= fewest:
        among = f"a class of {fewest}" if recipe.same_class else str(fewest)
        raise SpecError(f"--nearest {recipe.nearest} is too many among {among} training examples: at most {fewest - 1}")


def _resumable(folder: Path, recipe: Recipe, digest: str) -> bool:
    """Whether what stands in a folder belongs to this recipe and data, so that there is nothing to replace."""
    if not (folder / STATE).exists():
        return not (folder / WEIGHTS).exists()
    try:
        return fits(load_state(folder / STATE), recipe, digest)
    except CheckpointError:
        return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process from training the same run; the lock dies with its process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(f"run {folder.name!r} is being trained by another process right now") from None
        for abandoned in folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            abandoned.unlink()
        yield
