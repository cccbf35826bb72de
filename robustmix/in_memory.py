"""Models and tensors in memory as participants and examples, and what is measured of them."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from robustmix.attacks.arguments import check_logits
from robustmix.attacks.victim import explained, frozen
from robustmix.data import Split, TensorSplit
from robustmix.device import make_exact
from robustmix.errors import EvaluationError
from robustmix.measurement import made_cells, measure
from robustmix.models.layout import fitted
from robustmix.participants import Participant
from robustmix.store.cells import Cell
from robustmix.work import Unit


def examples(
    models: Mapping[str, nn.Module], inputs: Tensor | np.ndarray, labels: Tensor | np.ndarray
) -> tuple[TensorSplit, torch.device]:
    """The examples as a split, and the device of the models, made exact (`make_exact`).

    Args:
        models: by name, all on one device.
        inputs: uint8 [N, C, H, W], or float [N, ...] in [0, 1].
        labels: true classes, whole numbers [N].

    Raises:
        DataError: inputs are of another kind.
        EvaluationError: labels are no whole numbers, or the models are on different devices.
    """
    make_exact()
    return TensorSplit(_images(inputs), _whole(labels)), _device_of(models)


def present(name: str, model: nn.Module, split: TensorSplit, device: torch.device) -> Participant:
    """A model in memory as a participant.

    Args:
        name: of the model.
        model: on the device; it stays where it is.
        split: the examples.
        device: of all models.

    Raises:
        EvaluationError: it returns no logits, or too few for the labels.
    """
    some, _ = split.gather(torch.arange(min(2, len(split))), device)
    whole = fitted(model, some)
    return Participant(
        name=name,
        digest=hashlib.sha256(str(id(model)).encode()).hexdigest(),
        classes=_classes(name, whole, some, split.labels),
        shape=None,
        run=None,
        load=lambda: whole,
    )


def measured_cells(unit: Unit, split: Split, device: torch.device, halved_from: int | None = None) -> list[Cell]:
    """Compute all cells of a unit.

    Args:
        unit: of participants whose models are in memory.
        split: the examples, on the device.
        device: to compute on.
        halved_from: the batch size that did not fit into memory.

    Raises:
        EvaluationError: a measurement would be wrong.
    """
    batches = torch.arange(len(split)).split(unit.batch_size)
    everyone = {cell.target.name: cell.target.load() for cell in unit.cells}
    if unit.source:
        everyone[unit.source.name] = unit.source.load()
    together = nn.ModuleList(everyone.values())
    with frozen(together):
        measured = measure(unit, split, batches, range(len(batches)), lambda one: one.load(), device, unit.title)
    return made_cells(
        unit,
        measured,
        split.labels,
        device,
        data="tensors",
        like=None,
        data_note=None,
        data_spec="tensors",
        classes=(),
        unit_seconds=0,
        halved_from=halved_from,
    )


def _images(inputs: Tensor | np.ndarray) -> Tensor:
    images = _tensor(inputs, "inputs")
    return images.float() if images.is_floating_point() else images


def _whole(labels: Tensor | np.ndarray) -> Tensor:
    numbers = _tensor(labels, "labels")
    if numbers.is_floating_point() or not numbers.numel():
        raise EvaluationError(
            f"labels must be whole numbers [N], at least one; got {numbers.dtype} {list(numbers.shape)}"
        )
    return numbers.long()


def _tensor(values: object, what: str) -> Tensor:
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values)  # torch takes no array that is read backwards
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        kind = getattr(values, "dtype", type(values).__name__)
        raise EvaluationError(f"{what} must be a torch.Tensor or a numpy array of numbers; got {kind}") from None
    return tensor.detach().cpu()


def _device_of(models: Mapping[str, nn.Module]) -> torch.device:
    devices = {parameter.device for model in models.values() for parameter in model.parameters()}
    if len(devices) > 1:
        raise EvaluationError(f"the models are on different devices ({', '.join(sorted(map(str, devices)))})")
    return devices.pop() if devices else torch.device("cpu")


def _classes(name: str, model: nn.Module, x: Tensor, labels: Tensor) -> int:
    with frozen(model), torch.no_grad(), explained(model, x):
        logits = check_logits(model(x), f"model {name!r}", len(x))
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise EvaluationError(f"labels run from {low} to {high}, but model {name!r} gives {logits.shape[1]} logits")
    return logits.shape[1]
