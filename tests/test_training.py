import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, environment, run, start, stop_when, tiny_flags

import robustmix
from robustmix import Recipe, training
from robustmix.checkpoints import load_state, save_state
from robustmix.errors import CheckpointError, SpecError, StoreError
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace
from robustmix.training import error_rate, learning_rate


def weights(workspace: Path, name: str) -> bytes:
    return (workspace / "runs" / name / "model.safetensors").read_bytes()


def epochs_done(workspace: Path, name: str) -> int:
    state = workspace / "runs" / name / "state.ckpt"
    return len(load_state(state)["history"]) if state.exists() else 0


def test_both_methods_beat_chance_by_far(tiny: Path) -> None:
    for name in ("erm1", "erm2", "mixup1", "mixup2"):
        run_ = read_run(Workspace(tiny), name)
        assert run_.final("test_error") < 0.5, name
        assert len(run_.history) == TINY["epochs"]


def test_history_is_what_the_model_does(tiny: Path) -> None:
    data = robustmix.load_data("digits")
    model = robustmix.load_model("mixup1", workspace=tiny)
    final = read_run(Workspace(tiny), "mixup1")
    assert error_rate(model, data.test) == final.final("test_error")
    assert error_rate(model, data.train.first(TINY["limit"])) == final.final("train_error")
    assert final.history["train_error"].iloc[:-1].isna().all()


def test_same_seed_same_bits_other_seed_differs(tiny: Path, tmp_path: Path) -> None:
    robustmix.train(Recipe(method="mixup", seed=1, **TINY), name="again", workspace=tmp_path)
    assert weights(tmp_path, "again") == weights(tiny, "mixup1")
    assert weights(tiny, "mixup1") != weights(tiny, "mixup2")


