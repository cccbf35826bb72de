"""Attacks that follow the gradient, sharing every gradient that two budgets have in common.

FGSM is one full step. Without a random start all budgets begin where the input is, so they share the first gradient;
with steps of one length they go on together until the projection onto the smaller budget first changes a bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from robustmix.attacks.geometry import longest, random_point, random_signs, steepest, step
from robustmix.attacks.victim import Victim
from robustmix.spec.attack import Course
from robustmix.spec.names import Norm


def ascend(
    victim: Victim, x: Tensor, courses: Sequence[Course], norm: Norm, decay: float | None = None
) -> Iterator[tuple[Course, Tensor]]:
    """FGSM, I-FGSM or MI-FGSM at several budgets.

    Args:
        victim: the model.
        x: inputs [B, ...] in [0, 1].
        courses: budgets, steps and their lengths, pixel units, each once.
        norm: of the budgets.
        decay: of the momentum (Dong et al. 2018, eq. 6); None for none.

    Yields:
        (course, adversarial inputs [B, ...]), smaller budgets first where budgets share gradients; a tensor may be
        yielded twice.
    """
    yield from _walk(victim, x, x, courses, norm, decay)


def restarted(victim: Victim, x: Tensor, course: Course, norm: Norm, restarts: int, seed: Sequence[int]) -> Tensor:
    """PGD (Madry et al. 2018): from uniformly random starts, of which each example keeps the worst."""

    def candidates() -> Iterator[Tensor]:
        for number in range(restarts):
            yield from_start(victim, x, random_point(x, norm, [*seed, number]), course, norm)

    return _worst(victim, candidates(), restarts)


def from_start(victim: Victim, x: Tensor, offset: Tensor, course: Course, norm: Norm) -> Tensor:
    """I-FGSM from another point of the ball: the offset [B, ...], in a ball of radius 1, times the budget."""
    eps = course.eps or 0
    return next(_walk(victim, x, step(x, x, offset, eps, eps, norm), [course], norm, None))[1]


def baseline(
    victim: Victim, x: Tensor, course: Course, norm: Norm, restarts: int, seed: Sequence[int], *, signs: bool
) -> Tensor:
    """No gradient at all: random signs, or uniform noise in the ball; each example keeps the worst of its draws."""
    draw = random_signs if signs else random_point
    eps = course.eps or 0
    drawn = (step(x, x, draw(x, norm, [*seed, number]), eps, eps, norm) for number in range(restarts))
    return _worst(victim, drawn, restarts)


@dataclass(frozen=True)
class _Branch:
    """The courses that have come to one point together, and the momentum with which they arrived."""

    x_adv: Tensor
    momentum: Tensor | None
    courses: list[Course]


def _walk(
    victim: Victim, x: Tensor, start: Tensor, courses: Sequence[Course], norm: Norm, decay: float | None
) -> Iterator[tuple[Course, Tensor]]:
    """All courses from one point to their ends, in step."""
    yield from ((course, start) for course in courses if course.steps == 0)
    momentum = None if decay is None else torch.zeros_like(x)
    branches, done = [_Branch(start, momentum, [course for course in courses if course.steps > 0])], 0
    while branches:
        slopes = victim.gradients([one.x_adv for one in branches])
        done += 1
        further = []
        for one, slope in zip(branches, slopes, strict=True):
            for following in _onward(one, slope, x, done, norm, decay):
                # At once, so that what has been scored need not be kept until all budgets have come to their ends.
                yield from ((course, following.x_adv) for course in following.courses if course.steps == done)
                if left := [course for course in following.courses if course.steps > done]:
                    further.append(replace(following, courses=left))
        branches = further


def _onward(branch: _Branch, slope: Tensor, x: Tensor, done: int, norm: Norm, decay: float | None) -> Iterator[_Branch]:
    """Where a branch is after its step number ``done``."""
    momentum = None
    if branch.momentum is not None and decay is not None:
        # Beyond a decay of 1 the momentum over decay^(done - 1), which has the same direction: itself it would overflow
        # after a hundred steps.
        share = max(decay, 1) ** (1 - done)
        momentum = slope = torch.add(min(decay, 1) * branch.momentum, _normalised(slope), alpha=share)
    for x_adv, together in _branches(branch.x_adv, x, steepest(slope, norm), branch.courses, done, norm):
        yield _Branch(x_adv, momentum, together)


def _branches(
    x_adv: Tensor, x: Tensor, direction: Tensor, courses: list[Course], done: int, norm: Norm
) -> Iterator[tuple[Tensor, list[Course]]]:
    """Where the courses come to by their step number ``done``, and which of them stay together."""
    # What rounding can have added to the distance that so many steps cover: every element's share of it.
    slack = done * torch.finfo(x.dtype).eps * longest(x, norm)
    ordered = sorted(courses, key=lambda course: (course.step, course.eps))
    for length, group in groupby(ordered, key=lambda course: course.step):
        *nearer, furthest = group
        ahead = step(x_adv, x, direction, furthest.eps or 0, length, norm)
        together = [furthest]
        for course in nearer:
            room = (course.eps or 0) - done * length
            if room > slack:  # out of reach of its projection, as of the larger budget's
                together.append(course)
                continue
            own = step(x_adv, x, direction, course.eps or 0, length, norm)
            if room >= -slack and torch.equal(own, ahead):
                together.append(course)
            else:
                yield own, [course]
        yield ahead, together


def _normalised(slope: Tensor) -> Tensor:
    """Divided by its mean magnitude, per example: the 1-norm but for a constant; a zero slope stays zero."""
    # Where the sum overflows, by the largest number: over infinity nothing would be left of the slope.
    mean = slope.abs().mean(dim=tuple(range(1, slope.ndim)), keepdim=True).clamp(max=torch.finfo(slope.dtype).max)
    return slope / torch.where(mean > 0, mean, 1)


def _worst(victim: Victim, candidates: Iterator[Tensor], count: int) -> Tensor:
    """Per example the candidate with the largest margin over the label; the first of equals."""
    worst = next(candidates)
    if count == 1:
        return worst
    highest = victim.margin(worst)
    for candidate in candidates:
        margin = victim.margin(candidate)
        better = margin > highest
        worst = torch.where(better.view(-1, *[1] * (worst.ndim - 1)), candidate, worst)
        highest = torch.where(better, margin, highest)
    return worst
