"""``robustmix demo``."""

from pathlib import Path

from robustmix.cli.options import Flag, Machine, Place
from robustmix.spec.suite import load_suite

MACHINE = Machine()


def demo(*, workspace: Path = Path("robustmix-demo"), quiet: Flag = False, machine: Machine = MACHINE) -> None:
    """Train two ERM and two mixup networks on embedded digits, attack and audit them, write the report: three minutes.

    Args:
        workspace: The folder that everything goes into.
        quiet: No progress, no remarks.
    """
    from robustmix.cli.run import run_suite
    from robustmix.crosscheck import crosscheck_line

    place = Place(workspace, quiet).enter()
    suite = load_suite("demo", place.root)
    run_suite(suite, "demo", place, machine, {})
    print(crosscheck_line(place, "erm1"))
