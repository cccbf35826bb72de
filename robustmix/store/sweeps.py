"""Which attacks are one attack at several budgets: the rule that its steps follow, read off the attacks themselves."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from robustmix.spec.attack import ITERATED, KURAKIN, AttackSpec
from robustmix.spec.titles import attack_label
from robustmix.units import format_budget


class Sweep(NamedTuple):
    """One attack at all its budgets.

    Attributes:
        label: the attack in words, without its budget: ``I-FGSM, 10 steps``.
        steps: iterations; None where the rule sets them.
        step: as ``--step-size`` takes it: a length, ``2.5 eps/steps`` or ``kurakin``; None for the attack's usual rule.
    """

    label: str
    steps: int | None
    step: str | None


Row = Mapping[str, Any]


def sweeps(rows: Iterable[Row]) -> dict[str, tuple[Sweep, ...]]:
    """The sweeps that attacks belong to, by `attack_id`.

    There are no more of them than needed: four budgets with ten steps of 1/255 are one attack, not four. An attack may
    belong to two, as ten steps of 1/255 do at 10/255. Clean predictions and attacks that look for the smallest
    perturbation are sweeps of their own.

    Args:
        rows: with the `robustmix.store.results.ATTACK_COLUMNS`.
    """
    attacks: dict[str, dict[str, Row]] = {}
    for row in rows:
        attacks.setdefault(_apart_from_course(row), {})[attack_id(row)] = row
    found: dict[str, tuple[Sweep, ...]] = {}
    for by_id in attacks.values():
        for sweep, members in _cover(by_id).items():
            for member in members:
                found[member] = (*found.get(member, ()), sweep)
    return found


def attack_id(row: Row) -> str:
    """An attack with its budget, as one text: the same for the same `robustmix.store.results.ATTACK_COLUMNS`."""
    eps, step = float(row["eps_255"]), float(row["step_255"])
    return json.dumps([_apart_from_course(row), int(row["steps"]), step, None if math.isnan(eps) else eps])


def exactly(length: float) -> str:
    """A length in units of 1/255 as ``--eps`` and ``--step-size`` take it, with every digit: ``4``, ``0.5/255``."""
    text = str(length).removesuffix(".0")
    return text if length >= 1 else f"{text}/255"


def _apart_from_course(row: Row) -> str:
    keys = ("attack", "norm", "loss", "labels", "precision", "impl")
    numbers = (int(row["restarts"]), int(row["seed"]), bool(row["compiled"]), row["options"])
    return json.dumps([*(row[key] for key in keys), *numbers], sort_keys=True)


def _cover(by_id: Mapping[str, Row]) -> dict[Sweep, list[str]]:
    """The fewest sweeps that one attack at several budgets makes, largest first, with the ids of their members."""
    groups: dict[tuple[int, Sweep], list[str]] = {}
    for member, row in by_id.items():
        for choice, sweep in enumerate(_candidates(row)):
            if sweep:
                groups.setdefault((choice, sweep), []).append(member)
    found: dict[Sweep, list[str]] = {}
    covered: set[str] = set()
    for (_, sweep), members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0][0], item[0][1].label)):
        if not covered.issuperset(members):
            found[sweep] = members
            covered.update(members)
    return found


def _candidates(row: Row) -> list[Sweep | None]:
    """The sweeps that an attack could belong to, the likeliest first."""
    steps, step, eps = int(row["steps"]), float(row["step_255"]), float(row["eps_255"])
    if row["attack"] not in ITERATED:
        return [Sweep(attack_label(row), steps, None)]
    usual = AttackSpec(name=row["attack"], norm=row["norm"], steps=steps).course(eps).step
    label = attack_label({**row, "step_255": usual})

    def of(length: str) -> str:
        return label.replace(f"{steps} steps", f"{steps} steps of {length}", 1)

    relative = f"{step * steps / eps:.9g} eps/steps"
    kurakin = step == 1 and steps == AttackSpec(name=row["attack"], norm=row["norm"], step=KURAKIN).course(eps).steps
    return [
        Sweep(label, steps, None) if math.isclose(step, usual) else None,
        Sweep(of(f"{format_budget(step)}/255"), steps, exactly(step)),
        Sweep(of(relative), steps, relative),
        Sweep(label.replace(f"{steps} steps", "min(eps + 4, 1.25 eps) steps of 1/255", 1), None, KURAKIN)
        if kurakin
        else None,
    ]
