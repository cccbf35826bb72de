"""Reports on networks that nobody trained, of several seeds each, whose errors are what a test says they are."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from synthetic import INPUTS, identities, make_cell

from robustmix.report.evidence import Evidence, ModelRecord, RunRecord
from robustmix.report.material import Material
from robustmix.spec.recipe import Recipe
from robustmix.spec.suite import Suite
from robustmix.spec.validation import validate
from robustmix.store.cells import Cell, CellIdentity, clean_identity
from robustmix.store.runs import RunFacts

FGSM: dict[str, Any] = {"name": "fgsm", "eps": [4]}
IFGSM: dict[str, Any] = {"name": "ifgsm", "eps": [4]}
TWO: dict[str, dict[str, Any]] = {"erm": {}, "mixup": {"method": "mixup"}}
N = 400
# What a target gets wrong, bool [N] or how many of the first images: (role, attack or None, source or None, target).
Wrong = Callable[[str, str | None, str | None, str], np.ndarray | int]


def kind(name: str | None) -> str:
    """The name of a run without its seed."""
    return (name or "").rstrip("0123456789")


def seed(name: str) -> int:
    """The seed of a run, from its name."""
    return int(name[len(kind(name)) :])


def weights(name: str) -> str:
    """The digest that stands for a network."""
    return hashlib.sha256(name.encode()).hexdigest()


def network(
    name: str,
    fields: Mapping[str, Any],
    *,
    data: str = "cifar10",
    test_errors: Sequence[float | None] = (0.4, 0.3),
    last: Mapping[str, float] | None = None,
) -> RunRecord:
    """A finished run; ``last`` holds more columns of its last epoch."""
    epochs = len(test_errors)
    recipe = Recipe.model_validate({"data": data, "epochs": epochs, "seed": seed(name), **fields}).resolved(data)
    facts = RunFacts(
        data=data, like=data, data_note=None, train_digest="d" * 64, train_examples=50_000, classes=10,
        parameters=700_506, device="cpu", threads=2, robustmix="0", torch="0",
    )  # fmt: skip
    ended = {"train_error": 0.01, **(last or {})}
    rows: list[dict[str, int | float | None]] = [
        {"epoch": k + 1, "lr": 0.1, "test_error": error, **(ended if k + 1 == epochs else dict.fromkeys(ended))}
        for k, error in enumerate(test_errors)
    ]
    return RunRecord(name=name, recipe=recipe, facts=facts, history=tuple(rows), weights=weights(name))


def scored(identity: CellIdentity, wrong: np.ndarray | int, data: str = "cifar10") -> Cell:
    """A cell whose target errs on given images, or on the first so many."""
    errs = np.arange(N) < wrong if isinstance(wrong, int) else wrong
    cell = make_cell(identity, len(errs), data, data_note=None)
    label = cell.rows["label"].to_numpy()
    prediction = pa.array(np.where(errs, (label + 1) % 10, label)).cast(pa.int32())
    rows = cell.rows.set_column(cell.rows.schema.get_field_index("prediction"), "prediction", prediction)
    return Cell(identity, cell.facts, rows)


def attacked(
    sources: Sequence[str], targets: Sequence[str], attacks: Sequence[dict[str, Any]], wrong: Wrong
) -> list[Cell]:
    """The cells of every target without an attack and under examples that every source crafted."""
    found = [scored(clean_identity(weights(t), INPUTS, 256), wrong("clean", None, None, t)) for t in targets]
    for source in sources:
        for target in targets:
            role = "white" if source == target else "transfer"
            for fields in attacks:
                for identity in identities(fields, weights(source), weights(target)):
                    found.append(scored(identity, wrong(role, fields["name"], source, target)))
    return found


def report(
    runs: Sequence[RunRecord],
    cells: Sequence[Cell],
    *,
    models: Sequence[str] = (),
    attacks: Sequence[dict[str, Any]] = (FGSM, IFGSM),
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    eps: float | None = 4.0,
    published: dict[str, Any] | None = None,
) -> Material:
    """What a page on these runs and cells is rendered from."""
    names = [*(run.name for run in runs), *models]
    fields = {"version": 1, "title": "T", "data": "cifar10", "sources": names, "attack": list(attacks)}
    suite = validate(Suite, {**fields, "headline_eps": eps, "published": published})
    evidence = Evidence(
        robustmix="0", title="T", note=None, data="cifar10", headline_eps=eps, suite_name="s", suite=suite,
        sources=tuple(names if sources is None else sources), targets=tuple(names if targets is None else targets),
        runs=tuple(runs), models=tuple(ModelRecord(name=name, weights=weights(name)) for name in models),
        cells=tuple(sorted(cell.key for cell in cells)), command="c", attack_commands=(),
    )  # fmt: skip
    return Material.of(evidence, cells)


def study(
    kinds: Mapping[str, Mapping[str, Any]],
    seeds: int | Mapping[str, int],
    wrong: Wrong,
    attacks: Sequence[dict[str, Any]] = (FGSM, IFGSM),
    *,
    sources: Callable[[str], bool] = bool,
    **changes: Any,
) -> Material:
    """Networks of several kinds, so many seeds of each, attacked by every one that is a source."""
    counts = {one: seeds if isinstance(seeds, int) else seeds[one] for one in kinds}
    runs = [network(f"{one}{k}", fields) for one, fields in kinds.items() for k in range(1, counts[one] + 1)]
    names = [run.name for run in runs]
    crafting = [name for name in names if sources(name)]
    cells = attacked(crafting, names, attacks, wrong)
    return report(runs, cells, attacks=attacks, sources=crafting, **changes)
