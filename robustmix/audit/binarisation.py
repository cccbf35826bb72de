"""The binarisation test: an adversarial example is planted, and the attack must find it.

After Zimmermann et al. 2022, "Increasing Confidence in Adversarial Robustness Evaluations": for each image a binary
readout of the network's features is fitted, for which an adversarial example within the budget exists by construction.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from robustmix.attacks import Victim, craft
from robustmix.attacks.geometry import random_point, random_signs, step
from robustmix.attacks.victim import frozen
from robustmix.spec.attack import Course

EXAMPLES: Final = 50
INNER: Final = 200
# Of the budget: beyond this radius the readout has seen nothing but the planted point.
INNER_RADIUS: Final = 0.9
# From the furthest inner point (0) to the planted one (1): where the border lies.
CLOSENESS: Final = 0.5
CONTROLS: Final = 10
# Of the random points: inner ones, corners, controls within the ball, controls at its corners.
_INNER, _PLANTED, _WITHIN, _CORNERS = range(4)


@dataclass(frozen=True)
class Binarised:
    """What the binarisation test counted.

    Attributes:
        examples: images that were tried.
        separable: images whose planted point a readout tells from the inner ones.
        easy: of these, those where random points found one as well; they say nothing about the attack.
        found: of the other separable images, those where the attack found an adversarial example.
    """

    examples: int
    separable: int
    easy: int
    found: int

    @property
    def judged(self) -> int:
        """Images that say something about the attack."""
        return self.separable - self.easy


def binarise(model: nn.Module, x: Tensor, course: Course, seed: int = 0) -> Binarised:
    """Plant an adversarial example near each image and let I-FGSM look for it.

    Args:
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: images [B, ...] in [0, 1], on the model's device.
        course: of the attack under audit, pixel units.
        seed: of the random points.
    """
    eps = course.eps or 0
    with frozen(model):
        features = Features(model, x[:1])
        readouts = [_readout(features, x, number, eps, seed) for number in range(len(x))]
        chosen = [number for number, readout in enumerate(readouts) if readout is not None]
        fitted = [readout for readout in readouts if readout is not None]
        if not fitted:
            return Binarised(len(x), 0, 0, 0)
        weights, offsets = (torch.stack(parts).to(x) for parts in zip(*fitted, strict=True))
        binary = _Binary(features, weights, offsets)
        own = x[chosen]
        victim = Victim(binary, torch.zeros(len(own), dtype=torch.int64, device=x.device), "ce", trusted=True)
        ((_, x_adv),) = craft("ifgsm", victim, own, [course], "linf")
        victim.check()
        found = _planted(binary, x_adv)
        easy = torch.zeros_like(found)
        for number in range(CONTROLS):
            within = random_point(own, "linf", [seed, _WITHIN, number])
            corner = random_signs(own, "linf", [seed, _CORNERS, number])
            for direction in (within, corner):
                easy |= _planted(binary, step(own, own, direction, eps, eps, "linf"))
    return Binarised(len(x), len(own), int(easy.sum()), int((found & ~easy).sum()))


class Features(nn.Module):
    """What a network hands to its last linear layer [B, F]; its logits if it has none on flat features.

    Args:
        model: the network.
        x: an input [1, ...], to see which layer is the last.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model = model
        self.head: nn.Linear | None = None
        hooks = [part.register_forward_pre_hook(self._see) for part in model.modules() if isinstance(part, nn.Linear)]
        with torch.no_grad():
            model(x)
        for hook in hooks:
            hook.remove()

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, ...] to features [B, F]."""
        with self._caught() as caught:
            logits: Tensor = self.model(x)
        return caught[-1] if caught else logits

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Linear) and inputs[0].ndim == 2:
            self.head = layer

    @contextmanager
    def _caught(self) -> Iterator[list[Tensor]]:
        """What the head is given."""
        caught: list[Tensor] = []
        if self.head is None:
            yield caught
            return
        hook = self.head.register_forward_pre_hook(lambda _layer, inputs: caught.append(inputs[0]))
        try:
            yield caught
        finally:
            hook.remove()


class _Binary(nn.Module):
    """The network with a binary readout for each image of a batch: class 0 inside, class 1 where the planted one is."""

    def __init__(self, features: Features, weights: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.features, self.weights, self.offsets = features, weights, offsets

    def forward(self, x: Tensor) -> Tensor:
        """Map the images [B, ...], in their order, to two logits [B, 2]."""
        score = (self.features(x) * self.weights).sum(dim=1) + self.offsets
        return torch.stack([torch.zeros_like(score), score], dim=1)


def _planted(binary: _Binary, x: Tensor) -> Tensor:
    """Whether each point is on the planted one's side, bool [B]."""
    with torch.no_grad():
        logits: Tensor = binary(x)
        return logits[:, 1] > 0


def _readout(features: Features, x: Tensor, number: int, eps: float, seed: int) -> tuple[Tensor, Tensor] | None:
    """Weights [F] and offset of a readout that tells the planted point from the inner ones; None if none does.

    The score is 0 at the border and 1 at the planted point.
    """
    one = x[number : number + 1]
    many = one.expand(INNER // 2, *one.shape[1:])
    # Within the ball and at its corners, drawn in: else the readout could tell the planted one by its length alone.
    inner = torch.cat(
        [
            step(many, many, draw(many, "linf", [seed, _INNER, number]), eps, INNER_RADIUS * eps, "linf")
            for draw in (random_point, random_signs)
        ]
    )
    planted = step(one, one, random_signs(one, "linf", [seed, _PLANTED, number]), eps, eps, "linf")
    with torch.no_grad():
        seen = features(torch.cat([inner, planted])).double().cpu().numpy()
    mean, spread = seen.mean(axis=0), seen.std(axis=0)
    alive = spread > 0
    if not alive.any():
        return None
    scaled = (seen[:, alive] - mean[alive]) / spread[alive]
    labels = np.arange(INNER + 1) == INNER
    fitted = LogisticRegression(C=100, class_weight="balanced", max_iter=1000).fit(scaled, labels)
    weights = np.zeros(len(mean))
    weights[alive] = fitted.coef_[0] / spread[alive]
    scores = seen @ weights
    furthest, most = scores[:-1].max(), scores[-1]
    if most <= furthest:
        return None
    border = furthest + CLOSENESS * (most - furthest)
    # Wide enough for cross-entropy not to saturate.
    scale = most - furthest
    return torch.from_numpy(weights / scale), torch.tensor(-border / scale)
