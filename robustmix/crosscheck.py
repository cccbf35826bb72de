"""Our attacks against those of torchattacks and foolbox on the same model and inputs, to the example."""

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor

from robustmix.attacks import sweep
from robustmix.checkpoints import load_model
from robustmix.data import load_data
from robustmix.spec.suite import Suite
from robustmix.store.workspace import Workspace
from robustmix.units import echo_budget, to_pixels

PEERS = ("torchattacks", "foolbox")


def crosscheck_line(place: Workspace, name: str, suite: Suite) -> str:
    """One line that compares one white-box I-FGSM cell of a run with the peers that are installed.

    Args:
        place: the workspace with the run.
        name: of the run.
        suite: gives the data and the headline budget.
    """
    if missing := [peer for peer in PEERS if find_spec(peer) is None]:
        return f"cross-check: not made, {' and '.join(missing)} not installed (pip install 'robustmix[attacks]')"
    model = load_model(place.run(name))
    test = load_data(suite.data or "digits").test
    x, y = test.gather(torch.arange(len(test)), torch.device("cpu"))
    x = x.contiguous(memory_format=torch.channels_last)
    budget = suite.headline_eps or 4
    eps, steps = to_pixels(budget), 10
    results = {
        "robustmix": next(sweep("ifgsm", model, x, y, [eps], steps))[1],
        "torchattacks": _torchattacks(model, x, y, eps, steps),
        "foolbox": _foolbox(model, x, y, eps, steps),
    }
    ours = results["robustmix"]
    parts = []
    for peer, theirs in results.items():
        with torch.inference_mode():
            errors = int((model(theirs).argmax(dim=1) != y).sum())
        differing = float((theirs != ours).float().mean())
        parts.append(
            f"{peer} {errors}/{len(y)} errors" + (f", {differing:.2%} of pixels differ" if peer in PEERS else "")
        )
    return f"cross-check, I-FGSM-{steps} on {name} in the white box, eps {echo_budget(budget)}: {'; '.join(parts)}"


def _torchattacks(model: torch.nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    import torchattacks

    adversarial: Tensor = torchattacks.PGD(model, eps=eps, alpha=eps / steps, steps=steps, random_start=False)(x, y)
    return adversarial


def _foolbox(model: torch.nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    import foolbox
    from foolbox.models.pytorch import PyTorchModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        wrapped = PyTorchModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / steps, steps=steps, random_start=False)
    adversarial: Tensor = attack(wrapped, x, y, epsilons=eps)[1]
    return adversarial
