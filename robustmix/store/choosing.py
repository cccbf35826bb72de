"""Which cells may stand beside each other: of the same data and examples, made in the same way."""

import re
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from robustmix.errors import SpecError
from robustmix.store.cells import Cell
from robustmix.store.results import attack_columns
from robustmix.store.sweeps import Sweep, attack_id

# What may differ between cells of one attack, one source and one target.
MAKING: Final = attrgetter("batch_size", "attack_version", "library")


def one_data_set(cells: Iterable[Cell], data: str | None) -> tuple[str, list[Cell]]:
    """The cells on one data set, and its spec.

    Args:
        cells: at least one.
        data: the data set's spec or name; the only one that the cells are on, if None.

    Raises:
        SpecError: the cells are on others, or on several to choose from.
    """
    cells = list(cells)
    specs = sorted({cell.facts.data_spec for cell in cells})
    if data is None and len(specs) > 1:
        raise SpecError(f"the workspace has cells of several data sets: choose with --data from {', '.join(specs)}")
    data = data or specs[0]
    ours = [cell for cell in cells if is_of(cell, data)]
    if not ours:
        raise SpecError(f"--data {data!r}: the workspace has cells of {', '.join(specs)}")
    return data, ours


def is_of(cell: Cell, data: str) -> bool:
    """Whether a cell is on a data set, given by its spec or its name."""
    return data in (cell.facts.data_spec, cell.facts.data)


def one_test_set(cells: Sequence[Cell], data: str, limit: int | None = None) -> list[Cell]:
    """The cells on one set of test examples.

    Args:
        cells: on one data set.
        data: its spec.
        limit: the number of examples, if the data set has so many; else the largest set.

    Raises:
        SpecError: there are several sets of that size.
    """
    sizes = {cell.identity.inputs: cell.rows.num_rows for cell in cells}
    # A limit beyond the test set's size takes all of it.
    if limit is not None and max(sizes.values(), default=0) >= limit:
        sizes = {digest: size for digest, size in sizes.items() if size == limit}
    largest = sorted(digest for digest, size in sizes.items() if size == max(sizes.values()))
    if len(largest) > 1:
        digests = ", ".join(digest[:12] for digest in largest)
        raise SpecError(
            f"{data} was attacked with {len(largest)} different sets of {sizes[largest[0]]} test examples "
            f"(inputs {digests}): its files have changed in between; delete the cells of the old ones"
        )
    return [cell for cell in cells if cell.identity.inputs in largest]


def preferred(cells: Sequence[Cell]) -> list[Cell]:
    """Cells in the order in which to choose among those that differ by batch size or version only, newest first."""
    sizes = [cell.identity.batch_size for cell in cells]
    common = max(sorted(set(sizes), reverse=True), key=sizes.count, default=0)

    def order(cell: Cell) -> tuple[bool, int, list[int], int, str]:
        size, version, library = MAKING(cell.identity)
        newest = [-int(number) for number in re.findall(r"\d+", library or "")]
        return size != common, -version, newest, -size, cell.key

    return sorted(cells, key=order)


def id_of(cell: Cell) -> str:
    """Which attack was made, at which budget, whoever crafted and was scored."""
    return attack_id(attack_columns(cell.identity))


def crafted(cells: Sequence[Cell], source: str, target: str) -> dict[str, Cell]:
    """The attacked cells of one source and one target (SHA-256 of their weights), by `id_of`, one of each."""
    return {key: found[0] for key, found in _by_id(preferred(_between(cells, source, target))).items()}


def _between(cells: Sequence[Cell], source: str, target: str) -> list[Cell]:
    return [cell for cell in cells if (cell.identity.source, cell.identity.target) == (source, target)]


def _by_id(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(id_of(cell), []).append(cell)
    return found


def side_by_side(
    cells: Sequence[Cell], first: str, second: str
) -> dict[str | None, tuple[dict[str, Cell], dict[str, Cell]]]:
    """The cells of two targets (SHA-256 of their weights) under the same attacks, by who crafted.

    Args:
        cells: on one set of test examples.
        first: one target.
        second: the other.

    Returns:
        Under None the white box of each, then under its weights every third network that attacked both: for each
        target its cells by `id_of`, those of both made in batches of one size by one version where there are such. An
        example that one of the two crafted is no fair test of the other.
    """
    sources = sorted({cell.identity.source for cell in cells if cell.identity.source} - {first, second})
    found: dict[str | None, tuple[dict[str, Cell], dict[str, Cell]]] = {}
    ordered = preferred(cells)
    for source in (None, *sources):
        a, b = (_by_id(_between(ordered, source or target, target)) for target in (first, second))
        pairs = {key: _alike(ones, b[key]) for key, ones in a.items() if key in b}
        if pairs:
            found[source] = {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
    return found


def _alike(ones: Sequence[Cell], others: Sequence[Cell]) -> tuple[Cell, Cell]:
    """The first cells of two targets that were made in the same way, or the first of each if none were."""
    made = {MAKING(cell.identity): cell for cell in others}
    return next(
        ((cell, made[MAKING(cell.identity)]) for cell in ones if MAKING(cell.identity) in made), (ones[0], others[0])
    )


def by_sweep(cells: Iterable[Cell], known: Mapping[str, tuple[Sweep, ...]]) -> dict[Sweep, list[Cell]]:
    """The cells of each sweep, budgets ascending; without clean cells and attacks that have no budget.

    Args:
        cells: of one source and one target.
        known: the sweeps by `id_of`, as `robustmix.store.sweeps.sweeps` finds them.
    """
    found: dict[Sweep, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.identity.eps_255 or 0, cell.key)):
        for sweep in known[id_of(cell)] if cell.identity.eps_255 else ():
            found.setdefault(sweep, []).append(cell)
    return found
