"""The transfer matrix of models and tensors in memory; no workspace, nothing written."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustmix.attacks.arguments import check_networks, check_several, check_text, check_whole
from robustmix.attacks.geometry import longest
from robustmix.attacks.libraries import check_installed
from robustmix.attacks.losses import loss_named
from robustmix.device import is_out_of_memory
from robustmix.errors import EvaluationError, SpecError
from robustmix.in_memory import examples, measured_cells, present
from robustmix.measurement import on_device
from robustmix.outputs import check_outputs
from robustmix.participants import Participant, distinct
from robustmix.progress import say
from robustmix.sanity import warn_of_chance
from robustmix.spec.attack import MINIMUM_NORM, AttackSpec, takes
from robustmix.spec.names import CraftPrecision, Norm, known_attack
from robustmix.spec.validation import validate
from robustmix.store.cells import Cell
from robustmix.store.doubts import doubts
from robustmix.store.results import results_table
from robustmix.units import GREY_LEVELS, check_length
from robustmix.work import CLEAN, DEFAULT_BATCH, MOST_EXAMPLES, Unit, halved, make_unit

LOOKED_AT: Final = 4
IN_MEMORY: Final = "in memory"


def transfer_matrix(
    models: Mapping[str, nn.Module],
    inputs: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    attacks: Sequence[str] = ("fgsm", "ifgsm"),
    eps: Sequence[float] = (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    steps: int = 10,
    step_size: float | None = None,
    loss: str = "ce",
    batch_size: int | None = None,
    targets: Mapping[str, nn.Module] | None = None,
    *,
    norm: Norm = "linf",
    precision: CraftPrecision = "32",
) -> pd.DataFrame:
    """Craft on every model, score every model: errors by source, target, attack and budget.

    A model whose accuracy without an attack is chance is named in a warning, and so are attacks that look weaker than
    they are (`robustmix.store.doubts`).

    Args:
        models: that craft, by name: inputs in [0, 1] in, logits out, all on one device. They are attacked in eval mode
            and left as found.
        inputs: uint8 [N, C, H, W], or float [N, ...] in [0, 1], which is taken as float32.
        labels: true classes, whole numbers [N].
        attacks: names, as ``robustmix attack --attack`` takes them. Those that look for the smallest perturbation have
            no budget, and keep the norm and the number of steps that the command line has for them.
        eps: budgets, pixel units.
        steps: of the iterated attacks.
        step_size: of the iterated attacks, pixel units; eps / steps if not given (for ``pgd`` 2.5 times that).
        loss: to maximise: ``ce``, ``logodds``, ``margin`` or ``dlr``.
        batch_size: examples per batch, 256 if not given; halved for all cells where memory runs out, so that all can be
            compared.
        targets: that are scored, by name; the models if not given. A target that is one of the models is attacked in
            the white box.
        norm: of the budgets, ``linf`` or ``l2``.
        precision: of the passes that craft, ``32`` or ``bf16``, but of attacks that look for the smallest perturbation
            ``32``; scoring is always in float32.

    Returns:
        A row per cell with the columns of `robustmix.store.results.results_table`, those without an attack first; these
        cost no pass where they come along with the first gradient of an attack. FGSM and I-FGSM share theirs, so that
        the passes of either are those of both together.

    Raises:
        SpecError: an attack or loss is unknown, an argument of another kind, a length unusable, or a name stands for
            two models.
        EvaluationError: a model does not fit the labels, or a measurement would be wrong.
        DataError: inputs are of another kind, or leave [0, 1].
    """
    _check_models(models, targets)
    size = DEFAULT_BATCH if batch_size is None else check_whole(batch_size, "batch_size", 1, MOST_EXAMPLES)
    scored = dict(models if targets is None else targets)
    everyone = {**models, **scored}
    if strange := [name for name in models if everyone[name] is not models[name]]:
        raise SpecError(f"{strange[0]!r} names one model among the models and another among the targets")
    split, device = examples(everyone, inputs, labels)
    loss_named(check_text(loss, "loss", "ce"))
    check_text(norm, "norm", "linf")
    given: dict[str, object] = {"loss": loss, "norm": norm, "precision": precision}
    specs = _specs(attacks, eps, check_whole(steps, "steps", 1), step_size, given, longest(split.images, norm))
    check_installed([spec.name for spec in specs])
    participants = {}
    for name, model in everyone.items():
        participants[name] = one = present(name, model, split, device)
        assert isinstance(one.classes, int)
        some, _ = split.gather(torch.arange(min(LOOKED_AT, len(split))), device)
        check_outputs(f"model {name!r}", one.load(), some, one.classes)
    crafting, goals = (distinct(participants[name] for name in group) for group in (models, scored))
    inputs_there = on_device(split, device)
    for held in halved(size):
        halved_from = size if held < size else None
        try:
            units = _units(crafting, specs, goals, held)
            cells = [cell for unit in units for cell in measured_cells(unit, inputs_there, device, halved_from)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            say(f"memory ran out with batches of {held}: starting again with {held // 2}")
        else:
            for cell in cells:
                if cell.identity.source is None:
                    _look_at_clean(cell, participants[cell.facts.target_name])
            table = results_table(cells, participants.values())
            # One network may bear other names as a source than as a target.
            asked = (table["source"].isna() | table["source"].isin(models)) & table["target"].isin(scored)
            rows = table[asked].reset_index(drop=True)
            for doubt in doubts(rows):
                say(f"warning: {doubt}")
            return rows
    raise EvaluationError("memory ran out with a single example")


def _check_models(models: Mapping[str, nn.Module], targets: Mapping[str, nn.Module] | None) -> None:
    for what, group in (("models", models), ("targets", models if targets is None else targets)):
        check_networks(group, what)
        if not group:
            raise SpecError("there is no model to attack" if what == "models" else "there is no target to score")


def _specs(
    attacks: Sequence[str],
    eps: Sequence[float],
    steps: int,
    step_size: float | None,
    given: dict[str, object],
    most: float,
) -> list[AttackSpec]:
    names = [known_attack(check_text(name, "an attack", "fgsm")) for name in check_several(attacks, "attacks")]
    lengths = [check_length(length, "eps", most) for length in check_several(eps, "eps")]
    if 0 in lengths:
        raise SpecError("eps=0 is no attack: the rows of role 'clean' say what the models do without one")
    budgets = list(map(_in_units, lengths))
    given |= {"eps": budgets, "steps": steps}
    if step_size is not None:
        given["step"] = _in_units(check_length(step_size, "step_size", most))
    specs = []
    for name in names:
        # Steps and norm are meant for our own; what looks for the smallest perturbation has its own defaults.
        own = takes(name) - (frozenset({"steps", "norm"}) if name in MINIMUM_NORM else frozenset())
        specs.append(validate(AttackSpec, {"name": name, **{key: given[key] for key in own & given.keys()}}))
    return specs


def _in_units(length: float) -> str:
    # Rounded so that 4/255 in pixel units is the budget 4 again.
    return f"{float(f'{length * GREY_LEVELS:.12g}')!r}/255"


def _look_at_clean(cell: Cell, target: Participant) -> None:
    labels, predictions = (cell.rows[name].to_numpy() for name in ("label", "prediction"))
    assert isinstance(target.classes, int)
    warn_of_chance(f"model {target.name!r}", torch.from_numpy(labels == predictions), target.classes)


def _units(
    crafting: Sequence[Participant], specs: Sequence[AttackSpec], goals: Sequence[Participant], batch_size: int
) -> list[Unit]:
    """Every source under every attack, and everybody's clean predictions: with the first gradient where one is taken.

    In a workspace they are computed apart, once for all attacks that are ever made there; so is FGSM.
    """
    units: list[Unit] = []
    for source in crafting:
        made = {spec.name: make_unit(source, spec, spec.courses(None), goals, IN_MEMORY, batch_size) for spec in specs}
        if "fgsm" in made and "ifgsm" in made:
            # I-FGSM in one full step, whose gradient is the first of the others.
            made["ifgsm"] = replace(made["ifgsm"], cells=(*made.pop("fgsm").cells, *made["ifgsm"].cells))
        units += made.values()
    clean = make_unit(None, None, (CLEAN,), goals, IN_MEMORY, batch_size)
    alone = []
    for cell in clean.cells:
        digest = cell.target.digest
        bearers = (
            place
            for place, one in enumerate(units)
            if one.source is not None and one.source.digest == digest and one.predicts_inputs
        )
        if (place := next(bearers, None)) is None:
            alone.append(cell)
        else:
            units[place] = replace(units[place], cells=(*units[place].cells, cell))
    return [*units, replace(clean, cells=tuple(alone))] if alone else units
