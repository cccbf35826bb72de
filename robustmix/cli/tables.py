"""Tables for a terminal, a pipe, and other programs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

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


HEADER: Final = (
    "source",
    "target",
    "role",
    "attack",
    "eps",
    "error",
    "95 % Wilson",
    "clean",
    "success",
    "n",
)


def result_rows(results: "pd.DataFrame") -> list[list[str]]:
    """The columns of a results table that one reads first, as texts under `HEADER`."""
    return [
        [
            row["source"] or "-",
            row["target"],
            row["role"],
            row["attack"] if row["role"] == "clean" or row["steps"] == 1 else f"{row['attack']}-{row['steps']}",
            f"{format_budget(row['eps_255'])}/255" if row["eps_255"] else "0",
            f"{row['error']:.1%}",
            f"{100 * row['error_low']:.1f} - {100 * row['error_high']:.1f}",
            f"{row['clean_error']:.1%}",
            "-" if math.isnan(row["success"]) else f"{row['success']:.1%}",
            str(row["n"]),
        ]
        for row in results.to_dict("records")
    ]


def print_results(results: "pd.DataFrame") -> None:
    """Print a results table under `HEADER`."""
    print_table(HEADER, result_rows(results), numeric=range(4, 10))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
