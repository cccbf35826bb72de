"""``robustmix compare``."""

from collections.abc import Iterable, Sequence
from math import inf, isnan
from typing import TYPE_CHECKING

from robustmix.cli.options import Place
from robustmix.errors import SpecError, StoreError
from robustmix.spec.names import unknown
from robustmix.units import format_budget

if TYPE_CHECKING:
    from robustmix.store.cells import Cell
    from robustmix.store.results import Bearer
    from robustmix.store.sweeps import Sweep

DEFAULTS = Place()


def compare(
    first: str, second: str, /, *, data: str | None = None, limit: int | None = None, place: Place = DEFAULTS
) -> None:
    """Compare two networks example by example, as far as the workspace has cells of both.

    Each was attacked by itself (the white box), and both by the same third networks. What one of the two crafted for
    the other is left out: it is no fair test. All this is about two networks; to compare two methods takes several
    seeds of each. Printed are:

    - the errors under each attack, also among the examples that both get right without one; there with the 95 %
      interval of the difference and p of McNemar's exact test;
    - the smallest budget that breaks an example, with p of a sign test;
    - the smallest perturbation that breaks an example, from attacks that look for it;
    - the worst case over all attacks that were made on both.

    Args:
        first: A run, or a model as 'robustmix results' names it.
        second: Another one.
        data: The data set, where the workspace has cells of several.
        limit: The number of test examples, where the workspace has cells of several; else the largest that both have.
    """
    workspace = place.enter()
    from robustmix.store.cell_files import read_cells
    from robustmix.store.choosing import one_data_set, one_test_set, side_by_side
    from robustmix.store.results import attack_columns, foreign_bearers
    from robustmix.store.runs import read_run, run_names
    from robustmix.store.sweeps import sweeps

    cells = read_cells(workspace.cells)
    bearers: list[Bearer] = [*(read_run(workspace, name) for name in run_names(workspace)), *foreign_bearers(cells)]
    one, other = (_weights(name, bearers) for name in (first, second))
    if one == other:
        raise SpecError(f"{first} and {second} have the same weights: there is nothing to compare")
    # What looks for the smallest perturbation looks for it in one network: it says nothing of another one.
    attacked = [
        cell
        for cell in cells
        if cell.identity.target in (one, other)
        and (cell.identity.source == cell.identity.target or (cell.identity.source and cell.identity.eps_255))
    ]
    on_both = [{c.identity.inputs for c in attacked if c.identity.target == target} for target in (one, other)]
    attacked = [cell for cell in attacked if cell.identity.inputs in set.intersection(*on_both)]
    if attacked:
        data, attacked = one_data_set(attacked, data)
        on_data = attacked
        attacked = one_test_set(on_data, data, limit)
        if limit is not None and not attacked:
            raise SpecError(f"--limit {limit}: both have been attacked on {_sizes(on_data)} test examples")
    threats = side_by_side(attacked, one, other)
    if not threats:
        raise StoreError(
            f"no attack has been made on both {first} and {second} with the same test examples, neither in the white "
            "box, nor with what a third network crafted; what one of the two crafted is no fair test of the other; do "
            f"that with: robustmix attack --source {first} {second}"
        )
    known = sweeps(attack_columns(cell.identity) for cell in attacked)
    by_key = {cell.key: cell for cell in cells}
    by_weights = {bearer.weights: bearer.name for bearer in bearers}
    named = [("itself" if key is None else by_weights.get(key, key[:12]), *sides) for key, sides in threats.items()]

    print(f"{first} and {second} on {attacked[0].rows.num_rows} test examples of {data}: these two networks, not the")
    print("methods that trained them. p values stand alone, uncorrected for how many there are.")
    if left_out := [cell for cell in on_data if cell.identity.inputs != attacked[0].identity.inputs]:
        print(f"Attacks on {_sizes(left_out)} test examples are left out: choose with --limit.")
    _print_errors(first, second, named, known, by_key)
    _print_breaking(first, second, named, known, by_key)
    if None in threats:
        _print_smallest(first, second, threats[None], known, by_key)
        _print_worst_case(first, second, threats[None], known, by_key)


def _sizes(cells: Iterable["Cell"]) -> str:
    return ", ".join(map(str, sorted({cell.rows.num_rows for cell in cells})))


def _weights(name: str, bearers: Sequence["Bearer"]) -> str:
    by_name = {bearer.name: bearer.weights for bearer in bearers if bearer.weights}
    if name not in by_name:
        raise SpecError(unknown("run or model", name, by_name))
    return by_name[name]


Named = Sequence[tuple[str, dict[str, "Cell"], dict[str, "Cell"]]]
Known = dict[str, tuple["Sweep", ...]]
White = tuple[dict[str, "Cell"], dict[str, "Cell"]]


def _print_errors(first: str, second: str, threats: Named, known: Known, by_key: dict[str, "Cell"]) -> None:
    from robustmix.cli.tables import print_table
    from robustmix.stats import paired_interval
    from robustmix.store.examples import both_correct
    from robustmix.store.results import clean_cell

    rows = []
    for source, ones, others in threats:
        for key, one in _in_order(ones, known):
            found = both_correct(one, others[key], clean_cell(one, by_key), clean_cell(others[key], by_key))
            # The second less the first, as for the smallest budgets below.
            only_first, only_second = found.only
            ends = paired_interval(only_second, only_first, found.n_both) if found.n_both else ()
            rows.append(
                [
                    source,
                    known[key][0].label,
                    f"{format_budget(one.identity.eps_255 or 0)}/255",
                    *(f"{errors / found.n:.1%}" for errors in found.errors),
                    str(found.n_both),
                    *(f"{errors / found.n_both:.1%}" if found.n_both else "-" for errors in found.errors_both),
                    *map(str, found.only),
                    " to ".join(f"{100 * end:+.1f}" for end in ends) if ends else "-",
                    f"{found.p:.2g}",
                ]
            )
    if not rows:
        return
    print("\nErrors under the same attack; 'both right' are the examples that both get right without one, and all that")
    print(f"follows is among these; difference: {second} less {first}, 95 % interval in points")
    of_all, of_both, only = ([f"{text}{name}" for name in (first, second)] for text in ("", "there\n", "only\n"))
    header = ["crafted on", "attack", "eps", *of_all, "both\nright", *of_both, *only, "difference", "p"]
    print_table(header, rows, numeric=range(2, len(header)))


