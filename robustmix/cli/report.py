"""``robustmix report``."""

from pathlib import Path

from robustmix.cli.options import Flag, Place, command_line
from robustmix.errors import SpecError
from robustmix.spec.names import check_name
from robustmix.spec.suite import known_suites, load_suite

DEFAULTS = Place()


def report(
    name: str | None = None,
    /,
    *,
    suite: str | None = None,
    data: str | None = None,
    rerender: Flag = False,
    pdf: Flag = False,
    index: Flag = False,
    place: Place = DEFAULTS,
) -> None:
    """Write reports/NAME/index.html from the workspace's cells and runs: one self-contained file.

    Args:
        name: Of the report [default: the suite's name, else the data set's].
        suite: A suite's name or file, to report what it asks for [default: the one called NAME, else all named cells].
        data: Which data set to report, where the workspace has cells of several.
        rerender: Write the page again from the cells in reports/NAME, whatever the workspace holds.
        pdf: Also write every figure as PDF, for a paper, into reports/NAME/figures.
        index: Write nothing but reports/index.html, which lists all reports of the workspace.
    """
    workspace = place.enter()
    if name is not None:
        check_name(name, "report")
    from robustmix.report import collect

    if index:
        if name or suite or data or rerender or pdf:
            raise SpecError("--index lists all reports of the workspace; it goes with no NAME and no other option")
        from robustmix.report.index import write_index

        print(f"reports: {write_index(workspace.root / 'reports')}")
        return
    if rerender:
        if name is None:
            raise SpecError("--rerender needs the NAME of a report")
        _write(workspace.report(name), pdf=pdf)
        return
    if suite is None and name in known_suites(workspace.root):
        suite = name
    wanted = load_suite(suite, workspace.root) if suite else None
    stem = Path(suite).stem if suite else None
    folder = collect(workspace, name or stem, suite=wanted, suite_name=suite, data=data, command=command_line())
    _write(folder, pdf=pdf)


def _write(folder: Path, *, pdf: bool) -> None:
    from robustmix.report import render
    from robustmix.report.paper import write_figures

    print(f"report: {render(folder)}")
    if pdf:
        paths = write_figures(folder)
        print(f"figures: {paths[0].parent} ({len(paths)} PDF files)")
