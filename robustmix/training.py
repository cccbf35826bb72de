"""Training: a loop that can be read in one screen, resumed exactly from wherever it was stopped."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from robustmix.attacks.gradient import from_start
from robustmix.attacks.victim import Victim
from robustmix.checkpoints import save_model
from robustmix.data import Augmentation, Dataset, Share, Split
from robustmix.device import autocast, memory_hint, synchronize
from robustmix.errors import EvaluationError, StoreError
from robustmix.launching import launch
from robustmix.mixing import (
    Mix,
    add_noise,
    apply,
    mixed_correct,
    nearest_neighbours,
    plan,
    soft_cross_entropy,
    soft_labels,
)
from robustmix.preparation import Task, default_name, prepare
from robustmix.progress import Progress, say
from robustmix.rng import Stream, generator
from robustmix.scalars import Scalars, check_tensorboard
from robustmix.spec.attack import PGD_STRIDE, Course
from robustmix.spec.names import Device
from robustmix.spec.recipe import Recipe
from robustmix.store.runs import WEIGHTS, Run, read_run, write_history
from robustmix.store.workspace import Workspace
from robustmix.team import Team
from robustmix.trainee import Trainee, begin, learning_rate
from robustmix.units import to_pixels

EVALUATION_BATCH: Final = 512
EVALUATION_PIXELS: Final = 2**23
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
    say(f"run {name!r} has finished: {summary(run)}")
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
            row |= _measured(half, network, examples, team)
        row |= _measured_training(network, split, data.corrupted, team, last=epoch + 1 == recipe.epochs)
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
            with _seeded(recipe, step, device), autocast(device, recipe.precision):
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


@dataclass(frozen=True)
class Step:
    """One training batch as one process sees it.

    Attributes:
        epoch: from 0.
        number: of the step in its epoch, from 0.
        size: examples in the whole batch.
        share: what this process needs of them.
        mix: how they are mixed.
        rank: of the process.
    """

    epoch: int
    number: int
    size: int
    share: Share
    mix: Mix | None
    rank: int


def planned_steps(
    recipe: Recipe, data: Dataset, epoch: int, first: int, team: Team, neighbours: Tensor | None = None
) -> Iterator[Step]:
    """The steps of an epoch: a random order of the examples, and how each batch is mixed.

    Args:
        recipe: of the run.
        data: with the training examples.
        epoch: from 0.
        first: number of the first step that is wanted.
        team: of processes; each gets its part of every batch.
        neighbours: int64 [N, k], training examples that are near each; None unless partners are drawn from them.
    """
    split = data.train
    order = torch.from_numpy(generator(recipe.seed, Stream.ORDER, epoch).permutation(len(split)))
    for number, rows in list(enumerate(order.split(recipe.batch_size)))[first:]:
        low, high = (len(rows) * part // team.size for part in (team.rank, team.rank + 1))
        rng = generator(recipe.seed, Stream.MIX, epoch, number)
        near = None if neighbours is None else neighbours[rows]
        mix = plan(recipe, split.labels[rows], split.shape, rng, epoch, near, classes=len(data.classes))
        positions, places = torch.arange(low, high), rows
        if mix is not None:
            places = rows if mix.outside is None else torch.cat([rows, mix.outside])
            positions, mix = mix.part(low, high)
            mix = mix.to(team.device)
        share = Share(places[positions], positions, len(places), number)
        yield Step(epoch, number, len(rows), share, mix, team.rank)


def disturbed(recipe: Recipe, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
    """Inputs [R, ...] as the recipe changes them before mixing: by PGD (Madry et al. 2018), by Gaussian noise.

    Adversarial examples are crafted in eval mode, each against its own label, so that mixing remains what it is
    (as Lamb et al. 2019 mix them).
    """
    share, counters = step.share, (step.epoch, step.number)
    if recipe.adversarial_eps is not None:
        eps, steps = to_pixels(recipe.adversarial_eps), recipe.adversarial_steps
        drawn = generator(recipe.seed, Stream.START, *counters).random((share.size, *x.shape[1:]), dtype=np.float32)
        offsets = torch.empty_like(x).copy_(torch.from_numpy(drawn)[share.positions]).mul_(2).sub_(1)
        victim = Victim(_Autocast(model, recipe), y, "ce", trusted=True)
        x = from_start(victim, x, offsets, Course(eps, steps, PGD_STRIDE * eps / steps), "linf")
    if recipe.noise:
        rng = generator(recipe.seed, Stream.NOISE, *counters)
        x = add_noise(x, recipe.noise, rng, share.positions, share.size)
    return x


def mixed_logits(model: nn.Module, x: Tensor, mix: Mix | None) -> Tensor:
    """Logits [n, K] of inputs [R, ...] that are mixed here or behind one of the model's stages."""
    if mix is None or mix.layer == 0:
        inputs = apply(mix, x)
        logits: Tensor = model(inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs)
    else:
        logits = model(x, mix.layer, partial(apply, mix))
    return logits


