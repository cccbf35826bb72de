"""Audits: what the tests of an evaluation found, one JSON file per network and test examples."""

from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import Field, ValidationError

from robustmix.progress import say
from robustmix.spec.validation import Spec
from robustmix.store.atomic import write_text

Verdict = Literal["pass", "finding", "warn", "fail", "not run"]
Kind = Literal["attack too weak", "gradients masked", "evaluation broken"]

VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$")]


class AuditTest(Spec):
    """What one test of an evaluation found.

    Attributes:
        name: of the test.
        title: what is expected, in a few words.
        kind: what is wrong where it fails.
        verdict: ``finding`` is worth knowing and no mistake; ``not run`` says in ``meaning`` how to run it.
        measured: the numbers, in words.
        meaning: of the verdict, one sentence.
        excess: share of the examples by which the measurement lies on the wrong side; None where it is no share.
        p: one-sided, after Holm over all tests of the audit; None where nothing was left to chance.
    """

    name: Slug
    title: str
    kind: Kind
    verdict: Verdict
    measured: str
    meaning: str
    excess: float | None = None
    p: float | None = Field(default=None, ge=0, le=1)


class AuditRecord(Spec):
    """The audit of one network.

    Attributes:
        version: of this schema.
        target: the network's name, at the time.
        weights: its SHA-256.
        data: name of the data set.
        inputs: SHA-256 of the test examples in use.
        n: their number.
        eps_255: the budget at which attacks are compared, units of 1/255.
        tests: in the order in which they are shown.
        robustmix: version.
        torch: version.
        device: in words.
        command: that made it.
    """

    version: Literal[1] = 1
    target: str
    weights: Digest
    data: str
    inputs: Digest
    n: int = Field(ge=1)
    eps_255: float = Field(gt=0)
    tests: tuple[AuditTest, ...] = Field(min_length=1)
    robustmix: str
    torch: str
    device: str
    command: str

    @property
    def verdict(self) -> Verdict:
        """The worst of ``fail``, ``warn`` and ``pass``; findings and what was not run count as passed."""
        found = {test.verdict for test in self.tests}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def write_audit(folder: Path, record: AuditRecord) -> Path:
    """Write an audit atomically, in place of that of the same network, examples and budget; gives its file."""
    path = folder / f"{record.weights[:16]}-{record.inputs[:16]}-{record.eps_255!r}.json"
    write_text(path, record.model_dump_json(indent=1) + "\n")
    return path


def read_audits(folder: Path) -> list[AuditRecord]:
    """All audits of a folder, by the network's name; what cannot be read is left out with a message."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(AuditRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            say(f"warning: {path} is no audit that can be read ({type(error).__name__}); it is left out")
    return sorted(found, key=lambda record: (record.target, record.data, record.weights))