def test_the_caller_s_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    robustmix.train(Recipe(**{**TINY, "epochs": 1}), workspace=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_first_layer_normalises_with_the_training_examples_statistics(tiny: Path) -> None:
    model = robustmix.load_model("erm1", workspace=tiny)
    images = robustmix.load_data("digits").train.first(TINY["limit"]).images.double() / 255
    assert torch.allclose(model.normalize.mean.double().flatten(), images.mean(), atol=1e-6)
    assert torch.allclose(model.normalize.std.double().flatten(), images.std(correction=0), atol=1e-6)


@pytest.mark.parametrize("method", ["erm", "mixup"])
def test_killed_twice_and_resumed_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    flags = ["train", "--method", method, "--augment", "crop", "--val", "100", *tiny_flags(epochs=6)]
    whole = run(*flags, "--name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    for epochs in (1, 3):
        process = start(*flags, "--name", "parts", cwd=tmp_path)
        stop_when(process, lambda epochs=epochs: epochs_done(tmp_path, "parts") >= epochs, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "runs/parts/model.safetensors").exists()
    resumed = run(*flags, "--name", "parts", cwd=tmp_path)
    assert resumed.returncode == 0
    assert "going on after epoch" in resumed.stderr
    assert weights(tmp_path, "parts") == weights(tmp_path, "whole")
    columns = ["epoch", "lr", "train_loss", "train_error_mixed", "val_error", "test_error"]
    histories = [read_run(Workspace(tmp_path), name).history[columns] for name in ("parts", "whole")]
    assert histories[0].equals(histories[1])


def test_ctrl_c_exits_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    flags = ["train", "--method", "erm", *tiny_flags(epochs=500), "--name", "long"]
    process = start(*flags, cwd=tmp_path)
    said = stop_when(process, lambda: epochs_done(tmp_path, "long") >= 1, signal.SIGINT)
    assert process.returncode == 130
    assert f"robustmix {' '.join(flags)}" in said.splitlines()[-1]


def test_a_finished_run_says_so(tiny: Path) -> None:
    before = weights(tiny, "erm1")
    again = run("train", "--method", "erm", "--seed", "1", *tiny_flags(), cwd=tiny)
    assert again.returncode == 0
    assert "'erm1' has finished" in again.stderr
    assert weights(tiny, "erm1") == before


def test_another_recipe_under_the_same_name_is_refused_unless_overwritten(tmp_path: Path) -> None:
    short = {**TINY, "epochs": 1}
    robustmix.train(Recipe(**short), name="x", workspace=tmp_path)
    before = weights(tmp_path, "x")
    with pytest.raises(SpecError, match=r"another recipe \(epochs 1 -> 2\).*--overwrite"):
        robustmix.train(Recipe(**{**short, "epochs": 2}), name="x", workspace=tmp_path)
    assert weights(tmp_path, "x") == before
    replaced = robustmix.train(Recipe(**{**short, "epochs": 2}), name="x", workspace=tmp_path, overwrite=True)
    assert len(replaced.history) == 2


def test_a_finished_run_without_its_derived_files_gets_them_back(tmp_path: Path) -> None:
    """As if killed after the last state.ckpt, before model.safetensors."""
    robustmix.train(Recipe(**TINY), name="x", workspace=tmp_path)
    before = weights(tmp_path, "x")
    for name in ("model.safetensors", "history.parquet"):
        (tmp_path / "runs/x" / name).unlink()
    again = robustmix.train(Recipe(**TINY), name="x", workspace=tmp_path)
    assert len(again.history) == TINY["epochs"]
    assert weights(tmp_path, "x") == before


@pytest.mark.parametrize(
    "fields",
    [
        {"augment": "crop-flip", "schedule": "cosine"},
        {"method": "mixup", "lam_per": "example", "alpha": 0.4},
        {"method": "mixup", "precision": "bf16", "val": 64},
    ],
)
def test_every_option_is_resumed_exactly(
    fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(**{**TINY, **fields})
    robustmix.train(recipe, name="whole", workspace=tmp_path)
    saved = []

    def save_and_stop(path: Path, state: dict[str, object]) -> None:
        saved.append(path)
        save_state(path, state)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            robustmix.train(recipe, name="parts", workspace=tmp_path)
    assert epochs_done(tmp_path, "parts") == 2
    robustmix.train(recipe, name="parts", workspace=tmp_path)
    assert weights(tmp_path, "parts") == weights(tmp_path, "whole")


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_killed_overwrite_never_passes_old_weights_off_as_new(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Recipe(**{**TINY, "epochs": 1}), Recipe(**{**TINY, "epochs": 2})
    robustmix.train(old, name="x", workspace=tmp_path)
    before = weights(tmp_path, "x")
    removed: list[Path] = []
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if len(removed) == kept and path.parent.name == "x":
            raise KeyboardInterrupt
        if path.parent.name == "x":
            removed.append(path)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            robustmix.train(new, name="x", workspace=tmp_path, overwrite=True)
    done = robustmix.train(new, name="x", workspace=tmp_path, overwrite=True)
    assert len(done.history) == 2
    assert weights(tmp_path, "x") != before


def test_a_damaged_state_is_named_and_can_be_replaced(tmp_path: Path) -> None:
    recipe = Recipe(**{**TINY, "epochs": 1})
    robustmix.train(recipe, name="x", workspace=tmp_path)
    before = weights(tmp_path, "x")
    state = tmp_path / "runs/x/state.ckpt"
    state.write_bytes(state.read_bytes()[:1000])
    (tmp_path / "runs/x/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"state\.ckpt"):
        robustmix.train(recipe, name="x", workspace=tmp_path)
    robustmix.train(recipe, name="x", workspace=tmp_path, overwrite=True)
    assert weights(tmp_path, "x") == before


def test_a_run_on_data_that_has_changed_is_refused_unless_overwritten(tmp_path: Path) -> None:
    digits = robustmix.load_data("digits")
    arrays = {
        f"{what}_{half}": getattr(getattr(digits, half).first(128), "images" if what == "x" else "labels").numpy()
        for half in ("train", "test")
        for what in ("x", "y")
    }
    np.savez(tmp_path / "d.npz", **arrays)
    recipe = Recipe(data=f"npz:{tmp_path}/d.npz", **{**TINY, "epochs": 1})
    robustmix.train(recipe, name="x", workspace=tmp_path)
    before = weights(tmp_path, "x")
    np.savez(tmp_path / "d.npz", **{**arrays, "x_train": 255 - arrays["x_train"]})
    with pytest.raises(SpecError, match="trained on other data"):
        robustmix.train(recipe, name="x", workspace=tmp_path)
    robustmix.train(recipe, name="x", workspace=tmp_path, overwrite=True)
    assert weights(tmp_path, "x") != before


def test_images_too_small_for_the_network_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    images = np.zeros((8, 6, 6, 1), dtype=np.uint8)
    labels = np.arange(8) % 2
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(SpecError, match="at least 8x8"):
        robustmix.train(Recipe(data=f"npz:{tmp_path}/d.npz"), name="x", workspace=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_workspace_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        robustmix.train(Recipe(**TINY), name="x", workspace=tmp_path / "file")


def test_a_state_of_another_recipe_is_not_resumed(tmp_path: Path) -> None:
    robustmix.train(Recipe(**{**TINY, "epochs": 1}), name="x", workspace=tmp_path)
    folder = tmp_path / "runs/x"
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "seed": 9}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="another recipe"):
        robustmix.train(Recipe(**{**TINY, "epochs": 1, "seed": 9}), name="x", workspace=tmp_path)


def test_two_processes_do_not_train_the_same_run(tmp_path: Path) -> None:
    flags = ["train", *tiny_flags(epochs=500), "--name", "x"]
    first = start(*flags, cwd=tmp_path)

    def refused() -> bool:
        if epochs_done(tmp_path, "x") < 1:
            return False
        second = run(*flags, cwd=tmp_path)
        assert second.returncode == 2
        assert "being trained by another process" in second.stderr
        return True

    stop_when(first, refused, signal.SIGKILL)


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    """A limit on the size of files is what a full disk looks like to a process that may not mount one."""
    flags = ["train", *tiny_flags(epochs=500), "--name", "x"]
    process = start(*flags, cwd=tmp_path)
    stop_when(process, lambda: epochs_done(tmp_path, "x") >= 1, signal.SIGKILL)
    done = epochs_done(tmp_path, "x")
    limited = subprocess.run(
        [sys.executable, "-m", "robustmix", *flags],
        cwd=tmp_path,
        env=environment(),
        text=True,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert limited.returncode == 2, limited.stderr
    assert "state.ckpt cannot be written" in limited.stderr.splitlines()[-1]
    assert epochs_done(tmp_path, "x") == done
    assert not list((tmp_path / "runs/x").glob(".*.tmp"))


def test_a_batch_of_one_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="single example"):
        robustmix.train(Recipe(limit=65), name="x", workspace=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_validation_is_carved_out_of_the_training_set(tmp_path: Path) -> None:
    run_ = robustmix.train(Recipe(val=957, **{**TINY, "limit": None, "epochs": 1}), workspace=tmp_path)
    assert run_.facts is not None
    assert run_.facts.train_examples == 480
    assert 0 <= run_.final("val_error") <= 1


@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_precision_is_part_of_the_recipe(precision: str, tmp_path: Path) -> None:
    run_ = robustmix.train(Recipe(precision=precision, **{**TINY, "epochs": 1}), workspace=tmp_path)
    assert math.isfinite(run_.final("train_loss"))
    assert robustmix.load_model("erm", workspace=tmp_path)(torch.zeros(1, 1, 8, 8)).dtype == torch.float32


def test_a_diverging_run_is_an_error_and_writes_no_model(tmp_path: Path) -> None:
    with pytest.raises(robustmix.RobustmixError, match=r"training loss is (nan|inf).*lower --lr"):
        robustmix.train(Recipe(**{**TINY, "lr": 1e9}), name="x", workspace=tmp_path)
    assert not (tmp_path / "runs/x/model.safetensors").exists()
    lower = robustmix.train(Recipe(**TINY), name="x", workspace=tmp_path)  # nothing had been learnt that could be lost
    assert lower.finished


def test_learning_rate_schedules() -> None:
    step = Recipe(epochs=200, lr=0.1)
    assert [learning_rate(step, epoch, 0, 391) for epoch in (0, 99)] == [0.1, 0.1]
    assert learning_rate(step, 100, 0, 391) == pytest.approx(0.01)
    assert learning_rate(step, 149, 390, 391) == pytest.approx(0.01)
    assert learning_rate(step, 150, 0, 391) == pytest.approx(0.001)
    cosine = Recipe(epochs=10, lr=0.1, schedule="cosine")
    assert learning_rate(cosine, 0, 0, 4) == pytest.approx(0.1)
    assert learning_rate(cosine, 5, 0, 4) == pytest.approx(0.05)
    assert 0 < learning_rate(cosine, 9, 3, 4) < 0.001
