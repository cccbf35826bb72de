import math
from pathlib import Path

import pytest
from tiny import TINY

import robustmix
from robustmix import Recipe
from robustmix.scalars import FOLDER

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="pip install robustmix[tensorboard]"
)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = accumulator.EventAccumulator(str(folder / FOLDER))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_event_files_show_the_history_also_after_a_resumption(tmp_path: Path) -> None:
    recipe = Recipe(val=100, **{**TINY, "epochs": 3})
    run = robustmix.train(recipe, workspace=tmp_path, tensorboard=True)
    found = curves(tmp_path / "runs/erm")
    history = run.history
    assert [step for step, _ in found["accuracy/validation"]] == [1, 2, 3]
    for tag, expected in (
        ("accuracy/validation", 1 - history["val_error"]),
        ("loss/validation", history["val_loss"]),
        ("error/test", history["test_error"]),
        ("accuracy/train", 1 - history["train_error_mixed"]),
    ):
        assert [value for _, value in found[tag]] == pytest.approx(expected.tolist(), rel=1e-5), tag
    (tmp_path / "runs/erm/model.safetensors").unlink()
    robustmix.train(recipe, workspace=tmp_path, tensorboard=True)
    assert curves(tmp_path / "runs/erm") == found


def test_without_validation_examples_their_curves_are_not_there(tmp_path: Path) -> None:
    robustmix.train(Recipe(**{**TINY, "epochs": 1}), workspace=tmp_path, tensorboard=True)
    found = curves(tmp_path / "runs/erm")
    assert "accuracy/validation" not in found
    assert not any(math.isnan(value) for points in found.values() for _, value in points)
