"""From cells to one table: a row per cell and per pair of names that its weights bear."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pandas as pd

from robustmix.errors import StoreError
from robustmix.spec.attack import MINIMUM_NORM
from robustmix.stats import wilson
from robustmix.store.cells import Cell, CellIdentity
from robustmix.units import to_pixels

# What together says which attack was made, at which budget.
ATTACK_COLUMNS: Final = (
    "attack",
    "norm",
    "loss",
    "steps",
    "step_255",
    "eps_255",
    "restarts",
    "labels",
    "seed",
    "options",
    "precision",
    "impl",
    "compiled",
)
COLUMNS: Final = (
    "data",
    "source",
    "target",
    "source_method",
    "target_method",
    "source_group",
    "target_group",
    "source_seed",
    "target_seed",
    "role",
    *ATTACK_COLUMNS,
    "library",
    "n",
    "initially_correct",
    "errors",
    "error",
    "error_low",
    "error_high",
    "error_uint8",
    "top5_error",
    "clean_error",
    "success",
    "delta_max",
    "norm_median_255",
    "saturated",
    "zero_gradient",
    "batch_size",
    "forward",
    "backward",
)
ROLES: Final = ("clean", "white", "transfer")
# Only somebody else's model has it in its name: ``torchvision:resnet50``, ``net.py:make``.
FOREIGN_MARK: Final = ":"


class Bearer(Protocol):
    """What gives a name to weights: a run, or somebody else's model."""

    @property
    def name(self) -> str:
        """Under which the weights are shown."""

    @property
    def weights(self) -> str | None:
        """SHA-256 of the weights; None if there are none yet."""

    @property
    def method(self) -> str | None:
        """How its training batches were mixed; None if nobody knows."""

    @property
    def group(self) -> str:
        """The name that it shares with those that differ by the seed."""

    @property
    def seed(self) -> int | None:
        """Of its training; None if nobody knows."""


@dataclass(frozen=True)
class ForeignModel:
    """A model that was not trained by robustmix.

    Attributes:
        name: under which it was attacked.
        weights: SHA-256 of its weights.
    """

    name: str
    weights: str

    method = None
    seed = None

    @property
    def group(self) -> str:
        """Its own name: nothing is known of what it shares with others."""
        return self.name


def foreign_bearers(cells: Iterable[Cell]) -> list[ForeignModel]:
    """Somebody else's models among sources and targets, by name; weights that share one get their digest behind it."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        identity, facts = cell.identity, cell.facts
        for name, weights in ((facts.source_name, identity.source), (facts.target_name, identity.target)):
            if name and weights and FOREIGN_MARK in name:
                found.setdefault(name, set()).add(weights)
    return [
        ForeignModel(name if len(digests) == 1 else f"{name}@{weights[:8]}", weights)
        for name, digests in sorted(found.items())
        for weights in sorted(digests)
    ]


def results_table(cells: Iterable[Cell], bearers: Iterable[Bearer], *, unnamed: bool = False) -> pd.DataFrame:
    """One row per cell, with the names that its weights bear now.

    Args:
        cells: any cells; each target's clean cell on the same inputs must be among them.
        bearers: the runs and models that give names, methods and seeds to weights.
        unnamed: keep cells whose weights bear no name any more, under the first characters of their digest.

    Returns:
        A frame with `COLUMNS`; rates are fractions, lengths in units of 1/255. ``role`` is ``clean``, ``white`` or
        ``transfer``; ``success`` the share of the initially correct that is now wrong; ``error_uint8`` the error on the
        images rounded to 8 bits, NaN if none were kept; ``delta_max`` the largest perturbation as a share of the
        budget; ``forward`` and ``backward`` the passes per example of the unit that the cell was computed in. Attacks
        that look for the smallest perturbation have neither ``eps_255`` nor ``delta_max``; in the white box they have
        ``norm_median_255``, the median over all examples of the length that makes the target err: 0 where it errs
        anyway, infinite where the attack fails. ``saturated`` is the share of examples whose label the source gave a
        probability of exactly 1, ``zero_gradient`` of those whose first gradient was zero everywhere. ``library`` is
        another library that made the attack, with its version; None for our own.

    Raises:
        StoreError: a clean cell is missing.
    """
    by_weights: dict[str, list[Bearer]] = {}
    for bearer in bearers:
        if bearer.weights:
            by_weights.setdefault(bearer.weights, []).append(bearer)
    by_key = {cell.key: cell for cell in cells}
    rows = []
    for _, cell in sorted(by_key.items()):
        figures = _figures(cell, clean_cell(cell, by_key))
        sources = _bearers(cell.identity.source, by_weights, unnamed)
        targets = _bearers(cell.identity.target, by_weights, unnamed)
        rows += [{**figures, **_who("source", s), **_who("target", t)} for s in sources for t in targets]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for side in ("source", "target"):
        for column in (side, f"{side}_method", f"{side}_group"):
            table[column] = _texts(table[column])
        table[f"{side}_seed"] = table[f"{side}_seed"].astype("Int64")
    table["library"] = _texts(table["library"])
    table["role"] = pd.Categorical(table["role"], ROLES, ordered=True)
    order = [column for column in ATTACK_COLUMNS if column not in ("attack", "steps", "eps_255", "options")]
    order = ["data", "role", "source", "target", "attack", "steps", "eps_255", *order, "library", "batch_size"]
    table = table.sort_values(order, na_position="first", kind="stable")
    table["role"] = table["role"].astype(str)
    return table.reset_index(drop=True)


def attack_columns(identity: CellIdentity) -> dict[str, Any]:
    """The `ATTACK_COLUMNS` of a cell, as `robustmix.spec.titles.attack_label` reads them; a missing budget is NaN."""
    eps = math.nan if identity.eps_255 is None else identity.eps_255
    return {column: getattr(identity, column) for column in ATTACK_COLUMNS} | {"eps_255": eps}


def clean_cell(cell: Cell, by_key: Mapping[str, Cell]) -> Cell:
    """The cell of the same target on the same inputs without an attack.

    Raises:
        StoreError: it is not among the given ones.
    """
    clean = by_key.get(cell.identity.clean().key())
    if clean is None:
        raise StoreError(f"cell {cell.key[:12]} has no clean cell of its target beside it; attack again")
    return clean


def wrong(cell: Cell) -> np.ndarray:
    """Whether each example is classified wrongly, bool [N]."""
    return np.asarray(cell.rows["prediction"].to_numpy() != cell.rows["label"].to_numpy())


def smallest_norms(cell: Cell, clean: Cell) -> np.ndarray:
    """The smallest perturbations that an attack without a budget has found in the white box, float64 [N].

    Args:
        cell: under the attack.
        clean: of the same target without one.

    Returns:
        Lengths in units of 1/255: 0 where the target errs anyway, infinite where the attack fails.
    """
    lengths = cell.rows["norm"].to_numpy().astype(float) / to_pixels(1)
    return np.where(wrong(clean), 0, np.where(wrong(cell), lengths, np.inf))


def _texts(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column of texts with None where there is none."""
    return column.astype(object).where(column.notna(), None)


