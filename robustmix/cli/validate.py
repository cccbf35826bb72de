"""``robustmix validate``."""

from pathlib import Path

from robustmix.cli.options import Place
from robustmix.spec.suite import load_suite

DEFAULTS = Place()


def validate(file: str, /, *, place: Place = DEFAULTS) -> None:
    """Check a suite's file and say what it asks for.

    Args:
        file: A suite's file or name.
    """
    workspace = place.enter()
    suite = load_suite(file, workspace.root)
    from robustmix.report import check_suite

    check_suite(workspace, suite, Path(file).stem)
    runs = ", ".join(suite.runs()) or "none"
    attacks = ", ".join(
        f"{spec.name} at {len(spec.eps) if spec.eps else 'the data set’s own'} budgets" for spec in suite.attack
    )
    print(f"{file}: valid; trains {runs}; attacks with {attacks}")
