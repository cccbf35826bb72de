"""Published figures and what was measured beside them, with the reasons why they may differ.

At three levels. Of the same experiment, whether the published run lies where one new run is expected; of the same
design on other data or another network, only what a method changes against ERM; the rest is not comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from robustmix.comparability import Level, figure_facts, level, reasons
from robustmix.published import CERTAINTY, Figure, Source, Statistic, experiments, find, sources
from robustmix.report import beside
from robustmix.report.beside import Measured
from robustmix.report.directions import ComparedEffect, erm_beside, measured_effect, published_effect
from robustmix.report.material import Material, once
from robustmix.report.result import Result
from robustmix.report.text import NBSP, ROLES, budget, interval, method_name, plural
from robustmix.spec.titles import ATTACK_TITLES
from robustmix.stats import prediction_interval

# Published tables of clean errors that a page shows beside its own; the others repeat them or mix in other things.
CLEAN_EXPERIMENTS: Final = ("ali-clean", "zhang-fig3a", "zhang-fig3a-corrected", "zhang-table1-90", "zhang-table1-200")
# Tables that vary one thing after the other: a page shows of them what none of the above has.
ABLATIONS: Final = ("liang-table1", "liang-table1-imagenet", "zhang-table5", "zhang-corrupted")
# Tables that their own source holds against another's.
COMPARED_THERE: Final = {"ali-cifar10": "zhang-table3"}
STATISTICS: Final[dict[Statistic, str]] = {
    "last": "last epoch",
    "best-on-test": "best on test",
    "median-last-10": "median of last 10",
    "unknown": "not stated",
}
COMPARABLE: Final[tuple[Level, ...]] = ("same experiment", "same design")


@dataclass(frozen=True)
class Comparison:
    """One published figure and what was measured beside it.

    Attributes:
        role: and attack, in words.
        method: of the scored network.
        measured: (run, source or None, error, interval or which epochs it is of), as text; empty if nothing was.
        published: value in per cent, with a mark if it does not reproduce.
        certainty: a key of `robustmix.published.CERTAINTY`.
        statistic: which epoch's error it is.
        reproduces: whether it does.
        level: how far the two can be compared; None if nothing was measured.
        verdict: of the same experiment, whether the published run lies where one new run is expected; else None.
        reasons: why they may differ.
    """

    role: str
    method: str
    measured: tuple[tuple[str, str | None, str, str], ...]
    published: str
    certainty: str
    statistic: str
    reproduces: bool
    level: Level | None
    verdict: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonTable:
    """The figures of one published table.

    Attributes:
        id: of the experiment.
        title: source and place in it.
        subject: published data set and model.
        note: of the experiment.
        rows: one per figure.
        effects: one per figure of a method that ERM stands beside, here and there.
        shared: reasons that hold for every row, and stand in none of them.
        sources: keys of what it is from.
        against: who published what stands in `Comparison.measured`, and who the figures beside it, where both are
            published and nothing was measured; else None.
    """

    id: str
    title: str
    subject: str
    note: str
    rows: tuple[Comparison, ...]
    effects: tuple[ComparedEffect, ...]
    shared: tuple[str, ...]
    sources: tuple[str, ...]
    against: tuple[str, str] | None = None

    @property
    def comparable(self) -> bool:
        """Whether any of its figures can be compared with a measured one, be it in direction only."""
        return any(row.level in COMPARABLE for row in self.rows)


@once
def comparison_tables(material: Material) -> tuple[ComparisonTable, ...]:
    """The published designs of the suite, clean errors, and last what one source held against another, side by side."""
    suite = material.evidence.suite
    names = suite.published.experiments if suite and suite.published else ()
    found = [_table(name, _adversarial(name, material), material) for name in names]
    found += [_table(name, _clean(name, material), material) for name in (*CLEAN_EXPERIMENTS, *ABLATIONS)]
    found += [_of_figures(name, COMPARED_THERE[name]) for name in names if name in COMPARED_THERE]
    return tuple(table for table in found if table.rows)


def cited(tables: Sequence[ComparisonTable]) -> list[Source]:
    """The sources of the figures that the page shows."""
    return [sources()[key] for key in dict.fromkeys(key for table in tables for key in table.sources)]


def citation(source: Source) -> str:
    """A source in a few words: ``Zhang et al. 2018``."""
    authors = source.authors.split(", ")
    who = authors[0].split()[-1] + (" et al." if len(authors) > 1 else "")
    if source.authors == "not recorded":
        return source.title.split("(")[0].strip() + (", slides" if source.venue == "slide deck" else "")
    return f"{who} {source.year}" if source.year else f"{who}, {source.title}"


def marks(tables: Sequence[ComparisonTable]) -> list[tuple[str, str]]:
    """The certainty marks that the tables use, and what they mean."""
    used = {row.certainty for table in tables for row in table.rows}
    return [(mark, meaning) for mark, meaning in CERTAINTY.items() if mark in used]


Pair = tuple[Figure, Sequence[Result]]


def _table(name: str, pairs: Sequence[Pair], material: Material) -> ComparisonTable:
    experiment = experiments()[name]
    rows, shared = _shared([_row(figure, results, material) for figure, results in pairs])
    compared = [_effect(figure, results, material) for figure, results in pairs if results]
    return ComparisonTable(
        id=name,
        title=f"{citation(sources()[experiment.source])}, {experiment.where}",
        subject=", ".join(dict.fromkeys(f"{figure.data}, {figure.model}" for figure, _ in pairs)),
        note=experiment.note,
        rows=rows,
        effects=tuple(effect for effect in compared if effect),
        shared=shared,
        sources=(experiment.source,),
    )


def _shared(rows: Sequence[Comparison]) -> tuple[tuple[Comparison, ...], tuple[str, ...]]:
    """The rows without the reasons that all of them have, and these."""
    compared = [row.reasons for row in rows if row.level]
    shared = [reason for reason in compared[0] if all(reason in own for own in compared)] if compared else []
    kept = (replace(row, reasons=tuple(r for r in row.reasons if r not in shared)) for row in rows)
    return tuple(kept), tuple(shared)


def _adversarial(name: str, material: Material) -> list[Pair]:
    figures = [f for f in experiments()[name].figures if f.metric == "top1_error" and f.role != "clean"]
    order = list(dict.fromkeys((figure.role, figure.attack) for figure in figures))
    figures.sort(key=lambda figure: order.index((figure.role, figure.attack)))
    return [(figure, beside.adversarial(figure, material)) for figure in figures]


def _clean(name: str, material: Material) -> list[Pair]:
    """The figures of one table whose way of training is here, each beside the runs that are most like its own."""
    figures = _clean_figures(name, material)
    found = [(figure, _clean_results(figure, material)) for figure in figures]
    if name in ABLATIONS:
        shown = {_kind(figure) for usual in CLEAN_EXPERIMENTS for figure in find(experiment=usual, role="clean")}
        own = [f for f, results in found if results and f.independent and _kind(f) not in shown]
        # What a table has copied says nothing by itself, but is what its own figures are held against.
        copied = {(f.data, f.model) for f in own}
        found = [(f, r) for f, r in found if f in own or (not f.independent and (f.data, f.model) in copied)]
    return [(figure, results) for figure, results in found if results]


def _clean_figures(name: str, material: Material) -> list[Figure]:
    data = {material.facts.data, material.facts.like}
    return [figure for figure in find(experiment=name, role="clean", metric="top1_error") if figure.data in data]


def _clean_results(figure: Figure, material: Material) -> list[Result]:
    name = figure.experiment
    return beside.clean(figure, _clean_figures(name, material), material, same_decay=name in ABLATIONS)


def _kind(figure: Figure) -> tuple[str, float | None, float | None]:
    return figure.method, figure.recipe.label_noise, figure.recipe.weight_decay


# ---- levels --------------------------------------------------------------------------------------------------


def _row(figure: Figure, results: Sequence[Result], material: Material) -> Comparison:
    measured = beside.measured(figure, results, material)
    facts = beside.measured_facts(results, material, measured.statistic) if results else {}
    found = level(figure, facts) if results else None
    at = f", {budget(results[0].eps or 0)}" if results and figure.role != "clean" else ""
    return _compared(
        figure,
        role=f"{_role(figure)}{at}",
        measured=measured.texts,
        level=found,
        verdict=_prediction(figure, results, measured, material) if found == "same experiment" else None,
        reasons=tuple(reasons(figure, facts)) if results else (),
    )


def _compared(figure: Figure, **own: Any) -> Comparison:
    return Comparison(
        method=method_name(figure.method),
        published=_published(figure),
        certainty=figure.certainty,
        statistic=STATISTICS[figure.statistic],
        reproduces=figure.reproduces,
        **own,
    )


def _role(figure: Figure) -> str:
    attack = f" {ATTACK_TITLES.get(figure.attack, figure.attack)}" if figure.attack else " error"
    return f"{ROLES[figure.role]}{attack}"


def _published(figure: Figure) -> str:
    """The published error in per cent, with the decimals that the source prints."""
    return f"{figure.value:.{max(1, _decimals(figure))}f}{NBSP}%"


def _decimals(figure: Figure) -> int:
    return len(figure.reported.partition(".")[2])


def _prediction(figure: Figure, results: Sequence[Result], measured: Measured, material: Material) -> str:
    """Whether the published run lies where one new run of the same recipe is expected, as far as these runs can say."""
    errors = measured.errors
    if figure.role == "white":
        # A published design names one run; its other seeds say as much of what a new one would do.
        own = material.families[material.family_of[results[0].target]]
        white = material.find("white", label=results[0].label, eps=results[0].eps)
        errors = tuple(r.error for r in white if r.target in own)
    if len(errors) < 2:
        return "one run only"
    low, high = prediction_interval(errors)
    # A printed number stands for all that round to it.
    half = 0.5 * 10.0 ** -_decimals(figure)
    inside = 100 * low - half <= figure.value <= 100 * high + half
    where = interval(max(low, 0), min(high, 1))
    return (
        f"{'inside' if inside else 'outside'} {where}, where one new run is expected after {plural(len(errors), 'run')}"
    )


def _effect(figure: Figure, results: Sequence[Result], material: Material) -> ComparedEffect | None:
    """What the figure's method changes against the ERM of its table, there and here; None where either is missing."""
    base = erm_beside(figure)
    if base is None:
        return None
    others = _clean_results(base, material) if base.role == "clean" else beside.adversarial(base, material)
    sides = ((base, others), (figure, results))
    if not others or any(level(f, beside.measured_facts(r, material)) not in COMPARABLE for f, r in sides):
        return None
    return measured_effect(*sides, _role(figure), material)


