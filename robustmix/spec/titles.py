"""What an attack is called in tables, figures and sentences."""

import math
from collections.abc import Mapping
from typing import Any, Final

from robustmix.spec.attack import DEFAULT_DECAY, DEFAULT_QUERIES, FOREIGN_STEPS, ITERATED, MINIMUM_NORM, PGD_STRIDE
from robustmix.units import format_budget

ATTACK_TITLES: Final[dict[str, str]] = {
    "clean": "clean",
    "fgsm": "FGSM",
    "ifgsm": "I-FGSM",
    "mifgsm": "MI-FGSM",
    "pgd": "PGD",
    "signs": "random signs",
    "noise": "uniform noise",
    "autoattack": "AutoAttack",
    "square": "Square",
    "deepfool": "DeepFool",
    "cw": "C&W",
    "hopskipjump": "HopSkipJump",
}


def attack_label(row: Mapping[str, Any], *, brief: bool = False) -> str:
    """An attack in words, without its budget; says all that is not usual.

    Args:
        row: with the columns of `robustmix.store.results.results_table`.
        brief: ``ifgsm-10`` in place of ``I-FGSM, 10 steps``.
    """
    name, steps, step, eps = row["attack"], int(row["steps"]), float(row["step_255"]), float(row["eps_255"])
    parts = [name if brief else ATTACK_TITLES.get(name, name)]
    if name in ITERATED or (name in FOREIGN_STEPS and steps != FOREIGN_STEPS[name]):
        usual = PGD_STRIDE if name == "pgd" else 1
        share = step * steps / eps if name in ITERATED else usual
        length = "" if math.isclose(share, usual, rel_tol=1e-6) else f"{format_budget(step)}/255"
        if brief:
            parts[0] += f"-{steps}"
            parts += [f"x {length}"] if length else []
        else:
            parts.append(f"{steps} steps" + (f" of {length}" if length else ""))
    metric = "l2" if name in MINIMUM_NORM else "linf"
    for key, usual_value, text in (
        ("norm", metric, str(row["norm"]).replace("linf", "L-infinity").replace("l2", "L2")),
        ("loss", "ce", f"loss {row['loss']}"),
        ("restarts", 1, f"{row['restarts']} restarts"),
        ("labels", "true", f"{row['labels']} labels"),
        ("seed", 0, f"seed {row['seed']}"),
        ("precision", "32", str(row["precision"])),
        ("impl", "robustmix", f"by {row['impl']}"),
        ("compiled", False, "compiled"),
    ):
        if row[key] != usual_value:
            parts.append(text)
    usual_options = {"decay": DEFAULT_DECAY, "queries": DEFAULT_QUERIES}
    for key, value in sorted(row["options"].items()):
        if value != usual_options.get(key):
            parts.append(f"{value:g} {key}" if key == "queries" else f"{key} {value:g}")
    return (" " if brief else ", ").join(parts)
