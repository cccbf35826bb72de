"""``robustmix results``."""

import json
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from robustmix.cli.options import Flag, Place

if TYPE_CHECKING:
    import pandas as pd

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
        format: csv and json have every column, rates as fractions, and json the text "inf" where a median is infinite,
            null where nothing applies; latex is a table with booktabs for each data set.
        all: Also cells of weights that have been replaced since, under their digest.
    """
    workspace = place.enter()
    from robustmix.cli import tables
    from robustmix.store.cell_files import read_cells
    from robustmix.store.results import foreign_bearers, results_table
    from robustmix.store.runs import read_run, run_names

    cells = read_cells(workspace.cells)
    runs = [read_run(workspace, name) for name in run_names(workspace)]
    table = results_table(cells, [*runs, *foreign_bearers(cells)], unnamed=all)
    if format == "csv":
        table.to_csv(sys.stdout, index=False)
    elif format == "json":
        print(_json(table))
    elif format == "markdown":
        columns = tables.result_columns(table)
        print(tables.markdown(list(columns), list(zip(*columns.values(), strict=True))))
    elif format == "latex":
        from robustmix.cli.latex import latex

        print(latex(table))
    else:
        tables.print_results(table)


def _json(table: "pd.DataFrame") -> str:
    """The rows to the last digit; by hand, since pandas rounds to ten and writes null for infinite as well."""
    import pandas as pd

    def plain(value: Any) -> Any:
        if pd.api.types.is_scalar(value) and pd.isna(value):
            return None
        return str(value) if isinstance(value, float) and math.isinf(value) else value

    rows = [{column: plain(value) for column, value in row.items()} for row in table.to_dict("records")]
    return json.dumps(rows, indent=1, allow_nan=False)
