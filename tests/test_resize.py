import torch
import torch.nn.functional as F

from robustmix.models.resize import Resize


def test_resizing_is_torchs_own() -> None:
    for before, after in [((8, 8), (20, 12)), ((64, 48), (24, 31)), ((7, 9), (7, 18))]:
        x = torch.rand(2, 3, *before, requires_grad=True)
        ours = Resize(before, after)(x)
        theirs = F.interpolate(x, after, mode="bilinear", antialias=True)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        weight = torch.rand_like(ours)
        gradients = [torch.autograd.grad((weight * y).sum(), x)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
