"""``robustmix compare``: what it prints against counting, and what it refuses."""

import re
import statistics
from dataclasses import replace
from math import inf
from operator import lt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest
from synthetic import INPUTS, RUNS, N, add_run, clean_of, identities, make_cell, wrong
from tiny import run

from robustmix.cli.compare import compare
from robustmix.cli.options import Place
from robustmix.cli.tables import print_results
from robustmix.errors import SpecError, StoreError
from robustmix.stats import paired_interval
from robustmix.store.cell_files import cell_path, read_cell, read_cells, write_cell
from robustmix.store.cells import BatchState, Cell, clean_identity
from robustmix.store.results import results_table
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

OTHER = "net.py:make"
FGSM, IFGSM = {"name": "fgsm", "eps": [1, 2, 4]}, {"name": "ifgsm", "eps": [2, 4]}
DEEPFOOL = {"name": "deepfool", "norm": "linf"}


def digest(place: Workspace, name: str) -> str:
    return "c" * 64 if name == OTHER else read_run(place, name).weights or ""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """erm1 and mixup1 under the same attacks, by themselves and by erm2; a model of others that attacked itself."""
    place = Workspace(tmp_path_factory.mktemp("made"))
    for name in ("erm1", "erm2", "mixup1"):
        add_run(place, name, *RUNS[name])
    for source, target in (
        ("erm1", "erm1"),
        ("mixup1", "mixup1"),
        ("erm2", "erm1"),
        ("erm2", "mixup1"),
        (OTHER, OTHER),
    ):
        facts: dict[str, Any] = {"source_name": source, "target_name": target}
        scored = digest(place, target)
        write_cell(place.cells, make_cell(clean_identity(scored, INPUTS, 256), N, target_name=target))
        for fields in (FGSM, IFGSM, DEEPFOOL):
            for identity in identities(fields, digest(place, source), scored):
                write_cell(place.cells, make_cell(identity, N, **facts))
    (extra,) = identities({"name": "fgsm", "eps": [8]}, digest(place, "erm1"), digest(place, "erm1"))
    write_cell(place.cells, make_cell(extra, N))
    return place


def cells(place: Workspace, fields: dict[str, Any], source: str, target: str) -> list[Cell]:
    found = identities(fields, digest(place, source), digest(place, target))
    return [read_cell(cell_path(place.cells, one)) for one in found]


def printed(place: Workspace, capsys: pytest.CaptureFixture[str], *names: str, **options: Any) -> list[list[list[str]]]:
    """The words of every line, block by block."""
    compare(*names, place=Place(place.root), **options)
    blocks = capsys.readouterr().out.split("\n\n")
    return [[line.split() for line in block.splitlines()] for block in blocks]