def losses(model: nn.Module, split: Split, team: Team) -> tuple[Tensor, Tensor]:
    """Cross-entropy and whether the model errs, float32 [N] and bool [N] on the CPU, in eval mode.

    The model's mode is left as found. Several processes share the batches.
    """
    training = model.training
    model.eval()
    size = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // math.prod(split.shape[-2:])))
    parts = torch.arange(len(split)).split(size)
    own = parts[team.rank :: team.size]
    found = torch.zeros(2, len(split))
    with torch.inference_mode():
        for rows, (x, y) in zip(own, split.batches(own, team.device), strict=True):
            logits = model(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).float()
            loss = nn.functional.cross_entropy(logits, y, reduction="none")
            found[:, rows] = torch.stack([loss, (logits.argmax(dim=1) != y).float()]).cpu()
    model.train(training)
    loss, wrong = team.sum(found)
    return loss, wrong.bool()


def error_rate(model: nn.Module, split: Split) -> float:
    """The share of a split that the model gets wrong, in eval mode; the model's mode is left as found."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return float(losses(model, split, Team(device))[1].double().mean())


def summary(run: Run) -> str:
    """The final figures of a run in a few words."""
    return (
        f"{len(run.history)} epochs, test error {run.final('test_error'):.2%}, training error "
        f"{run.final('train_error'):.2%}"
    )


def _measured(half: str, model: nn.Module, split: Split | None, team: Team) -> dict[str, float]:
    """Error and loss of the validation or test examples; NaN where there are none."""
    if split is None:
        return {f"{half}_error": math.nan, f"{half}_loss": math.nan}
    loss, wrong = losses(model, split, team)
    return {f"{half}_error": float(wrong.double().mean()), f"{half}_loss": float(loss.double().mean())}


def _measured_training(
    model: nn.Module, split: Split, corrupted: Tensor | None, team: Team, *, last: bool
) -> dict[str, float]:
    """The training examples' error in eval mode, nothing mixed or augmented; NaN but for the last epoch.

    Where labels are corrupted, ``train_error_real`` is over the examples with their own labels and
    ``train_error_corrupted`` over the others, against the labels that they were given (Zhang et al. 2018, table 2).
    """
    wrong = losses(model, split, team)[1].double() if last else torch.full((len(split),), math.nan)
    found = {"train_error": float(wrong.mean())}
    if corrupted is not None:
        found["train_error_real"] = float(wrong[~corrupted].mean())
        found["train_error_corrupted"] = float(wrong[corrupted].mean())
    return found


def _neighbours(recipe: Recipe, split: Split, device: torch.device) -> Tensor | None:
    if recipe.nearest is None:
        return None
    images = split.in_memory().images
    return nearest_neighbours(images, split.labels, recipe.nearest, recipe.same_class, device).cpu()


@contextmanager
def _seeded(recipe: Recipe, step: Step, device: torch.device) -> Iterator[None]:
    """Torch's global random numbers as a function of (seed, epoch, step, rank), where the network drops something."""
    if recipe.drop is None:
        yield
        return
    counters = (step.epoch, step.number, step.rank)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(generator(recipe.seed, Stream.DROP, *counters).integers(2**63)))
        yield


def _note(totals: Tensor, seen: float) -> str:
    loss, right = (totals / seen).tolist()
    return f"loss {loss:.3f}  accuracy {right:.1%}"


class _Autocast(nn.Module):
    """A model in the precision that it is trained in."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        # fp16 needs its loss scaled, or small gradients vanish and their signs with them.
        self.model, self.precision = model, "32" if recipe.precision == "fp16" else recipe.precision

    def forward(self, x: Tensor) -> Tensor:
        with autocast(x.device, self.precision):
            logits: Tensor = self.model(x)
        return logits
