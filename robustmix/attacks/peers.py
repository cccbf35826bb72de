"""FGSM, I-FGSM and PGD by torchattacks and foolbox, to hold ours against."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustmix.attacks.libraries import Peer, guest, open_foolbox


def craft_by_peer(
    impl: Peer,
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    steps: int,
    length: float,
    seed: Sequence[int],
) -> Tensor:
    """FGSM, I-FGSM or PGD in L-infinity up the cross-entropy, as torchattacks or foolbox make it.

    Args:
        impl: the library.
        name: ``fgsm``, ``ifgsm`` or ``pgd``, whose start is random.
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        x: inputs [B, ...], float, in [0, 1].
        y: labels to move away from, int64 [B].
        eps: budget, pixel units.
        steps: gradients.
        length: of a step, pixel units.
        seed: of the random start.

    Returns:
        Adversarial inputs [B, ...], as x.

    Raises:
        EvaluationError: a logit or a gradient was NaN or infinite.
    """
    start = name == "pgd"
    with guest(name, model, x, seed) as (victim, _):
        attack: Any
        x_adv, y = x.detach().clone(), y.detach().clone()
        if impl == "torchattacks":
            import torchattacks

            iterated = {"alpha": length, "steps": steps, "random_start": start}
            attack = torchattacks.FGSM(victim, eps) if name == "fgsm" else torchattacks.PGD(victim, eps, **iterated)
            x_adv = attack(x_adv, y)
        else:
            attacks, wrapped = open_foolbox(victim)
            if name == "fgsm":
                attack = attacks.LinfFastGradientAttack()
            else:
                attack = attacks.LinfPGD(abs_stepsize=length, steps=steps, random_start=start)
            x_adv = attack(wrapped, x_adv, y, epsilons=eps)[1]
        return torch.empty_like(x).copy_(x_adv.detach())