def test_errors_are_those_of_the_cells(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    head, errors, *_ = printed(made, capsys, "erm1", "mixup1")
    assert " ".join(head[0] + head[1]).startswith("erm1 and mixup1 on 50 test examples of cifar10: these two networks")
    _, _, upper, lower, _, *rows = errors
    assert " ".join(upper) == "both there there only only"
    assert " ".join(lower) == "crafted on attack eps erm1 mixup1 right erm1 mixup1 erm1 mixup1 difference p"
    expected = []
    for source in (None, "erm2"):
        for label, fields in (("FGSM", FGSM), ("I-FGSM, 10 steps", IFGSM)):
            ones, others = (cells(made, fields, source or name, name) for name in ("erm1", "mixup1"))
            for one, other in zip(ones, others, strict=True):
                a, b = wrong(one), wrong(other)
                either = [x or y for x, y in zip(wrong(clean_of(made, one)), wrong(clean_of(made, other)), strict=True)]
                both = [i for i in range(N) if not either[i]]
                only = sum(a[i] and not b[i] for i in both), sum(b[i] and not a[i] for i in both)
                low, high = paired_interval(only[1], only[0], len(both))
                expected.append(
                    [
                        source or "itself",
                        *label.split(),
                        f"{one.identity.eps_255:g}/255",
                        *(f"{sum(errs) / N:.1%}" for errs in (a, b)),
                        str(len(both)),
                        *(f"{sum(errs[i] for i in both) / len(both):.1%}" for errs in (a, b)),
                        *map(str, only),
                        f"{100 * low:+.1f}",
                        "to",
                        f"{100 * high:+.1f}",
                        f"{binomtest(only[0], sum(only)).pvalue:.2g}",
                    ]
                )
    assert rows == expected


def test_difference_is_the_second_less_the_first(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (printed(made, capsys, *names)[1] for names in (("erm1", "mixup1"), ("mixup1", "erm1")))
    assert " ".join(one[1]).endswith("difference: mixup1 less erm1, 95 % interval in points")
    for row, swapped in zip(one[5:], other[5:], strict=True):
        low, high = float(row[-4]), float(row[-2])
        assert (-high, -low) == (float(swapped[-4]), float(swapped[-2]))
        there = [float(share.removesuffix("%")) for share in row[-8:-6]]
        assert low <= there[1] - there[0] <= high


def test_errors_are_readable_at_120_columns(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    compare("erm1", "mixup1", place=Place(made.root))
    _, errors, *_ = capsys.readouterr().out.split("\n\n")
    assert max(map(len, errors.splitlines())) <= 120


def test_smallest_breaking_budgets_are_those_of_the_cells(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, breaking, *_ = printed(made, capsys, "erm1", "mixup1")
    rows = breaking[3:]
    threats = [f"{source} {label} " for source in ("itself", "erm2") for label in ("FGSM", "I-FGSM, 10 steps")]
    assert all(" ".join(row).startswith(threat) for row, threat in zip(rows, threats, strict=True))
    ranks = []
    for name in ("erm1", "mixup1"):
        swept = cells(made, FGSM, name, name)
        errs = [wrong(clean_of(made, swept[0])), *map(wrong, swept)]
        ranks.append([next((k for k, row in enumerate(errs) if row[i]), 4) for i in range(N)])
    earlier, later = (sum(a < b for a, b in zip(*order, strict=True)) for order in (ranks, ranks[::-1]))
    (row,) = [" ".join(row) for row in rows if row[:2] == ["itself", "FGSM"]]
    p = binomtest(earlier, earlier + later).pvalue
    never = [sum(rank == 4 for rank in own) for own in ranks]
    assert row.startswith("itself FGSM 3 "), "the budget that only one was attacked with is left out"
    shares = " ".join(f"{count / N:.1%}" for count in (*never, earlier, later, N - earlier - later))
    assert f" {shares} {p:.2g} " in row


def test_smallest_perturbations_are_those_of_the_cells(
    made: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing but such an attack; what a third network crafted says nothing of the two."""
    place = Workspace(tmp_path)
    (tmp_path / "runs").symlink_to(made.root / "runs")
    lengths: list[list[float]] = []
    for name, source in (("erm1", "erm1"), ("mixup1", "mixup1"), ("erm1", "erm2"), ("mixup1", "erm2")):
        (found,) = cells(made, DEEPFOOL, source, name)
        norms = np.random.default_rng(len(lengths)).integers(1, 9, N).astype("float32") / 255
        place_of = found.rows.column_names.index("norm")
        found = replace(found, rows=found.rows.set_column(place_of, "norm", pa.array(norms)))
        for one in (found, clean_of(made, found)):
            write_cell(place.cells, one)
        anyway = wrong(clean_of(made, found))
        broken = zip(anyway, wrong(found), norms.tolist(), strict=True)
        lengths.append([0 if now else 255 * norm if then else inf for now, then, norm in broken])
    head, smallest = printed(place, capsys, "erm1", "mixup1")
    assert len(head) == 2
    *_, row = smallest
    one, other = lengths[:2]
    smaller, larger = (sum(map(lt, *order)) for order in ((one, other), (other, one)))
    differences = [b - a for a, b in zip(one, other, strict=True) if min(a, b) < inf]
    medians = [f"{median:.4g}/255" if (median := statistics.median(own)) < inf else "never" for own in (one, other)]
    shares = [f"{count / N:.1%}" for count in (smaller, larger, N - smaller - larger)]
    p, difference = binomtest(smaller, smaller + larger).pvalue, statistics.median(differences)
    assert row == ["DeepFool,", "L-infinity", *medians, *shares, f"{p:.2g}", f"{difference:+.4g}"]
    assert min(smaller, larger, N - smaller - larger) > 3
    titles = " ".join(" ".join(line) for line in smallest)
    assert "median of mixup1 less erm1 in 1/255, where it breaks one of them" in titles

    for cell in read_cells(place.cells):
        if cell.identity.source in (digest(place, "erm1"), digest(place, "mixup1")):
            cell_path(place.cells, cell.identity).unlink()
    with pytest.raises(StoreError, match="no attack has been made on both erm1 and mixup1"):
        compare("erm1", "mixup1", place=Place(tmp_path))


def test_worst_case_is_over_what_both_have_been_under(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    *_, worst = printed(made, capsys, "erm1", "mixup1")
    assert " ".join(worst[1]) == "attacks: DeepFool, L-infinity; FGSM; I-FGSM, 10 steps"
    rows = worst[4:]
    assert [row[:3] for row in rows] == [["linf", f"{eps}/255", str(n)] for eps, n in ((1, 2), (2, 4), (4, 6))]
    for column, name in ((3, "erm1"), (7, "mixup1")):
        swept = [*cells(made, FGSM, name, name)[:2], cells(made, IFGSM, name, name)[0]]
        errs = [wrong(clean_of(made, swept[0])), *map(wrong, swept)]
        assert rows[1][column] == f"{sum(map(any, zip(*errs, strict=True))) / N:.1%}", "DeepFool's are all 4/255 long"


def test_number_of_examples_is_chosen_and_what_it_leaves_out_is_said(
    made: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Workspace(tmp_path)
    for name in ("erm1", "mixup1"):
        add_run(place, name, *RUNS[name])
        weights = digest(place, name)
        for number, inputs in ((N, INPUTS), (N // 2, "f" * 64)):
            write_cell(place.cells, make_cell(clean_identity(weights, inputs, 256), number, target_name=name))
            for identity in identities(FGSM, weights, weights):
                write_cell(place.cells, make_cell(identity.model_copy(update={"inputs": inputs}), number))
    for limit, number, other in ((None, N, N // 2), (N, N, N // 2), (N // 2, N // 2, N)):
        compare("erm1", "mixup1", limit=limit, place=Place(place.root))
        said = capsys.readouterr().out
        assert said.startswith(f"erm1 and mixup1 on {number} test examples of ")
        assert f"Attacks on {other} test examples are left out: choose with --limit." in said
    for limit in (7, 0, -1):
        with pytest.raises(SpecError, match=f"--limit {limit}: both have been attacked on {N // 2}, {N} test examples"):
            compare("erm1", "mixup1", limit=limit, place=Place(place.root))
    compare("erm1", "mixup1", place=Place(made.root))
    assert "left out" not in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line(made: Workspace, tmp_path: Path) -> None:
    for names, options, kind, text in (
        (
            ("erm1", "nobody"),
            {},
            SpecError,
            "unknown run or model 'nobody'; choose from erm1, erm2, mixup1, net.py:make",
        ),
        (("erm1", "erm1"), {}, SpecError, "erm1 and erm1 have the same weights: there is nothing to compare"),
        (("erm1", "mixup1"), {"data": "digits"}, SpecError, "--data 'digits': the workspace has cells of cifar10"),
        (
            ("erm1", "erm2"),
            {},
            StoreError,
            "no attack has been made on both erm1 and erm2 with the same test examples, neither in the white box, nor "
            "with what a third network crafted; what one of the two crafted is no fair test of the other; do that "
            "with: robustmix attack --source erm1 erm2",
        ),
    ):
        with pytest.raises(kind) as error:
            compare(*names, place=Place(made.root), **options)
        assert str(error.value) == text
    with pytest.raises(SpecError, match="there is none yet"):
        compare("erm1", "mixup1", place=Place(tmp_path))


def test_models_of_others_are_compared_by_their_name(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    _, errors, *_ = printed(made, capsys, OTHER, "erm1")
    assert {row[0] for row in errors[5:]} == {"itself"}
    assert len(errors[5:]) == 5


def test_help_has_a_line_for_each_table() -> None:
    lines = [line.strip() for line in run("compare", "--help", cwd=Path()).stdout.splitlines()]
    starts = [line.removeprefix("• ") for line in lines if line.startswith("• ")]
    assert [" ".join(start.split()[:3]) for start in starts] == [
        "the errors under", "the smallest budget", "the smallest perturbation", "the worst case"
    ]  # fmt: skip


def test_a_gradient_of_zero_is_said_not_to_mean_that_nothing_was_attacked(
    made: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random starts and noise move these examples all the same."""
    found = cells(made, FGSM, "erm1", "erm1")
    state = BatchState(gap=(0.0,) * 7, saturated=0.0, zero_gradient=0.5)
    found = [replace(cell, facts=cell.facts.model_copy(update={"batches": (state,)})) for cell in found]
    print_results(results_table([*found, clean_of(made, found[0])], [read_run(made, "erm1")]))
    assert capsys.readouterr().err == (
        "warning: erm1 has a gradient of exactly zero on 50.0% of the examples: there attacks by the gradient had no "
        "direction to go\n"
    )


def test_what_an_attack_without_a_bound_does_not_break_is_said_not_to_be_robust(
    made: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cells(made, FGSM, "erm1", "erm1")[0]
    clean = clean_of(made, found)
    right = clean.rows["prediction"].to_numpy() == clean.rows["label"].to_numpy()
    broken = np.where(np.cumsum(right) % 2, clean.rows["label"].to_numpy(), -1).astype("int32")
    rows = found.rows.set_column(2, "prediction", pa.array(broken))
    identity = found.identity.model_copy(update={"attack": "deepfool", "eps_255": None, "norm": "l2", "loss": "ce"})
    cell = replace(found, identity=identity, rows=rows)
    print_results(results_table([cell, clean], [read_run(made, "erm1")]))
    share = float((broken[right] == -1).mean())
    assert f"warning: deepfool broke {share:.1%} of the examples that erm1 gets right" in capsys.readouterr().err
    whole = replace(cell, rows=found.rows.set_column(2, "prediction", pa.array(np.full(len(broken), -1, "int32"))))
    print_results(results_table([whole, clean], [read_run(made, "erm1")]))
    assert "deepfool" not in capsys.readouterr().err


def test_what_the_readme_compares_it_has_attacked_in_the_white_box() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (pair,) = re.findall(r"`robustmix compare (\w+) (\w+)`", readme)
    sources, targets = re.findall(r"^robustmix attack --source ([\w ]+) --target ([\w ]+) --eps", readme, re.M)[0]
    assert {*pair} <= {*sources.split()} & {*targets.split()}
