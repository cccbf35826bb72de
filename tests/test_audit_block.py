from pathlib import Path
from typing import Any

import pytest
from pages import make_audit
from synthetic import EVIL, INPUTS, N, add_run, identities, make_cell

from robustmix.judging import published_orderings
from robustmix.report import collect
from robustmix.report.audit_block import ORDER, VERDICT_WORDS, audit_blocks, orderings, unaudited
from robustmix.report.material import Material
from robustmix.store.audits import VERDICTS, write_audit
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace


def material(root: Path, verdicts: dict[str, Any]) -> Material:
    place = Workspace(root)
    for seed in (1, 2):
        add_run(place, f"erm{seed}", "erm", seed)
        weights = read_run(place, f"erm{seed}").weights or ""
        (identity,) = identities({"name": "fgsm", "eps": [4]}, weights, weights)
        for one in (identity, clean_identity(weights, INPUTS, 256)):
            write_cell(place.cells, make_cell(one, N))
        if f"erm{seed}" in verdicts:
            write_audit(place.audits, make_audit("its old name", weights, verdicts[f"erm{seed}"]))
    return Material.read(collect(place, "r"))


@pytest.mark.parametrize(
    ("verdict", "words", "counts"),
    [
        ("fail", "failed", "4 tests: 1 failed, 1 finding, 1 passed and 1 not run"),
        ("warn", "warning", "4 tests: 1 warning, 1 finding, 1 passed and 1 not run"),
        ("pass", "passed", "4 tests: 1 finding, 2 passed and 1 not run"),
        ("finding", "passed", "4 tests: 2 findings, 1 passed and 1 not run"),
    ],
)
def test_verdict_and_counts(tmp_path: Path, verdict: str, words: str, counts: str) -> None:
    (block,) = audit_blocks(material(tmp_path, {"erm2": verdict}))
    assert (block.target, block.verdict, block.counts) == ("erm2", words, counts)
    assert block.scope.startswith("50 images of cifar10, attacks compared at 4/255")


def test_tests_stand_by_kind(tmp_path: Path) -> None:
    (block,) = audit_blocks(material(tmp_path, {"erm1": "fail"}))
    assert [(row[0], row[1], row[2]) for row in block.table.rows] == [
        ("attack too weak", "failed", "More steps change nothing"),
        ("gradients masked", "finding", "FGSM grows with the budget"),
        ("gradients masked", "not run", "Gradient-free finds nothing new"),
        ("evaluation broken", "passed", "Budget and range are kept"),
    ]
    assert block.table.rows[0][3:] == [
        f"200 steps break 12.5 % more {EVIL}",
        "< 0.001",
        f"The attack is too weak {EVIL}.",
    ]
    assert block.table.rows[3][4] == "–"


def test_what_was_not_audited_says_how(tmp_path: Path) -> None:
    names, command = unaudited(material(tmp_path, {"erm1": "pass"})) or ([], "")
    assert names == ["erm2"]
    assert command == "robustmix audit --target erm2 --data cifar10"
    assert unaudited(material(tmp_path, {"erm1": "pass", "erm2": "warn"})) is None


def test_published_tables_are_put_to_the_same_tests() -> None:
    words, table = orderings()
    assert len(table.rows) == len(published_orderings())
    failed = sum(row[1] == "failed" for row in table.rows)
    assert failed == 1, "the slides' transfer is stronger than their white box"
    assert "1 failed" in words


def test_every_verdict_has_words() -> None:
    assert set(ORDER) == set(VERDICTS) == set(VERDICT_WORDS)
