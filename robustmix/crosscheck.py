"""Our attacks against those of torchattacks and foolbox on the same model and inputs, to the example."""

import warnings
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor, nn

from robustmix.checkpoints import load_model
from robustmix.data import load_data
from robustmix.errors import StoreError
from robustmix.store.cells import read_cells
from robustmix.store.runs import finished_run
from robustmix.store.workspace import Workspace
from robustmix.units import echo_budget, to_pixels


def crosscheck_line(place: Workspace, name: str) -> str:
    """One line that compares a white-box I-FGSM cell of a run, at its middle budget, with the peers.

    The peers attack `robustmix.load_model` on `robustmix.load_data` in the cell's own batches.

    Args:
        place: the workspace with the run and the cell.
        name: of the run.

    Raises:
        StoreError: there is no such cell.
    """
    if missing := [peer for peer in PEERS if find_spec(peer) is None]:
        return f"cross-check: not made, {' and '.join(missing)} not installed (pip install 'robustmix[attacks]')"
    weights = finished_run(place, name).weights
    white = [
        cell
        for cell in read_cells(place.cells)
        if cell.identity.source == cell.identity.target == weights and cell.identity.attack == "ifgsm"
    ]
    if not white:
        raise StoreError(f"there is no white-box ifgsm cell of run {name!r} to check")
    cell = sorted(white, key=lambda cell: cell.identity.eps_255)[len(white) // 2]
    at = cell.identity
    model = load_model(place.run(name))
    test = load_data(cell.facts.data_spec).test.first(cell.rows.num_rows)
    ours = torch.from_numpy(cell.rows["prediction"].to_numpy().copy())
    parts = [f"robustmix {int((ours != test.labels).sum())} of {len(test)} wrong"]
    for peer, attack in PEERS.items():
        found = []
        for indices in torch.arange(len(test)).split(at.batch_size):
            x, y = test.gather(indices, torch.device("cpu"))
            x_adv = attack(model, x, y, to_pixels(at.eps_255), to_pixels(at.step_255), at.steps)
            with torch.inference_mode():
                found.append(model(x_adv).argmax(dim=1))
        theirs = torch.cat(found)
        differing = int((theirs != ours).sum())
        parts.append(f"{peer} {int((theirs != test.labels).sum())}, other predictions on {differing}")
    budget = echo_budget(at.eps_255)
    return f"cross-check, I-FGSM-{at.steps} on {name} in the white box, eps {budget}: {'; '.join(parts)}"


def _torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int) -> Tensor:
    import torchattacks

    adversarial: Tensor = torchattacks.PGD(model, eps=eps, alpha=step, steps=steps, random_start=False)(x, y)
    return adversarial


def _foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int) -> Tensor:
    import foolbox
    from foolbox.models.pytorch import PyTorchModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        wrapped = PyTorchModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=False)
    adversarial: Tensor = attack(wrapped, x, y, epsilons=eps)[1]
    return adversarial


PEERS: Final = {"torchattacks": _torchattacks, "foolbox": _foolbox}