# ---- one source held against another -------------------------------------------------------------------------


def _of_figures(name: str, other: str) -> ComparisonTable:
    """The figures of one published table beside those of another that its source holds them against.

    The reasons are derived as for a measured cell; its authors' own stand in the note of the experiment.
    """
    ours, theirs = experiments()[name], experiments()[other]
    who, whom = (citation(sources()[one.source]) for one in (ours, theirs))
    rows: list[Comparison] = []
    compared: list[ComparedEffect] = []
    for figure in ours.figures:
        same = {key: getattr(figure, key) for key in ("role", "attack", "method", "metric")}
        for there in find(experiment=other, **same):
            text = (who, None, _published(figure), STATISTICS[figure.statistic])
            facts = figure_facts(figure)
            rows.append(
                _compared(
                    there,
                    role=_role(there),
                    measured=(text,),
                    level=level(there, facts),
                    verdict=None,
                    reasons=tuple(reasons(there, facts)),
                )
            )
            effect = published_effect(there, figure, _role(there), who)
            compared += [effect] if effect else []
    kept, shared = _shared(rows)
    return ComparisonTable(
        id=f"{name}-beside-{other}",
        title=f"{who}: its figures beside those of {whom}",
        subject=", ".join(dict.fromkeys(f"{figure.data}, {figure.model}" for figure in theirs.figures)),
        note=ours.note,
        rows=kept,
        effects=tuple(compared),
        shared=shared,
        sources=(ours.source, theirs.source),
        against=(who, whom),
    )
