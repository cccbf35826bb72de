"""Tables for a terminal, a pipe, and other programs."""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

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
    """The columns of a results table that one reads first, as texts by heading; the data's only if they are several."""
    rows = results.to_dict("records")
    data = {"data": [row["data"] for row in rows]} if results["data"].nunique() > 1 else {}
    return data | {
        "source": [row["source"] or "-" for row in rows],
        "target": [row["target"] for row in rows],
        "role": [row["role"] for row in rows],
        "attack": [_attack(row) for row in rows],
        "eps": [f"{format_budget(row['eps_255'])}/255" if row["eps_255"] else "0" for row in rows],
        "error": [f"{row['error']:.1%}" for row in rows],
        "95 % Wilson": [f"{100 * row['error_low']:.1f} - {100 * row['error_high']:.1f}" for row in rows],
        "clean": [f"{row['clean_error']:.1%}" for row in rows],
        "success": ["-" if math.isnan(row["success"]) else f"{row['success']:.1%}" for row in rows],
        "n": [str(row["n"]) for row in rows],
    }


def _attack(row: dict[Hashable, Any]) -> str:
    """An attack as ``ifgsm-10``, with the length of its steps where that is not eps / steps."""
    if row["steps"] <= 1:
        return str(row["attack"])
    equal = math.isclose(row["step_255"] * row["steps"], row["eps_255"])
    return f"{row['attack']}-{row['steps']}" + ("" if equal else f" x {format_budget(row['step_255'])}/255")


def print_results(results: "pd.DataFrame") -> None:
    """Print a results table."""
    columns = result_columns(results)
    numeric = [
        index for index, name in enumerate(columns) if name not in ("data", "source", "target", "role", "attack")
    ]
    print_table(list(columns), list(zip(*columns.values(), strict=True)), numeric)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
