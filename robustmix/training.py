"""Training: a loop that can be read in one screen, resumed exactly from wherever it was stopped."""

import math
import time
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor, nn

from robustmix.checkpoints import save_model
from robustmix.data import Augmentation, Split
from robustmix.device import autocast, memory_hint, synchronize
from robustmix.errors import EvaluationError, StoreError
from robustmix.launching import launch
from robustmix.mixing import mixed_correct, nearest_neighbours, soft_cross_entropy, soft_labels
from robustmix.preparation import Task, default_name, prepare
from robustmix.progress import Progress, say
from robustmix.scalars import Scalars, check_tensorboard
from robustmix.scoring import score, score_training
from robustmix.spec.names import Device
from robustmix.spec.recipe import Recipe
from robustmix.steps import disturbed, mixed_logits, planned_steps, seeded
from robustmix.store.runs import WEIGHTS, Run, read_run, write_history
from robustmix.store.workspace import Workspace
from robustmix.team import Team
from robustmix.trainee import Trainee, begin, learning_rate

# Long epochs are saved on the way, too: steps between two looks at the clock, seconds between two saves.
LOOK_EVERY: Final = 20
SAVE_EVERY_S: Final = 120.0


def train(
    recipe: Recipe,
    *,
    name: str | None = None,
    workspace: str | Path | None = None,
    device: Device = "auto",
    team: Team | None = None,
    data_root: str | Path | None = None,
    stream: bool | None = None,
    workers: int = 0,
    compiled: bool = False,
    tensorboard: bool = False,
    overwrite: bool = False,
) -> Run:
    """Train a run, or go on with it from where it was stopped, or do nothing if it has finished.

    Args:
        recipe: fields that are not set take the data set's defaults (Zhang et al. 2018 for CIFAR).
        name: of the run; the method, with the seed if the recipe sets one, if not given.
        workspace: the folder that gets ``runs/<name>/``.
        device: to train on.
        team: of processes that train together, each on its part of every batch; this one alone if not given.
        data_root: the folder with the data.
        stream: see `robustmix.load_data`.
        workers: processes that read streamed images.
        compiled: train by ``torch.compile``; other bits, more images/s.
        tensorboard: write event files beside the history.
        overwrite: replace a run of that name that has another recipe.

    Returns:
        The finished run.

    Raises:
        SpecError: the recipe does not fit the data, or a run of that name has another recipe.
        DataError: the data cannot be loaded.
        EvaluationError: the loss is no longer finite.
    """
    team = team or launch(device)
    name = default_name(recipe) if name is None else name
    place = Workspace.find(workspace)
    if tensorboard:
        check_tensorboard()
    task = prepare(recipe, name, place, team, data_root=data_root, stream=stream, workers=workers, overwrite=overwrite)
    if not task.finished:
        smaller = f"a smaller --batch-size than {task.recipe.batch_size}, --precision bf16, or a smaller network"
        with task.begun(team), team.together(), memory_hint(smaller):
            _train(task, team, compiled=compiled, tensorboard=tensorboard)
            team.barrier()
    run = task.finished or read_run(place, name)
    say(f"run {name!r} has finished: {_summary(run)}")
    return run


@dataclass(frozen=True)
class _Loop:
    """What the steps of a run have in common: the network itself, what trains it, and what it is trained on."""

    task: Task
    team: Team
    trainee: Trainee
    network: nn.Module
    learner: nn.Module
    split: Split
    neighbours: Tensor | None


def _train(task: Task, team: Team, *, compiled: bool, tensorboard: bool) -> None:
    """Epoch after epoch: train, measure, save."""
    recipe, data, folder, device = task.recipe, task.data, task.folder, team.device
    split = data.train.to(device)
    held_out = {"val": data.val.to(device) if data.val else None, "test": data.test.to(device)}
    trainee = begin(recipe, data, team)
    trainee.resume(folder, recipe, task.digest)
    if team.share(trainee.done) != trainee.done:
        raise StoreError(f"process {team.rank} does not see what process 0 wrote into {folder}, which all must see")
    model, history, facts = trainee.model, trainee.history, task.facts(trainee.model, team, compiled=compiled)
    network = cast(nn.Module, torch.compile(model)) if compiled else model
    learner = team.learner(network, sync_batch_norm=recipe.sync_batch_norm)
    loop = _Loop(task, team, trainee, network, learner, split, _neighbours(recipe, split, device))
    scalars = Scalars(folder, history) if tensorboard and team.rank == 0 else None
    for epoch in range(len(history), recipe.epochs):
        row = {"epoch": epoch + 1, **_epoch(loop, epoch)}
        team.share_buffers(model)
        for half, examples in held_out.items():
            row |= score(half, network, examples, team)
        row |= score_training(network, split, data.corrupted, team, last=epoch + 1 == recipe.epochs)
        history.append(row)
        trainee.step, trainee.totals = 0, torch.zeros(2)
        if team.rank == 0:
            trainee.save(folder, recipe, task.digest)
            write_history(folder, history, facts)
        if scalars:
            scalars.write(row)
        say(
            f"{folder.name} epoch {epoch + 1}/{recipe.epochs}: loss {row['train_loss']:.3f}  training error (as mixed) "
            f"{row['train_error_mixed']:.1%}  test error {row['test_error']:.1%}  "
            f"{row['images_per_second']:,.0f} images/s"
        )
    if scalars:
        scalars.close()
    if team.rank == 0:
        write_history(folder, history, facts)
        save_model(folder / WEIGHTS, model)


