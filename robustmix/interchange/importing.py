"""A run from a checkpoint of another program."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from robustmix._version import __version__
from robustmix.checkpoints import save_model
from robustmix.data import Dataset, load_data
from robustmix.device import pick_device
from robustmix.errors import CheckpointError, SpecError, StoreError
from robustmix.interchange.weights import Weight, fill, read_weights
from robustmix.models import Classifier, ModelSpec, build
from robustmix.scoring import score
from robustmix.spec.names import Device
from robustmix.spec.recipe import Recipe
from robustmix.store.atomic import write_text
from robustmix.store.runs import (
    HISTORY,
    RECIPE,
    WEIGHTS,
    Run,
    RunFacts,
    file_digest,
    read_run,
    run_names,
    write_history,
)
from robustmix.store.workspace import Workspace
from robustmix.team import Team
from robustmix.zoo import parse_normalize

UNKNOWN: Final = "unknown"
# Where a checkpoint of ours keeps what it normalises with.
OWN_STATISTICS: Final = ("normalize.mean", "normalize.std")


def import_run(
    path: Path,
    name: str,
    recipe: Recipe,
    normalize: str | None,
    *,
    workspace: str | Path | None = None,
    device: Device = "auto",
    data_root: str | Path | None = None,
    command: str | None = None,
) -> Run:
    """Make a finished run from weights that another program trained, and measure its test error.

    Args:
        path: a safetensors file, or one of ``torch.save``, in which nothing is executed; see `read_weights`.
        name: of the run.
        recipe: what is known of the training: at least data, model and method. The run's ``recipe.json`` holds the
            fields that are set, and the width.
        normalize: what the network was trained behind, see `robustmix.zoo.parse_normalize`; None if the file says it,
            as those of robustmix do.
        workspace: the folder that gets ``runs/<name>/``.
        device: to measure on.
        data_root: the folder with the data.
        command: that imports it, for the record.

    Returns:
        The run. Its history has one row, with the test error; `RunFacts.imported_from` names the file.

    Raises:
        CheckpointError: the file cannot be read without executing it, or does not fit the model.
        SpecError: there is a run of that name, or no normalisation.
        DataError: the data cannot be loaded.
        StoreError: the run cannot be written; nothing of it is left.
    """
    place = Workspace.find(workspace)
    folder = place.run(name)
    if name in run_names(place):
        raise SpecError(f"run {name!r} exists: choose another --name, or remove {folder}")
    weights = read_weights(path)
    statistics = [weights.pop(key, None) for key in OWN_STATISTICS]
    if normalize is None and None in statistics:
        raise SpecError(
            f"--normalize is missing: {path} does not say what its network was trained behind; choose none, cifar10, "
            "imagenet or MEAN/STD (mixup-cifar10: 0.4914,0.4822,0.4465/0.2023,0.1994,0.2010)"
        )
    data = load_data(recipe.data, data_root)
    width = recipe.resolved(data.like).width
    spec = ModelSpec(name=recipe.model, width=width, classes=data.classes, shape=data.shape)
    with torch.random.fork_rng(devices=[]):
        model = build(spec, *_statistics(path, normalize, statistics, data.shape[0])).eval()
    size = "" if width is None else f" of width {width}"
    fill(model.network, recipe.model, weights, str(path), f"{recipe.model}{size} for {len(data.classes)} classes")
    where = pick_device(device)
    model = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = score("test", model, data.test.to(where), Team(where))
    if not math.isfinite(found["test_loss"]):
        raise CheckpointError(f"{path}: the network's outputs on {data.name} are NaN or infinite")
    row = dict.fromkeys(("lr", "train_loss", "train_error_mixed", "train_error", "val_error", "seconds"), math.nan)
    row |= {"epoch": recipe.epochs if "epochs" in recipe.model_fields_set else 0, **found}
    try:
        save_model(folder / WEIGHTS, model)
        write_history(folder, [row], _facts(path, data, model, command))
        # Last, since it makes a run of the folder.
        known = {**recipe.model_dump(exclude_unset=True), "width": width}
        write_text(folder / RECIPE, json.dumps(known, indent=1) + "\n")
    except StoreError:
        for file in (RECIPE, HISTORY, WEIGHTS):
            (folder / file).unlink(missing_ok=True)
        with suppress(OSError):  # something else lies in it, or it was never made
            folder.rmdir()
        raise
    return read_run(place, name)


def _statistics(path: Path, normalize: str | None, own: list[Weight | None], channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] that were asked for, else those in the file."""
    if normalize is None:
        found = [weight.read().float().flatten() for weight in own if weight and math.prod(weight.shape) == channels]
        if len(found) < len(own) or not torch.stack(found).isfinite().all() or not (found[1] > 0).all():
            raise CheckpointError(
                f"{path}: its normalisation is none of {channels} channels: give one with --normalize"
            )
        return found[0], found[1]
    mean, std = parse_normalize(normalize)
    for values in (mean, std):
        if len(values) not in (1, channels):
            raise SpecError(f"--normalize {normalize} has {len(values)} channels, the images have {channels}")
    return torch.tensor(mean).expand(channels), torch.tensor(std).expand(channels)


def _facts(path: Path, data: Dataset, model: Classifier, command: str | None) -> RunFacts:
    return RunFacts(
        data=data.name,
        like=data.like,
        data_note=data.note,
        train_digest=UNKNOWN,
        train_examples=len(data.train),
        classes=len(data.classes),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=UNKNOWN,
        threads=0,
        robustmix=__version__,
        torch=torch.__version__,
        imported_from=f"{path.name}, SHA-256 {file_digest(path)}",
        imported_by=command,
    )
