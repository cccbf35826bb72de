"""One name for each network of a report: a copy under another name would count as one more seed."""

from collections.abc import Iterable, Mapping

from robustmix.errors import SpecError
from robustmix.progress import say
from robustmix.report.text import join_names
from robustmix.spec.suite import Suite
from robustmix.store.cells import Cell
from robustmix.store.results import Bearer
from robustmix.store.runs import Run


def shown_names(bearers: Iterable[Bearer], cells: Iterable[Cell], suite: Suite | None = None) -> dict[str, str]:
    """The name that each network is shown under, by each of its names.

    That of a run before a model of others; what the suite's publication, then the suite itself calls it; what it was
    called when it was attacked; what begins with the run's method, so that a copy does not say another one; then the
    first.

    Args:
        bearers: runs and models, in the report's order.
        cells: that the report may show.
        suite: that is reported, if there is one.

    Raises:
        SpecError: two of the networks that a publication tells apart are one.
    """
    published = suite.published if suite else None
    design = [*published.white, published.source, *published.targets] if published else []
    asked = [*suite.source_patterns, *suite.target_patterns] if suite else []
    called = {name for cell in cells for name in (cell.facts.source_name, cell.facts.target_name)}

    def rank(bearer: Bearer) -> tuple[bool, ...]:
        run, name = bearer if isinstance(bearer, Run) else None, bearer.name
        says_method = run is not None and name.startswith(run.recipe.method)
        return run is None, name not in design, name not in asked, name not in called, not says_method

    by_weights: dict[str, list[Bearer]] = {}
    for bearer in bearers:
        # A run that has not finished has no weights yet to share.
        by_weights.setdefault(bearer.weights or bearer.name, []).append(bearer)
    shown: dict[str, str] = {}
    for same in by_weights.values():
        kept = min(same, key=rank).name
        shown |= {bearer.name: kept for bearer in same}
    if copied := [name for name in design if shown[name] != name]:
        raise SpecError(
            f"published: {copied[0]} has the weights of {shown[copied[0]]}, but stands for another network: "
            f"train {copied[0]} anew, or leave [published] out"
        )
    return shown


def say_left_out(shown: Mapping[str, str], names: Iterable[str]) -> None:
    """Say which names a report does without.

    Args:
        shown: as `shown_names` gives it.
        names: of the networks in the report.
    """
    others: dict[str, list[str]] = {kept: [] for kept in names}
    for name, kept in shown.items():
        if name != kept and kept in others:
            others[kept].append(name)
    parts = [
        f"{join_names(left_out)} {'has' if len(left_out) == 1 else 'have'} the weights of {kept}: shown once, as {kept}"
        for kept, left_out in others.items()
        if left_out
    ]
    if parts:
        say("; ".join(parts))
