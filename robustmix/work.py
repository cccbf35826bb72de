"""Units of work: one source under one attack, its cells, and what identifies them."""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from robustmix.attacks.libraries import library
from robustmix.participants import Participant
from robustmix.spec.attack import AttackSpec, Course, takes
from robustmix.store.cells import CellIdentity, clean_identity

DEFAULT_BATCH: Final = 256
# Beyond any memory, and well within what torch can split by.
MOST_EXAMPLES: Final = 2**31 - 1

CLEAN: Final = Course(0, 0, 0)

# Of attacks whose results have changed: HopSkipJump normalises each example's direction by itself.
VERSIONS: Final[dict[tuple[str, str], int]] = {("hopskipjump", "l2"): 2}


@dataclass(frozen=True)
class Wanted:
    """One cell that is asked for.

    Attributes:
        course: how the attack goes; `CLEAN` for no attack.
        target: that is scored.
        identity: of the cell.
    """

    course: Course
    target: Participant
    identity: CellIdentity


@dataclass(frozen=True)
class Unit:
    """One source under one attack: the least that is computed at once.

    Attributes:
        source: that crafts; None for clean predictions.
        attack: None for clean predictions. Cells of FGSM may stand among those of I-FGSM, of which it is one full step.
        cells: that it consists of, budgets ascending; then the source's clean one, if a gradient brings it along.
        batch_size: examples per batch.
        compiled: whether models are compiled.
        save_images: whether the adversarial images are kept, and each target scored on them as well.
    """

    source: Participant | None
    attack: AttackSpec | None
    cells: tuple[Wanted, ...]
    batch_size: int
    compiled: bool
    save_images: bool = False

    @property
    def courses(self) -> tuple[Course, ...]:
        """The budgets of its cells, ascending."""
        return tuple(dict.fromkeys(cell.course for cell in self.cells if cell not in self.along))

    @property
    def along(self) -> tuple[Wanted, ...]:
        """Its source's own clean predictions, if they come along with the first gradient."""
        return tuple(cell for cell in self.cells if cell.identity.source is None) if self.attack else ()

    @property
    def predicts_inputs(self) -> bool:
        """Whether the pass of the first gradient predicts the inputs as a prediction of its own would.

        Not where the attack starts at random, in bf16, which might predict other classes, or in another library.
        """
        attack = self.attack
        if attack is None or not attack.native or attack.precision != "32":
            return False
        return "loss" in takes(attack.name) and "restarts" not in takes(attack.name)

    @property
    def backward(self) -> int:
        """Gradients per example of one of our attacks, shared where they can be; 0 for another library's."""
        return self.attack.gradients(self.courses) if self.attack else 0

    @property
    def forward(self) -> int:
        """Forward passes per example of one of our attacks, those of the scoring included."""
        scored = (len(self.cells) - len(self.along)) * (2 if self.save_images else 1)
        if self.attack is None:
            return scored
        worst = self.attack.restarts * len(self.courses) if self.attack.restarts > 1 else 0
        predicted = self.attack.labels == "predicted" and not self.predicts_inputs
        return self.backward + worst + predicted + scored

    @property
    def key(self) -> str:
        """What two jobs must not compute at the same time: SHA-256 of source, attack, inputs and batch size."""
        first = self.cells[0].identity
        what = first.model_dump(exclude={"target", "eps_255", "steps", "step_255"})
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def at(self, course: Course) -> list[Wanted]:
        """The cells of one budget."""
        return [cell for cell in self.cells if cell.course == course]

    def only(self, keys: Collection[str]) -> "Unit | None":
        """The unit with those of its cells that have one of the keys; None if none has."""
        cells = tuple(cell for cell in self.cells if cell.identity.key() in keys)
        return replace(self, cells=cells) if cells else None

    @property
    def title(self) -> str:
        """What is computed, in a few words."""
        if self.source is None or self.attack is None:
            return "clean predictions"
        names = dict.fromkeys(cell.identity.attack for cell in self.cells if cell.identity.source)
        return f"{' and '.join(names)} from {self.source.name}"


def halved(size: int) -> Iterator[int]:
    """The batch sizes that a unit is tried at: each half of the one before."""
    while size >= 1:
        yield size
        size //= 2


def resized(unit: Unit, batch_size: int) -> Unit:
    """A unit with another batch size."""
    cells = (replace(one, identity=one.identity.model_copy(update={"batch_size": batch_size})) for one in unit.cells)
    return replace(unit, cells=tuple(cells), batch_size=batch_size)


def clean_unit(unit: Unit) -> Unit:
    """The clean predictions that the cells of a unit are compared with."""
    clean = {one.identity.clean().key(): Wanted(CLEAN, one.target, one.identity.clean()) for one in unit.cells}
    return Unit(None, None, tuple(clean.values()), unit.batch_size, unit.compiled)


def make_unit(
    source: Participant | None,
    attack: AttackSpec | None,
    courses: Sequence[Course],
    targets: Sequence[Participant],
    inputs: str,
    batch_size: int,
    *,
    compiled: bool = False,
    save_images: bool = False,
) -> Unit:
    """One source under one attack, scored on every target.

    Args:
        source: that crafts; None for clean predictions.
        attack: None for clean predictions.
        courses: how it goes at each budget.
        targets: that are scored.
        inputs: SHA-256 of the test examples.
        batch_size: examples per batch.
        compiled: whether models are compiled.
        save_images: whether the adversarial images are kept.
    """
    cells = tuple(
        Wanted(course, target, make_identity(source, target, attack, course, inputs, batch_size, compiled=compiled))
        for course in courses
        for target in targets
    )
    return Unit(source, attack, cells, batch_size, compiled, save_images)


def make_identity(
    source: Participant | None,
    target: Participant,
    attack: AttackSpec | None,
    course: Course,
    inputs: str,
    batch_size: int,
    *,
    compiled: bool,
) -> CellIdentity:
    """The identity of one cell.

    Args:
        source: that crafts; None for clean predictions.
        target: that is scored.
        attack: None for clean predictions.
        course: how it goes.
        inputs: SHA-256 of the test examples.
        batch_size: examples per batch.
        compiled: whether models are compiled.
    """
    if source is None or attack is None:
        return clean_identity(target.digest, inputs, batch_size, compiled=compiled)
    return CellIdentity(
        source=source.digest,
        target=target.digest,
        inputs=inputs,
        attack=attack.name,
        attack_version=VERSIONS.get((attack.name, attack.metric), 1),
        eps_255=course.eps,
        steps=course.steps,
        step_255=course.step,
        restarts=attack.restarts,
        options=attack.options,
        norm=attack.metric,
        loss=attack.loss,
        labels=attack.labels,
        seed=attack.seed,
        precision=attack.precision,
        impl=attack.impl,
        compiled=compiled,
        library=library(attack.name, attack.impl),
        batch_size=batch_size,
    )
