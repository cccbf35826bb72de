"""Random crops and flips, drawn per image on the CPU and made where the images are."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustmix.spec.names import Augment


def augment(images: Tensor, how: Augment, rng: np.random.Generator) -> Tensor:
    """Shift each image within a black border of an eighth of its height, and mirror half of them.

    At 32x32 this is the usual crop with a padding of 4 (Zhang et al. 2018).

    Args:
        images: [B, C, H, W] in [0, 1].
        how: ``none``, ``crop`` or ``crop-flip``.
        rng: the generator of this step.
    """
    if how == "none":
        return images
    size, _, height, width = images.shape
    pad = max(1, height // 8)
    down = rng.integers(0, 2 * pad + 1, size)[:, None] + np.arange(height)
    right = rng.integers(0, 2 * pad + 1, size)[:, None] + np.arange(width)
    if how == "crop-flip":
        right = np.where(rng.random(size)[:, None] < 0.5, right[:, ::-1], right)
    rows, columns = (torch.from_numpy(np.ascontiguousarray(index)).to(images.device) for index in (down, right))
    padded = F.pad(images, (pad, pad, pad, pad))
    each = torch.arange(size, device=images.device)[:, None, None]
    # Gathered channels-last, so the result is already in the layout that convolutions are fastest in.
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
