"""The means on the page's first screen: who crafts and who is scored, at the headline budget."""

from dataclasses import dataclass

import numpy as np

from robustmix.report.effects import errors
from robustmix.report.material import Material
from robustmix.report.text import budget, named, percent, plural, points, spread
from robustmix.stats import SEEDS_FOR_METHODS

# Who crafts, and per family of targets the mean error, the range over the pairs and how many they are.
Row = tuple[str, tuple[tuple[str, str, str] | None, ...]]


@dataclass(frozen=True)
class HeadlineTable:
    """Means over the pairs of a family of sources and a family of targets, at the headline budget.

    Attributes:
        label: the attack in words, without its budget.
        title: attack and budget, in words.
        families: that are scored, one per column.
        rows: who crafts, and per family the mean error, the range over the pairs (empty for a single one) and how many
            they are; None where nothing was measured.
        advantage: how much more the networks err under examples of their own family, in words; None where no network
            was attacked by another of its own family.
    """

    label: str
    title: str
    families: tuple[str, ...]
    rows: tuple[Row, ...]
    advantage: str | None


def headline_tables(material: Material) -> list[HeadlineTable]:
    """One table per attack that has a budget."""
    found = []
    for label in material.attacks:
        eps = material.headline(label)
        if eps is not None:
            title = f"{label} at {budget(eps)}"
            advantage = _advantage(material, label, eps)
            found.append(HeadlineTable(label, title, tuple(material.families), _rows(material, label, eps), advantage))
    return found


def _rows(material: Material, label: str, eps: float) -> tuple[Row, ...]:
    rows = []
    for source, crafters in {"no attack": None, "itself (white box)": None, **material.families}.items():
        role = "transfer" if crafters else "white" if "box" in source else "clean"
        at = {"eps": 0.0} if role == "clean" else {"eps": eps, "label": label}
        results = [r for r in material.find(role, **at) if crafters is None or r.source in crafters]
        cells: list[tuple[str, str, str] | None] = []
        for family in material.families:
            rates = [r.error for r in results if material.family_of[r.target] == family]
            noun = "pair" if crafters else "run"
            mean = sum(rates) / len(rates) if rates else 0
            cells.append((percent(mean), spread(rates), plural(len(rates), noun)) if rates else None)
        if any(cells):
            named = crafters and source not in material.models
            rows.append((f"a run of {source}" if named else source, tuple(cells)))
    return tuple(rows)


def _advantage(material: Material, label: str, eps: float) -> str | None:
    """The home advantage of two families, the base and the main one or the first two, each counting half.

    A network's own is its mean error under examples of other networks of its family less that under examples of the
    other family. Whether some sources are stronger for everybody cancels: they count for one family and against the
    other. It has a range over the networks and no interval: the networks are each other's sources, so that neither is
    drawn while the other stays.
    """
    pair = [name for name in (material.base_family, material.main_family) if name]
    families = pair if len(pair) == 2 else [name for name in material.families if name not in material.models][:2]
    if len(families) < 2:
        return None
    homes = []
    for family, other in (families, families[::-1]):
        targets = material.scored(family)
        own, theirs = (
            errors(material, "transfer", label, eps, targets, material.crafting(name)) for name in (family, other)
        )
        homes.append(_home(own, theirs))
    if not all(len(home) for home in homes):
        return None
    each = [float(home.mean()) for home in homes]
    value = sum(each) / 2
    by_network = [float(home.mean()) for homes_of in homes for home in homes_of]
    runs = [name for family in families for name in material.scored(family)]
    many = min(map(len, homes)) >= SEEDS_FOR_METHODS
    who = f"these {len(runs)} networks of {families[0]} and of {families[1]}" if many else named(runs)
    few = "" if many else f", fewer than {SEEDS_FOR_METHODS} seeds each"
    return (
        f"Home advantage: {points(value)} points ({spread(by_network)} over the networks{few}). So much more {who} err "
        "under examples of other runs of their own recipe than under those of the other one."
    )


def _home(own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The advantage of each network that both kinds have attacked, image by image, [networks, images]."""
    found = []
    for t in range(own.shape[1]):
        sides = [side[:, t][~np.isnan(side[:, t]).any(axis=1)] for side in (own, theirs)]
        if all(len(side) for side in sides):
            found.append(sides[0].mean(axis=0) - sides[1].mean(axis=0))
    return np.array(found).reshape(len(found), own.shape[2])
