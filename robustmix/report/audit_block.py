"""What the audits of a report's networks found: a line each for the first screen, a table each for the block."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from robustmix.judging import published_orderings
from robustmix.report.material import Material
from robustmix.report.tables import Table
from robustmix.report.text import NONE, budget, join_names, plural, probability
from robustmix.store.audits import KINDS, AuditRecord, AuditTest, Verdict

HEADER: Final = ("Where it fails", "Verdict", "Test", "Measured", "p", "What it means")
# Worst first; what was not run is told last.
ORDER: Final[tuple[Verdict, ...]] = ("fail", "warn", "finding", "pass", "not run")
VERDICT_WORDS: Final[dict[Verdict, str]] = {
    "pass": "passed",
    "finding": "finding",
    "warn": "warning",
    "fail": "failed",
    "not run": "not run",
}
COUNTED: Final[dict[Verdict, tuple[str, str]]] = {"finding": ("finding", "findings"), "warn": ("warning", "warnings")}


@dataclass(frozen=True)
class AuditBlock:
    """The audit of one network.

    Attributes:
        target: its name now.
        id: of the block in the page.
        verdict: the worst of its tests, in words.
        counts: of the tests by verdict, in words.
        scope: what it was audited on.
        table: a row per test, by kind.
        command: that made it.
    """

    target: str
    id: str
    verdict: str
    counts: str
    scope: str
    table: Table
    command: str


def audit_blocks(material: Material) -> list[AuditBlock]:
    """The audits of the targets by the weights that bear their names now, in the order of the evidence."""
    by_weights = {record.weights: record for record in material.evidence.audits}
    found = [
        (target, by_weights[material.weights[target]])
        for target in material.evidence.targets
        if material.weights[target] in by_weights
    ]
    return [_block(target, record, number) for number, (target, record) in enumerate(found, 1)]


def unaudited(material: Material) -> tuple[list[str], str] | None:
    """The targets without an audit and the command that audits them; None if there are none."""
    audited = {record.weights for record in material.evidence.audits}
    names = [name for name in material.evidence.targets if material.weights[name] not in audited]
    command = shlex.join(["robustmix", "audit", "--target", *names, "--data", material.evidence.data])
    return (names, command) if names else None


def orderings() -> tuple[str, Table]:
    """The tests of the published tables by their signs alone: how many fail, in words, and a row per test."""
    tests = published_orderings()
    return f"{_counts(tests)}.", _table("The orderings that an audit expects, in the published tables", tests)


def _block(target: str, record: AuditRecord, number: int) -> AuditBlock:
    return AuditBlock(
        target=target,
        id=f"audit-{number}",
        verdict=VERDICT_WORDS[record.verdict],
        counts=_counts(record.tests),
        scope=f"{plural(record.n, 'image')} of {record.data}, attacks compared at {budget(record.eps_255)}, "
        f"with robustmix {record.robustmix} and torch {record.torch} on {record.device}",
        table=_table(f"Audit of {target}", record.tests),
        command=record.command,
    )


def _counts(tests: Sequence[AuditTest]) -> str:
    """How many tests there were by verdict: ``14 tests: 1 failed, 2 findings and 11 passed``."""
    count = Counter(test.verdict for test in tests)
    parts = [f"{count[verdict]} {_counted(verdict, count[verdict])}" for verdict in ORDER if count[verdict]]
    return f"{plural(len(tests), 'test')}: {join_names(parts)}"


def _counted(verdict: Verdict, count: int) -> str:
    one, several = COUNTED.get(verdict, (VERDICT_WORDS[verdict],) * 2)
    return one if count == 1 else several


def _table(caption: str, tests: Sequence[AuditTest]) -> Table:
    rows = [
        [
            test.kind,
            VERDICT_WORDS[test.verdict],
            test.title,
            test.measured,
            NONE if test.p is None else probability(test.p),
            test.meaning,
        ]
        for kind in KINDS
        for test in tests
        if test.kind == kind
    ]
    return Table(caption, HEADER, rows, texts=len(HEADER), naming=2)
