"""Resizing inside a model, as one fixed linear map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resize(nn.Module):
    """Bilinear, antialiased resizing as one matrix per axis.

    The same map as torch's own, whose backward pass adds in no fixed order on a GPU, so that attacks would differ.

    Args:
        before: height and width of the images.
        after: height and width that the network was made for.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (
            F.interpolate(torch.eye(old)[None, None], (new, old), mode="bilinear", antialias=True)[0, 0]
            for old, new in zip(before, after, strict=True)
        )
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns.T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to [B, C, height, width]."""
        return (self.rows @ x @ self.columns).contiguous(memory_format=torch.channels_last)
