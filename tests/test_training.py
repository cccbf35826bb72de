import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY, environment, run, start, stop_when, tiny_flags

import robustmix
from robustmix import Recipe, trainee, training
from robustmix.checkpoints import load_state, save_state
from robustmix.errors import CheckpointError, SpecError, StoreError
from robustmix.scoring import score, score_training
from robustmix.spec.names import METHODS
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace
from robustmix.team import Team


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


@pytest.mark.parametrize("method", METHODS)
def test_every_method_beats_chance_by_far(method: str, tmp_path: Path) -> None:
    found = robustmix.train(Recipe(method=method, **{**TINY, "epochs": 6}), workspace=tmp_path)
    assert found.final("test_error") < 0.5


def test_adversarial_training_resists_more(tmp_path: Path) -> None:
    fields = {**TINY, "epochs": 6}
    errors = {}
    for name, more in (("plain", {}), ("pgd", {"adversarial_eps": 24, "adversarial_steps": 3})):
        robustmix.train(Recipe(seed=1, **fields, **more), name=name, workspace=tmp_path)
        model = robustmix.load_model(name, workspace=tmp_path)
        test = robustmix.load_data("digits").test
        x, y = next(iter(test.batches([torch.arange(200)], torch.device("cpu"))))
        x_adv = robustmix.attacks.ifgsm(model, x, y, eps=24 / 255)
        errors[name] = float((model(x_adv).argmax(1) != y).float().mean())
    assert errors["pgd"] < errors["plain"] - 0.05


def test_label_noise_is_learnt_less_than_what_is_right(tmp_path: Path) -> None:
    found = robustmix.train(Recipe(label_noise=0.4, **{**TINY, "epochs": 6}), workspace=tmp_path)
    row = found.history.iloc[-1]
    assert row["train_error_real"] < 0.5 < row["train_error_corrupted"]
    corrupted = 0.4 * row["train_error_corrupted"] + 0.6 * row["train_error_real"]
    assert row["train_error"] == pytest.approx(corrupted, abs=1e-9)


def test_history_is_what_the_model_does(tiny: Path) -> None:
    data = robustmix.load_data("digits")
    model = robustmix.load_model("mixup1", workspace=tiny)
    final, team = read_run(Workspace(tiny), "mixup1"), Team(torch.device("cpu"))
    test = score("test", model, data.test, team)
    assert test == {name: final.final(name) for name in ("test_error", "test_loss")}
    train = score_training(model, data.with_limit(TINY["limit"]).train, None, team, last=True)
    assert train == {"train_error": final.final("train_error")}
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
    images = robustmix.load_data("digits").with_limit(TINY["limit"]).train.images.double() / 255
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
        {"method": "mixup-hc", "drop": "dropout:0.3", "label_smoothing": 0.1, "noise": 0.05},
        {"method": "manifold", "drop": "stochastic_depth:0.2", "label_noise": 0.2, "nesterov": True},
        {"method": "mixup", "nearest": 5, "augment": "crop", "warmup": 1, "warmup_lr": 0.01},
        {"method": "erm", "adversarial_eps": "8", "adversarial_steps": 2},
    ],
)
def test_every_option_is_resumed_exactly(
    fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(**{**TINY, **fields})
    robustmix.train(recipe, name="whole", workspace=tmp_path)
    interrupt(monkeypatch, 2, recipe, tmp_path)
    assert epochs_done(tmp_path, "parts") == 2
    robustmix.train(recipe, name="parts", workspace=tmp_path)
    assert weights(tmp_path, "parts") == weights(tmp_path, "whole")


def interrupt(monkeypatch: pytest.MonkeyPatch, saves: int, recipe: Recipe, workspace: Path) -> None:
    """Train the run "parts" until it has written its state a number of times."""
    saved = []

    def save_and_stop(path: Path, state: dict[str, object]) -> None:
        saved.append(path)
        save_state(path, state)
        if len(saved) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainee, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            robustmix.train(recipe, name="parts", workspace=workspace)


def test_a_long_epoch_is_resumed_from_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(method="mixup", augment="crop", **TINY)
    robustmix.train(recipe, name="whole", workspace=tmp_path)
    monkeypatch.setattr(training, "LOOK_EVERY", 4)
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0)
    interrupt(monkeypatch, 7, recipe, tmp_path)  # 15 steps: three saves on the way and one at the end of each epoch
    state = load_state(tmp_path / "runs/parts/state.ckpt")
    assert (len(state["history"]), state["step"]) == (1, 12)
    robustmix.train(recipe, name="parts", workspace=tmp_path)
    assert weights(tmp_path, "parts") == weights(tmp_path, "whole")
    losses = [read_run(Workspace(tmp_path), name).history["train_loss"] for name in ("parts", "whole")]
    assert losses[0].equals(losses[1])


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


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    images, labels = np.zeros((8, 8, 8, 3), dtype=np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    for fields, said in (
        ({"method": "manifold", "model": "torchvision:resnet18"}, "which torchvision:resnet18 does not offer: choose"),
        ({"method": "manifold", "model": "wrn28_10", "layers": "5"}, "layer 5 of wrn28_10 cannot be mixed"),
        ({"sync_batch_norm": True}, "--sync-batch-norm works on GPUs only, not on cpu"),
        ({"method": "mixup", "nearest": 8}, "--nearest 8 is too many among 8 training examples: at most 7"),
        ({"method": "mixup", "nearest": 4, "same_class": True}, "too many among a class of 4 training examples"),
        ({"model": "vgg11", "drop": "swapout:0.5"}, "drop swapout does not apply to vgg11"),
        ({"augment": "resized-crop-flip"}, "--augment resized-crop-flip does not apply"),
        ({"warmup": 20}, "--warmup 20 leaves nothing of 20 epochs"),
    ):
        with pytest.raises(SpecError, match=re.escape(said)):
            robustmix.train(Recipe(data=f"npz:{tmp_path}/d.npz", **fields), name="x", workspace=tmp_path)
        assert not (tmp_path / "runs").exists()


def test_streamed_images_train_the_same_but_have_no_neighbours(tmp_path: Path) -> None:
    for half in ("train", "test"):
        for name in "ab":
            folder = tmp_path / "images" / half / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (60 * number, 0, ord(name))).save(folder / f"{number}.png")
    recipe = Recipe(data=f"folder:{tmp_path}/images", method="mixup", nearest=2)
    with pytest.raises(SpecError, match=r"needs images in memory, but those of .* are streamed"):
        robustmix.train(recipe, name="x", workspace=tmp_path, stream=True)
    assert not (tmp_path / "runs").exists()
    fields = {**TINY, "limit": None, "epochs": 1, "batch_size": 4}
    recipe = Recipe(data=f"folder:{tmp_path}/images", method="mixup", augment="crop-flip", **fields)
    for name, stream in (("streamed", True), ("kept", False)):
        robustmix.train(recipe, name=name, workspace=tmp_path, stream=stream, workers=int(stream))
    assert weights(tmp_path, "streamed") == weights(tmp_path, "kept")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_is_nearly_the_same(tmp_path: Path) -> None:
    recipe = Recipe(method="mixup", **{**TINY, "model": "lenet", "width": None, "epochs": 1})
    found = [
        robustmix.train(recipe, name=f"x{compiled}", workspace=tmp_path, compiled=compiled).final("train_loss")
        for compiled in (False, True)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def numbers(workspace: Path, name: str) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in load_file(workspace / f"runs/{name}/model.safetensors").values()])


