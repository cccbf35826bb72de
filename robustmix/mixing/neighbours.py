"""The nearest training examples of each training example, by the Euclidean distance of their pixels."""

from typing import Final

import torch
from torch import Tensor

from robustmix.errors import SpecError
from robustmix.progress import Progress

# Whole numbers up to 2^24 are exact in float32. A centred level has at most 2^7, the product of two 2^14: a sum of
# 2^10 of them is exact in whatever order it is summed, with TF32 as without, hence the same on every device.
EXACT: Final = 2**10
CENTRE: Final = 128
# Distances held at once; 8 bytes each, a few times over.
BLOCK: Final = 2**23


def nearest_neighbours(images: Tensor, labels: Tensor, k: int, same_class: bool, device: torch.device) -> Tensor:
    """The nearest training examples of each, itself excluded (Zhang et al. 2018, section 3.8, with k = 200).

    Distances are exact; of equally distant examples those of lower index come first.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        k: how many.
        same_class: among those with the same label only.
        device: to compute on.

    Returns:
        int64 [N, k] on the CPU, indices of examples, nearest first.

    Raises:
        SpecError: the images are not uint8, or there are no k others to choose from.
    """
    if images.dtype != torch.uint8:
        raise SpecError(f"nearest = {k} compares uint8 images; these inputs are {images.dtype}")
    labels = labels.cpu()
    groups = (
        [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
        if same_class
        else [torch.arange(len(labels))]
    )
    for group in groups:
        if len(group) <= k:
            what = f"class {int(labels[group[0]])}" if same_class else "the training set"
            raise SpecError(f"nearest = {k}: {what} has {len(group)} examples; choose at most {len(group) - 1}")
    nearest = torch.empty(len(labels), k, dtype=torch.int64)
    with Progress("nearest neighbours", len(labels), "images") as progress:
        for group in groups:
            flat = images[group.to(images.device)].to(device).flatten(1).float() - CENTRE
            squares = _products(flat, None)
            for rows in torch.arange(len(group)).split(max(1, BLOCK // len(group))):
                nearest[group[rows]] = group[_nearest(flat, squares, rows.to(device), k).cpu()]
                progress.advance(len(rows))
    return nearest


def _nearest(flat: Tensor, squares: Tensor, rows: Tensor, k: int) -> Tensor:
    """The k nearest of all rows of ``flat`` [N, D] to some of them: int64 [R, k]."""
    count = len(flat)
    distances = squares[rows, None] + squares - 2 * _products(flat[rows], flat)
    # Distance and index in one number: among equals topk may choose any, and does so differently on each device.
    keys = distances * count + torch.arange(count, device=flat.device)
    keys[torch.arange(len(rows), device=flat.device), rows] = torch.iinfo(torch.int64).max
    return keys.topk(k, largest=False).indices


def _products(ours: Tensor, theirs: Tensor | None) -> Tensor:
    """Inner products int64 [R, N] of whole numbers in float32, or of each row with itself [R] without ``theirs``."""
    parts = ours.split(EXACT, dim=1)
    if theirs is None:
        return torch.stack([(part * part).sum(dim=1).long() for part in parts]).sum(dim=0)
    total = torch.zeros(len(ours), len(theirs), dtype=torch.int64, device=ours.device)
    for mine, other in zip(parts, theirs.split(EXACT, dim=1), strict=True):
        total += (mine @ other.T).long()
    return total
