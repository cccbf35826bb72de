"""One unit of the matrix: craft once, score every target on the same adversarial batch.

Nothing waits for the device before the unit's end: what would be wrong is kept beside the figures and looked at then.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from robustmix._version import __version__
from robustmix.attacks.geometry import extremes, lengths, round_within
from robustmix.attacks.victim import not_finite
from robustmix.crafting import STATE, Counted, Crafting
from robustmix.data import Split
from robustmix.device import describe_device, is_idle, is_out_of_memory
from robustmix.errors import EvaluationError
from robustmix.participants import Participant
from robustmix.progress import Progress, say
from robustmix.spec.attack import Course
from robustmix.spec.names import Norm, Precision
from robustmix.store.cells import GAP_QUANTILES, ROWS, BatchState, Cell, CellFacts
from robustmix.units import GREY_LEVELS, IMAGES, echo_budget, to_pixels
from robustmix.work import Unit

# Adding and subtracting in float32 leaves a pixel's change up to half a unit in the last place of 1 above its budget;
# in L2, and in other libraries' attacks, rounding adds up relative to the budget.
ROUNDING: Final = 2.0**-24
RELATIVE_ROUNDING: Final = 1e-5

Load = Callable[[Participant], nn.Module]
Keep = Callable[[Course, Tensor, Tensor], None]
Show = Callable[[Course, Tensor, Tensor, Tensor], None]

# What is recorded of every example, in this order.
COLUMNS: Final = ("prediction", "in_top5", "confidence", "gap", "finite", "rounded", "norm", "min", "max")


@dataclass(frozen=True)
class Measured:
    """What one process has measured of a unit; its share of the batches, in their order.

    Attributes:
        columns: float64 [cells, `COLUMNS`, examples].
        states: float64 [batches, `STATE`]; no row where nobody took a gradient that we saw.
        forward: forward passes, summed over examples.
        backward: backward passes, summed over examples.
        waited: seconds spent waiting for data.
    """

    columns: np.ndarray
    states: np.ndarray
    forward: int
    backward: int
    waited: float


def measure(
    unit: Unit,
    inputs: Split,
    batches: Sequence[Tensor],
    numbers: Sequence[int],
    load: Load,
    device: torch.device,
    title: str,
    keep: Keep | None = None,
    show: Show | None = None,
) -> Measured:
    """Measure a unit on some batches.

    Args:
        unit: with its missing cells.
        inputs: the test examples.
        batches: indices of each batch's examples.
        numbers: of these batches in the whole set; the random numbers of a batch are a function of its number.
        load: gives a model on the device.
        device: to compute on.
        title: for the progress.
        keep: gets (course, indices, uint8 images) of every adversarial batch; None to keep none.
        show: gets (course, indices, inputs, adversarial inputs) of the first batch of all; None to show none.

    Raises:
        EvaluationError: an output or a gradient is not finite, or an adversarial input leaves its budget or the range.
    """
    precision: Precision = unit.attack.precision if unit.attack else "32"
    source = Counted(load(unit.source), device, precision) if unit.source else None
    exact = source if precision == "32" or unit.source is None else Counted(load(unit.source), device, "32")
    scored = dict.fromkeys(cell.target for cell in unit.cells)
    targets = {one.digest: Counted(load(one), device, "32") for one in scored}
    # More processes than batches leave some without any.
    nothing = torch.empty(len(COLUMNS), 0, device=device)
    records = {cell.identity.key(): [nothing] for cell in unit.cells}
    states = []
    waited = 0.0
    stream = iter(inputs.batches(batches, device))
    with Progress(title, sum(map(len, batches)), "images") as progress:
        for number, indices in zip(numbers, batches, strict=True):
            asked, idle = time.perf_counter(), is_idle(device)
            x, y = next(stream)
            # The host runs ahead of a GPU: while that has work left, nobody waits for data.
            waited += time.perf_counter() - asked if idle else 0
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            crafting = Crafting(unit, source, exact, x, y, number)
            for key, found in _measured(crafting, indices, targets, keep, show).items():
                records[key].append(found)
            states += crafting.state()
            progress.advance(len(y))
    columns = torch.stack([torch.cat(parts, dim=1) for parts in records.values()]).cpu().double().numpy()
    state = torch.stack(states).cpu().double().numpy() if states else np.empty((0, len(STATE)))
    _check(unit, columns, state, numbers, batches)
    counted = {one for one in (*targets.values(), source, exact) if one is not None}
    forward, backward = (sum(getattr(one, what) for one in counted) for what in ("forwards", "backwards"))
    return Measured(columns, state, forward, backward, waited)


def _measured(
    crafting: Crafting, indices: Tensor, targets: Mapping[str, nn.Module], keep: Keep | None, show: Show | None
) -> dict[str, Tensor]:
    """What one batch shows of every cell: float32 [`COLUMNS`, B] by the cell's key."""
    unit, x, y = crafting.unit, crafting.x, crafting.y
    norm: Norm = unit.attack.metric if unit.attack else "linf"
    records = {}
    for together in crafting.groups():
        extents, rounded = {}, {}
        for course, x_adv in together.items():
            extents[course] = _extent(x_adv, x, norm)
            if show is not None and crafting.number == 0:
                show(course, indices, x, x_adv)
            if keep is not None and unit.source is not None:
                eps = None if course.eps is None else to_pixels(course.eps)
                levels = round_within(x_adv, x, eps, norm)
                keep(course, indices, levels)
                rounded[course] = levels.float().div_(GREY_LEVELS).contiguous(memory_format=torch.channels_last)
        for digest, model in targets.items():
            cells = [cell for course in together for cell in unit.at(course) if cell.target.digest == digest]
            if not cells:
                continue
            found = _score_all(model, [together[cell.course] for cell in cells], y)
            again = _score_all(model, [rounded[cell.course] for cell in cells], y) if rounded else [None] * len(cells)
            for cell, one, other in zip(cells, found, again, strict=True):
                records[cell.identity.key()] = _joined(one, other, extents[cell.course])
    for cell in unit.along:
        assert crafting.victim is not None
        seen = read_logits(crafting.victim.logits, y)
        records[cell.identity.key()] = _joined(seen, None, _extent(x, x, norm))
    return records


