"""The plan of one batch: for which rows a process needs it, and what it does to inputs, hidden states and labels."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """The plan of one batch of B examples: which example each is mixed with, and how much of itself it keeps.

    Rows of what is mixed: the B examples first, then, if there are any, partners that are none of them.

    Attributes:
        partner: int64 [B], the row of each example's partner.
        lam_x: float32 [B], share of the example in its mixed input, in [0, 1].
        lam_y: float32 [B], share of the example's label in its soft label, in [0, 1].
        boxes: int64 [B, 4] or None: top, bottom, left and right (bottom and right excluded) of the pixels that the
            partner covers; outside of them the example has the share ``lam_x``.
        layer: the stage after which is mixed; 0 is the input.
        outside: int64 [B] or None: training examples that are the partners, from outside the batch. They are the rows
            B, B + 1, ...
        labels: int64 [B] or None: labels that replace the examples' own.
        pixels: int64 [B, H * W] or None: which pixel of the same image each pixel becomes, for all channels alike.
    """

    partner: Tensor
    lam_x: Tensor
    lam_y: Tensor
    boxes: Tensor | None = None
    layer: int = 0
    outside: Tensor | None = None
    labels: Tensor | None = None
    pixels: Tensor | None = None

    def part(self, low: int, high: int) -> tuple[Tensor, "Mix"]:
        """What one process needs for the examples from ``low`` to ``high`` (excluded) of the global batch.

        Returns:
            positions: int64 [R], places in the global batch: the process's own examples first, then, unless all of
                their partners are among them, the partners, in the order of the examples. Partners from outside the
                batch have the places B, B + 1, ...
            mix: the plan for these rows.
        """
        own, partner = torch.arange(low, high), self.partner[low:high]
        here = replace(self, **{name: tensor[low:high] for name, tensor in self._tensors().items()})
        if bool(((low <= partner) & (partner < high)).all()):
            return own, replace(here, partner=partner - low)
        # A partner that is needed twice comes twice: parts of one size give hidden states of one size.
        return torch.cat([own, partner]), replace(here, partner=torch.arange(high - low) + (high - low))

    def to(self, device: torch.device) -> "Mix":
        """The plan on a device."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def _tensors(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def apply(mix: Mix | None, hidden: Tensor) -> Tensor:
    """Mix inputs or hidden states: of each example its share, of its partner the rest.

    Args:
        mix: the plan for these rows; None mixes nothing.
        hidden: [R, ...], the rows that `Mix.part` names. Where the plan has boxes or an order of pixels: [R, C, H, W].

    Returns:
        [B, ...], one row per example of the plan, in the memory layout of ``hidden``.
    """
    if mix is None:
        return hidden
    own = hidden[: len(mix.partner)]
    if mix.pixels is not None:
        order = mix.pixels.unsqueeze(1).expand(-1, own.shape[1], -1)
        return torch.empty_like(own).copy_(own.flatten(2).gather(2, order).view(own.shape))
    lam = mix.lam_x.to(hidden.dtype).view(-1, *[1] * (hidden.ndim - 1))
    if mix.boxes is not None:
        lam = lam.masked_fill(_inside(mix.boxes, own.shape[2], own.shape[3]), 0)
    return lam * own + (1 - lam) * hidden[mix.partner]


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in each example's box: bool [B, 1, H, W]."""
    top, bottom, left, right = boxes.view(-1, 4, 1, 1, 1).unbind(1)
    row = torch.arange(height, device=boxes.device).view(height, 1)
    column = torch.arange(width, device=boxes.device)
    return (top <= row) & (row < bottom) & (left <= column) & (column < right)


def soft_labels(mix: Mix | None, labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """The mixed, then smoothed one-hot labels.

    Smoothing leaves each label the share 1 - s and spreads s over all classes alike: (1 - s) y + s / K (Szegedy et al.
    2016, section 7). It is linear, so that smoothing mixed labels is mixing smoothed ones.

    Args:
        mix: the plan for these rows; None mixes nothing.
        labels: int64 [R], of the rows that `Mix.part` names.
        classes: K.
        smoothing: s, in [0, 1).

    Returns:
        float32 [B, K], one row per example of the plan; each sums to 1.
    """
    targets = F.one_hot(labels, classes).float()
    if mix is not None:
        own = targets[: len(mix.partner)] if mix.labels is None else F.one_hot(mix.labels, classes).float()
        lam = mix.lam_y.unsqueeze(1)
        targets = lam * own + (1 - lam) * targets[mix.partner]
    return (1 - smoothing) * targets + smoothing / classes if smoothing else targets


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, K] against soft labels [B, K].

    It is linear in the labels, hence equal to lambda CE(y_a) + (1 - lambda) CE(y_b) (Zhang et al. 2018).
    """
    return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def mixed_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Training accuracy's numerator: the label share of the predicted class, summed over the batch."""
    return targets.gather(1, logits.argmax(dim=1, keepdim=True)).sum()