def _epoch(loop: _Loop, epoch: int) -> dict[str, float]:
    """The loop. Everything random is a function of (seed, epoch, step), so a resumed run ends with the same bits."""
    recipe, data, folder = loop.task.recipe, loop.task.data, loop.task.folder
    team, trainee, split, device = loop.team, loop.trainee, loop.split, loop.team.device
    optimiser, scaler = trainee.optimiser, trainee.scaler
    begun = saved = time.perf_counter()
    first, steps = trainee.step, math.ceil(len(split) / recipe.batch_size)
    totals = (trainee.totals / team.size).to(device)
    planned, ahead = tee(planned_steps(recipe, data, epoch, first, team, loop.neighbours))
    augmentation = Augmentation(recipe.augment, recipe.seed, epoch)
    batches = split.training_batches((step.share for step in ahead), device, augmentation)
    loop.learner.train()
    with Progress(f"{folder.name} epoch {epoch + 1}/{recipe.epochs}", len(split), "images") as progress:
        progress.advance(first * recipe.batch_size)
        for step, (x, y) in zip(planned, batches, strict=True):
            lr = optimiser.param_groups[0]["lr"] = learning_rate(recipe, epoch, step.number, steps)
            x = disturbed(recipe, loop.network, x, y, step)
            targets = soft_labels(step.mix, y, len(data.classes), recipe.label_smoothing)
            with seeded(recipe, step, device), autocast(device, recipe.precision):
                logits = mixed_logits(loop.learner, x, step.mix)
            # The mean over the whole batch; several processes' gradients are averaged.
            own = len(targets) / step.size
            loss = soft_cross_entropy(logits.float(), targets) * (own * team.size)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)
            right = mixed_correct(logits.detach(), targets)
            totals += torch.stack([loss.detach() * (step.size / team.size), right])
            seen = step.number * recipe.batch_size + step.size
            progress.advance(step.size, _note(totals, seen * own) if progress.due else "")
            look = (step.number + 1) % LOOK_EVERY == 0 and seen < len(split)
            if look and team.share(time.perf_counter() - saved >= SAVE_EVERY_S):
                trainee.step, trainee.totals = step.number + 1, team.sum(totals)
                team.share_buffers(trainee.model)
                if team.rank == 0:
                    trainee.save(folder, recipe, loop.task.digest)
                saved = time.perf_counter()
    synchronize(device)
    seconds = time.perf_counter() - begun
    loss_sum, right_sum = team.sum(totals).tolist()
    if not math.isfinite(loss_sum):
        raise EvaluationError(
            f"run {folder.name!r}: the training loss is {loss_sum} in epoch {epoch + 1}; lower --lr (now {recipe.lr}), "
            "and give --overwrite if epochs have finished"
        )
    return {
        "lr": lr,
        "train_loss": loss_sum / len(split),
        "train_error_mixed": 1 - right_sum / len(split),
        "seconds": seconds,
        "images_per_second": (len(split) - first * recipe.batch_size) / seconds,
    }


def _summary(run: Run) -> str:
    """The final figures of a run in a few words."""
    return (
        f"{len(run.history)} epochs, test error {run.final('test_error'):.2%}, training error "
        f"{run.final('train_error'):.2%}"
    )


def _neighbours(recipe: Recipe, split: Split, device: torch.device) -> Tensor | None:
    if recipe.nearest is None:
        return None
    images = split.in_memory().images
    return nearest_neighbours(images, split.labels, recipe.nearest, recipe.same_class, device).cpu()


def _note(totals: Tensor, seen: float) -> str:
    loss, right = (totals / seen).tolist()
    return f"loss {loss:.3f}  accuracy {right:.1%}"
