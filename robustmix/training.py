"""Training: one loop that can be read in one screen, resumed exactly from its last finished epoch."""

import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from robustmix._version import __version__
from robustmix.checkpoints import load_state, save_model, save_state
from robustmix.data import Dataset, Split, TensorSplit, load_data
from robustmix.data.augment import augment
from robustmix.device import autocast, describe_device, memory_hint, pick_device, synchronize
from robustmix.errors import CheckpointError, EvaluationError, SpecError, StoreError
from robustmix.mixing import METHODS, apply, mixed_correct, soft_cross_entropy, soft_labels
from robustmix.models import SMALLEST_SIDE, Classifier, ModelSpec, build
from robustmix.progress import Progress, say
from robustmix.rng import Stream, generator
from robustmix.spec.names import Device
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
    write_history,
    write_recipe,
)
from robustmix.store.workspace import Workspace

EVALUATION_BATCH = 512


def train(
    recipe: Recipe,
    *,
    name: str | None = None,
    workspace: str | Path | None = None,
    device: Device = "auto",
    data_root: str | Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Train a run, or go on with it from its last finished epoch, or do nothing if it has finished.

    Args:
        recipe: fields that are not set take the data set's defaults (Zhang et al. 2018 for CIFAR).
        name: of the run; the method, with the seed if the recipe sets one, if not given.
        workspace: the folder that gets ``runs/<name>/``.
        device: to train on.
        data_root: the folder with the data.
        overwrite: replace a run of that name that has another recipe.

    Returns:
        The finished run.

    Raises:
        SpecError: the recipe does not fit the data, or a run of that name has another recipe.
        DataError: the data cannot be loaded.
        EvaluationError: the loss is no longer finite.
    """
    name = default_name(recipe) if name is None else name
    place = Workspace.find(workspace)
    folder = place.run(name)
    where = pick_device(device)
    data = load_data(recipe.data, data_root).with_validation(recipe.val)
    recipe = recipe.resolved(data.like)
    split = data.train.in_memory().first(recipe.limit)
    _check_fit(recipe, data, split)
    digest = split.digest()
    known = read_run(place, name) if name in run_names(place) else None
    if known and known.begun and not overwrite:
        if known.recipe != recipe:
            raise SpecError(
                f"run {name!r} exists with another recipe ({', '.join(known.recipe.differences(recipe))}): choose "
                "another name or workspace, or replace it with --overwrite"
            )
        if known.facts and known.facts.train_digest != digest:
            raise SpecError(
                f"run {name!r} was trained on other data than {recipe.data} holds now: choose another name or "
                "workspace, or replace it with --overwrite"
            )
    if known and known.finished and known.recipe == recipe and known.facts and known.facts.train_digest == digest:
        say(f"run {name!r} has finished: {summary(known)}")
        return known
    with _locked(folder):
        if overwrite and not _resumable(folder, recipe, digest):
            _clear(folder)
        write_recipe(folder, recipe)
        with memory_hint(f"a smaller --batch-size than {recipe.batch_size} or --width than {recipe.width}"):
            _train(recipe, data, digest, folder, where)
    run = read_run(place, name)
    say(f"run {name!r} has finished: {summary(run)}")
    return run


def _train(recipe: Recipe, data: Dataset, digest: str, folder: Path, device: torch.device) -> None:
    """The loop. Everything random is a function of (seed, epoch, step), so a resumed run ends with the same bits."""
    split = data.train.in_memory().first(recipe.limit).to(device)
    test, val = data.test.to(device), data.val.to(device) if data.val else None
    steps = math.ceil(len(split) / recipe.batch_size)
    model, optimiser, scaler, history = _start(recipe, data, split, digest, folder, device)
    plan, classes = METHODS[recipe.method], len(data.classes)
    facts = _facts(data, split, digest, model, device)

    for epoch in range(len(history), recipe.epochs):
        started = time.perf_counter()
        order = torch.from_numpy(generator(recipe.seed, Stream.ORDER, epoch).permutation(len(split)))
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        model.train()
        with Progress(f"{folder.name} epoch {epoch + 1}/{recipe.epochs}", len(split), "images") as progress:
            for step, indices in enumerate(order.split(recipe.batch_size)):
                lr = learning_rate(recipe, epoch, step, steps)
                optimiser.param_groups[0]["lr"] = lr
                x, y = split.gather(indices, device)
                x = augment(x, recipe.augment, generator(recipe.seed, Stream.AUGMENT, epoch, step))
                mix = plan(y, generator(recipe.seed, Stream.MIX, epoch, step), recipe)
                targets = soft_labels(mix, y, classes)
                x = apply(mix, x).contiguous(memory_format=torch.channels_last)
                with autocast(device, recipe.precision):
                    logits = model(x)
                loss = soft_cross_entropy(logits.float(), targets)
                scaler.scale(loss).backward()
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad(set_to_none=True)
                loss_sum += loss.detach() * len(y)
                correct += mixed_correct(logits.detach(), targets)
                seen = min(len(split), (step + 1) * recipe.batch_size)
                note = (
                    f"loss {float(loss_sum) / seen:.3f}  accuracy {float(correct) / seen:.1%}" if progress.due else ""
                )
                progress.advance(len(y), note)
        synchronize(device)
        seconds = time.perf_counter() - started
        if not math.isfinite(float(loss_sum)):
            raise EvaluationError(
                f"run {folder.name!r}: the training loss is {float(loss_sum)} in epoch {epoch + 1}; "
                f"lower --lr (now {recipe.lr})"
            )
        last = epoch + 1 == recipe.epochs
        history.append(
            {
                "epoch": epoch + 1,
                "lr": lr,
                "train_loss": float(loss_sum) / len(split),
                "train_error_mixed": 1 - float(correct) / len(split),
                "train_error": error_rate(model, split) if last else math.nan,
                "val_error": error_rate(model, val) if val else math.nan,
                "test_error": error_rate(model, test),
                "seconds": seconds,
                "images_per_second": len(split) / seconds,
            }
        )
        save_state(
            folder / STATE,
            {
                "format": "robustmix-state-1",
                "recipe": recipe.model_dump(),
                "train_digest": digest,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "scaler": scaler.state_dict(),
                "history": history,
            },
        )
        write_history(folder, history, facts)
        row = history[-1]
        say(
            f"{folder.name} epoch {epoch + 1}/{recipe.epochs}: loss {row['train_loss']:.3f}  training error (as mixed) "
            f"{row['train_error_mixed']:.1%}  test error {row['test_error']:.1%}  "
            f"{row['images_per_second']:,.0f} images/s"
        )
    write_history(folder, history, facts)
    save_model(folder / WEIGHTS, model)


def _start(
    recipe: Recipe, data: Dataset, split: TensorSplit, digest: str, folder: Path, device: torch.device
) -> tuple[Classifier, SGD, torch.amp.GradScaler, list[dict[str, Any]]]:
    """Fresh weights from the seed, or the state of the last finished epoch."""
    spec = ModelSpec(name=recipe.model, width=recipe.width, classes=data.classes, shape=data.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(recipe.seed, Stream.INIT).integers(2**63)))
        model = build(spec, *split.channel_statistics())
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    history: list[dict[str, Any]] = []
    if (folder / STATE).exists():
        state = load_state(folder / STATE)
        if not _fits(state, recipe, digest):
            raise CheckpointError(
                f"{folder / STATE} was trained by another recipe or on other data; start anew with --overwrite"
            )
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        history = state["history"]
        if len(history) < recipe.epochs:
            say(f"run {folder.name!r}: going on after epoch {len(history)} of {recipe.epochs}")
    return model, optimiser, scaler, history


def _fits(state: dict[str, Any], recipe: Recipe, digest: str) -> bool:
    return bool(state["recipe"] == recipe.model_dump() and state["train_digest"] == digest)


def _resumable(folder: Path, recipe: Recipe, digest: str) -> bool:
    """Whether what stands in a folder belongs to this recipe and data, so that there is nothing to replace."""
    if not (folder / STATE).exists():
        return not (folder / WEIGHTS).exists()
    try:
        return _fits(load_state(folder / STATE), recipe, digest)
    except CheckpointError:
        return False


def _clear(folder: Path) -> None:
    """Remove a run, what would make it look finished first, so that a kill leaves nothing that could be mistaken."""
    for name in (WEIGHTS, HISTORY, STATE, RECIPE):
        (folder / name).unlink(missing_ok=True)


def _check_fit(recipe: Recipe, data: Dataset, split: TensorSplit) -> None:
    """Refuse what cannot be trained before anything is written."""
    if min(data.shape[1:]) < SMALLEST_SIDE:
        raise SpecError(f"{recipe.model} takes images of at least 8x8; those of {data.spec} are {list(data.shape)}")
    if len(split) % recipe.batch_size == 1:
        raise SpecError(
            "the last batch would hold a single example, on which batch norm is undefined: choose another "
            f"--batch-size than {recipe.batch_size} for {len(split)} training examples, or another --limit"
        )


def learning_rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """The learning rate of one step.

    ``step``: divided by 10 once 50 % and again once 75 % of the epochs are over (100 and 150 of 200 in Zhang et al.).
    ``cosine``: half a cosine from the start to 0 over all steps (Loshchilov and Hutter 2017).
    """
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch * steps + step) / (recipe.epochs * steps)))
    passed = sum(epoch >= recipe.epochs * share for share in (0.5, 0.75))
    return recipe.lr * 0.1**passed


def error_rate(model: nn.Module, split: Split) -> float:
    """The share of a split that the model gets wrong, in eval mode; the model's mode is left as found."""
    training = model.training
    model.eval()
    device = split.labels.device
    wrong = torch.zeros((), device=device)
    with torch.inference_mode():
        for x, y in split.batches(torch.arange(len(split)).split(EVALUATION_BATCH), device):
            wrong += (model(x.contiguous(memory_format=torch.channels_last)).argmax(dim=1) != y).sum()
    model.train(training)
    return float(wrong) / len(split)


def default_name(recipe: Recipe) -> str:
    """The method, with the seed if it was set: ``erm1``, ``mixup``."""
    return f"{recipe.method}{recipe.seed}" if "seed" in recipe.model_fields_set else recipe.method


def summary(run: Run) -> str:
    """The final figures of a run in a few words."""
    return (
        f"{len(run.history)} epochs, test error {run.final('test_error'):.2%}, training error "
        f"{run.final('train_error'):.2%}"
    )


def _facts(data: Dataset, split: TensorSplit, digest: str, model: nn.Module, device: torch.device) -> RunFacts:
    return RunFacts(
        data=data.name,
        like=data.like,
        data_note=data.note,
        train_digest=digest,
        train_examples=len(split),
        classes=len(data.classes),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=describe_device(device),
        threads=torch.get_num_threads(),
        robustmix=__version__,
        torch=torch.__version__,
    )


LOCK = ".lock"


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
