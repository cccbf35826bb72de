"""Tables for a terminal, a pipe, and other programs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustmix.progress import say
from robustmix.spec.titles import attack_label
from robustmix.store.doubts import doubts
from robustmix.units import format_budget

if TYPE_CHECKING:
    import pandas as pd


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> None:
    """Print rows of text below a header in their full width: a narrow terminal folds a line, but nothing is cut.

    Args:
        header: names of the columns.
        rows: their texts.
        numeric: positions of the columns to align to the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index in numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=10_000, markup=False, highlight=False).print(table, soft_wrap=True)


def result_columns(results: "pd.DataFrame") -> dict[str, list[str]]:
    """The columns of a results table that one reads first, as texts by heading; some only where they say something."""
    rows = [{str(key): value for key, value in row.items()} for row in results.to_dict("records")]
    libraries = set(results["library"].dropna())
    spoken = {
        "data": results["data"].nunique() > 1,
        # Where two rows may else be equal: a library says its name and its version.
        "library": len(libraries) > len({library.split()[0] for library in libraries}),
        "batch size": results["batch_size"].nunique() > 1,
        "median norm": results["norm_median_255"].notna().any(),
        "rounded": results["error_uint8"].notna().any(),
    }
    found = {
        "data": [row["data"] for row in rows],
        "source": [row["source"] or "-" for row in rows],
        "target": [row["target"] for row in rows],
        "role": [row["role"] for row in rows],
        "attack": [attack_label(row, brief=True) for row in rows],
        "library": [row["library"] or "-" for row in rows],
        "batch size": [str(row["batch_size"]) for row in rows],
        "eps": [_eps(row["eps_255"]) for row in rows],
        "median norm": [format_length(row["norm_median_255"]) for row in rows],
        "error": [f"{row['error']:.1%}" for row in rows],
        "95 % Wilson": [f"{100 * row['error_low']:.1f} - {100 * row['error_high']:.1f}" for row in rows],
        "rounded": [_share(row["error_uint8"]) for row in rows],
        "clean": [f"{row['clean_error']:.1%}" for row in rows],
        "success": [_share(row["success"]) for row in rows],
        "n": [str(row["n"]) for row in rows],
        "passes": [f"{row['forward']:.4g} + {row['backward']:.4g}" for row in rows],
    }
    return {name: column for name, column in found.items() if spoken.get(name, True)}


def _eps(eps: float) -> str:
    """A budget; ``min`` for an attack that looks for the smallest perturbation."""
    if math.isnan(eps):
        return "min"
    return f"{format_budget(eps)}/255" if eps else "0"


def format_length(length: float) -> str:
    """A smallest perturbation in units of 1/255: ``12.5/255``, ``never`` for infinite, ``-`` for NaN."""
    return "-" if math.isnan(length) else "never" if math.isinf(length) else f"{format_budget(length)}/255"


def _share(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def print_results(results: "pd.DataFrame") -> None:
    """Print a results table, and warn of attacks that look weaker than they are."""
    columns = result_columns(results)
    texts = ("data", "source", "target", "role", "attack", "library")
    numeric = [index for index, name in enumerate(columns) if name not in texts]
    print_table(list(columns), list(zip(*columns.values(), strict=True)), numeric)
    for doubt in doubts(results):
        say(f"warning: {doubt}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
