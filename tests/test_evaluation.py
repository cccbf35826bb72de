import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest
import torch
from tiny import TINY, run, start, stop_when
from torch import nn

import robustmix
from robustmix import AttackSpec, Recipe, Suite, evaluation, planning
from robustmix.checkpoints import read_spec
from robustmix.crosscheck import crosscheck_line
from robustmix.errors import EvaluationError, SpecError
from robustmix.evaluation import evaluate, score
from robustmix.store.cells import read_cells, write_cell
from robustmix.store.results import COLUMNS
from robustmix.store.runs import common_data, finished_run
from robustmix.store.workspace import Workspace

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
)


@pytest.fixture
def workspace(tiny: Path, tmp_path: Path) -> Path:
    """The trained runs, without any results."""
    (tmp_path / "runs").symlink_to(tiny / "runs")
    return tmp_path


def test_one_row_per_cell_with_the_promised_columns(workspace: Path) -> None:
    results = evaluate(SUITE, workspace=workspace)
    assert tuple(results.columns) == COLUMNS
    assert len(results) == 4 + 2 * (3 + 2 + 2) * 4
    assert set(results["role"]) == {"clean", "white", "transfer"}
    assert ((results["source"] == results["target"]) == (results["role"] == "white")).all()
    assert (results["delta_max"].dropna() <= 1 + 1e-5).all()
    assert (results["n"] == 360).all()
    assert results["error"].between(results["error_low"], results["error_high"]).all()
    white = results[(results["role"] == "white") & (results["target"] == "erm1") & (results["attack"] == "fgsm")]
    assert white["error"].is_monotonic_increasing
    assert white["error"].iloc[-1] > 0.5 > white["clean_error"].iloc[0]


@pytest.mark.parametrize("peer", ["torchattacks", "foolbox"])
@pytest.mark.parametrize("name", ["erm1", "mixup1"])
def test_errors_equal_an_independent_library_s_to_the_example(workspace: Path, peer: str, name: str) -> None:
    library = pytest.importorskip(peer, reason="needs the extra 'attacks'")
    evaluate(SUITE, workspace=workspace)
    cells = {
        (cell.identity.attack, cell.identity.steps, cell.identity.step_255, cell.identity.eps_255): cell
        for cell in read_cells(workspace / "results/cells")
        if cell.facts.source_name == name and cell.facts.target_name == name
    }
    model = robustmix.load_model(name, workspace=workspace)
    test = robustmix.load_data("digits").test
    x, y = test.images.float() / 255, test.labels
    for (attack, steps, step, eps), cell in cells.items():
        lengths = {"eps": eps / 255, "step": step / 255, "steps": steps}
        predictions = []
        for xb, yb in zip(x.split(256), y.split(256), strict=True):
            adversarial = (torchattacks_of if peer == "torchattacks" else foolbox_of)(
                library, attack, model, xb, yb, **lengths
            )
            with torch.no_grad():
                predictions.append(model(adversarial).argmax(1))
        assert np.array_equal(torch.cat(predictions).numpy(), cell.rows["prediction"].to_numpy()), (attack, eps)


def torchattacks_of(library, attack, model, x, y, eps, step, steps):  # type: ignore[no-untyped-def]
    if attack == "fgsm":
        return library.FGSM(model, eps=eps)(x, y)
    return library.PGD(model, eps=eps, alpha=step, steps=steps, random_start=False)(x, y)


def foolbox_of(library, attack, model, x, y, eps, step, steps):  # type: ignore[no-untyped-def]
    wrapped = library.PyTorchModel(model, bounds=(0, 1))
    if attack == "fgsm":
        return library.attacks.FGSM()(wrapped, x, y, epsilons=eps)[1]
    return library.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=False)(wrapped, x, y, epsilons=eps)[1]


def test_a_second_time_nothing_is_computed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(SUITE, workspace=workspace)
    monkeypatch.setattr(evaluation, "sweep", None)
    monkeypatch.setattr(evaluation, "score", None)
    pd.testing.assert_frame_equal(evaluate(SUITE, workspace=workspace), first)