@pytest.mark.parametrize(
    "more",
    [
        {"method": "mixup", "adversarial_eps": 8, "adversarial_steps": 2},
        {"method": "manifold"},
        {"method": "mixup-hv", "nearest": 4, "noise": 0.02},
    ],
)
def test_two_processes_give_the_weights_of_one(more: dict[str, object], tmp_path: Path) -> None:
    """Of a network without batch norm, which does not depend on who has which part of a batch."""
    fields = {**TINY, "epochs": 2, "batch_size": 33, "model": "lenet", "width": 6, "augment": "crop", **more}
    robustmix.train(Recipe(**fields), name="one", workspace=tmp_path)
    flags = [text for key, value in fields.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    done = run("train", *flags, "--name", "two", "--devices", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = numbers(tmp_path, "one"), numbers(tmp_path, "two")
    assert torch.allclose(one, two, rtol=0, atol=1e-5)
    histories = [read_run(Workspace(tmp_path), name).history for name in ("one", "two")]
    for column in ("train_loss", "train_error_mixed", "test_loss"):
        assert histories[0][column].tolist() == pytest.approx(histories[1][column].tolist(), rel=1e-4)
    assert histories[0]["test_error"].equals(histories[1]["test_error"])
    facts = read_run(Workspace(tmp_path), "two").facts
    assert facts is not None
    assert facts.device == "2 x cpu"


def test_two_processes_killed_and_resumed_end_with_the_same_bits(tmp_path: Path) -> None:
    flags = ["train", "--method", "mixup", "--drop", "dropout:0.2", *tiny_flags(epochs=6), "--devices", "2"]
    whole = run(*flags, "--name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    process = start(*flags, "--name", "parts", cwd=tmp_path)
    stop_when(process, lambda: epochs_done(tmp_path, "parts") >= 2, signal.SIGKILL)
    resumed = run(*flags, "--name", "parts", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after epoch" in resumed.stderr
    assert weights(tmp_path, "parts") == weights(tmp_path, "whole")


def test_a_process_that_dies_ends_the_job_with_a_message_and_the_job_resumes(tmp_path: Path) -> None:
    flags = ["train", *tiny_flags(epochs=300), "--name", "x", "--devices", "2"]
    process = start(*flags, cwd=tmp_path)
    # The first process itself is only asked to go on with what it is doing.
    said = stop_when(process, lambda: epochs_done(tmp_path, "x") >= 1 and kill_the_other(process.pid), signal.SIGCONT)
    assert process.returncode not in (0, None)
    assert "process 1 of 2 ended by SIGKILL, and the job with it" in said
    assert "Traceback" not in said
    done = epochs_done(tmp_path, "x")
    again = start(*flags, cwd=tmp_path)
    stop_when(again, lambda: epochs_done(tmp_path, "x") > done, signal.SIGKILL)


def kill_the_other(leader: int) -> bool:
    """Kill the process that a job's first process has started."""
    others = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
    for other in others:
        os.kill(int(other), signal.SIGKILL)
    return bool(others)
