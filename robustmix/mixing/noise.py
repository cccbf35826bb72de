"""Gaussian noise on the inputs of a training batch."""

import numpy as np
import torch
from torch import Tensor


def add_noise(x: Tensor, std: float, rng: np.random.Generator, positions: Tensor, size: int) -> Tensor:
    """Add Gaussian noise to every pixel, the control of Zhang et al. 2018 (table 5).

    It is drawn for the whole global batch, so that a place in it gets the same noise whichever process computes it.
    Nothing is clipped: noise of mean 0 stays so.

    Args:
        x: inputs [R, ...] in [0, 1] pixel units.
        std: standard deviation, in the same units (not those of normalised inputs).
        rng: the generator of this step.
        positions: int64 [R], the place of each input in the global batch.
        size: places in the global batch.

    Returns:
        [R, ...], in the memory layout of ``x``.
    """
    noise = torch.from_numpy(rng.standard_normal((size, *x.shape[1:]), dtype=np.float32))
    return x + std * noise[positions.cpu()].to(x.device, x.dtype)
