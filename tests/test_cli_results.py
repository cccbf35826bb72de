"""``robustmix results``: its formats, and what LaTeX makes of the one for papers."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import INPUTS, RUNS, N, add_run, identities, make_cell
from tiny import Call

from robustmix.cli.latex import ESCAPES, escaped, latex
from robustmix.store.cell_files import read_cells, write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.results import foreign_bearers, results_table
from robustmix.store.runs import read_run, run_names
from robustmix.store.workspace import Workspace

OTHER = "net_50%&co.py:make_{it}"
EXTRAS = ({"name": "fgsm", "eps": ["0.5/255", 4]}, {"name": "ifgsm", "eps": [4], "loss": "logodds"})


def fill(place: Workspace, data: str, inputs: str, n: int = N) -> None:
    digests = {name: read_run(place, name).weights or "" for name in run_names(place)} | {OTHER: "c" * 64}
    for target, own in digests.items():
        write_cell(place.cells, make_cell(clean_identity(own, inputs, 256), n, data, target_name=target))
        for source, crafts in digests.items():
            for fields in EXTRAS:
                for identity in identities(fields, crafts, own):
                    identity = identity.model_copy(update={"inputs": inputs})
                    write_cell(place.cells, make_cell(identity, n, data, source_name=source, target_name=target))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    place = Workspace(tmp_path_factory.mktemp("made"))
    for name in ("erm1", "mixup1"):
        add_run(place, name, *RUNS[name])
    fill(place, "cifar10", INPUTS)
    return place


def table_of(place: Workspace) -> pd.DataFrame:
    cells = read_cells(place.cells)
    return results_table(cells, [*(read_run(place, name) for name in run_names(place)), *foreign_bearers(cells)])


# ---- a reader of what LaTeX reads --------------------------------------------------------------------------

COMMANDS = {
    r"\begin", r"\end", r"\centering", r"\caption", r"\label", r"\toprule", r"\midrule", r"\bottomrule",
    r"\multicolumn", r"\emph", r"\epsilon",
}  # fmt: skip
PRINTED = {value: key for key, value in ESCAPES.items()} | {r"\,": " ", "{}": "", "~": " "}
TOKEN = re.compile(r"\\text[a-z]+\{\}|\\[a-z]+|\\.|\{\}|.", flags=re.DOTALL)


class Latex:
    """The rows of the tables of a LaTeX text, as they are printed; refuses what LaTeX would refuse."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        self.comments = [line for line in lines if line.startswith("%")]
        body = "\n".join(line for line in lines if not line.startswith("%"))
        self.columns: list[str] = []
        self.rows: list[list[str]] = []
        depth, math, stack, row, cell = 0, False, [], [], ""
        tokens = TOKEN.findall(body)
        for place, token in enumerate(tokens):
            if token in (r"\begin", r"\end"):
                name = "".join(tokens[place + 2 : tokens.index("}", place)])
                if token == r"\begin":
                    stack.append(name)
                else:
                    assert stack.pop() == name
                row, cell = [], ""
            elif token in (r"\toprule", r"\midrule", r"\bottomrule"):
                assert stack[-1] == "tabular"
                assert not row
                cell = ""
            elif token == r"\\":
                assert stack[-1] == "tabular"
                assert depth == 0
                assert not math
                self.rows.append([*row, cell.strip()])
                row, cell = [], ""
            elif token == "&":
                assert stack[-1] == "tabular"
                assert depth == 0
                row, cell = [*row, cell.strip()], ""
            elif token == "{":
                depth += 1
            elif token == "}":
                depth -= 1
                assert depth >= 0
            elif token == "$":
                math = not math
            elif token in PRINTED:
                cell += PRINTED[token]
            elif token.startswith("\\"):
                assert token in COMMANDS, token
                cell += token if token == r"\epsilon" else ""
            else:
                assert math or token not in '_^#%<>|"', token
                cell += token
        assert (depth, math, stack) == (0, False, [])
        self.columns = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", body)


# ---- tests -------------------------------------------------------------------------------------------------


def test_latex_holds_the_numbers_of_the_cells(place: Workspace) -> None:
    table = table_of(place)
    read = Latex(latex(table))
    assert read.comments == [r"% needs \usepackage{booktabs}"]
    (columns,) = read.columns
    head, *rows = read.rows
    assert head == ["Source", "Target", "Attack", r"\epsilon", "Error", "95 %", "Clean"]
    assert columns == "lll" + "r" * 4
    titles = [row for row in rows if len(row) == 1]
    assert [re.sub(r"^7l", "", title) for (title,) in titles] == ["Without an attack", "White box", "Transfer"]
    rows = [row for row in rows if len(row) > 1]
    assert len(rows) == len(table) == 3 + 9 * 3
    assert {len(row) for row in rows} == {7}
    for row, of in zip(rows, table.to_dict("records"), strict=True):
        low, high = (f"{100 * of[end]:.1f}" for end in ("error_low", "error_high"))
        assert row[:2] == [of["source"] or "--", of["target"]]
        assert row[3:] == [
            f"{of['eps_255']:g}", f"{100 * of['error']:.1f}", f"[{low}, {high}]", f"{100 * of['clean_error']:.1f}"
        ]  # fmt: skip
        assert row[2] == {"clean": "clean", "fgsm": "fgsm", "ifgsm": "ifgsm-10 loss logodds"}[of["attack"]]