def test_a_new_budget_and_a_new_target_compute_only_what_is_missing(workspace: Path) -> None:
    place = Workspace(workspace)
    small = Suite(version=1, title="t", sources=("erm1",), attack=(AttackSpec(name="ifgsm", eps=(16,)),))
    evaluate(small, workspace=workspace)
    larger = small.model_copy(
        update={"targets": ("erm1", "mixup1"), "attack": (AttackSpec(name="ifgsm", eps=(16, 32)),)}
    )
    units = planning.make_plan(larger, place).units
    missing = {(unit.title, eps, target.name) for unit in units for eps, target, _ in unit.cells}
    assert missing == {
        ("clean predictions", 0, "mixup1"),
        ("ifgsm from erm1", 16, "mixup1"),
        ("ifgsm from erm1", 32, "erm1"),
        ("ifgsm from erm1", 32, "mixup1"),
    }


def test_cells_do_not_depend_on_which_others_are_computed_with_them(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/runs").symlink_to(workspace / "runs")
    evaluate(SUITE, workspace=workspace)
    for eps in (64, 32, 16):
        attacks = tuple(
            spec.model_copy(update={"eps": (eps,)}) for spec in SUITE.attack if spec.eps and eps in spec.eps
        )
        for target in ("mixup2", "mixup1", "erm2", "erm1"):
            one = SUITE.model_copy(update={"attack": attacks, "targets": (target,)})
            evaluate(one, workspace=tmp_path / "b")
    apart = {cell.key: cell.rows for cell in read_cells(tmp_path / "b/results/cells")}
    together = {cell.key: cell.rows for cell in read_cells(workspace / "results/cells")}
    assert apart.keys() == together.keys()
    assert all(apart[key].equals(together[key]) for key in apart)


def test_passes_are_counted_as_they_happen(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"forward": 0, "backward": 0}

    def counted(*arguments: object, **options: object) -> nn.Module:
        model = robustmix.load_model(*arguments, **options)  # type: ignore[arg-type]
        model.register_forward_hook(lambda *_: counts.update(forward=counts["forward"] + 1))
        model.register_full_backward_hook(lambda *_: counts.update(backward=counts["backward"] + 1))
        return model

    monkeypatch.setattr(evaluation, "load_model", counted)
    plan = planning.make_plan(SUITE, Workspace(workspace))
    evaluation.compute(plan, Workspace(workspace), torch.device("cpu"))
    batches = 2
    assert counts["forward"] == batches * sum(unit.forward for unit in plan.units)
    assert counts["backward"] == batches * sum(unit.backward for unit in plan.units)


def test_killed_while_attacking_and_resumed_gives_the_same_table(tiny: Path, tmp_path: Path) -> None:
    runs = "--source erm1 mixup1 --target erm1 erm2 mixup1 mixup2"
    flags = f"attack {runs} --eps 8 16 32 --steps 40".split()
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runs").symlink_to(tiny / "runs")
    whole = run(*flags, cwd=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    cells = tmp_path / "parts/results/cells"
    for finished in (1, 20):
        process = start(*flags, cwd=tmp_path / "parts")
        stop_when(process, lambda finished=finished: len(list(cells.glob("*.parquet"))) >= finished, signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.parquet")}
    assert 20 <= len(kept) < 4 + 2 * 2 * 3 * 4
    resumed = run(*flags, cwd=tmp_path / "parts")
    assert resumed.stdout == whole.stdout
    assert {name: (cells / name).stat().st_mtime_ns for name in kept} == kept


def test_weights_that_lost_their_name_are_shown_only_on_demand(tmp_path: Path) -> None:
    short = {**TINY, "epochs": 1, "limit": 64}
    suite = Suite(version=1, title="t", sources=("x",), attack=(AttackSpec(name="fgsm", eps=(32,)),), limit=50)
    for seed in (1, 2):
        robustmix.train(Recipe(seed=seed, **short), name="x", workspace=tmp_path, overwrite=True)
        assert len(evaluate(suite, workspace=tmp_path)) == 2
    named = run("results", "--format", "csv", cwd=tmp_path).stdout.splitlines()
    everything = run("results", "--format", "csv", "--all", cwd=tmp_path).stdout.splitlines()
    assert len(named) == 1 + 2
    assert len(everything) == 1 + 4


def test_a_model_that_does_not_fit_the_data_is_refused(workspace: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8),
        "y_train": np.arange(20) % 5,
        "x_test": rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8),
        "y_test": np.arange(20) % 5,
    }
    np.savez(tmp_path / "five.npz", **arrays)
    with pytest.raises(EvaluationError, match=r"'erm1' tells 10 classes apart, .* has 5"):
        evaluate(SUITE.model_copy(update={"data": f"npz:{tmp_path}/five.npz"}), workspace=workspace)
    arrays.update(y_train=np.arange(20) % 10, y_test=np.arange(20) % 10)
    arrays.update({key: np.repeat(arrays[key], 2, axis=1) for key in ("x_train", "x_test")})
    np.savez(tmp_path / "tall.npz", **arrays)
    with pytest.raises(EvaluationError, match=r"takes images \[1, 8, 8\], .* has \[1, 16, 8\]"):
        evaluate(SUITE.model_copy(update={"data": f"npz:{tmp_path}/tall.npz"}), workspace=workspace)
    assert not (workspace / "results").exists()


def test_sources_trained_on_different_data_need_a_choice(workspace: Path) -> None:
    runs = [finished_run(Workspace(workspace), name) for name in ("erm1", "erm2")]
    other = replace(runs[1], recipe=runs[1].recipe.model_copy(update={"data": "cifar10"}))
    with pytest.raises(SpecError, match=r"cifar10, digits.*--data"):
        common_data([runs[0], other])


def test_an_attack_that_leaves_its_budget_is_an_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(name, model, x, y, eps, steps, step_size):  # type: ignore[no-untyped-def]
        yield from ((e, (x + 1.01 * e).clamp(0, 1)) for e in eps)

    monkeypatch.setattr(evaluation, "sweep", drifting)
    with pytest.raises(EvaluationError, match="leave the budget 16/255"):
        evaluate(SUITE, workspace=workspace)
    assert all(cell.identity.attack == "clean" for cell in read_cells(workspace / "results/cells"))


def test_score_against_a_slow_count() -> None:
    logits = torch.tensor([[3.0, 1, 0, -1, -2, -3], [0, 1, 2, 3, 4, 9]])
    labels = torch.tensor([0, 0])
    prediction, in_top5, confidence, gap = score(nn.Identity(), logits, labels)
    assert prediction.tolist() == [0, 5]
    assert in_top5.tolist() == [1, 0]
    assert confidence[0] == pytest.approx(float(logits[0].softmax(0)[0]))
    assert gap.tolist() == [2, -9]


def test_a_logit_that_is_no_number_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        score(nn.Identity(), torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))


