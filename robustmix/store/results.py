"""From cells to one table: a row per cell and per pair of names that its weights bear."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pandas as pd

from robustmix.errors import StoreError
from robustmix.stats import wilson
from robustmix.store.cells import Cell
from robustmix.store.runs import Run
from robustmix.units import to_pixels

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
    "attack",
    "norm",
    "loss",
    "steps",
    "step_255",
    "eps_255",
    "restarts",
    "labels",
    "precision",
    "impl",
    "n",
    "initially_correct",
    "errors",
    "error",
    "error_low",
    "error_high",
    "top5_error",
    "clean_error",
    "success",
    "delta_max",
    "batch_size",
    "forward",
    "backward",
)

ROLES: Final = ("clean", "white", "transfer")


def results_table(cells: Iterable[Cell], runs: Iterable[Run], *, unnamed: bool = False) -> pd.DataFrame:
    """One row per cell, with the names that its weights bear now.

    Args:
        cells: any cells; each target's clean cell on the same inputs must be among them.
        runs: the runs that give names, methods and seeds to weights.
        unnamed: keep cells whose weights bear no name any more, under the first characters of their digest.

    Returns:
        A frame with `COLUMNS`; rates are fractions, lengths in units of 1/255, ``role`` is ``clean``, ``white`` or
        ``transfer``, ``delta_max`` the largest perturbation as a share of the budget, ``forward`` and ``backward`` the
        passes per example of the unit that the cell was computed in.

    Raises:
        StoreError: a clean cell is missing.
    """
    by_weights: dict[str, list[Run]] = {}
    for run in runs:
        if run.weights:
            by_weights.setdefault(run.weights, []).append(run)
    by_key = {cell.key: cell for cell in cells}
    rows = []
    for cell in by_key.values():
        figures = _figures(cell, by_key)
        sources = _bearers(cell.identity.source, by_weights, unnamed)
        targets = _bearers(cell.identity.target, by_weights, unnamed)
        rows += [{**figures, **_who("source", s), **_who("target", t)} for s in sources for t in targets]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for side in ("source", "target"):
        for column in (side, f"{side}_method", f"{side}_group"):
            table[column] = table[column].astype(object).where(table[column].notna(), None)
        table[f"{side}_seed"] = table[f"{side}_seed"].astype("Int64")
    table["role"] = pd.Categorical(table["role"], ROLES, ordered=True)
    table = table.sort_values(["data", "role", "source", "target", "attack", "steps", "eps_255"], na_position="first")
    table["role"] = table["role"].astype(str)
    return table.reset_index(drop=True)


def _bearers(weights: str | None, by_weights: dict[str, list[Run]], unnamed: bool) -> list[Run | str | None]:
    if weights is None:
        return [None]
    named: list[Run | str | None] = list(by_weights.get(weights, []))
    return named or ([weights[:12]] if unnamed else [])


def _who(side: str, bearer: Run | str | None) -> dict[str, Any]:
    if not isinstance(bearer, Run):
        return {side: bearer, f"{side}_method": None, f"{side}_group": None, f"{side}_seed": None}
    return {
        side: bearer.name,
        f"{side}_method": bearer.recipe.method,
        f"{side}_group": bearer.group,
        f"{side}_seed": bearer.recipe.seed,
    }


def _figures(cell: Cell, by_key: dict[str, Cell]) -> dict[str, Any]:
    identity = cell.identity
    clean = by_key.get(identity.clean().key())
    if clean is None:
        raise StoreError(f"cell {cell.key[:12]} has no clean cell of its target beside it; attack again")
    label, wrong = _wrong(cell)
    _, clean_wrong = _wrong(clean)
    n, errors = len(label), int(wrong.sum())
    initially_correct = int((~clean_wrong).sum())
    low, high = wilson(errors, n)
    attacked = identity.source is not None
    white = identity.source == identity.target
    norm = cell.rows["norm"].to_numpy().max()
    return {
        "data": cell.facts.data,
        "role": "clean" if not attacked else "white" if white else "transfer",
        "attack": identity.attack,
        "norm": identity.norm,
        "loss": identity.loss,
        "steps": identity.steps,
        "step_255": identity.step_255,
        "eps_255": identity.eps_255,
        "restarts": identity.restarts,
        "labels": identity.labels,
        "precision": identity.precision,
        "impl": identity.impl,
        "n": n,
        "initially_correct": initially_correct,
        "errors": errors,
        "error": errors / n,
        "error_low": low,
        "error_high": high,
        "top5_error": 1 - float(np.mean(cell.rows["in_top5"].to_numpy())),
        "clean_error": float(clean_wrong.mean()),
        "success": float((wrong & ~clean_wrong).sum()) / initially_correct
        if attacked and initially_correct
        else np.nan,
        "delta_max": float(norm) / to_pixels(identity.eps_255) if attacked else np.nan,
        "batch_size": identity.batch_size,
        "forward": cell.facts.forward,
        "backward": cell.facts.backward,
    }


def _wrong(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    label = cell.rows["label"].to_numpy()
    return label, cell.rows["prediction"].to_numpy() != label
