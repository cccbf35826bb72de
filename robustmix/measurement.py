"""One unit of the matrix: craft once, score every target on the same adversarial batch.

Nothing waits for the device before the unit's end: what would be wrong is kept beside the figures and looked at then.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from robustmix.attacks import Victim, craft
from robustmix.attacks.foreign import craft_by_peer, craft_foreign
from robustmix.attacks.geometry import lengths, round_within
from robustmix.data import Split
from robustmix.device import autocast
from robustmix.errors import EvaluationError
from robustmix.participants import Participant
from robustmix.progress import Progress
from robustmix.spec.attack import FOREIGN, AttackSpec, Course
from robustmix.spec.names import Precision
from robustmix.store.cells import GAP_QUANTILES, ROWS, BatchState
from robustmix.units import GREY_LEVELS, IMAGES, echo_budget, to_pixels
from robustmix.work import CLEAN, Unit

# Adding and subtracting in float32 leaves a pixel's change up to half a unit in the last place of 1 above its budget;
# in L2, and in other libraries' attacks, rounding adds up relative to the budget.
ROUNDING: Final = 2.0**-24
RELATIVE_ROUNDING: Final = 1e-5

Load = Callable[[Participant], nn.Module]
Keep = Callable[[Course, Tensor, Tensor], None]
Show = Callable[[Course, Tensor, Tensor, Tensor], None]

# What is recorded of every example, in this order.
COLUMNS: Final = ("prediction", "in_top5", "confidence", "gap", "finite", "rounded", "norm", "min", "max")
STATE: Final = (*(f"gap {quantile:g}" for quantile in GAP_QUANTILES), "saturated", "zero_gradient", "bad", "first_bad")


@dataclass(frozen=True)
class Measured:
    """What one process has measured of a unit; its share of the batches, in their order.

    Attributes:
        columns: float64 [cells, `COLUMNS`, examples].
        states: float64 [batches, `STATE`]; no row where no gradient of ours was taken.
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
    source = _Counted(load(unit.source), device, precision) if unit.source else None
    exact = source if precision == "32" or unit.source is None else _Counted(load(unit.source), device, "32")
    targets = {one.digest: _Counted(load(one), device, "32") for one in {cell.target for cell in unit.cells}}
    # More processes than batches leave some without any.
    records = [[torch.empty(len(COLUMNS), 0, dtype=torch.float64, device=device)] for _ in unit.cells]
    place = {cell.identity.key(): number for number, cell in enumerate(unit.cells)}
    states = []
    waited = 0.0
    stream = iter(inputs.batches(batches, device))
    with Progress(title, sum(map(len, batches)), "images") as progress:
        for number, indices in zip(numbers, batches, strict=True):
            asked = time.perf_counter()
            x, y = next(stream)
            waited += time.perf_counter() - asked
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            crafting = _Crafting(unit, source, exact, x, y, number)
            for course, x_adv in crafting.batches():
                cells = unit.at(course)
                norm = unit.attack.metric if unit.attack else "linf"
                # Not by aminmax of what is flattened: channels-last inputs would be copied for it.
                every = tuple(range(1, x.ndim))
                seen = torch.stack([lengths(x_adv - x, norm), x_adv.amin(every), x_adv.amax(every)]).double()
                if show is not None and number == 0:
                    show(course, indices, x, x_adv)
                rounded = None
                if keep is not None and unit.source is not None:
                    eps = None if course.eps is None else to_pixels(course.eps)
                    levels = round_within(x_adv, x, eps, norm)
                    keep(course, indices, levels)
                    rounded = levels.float().div_(GREY_LEVELS).contiguous(memory_format=torch.channels_last)
                for cell in cells:
                    model = targets[cell.target.digest]
                    again = torch.full_like(seen[:1], torch.nan) if rounded is None else score(model, rounded, y)[:1]
                    records[place[cell.identity.key()]].append(torch.cat([score(model, x_adv, y), again, seen]))
            states += crafting.state()
            progress.advance(len(y))
    columns = torch.stack([torch.cat(parts, dim=1) for parts in records]).cpu().numpy()
    state = torch.stack(states).cpu().numpy() if states else np.empty((0, len(STATE)))
    _check(unit, columns, state, numbers, batches)
    counted = {one for one in (*targets.values(), source, exact) if one is not None}
    forward, backward = (sum(getattr(one, what) for one in counted) for what in ("forwards", "backwards"))
    return Measured(columns, state, forward, backward, waited)


def score(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What a model makes of inputs, in float32.

    Args:
        model: in eval mode.
        x: inputs [B, ...].
        y: true labels, int64 [B].

    Returns:
        float64 [5, B]: predicted class, whether fewer than five logits exceed the label's, probability of the
        predicted class, gap between the label's logit and the largest other, and whether all logits are finite.
    """
    with torch.inference_mode():
        logits = model(x).float()
        own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
        # By counting, not by topk: where logits are equal, topk and argmax need not name the same class.
        in_top5 = (logits > own.unsqueeze(1)).sum(dim=1) < 5
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(dim=1)
        confidence = logits.softmax(dim=1).amax(dim=1)
        finite = logits.isfinite().all(dim=1)
        parts = (logits.argmax(dim=1), in_top5, confidence, own - others, finite)
        return torch.stack([part.double() for part in parts])


def rows(columns: np.ndarray, labels: Tensor) -> pa.Table:
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


def batch_states(states: np.ndarray) -> tuple[BatchState, ...]:
    """The states of the source by batch, to four significant digits, where gradients were taken."""
    short = [[float(f"{value:.4g}") for value in row] for row in states if not np.isnan(row).any()]
    count = len(GAP_QUANTILES)
    return tuple(BatchState(gap=tuple(row[:count]), saturated=row[count], zero_gradient=row[-3]) for row in short)


class _Counted(nn.Module):
    """A model that counts the examples of its passes, in a precision; its logits are float32."""

    def __init__(self, model: nn.Module, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0
        self._device, self._precision = device, precision
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, ...] to float32 logits [B, K]."""
        self.forwards += len(x)
        with autocast(self._device, self._precision):
            logits: Tensor = self.model(x)
        logits = logits.float()
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, slope: Tensor) -> None:
        self.backwards += len(slope)


