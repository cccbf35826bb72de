"""A results table for a paper in LaTeX."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from robustmix.cli.tables import result_columns

if TYPE_CHECKING:
    import pandas as pd

PACKAGES: Final = "% needs \\usepackage{{{}}}"
# A float runs off its page from so many rows on; a long table breaks between pages.
MOST_ROWS: Final = 40
# What LaTeX takes for an instruction, or prints as something else in its usual encoding.
ESCAPES: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # The command for it needs another encoding than the usual one.
    '"': "''",
}
PARTS: Final = {"clean": "Without an attack", "white": "White box", "transfer": "Transfer"}
# Texts, from the left; numbers are aligned to the right.
TEXTS: Final = ("source", "target", "attack")
INTERVAL: Final = "95 % Wilson"
# One part of the table each, or of no use in a paper.
LEFT_OUT: Final = ("data", "role", "n", "success", "passes")


def latex(results: "pd.DataFrame") -> str:
    """A table with booktabs' rules for each data set: no attack, white box and transfer apart, errors in per cent.

    It floats; one of more than `MOST_ROWS` rows is a ``longtable``, which breaks between pages.

    Args:
        results: as `robustmix.store.results.results_table` makes it.
    """
    groups = [(str(data), own) for data, own in results.groupby("data", sort=True)]
    packages = "booktabs,longtable" if any(len(own) > MOST_ROWS for _, own in groups) else "booktabs"
    return "\n".join([PACKAGES.format(packages), *(_table(data, own) for data, own in groups)])


def escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    safe = "".join(ESCAPES.get(character, character) for character in text)
    # Two hyphens would become a dash.
    return re.sub(r"(?<=-)-", "{}-", safe)


def _table(data: str, results: "pd.DataFrame") -> str:
    columns = {name: texts for name, texts in result_columns(results).items() if name not in LEFT_OUT}
    texts = [name for name in columns if name in TEXTS]
    sizes = " or ".join(f"{n}" for n in sorted(set(results["n"])))
    caption = [
        rf"\caption{{Errors (\%) on {escaped(data)}, {sizes} test examples, with 95\,\% Wilson intervals: they speak of"
        r" these networks, not of the methods that trained them. Budgets $\epsilon$ in units of $1/255$.}",
        rf"\label{{tab:errors-{re.sub('[^a-z0-9]+', '-', data.lower()).strip('-')}}}",
    ]
    kinds = f"{'l' * len(texts)}{'r' * (len(columns) - len(texts))}"
    head = [r"\toprule", _row([_heading(name) for name in columns])]
    parts: list[str] = []
    for role, title in PARTS.items():
        rows = _rows(columns, [place for place, of in enumerate(results["role"]) if of == role])
        if rows:
            parts += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{title}}}}} \\", *rows]
    if len(results) > MOST_ROWS:
        repeated = [*head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        opening = [rf"\begin{{longtable}}{{{kinds}}}", *caption, r"\\", *head, r"\endfirsthead", *repeated]
        return "\n".join([*opening, *parts, r"\end{longtable}"])
    opening = [r"\begin{table}", r"\centering", *caption, rf"\begin{{tabular}}{{{kinds}}}", *head]
    return "\n".join([*opening, *parts, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _heading(name: str) -> str:
    return {"eps": r"$\epsilon$", INTERVAL: r"95\,\%"}.get(name, escaped(name.capitalize()))


def _rows(columns: Mapping[str, Sequence[str]], places: Sequence[int]) -> list[str]:
    return [_row([_value(name, texts[place]) for name, texts in columns.items()]) for place in places]


def _value(name: str, text: str) -> str:
    if name in TEXTS:
        return "--" if text == "-" else escaped(text)
    if name == INTERVAL:
        low, high = text.split(" - ")
        return f"[{low}, {high}]"
    # The caption has their units.
    return "--" if text == "-" else escaped(text.removesuffix("%").removesuffix("/255"))


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
