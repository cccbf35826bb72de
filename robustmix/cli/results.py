"""``robustmix results``."""

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from robustmix.cli.options import Flag, Place

DEFAULTS = Place()


def results(
    *,
    format: Annotated[Literal["table", "csv", "json", "markdown", "latex"], Parameter()] = "table",
    all: Flag = False,
    place: Place = DEFAULTS,
) -> None:
    """Print the errors of all cells whose weights bear a name.

    Rounded: the error on the images as 8 bits keep them. Passes: forward + backward passes per example of the unit that
    the cell was computed in, which all budgets and targets of one source and attack share.

    Args:
        format: csv and json have every column, rates as fractions; latex is a table with booktabs for each data set.
        all: Also cells of weights that have been replaced since, under their digest.
    """
    workspace = place.enter()
    from robustmix.cli import tables
    from robustmix.store.cells import read_cells
    from robustmix.store.results import foreign_bearers, results_table
    from robustmix.store.runs import read_run, run_names

    cells = read_cells(workspace.cells)
    runs = [read_run(workspace, name) for name in run_names(workspace)]
    table = results_table(cells, [*runs, *foreign_bearers(cells)], unnamed=all)
    if format == "csv":
        table.to_csv(sys.stdout, index=False)
    elif format == "json":
        print(table.to_json(orient="records", indent=1))
    elif format == "markdown":
        columns = tables.result_columns(table)
        print(tables.markdown(list(columns), list(zip(*columns.values(), strict=True))))
    elif format == "latex":
        from robustmix.cli.latex import latex

        print(latex(table))
    else:
        tables.print_results(table)
