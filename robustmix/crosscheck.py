"""Our attacks against those of torchattacks and foolbox on the same model and inputs, to the pixel."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import util
from typing import Final, Literal

import torch
from torch import Tensor, nn

from robustmix import attacks
from robustmix.attacks.libraries import Peer, check_installed
from robustmix.attacks.peers import craft_by_peer
from robustmix.attacks.victim import frozen
from robustmix.checkpoints import load_model
from robustmix.data import load_data
from robustmix.errors import EvaluationError, StoreError
from robustmix.store.cell_files import read_cells
from robustmix.store.cells import Cell
from robustmix.store.runs import finished_run
from robustmix.store.workspace import Workspace
from robustmix.units import echo_budget, to_pixels

PEERS: Final[tuple[Peer, ...]] = ("torchattacks", "foolbox")
OURS: Final = "robustmix"


@dataclass(frozen=True)
class Comparison:
    """One implementation of an attack beside ours.

    Attributes:
        by: whose implementation it is; ``robustmix`` for ours.
        error: share of the examples that the model gets wrong under it.
        pixels: share of the pixel values that differ from ours at all.
        predictions: share of the examples whose predictions differ.
        largest: difference between two pixel values, pixel units.
    """

    by: str
    error: float
    pixels: float
    predictions: float
    largest: float


def crosscheck(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    name: Literal["fgsm", "ifgsm"],
    eps: float,
    steps: int,
    length: float,
) -> list[Comparison]:
    """Our attack and that of each peer that is installed, in the same batches, each scored by the model itself.

    Args:
        model: maps inputs [B, ...] in [0, 1] to logits [B, K]; it is attacked in eval mode and left as found.
        batches: inputs [B, ...], float, in [0, 1], and their true labels, int64 [B].
        name: ``fgsm`` or ``ifgsm``.
        eps: budget in L-infinity, pixel units.
        steps: gradients of ``ifgsm``.
        length: of a step of ``ifgsm``, pixel units.

    Returns:
        Ours, then each peer's.

    Raises:
        SpecError: neither peer is installed, or a length is unusable.
        EvaluationError: inputs, labels, a logit or a gradient are unusable.
    """
    absent = absent_peers()
    if len(absent) == len(PEERS):
        check_installed((), PEERS)
    peers = [peer for peer in PEERS if peer not in absent]
    tallies = {by: _Tally() for by in (OURS, *peers)}
    for x, y in batches:
        ours = attacks.fgsm(model, x, y, eps) if name == "fgsm" else attacks.ifgsm(model, x, y, eps, steps, length)
        predicted = _predict(model, ours, OURS)
        tallies[OURS].add(ours, ours, predicted, predicted, y)
        for peer in peers:
            theirs = craft_by_peer(peer, name, model, x, y, eps, steps=steps, length=length, seed=(0,))
            tallies[peer].add(theirs, ours, _predict(model, theirs, peer), predicted, y)
    return [tally.shares(by) for by, tally in tallies.items()]


def absent_peers() -> list[Peer]:
    """The peers that are not installed."""
    return [peer for peer in PEERS if util.find_spec(peer) is None]


def crosscheck_line(place: Workspace, name: str) -> str:
    """One line that compares a white-box I-FGSM cell of a run, at its middle budget, with the peers.

    Of several such attacks it is one on the most examples, and of those the one with the fewest steps. The peers attack
    `robustmix.load_model` on `robustmix.load_data` in the cell's own batches.

    Args:
        place: the workspace with the run and the cell.
        name: of the run.

    Raises:
        StoreError: there is no such cell, or its examples are no longer those of the data set.
        EvaluationError: a logit or a gradient is no number.
    """
    if absent := absent_peers():
        return f"cross-check: not made, {' and '.join(absent)} not installed (pip install 'robustmix[attacks]')"
    weights = finished_run(place, name).weights
    white = [cell for cell in read_cells(place.cells) if _comparable(cell, weights)]
    if not white:
        raise StoreError(f"there is no white-box ifgsm cell of run {name!r} to check")
    cell = _middle(white)
    at = cell.identity
    eps = at.eps_255 or 0.0
    model = load_model(place.run(name))
    test = load_data(cell.facts.data_spec).test.first(cell.rows.num_rows)
    if test.digest() != at.inputs:
        raise StoreError(
            f"{cell.facts.data_spec} has other test examples than run {name!r} was attacked on: attack it again"
        )
    ours = torch.from_numpy(cell.rows["prediction"].to_numpy().copy())
    parts = [f"robustmix {int((ours != test.labels).sum())} of {len(test)} wrong"]
    for peer in PEERS:
        found = []
        step = to_pixels(at.step_255)
        for x, y in test.batches(torch.arange(len(test)).split(at.batch_size), torch.device("cpu")):
            x_adv = craft_by_peer(peer, "ifgsm", model, x, y, to_pixels(eps), steps=at.steps, length=step, seed=(0,))
            found.append(_predict(model, x_adv, peer))
        theirs = torch.cat(found)
        differing = int((theirs != ours).sum())
        parts.append(f"{peer} {int((theirs != test.labels).sum())}, other predictions on {differing}")
    return f"cross-check, I-FGSM-{at.steps} on {name} in the white box, eps {echo_budget(eps)}: {'; '.join(parts)}"


def _comparable(cell: Cell, weights: str | None) -> bool:
    """Whether a cell is a white-box one of an attack that the peers make as well."""
    at = cell.identity
    kind = (at.attack, at.norm, at.loss, at.labels, at.precision, at.impl, at.compiled)
    return at.source == at.target == weights and kind == ("ifgsm", "linf", "ce", "true", "32", OURS, False)


def _middle(white: Sequence[Cell]) -> Cell:
    """The middle budget of a suite's own attack, which an audit repeats on fewer examples and with more steps."""

    def rank(cell: Cell) -> tuple[int, int]:
        return -cell.rows.num_rows, cell.identity.steps

    ordinary = [cell for cell in white if rank(cell) == min(map(rank, white))]
    return sorted(ordinary, key=lambda cell: cell.identity.eps_255 or 0.0)[len(ordinary) // 2]


@dataclass
class _Tally:
    """What has been counted of one implementation so far."""

    examples: int = 0
    values: int = 0
    wrong: int = 0
    pixels: int = 0
    predictions: int = 0
    largest: float = 0.0

    def add(self, theirs: Tensor, ours: Tensor, predicted: Tensor, by_ours: Tensor, labels: Tensor) -> None:
        self.examples += len(labels)
        self.values += ours.numel()
        self.wrong += int((predicted != labels).sum())
        self.pixels += int((theirs != ours).sum())
        self.predictions += int((predicted != by_ours).sum())
        self.largest = max(self.largest, float((theirs - ours).abs().max()))

    def shares(self, by: str) -> Comparison:
        wrong, predictions = self.wrong / self.examples, self.predictions / self.examples
        return Comparison(by, wrong, self.pixels / self.values, predictions, self.largest)


def _predict(model: nn.Module, x: Tensor, by: str) -> Tensor:
    with frozen(model), torch.no_grad():
        logits: Tensor = model(x)
    if not logits.isfinite().all():
        raise EvaluationError(f"a logit on the images of {by} is NaN or infinite; such an output is no prediction")
    return logits.argmax(dim=1)
