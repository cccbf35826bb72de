"""A unit's attack on one batch, its passes counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final

import torch
from torch import Tensor, nn

from robustmix.attacks import Victim, craft
from robustmix.attacks.foreign import craft_foreign
from robustmix.attacks.libraries import library
from robustmix.attacks.peers import craft_by_peer
from robustmix.attacks.victim import NO_GRADIENT
from robustmix.device import autocast
from robustmix.errors import EvaluationError
from robustmix.factories import running
from robustmix.moving import moved
from robustmix.spec.attack import GRADIENT_FREE, MINIMUM_NORM, AttackSpec, Course
from robustmix.spec.names import Precision
from robustmix.store.cells import GAP_QUANTILES
from robustmix.units import to_pixels
from robustmix.work import CLEAN, Unit

# What is recorded of the source in every batch, in this order.
STATE: Final = (*(f"gap {quantile:g}" for quantile in GAP_QUANTILES), "saturated", "zero_gradient", "bad", "first_bad")

# If a network is compiled, budgets share passes of fewer pixels than this: starting its operations takes as long as
# computing them. On a CPU, four in one pass took 1.3 to 2.9 times less time at 32 and 104 digits and no less at 256.
# For a GPU the size is reckoned from its arithmetic, not measured.
SMALL_PASS: Final = {"cpu": 2**13}
SMALL_PASS_ON_GPU: Final = 2**18


class Counted(nn.Module):
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


class Crafting:
    """A unit's attack on one batch."""

    def __init__(
        self, unit: Unit, source: nn.Module | None, exact: nn.Module | None, x: Tensor, y: Tensor, number: int
    ) -> None:
        self.unit, self.source, self.exact, self.x, self.y, self.number = unit, source, exact, x, y, number
        self.seed = [unit.attack.seed if unit.attack else 0, number]
        self.victim: Victim | None = None
        small = SMALL_PASS.get(x.device.type, SMALL_PASS_ON_GPU)
        # Only of compiled networks, whose cells are marked as rounded in another way.
        self.stack = max(1, small // max(1, x.numel() // x.shape[1])) if unit.compiled else 1

    def groups(self) -> Iterator[dict[Course, Tensor]]:
        """Inputs by course for every missing budget, those together that share a pass of the targets.

        Raises:
            EvaluationError: the attack cannot be made; its first words are the unit and the batch.
        """
        crafted = self._crafted()
        while group := dict(islice(crafted, self.stack)):
            yield group

    def _crafted(self) -> Iterator[tuple[Course, Tensor]]:
        """(course, inputs) for every missing budget; the inputs themselves for clean predictions."""
        attack, source = self.unit.attack, self.source
        if attack is None or source is None:
            yield CLEAN, self.x
            return
        try:
            yield from self._native(attack, source) if attack.native else self._foreign(attack, source)
        except EvaluationError as error:
            raise EvaluationError(f"{self.unit.title}: in batch {self.number}: {error}") from None

    def _native(self, attack: AttackSpec, source: nn.Module) -> Iterator[tuple[Course, Tensor]]:
        # In float32 the first gradient's own pass predicts the labels; bf16 might predict others.
        own = attack.labels == "predicted" and attack.precision == "32"
        frozen_labels = None if own else self._labels(attack)
        self.victim = Victim(source, frozen_labels, attack.loss, trusted=True, stack=self.stack)
        lengths_of = {_pixels(course): course for course in self.unit.courses}
        decay = attack.options.get("decay", 0.0)
        crafted = craft(
            attack.name, self.victim, self.x, list(lengths_of), attack.metric, attack.restarts, decay, self.seed
        )
        for course, x_adv in crafted:
            yield lengths_of[course], x_adv

    def _foreign(self, attack: AttackSpec, source: nn.Module) -> Iterator[tuple[Course, Tensor]]:
        labels = self._labels(attack)
        for course in self.unit.courses:
            yield course, self._by_library(attack, source, labels, course)

    def state(self) -> list[Tensor]:
        """What the passes of an attack up a loss showed, float32 [`STATE`]; NaN for what only a gradient shows."""
        victim = self.victim
        if victim is None or victim.finite is None:
            return []
        bad = ~victim.finite
        found = torch.stack([bad.sum().float(), bad.int().argmax().float()])
        if not len(victim.gap):
            return [torch.cat([torch.full_like(found[:1], torch.nan).expand(len(STATE) - len(found)), found])]
        levels = moved(torch.tensor(GAP_QUANTILES, dtype=victim.gap.dtype), bad.device)
        # By lower neighbours, which unlike interpolation stay numbers where a gap is infinite.
        gaps = victim.gap.quantile(levels, interpolation="lower")
        shares = [part.float().mean() for part in (victim.saturated, victim.zero_gradient)]
        return [torch.cat([gaps, torch.stack(shares), found])]

    def _labels(self, attack: AttackSpec) -> Tensor:
        if attack.labels == "true" or self.exact is None:
            return self.y
        with torch.no_grad():
            logits: Tensor = self.exact(self.x)
            return logits.argmax(dim=1)

    def _by_library(self, attack: AttackSpec, source: nn.Module, labels: Tensor, course: Course) -> Tensor:
        peer = attack.impl != "robustmix"
        # AutoAttack's first gradient says little: where it vanishes, three more attacks follow, one without any.
        followed = peer or (attack.name in MINIMUM_NORM and attack.name not in GRADIENT_FREE)
        with running(f"{library(attack.name, attack.impl)} failed on this model"), _first_pass(source) as first:
            logits, gradients = first
            x_adv = self._made(attack, source, labels, _pixels(course))
        if self.victim is None and followed:
            self.victim = Victim(source, labels, attack.loss, trusted=True)
            if peer:
                self.victim.observe(logits[0], labels, gradients[0])
            elif gradients:
                self.victim.observe_some(logits[0], labels, gradients[0])
            elif bool((logits[0].argmax(dim=1) == labels).any()):
                raise EvaluationError(NO_GRADIENT)
            else:  # nothing that the source gets right, so nothing to attack
                self.victim.observe_some(logits[0], labels, self.x[:0])
        return x_adv

    def _made(self, attack: AttackSpec, source: nn.Module, labels: Tensor, at: Course) -> Tensor:
        if attack.impl != "robustmix":
            assert at.eps is not None
            return craft_by_peer(
                attack.impl, attack.name, source, self.x, labels, at.eps,
                steps=at.steps, length=at.step, seed=self.seed,
            )  # fmt: skip
        return craft_foreign(
            attack.name, source, self.x, labels, at.eps,
            norm=attack.metric, steps=at.steps, options=attack.options, classes=self._classes(), seed=self.seed,
        )  # fmt: skip

    def _classes(self) -> int:
        assert self.unit.source is not None
        classes = self.unit.source.classes
        return classes if isinstance(classes, int) else len(classes)


@contextmanager
def _first_pass(model: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The logits [B, K] of the first pass that somebody else makes of a model, and the first gradient [b, ...]."""
    logits: list[Tensor] = []
    gradients: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        (x,) = args
        if not logits:
            logits.append(out.detach())
        if not gradients and x.requires_grad:
            x.register_hook(gradients.append)

    hook = model.register_forward_hook(note)
    try:
        yield logits, gradients
    finally:
        hook.remove()


def _pixels(course: Course) -> Course:
    return Course(None if course.eps is None else to_pixels(course.eps), course.steps, to_pixels(course.step))
