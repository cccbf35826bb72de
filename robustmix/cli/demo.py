"""``robustmix demo``."""

from dataclasses import replace
from pathlib import Path

from robustmix.cli.options import Machine, Place
from robustmix.spec.suite import load_suite

DEFAULTS = Place()
MACHINE = Machine()


def demo(*, machine: Machine = MACHINE, place: Place = DEFAULTS) -> None:
    """Train two ERM and two mixup networks on embedded digits, attack them, write the report: about a minute.

    Everything goes into ./robustmix-demo unless --workspace names another folder.
    """
    from robustmix.cli.run import run_suite

    workspace = replace(place, workspace=place.workspace or Path("robustmix-demo")).enter()
    suite = load_suite("demo", workspace.root)
    run_suite(suite, "demo", {}, workspace, machine)
    from robustmix.crosscheck import crosscheck_line

    print(crosscheck_line(workspace, "erm1", suite))
