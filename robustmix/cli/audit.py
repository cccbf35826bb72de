"""``robustmix audit``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from robustmix.cli.options import Machine, Place, Several
from robustmix.errors import SpecError
from robustmix.units import echo_budget, parse_budget

if TYPE_CHECKING:
    from robustmix.store.audits import AuditRecord

DEFAULTS = Place()
MACHINE = Machine()


def audit(
    *,
    target: Annotated[list[str], Several],
    data: str | None = None,
    eps: str | None = None,
    normalize: str | None = None,
    limit: int = 500,
    batch_size: int = 256,
    machine: Machine = MACHINE,
    place: Place = DEFAULTS,
) -> int:
    """Test the attacks on networks: are they too weak, are gradients masked, is the evaluation broken?

    A robust network and a useless attack look the same in a table of errors; these tests tell them apart. Each has a
    verdict: pass, finding (worth knowing, no mistake), warn, fail, not run. Exits with 1 if one fails. What was
    attacked before is not attacked again; the record goes to results/audits, and into the reports.

    Args:
        target: Runs by name or glob, torchvision:NAME, timm:NAME, hf-hub:REPO, or FILE.py:FACTORY, which is your own
            code and is run. Name several: each is then also attacked by transfer from the others.
        data: What to attack on [default: what the runs were trained on].
        eps: The budget at which attacks are compared, in units of 1/255 [default: the middle one of the data set's].
        normalize: What a FILE.py:FACTORY expects: none, cifar10, imagenet, or MEAN/STD such as 0.5/0.5.
        limit: Attack the first N test examples only.
        batch_size: Examples per batch; halved where memory runs out.
    """
    workspace = place.enter()
    budget = None if eps is None else _budget(eps)
    from robustmix.audit import audit as audited
    from robustmix.launching import launch

    records = audited(
        target,
        workspace,
        launch(machine.device),
        data=data,
        normalize=normalize,
        eps=budget,
        limit=limit,
        batch_size=batch_size,
        data_root=machine.data_root,
    )
    print_audits(records)
    return int(any(record.verdict == "fail" for record in records))


def print_audits(records: "Sequence[AuditRecord]") -> None:
    """Print a table for each network, what the verdicts mean that are no pass, and one line over all."""
    from robustmix.cli.tables import print_table

    for record in records:
        print(
            f"audit of {record.target}: {record.n} examples of {record.data}, eps {echo_budget(record.eps_255)}: "
            f"{record.verdict}"
        )
        print_table(["verdict", "test", "measured"], [[one.verdict, one.title, one.measured] for one in record.tests])
        for meaning in dict.fromkeys(one.meaning for one in record.tests if one.verdict != "pass"):
            names = ", ".join(
                f"{one.verdict}: {one.name}" for one in record.tests if one.verdict != "pass" and one.meaning == meaning
            )
            print(f"- {names}: {meaning}")
        print()
    if records:
        print(_overall(records))


def _overall(records: "Sequence[AuditRecord]") -> str:
    """The verdict on all networks together."""
    failed = [
        f"{record.target} ({', '.join(one.name for one in record.tests if one.verdict == 'fail')})"
        for record in records
        if record.verdict == "fail"
    ]
    if failed:
        return f"audit: fail: {'; '.join(failed)}"
    warned = [record.target for record in records if record.verdict == "warn"]
    if warned:
        return f"audit: warn: {', '.join(warned)}"
    left = list(dict.fromkeys(one.name for record in records for one in record.tests if one.verdict == "not run"))
    if left:
        return f"audit: pass, {len(left)} {'test' if len(left) == 1 else 'tests'} not run ({', '.join(left)})"
    return "audit: pass"


def _budget(text: str) -> float:
    try:
        return parse_budget(text)
    except SpecError as error:
        raise SpecError(f"--eps: {error}") from None