def _print_breaking(first: str, second: str, threats: Named, known: Known, by_key: dict[str, "Cell"]) -> None:
    from robustmix.cli.tables import print_table
    from robustmix.store.choosing import by_sweep
    from robustmix.store.examples import breaking, paired_breaking
    from robustmix.store.results import clean_cell

    rows = []
    for source, ones, others in threats:
        second_sweeps = by_sweep(others.values(), known)
        for sweep, cells in sorted(by_sweep(ones.values(), known).items()):
            a, b = (breaking(clean_cell(c[0], by_key), c) for c in (cells, second_sweeps[sweep]))
            paired = paired_breaking(a, b)
            low, high = paired.difference
            rows.append(
                [
                    source,
                    sweep.label,
                    str(len(cells)),
                    *(_interval(*each.median) for each in (a, b)),
                    *(f"{each.never:.1%}" for each in (a, b)),
                    *(f"{count / len(a.low):.1%}" for count in (paired.earlier, paired.later, paired.undecided)),
                    f"{paired.p:.2g}",
                    "-" if low == -inf and high == inf else f"{low:+.4g} to {high:+.4g}",
                ]
            )
    if not rows:
        return
    print(
        f"\nSmallest budget that breaks an example, in 1/255; difference: {second} less {first}, bounds of its median"
    )
    medians, nevers, earlier = (
        [f"{text} {name}" for name in (first, second)] for text in ("median", "never", "earlier")
    )
    header = ["crafted on", "attack", "budgets", *medians, *nevers, *earlier, "undecided", "p", "difference"]
    print_table(header, rows, numeric=range(2, len(header)))


def _print_smallest(first: str, second: str, white: White, known: Known, by_key: dict[str, "Cell"]) -> None:
    from robustmix.cli.tables import format_length, print_table
    from robustmix.store.examples import paired_norms
    from robustmix.store.results import clean_cell

    rows = []
    for key, one in sorted(white[0].items(), key=lambda item: known[item[0]][0].label):
        if one.identity.eps_255 is not None:
            continue
        other = white[1][key]
        found = paired_norms(one, other, clean_cell(one, by_key), clean_cell(other, by_key))
        rows.append(
            [
                known[key][0].label,
                *map(format_length, found.medians),
                *(f"{count / one.rows.num_rows:.1%}" for count in (*found.smaller, found.ties)),
                f"{found.p:.2g}",
                "-" if isnan(found.difference) else f"{found.difference:+.4g}",
            ]
        )
    if not rows:
        return
    print(
        "\nSmallest perturbation that an attack finds in the white box: 0 where a network errs anyway, never where the"
    )
    print(f"attack fails; difference: median of {second} less {first} in 1/255, where it breaks one of them")
    medians, smaller = ([f"{text}\n{name}" for name in (first, second)] for text in ("median", "smaller"))
    header = ["attack", *medians, *smaller, "ties", "p", "difference"]
    print_table(header, rows, numeric=range(1, len(header)))


def _print_worst_case(
    first: str,
    second: str,
    white: White,
    known: Known,
    by_key: dict[str, "Cell"],
) -> None:
    from robustmix.cli.tables import print_table
    from robustmix.stats import wilson
    from robustmix.store.choosing import id_of
    from robustmix.store.examples import common_attacks, worst_case
    from robustmix.store.results import clean_cell

    cells = dict(zip((first, second), white, strict=True))
    levels = sorted({(c.identity.norm, c.identity.eps_255) for c in white[0].values() if c.identity.eps_255})
    rows = []
    labels: dict[Sweep, None] = {}
    for norm, eps in levels:
        errors = []
        for attacked in common_attacks(cells, norm, eps).values():
            errs = worst_case(clean_cell(attacked[0], by_key), attacked, eps)
            low, high = wilson(int(errs.sum()), len(errs))
            errors += [f"{errs.mean():.1%}", f"{100 * low:.1f} - {100 * high:.1f}"]
            labels |= {label: None for cell in attacked for label in known[id_of(cell)]}
        rows.append([norm, f"{format_budget(eps)}/255", str(len(attacked)), *errors])
    if not rows:
        return
    attacks = "; ".join(sweep.label for sweep in labels)
    print("\nWorst case per example in the white box, over all attacks that both have been under up to each budget")
    print(f"attacks: {attacks}")
    print_table(["norm", "eps", "cells", first, "95 % Wilson", second, "95 % Wilson"], rows, numeric=range(1, 7))


def _in_order(cells: dict[str, "Cell"], known: Known) -> list[tuple[str, "Cell"]]:
    """By attack, then by budget; without those that have none, whose errors only say whether they ever succeed."""
    budgeted = [(key, cell) for key, cell in cells.items() if cell.identity.eps_255]
    return sorted(budgeted, key=lambda item: (known[item[0]][0].label, item[1].identity.eps_255 or 0))


def _interval(low: float, high: float) -> str:
    """An interval of budgets as text: ``2 - 4``, ``> 8``, ``0`` where the network errs without an attack."""
    if high == 0:
        return "0"
    return f"> {format_budget(low)}" if high == inf else f"{format_budget(low)} - {format_budget(high)}"
