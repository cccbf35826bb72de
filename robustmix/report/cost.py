"""What the attacks of a page have cost: passes through the networks, and time."""

from dataclasses import dataclass

from robustmix.report.material import Material
from robustmix.report.tables import Table
from robustmix.report.text import NONE, passes
from robustmix.store.cells import Cell


@dataclass(frozen=True)
class Cost:
    """The cost of everything that a page shows.

    Attributes:
        table: a row per source and attack.
        total: of all of them, in words.
    """

    table: Table
    total: str


def cost(material: Material) -> Cost:
    """Passes per image and seconds of each unit (one source and one attack, all budgets and targets together).

    A unit whose budgets or targets were added later was computed in several pieces; each counts once.
    """
    rows, every = [], set()
    for (source, label), cells in _units(material).items():
        # All cells that were computed together bear the same figures; nothing else does, down to the last digit.
        pieces = {(cell.facts.forward, cell.facts.backward, cell.facts.unit_seconds) for cell in cells}
        budgets = {cell.identity.eps_255 for cell in cells}
        n = cells[0].rows.num_rows
        forward, backward, seconds = (sum(piece[place] for piece in pieces) for place in range(3))
        every |= {(source, label, n, *piece) for piece in pieces}
        rows.append(
            [
                source or NONE,
                label if source else "no attack",
                str(len(budgets)) if source else NONE,
                str(len({cell.identity.target for cell in cells})),
                passes(forward, backward),
                f"{seconds:,.1f}",
                f"{n / seconds:,.0f}" if seconds else NONE,
            ]
        )
    header = ("Source", "Attack", "Budgets", "Targets", "Passes per image", "Seconds", "Images per second")
    table = Table("What each unit cost: one source, one attack, all its budgets and targets", header, rows, texts=2)
    passed = [round(n * (forward + backward)) for _, _, n, forward, backward, _ in sorted(every, key=str)]
    seconds = sum(sorted(piece[-1] for piece in every))
    total = f"In all {sum(passed):,} passes of one image"
    return Cost(table, f"{total} through a network, forward and backward, in {duration(seconds)}.")


def _units(material: Material) -> dict[tuple[str | None, str], list[Cell]]:
    """The cells by source and attack in words, in the order of the page."""
    by_weights = {weights: name for name, weights in reversed(material.weights.items())}
    found: dict[tuple[str | None, str], list[Cell]] = {}
    for cell in material.cells:
        source = cell.identity.source
        found.setdefault((by_weights[source] if source else None, material.label(cell)), []).append(cell)
    place: dict[str | None, int] = {None: -1, **{name: number for number, name in enumerate(material.names)}}
    return dict(sorted(found.items(), key=lambda item: (place[item[0][0]], item[0][1])))


def duration(seconds: float) -> str:
    """A time in words: ``42.3 seconds``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.3g} seconds"
    if seconds < 3600:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))