def on_device(inputs: Split, device: torch.device) -> Split:
    """The test examples on a device, or where they are if its memory does not hold them: then batches move there."""
    try:
        return inputs.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    say(f"the test examples do not fit into the memory of {device}: they move there batch by batch")
    return inputs


def score(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What a model makes of inputs, in float32.

    Args:
        model: in eval mode.
        x: inputs [B, ...].
        y: true labels, int64 [B].

    Returns:
        float32 [5, B]: predicted class, whether fewer than five logits exceed the label's, probability of the
        predicted class, gap between the label's logit and the largest other, and whether all logits are finite.
    """
    # No inference mode: what a network keeps for later calls could not take part in a gradient then.
    with torch.no_grad():
        return read_logits(model(x).float(), y)


def read_logits(logits: Tensor, y: Tensor) -> Tensor:
    """What logits [B, K], float32, say of true labels y, int64 [B]: the columns that `score` returns."""
    own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    # By counting, not by topk: where logits are equal, topk and argmax need not name the same class.
    in_top5 = (logits > own.unsqueeze(1)).sum(dim=1) < 5
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(dim=1)
    confidence = logits.softmax(dim=1).amax(dim=1)
    finite = logits.isfinite().all(dim=1)
    parts = (logits.argmax(dim=1), in_top5, confidence, own - others, finite)
    # Not in float64, which Apple's GPUs do not have; float32 holds every whole number up to 16,777,216.
    return torch.stack([part.float() for part in parts])


def _extent(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Length of the perturbation, least and largest value of each adversarial input, float32 [3, B]."""
    return torch.stack([lengths(x_adv - x, norm), *extremes(x_adv)])


def _score_all(model: nn.Module, points: list[Tensor], y: Tensor) -> Sequence[Tensor]:
    """`score` at several points of a batch, in one pass."""
    x = torch.cat(points) if len(points) > 1 else points[0]
    return score(model, x, y.repeat(len(points))).chunk(len(points), dim=1)


def _joined(found: Tensor, rounded: Tensor | None, extent: Tensor) -> Tensor:
    """The `COLUMNS` of one batch from what `score` and `_extent` return; NaN where images are not rounded."""
    if rounded is None:
        return torch.cat([found, torch.full_like(extent[:1], torch.nan), extent])
    finite = found[-1:] * rounded[-1:]
    return torch.cat([found[:-1], finite, rounded[:1], extent])


def made_cells(unit: Unit, measured: Measured, labels: Tensor, device: torch.device, **facts: Any) -> list[Cell]:
    """The cells of a unit that has been measured.

    Args:
        unit: what was measured.
        measured: of all examples.
        labels: true labels, int64 [examples].
        device: that computed it.
        facts: the fields of `CellFacts` that say of what data and how.
    """
    passes = [round(count / len(labels), 4) for count in (measured.forward, measured.backward)]
    states = _batch_states(measured.states)
    found = []
    for cell, columns in zip(unit.cells, measured.columns, strict=True):
        along = cell in unit.along
        forward, backward = (0.0, 0.0) if along else passes
        own = CellFacts(
            source_name=unit.source.name if unit.source else None,
            target_name=cell.target.name,
            forward=forward,
            backward=backward,
            batches=() if along else states,
            device=describe_device(device),
            torch=torch.__version__,
            robustmix=__version__,
            **facts,
        )
        found.append(Cell(cell.identity, own, _rows(columns, labels)))
    return found


def _rows(columns: np.ndarray, labels: Tensor) -> pa.Table:
    """The rows of one cell from its float64 [`COLUMNS`, examples]."""
    of = dict(zip(COLUMNS, columns, strict=True))
    rounded = of["rounded"]
    values: list[Any] = [
        np.arange(len(labels)),
        labels.cpu().numpy(),
        of["prediction"].astype("int32"),
        of["in_top5"].astype(bool),
        *(of[name].astype("float32") for name in ("confidence", "gap", "norm", "min", "max")),
        pa.array(np.nan_to_num(rounded).astype("int32"), mask=np.isnan(rounded)),
    ]
    return pa.table([pa.array(value).cast(field.type) for value, field in zip(values, ROWS, strict=True)], schema=ROWS)


def _batch_states(states: np.ndarray) -> tuple[BatchState, ...]:
    """The states of the source by batch, to four significant digits, where gradients were taken."""
    short = [[float(f"{value:.4g}") for value in row] for row in states if not np.isnan(row).any()]
    count = len(GAP_QUANTILES)
    return tuple(BatchState(gap=tuple(row[:count]), saturated=row[count], zero_gradient=row[-3]) for row in short)


def _check(
    unit: Unit, columns: np.ndarray, states: np.ndarray, numbers: Sequence[int], batches: Sequence[Tensor]
) -> None:
    """Refuse what would be a wrong measurement, and name the batch."""
    for number, batch, state in zip(numbers, batches, states, strict=len(states) > 0):
        bad, first = int(state[-2]), int(state[-1])
        if bad:
            raise EvaluationError(f"{unit.title}: in batch {number} {not_finite(bad, len(batch), first)}")
    owner = np.repeat(numbers, [len(batch) for batch in batches])
    for cell, column in zip(unit.cells, columns, strict=True):
        of = dict(zip(COLUMNS, column, strict=True))
        if not of["finite"].all():
            where = "" if np.isnan(of["rounded"]).all() else " on the images, or on them rounded to 8 bits,"
            raise EvaluationError(
                f"{unit.title}: in batch {owner[of['finite'].argmin()]} a logit of {cell.target.name}{where} is NaN or "
                "infinite; such an output is no prediction"
            )
        most = np.inf if cell.course.eps is None else to_pixels(cell.course.eps) * (1 + RELATIVE_ROUNDING) + ROUNDING
        inside = (of["norm"] <= most) & (of["min"] >= IMAGES.low) & (of["max"] <= IMAGES.high)
        if not inside.all():
            budget = f"the budget {echo_budget(cell.course.eps)} or " if cell.course.eps is not None else ""
            raise EvaluationError(
                f"{unit.title}: {int((~inside).sum())} adversarial inputs leave {budget}the range [0, 1], the first in "
                f"batch {owner[inside.argmin()]}; the largest perturbation is {float(of['norm'].max()):g}"
            )
