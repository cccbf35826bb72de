"""The matrix: craft once per (source, attack), score every target on the same adversarial batch."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from robustmix._version import __version__
from robustmix.attacks import sweep
from robustmix.checkpoints import load_model
from robustmix.data import TensorSplit
from robustmix.device import describe_device, memory_hint, pick_device
from robustmix.errors import EvaluationError
from robustmix.planning import DEFAULT_BATCH, Plan, Unit, make_plan
from robustmix.progress import Progress
from robustmix.spec.names import Device
from robustmix.spec.suite import Suite, load_suite
from robustmix.store.cells import ROWS, Cell, CellFacts, cell_path, read_cell, write_cell
from robustmix.store.results import results_table
from robustmix.store.runs import Run
from robustmix.store.workspace import Workspace
from robustmix.units import IMAGES, echo_budget, to_pixels

# Adding and subtracting in float32 leaves a perturbation up to half a unit in the last place of 1 above its budget.
ROUNDING: Final = 2.0**-24


def evaluate(
    suite: Suite | str | Path,
    *,
    workspace: str | Path | None = None,
    device: Device = "auto",
    data_root: str | Path | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> pd.DataFrame:
    """Attack every source of a suite and score every target; compute only what is not in the workspace yet.

    Args:
        suite: a suite, or the name or file of one; its runs must have been trained.
        workspace: the folder with ``runs/``, which gets ``results/cells/``.
        device: to compute on.
        data_root: the folder with the data.
        batch_size: examples per batch, part of each cell's identity.

    Returns:
        The suite's rows of `robustmix.store.results.results_table`.

    Raises:
        SpecError: a name matches no run, or a budget cannot be reached.
        CheckpointError: a run is missing or unfinished.
        EvaluationError: a model does not fit the data, or a measurement would be wrong.
    """
    place = Workspace.find(workspace)
    suite = suite if isinstance(suite, Suite) else load_suite(suite, place.root)
    plan = make_plan(suite, place, batch_size=batch_size, data_root=data_root)
    compute(plan, place, pick_device(device))
    return planned_results(plan, place)


def planned_results(plan: Plan, place: Workspace) -> pd.DataFrame:
    """The results of a plan's cells, under the names of its runs."""
    return results_table([read_cell(cell_path(place.cells, identity)) for identity in plan.wanted], plan.runs.values())


def compute(plan: Plan, place: Workspace, device: torch.device) -> None:
    """Compute the missing cells, unit by unit; each unit's cells are written when it is done.

    Raises:
        EvaluationError: an output or a gradient is not finite, or an adversarial input leaves its budget or the range.
    """
    inputs = plan.inputs.to(device)
    models: dict[str, nn.Module] = {}

    def model(run: Run) -> nn.Module:
        if run.name not in models:
            models[run.name] = load_model(place.run(run.name)).to(device)
        return models[run.name]

    for number, unit in enumerate(plan.units, 1):
        started = time.perf_counter()
        title = f"{number}/{len(plan.units)} {unit.title}"
        with memory_hint(f"a smaller --batch-size than {plan.batch_size}"):
            records = _compute_unit(unit, inputs, model, plan.batch_size, title)
        seconds = time.perf_counter() - started
        for _, target, identity in unit.cells:
            facts = _facts(plan, unit, target, seconds, device)
            rows = _rows(torch.cat(records[identity.key()], dim=1), plan.inputs.labels)
            write_cell(place.cells, Cell(identity, facts, rows))


def _compute_unit(
    unit: Unit, inputs: TensorSplit, model: Callable[[Run], nn.Module], batch_size: int, title: str
) -> dict[str, list[Tensor]]:
    """What every batch gives for every missing cell of a unit, by the cell's key."""
    records: dict[str, list[Tensor]] = {identity.key(): [] for _, _, identity in unit.cells}
    with Progress(title, len(inputs), "images") as progress:
        for indices in torch.arange(len(inputs)).split(batch_size):
            x, y = inputs.gather(indices, inputs.labels.device)
            x = x.contiguous(memory_format=torch.channels_last)
            for eps, x_adv in _adversarial(unit, model, x, y):
                seen = _perturbation(x, x_adv, eps, unit)
                for target, identity in unit.at(eps):
                    records[identity.key()].append(torch.cat([score(model(target), x_adv, y), seen]))
            progress.advance(len(y))
    return records