def test_latex_keeps_white_box_and_transfer_apart(place: Workspace) -> None:
    text = latex(table_of(place))
    white, transfer = text.index("White box"), text.index("Transfer")
    for line in text.splitlines():
        parts = line.removesuffix(r" \\").split(" & ")
        if len(parts) > 1 and parts[0] not in ("Source", "--"):
            assert (white < text.index(line) < transfer) == (parts[0] == parts[1])


def test_many_rows_break_between_pages(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(place)
    floating = latex(table)
    monkeypatch.setattr("robustmix.cli.latex.MOST_ROWS", len(table) - 1)
    long = latex(table)
    assert "longtable" not in floating
    assert long.startswith("% needs \\usepackage{booktabs,longtable}\n\\begin{longtable}{lllrrrr}\n\\caption{")
    assert long.endswith("\n\\end{longtable}")
    assert "tabular" not in long
    assert [long.count(mark) for mark in ("\\endfirsthead", "\\endhead", "\\endfoot", "\\begin{table}")] == [1, 1, 1, 0]

    def rows(text: str) -> list[str]:
        return [line for line in text.splitlines() if " & " in line and not line.startswith("Source")]

    assert rows(long) == rows(floating)


def test_every_data_set_is_a_table_of_its_own(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add_run(place, "erm1", *RUNS["erm1"])
    fill(place, "cifar10", INPUTS)
    fill(place, "my_birds", "7" * 64, n=20)
    text = latex(table_of(place))
    assert len(Latex(text).columns) == 2
    captions = re.findall(r"\\caption\{(.*)\}", text)
    assert captions[0].startswith(rf"Errors (\%) on cifar10, {N} test examples")
    assert captions[1].startswith(r"Errors (\%) on my\_birds, 20 test examples")
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:errors-cifar10", "tab:errors-my-birds"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 50%", r"a\_b \& 50\%"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("$x^2$ #1 ~", r"\$x\textasciicircum{}2\$ \#1 \textasciitilde{}"),
        ("<a|b>", r"\textless{}a\textbar{}b\textgreater{}"),
        ("a--b---c", "a-{}-b-{}-{}-c"),
        ('say "so"', "say ''so''"),
    ],
)
def test_escapes(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_all_formats_say_the_same(place: Workspace, call: Call) -> None:
    def printed(form: str) -> str:
        done = call("results", "--format", form, cwd=place.root)
        assert done.code == 0, done.err
        return done.out

    table = table_of(place)
    assert printed("latex") == latex(table) + "\n"
    errors = [f"{100 * error:.1f}" for error in table["error"]]
    assert [f"{100 * row['error']:.1f}" for row in json.loads(printed("json"))] == errors
    frame = pd.read_csv(io.StringIO(printed("csv")))
    assert [f"{100 * error:.1f}" for error in frame["error"]] == errors
    _, _, *rows = printed("markdown").splitlines()
    assert [re.findall(r"([\d.]+)% \|", row)[0] for row in rows] == errors


def test_rows_of_other_batches_or_of_another_version_of_a_library_are_told_apart(tmp_path: Path, call: Call) -> None:
    place = Workspace(tmp_path)
    add_run(place, "erm1", *RUNS["erm1"])
    own = read_run(place, "erm1").weights or ""
    deepfool, fgsm = {"name": "deepfool"}, {"name": "fgsm", "eps": [4]}

    def add(fields: dict[str, Any], size: int, version: str | None = None) -> None:
        (identity,) = identities(fields, own, own, size)
        for one in (identity.model_copy(update={"library": version}), identity.clean()):
            write_cell(place.cells, make_cell(one, N, target_name="erm1"))

    def table(form: str = "table") -> list[list[str]]:
        done = call("results", "--format", form)
        assert done.code == 0, done.err
        return [line.split() for line in done.out.splitlines()]

    add(fgsm, 256)
    add(deepfool, 256, "foolbox 3.3.4")
    assert not {"library", "batch"} & set(table()[0])
    assert list(pd.read_csv(io.StringIO(call("results", "--format", "csv").out))["library"].dropna()) == [
        "foolbox 3.3.4"
    ]
    add(fgsm, 64)
    head, _, *rows = table()
    assert head[:7] == ["source", "target", "role", "attack", "batch", "size", "eps"]
    assert [row[3:5] for row in rows] == [["clean", size] for size in ("64", "256")] + [
        ["deepfool", "256"],
        ["fgsm", "64"],
        ["fgsm", "256"],
    ]
    add(deepfool, 256, "foolbox 3.4.0")
    head, _, *rows = table()
    assert head[:8] == ["source", "target", "role", "attack", "library", "batch", "size", "eps"]
    assert [row[3:7] for row in rows if row[3] == "deepfool"] == [
        ["deepfool", "foolbox", version, "256"] for version in ("3.3.4", "3.4.0")
    ]
    assert [row[4] for row in rows if row[3] == "fgsm"] == ["-", "-"]
    assert len({" ".join(row) for row in rows}) == len(rows) == 6
    read = Latex(call("results", "--format", "latex").out)
    assert read.rows[0][2:5] == ["Attack", "Library", "Batch size"]


def test_nothing_is_an_empty_text(tmp_path: Path, call: Call) -> None:
    done = call("results", "--format", "latex", cwd=tmp_path)
    assert (done.code, done.out) == (0, "% needs \\usepackage{booktabs}\n")
