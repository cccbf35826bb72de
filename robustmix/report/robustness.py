"""Networks image by image: paired tests, smallest breaking budgets, and the worst of all attacks."""

import math
from dataclasses import dataclass

from robustmix.report.effects import Role
from robustmix.report.material import Material, once
from robustmix.report.pairs import Paired, paired
from robustmix.report.tables import Table
from robustmix.report.text import budget, interval, percent, points, probability, signed_span, span
from robustmix.stats import sign_test, wilson
from robustmix.store.cells import Cell
from robustmix.store.examples import Breaking, breaking, common_attacks, paired_breaking, worst_case
from robustmix.store.results import wrong
from robustmix.units import format_budget


def paired_tests(material: Material) -> Table:
    """Pairs of checkpoints on the same images: which of the two errs where the other does not.

    Without an attack and under every attack that publications mean by its name alone, each network by its own gradient,
    at the headline budget. It speaks of these checkpoints, not of the methods that trained them.
    """
    plain = {r.label for r in material.results if r.plain and r.source}
    attacks: list[tuple[Role, str, float]] = [("clean", "clean", 0.0)]
    attacks += [
        ("white", label, eps) for label in material.attacks if label in plain and (eps := material.headline(label))
    ]
    rows = []
    for role, label, eps in attacks:
        name = "no attack" if role == "clean" else f"{label} at {budget(eps)}"
        for first, second in _pairs(material):
            found = paired(material, role, label, eps, first, second)
            if found:
                rows.append([name, first, second, *_paired(found)])
    sides = ("First errs", "Second errs", "Only first", "Only second")
    header = ("Attack", "First", "Second", *sides, "Second less first", "[95 %]", "p")
    caption = "Two checkpoints on the same images in the white box: exact McNemar test, of these two and not of methods"
    return Table(caption, header, rows, texts=3)


def _paired(found: Paired) -> list[str]:
    shares = [percent(count / found.n) for count in found.errors]
    difference = [points(found.observed), interval(*found.interval)]
    return [*shares, *map(str, found.only), *difference, probability(sign_test(*found.only))]


def breaking_tables(material: Material) -> tuple[Table, Table]:
    """The smallest budget that breaks an example in the white box: by target, and for pairs of them side by side.

    Attacks that were made at one budget only are left out: it says no more than their error.
    """
    return _by_target(material), _by_pair(material)


def _by_target(material: Material) -> Table:
    rows = []
    for label in material.attacks:
        for name in material.evidence.targets:
            cells = material.swept(name).get(label, [])
            if len(cells) > 1:
                found = _breaking(material, cells)
                budgets = ", ".join(format_budget(cell.identity.eps_255 or 0) for cell in cells)
                shares = [percent(float((found.high == 0).mean())), percent(found.never)]
                rows.append([label, name, budgets, span(*found.median), *shares, str(found.reversals)])
    header = ("Attack", "Target", "Budgets", "Median", "Wrong anyway", "Never broken", "Reversals")
    return Table("Smallest breaking budget in the white box (units of 1/255)", header, rows, texts=3, naming=1)


def _by_pair(material: Material) -> Table:
    rows = []
    for label in material.attacks:
        for first, second in _pairs(material):
            cells = [material.swept(name).get(label, []) for name in (first, second)]
            budgets = [[cell.identity.eps_255 for cell in own] for own in cells]
            if len(cells[0]) > 1 and budgets[0] == budgets[1]:
                found = paired_breaking(*(_breaking(material, own) for own in cells))
                n = cells[0][0].rows.num_rows
                shares = [percent(count / n) for count in (found.earlier, found.later, found.undecided)]
                rows.append([label, first, second, *shares, probability(found.p), signed_span(*found.difference)])
    header = ("Attack", "First", "Second", "First earlier", "First later", "Undecided", "p", "Median difference")
    return Table("Two networks, image by image: which breaks at a smaller budget", header, rows, texts=3)


@dataclass(frozen=True)
class WorstCase:
    """The worst case over one set of attacks.

    Attributes:
        attacks: of the set, in words.
        table: a row per target.
    """

    attacks: tuple[str, ...]
    table: Table


@once
def worst_cases(material: Material) -> tuple[WorstCase, ...]:
    """The worst case per example in the white box, one per norm, where there is more than one attack to choose from."""
    white = {name: cells for name in material.evidence.targets if (cells := material.white(name))}
    header = ("Target", "Strongest alone", "No attack", "That one", "Worst case", "[95 %]")
    found = []
    for norm, eps in _levels(material, white).items():
        chosen = common_attacks(white, norm, eps)
        attacks = next(iter(chosen.values()))
        if len({material.label(cell) for cell in attacks}) > 1:
            rows = [[name, *_worst(material, cells, eps)] for name, cells in chosen.items()]
            caption = f"Worst case within {budget(eps)}{'' if norm == 'linf' else ' in L2'}"
            found.append(WorstCase(_listed(material, attacks), Table(caption, header, rows, texts=2)))
    return tuple(found)


def _worst(material: Material, cells: list[Cell], eps: float) -> list[str]:
    clean = material.clean(cells[0])
    alone = {cell.key: float(worst_case(clean, [cell], eps).mean()) for cell in cells}
    strongest = max(cells, key=lambda cell: (alone[cell.key], -(cell.identity.eps_255 or 0), cell.key))
    at = strongest.identity.eps_255
    errs = worst_case(clean, cells, eps)
    return [
        material.label(strongest) + (f" at {budget(at)}" if at else ""),
        percent(float(wrong(clean).mean())),
        percent(alone[strongest.key]),
        percent(float(errs.mean())),
        interval(*wilson(int(errs.sum()), len(errs))),
    ]


def _levels(material: Material, white: dict[str, dict[str, Cell]]) -> dict[str, float]:
    """The budget of the worst case in each norm: the page's own if it was attacked with, else the middle one."""
    by_norm: dict[str, set[float]] = {}
    for cells in white.values():
        for identity in (cell.identity for cell in cells.values()):
            if identity.eps_255:
                by_norm.setdefault(identity.norm, set()).add(identity.eps_255)
    wanted = material.evidence.headline_eps
    found = {}
    for norm, budgets in sorted(by_norm.items(), reverse=True):
        own = [eps for eps in budgets if wanted and math.isclose(eps, wanted)]
        found[norm] = own[0] if own else sorted(budgets)[(len(budgets) - 1) // 2]
    return found


def _listed(material: Material, cells: list[Cell]) -> tuple[str, ...]:
    budgets: dict[str, list[float | None]] = {}
    for cell in cells:
        budgets.setdefault(material.label(cell), []).append(cell.identity.eps_255)
    return tuple(
        f"{label}, where its perturbation is within the budget"
        if None in found
        else f"{label}, at {', '.join(format_budget(eps) for eps in sorted(filter(None, found)))}"
        for label, found in sorted(budgets.items())
    )


def _breaking(material: Material, cells: list[Cell]) -> Breaking:
    return breaking(material.clean(cells[0]), cells)


def _pairs(material: Material) -> list[tuple[str, str]]:
    """Pairs to compare: the published design's runs and the first of every other family; an ERM run comes first."""
    suite = material.evidence.suite
    design = suite.published.white if suite and suite.published else ()
    families = ([name for name in names if name in material.evidence.targets] for names in material.families.values())
    names = [*design, *(names[0] for names in families if names and not set(design) & set(names))]
    erm = [name for name in names if name in material.base]
    return [(base, name) for base in (erm or names)[:1] for name in names if name != base]
