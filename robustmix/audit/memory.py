"""The audit of models and tensors in memory; no workspace, nothing written."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from robustmix.attacks.arguments import check_networks
from robustmix.attacks.victim import frozen
from robustmix.audit.battery import FEW, LARGE, battery_over, check_budget
from robustmix.audit.procedure import audit_units, conclude, costly_units, look, make_record, plant, why_no_square
from robustmix.audit.reading import Evidence
from robustmix.checkpoints import digest_model
from robustmix.errors import SpecError
from robustmix.in_memory import examples, measured_cells, present
from robustmix.participants import distinct
from robustmix.store.audits import AuditRecord
from robustmix.units import GREY_LEVELS, check_length
from robustmix.work import DEFAULT_BATCH


def audit_models(
    models: Mapping[str, nn.Module],
    inputs: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    eps: float,
    batch_size: int = DEFAULT_BATCH,
) -> list[AuditRecord]:
    """Test whether attacks on models would measure their robustness or the attacks' own weakness.

    Args:
        models: by name: inputs in [0, 1] in, logits out, all on one device. They are attacked in eval mode and left as
            found. With several each is also attacked by transfer from the others.
        inputs: uint8 [N, C, H, W], or float [N, ...] in [0, 1]; a few hundred.
        labels: true classes, whole numbers [N].
        eps: the budget at which attacks are compared, pixel units, below 128/255; errors should rise from a quarter of
            it to its double.
        batch_size: examples per batch.

    Returns:
        A record for each model, in their order; for one under several names a single one, under the first.

    Raises:
        SpecError: the budget is unusable, or there is no model.
        EvaluationError: a model does not fit the labels, or a measurement would be wrong.
        DataError: inputs are of another kind, or leave [0, 1].
    """
    check_networks(models, "models")
    if not models:
        raise SpecError("there is no model to audit")
    budget = float(f"{check_length(eps, 'eps') * GREY_LEVELS:.12g}")
    check_budget(budget)
    battery = battery_over(tuple(sorted({budget / 4, budget / 2, budget, min(2 * budget, LARGE)})), budget)
    split, device = examples(models, inputs, labels)
    on_device = split.to(device)
    everyone = distinct(present(name, model, split, device) for name, model in models.items())
    looks = {}
    for one in everyone:
        model = one.load()
        with frozen(model):
            assert isinstance(one.classes, int)
            names = tuple(map(str, range(one.classes)))
            looks[one.digest] = look(one, model, on_device, on_device, names, batch_size, device)
    crowd = [one for one in everyone if looks[one.digest].obstacle is None]
    digest = split.digest()
    units = audit_units(battery, crowd, digest, batch_size)
    evidence = Evidence(battery, [cell for unit in units for cell in measured_cells(unit, on_device, device)])
    no_square = why_no_square(split)
    first = on_device.first(FEW)
    units = costly_units(battery, crowd, digest, batch_size, square=no_square is None)
    few = Evidence(battery, [cell for unit in units for cell in measured_cells(unit, first, device)])
    records = []
    for one in everyone:
        model = one.load()
        planted = plant(model, on_device, battery, device) if one in crowd else None
        records.append(
            make_record(
                one.name,
                digest_model(type(model).__qualname__, model),
                conclude(looks[one.digest], one, crowd, (evidence, few), no_square, planted),
                data="tensors",
                inputs=split,
                battery=battery,
                device=device,
                command="robustmix.audit_models(...)",
            )
        )
    return records