def test_equal_logits_are_predicted_as_argmax_does() -> None:
    prediction, in_top5, _, gap = score(nn.Identity(), torch.zeros(3, 10), torch.tensor([0, 4, 9]))
    assert prediction.tolist() == [0, 0, 0]
    assert in_top5.tolist() == [1, 1, 1]
    assert gap.tolist() == [0, 0, 0]


def test_classes_in_another_order_are_refused(workspace: Path, tmp_path: Path) -> None:
    from PIL import Image

    for half in ("train", "test"):
        for name in "9876543210":
            folder = tmp_path / "digits" / half / f"{name}"
            folder.mkdir(parents=True)
            Image.fromarray(np.full((8, 8), 25 * int(name), dtype=np.uint8)).save(folder / "1.png")
    model = read_spec(workspace / "runs/erm1/model.safetensors")
    assert model.classes == tuple("0123456789")
    data = robustmix.load_data(f"folder:{tmp_path}/digits")
    assert data.classes == model.classes
    turned = replace(data, classes=data.classes[::-1])
    with pytest.raises(EvaluationError, match="in another order"):
        planning._check_fit(finished_run(Workspace(workspace), "erm1"), turned, Workspace(workspace))


def test_the_cross_check_compares_a_cell_with_both_peers(workspace: Path) -> None:
    pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    pytest.importorskip("foolbox", reason="needs the extra 'attacks'")
    suite = SUITE.model_copy(update={"attack": SUITE.attack[1:2], "targets": ("erm1",), "sources": ("erm1",)})
    evaluate(suite, workspace=workspace)
    line = crosscheck_line(Workspace(workspace), "erm1")
    assert line.count("other predictions on 0") == 2
    for cell in read_cells(workspace / "results/cells"):
        wrong = cell.rows.set_column(2, "prediction", pc.add(cell.rows["prediction"], 1).cast("int32"))
        write_cell(workspace / "results/cells", replace(cell, rows=wrong))
    assert crosscheck_line(Workspace(workspace), "erm1").count("other predictions on 360") == 2