def _bearers(weights: str | None, by_weights: Mapping[str, list[Bearer]], unnamed: bool) -> list[Bearer | str | None]:
    if weights is None:
        return [None]
    named: list[Bearer | str | None] = list(by_weights.get(weights, []))
    return named or ([weights[:12]] if unnamed else [])


def _who(side: str, bearer: Bearer | str | None) -> dict[str, Any]:
    if bearer is None or isinstance(bearer, str):
        return {side: bearer, f"{side}_method": None, f"{side}_group": None, f"{side}_seed": None}
    return {
        side: bearer.name,
        f"{side}_method": bearer.method,
        f"{side}_group": bearer.group,
        f"{side}_seed": bearer.seed,
    }


def _figures(cell: Cell, clean: Cell) -> dict[str, Any]:
    identity, facts = cell.identity, cell.facts
    now, before = wrong(cell), wrong(clean)
    n, errors, initially_correct = len(now), int(now.sum()), int((~before).sum())
    low, high = wilson(errors, n)
    attacked = identity.source is not None
    white = identity.source == identity.target
    norm = cell.rows["norm"].to_numpy()
    rounded = cell.rows["prediction_uint8"]
    smallest = white and identity.attack in MINIMUM_NORM
    return {
        "data": facts.data,
        "role": "clean" if not attacked else "white" if white else "transfer",
        **attack_columns(identity),
        "n": n,
        "initially_correct": initially_correct,
        "errors": errors,
        "error": errors / n,
        "error_low": low,
        "error_high": high,
        "error_uint8": np.nan
        if rounded.null_count
        else float(np.mean(rounded.to_numpy() != cell.rows["label"].to_numpy())),
        "top5_error": 1 - float(np.mean(cell.rows["in_top5"].to_numpy())),
        "clean_error": float(before.mean()),
        "success": float((now & ~before).sum()) / initially_correct if attacked and initially_correct else np.nan,
        "delta_max": float(norm.max()) / to_pixels(identity.eps_255) if attacked and identity.eps_255 else np.nan,
        "norm_median_255": float(np.median(smallest_norms(cell, clean))) if smallest else np.nan,
        "saturated": over_examples(cell, [state.saturated for state in facts.batches]),
        "zero_gradient": over_examples(cell, [state.zero_gradient for state in facts.batches]),
        **{column: getattr(identity, column) for column in ("library", "batch_size")},
        "forward": facts.forward,
        "backward": facts.backward,
    }


def over_examples(cell: Cell, shares: Sequence[float]) -> float:
    """The share among all examples from those among batches, of which the last may be smaller; NaN for none."""
    size, count = cell.identity.batch_size, cell.rows.num_rows
    sizes = [min(size, count - number * size) for number in range(len(shares))]
    return float(np.average(shares, weights=sizes)) if shares else math.nan
