"""A report in a notebook: its answer, its tables as frames, its figures."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import pandas as pd

from robustmix.report import tables
from robustmix.report.answer import answer
from robustmix.report.claims import claims
from robustmix.report.drawing import Drawing
from robustmix.report.effects import Effect, effects
from robustmix.report.headline import HeadlineTable, headline_tables
from robustmix.report.material import Material
from robustmix.report.page import INDEX
from robustmix.report.paper import figures
from robustmix.report.tables import Table
from robustmix.store import results
from robustmix.store.workspace import Workspace

# A name in the current folder could be either; with one of these it is a folder.
SEPARATORS = {os.sep, os.altsep or os.sep}


@dataclass(frozen=True)
class Report:
    """A report that was gathered; at the end of a notebook's cell it shows its answer and its headline tables.

    Attributes:
        folder: that holds it.
        material: what its page is made of.
    """

    folder: Path
    material: Material

    @cached_property
    def answer(self) -> str:
        """What was found, in one sentence."""
        return answer(self.material)

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Frames by name.

        ``results`` has a row per cell with the columns of `robustmix.evaluate`, ``effects`` a row per family, attack
        and role with the difference to ERM and its interval, ``claims`` what the sources claim; all rates are
        fractions. ``training``, ``seeds`` and the headline tables, under their titles, are texts as on the page.
        """
        material = self.material
        found = {"results": results.results_table(material.cells, [*material.runs.values(), *material.models.values()])}
        found["effects"] = pd.DataFrame([_effect(effect) for effect in effects(material)])
        found["claims"] = pd.DataFrame([asdict(claim) for claim in claims(material)])
        found["training"] = pd.DataFrame(tables.training_rows(material))
        found["seeds"] = _frame(tables.seeds_table(material))
        return found | self._headline

    @cached_property
    def figures(self) -> dict[str, Drawing]:
        """The figures of the page by the names of their PDF files; each shows itself, and has ``svg`` and ``pdf``."""
        return figures(self.material)

    @cached_property
    def _headline(self) -> dict[str, pd.DataFrame]:
        return {table.title: _headline(table) for table in headline_tables(self.material)}

    def _repr_html_(self) -> str:
        """The answer, the headline tables, and a link to the page where it has been written."""
        parts = [f"<h3>{escape(self.material.evidence.title)}</h3>", f"<p>{escape(self.answer)}</p>"]
        for title, table in self._headline.items():
            parts.append(f"<p><strong>{escape(title)}</strong></p>\n{table.to_html(index=False)}")
        page = self.folder / INDEX
        if page.is_file():
            link = quoteattr(quote(Path(os.path.relpath(page)).as_posix()))
            parts.append(f'<p><a href={link} target="_blank">The whole report</a></p>')
        return "\n".join(parts)


def open_report(report: str | Path, *, workspace: str | Path | None = None) -> Report:
    """Open a report that was written, to look at it in a notebook or to go on computing with its figures.

    Args:
        report: its name in the workspace, or its folder: a path, or a text with a separator in it.
        workspace: with ``reports/``; see `robustmix.store.workspace.Workspace.find`.

    Raises:
        StoreError: there is none, or a file is damaged.
        SpecError: a field of its ``evidence.json`` is wrong.
    """
    is_folder = isinstance(report, Path) or not SEPARATORS.isdisjoint(report)
    folder = Path(report).expanduser() if is_folder else Workspace.find(workspace).report(str(report))
    return Report(folder, Material.read(folder))


def _frame(table: Table) -> pd.DataFrame:
    return pd.DataFrame(table.rows, columns=list(table.header))


def _headline(table: HeadlineTable) -> pd.DataFrame:
    rows = [[source, *(_cell(cell) for cell in cells)] for source, cells in table.rows]
    return pd.DataFrame(rows, columns=["crafted on", *table.families])


def _cell(cell: Sequence[str] | None) -> str:
    """A mean with its range and count: ``62.3 % (61.5 to 64.2, 4 pairs)``."""
    if cell is None:
        return ""
    mean, *more = cell
    return f"{mean} ({', '.join(filter(None, more))})"


def _effect(effect: Effect) -> dict[str, Any]:
    """The fields of an effect, with the ends of its interval in place of the test that they come from."""
    found = {field.name: getattr(effect, field.name) for field in fields(effect)}
    base, family = (", ".join(names) for names in found.pop("names"))
    low, high = effect.ends or (math.nan, math.nan)
    difference = {"difference": found.pop("observed"), "low": low, "high": high}
    return found | {"base_runs": base, "family_runs": family} | difference
