"""A model under attack: in eval mode, its parameters frozen, and left exactly as it was found."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

import torch
from torch import Tensor, nn

from robustmix.attacks.arguments import check_logits
from robustmix.attacks.geometry import extremes
from robustmix.attacks.losses import check_loss_fits, loss_named, margin
from robustmix.errors import EvaluationError

NO_GRADIENT: Final = (
    "the model's output has no gradient with respect to its input: it runs under no_grad, detaches or rounds; make it "
    "differentiable, or attack it with square or hopskipjump"
)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode and freeze every parameter; restore each one's own flag afterwards.

    Frozen parameters keep the backward pass from computing their gradients, which an attack has no use for.
    """
    # Setting what is set already would cost a few hundredths of a small network's pass, at every gradient.
    modes = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = any(mode for _, mode in modes)
    try:
        if training:
            model.eval()
            # A train() of somebody's own need not hand the mode on.
            for module, _ in modes:
                module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def explained(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Say what to do where a pass of a model fails for one of two usual reasons.

    Args:
        model: whose pass is made within.
        x: its inputs.

    Raises:
        EvaluationError: the weights are of another type than the inputs, or the inputs are changed in place.
    """
    try:
        yield
    except RuntimeError as error:
        others = {one.dtype for one in model.parameters() if one.is_floating_point()} - {x.dtype}
        if others and "type" in str(error):
            raise EvaluationError(
                f"the model has {' and '.join(sorted(map(str, others)))} weights, the inputs are {x.dtype}: make them "
                "alike, as by model.float()"
            ) from error
        if "in-place operation" in str(error) or "inplace operation" in str(error):
            raise EvaluationError(
                "the model changes its input, or what a gradient needs, in place: let it work on a copy, as nn.ReLU "
                "does without inplace=True"
            ) from error
        raise


class Victim:
    """A model and the labels of one batch that an attack moves away from.

    What the gradients show is kept on the device, so that nothing waits for it before somebody asks.

    Args:
        model: maps inputs [B, ...] to logits [B, K].
        labels: int64 [B]; None for those that the model predicts where it is first looked at.
        loss: name of the loss to maximise.
        trusted: whether the caller keeps the model frozen and has made sure that the labels are its classes; finding
            out at every gradient would take a hundredth of a small network's passes.
        stack: points that may share a pass of the model where gradients are taken at several. Faster where batches are
            small; a result may then differ in its last bits from that of a pass of its own.

    Attributes:
        labels: int64 [B]; None as long as no gradient has been taken.
        finite: bool [B], whether every gradient so far and its logits were; None before the first.
        logits: float32 [B, K], where the first gradient was taken.
        gap: float32 [B], the label's logit minus the largest other, where the first gradient was taken.
        saturated: bool [B], whether the label's probability was exactly 1 there, in float32.
        zero_gradient: bool [B], whether the first gradient was exactly zero in every element.
    """

    def __init__(
        self, model: nn.Module, labels: Tensor | None, loss: str, *, trusted: bool = False, stack: int = 1
    ) -> None:
        self.model = model
        with torch.inference_mode(False):
            # What was made in a caller's inference mode cannot take part in a graph; a copy can.
            self.labels = labels.clone() if labels is not None and labels.is_inference() else labels
        self.trusted = trusted
        self.stack = stack
        self.finite: Tensor | None = None
        self.logits = self.gap = self.saturated = self.zero_gradient = torch.empty(0)
        self._labelled = trusted or labels is None
        self._loss = loss_named(loss)
        self._loss_name = loss

    def gradients(self, points: Sequence[Tensor]) -> Iterator[Tensor]:
        """The gradient at each of several points [B, ...], as `gradient` gives it.

        To be used before the next one is asked for, whose pass may reuse the memory of a compiled network's results.
        """
        for first in range(0, len(points), self.stack):
            together = list(points[first : first + self.stack])
            if len(together) == 1:
                yield self.gradient(together[0])
            else:
                yield from self.gradient(torch.cat(together)).clone().chunk(len(together))

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient of the summed loss with respect to the inputs [B, ...], each example's own.

        Several points of the batch may follow each other in x [k x B, ...].

        Summed, not averaged, so that it neither depends on the batch size nor underflows because of it.
        """
        with self._frozen(), torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x.detach()
            with explained(self.model, x):
                outputs = self.model(x.requires_grad_())
            logits = check_logits(outputs, "the model", len(x))
            # Half precision would saturate the loss long before float32 does.
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = self._settle(logits)
            gradient = None
            if logits.requires_grad:
                with explained(self.model, x):
                    (gradient,) = torch.autograd.grad(self._loss(logits, labels).sum(), x, allow_unused=True)
            if gradient is None:
                raise EvaluationError(NO_GRADIENT)
        self.observe(logits.detach(), labels, gradient)
        return gradient

    def observe(self, logits: Tensor, labels: Tensor, gradient: Tensor) -> None:
        """Keep what one pass showed: whether its numbers are any, and of the first how sure the model was.

        Args:
            logits: [B, K].
            labels: int64 [B].
            gradient: with respect to the inputs [B, ...].
        """
        # Not every loss passes a NaN logit on to its gradient. Minus infinity is how a model rules a class out.
        # By the extremes, which pass a NaN on: a look at each element by itself would take as long as a step.
        low, high = extremes(gradient)
        if not len(self.gap):
            self._remember(logits, labels, (low == 0) & (high == 0))
        self._note(low.isfinite() & high.isfinite() & (logits.amax(dim=1) < torch.inf))

    def observe_some(self, logits: Tensor, labels: Tensor, gradient: Tensor) -> None:
        """Keep what one pass showed of another library's attack, which looks after its numbers itself.

        Args:
            logits: [B, K].
            labels: int64 [B].
            gradient: with respect to the inputs of those examples that it follows one for [b, ...], b at most B.
        """
        low, high = extremes(gradient)
        zero = torch.zeros_like(labels, dtype=torch.bool)
        # Which examples these are does not matter to a share.
        zero[: len(gradient)] = (low == 0) & (high == 0)
        self._remember(logits, labels, zero)
        self.finite = torch.ones_like(zero)

    def margin(self, x: Tensor) -> Tensor:
        """By how much the largest other logit exceeds the label's [B], in one forward pass; above 0 where fooled."""
        with self._frozen(), torch.inference_mode(False), torch.no_grad():
            # A copy, should the model work in place; one that is trusted has been looked over.
            outputs = self.model(x if self.trusted else x.clone())
            logits = check_logits(outputs, "the model", len(x)).float()
            found = margin(logits, self._settle(logits))
        # As a comparison it would be false, and so keep or drop a start in silence.
        self._note(~found.isnan())
        return found

    def check(self) -> None:
        """Wait for the device and raise if a gradient was no number, which as a sign would be no attack at all.

        Raises:
            EvaluationError: some example's gradient or logit was NaN or infinite.
        """
        if self.finite is not None and not self.finite.all():
            bad = ~self.finite
            raise EvaluationError(not_finite(int(bad.sum()), len(bad), int(bad.int().argmax())))

    def _frozen(self) -> AbstractContextManager[None]:
        return nullcontext() if self.trusted else frozen(self.model)

    def _note(self, finite: Tensor) -> None:
        assert self.labels is not None
        finite = finite.view(-1, len(self.labels)).all(dim=0) if len(self.labels) else finite
        self.finite = finite if self.finite is None else self.finite & finite

    def _settle(self, logits: Tensor) -> Tensor:
        if self.labels is None:
            self.labels = logits.detach().argmax(dim=1)
        check_loss_fits(self._loss_name, logits.shape[1])
        if not self._labelled and len(logits):
            low, high = (int(end) for end in self.labels.aminmax())
            if not (low >= 0 and high < logits.shape[1]):
                raise EvaluationError(
                    f"labels run from {low} to {high}, but the model tells {logits.shape[1]} classes apart"
                )
            self._labelled = True
        points = len(logits) // max(len(self.labels), 1)
        return self.labels.repeat(points) if points > 1 else self.labels

    def _remember(self, logits: Tensor, labels: Tensor, zero_gradient: Tensor) -> None:
        # A copy: compiled networks may reuse the memory of their outputs.
        self.logits = logits = logits.float().clone()
        self.gap = -margin(logits, labels)
        self.saturated = logits.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1) == 1
        self.zero_gradient = zero_gradient


def not_finite(bad: int, count: int, first: int) -> str:
    """One line on some examples, of the so many of a batch, whose gradients or logits are no numbers."""
    return (
        f"the gradient or a logit of {bad} of {count} examples is NaN or infinite (first: number {first} of the "
        "batch): the loss or the model overflows there"
    )