class _Crafting:
    """A unit's attack on one batch."""

    def __init__(
        self, unit: Unit, source: nn.Module | None, exact: nn.Module | None, x: Tensor, y: Tensor, number: int
    ) -> None:
        self.unit, self.source, self.exact, self.x, self.y, self.number = unit, source, exact, x, y, number
        self.seed = [unit.attack.seed if unit.attack else 0, number]
        self.victim: Victim | None = None

    def batches(self) -> Iterator[tuple[Course, Tensor]]:
        """(course, inputs) for every missing budget; the inputs themselves for clean predictions."""
        attack, source, courses = self.unit.attack, self.source, self.unit.courses
        if attack is None or source is None:
            yield CLEAN, self.x
        elif attack.name in FOREIGN or attack.impl != "robustmix":
            labels = self._labels(attack)
            for course in courses:
                yield course, self._foreign(attack, source, labels, course)
        else:
            # In float32 the first gradient's own pass predicts the labels; bf16 might predict others.
            own = attack.labels == "predicted" and attack.precision == "32"
            frozen_labels = None if own else self._labels(attack)
            self.victim = Victim(source, frozen_labels, attack.loss, trusted=True)
            lengths_of = {_pixels(course): course for course in courses}
            decay = attack.options.get("decay", 0.0)
            crafted = craft(
                attack.name, self.victim, self.x, list(lengths_of), attack.metric, attack.restarts, decay, self.seed
            )
            for course, x_adv in crafted:
                yield lengths_of[course], x_adv

    def state(self) -> list[Tensor]:
        """What the passes of an attack of ours showed, float64 [`STATE`]; NaN for what only a gradient shows."""
        victim = self.victim
        if victim is None or victim.finite is None:
            return []
        bad = ~victim.finite
        found = torch.stack([bad.sum().double(), bad.int().argmax().double()])
        if not len(victim.gap):
            return [torch.cat([torch.full_like(found[:1], torch.nan).expand(len(STATE) - len(found)), found])]
        levels = torch.tensor(GAP_QUANTILES, device=bad.device)
        # By lower neighbours, which unlike interpolation stay numbers where a gap is infinite.
        gaps = victim.gap.quantile(levels, interpolation="lower")
        shares = [part.double().mean() for part in (victim.saturated, victim.zero_gradient)]
        return [torch.cat([gaps.double(), torch.stack(shares), found])]

    def _labels(self, attack: AttackSpec) -> Tensor:
        if attack.labels == "true" or self.exact is None:
            return self.y
        with torch.no_grad():
            logits: Tensor = self.exact(self.x)
            return logits.argmax(dim=1)

    def _foreign(self, attack: AttackSpec, source: nn.Module, labels: Tensor, course: Course) -> Tensor:
        try:
            return self._by_library(attack, source, labels, course)
        except EvaluationError as error:
            raise EvaluationError(f"{self.unit.title}: in batch {self.number}: {error}") from None

    def _by_library(self, attack: AttackSpec, source: nn.Module, labels: Tensor, course: Course) -> Tensor:
        at = _pixels(course)
        classes = self._classes()
        if attack.impl != "robustmix":
            assert at.eps is not None
            return craft_by_peer(
                attack.impl, attack.name, source, self.x, labels, at.eps,
                steps=at.steps, length=at.step, seed=self.seed,
            )  # fmt: skip
        return craft_foreign(
            attack.name, source, self.x, labels, at.eps,
            norm=attack.metric, steps=at.steps, options=attack.options, classes=classes, seed=self.seed,
        )  # fmt: skip

    def _classes(self) -> int:
        assert self.unit.source is not None
        classes = self.unit.source.classes
        return classes if isinstance(classes, int) else len(classes)


def _pixels(course: Course) -> Course:
    return Course(None if course.eps is None else to_pixels(course.eps), course.steps, to_pixels(course.step))


def _check(
    unit: Unit, columns: np.ndarray, states: np.ndarray, numbers: Sequence[int], batches: Sequence[Tensor]
) -> None:
    """Refuse what would be a wrong measurement, and name the batch."""
    for number, state in zip(numbers, states, strict=len(states) > 0):
        bad, first = int(state[-2]), int(state[-1])
        if bad:
            raise EvaluationError(
                f"{unit.title}: in batch {number} the gradient of {bad} examples is NaN or infinite (first: number "
                f"{first} of the batch): the loss or the model overflows there"
            )
    owner = np.repeat(numbers, [len(batch) for batch in batches])
    for cell, column in zip(unit.cells, columns, strict=True):
        of = dict(zip(COLUMNS, column, strict=True))
        if not of["finite"].all():
            raise EvaluationError(
                f"{unit.title}: in batch {owner[of['finite'].argmin()]} a logit of {cell.target.name} is NaN or "
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
