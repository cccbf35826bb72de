"""The whole matrix: right to the example, each cell once, whatever stops it and however many work on it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import FAILING, TINY, environment, run, start, stop_when
from torch import Tensor, nn

import robustmix
from robustmix import AttackSpec, Recipe, Suite, evaluation, participants
from robustmix.data import Dataset, load_data
from robustmix.device import compile_network
from robustmix.errors import EvaluationError, StoreError
from robustmix.evaluation import as_graphs, compute, evaluate, planned_results
from robustmix.gallery import Gallery
from robustmix.measurement import Measured, on_device
from robustmix.planning import Plan, make_plan
from robustmix.store import claims
from robustmix.store.cell_files import cell_path, read_cells
from robustmix.store.cells import Cell
from robustmix.store.gallery import gallery_path
from robustmix.store.results import COLUMNS
from robustmix.store.workspace import Workspace
from robustmix.team import Team
from robustmix.work import Unit

SUITE = Suite(
    version=1,
    title="test",
    sources=("erm1", "mixup1"),
    targets=("erm*", "mixup*"),
    attack=(
        AttackSpec(name="fgsm", eps=(16, 32, 64)),
        AttackSpec(name="ifgsm", eps=(16, 32), steps=4),
        AttackSpec(name="ifgsm", eps=(16, 32), steps=3, step=12),
    ),
    limit=120,
)
CPU = torch.device("cpu")


def suite(*attacks: AttackSpec, **fields: object) -> Suite:
    fields = {"sources": "erm1", "data": "digits", **fields}
    return Suite.model_validate({"version": 1, "title": "t", "attack": attacks, **fields})


@pytest.fixture
def workspace(tiny: Path, tmp_path: Path) -> Path:
    """The trained runs, without any results."""
    return beside(tiny, tmp_path / "here")


def beside(runs: Path, folder: Path) -> Path:
    """A workspace with the runs of another one."""
    folder.mkdir()
    (folder / "runs").symlink_to(runs / "runs")
    return folder


def finish(wanted: Suite, folder: Path, team: Team = Team(CPU), **options: Any) -> tuple[Plan, int]:  # noqa: B008
    plan = make_plan(wanted, Workspace(folder), **options)
    return plan, compute(plan, Workspace(folder), team)


def by_key(folder: Path) -> dict[str, Cell]:
    return {cell.key: cell for cell in read_cells(folder / "results/cells")}


def attacked(folder: Path) -> list[Cell]:
    return [cell for cell in by_key(folder).values() if cell.identity.source]


def same_rows(one: Path, other: Path) -> bool:
    left, right = by_key(one), by_key(other)
    assert left.keys() == right.keys()
    assert left
    return all(left[key].rows.equals(right[key].rows) for key in left)


def assert_same_errors(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """All but the passes, which are those of the unit that a cell was computed in."""
    passes = ["forward", "backward"]
    pd.testing.assert_frame_equal(one.drop(columns=passes), other.drop(columns=passes))


def test_one_row_per_cell_with_the_promised_columns(workspace: Path) -> None:
    results = evaluate(SUITE, workspace=workspace)
    assert tuple(results.columns) == COLUMNS
    assert len(results) == 4 + 2 * (3 + 2 + 2) * 4
    assert set(results["role"]) == {"clean", "white", "transfer"}
    assert ((results["source"] == results["target"]) == (results["role"] == "white")).all()
    assert (results["delta_max"].dropna() <= 1 + 1e-5).all()
    assert (results["n"] == 120).all()
    assert results["error"].between(results["error_low"], results["error_high"]).all()
    white = results[(results["role"] == "white") & (results["target"] == "erm1") & (results["attack"] == "fgsm")]
    assert white["error"].is_monotonic_increasing
    assert white["error"].iloc[-1] > 0.5 > white["clean_error"].iloc[0]


# ---- the numbers are those of independent libraries ------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with another network on other images: the digits drawn 3x16x16, and the run erm1 on them."""
    folder = tmp_path_factory.mktemp("drawn")
    digits = load_data("digits")

    def draw(split: Any) -> np.ndarray:
        large = split.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return np.asarray(torch.cat([large, 255 - large, (large + large.roll(1, 3)) // 2], dim=1))

    halves = {"train": digits.train.first(480), "test": digits.test.first(128)}
    images = {f"x_{half}": draw(split) for half, split in halves.items()}
    np.savez(folder / "drawn.npz", **images, **{f"y_{half}": split.labels for half, split in halves.items()})
    recipe = {**TINY, "data": f"npz:{folder}/drawn.npz", "model": "resnet18", "epochs": 3}
    robustmix.train(Recipe(seed=1, **recipe), workspace=folder)
    return folder


@pytest.mark.parametrize("peer", ["torchattacks", "foolbox"])
@pytest.mark.parametrize("name", ["erm1", "mixup1", "drawn"])
def test_errors_equal_an_independent_library_s_to_the_example(
    name: str, peer: str, tiny: Path, drawn: Path, tmp_path: Path
) -> None:
    """Two networks, one of them trained by either method, on the same digits in two shapes."""
    folder = beside(drawn if name == "drawn" else tiny, tmp_path / "here")
    assert_errors_equal_those_of(peer, "erm1" if name == "drawn" else name, folder)


@pytest.mark.parametrize("peer", ["torchattacks", "foolbox"])
def test_errors_on_photographs_equal_an_independent_library_s_to_the_example(
    peer: str, large_data: Path, tmp_path: Path
) -> None:
    if not (large_data / "cifar10-jpeg").is_dir():
        pytest.skip(f"{large_data} has no cifar10-jpeg/")
    data = load_data("folder:cifar10-jpeg", large_data, stream=True)
    arrays = {}
    for half, split, count in (("train", data.train, 2000), ("test", data.test, 128)):
        spread = torch.linspace(0, len(split) - 1, count, dtype=torch.float64).long()
        x, y = next(iter(split.batches([spread], CPU)))
        arrays |= {f"x_{half}": (255 * x).round().to(torch.uint8).numpy(), f"y_{half}": y.numpy()}
    np.savez(tmp_path / "photographs.npz", **arrays)
    recipe = {**TINY, "data": f"npz:{tmp_path}/photographs.npz", "model": "resnet18", "width": 8, "limit": None}
    robustmix.train(Recipe(seed=1, **recipe), workspace=tmp_path)
    smaller = (
        AttackSpec(name="fgsm", eps=(1, 2, 4)),
        AttackSpec(name="ifgsm", eps=(1, 2), steps=4),
        AttackSpec(name="ifgsm", eps=(1, 2), steps=3, step="0.75/255"),
    )
    assert_errors_equal_those_of(peer, "erm1", tmp_path, SUITE.model_copy(update={"attack": smaller}), most_clean=100)


def assert_errors_equal_those_of(
    peer: str, name: str, folder: Path, wanted: Suite = SUITE, most_clean: int = 64
) -> None:
    library = pytest.importorskip(peer, reason="needs the extra 'attacks'")
    # torchattacks averages the loss over the batch, which is exact for a power of two.
    wanted = wanted.model_copy(update={"sources": (name,), "targets": (name,), "limit": 128})
    plan, _ = finish(wanted, folder, batch_size=64)
    model = robustmix.load_model(name, workspace=folder)
    test: Any = plan.data.test.first(128)
    x, y = test.gather(torch.arange(128), CPU)
    clean, errors = 0, []
    for cell in by_key(folder).values():
        at = cell.identity
        predictions = []
        for xb, yb in zip(x.split(64), y.split(64), strict=True):
            adversarial = xb
            if at.source:
                of = torchattacks_of if peer == "torchattacks" else foolbox_of
                adversarial = of(library, at.attack, model, xb, yb, at.eps_255 / 255, at.step_255 / 255, at.steps)
            with torch.no_grad():
                predictions.append(model(adversarial).argmax(1))
        theirs = torch.cat(predictions)
        assert cell.rows["prediction"].to_pylist() == theirs.tolist(), (at.attack, at.eps_255)
        if at.source:
            errors.append(int((theirs != y).sum()))
        else:
            clean = int((theirs != y).sum())
    assert len(errors) == 3 + 2 + 2
    assert clean < most_clean
    assert max(errors) > clean + (128 - clean) // 3


def torchattacks_of(library: Any, attack: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, n: int):  # type: ignore[no-untyped-def]
    if attack == "fgsm":
        return library.FGSM(model, eps=eps)(x, y)
    return library.PGD(model, eps=eps, alpha=step, steps=n, random_start=False)(x, y)


def foolbox_of(library: Any, attack: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, n: int):  # type: ignore[no-untyped-def]
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    if attack == "fgsm":
        return library.attacks.FGSM()(wrapped, x, y, epsilons=eps)[1]
    return library.attacks.LinfPGD(abs_stepsize=step, steps=n, random_start=False)(wrapped, x, y, epsilons=eps)[1]


@pytest.mark.parametrize("impl", ["torchattacks", "foolbox"])
def test_by_another_implementation_predictions_are_the_same(impl: Any, workspace: Path) -> None:
    pytest.importorskip(impl, reason="needs the extra 'attacks'")
    ours = [AttackSpec(name="fgsm", eps=(16, 32)), AttackSpec(name="ifgsm", eps=(16, 32), steps=3)]
    both = [spec.model_copy(update={"impl": by}) for spec in ours for by in ("robustmix", impl)]
    finish(suite(*both, targets=("erm1", "mixup1"), limit=128), workspace, batch_size=64)
    found: dict[tuple[object, ...], dict[str, Cell]] = {}
    for cell in attacked(workspace):
        what = cell.identity.attack, cell.identity.eps_255, cell.identity.target
        found.setdefault(what, {})[cell.identity.impl] = cell
    assert len(found) == 8
    for cells in found.values():
        assert set(cells) == {"robustmix", impl}
        assert cells[impl].rows["prediction"].equals(cells["robustmix"].rows["prediction"])
        assert cells[impl].facts.batches == cells["robustmix"].facts.batches != ()


# ---- what is shared changes nothing ----------------------------------------------------------------------

SHARED = (
    AttackSpec(name="fgsm", eps=(8, 16, 32, 64)),
    AttackSpec(name="fgsm", eps=(64, 128), norm="l2", loss="logodds"),
    AttackSpec(name="ifgsm", eps=(8, 16), steps=3),
    AttackSpec(name="ifgsm", eps=(8, 16, 24), steps=4, step=8),
    AttackSpec(name="ifgsm", eps=(2, 4, 6), step="kurakin"),
    AttackSpec(name="ifgsm", eps=(64, 128), steps=3, step=60, norm="l2", labels="predicted"),
    AttackSpec(name="mifgsm", eps=(16, 32), steps=3, step=12),
    AttackSpec(name="pgd", eps=(16, 32), steps=2, restarts=2),
    AttackSpec(name="pgd", eps=(32,), steps=1, labels="predicted"),
    AttackSpec(name="signs", eps=(16, 32), restarts=2, labels="predicted"),
    AttackSpec(name="noise", eps=(64, 128), norm="l2"),
    AttackSpec(name="fgsm", eps=(16, 32), labels="predicted", precision="bf16"),
)


def test_cells_do_not_depend_on_which_others_are_computed_with_them(
    workspace: Path, tiny: Path, tmp_path: Path
) -> None:
    plan, _ = finish(suite(*SHARED, targets=("erm1", "mixup1"), limit=12), workspace, batch_size=8)
    alone = beside(tiny, tmp_path / "alone")
    for unit in plan.everything:
        for cell in unit.cells:
            one = unit.only({cell.identity.key()})
            assert one
            compute(replace(plan, everything=(one,)), Workspace(alone), Team(CPU))
    assert len(by_key(alone)) == 2 + 2 * sum(len(spec.eps or ()) for spec in SHARED)
    assert same_rows(workspace, alone)


@pytest.mark.parametrize("save_images", [False, True])
def test_passes_are_counted_as_they_happen(save_images: bool, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"forward": 0, "backward": 0}

    def count(what: str, examples: int) -> None:
        counts[what] += examples

    def counted(*arguments: Any) -> nn.Module:
        model = load_model(*arguments)
        model.register_forward_hook(lambda module, inputs, logits: count("forward", len(logits)))
        model.register_full_backward_hook(lambda module, inputs, logits: count("backward", len(logits[0])))
        return model

    load_model = participants.load_model
    monkeypatch.setattr(participants, "load_model", counted)
    place = Workspace(workspace)
    wanted = suite(*SHARED[: 3 if save_images else None], targets=("erm1", "mixup1"), limit=12)
    plan = make_plan(wanted, place, batch_size=8, save_images=save_images)
    for unit in plan.units:
        counts.update(forward=0, backward=0)
        compute(replace(plan, everything=(unit,)), place, Team(CPU))
        assert counts == {"forward": 12 * unit.forward, "backward": 12 * unit.backward}, unit.title
        facts = [cell.facts for key, cell in by_key(workspace).items() if unit.only({key})]
        assert {(one.forward, one.backward) for one in facts} == {(unit.forward, unit.backward)}
    assert [unit.backward for unit in plan.units] == [0, 1, 1, 5, 7, 7, 4, 4, 8, 1, 0, 0, 1][: len(plan.units)]


def test_a_second_time_nothing_is_computed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(SUITE, workspace=workspace)
    monkeypatch.setattr(evaluation, "measure", None)
    pd.testing.assert_frame_equal(evaluate(SUITE, workspace=workspace), first)


# ---- images that are kept --------------------------------------------------------------------------------


def test_images_are_kept_within_the_budget_and_scored_as_they_are(workspace: Path) -> None:
    budgets = ("0.5/255", "3.7/255", "32")
    attacks = [AttackSpec(name="ifgsm", eps=budgets, steps=2), AttackSpec(name="fgsm", eps=(64,), norm="l2")]
    try:
        import foolbox  # noqa: F401
    except ImportError:
        pass
    else:
        attacks.append(AttackSpec(name="deepfool", steps=5))
    wanted = suite(*attacks, targets=("erm1", "mixup1"), limit=48)
    plan, _ = finish(wanted, workspace, batch_size=32, save_images=True)
    models = {name: robustmix.load_model(name, workspace=workspace) for name in ("erm1", "mixup1")}
    test: Any = plan.inputs
    clean = test.images.int().numpy()
    seen = set()
    for cell in attacked(workspace):
        at = cell.identity
        path = gallery_path(workspace / "results/gallery", at)
        levels = np.load(path)
        assert (levels.dtype, levels.shape) == (np.uint8, (48, 1, 8, 8))
        moved = levels.astype(int) - clean
        largest, longest = np.abs(moved).max(), np.sqrt((moved**2).sum((1, 2, 3))).max()
        if at.attack == "deepfool":
            assert longest > 0
        else:
            assert (largest if at.norm == "linf" else longest) <= (at.eps_255 or 0)
            assert largest == {0.5: 0, 3.7: 3, 32: 32}.get(at.eps_255, largest)
        with torch.no_grad():
            images = torch.from_numpy(levels).float().div(255).contiguous(memory_format=torch.channels_last)
            predicted = torch.cat([models[cell.facts.target_name](part) for part in images.split(32)]).argmax(1)
        assert cell.rows["prediction_uint8"].to_pylist() == predicted.tolist()
        said = json.loads(path.with_suffix(".json").read_text())
        assert said["images"] == path.name
        assert (said["attack"], said["source_name"], said["data"]) == (at.attack, "erm1", "digits")
        assert (said["eps_255"], said["norm"], said["batch_size"]) == (at.eps_255, at.norm, 32)
        seen.add((at.attack, at.eps_255))
    assert len(seen) == 4 + (len(attacks) == 3)
    table = planned_results(plan, Workspace(workspace))
    still = table[(table["eps_255"] == 0.5) & (table["attack"] == "ifgsm")]
    assert (still["error_uint8"] == still["clean_error"]).all(), "half a grey level is none"
    assert table.loc[table["role"] == "clean", "error_uint8"].isna().all()
    assert len(list((workspace / "results/gallery").iterdir())) == 3 * len(seen), "nothing half done beside them"


def test_keeping_images_changes_no_other_column(workspace: Path) -> None:
    wanted = suite(AttackSpec(name="pgd", eps=(16, 32), steps=2), targets=("erm1", "mixup1"), limit=24)
    assert finish(wanted, workspace, batch_size=16)[1] == 2 + 4
    before = by_key(workspace)
    assert finish(wanted, workspace, batch_size=16, save_images=True)[1] == 4
    after = by_key(workspace)
    for key, cell in before.items():
        columns = cell.rows.schema.names[:-1]
        assert after[key].rows.select(columns).equals(cell.rows.select(columns))
        assert (after[key].rows["prediction_uint8"].null_count == 0) == (cell.identity.source is not None)
    assert finish(wanted, workspace, batch_size=16, save_images=True)[1] == 0
    assert finish(wanted, workspace, batch_size=16)[1] == 0, "with images serves without as well"
    shutil.rmtree(workspace / "results/gallery")
    assert finish(wanted, workspace, batch_size=16, save_images=True)[1] == 4


# ---- memory that runs out --------------------------------------------------------------------------------

NETS = (
    FAILING
    + """
def small():
    torch.manual_seed(0)
    train = robustmix.load_data("digits").train
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(50):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(train.images.float() / 255), train.labels).backward()
        optimiser.step()
    return net
"""
)


@pytest.fixture
def nets(workspace: Path, tiny: Path) -> str:
    (workspace / "net.py").write_text(NETS.format(workspace=str(tiny)))
    return f"{workspace}/net.py"


def test_where_memory_runs_out_a_unit_starts_again_in_smaller_batches(
    nets: str,
    workspace: Path,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = suite(
        AttackSpec(name="fgsm", eps=(16, 32)), sources=f"{nets}:Greedy", targets=("erm1", "mixup1"), limit=300
    )
    plan, computed = finish(wanted, workspace, save_images=True)
    assert computed == 2 + 4
    assert "memory ran out with batches of 256: 2/2 fgsm from" in capsys.readouterr().err
    cells = by_key(workspace).values()
    sizes = {(cell.identity.attack, cell.identity.batch_size, cell.facts.halved_from) for cell in cells}
    assert sizes == {("clean", 256, None), ("clean", 64, None), ("fgsm", 64, 256)}
    assert not list((workspace / "results/gallery").glob(".*")), "nothing is left of the first attempt"

    table = planned_results(plan, Workspace(workspace))
    assert sorted(table["batch_size"]) == [64] * 6 + [256] * 2
    assert (table.loc[table["role"] == "transfer", "batch_size"] == 64).all()
    elsewhere = beside(tiny, tmp_path / "elsewhere")
    finish(wanted, elsewhere, batch_size=64, save_images=True)
    chosen, forced = by_key(elsewhere), by_key(workspace)
    assert all(forced[key].rows.equals(cell.rows) for key, cell in chosen.items())

    monkeypatch.setattr(evaluation, "measure", None)
    assert finish(wanted, workspace, save_images=True)[1] == 0
    pd.testing.assert_frame_equal(planned_results(plan, Workspace(workspace)), table)


def test_where_memory_runs_out_for_clean_predictions_they_are_halved_as_well(
    nets: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), sources=f"{nets}:Greedy", limit=150)
    plan, computed = finish(wanted, workspace)
    assert computed == 2
    cells = by_key(workspace).values()
    sizes = {(cell.identity.attack, cell.identity.batch_size, cell.facts.halved_from) for cell in cells}
    assert sizes == {("clean", 64, 256), ("fgsm", 64, 256)}
    assert len(planned_results(plan, Workspace(workspace))) == 2
    monkeypatch.setattr(evaluation, "measure", None)
    assert finish(wanted, workspace)[1] == 0


@pytest.mark.parametrize("attack_limit", [1000, 128], ids=["at the size asked for", "at another half"])
def test_clean_predictions_halved_by_another_job_do_not_stand_in_the_way(
    attack_limit: int, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ran out for one job's clean predictions, and not, or later, for another's attack."""
    measured = evaluation.measure
    limit = 64

    def measure(unit: Unit, *args: Any) -> Measured:
        if unit.batch_size > limit:
            raise torch.OutOfMemoryError
        return measured(unit, *args)

    monkeypatch.setattr(evaluation, "measure", measure)
    finish(suite(AttackSpec(name="signs", eps=(16,)), sources="erm1", limit=150), workspace)
    limit = attack_limit
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), sources="erm1", limit=150)
    plan, computed = finish(wanted, workspace)
    assert computed == 1
    size = min(256, attack_limit)
    cells = {(cell.identity.attack, cell.identity.batch_size) for cell in by_key(workspace).values()}
    assert cells == {("clean", 64), ("signs", 64), ("fgsm", size), ("clean", size)}
    assert "white" in set(planned_results(plan, Workspace(workspace))["role"])
    assert finish(wanted, workspace)[1] == 0

    # A job may die between an attack and the clean predictions beside it.
    own = next(cell.identity for cell in by_key(workspace).values() if cell.identity.attack == "fgsm")
    cell_path(workspace / "results/cells", own.clean()).unlink()
    again, computed = finish(wanted, workspace)
    assert computed == 0
    assert "white" in set(planned_results(again, Workspace(workspace))["role"])


def test_clean_predictions_for_which_memory_runs_out_beside_an_attack_are_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = evaluation.measure

    def measure(unit: Unit, *args: Any) -> Measured:
        if unit.source is None and unit.batch_size == 256:
            raise torch.OutOfMemoryError
        return measured(unit, *args)

    monkeypatch.setattr(evaluation, "measure", measure)
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), sources="erm1", limit=150)
    with pytest.raises(EvaluationError, match=r"memory ran out with batches of 256, .*; take --batch-size 128$"):
        finish(wanted, workspace)
    assert finish(wanted, workspace, batch_size=128)[1] == 1


def test_what_is_missing_of_a_halved_unit_is_made_up_for(nets: str, workspace: Path) -> None:
    """Whatever was lost: the clean predictions that it is compared with, an attacked cell, or all."""
    wanted = suite(AttackSpec(name="fgsm", eps=(16, 32)), sources=f"{nets}:Greedy", targets="erm1", limit=150)
    plan, _ = finish(wanted, workspace, batch_size=128)
    table = planned_results(plan, Workspace(workspace))
    cells = workspace / "results/cells"
    whole = {path.name: path.read_bytes() for path in cells.iterdir()}
    assert len(whole) == 2 + 2
    for key, cell in by_key(workspace).items():
        (cells / f"{key}.parquet").write_bytes(b"damaged")
        # Nobody asked for the clean predictions in halved batches but the attacked cells beside them.
        alongside = cell.identity.source is None and cell.identity.batch_size == 64
        again, computed = finish(wanted, workspace, batch_size=128)
        assert computed == (0 if alongside else 1)
        assert_same_errors(planned_results(again, Workspace(workspace)), table)
        assert (cells / f"{key}.damaged").read_bytes() == b"damaged"


def test_memory_that_one_example_exceeds_is_one_line(nets: str, workspace: Path) -> None:
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), sources=f"{nets}:Insatiable", targets="erm1", limit=20)
    with pytest.raises(EvaluationError, match=r"fgsm from \S+Insatiable: memory ran out with a single example$"):
        finish(wanted, workspace, batch_size=16)
    assert attacked(workspace) == []


@pytest.mark.parametrize(
    ("net", "message"),
    [("Enormous", "memory ran out; try --device cpu"), ("Probable", "gives probabilities .nothing outside")],
)
def test_somebody_s_model_is_looked_at_before_anything_is_computed(
    net: str, message: str, nets: str, workspace: Path
) -> None:
    sources = ("erm1", f"{nets}:{net}")
    with pytest.raises(EvaluationError, match=message):
        finish(suite(AttackSpec(name="fgsm", eps=(16,)), sources=sources, targets="erm1", limit=20), workspace)
    assert not (workspace / "results").exists()


def test_other_errors_are_not_taken_for_exhausted_memory(nets: str, workspace: Path) -> None:
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), sources=f"{nets}:Broken", targets="erm1", limit=20)
    with pytest.raises(EvaluationError, match=r"RuntimeError: no kernel for this$"):
        finish(wanted, workspace)
    assert attacked(workspace) == []
    assert not list((workspace / "results").glob("parts/*"))


# ---- several processes for one job -----------------------------------------------------------------------


@dataclass(frozen=True)
class Member(Team):
    """One of several threads that stand for processes."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    box: list[Any] = field(default_factory=list)

    def barrier(self) -> None:
        self.meeting.wait(timeout=60)

    def share(self, value: Any) -> Any:
        if self.rank == 0:
            self.box[:] = [value]
        self.barrier()
        shared = self.box[0]
        self.barrier()
        return shared


def together(plans: Sequence[Plan], folder: Path) -> list[int]:
    """What each of several members has computed, each with its own plan."""
    meeting, box = threading.Barrier(len(plans)), []  # type: ignore[var-annotated]

    def release_the_others(done: "Future[int]") -> None:
        if done.exception():
            meeting.abort()

    with ThreadPoolExecutor(len(plans)) as pool:
        members = [Member(CPU, rank, len(plans), meeting, box) for rank in range(len(plans))]
        found = [
            pool.submit(compute, plan, Workspace(folder), member) for plan, member in zip(plans, members, strict=True)
        ]
        for one in found:
            one.add_done_callback(release_the_others)
    # Of a member that failed, not of those that then waited in vain.
    for one in found:
        if not isinstance(one.exception(), threading.BrokenBarrierError):
            one.result()
    return [one.result() for one in found]


@pytest.mark.parametrize(("ranks", "batch_size"), [(3, 16), (3, 40)])
def test_ranks_give_the_cells_of_one_process(
    ranks: int, batch_size: int, workspace: Path, tiny: Path, tmp_path: Path
) -> None:
    """In 56 examples: four batches, the last one smaller; or two, so that the third rank has none."""
    attacks = [
        AttackSpec(name="ifgsm", eps=(16, 32), steps=2),
        AttackSpec(name="pgd", eps=(16, 32), steps=2, restarts=2),
        AttackSpec(name="signs", eps=(32,)),
    ]
    wanted = suite(*attacks, targets=("erm1", "mixup1"), limit=56)
    options = {"batch_size": batch_size, "save_images": True}
    finish(wanted, workspace, **options)
    others = beside(tiny, tmp_path / "others")
    plans = [make_plan(wanted, Workspace(others), **options) for _ in range(ranks)]  # type: ignore[arg-type]
    assert together(plans, others) == [len(plans[0].wanted)] * ranks
    assert same_rows(workspace, others)
    one, several = by_key(workspace), by_key(others)
    for key, cell in one.items():
        for what in ("forward", "backward", "batches", "halved_from"):
            assert getattr(several[key].facts, what) == getattr(cell.facts, what), what
    kept = {path.name: path.read_bytes() for path in (workspace / "results/gallery").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in (others / "results/gallery").iterdir()}
    assert len(kept) == 3 * 5
    assert not list((others / "results/parts").iterdir())


def test_ranks_that_see_other_networks_say_so_before_anything_is_computed(workspace: Path) -> None:
    """Their collectives would meet others: they would hang, or write what belongs to another cell."""
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), limit=16)
    plans = [
        make_plan(one, Workspace(workspace)) for one in (wanted, wanted.model_copy(update={"sources": ("mixup1",)}))
    ]
    with pytest.raises(EvaluationError, match="process 1 has other models or images than the first one"):
        together(plans, workspace)
    assert not list((workspace / "results").glob("cells/*"))


def test_ranks_go_by_what_the_first_one_finds_missing(workspace: Path) -> None:
    """Another job may finish a unit while the ranks look one after the other."""
    first, second = (AttackSpec(name=name, eps=(16, 32)) for name in ("fgsm", "signs"))
    wanted = suite(first, second, limit=40)
    plans = [make_plan(wanted, Workspace(workspace), batch_size=16)]
    finish(suite(first, limit=40), workspace, batch_size=16)
    plans.append(make_plan(wanted, Workspace(workspace), batch_size=16))
    assert [len(plan.units) for plan in plans] == [3, 1]
    assert together(plans, workspace) == [2, 2], "what the other job has finished is not computed again"
    assert len(attacked(workspace)) == 4


def test_memory_that_runs_out_in_one_rank_halves_the_batches_of_all(
    workspace: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = suite(AttackSpec(name="ifgsm", eps=(16, 32), steps=2), limit=56)
    finish(wanted, workspace, batch_size=8)
    others = beside(tiny, tmp_path / "others")
    measure = evaluation.measure

    def hungry(unit: Any, inputs: Any, shard: Any, numbers: Any, *rest: Any) -> Any:
        if unit.source and numbers.start == 1 and unit.batch_size > 8:
            raise torch.OutOfMemoryError("out of memory")
        return measure(unit, inputs, shard, numbers, *rest)

    monkeypatch.setattr(evaluation, "measure", hungry)
    plans = [make_plan(wanted, Workspace(others), batch_size=32) for _ in range(2)]
    together(plans, others)
    smaller, found = by_key(workspace), by_key(others)
    assert smaller.keys() < found.keys()
    assert all(found[key].rows.equals(cell.rows) for key, cell in smaller.items())
    assert {cell.facts.halved_from for cell in attacked(others)} == {32}


def test_a_wrong_measurement_of_one_rank_is_nobody_s_cell(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = evaluation.measure

    def wrong(unit: Any, inputs: Any, shard: Any, numbers: Any, *rest: Any) -> Any:
        if unit.source and numbers.start == 1:
            raise EvaluationError("in batch 1 a logit is NaN")
        return measure(unit, inputs, shard, numbers, *rest)

    monkeypatch.setattr(evaluation, "measure", wrong)
    wanted = suite(AttackSpec(name="fgsm", eps=(16, 32)), limit=40)
    plans = [make_plan(wanted, Workspace(workspace), batch_size=16) for _ in range(2)]
    with pytest.raises(EvaluationError, match="in batch 1 a logit is NaN"):
        together(plans, workspace)
    assert attacked(workspace) == []


@pytest.mark.slow
def test_processes_give_the_cells_of_one_process(workspace: Path, tiny: Path, tmp_path: Path) -> None:
    attacks = AttackSpec(name="fgsm", eps=(16, 32)), AttackSpec(name="pgd", eps=(16, 32), steps=2, restarts=2)
    wanted = suite(*attacks, targets=("erm1", "mixup1"), limit=60)
    finish(wanted, workspace, batch_size=16, save_images=True)
    others = beside(tiny, tmp_path / "others")
    flags = "attack --source erm1 --target erm1 mixup1 --attack fgsm pgd --eps 16 32 --restarts 2 --steps 2"
    flags += " --save-images --limit 60 --batch-size 16 --devices 2"
    both = run(*flags.split(), cwd=others)
    assert both.returncode == 0, both.stderr
    assert both.stderr.count("computed now: 10 of 10 cells") == 1, "the first process speaks for all"
    assert same_rows(workspace, others)
    kept = {path.name: path.read_bytes() for path in (workspace / "results/gallery").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in (others / "results/gallery").iterdir()}
    assert not list((others / "results/parts").iterdir())


def test_somebody_s_model_is_looked_at_by_one_rank_first(
    nets: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with it is told once, not once per rank."""
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), sources=f"{nets}:Probable", targets="erm1", limit=20)
    plans = [make_plan(wanted, Workspace(workspace)) for _ in range(3)]
    load, loaded = Plan.load, []

    def seen(plan: Plan, one: Any, device: torch.device) -> nn.Module:
        loaded.append(plan)
        return load(plan, one, device)

    monkeypatch.setattr(Plan, "load", seen)
    with pytest.raises(EvaluationError, match="gives probabilities"):
        together(plans, workspace)
    assert len(loaded) == 1


# Rank 0 is slow to plan and slow to write, and every process says what it saw.
EVALUATION = """
import os, sys, time
from pathlib import Path
from robustmix import AttackSpec, Suite, evaluation

rank = os.environ["RANK"]
make_plan, write_cell = evaluation.make_plan, evaluation.write_cell

def planned(*arguments, **options):
    alone = rank == "0" or Path("planned").exists()
    plan = make_plan(*arguments, **options)
    if rank == "0":
        time.sleep(0.5)
        Path("planned").touch()
    Path(f"alone{rank}").write_text(str(alone))
    return plan

def written(*arguments):
    time.sleep(0.5)
    write_cell(*arguments)

evaluation.make_plan, evaluation.write_cell = planned, written
attacks = AttackSpec(name="fgsm", eps=(16, 32)), AttackSpec(name="ifgsm", eps=(16,), steps=2)
suite = Suite(version=1, title="t", sources=("erm1",), targets=("erm1", "mixup1"), attack=attacks, limit=40)
evaluation.evaluate(suite, device="cpu", batch_size=16).to_pickle(f"table{rank}")
"""


@pytest.mark.slow
def test_evaluate_in_several_processes_gives_each_all_results(workspace: Path, tiny: Path, tmp_path: Path) -> None:
    (workspace / "evaluation.py").write_text(EVALUATION)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "evaluation.py"], cwd=workspace, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [(workspace / f"alone{rank}").read_text() for rank in range(2)] == ["True", "True"]
    tables = [pd.read_pickle(workspace / f"table{rank}") for rank in range(2)]
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 2 + 2 * 3
    attacks = AttackSpec(name="fgsm", eps=(16, 32)), AttackSpec(name="ifgsm", eps=(16,), steps=2)
    others = beside(tiny, tmp_path / "others")
    finish(suite(*attacks, targets=("erm1", "mixup1"), limit=40), others, batch_size=16)
    assert same_rows(workspace, others)


# ---- several jobs, and what they leave behind ------------------------------------------------------------

WORK = "attack --source erm1 mixup1 --eps 8 16 32 --steps 20 --limit 128 --data digits"
CELLS = 2 + 2 * 2 * 3 * 2


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which `WORK` was done in one go."""
    folder = beside(tiny, tmp_path_factory.mktemp("whole") / "here")
    attacks = AttackSpec(name="fgsm", eps=(8, 16, 32)), AttackSpec(name="ifgsm", eps=(8, 16, 32), steps=20)
    _, computed = finish(suite(*attacks, sources=("erm1", "mixup1"), limit=128), folder)
    assert computed == CELLS
    return folder


@pytest.mark.slow
def test_killed_while_attacking_and_resumed_gives_the_same_cells(whole: Path, workspace: Path) -> None:
    cells, parts = workspace / "results/cells", workspace / "results/parts"
    for finished in (1, 8):

        def working(finished: int = finished) -> bool:
            return len(list(cells.glob("*.parquet"))) >= finished and any(parts.glob("*.claim"))

        stop_when(start(*WORK.split(), cwd=workspace), working, signal.SIGKILL)
        assert any(parts.glob("*.claim")), "the claim of the killed job"
    claims = set(parts.iterdir())
    kept = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.parquet")}
    assert 8 <= len(kept) < CELLS
    resumed = run(*WORK.split(), cwd=workspace)
    assert "waiting" not in resumed.stderr, "the claim of a dead job keeps nobody waiting"
    assert f"computed now: {CELLS - len(kept)} of {CELLS} cells" in resumed.stderr
    assert {name: (cells / name).stat().st_mtime_ns for name in kept} == kept
    assert same_rows(workspace, whole)
    assert set(parts.iterdir()) <= claims, "at most one on a unit that was whole already when its job was killed"


@pytest.mark.slow
def test_killed_processes_leave_nothing_behind_once_resumed(workspace: Path, tiny: Path, tmp_path: Path) -> None:
    # In three batches: one process hands over while the other computes the last one.
    flags = "attack --source erm1 --target erm1 mixup1 --eps 16 32 --steps 20 --limit 96 --batch-size 32 --save-images"
    parts, gallery = workspace / "results/parts", workspace / "results/gallery"
    job = subprocess.Popen(
        [sys.executable, "-m", "robustmix", *flags.split(), "--devices", "2"],
        cwd=workspace,
        env=environment(),
        start_new_session=True,
    )
    while not (any(parts.glob("*.npz")) and any(gallery.glob(".*.part"))):
        assert job.poll() is None
        time.sleep(0.001)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert any(parts.glob("*.npz")), "what one process had handed over"
    resumed = run(*flags.split(), "--devices", "2", cwd=workspace)
    assert resumed.returncode == 0, resumed.stderr
    assert not list(parts.iterdir())
    others = beside(tiny, tmp_path / "others")
    attacks = AttackSpec(name="fgsm", eps=(16, 32)), AttackSpec(name="ifgsm", eps=(16, 32), steps=20)
    finish(suite(*attacks, targets=("erm1", "mixup1"), limit=96), others, batch_size=32, save_images=True)
    assert same_rows(workspace, others)
    kept = {path.name: path.read_bytes() for path in gallery.iterdir()}
    assert kept == {path.name: path.read_bytes() for path in (others / "results/gallery").iterdir()}
    assert len(kept) == 3 * 4


@pytest.mark.parametrize("save_images", [False, True])
def test_a_job_that_was_silent_for_long_does_no_harm_to_the_one_that_took_over(
    save_images: bool, workspace: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended on another machine when it had measured a unit, and woken when the other one had finished it."""
    wanted = suite(AttackSpec(name="fgsm", eps=(16, 32)), limit=40)
    measure, makings = evaluation.measure, set()

    class Recorded(Gallery):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            makings.add(arguments[-1])

    def suspended(unit: Any, *rest: Any) -> Any:
        measured = measure(unit, *rest)
        if unit.source:
            with monkeypatch.context() as meanwhile:
                meanwhile.setattr(evaluation, "measure", measure)
                meanwhile.setattr(claims, "_abandoned", lambda path, patience: True)
                assert finish(wanted, workspace, save_images=save_images)[1] == 2
        return measured

    monkeypatch.setattr(evaluation, "Gallery", Recorded)
    monkeypatch.setattr(evaluation, "measure", suspended)
    if save_images:
        with pytest.raises(StoreError, match="is gone: another job has taken the work over while this one was silent"):
            finish(wanted, workspace, save_images=True)
        assert len(makings) == 2, "each has files of its own"
    else:
        assert finish(wanted, workspace)[1] == 3
    monkeypatch.undo()
    others = beside(tiny, tmp_path / "others")
    finish(wanted, others, save_images=save_images)
    assert same_rows(workspace, others)
    kept = {path.name: path.read_bytes() for path in (workspace / "results/gallery").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in (others / "results/gallery").iterdir()}
    assert not list((workspace / "results/parts").iterdir())


@pytest.mark.slow
def test_jobs_at_the_same_time_share_the_work(whole: Path, workspace: Path) -> None:
    jobs = [start(*WORK.split(), cwd=workspace) for _ in range(2)]
    said = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    computed = [int(err.rpartition("computed now: ")[2].split()[0]) for _, err in said]
    assert sum(computed) == CELLS, "nothing twice"
    assert min(computed) > 0
    assert same_rows(workspace, whole)
    tables = [[line.rpartition(" + ")[0].split()[:-1] for line in out.splitlines()[2:]] for out, _ in said]
    assert tables[0] == tables[1]
    assert len(tables[0]) == CELLS
    assert not list((workspace / "results/parts").iterdir())


def test_a_job_waits_for_what_another_one_computes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two jobs that begin with the same unit: one computes it, the other goes on with the next and then waits."""
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), AttackSpec(name="signs", eps=(16,)), limit=24)
    plans = [make_plan(wanted, Workspace(workspace), batch_size=16) for _ in range(2)]
    measure, taken, polls = evaluation.measure, threading.Event(), []
    units: list[tuple[str, str]] = []

    def slow(unit: Any, *rest: Any) -> Any:
        units.append((threading.current_thread().name, unit.title))
        if unit.source is None:
            taken.set()
            while len(polls) < 3:
                time.sleep(0.01)
        return measure(unit, *rest)

    def poll(seconds: float) -> None:
        polls.append(seconds)
        time.sleep(0.01)

    monkeypatch.setattr(evaluation, "measure", slow)
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(sleep=poll, perf_counter=time.perf_counter))
    counts = {}

    def work(name: str, plan: Plan) -> None:
        counts[name] = compute(plan, Workspace(workspace), Team(CPU))

    first = threading.Thread(target=work, args=("first", plans[0]), name="first")
    first.start()
    assert taken.wait(60)
    work("second", plans[1])
    first.join()
    titles = [title for _, title in units]
    assert sorted(titles) == ["clean predictions", "fgsm from erm1", "signs from erm1"], "each once"
    assert units[0] == ("first", "clean predictions")
    assert units[1:] == [("MainThread", "fgsm from erm1"), ("MainThread", "signs from erm1")]
    assert counts == {"first": 1, "second": 2}
    assert capsys.readouterr().err.count(", which computes clean predictions") == 1, "said once, however long it takes"
    assert len(planned_results(plans[0], Workspace(workspace))) == 3


# ---- files that are not what they should be --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty", "another cell"])
def test_a_damaged_cell_is_set_aside_and_computed_again(
    kind: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = suite(AttackSpec(name="fgsm", eps=(16, 32)), limit=24)
    table = evaluate(wanted, workspace=workspace)
    files = sorted((workspace / "results/cells").iterdir())
    whole = files[0].read_bytes()
    damage = {"truncated": whole[: len(whole) // 2], "garbage": b"PAR1 no parquet PAR1", "empty": b""}
    files[0].write_bytes(damage.get(kind) or (files[1].read_bytes() if kind == "another cell" else b""))
    capsys.readouterr()
    plan, computed = finish(wanted, workspace)
    aside = files[0].with_suffix(".damaged")
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1
    assert f"{files[0]} " in err
    assert f"it is set aside as {aside.name}" in err
    assert computed == 1
    assert aside.exists()
    assert_same_errors(planned_results(plan, Workspace(workspace)), table)
    assert finish(wanted, workspace)[1] == 0


def test_a_damaged_cell_that_cannot_be_set_aside_is_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = suite(AttackSpec(name="fgsm", eps=(16,)), limit=24)
    evaluate(wanted, workspace=workspace)
    next((workspace / "results/cells").iterdir()).write_bytes(b"")

    def refused(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(StoreError, match=r"is no cell that can be read .* cannot be set aside: .*Permission denied"):
        make_plan(wanted, Workspace(workspace))


# ---- compiled models -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_models_give_nearly_the_same(nets: str, workspace: Path) -> None:
    specs = [AttackSpec(name="ifgsm", eps=(16, 32), steps=2, compiled=compiled) for compiled in (False, True)]
    plan, computed = finish(suite(*specs, sources=f"{nets}:small", limit=100), workspace, batch_size=64)
    assert computed == 6
    found: dict[tuple[float | None, bool], np.ndarray] = {}
    for cell in by_key(workspace).values():
        found[cell.identity.eps_255, cell.identity.compiled] = cell.rows["prediction"].to_numpy()
    budgets = {eps for eps, _ in found}
    assert len(budgets) == 3
    for eps in budgets:
        assert (found[eps, False] != found[eps, True]).sum() <= (3 if eps else 1)
    table = planned_results(plan, Workspace(workspace))
    assert table["compiled"].value_counts().to_dict() == {False: 3, True: 3}


class Shell(nn.Module):
    """The code that all networks share, as other people's do that of their wrapper."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class Sized(nn.Module):
    """Notes the passes that are not compiled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(width)))
        self.plain = 0

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.plain += 1
        logits: Tensor = self.layers(x)
        return logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many_networks_are_compiled_and_none_in_silence_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without code for the machine: how often one piece of code is compiled anew has nothing to do with it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    networks = [Sized(width) for width in range(1, 6)]
    for network in networks:
        model = compile_network(Shell(network), graphs=False)
        for count in (5, 4):
            model(torch.zeros(count, 8, requires_grad=True))
            with torch.no_grad():
                model(torch.zeros(count, 8))
    torch.compiler.reset()
    assert [network.plain for network in networks] == [0] * 5


class TooLarge:
    """A split that fits into no device's memory, which fails in one way or another."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def to(self, device: torch.device) -> None:
        raise self.error


def test_examples_that_do_not_fit_on_the_device_stay_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    split: Any = TooLarge(torch.OutOfMemoryError("CUDA out of memory"))
    assert on_device(split, torch.device("cuda")) is split
    assert "do not fit into the memory of cuda: they move there batch by batch" in capsys.readouterr().err
    broken: Any = TooLarge(RuntimeError("no such device"))
    with pytest.raises(RuntimeError, match="no such device"):
        on_device(broken, torch.device("cuda"))


def test_compiled_networks_run_as_cuda_graphs_on_a_gpu_but_for_other_libraries(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, *, mode: asked.append(mode) or model)
    attacks = [
        AttackSpec(name="fgsm", eps=(16,), compiled=True),
        AttackSpec(name="fgsm", eps=(16,), compiled=True, impl="foolbox"),
        AttackSpec(name="deepfool", compiled=True),
    ]
    units = make_plan(suite(*attacks, limit=8), Workspace(workspace)).units
    assert [unit.title for unit in units] == ["clean predictions", *["fgsm from erm1"] * 2, "deepfool from erm1"]
    for device, modes in (
        ("cuda", ["reduce-overhead", "reduce-overhead", "default", "default"]),
        ("cpu", ["default"] * 4),
    ):
        for unit in units:
            compile_network(nn.Identity(), graphs=as_graphs(unit, torch.device(device)))
        assert asked == modes
        asked.clear()


def test_cells_say_how_they_were_computed(workspace: Path) -> None:
    data: Dataset = load_data("digits")
    finish(suite(AttackSpec(name="signs", eps=(16,)), limit=8), workspace)
    (cell,) = attacked(workspace)
    facts = cell.facts
    assert (facts.data, facts.data_spec, facts.like, facts.data_note) == ("digits", "digits", "digits", data.note)
    assert facts.classes == data.classes
    assert (facts.source_name, facts.target_name, facts.device) == ("erm1", "erm1", "cpu")
    assert (facts.torch, facts.robustmix) == (torch.__version__, robustmix.__version__)
    assert 0 < facts.unit_seconds < 60
    assert 0 <= facts.data_wait < 1
