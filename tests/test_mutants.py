"""Wrong attacks, most of them found in published code, each caught by named checks.

A test that a wrong attack passes proves nothing: an attack that is too weak reads as a robust model.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Final

import attack_checks
import pytest
import test_losses
import torch
from torch import Tensor, nn

from robustmix.attacks import Victim, geometry, gradient, losses, victim
from robustmix.spec.attack import Course
from robustmix.spec.names import AttackName, Norm

engine = attack_checks.engine
CHECKS: Final = attack_checks.CHECKS | test_losses.CHECKS

STEP, STEEPEST, ASCEND, WALK, BRANCHES = (
    gradient.step,
    gradient.steepest,
    engine.ascend,
    gradient._walk,
    gradient._branches,
)
RESTARTED, POINT, SIGNS = engine.restarted, gradient.random_point, gradient.random_signs
GRADIENT, GRADIENTS, MARGIN, REMEMBER = Victim.gradient, Victim.gradients, Victim.margin, Victim._remember
SETTLE, EXTREMES = Victim._settle, victim.extremes
FROZEN, CRAFT, IN_ORDER = victim.frozen, engine.craft, engine._in_order

Mutant = Callable[..., object]
Courses = Sequence[Course]
Crafted = Iterator[tuple[Course, Tensor]]
MUTANTS: Final[dict[Mutant, tuple[object, str, tuple[str, ...]]]] = {}


def replaces(home: object, name: str, *checks: str) -> Callable[[Mutant], Mutant]:
    """A mutant takes the place of a function of a module, class or dict, which these checks have to notice."""

    def enter(mutant: Mutant) -> Mutant:
        MUTANTS[mutant] = (home, name, checks)
        return mutant

    return enter


# ---- the step --------------------------------------------------------------------------------------------


@replaces(gradient, "step", "linear_margin", "linear_sign_pattern", "budget", "loss_rises", "l2_budget")
def no_operation(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    return x_adv.clone()


@replaces(gradient, "step", "linear_margin", "budget", "linear_l2")
def four_for_four_255ths(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    return STEP(x_adv, x, direction, eps * 255, length * 255, norm)


@replaces(gradient, "step", "linear_margin", "budget", "linear_l2", "l2_budget", "signs")
def budget_in_normalised_units(
    x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm
) -> Tensor:
    return STEP(x_adv, x, direction, eps * 0.25, length * 0.25, norm)


@replaces(gradient, "step", "every_step_counts", "budget", "l2_budget")
def drifting_centre(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    return STEP(x_adv, x_adv, direction, eps, length, norm)


@replaces(gradient, "step", "budget", "l2_budget", "l2_projection")
def no_projection(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    return (x_adv + length * direction).clamp(0, 1)


@replaces(gradient, "step", "range", "start_is_valid")
def no_range(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    # Shifted to where there is room, stepped, and shifted back.
    return STEP(x_adv / 4 + 0.4, x / 4 + 0.4, direction, eps / 4, length / 4, norm) * 4 - 1.6


@replaces(gradient, "step", "linear_margin", "linear_sign_pattern")
def truncating(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    return (STEP(x_adv, x, direction, eps, length, norm) * 255).floor() / 255


@replaces(gradient, "step", "linear_margin", "linear_sign_pattern", "signs")
def only_upwards(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    return STEP(x_adv, x, direction.clamp(min=0), eps, length, norm)


@replaces(gradient, "step", "inputs_left_as_found")
def in_place(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    return x.copy_(STEP(x_adv, x, direction, eps, length, norm))


@replaces(gradient, "step", "l2_projection", "every_step_counts")
def always_onto_the_sphere(
    x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm
) -> Tensor:
    moved = x_adv + length * direction - x
    size = geometry.lengths(moved, norm).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))
    return (x + moved * eps / size).clamp(0, 1)


@replaces(gradient, "step", "l2_projection")
def l2_by_the_pixel(x_adv: Tensor, x: Tensor, direction: Tensor, eps: float, length: float, norm: Norm) -> Tensor:
    return STEP(x_adv, x, direction, eps, length, "linf")


# ---- the direction ---------------------------------------------------------------------------------------


@replaces(gradient, "steepest", "linear_l2")
def signs_in_l2(slope: Tensor, norm: Norm) -> Tensor:
    return slope.sign() / (slope[0].numel() ** 0.5 if norm == "l2" else 1)


@replaces(gradient, "steepest", "linear_l2", "l2_budget")
def l2_not_normalised(slope: Tensor, norm: Norm) -> Tensor:
    return slope if norm == "l2" else slope.sign()


@replaces(gradient, "steepest", "linear_l2", "batch_split")
def normalised_over_the_batch(slope: Tensor, norm: Norm) -> Tensor:
    return slope / slope.norm() if norm == "l2" else slope / slope.abs().amax()


@replaces(gradient, "steepest", "l2_tiny_gradients")
def squares_underflow(slope: Tensor, norm: Norm) -> Tensor:
    size = slope.square().sum((1, 2, 3), keepdim=True).sqrt()
    return slope / size.clamp(min=1e-12) if norm == "l2" else slope.sign()


@replaces(gradient, "steepest", "l2_tiny_gradients")
def scaled_by_the_largest_upwards(slope: Tensor, norm: Norm) -> Tensor:
    largest = slope.amax((1, 2, 3), keepdim=True)
    scaled = slope / torch.where(largest > 0, largest, 1)
    return scaled / scaled.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1) if norm == "l2" else slope.sign()


@replaces(gradient, "steepest", "l2_tiny_gradients")
def zero_over_zero(slope: Tensor, norm: Norm) -> Tensor:
    scaled = slope / slope.abs().amax((1, 2, 3), keepdim=True)
    return scaled / scaled.square().sum((1, 2, 3), keepdim=True).sqrt() if norm == "l2" else slope.sign()


# ---- the gradient ----------------------------------------------------------------------------------------


@replaces(Victim, "gradient", "linear_margin", "linear_sign_pattern", "loss_rises", "linear_l2")
def wrong_sign(self: Victim, x: Tensor) -> Tensor:
    return -GRADIENT(self, x)


@replaces(Victim, "gradient", "linear_sign_pattern", "loss_rises")
def away_from_the_predicted_label(self: Victim, x: Tensor) -> Tensor:
    self.labels = self.model(x).argmax(dim=1)
    return GRADIENT(self, x)


@replaces(Victim, "gradient", "linear_sign_pattern", "loss_rises")
def correct_examples_only(self: Victim, x: Tensor) -> Tensor:
    right = (self.model(x).argmax(dim=1) == self.labels).view(-1, *[1] * (x.ndim - 1))
    return GRADIENT(self, x) * right


@replaces(Victim, "gradient", "gradient_not_finite", "gradient_not_finite_at_any_step")
def nan_is_zero(self: Victim, x: Tensor) -> Tensor:
    slope = GRADIENT(self, x).nan_to_num(0, 0, 0)
    self.finite = torch.ones_like(self.finite)
    return slope


@replaces(Victim, "gradient", "gradient_not_finite_at_any_step", "score_not_finite")
def only_the_last_is_watched(self: Victim, x: Tensor) -> Tensor:
    self.finite = None
    return GRADIENT(self, x)


@replaces(Victim, "gradient", "what_gradients_show")
def observed_at_the_last(self: Victim, x: Tensor) -> Tensor:
    self.gap = torch.empty(0)
    return GRADIENT(self, x)


@replaces(Victim, "margin", "score_not_finite")
def scored_in_silence(self: Victim, x: Tensor) -> Tensor:
    finite = self.finite
    score = MARGIN(self, x)
    self.finite = finite
    return score


@replaces(Victim, "gradient", "gradient_not_finite_at_any_step")
def only_the_first_is_watched(self: Victim, x: Tensor) -> Tensor:
    first = self.finite
    slope = GRADIENT(self, x)
    self.finite = self.finite if first is None else first
    return slope


@replaces(Victim, "gradient", "logits_not_finite")
def only_the_slope_is_watched(self: Victim, x: Tensor) -> Tensor:
    slope = GRADIENT(self, x)
    self.finite = slope.isfinite().flatten(1).all(dim=1)
    return slope


@replaces(Victim, "gradient", "model_left_as_found")
def backward_in_place_of_grad(self: Victim, x: Tensor) -> Tensor:
    self.model.requires_grad_()
    self.model(x).sum().backward()
    return GRADIENT(self, x)


@replaces(Victim, "gradient", "linear_margin", "batch_split")
def of_the_whole_batch(self: Victim, x: Tensor) -> Tensor:
    return GRADIENT(self, x).sum(dim=0, keepdim=True).expand_as(x).clone()


@replaces(Victim, "gradient", "batch_split")
def averaged_over_the_batch(self: Victim, x: Tensor) -> Tensor:
    return GRADIENT(self, x) / len(x)


@replaces(Victim, "gradient", "passes", "passes_are_those_foreseen")
def two_passes(self: Victim, x: Tensor) -> Tensor:
    self.model(x)
    return GRADIENT(self, x)


@replaces(Victim, "check", "gradient_not_finite", "gradient_not_finite_at_any_step")
def nan_passes_in_silence(self: Victim) -> None:
    pass


@replaces(Victim, "_settle", "predicted_labels")
def labels_predicted_anew(self: Victim, logits: Tensor) -> Tensor:
    if self._labelled:
        self.labels = logits.detach().argmax(dim=1)
    assert self.labels is not None
    return self.labels


@replaces(Victim, "_remember", "what_gradients_show")
def saturated_where_sure(self: Victim, logits: Tensor, labels: Tensor, zero_gradient: Tensor) -> None:
    REMEMBER(self, logits, labels, zero_gradient)
    self.saturated = logits.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1) > 0.99


@replaces(Victim, "_remember", "what_gradients_show")
def saturated_where_any_class_is(self: Victim, logits: Tensor, labels: Tensor, zero_gradient: Tensor) -> None:
    REMEMBER(self, logits, labels, zero_gradient)
    self.saturated = (logits.softmax(dim=1) == 1).any(dim=1)


@replaces(Victim, "_remember", "what_gradients_show")
def gap_between_the_first_two(self: Victim, logits: Tensor, labels: Tensor, zero_gradient: Tensor) -> None:
    REMEMBER(self, logits, labels, zero_gradient)
    first, second = logits.topk(2, dim=1).values.unbind(1)
    self.gap = first - second


@replaces(Victim, "_remember", "what_gradients_show")
def any_gradient_is_zero(self: Victim, logits: Tensor, labels: Tensor, zero_gradient: Tensor) -> None:
    REMEMBER(self, logits, labels, torch.ones_like(zero_gradient))


@replaces(victim, "extremes", "what_gradients_show")
def small_gradients_are_zero(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = EXTREMES(x)
    return torch.where(low > -1e-6, 0, low), torch.where(high < 1e-6, 0, high)


# ---- the losses ------------------------------------------------------------------------------------------


@replaces(losses.LOSSES, "ce", "loss_values_and_slopes")
def averaged(logits: Tensor, y: Tensor) -> Tensor:
    return losses.cross_entropy(logits, y).mean().expand(len(y))


@replaces(losses.LOSSES, "logodds", "no_saturation", "scaled_logits")
def log_odds_by_way_of_probabilities(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.softmax(dim=1).gather(1, y.unsqueeze(1)).squeeze(1)
    return (1 - own).clamp(min=1e-30).log() - own.clamp(min=1e-30).log()


@replaces(losses.LOSSES, "logodds", "loss_values_and_slopes", "no_saturation", "scaled_logits")
def own_class_among_the_others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.logsumexp(dim=1) - losses._own(logits, y)


@replaces(losses.LOSSES, "margin", "loss_values_and_slopes", "no_saturation", "scaled_logits")
def margin_to_the_largest_of_all(logits: Tensor, y: Tensor) -> Tensor:
    return logits.amax(dim=1) - losses._own(logits, y)


@replaces(losses.LOSSES, "margin", "loss_values_and_slopes")
def margin_downwards(logits: Tensor, y: Tensor) -> Tensor:
    return -losses.margin(logits, y)


@replaces(losses.LOSSES, "dlr", "loss_values_and_slopes", "scale_and_shift")
def margin_by_the_name_of_dlr(logits: Tensor, y: Tensor) -> Tensor:
    return losses.margin(logits, y)


@replaces(losses.LOSSES, "dlr", "loss_values_and_slopes")
def dlr_over_the_first_two(logits: Tensor, y: Tensor) -> Tensor:
    top = logits.topk(2, dim=1).values
    return losses.margin(logits, y) / (top[:, 0] - top[:, 1] + 1e-12)


# ---- the model's state -----------------------------------------------------------------------------------


@replaces(victim, "frozen", "batch_split", "mode_does_not_matter", "model_left_as_found", "deterministic")
@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    with FROZEN(model):
        model.train()
        yield


@replaces(victim, "frozen", "mode_does_not_matter", "model_left_as_found")
@contextmanager
def as_it_comes(model: nn.Module) -> Iterator[None]:
    yield


@replaces(victim, "frozen", "model_left_as_found", "model_left_as_found_between_budgets")
@contextmanager
def left_in_eval_mode(model: nn.Module) -> Iterator[None]:
    model.eval()
    yield


@replaces(victim, "frozen", "model_left_as_found", "exception_safety")
@contextmanager
def one_flag_for_all(model: nn.Module) -> Iterator[None]:
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


@replaces(victim, "frozen", "model_left_as_found")
@contextmanager
def parameters_left_frozen(model: nn.Module) -> Iterator[None]:
    with FROZEN(model):
        yield
    model.requires_grad_(False)


@replaces(victim, "frozen", "exception_safety")
@contextmanager
def restored_on_success_only(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    yield
    for module, mode in modes.items():
        module.training = mode


# ---- the iterations --------------------------------------------------------------------------------------


def moved(victim: Victim, x_adv: Tensor, x: Tensor, course: Course, norm: Norm) -> Tensor:
    return STEP(x_adv, x, STEEPEST(victim.gradient(x_adv), norm), course.eps or 0, course.step, norm)


@replaces(engine, "ascend", "linear_margin", "steps_add_up", "budget")
def last_iterate_never_returned(
    victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None
) -> Crafted:
    for course in courses:
        x_adv, before = x, x
        for _ in range(course.steps):
            before, x_adv = x_adv, moved(victim, x_adv, x, course, norm)
        yield course, before


@replaces(engine, "ascend", "every_step_counts", "more_steps_find_more", "passes")
def first_gradient_throughout(
    victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None
) -> Crafted:
    first = STEEPEST(victim.gradient(x), norm)
    for course in courses:
        x_adv = x
        for _ in range(course.steps):
            x_adv = STEP(x_adv, x, first, course.eps or 0, course.step, norm)
        yield course, x_adv


@replaces(engine, "ascend", "sweep_is_the_attack_at_each_budget", "sharing_is_exact")
def each_budget_goes_on_from_the_last(
    victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None
) -> Crafted:
    x_adv = x
    for course in courses:
        for _ in range(course.steps):
            x_adv = moved(victim, x_adv, x, course, norm)
        yield course, x_adv


@replaces(engine, "ascend", "passes", "passes_are_those_foreseen")
def nothing_shared(victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None) -> Crafted:
    for course in courses:
        yield from ASCEND(victim, x, [course], norm, decay)


@replaces(engine, "ascend", "model_left_as_found_between_budgets")
def frozen_until_the_end(
    victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None
) -> Crafted:
    with FROZEN(victim.model):
        yield from ASCEND(victim, x, courses, norm, decay)


@replaces(engine, "ascend", "deterministic", "every_step_counts")
def random_start(victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None) -> Crafted:
    for course in courses:
        x_adv = (x + (course.eps or 0) * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(course.steps):
            x_adv = moved(victim, x_adv, x, course, norm)
        yield course, x_adv


@replaces(engine, "ascend", "steps_add_up", "every_step_counts", "momentum")
def one_step_short(victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None) -> Crafted:
    shorter = {course._replace(steps=max(1, course.steps - 1)): course for course in courses}
    for course, x_adv in ASCEND(victim, x, list(shorter), norm, decay):
        yield shorter[course], x_adv


@replaces(engine, "ascend", "linear_margin", "linear_sign_pattern", "budget")
def successes_only(victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None) -> Crafted:
    for course, x_adv in ASCEND(victim, x, courses, norm, decay):
        fooled = victim.margin(x_adv) > 0
        yield course, torch.where(fooled.view(-1, *[1] * (x.ndim - 1)), x_adv, x)


@replaces(engine, "ascend", "sharing_is_exact")
def largest_budget_first(
    victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None
) -> Crafted:
    yield from list(ASCEND(victim, x, courses, norm, decay))[::-1]


@replaces(engine, "ascend", "momentum", "momentum_over_plateau")
def momentum_forgotten(victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None) -> Crafted:
    yield from ASCEND(victim, x, courses, norm, None)


@replaces(engine, "ascend", "momentum", "no_momentum")
def decay_ignored(victim: Victim, x: Tensor, courses: Courses, norm: Norm, decay: float | None = None) -> Crafted:
    yield from ASCEND(victim, x, courses, norm, None if decay is None else 1.0)


@replaces(gradient, "_normalised", "momentum")
def gradients_as_they_are(slope: Tensor) -> Tensor:
    return slope


@replaces(gradient, "_normalised", "momentum")
def normalised_by_the_batch(slope: Tensor) -> Tensor:
    return slope / slope.abs().mean()


@replaces(gradient, "_normalised", "momentum_over_plateau")
def zero_gradient_becomes_nan(slope: Tensor) -> Tensor:
    return slope / slope.abs().mean(dim=(1, 2, 3), keepdim=True)


# ---- sharing ---------------------------------------------------------------------------------------------

Branches = Iterator[tuple[Tensor, list[Course]]]


@replaces(gradient, "_branches", "sharing_is_exact")
def shared_one_step_too_long(
    x_adv: Tensor, x: Tensor, direction: Tensor, courses: list[Course], done: int, norm: Norm
) -> Branches:
    for length, group in groupby(courses, key=lambda course: course.step):
        *nearer, furthest = group
        together = [furthest]
        for course in nearer:
            if (course.eps or 0) > (done - 1) * length:
                together.append(course)
            else:
                yield STEP(x_adv, x, direction, course.eps or 0, length, norm), [course]
        yield STEP(x_adv, x, direction, furthest.eps or 0, length, norm), together


@replaces(gradient, "_branches", "sharing_is_exact")
def shared_up_to_the_budget_without_a_look(
    x_adv: Tensor, x: Tensor, direction: Tensor, courses: list[Course], done: int, norm: Norm
) -> Branches:
    for length, group in groupby(courses, key=lambda course: course.step):
        *nearer, furthest = group
        together = [furthest]
        for course in nearer:
            if (course.eps or 0) > (done - 0.001) * length:
                together.append(course)
            else:
                yield STEP(x_adv, x, direction, course.eps or 0, length, norm), [course]
        yield STEP(x_adv, x, direction, furthest.eps or 0, length, norm), together


@replaces(gradient, "_branches", "sharing_is_exact", "sweep_is_the_attack_at_each_budget")
def steps_of_any_length_shared(
    x_adv: Tensor, x: Tensor, direction: Tensor, courses: list[Course], done: int, norm: Norm
) -> Branches:
    alike = {course._replace(step=courses[-1].step): course for course in courses}
    for reached, together in BRANCHES(x_adv, x, direction, list(alike), done, norm):
        yield reached, [alike[course] for course in together]


@replaces(gradient, "_branches", "sharing_is_exact")
def projected_onto_the_smaller_budget(
    x_adv: Tensor, x: Tensor, direction: Tensor, courses: list[Course], done: int, norm: Norm
) -> Branches:
    for length, group in groupby(courses, key=lambda course: course.step):
        members = list(group)
        yield STEP(x_adv, x, direction, members[0].eps or 0, length, norm), members


@replaces(gradient, "_branches", "passes_are_those_foreseen")
def only_the_first_is_shared(
    x_adv: Tensor, x: Tensor, direction: Tensor, courses: list[Course], done: int, norm: Norm
) -> Branches:
    for course in courses:
        yield STEP(x_adv, x, direction, course.eps or 0, course.step, norm), [course]


@replaces(gradient, "longest", "sharing_within_rounding")
def rounding_of_one_element(x: Tensor, norm: Norm) -> float:
    return 1.0


@replaces(gradient, "_onward", "sharing_is_exact")
def momentum_in_place(
    branch: gradient._Branch, slope: Tensor, x: Tensor, done: int, norm: Norm, decay: float | None
) -> Iterator[gradient._Branch]:
    if branch.momentum is not None:
        slope = branch.momentum.mul_(decay).add_(gradient._normalised(slope))
    for x_adv, together in BRANCHES(branch.x_adv, x, STEEPEST(slope, norm), branch.courses, done, norm):
        yield gradient._Branch(x_adv, branch.momentum, together)


@replaces(Victim, "gradients", "stacking")
def stacked_in_another_order(self: Victim, points: Sequence[Tensor]) -> Iterator[Tensor]:
    return GRADIENTS(self, points[::-1] if self.stack > 1 else points)


@replaces(Victim, "_settle", "stacking")
def labels_of_other_examples(self: Victim, logits: Tensor) -> Tensor:
    found = SETTLE(self, logits)
    return self.labels.repeat_interleave(len(found) // len(self.labels))


@replaces(Victim, "gradients", "stacking")
def never_stacked(self: Victim, points: Sequence[Tensor]) -> Iterator[Tensor]:
    return map(self.gradient, points)


# ---- random starts, restarts and baselines ---------------------------------------------------------------


@replaces(gradient, "random_point", "uniform_in_the_ball", "worst_restart_is_kept", "seed")
def no_start(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return torch.zeros_like(x)


@replaces(gradient, "random_point", "uniform_in_the_ball")
def half_the_ball(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return POINT(x, norm, seed) / 2


@replaces(gradient, "random_point", "uniform_in_the_ball")
def positive_half(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return POINT(x, norm, seed).abs()


@replaces(gradient, "random_point", "uniform_in_the_ball")
def on_the_surface(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    point = POINT(x, norm, seed)
    return point.sign() if norm == "linf" else point / geometry.lengths(point, norm).view(-1, 1, 1, 1)


@replaces(gradient, "random_point", "uniform_in_the_ball")
def length_uniform(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    point = POINT(x, norm, seed)
    length = geometry.lengths(point, norm).view(-1, 1, 1, 1)
    return point / length * length ** x[0].numel()


@replaces(gradient, "random_point", "uniform_in_the_ball", "seed")
def one_draw_for_the_batch(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return POINT(x[:1], norm, seed).expand_as(x)


@replaces(gradient, "random_point", "deterministic", "seed")
def global_generator(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return 2 * torch.rand_like(x) - 1


@replaces(gradient, "random_point", "seed")
def seed_ignored(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return POINT(x, norm, [0, *seed[1:]])


@replaces(gradient, "random_point", "seed")
def batch_number_ignored(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return POINT(x, norm, [seed[0], seed[-1]])


@replaces(gradient, "random_point", "worst_restart_is_kept", "more_restarts_never_find_less")
def same_start_again(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return POINT(x, norm, [*seed[:-1], 0])


@replaces(engine, "restarted", "start_is_valid")
def start_outside_the_range(
    victim: Victim, x: Tensor, course: Course, norm: Norm, restarts: int, seed: Sequence[int]
) -> Tensor:
    start = x + (course.eps or 0) * POINT(x, norm, [*seed, 0])
    return next(WALK(victim, x, start, [course], norm, None))[1]


@replaces(engine, "restarted", "more_restarts_never_find_less", "worst_restart_is_kept")
def other_starts_when_there_are_more(
    victim: Victim, x: Tensor, course: Course, norm: Norm, restarts: int, seed: Sequence[int]
) -> Tensor:
    return RESTARTED(victim, x, course, norm, restarts, [*seed, restarts])


@replaces(gradient, "_worst", "worst_restart_is_kept", "more_restarts_never_find_less")
def last_restart_kept(victim: Victim, candidates: Iterator[Tensor], count: int) -> Tensor:
    return list(candidates)[-1]


@replaces(gradient, "_worst", "worst_restart_is_kept", "more_restarts_never_find_less")
def first_restart_kept(victim: Victim, candidates: Iterator[Tensor], count: int) -> Tensor:
    return next(candidates)


@replaces(gradient, "_worst", "worst_restart_is_kept", "more_restarts_never_find_less")
def best_restart_kept(victim: Victim, candidates: Iterator[Tensor], count: int) -> Tensor:
    drawn = torch.stack(list(candidates))
    best = torch.stack([victim.margin(candidate) for candidate in drawn]).argmin(dim=0)
    return drawn[best, torch.arange(len(best))]


@replaces(gradient, "_worst", "worst_restart_is_kept", "more_restarts_never_find_less")
def one_restart_for_the_batch(victim: Victim, candidates: Iterator[Tensor], count: int) -> Tensor:
    return max(candidates, key=lambda candidate: float(victim.margin(candidate).sum()))


@replaces(gradient, "_worst", "more_restarts_never_find_less")
def last_of_equals_kept(victim: Victim, candidates: Iterator[Tensor], count: int) -> Tensor:
    worst = next(candidates)
    for candidate in candidates:
        as_bad = victim.margin(candidate) >= victim.margin(worst)
        worst = torch.where(as_bad.view(-1, 1, 1, 1), candidate, worst)
    return worst


@replaces(gradient, "_worst", "worst_restart_is_kept")
def any_restart_that_fools(victim: Victim, candidates: Iterator[Tensor], count: int) -> Tensor:
    drawn = torch.stack(list(candidates))
    fooled = torch.stack([victim.margin(candidate) > 0 for candidate in drawn]).int().argmax(dim=0)
    return drawn[fooled, torch.arange(len(fooled))]


@replaces(gradient, "_worst", "passes")
def one_restart_is_scored_too(victim: Victim, candidates: Iterator[Tensor], count: int) -> Tensor:
    drawn = torch.stack(list(candidates))
    worst = torch.stack([victim.margin(candidate) for candidate in drawn]).argmax(dim=0)
    return drawn[worst, torch.arange(len(worst))]


@replaces(gradient, "random_signs", "signs", "seed")
def all_up(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return SIGNS(x, norm, seed).abs()


@replaces(gradient, "random_signs", "signs")
def some_stay(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return POINT(x, norm, seed).round()


@replaces(gradient, "random_signs", "signs")
def l2_as_long_as_linf(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    return SIGNS(x, "linf", seed)


@replaces(gradient, "random_signs", "signs")
def one_sign_for_the_image(x: Tensor, norm: Norm, seed: Sequence[int]) -> Tensor:
    drawn = SIGNS(x, norm, seed)
    return drawn[:, :1, :1, :1].expand_as(x)


# ---- what comes out --------------------------------------------------------------------------------------


@replaces(engine, "craft", "exception_safety")
def crash_counts_as_robust(
    name: AttackName,
    victim: Victim,
    x: Tensor,
    courses: Courses,
    norm: Norm,
    restarts: int = 1,
    decay: float = 1.0,
    seed: Sequence[int] = (0,),
) -> Crafted:
    try:
        yield from CRAFT(name, victim, x, courses, norm, restarts, decay, seed)
    except RuntimeError:
        for course in courses:
            yield course, x


@replaces(engine, "craft", "predicted_labels")
def labels_of_the_random_start(
    name: AttackName,
    victim: Victim,
    x: Tensor,
    courses: Courses,
    norm: Norm,
    restarts: int = 1,
    decay: float = 1.0,
    seed: Sequence[int] = (0,),
) -> Crafted:
    for course in courses:
        if name == "pgd":
            yield course, RESTARTED(victim, x, course, norm, restarts, seed)
        else:
            yield from CRAFT(name, victim, x, [course], norm, restarts, decay, seed)


@replaces(engine, "_in_order", "sweep_is_the_attack_at_each_budget")
def budgets_sorted(crafted: Crafted, courses: Courses, victim: Victim) -> Iterator[tuple[float, Tensor]]:
    yield from IN_ORDER(crafted, sorted(courses), victim)


@replaces(engine, "_in_order", "sweep_is_the_attack_at_each_budget")
def repeats_left_out(crafted: Crafted, courses: Courses, victim: Victim) -> Iterator[tuple[float, Tensor]]:
    yield from IN_ORDER(crafted, list(dict.fromkeys(courses)), victim)


@replaces(engine, "_in_order", "sweep_is_the_attack_at_each_budget")
def as_they_are_made(crafted: Crafted, courses: Courses, victim: Victim) -> Iterator[tuple[float, Tensor]]:
    ready = dict(crafted)
    for course in courses:
        yield course.eps or 0, ready[course]


@replaces(engine, "_in_order", "sweep_is_the_attack_at_each_budget")
def one_buffer(crafted: Crafted, courses: Courses, victim: Victim) -> Iterator[tuple[float, Tensor]]:
    buffer = torch.empty(0)
    for eps, x_adv in IN_ORDER(crafted, courses, victim):
        yield eps, buffer.resize_(0).resize_(x_adv.shape).copy_(x_adv)


# ---- which check catches which ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mutant", "check"), [(mutant, check) for mutant, (*_, checks) in MUTANTS.items() for check in checks]
)
def test_wrong_attack_is_caught(mutant: Mutant, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home, name, _ = MUTANTS[mutant]
    original = home[name] if isinstance(home, dict) else getattr(home, name)
    assert list(inspect.signature(mutant).parameters) == list(inspect.signature(original).parameters)
    if isinstance(home, dict):
        monkeypatch.setitem(home, name, mutant)
    else:
        monkeypatch.setattr(home, name, mutant)
    with pytest.raises(AssertionError):
        CHECKS[check]()


def test_every_check_catches_something() -> None:
    assert set(CHECKS) == {check for *_, checks in MUTANTS.values() for check in checks}