def _adversarial(unit: Unit, model: Callable[[Run], nn.Module], x: Tensor, y: Tensor) -> Iterator[tuple[float, Tensor]]:
    """(budget, inputs) for every budget of a unit; the inputs themselves for clean predictions."""
    if unit.source is None or unit.attack is None:
        yield 0, x
        return
    attack, budgets = unit.attack, unit.budgets
    step = None if attack.step is None else to_pixels(attack.step)
    adversarial = sweep(
        attack.name, model(unit.source), x, y, [to_pixels(eps) for eps in budgets], attack.iterations, step
    )
    for eps, (_, x_adv) in zip(budgets, adversarial, strict=True):
        yield eps, x_adv


def score(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What a model makes of inputs, in float32.

    Args:
        model: in eval mode.
        x: inputs [B, ...].
        y: true labels, int64 [B].

    Returns:
        float64 [4, B]: predicted class, whether fewer than five logits exceed the label's, probability of the
        predicted class, and the gap between the label's logit and the largest other.

    Raises:
        EvaluationError: a logit is not finite.
    """
    with torch.inference_mode():
        logits = model(x).float()
        if not logits.isfinite().all():
            raise EvaluationError("a logit is NaN or infinite; such an output is no prediction")
        own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
        # By counting, not by topk: where logits are equal, topk and argmax need not name the same class.
        in_top5 = (logits > own.unsqueeze(1)).sum(dim=1) < 5
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(dim=1)
        confidence = logits.softmax(dim=1).amax(dim=1)
        return torch.stack([part.double() for part in (logits.argmax(dim=1), in_top5, confidence, own - others)])


def _perturbation(x: Tensor, x_adv: Tensor, eps: float, unit: Unit) -> Tensor:
    """Length of the perturbation and range of each adversarial input, float64 [3, B], checked against the budget."""
    norm = (x_adv - x).abs().flatten(1).amax(dim=1)
    low, high = x_adv.flatten(1).aminmax(dim=1)
    inside = (norm <= to_pixels(eps) + ROUNDING) & (low >= IMAGES.low) & (high <= IMAGES.high)
    if not inside.all():
        raise EvaluationError(
            f"{unit.title}: {int((~inside).sum())} adversarial inputs leave the budget {echo_budget(eps)} or the range "
            f"[0, 1]; the largest perturbation is {float(norm.max()):g}"
        )
    return torch.stack([part.double() for part in (norm, low, high)])


def _rows(columns: Tensor, labels: Tensor) -> pa.Table:
    prediction, in_top5, confidence, gap, norm, low, high = columns.cpu().numpy()
    values = [
        torch.arange(len(labels)).numpy(),
        labels.cpu().numpy(),
        prediction.astype("int32"),
        in_top5.astype(bool),
        *(part.astype("float32") for part in (confidence, gap, norm, low, high)),
    ]
    return pa.table([pa.array(value).cast(field.type) for value, field in zip(values, ROWS, strict=True)], schema=ROWS)


def _facts(plan: Plan, unit: Unit, target: Run, seconds: float, device: torch.device) -> CellFacts:
    return CellFacts(
        data=plan.data.name,
        like=plan.data.like,
        data_note=plan.data.note,
        data_spec=plan.data.spec,
        classes=plan.data.classes,
        source_name=unit.source.name if unit.source else None,
        target_name=target.name,
        forward=unit.forward,
        backward=unit.backward,
        unit_seconds=round(seconds, 3),
        device=describe_device(device),
        torch=torch.__version__,
        robustmix=__version__,
    )


def estimate_seconds(plan: Plan, place: Workspace, device: torch.device) -> float:
    """How long the missing work takes, from one timed batch of the first run."""
    model = load_model(place.run(next(iter(plan.runs)))).to(device)
    size = min(plan.batch_size, len(plan.inputs))
    x, y = plan.inputs.gather(torch.arange(size), device)
    x = x.contiguous(memory_format=torch.channels_last)
    timings = []
    for run in (lambda: score(model, x, y), lambda: next(sweep("fgsm", model, x, y, [to_pixels(1)]))):
        run()
        started = time.perf_counter()
        run()
        timings.append((time.perf_counter() - started) / size)
    forward, gradient = timings
    passes = sum(unit.backward * gradient + len(unit.cells) * forward for unit in plan.units)
    return passes * len(plan.inputs)
