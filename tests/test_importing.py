"""A checkpoint of another program becomes a run like any other, with what is known of it and nothing more."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from foreign_nets import at_home, basic, preact
from test_saved import Trap
from test_weights import itself, nested
from torch import Tensor, nn

from robustmix import Recipe, load_data, load_model
from robustmix.checkpoints import save_model
from robustmix.errors import CheckpointError, SpecError, StoreError
from robustmix.interchange.importing import import_run
from robustmix.models import Classifier, ModelSpec, build
from robustmix.store.cell_files import read_cells
from robustmix.store.results import results_table
from robustmix.store.runs import read_run, run_names
from robustmix.store.workspace import Workspace

RECIPE = Recipe(data="digits", model="preact_resnet18", width=2, method="mixup", seed=3)
MEAN, STD = 0.3, 0.4


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    at_home(monkeypatch)


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    network = nn.DataParallel(preact())
    torch.save({"net": network, "acc": 95.8, "epoch": 199, "rng_state": torch.get_rng_state()}, tmp_path / "ckpt.t7")
    return tmp_path / "ckpt.t7"


def logits_of_theirs(x: Tensor) -> Tensor:
    """What the other program makes of pixels: it normalises, then its network."""
    with torch.no_grad():
        return preact()((x - MEAN) / STD)


def test_run_is_the_same_function_of_pixels(ckpt: Path, tmp_path: Path) -> None:
    import_run(ckpt, "zhang", RECIPE, f"{MEAN}/{STD}", workspace=tmp_path)
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        ours = load_model("zhang", tmp_path)(x)
    assert torch.allclose(ours, logits_of_theirs(x), rtol=0, atol=1e-6)
    assert ours.std() > 0.01


def test_run_holds_what_is_known_and_what_was_measured(ckpt: Path, tmp_path: Path) -> None:
    run = import_run(ckpt, "zhang", RECIPE, f"{MEAN}/{STD}", workspace=tmp_path, command="robustmix import ckpt.t7")
    assert run.finished
    assert (run.method, run.seed, run.command) == ("mixup", 3, "robustmix import ckpt.t7")
    said = json.loads((tmp_path / "runs/zhang/recipe.json").read_text())
    assert said == {"data": "digits", "model": "preact_resnet18", "width": 2, "method": "mixup", "seed": 3}
    test = load_data("digits").test
    (batch,) = test.batches([torch.arange(len(test))], torch.device("cpu"))
    wrong = logits_of_theirs(batch[0]).argmax(dim=1) != batch[1]
    assert len(run.history) == 1
    assert run.final("epoch") == 0
    assert run.final("test_error") == pytest.approx(float(wrong.double().mean()), abs=1e-12)
    for column in ("train_loss", "train_error", "train_error_mixed", "val_error", "lr", "seconds"):
        assert pd.isna(run.final(column)), column
    assert run.facts is not None
    assert run.facts.imported_from is not None
    assert run.facts.imported_from.startswith("ckpt.t7, SHA-256 ")
    assert (run.facts.train_digest, run.facts.device) == ("unknown", "unknown")
    assert run.facts.classes == 10
    assert sorted(path.name for path in (tmp_path / "runs/zhang").iterdir()) == [
        "history.parquet",
        "model.safetensors",
        "recipe.json",
    ]


def test_epochs_are_recorded_where_they_are_known(ckpt: Path, tmp_path: Path) -> None:
    recipe = Recipe(**RECIPE.model_dump(exclude_unset=True), epochs=200)
    assert import_run(ckpt, "zhang", recipe, "none", workspace=tmp_path).final("epoch") == 200


def test_width_that_is_not_given_is_the_usual_one(tmp_path: Path) -> None:
    torch.save(basic(width=16).state_dict(), tmp_path / "x.pt")
    run = import_run(
        tmp_path / "x.pt", "x", Recipe(data="digits", model="resnet18", method="erm"), "none", workspace=tmp_path
    )
    assert run.recipe.width == 16


@pytest.mark.parametrize("normalize", [None, "0.1/0.2"])
def test_our_own_file_says_its_normalisation(tmp_path: Path, normalize: str | None) -> None:
    spec = ModelSpec(name="preact_resnet18", width=2, classes=tuple("0123456789"), shape=(1, 8, 8))
    save_model(tmp_path / "x.safetensors", build(spec, torch.tensor([MEAN]), torch.tensor([STD])))
    import_run(tmp_path / "x.safetensors", "x", RECIPE, normalize, workspace=tmp_path)
    found = load_model("x", tmp_path)
    assert isinstance(found, Classifier)
    expected = (MEAN, STD) if normalize is None else (0.1, 0.2)
    assert (found.normalize.mean.item(), found.normalize.std.item()) == pytest.approx(expected)


def test_normalisation_must_be_known_and_fit(ckpt: Path, tmp_path: Path) -> None:
    for normalize, message in [
        (None, r"--normalize is missing: .*ckpt\.t7 does not say"),
        ("cifar10", "--normalize cifar10 has 3 channels, the images have 1"),
        ("0.5", "--normalize 0.5: choose from"),
    ]:
        with pytest.raises(SpecError, match=message):
            import_run(ckpt, "zhang", RECIPE, normalize, workspace=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_damaged_normalisation_of_a_file_is_refused(tmp_path: Path) -> None:
    for mean, std in [((0.1, 0.2), (1.0, 1.0)), ((float("nan"),), (1.0,)), ((0.1,), (0.0,))]:
        state = {**preact().state_dict(), "normalize.mean": torch.tensor(mean), "normalize.std": torch.tensor(std)}
        torch.save(state, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="its normalisation is none of 1 channels"):
            import_run(tmp_path / "x.pt", "x", RECIPE, None, workspace=tmp_path)


def test_no_run_is_replaced(ckpt: Path, tmp_path: Path) -> None:
    import_run(ckpt, "zhang", RECIPE, "none", workspace=tmp_path)
    before = (tmp_path / "runs/zhang/model.safetensors").stat().st_mtime_ns
    with pytest.raises(SpecError, match=r"run 'zhang' exists: choose another --name, or remove .*runs/zhang"):
        import_run(ckpt, "zhang", RECIPE, f"{MEAN}/{STD}", workspace=tmp_path)
    assert (tmp_path / "runs/zhang/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("fails", ["save_model", "write_history", "write_text"])
def test_failed_write_leaves_nothing(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    def full(*_: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(f"robustmix.interchange.importing.{fails}", full)
    with pytest.raises(StoreError):
        import_run(ckpt, "zhang", RECIPE, "none", workspace=tmp_path)
    assert run_names(Workspace(tmp_path)) == []
    assert not (tmp_path / "runs/zhang").exists()


def test_imported_run_is_attacked_listed_and_reported(ckpt: Path, call: Any, tmp_path: Path) -> None:
    options = "--model preact_resnet18 --width 2 --data digits --method mixup --seed 3 --normalize 0.3/0.4"
    done = call("import", str(ckpt), "--name", "zhang3", *options.split())
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("run 'zhang3' is there: test error ")
    assert call("import", str(ckpt), "--name", "again3", *options.split()).code == 0
    attack = "attack --source zhang3 --target zhang3 --attack fgsm --eps 16 --limit 40 --quiet"
    assert call(*attack.split()).code == 0
    place = Workspace(tmp_path)
    table = results_table(read_cells(place.cells), [read_run(place, "zhang3")])
    assert set(table["role"]) == {"clean", "white"}
    assert set(table["target_method"]) == {"mixup"}
    assert "zhang3" in call("ls").out
    assert "zhang3" in call("results").out
    assert call("report", "page", "--quiet").code == 0
    page = (tmp_path / "reports/page/index.html").read_text()
    assert "zhang3" in page
    assert "preact_resnet18 of width 2, trained for an unknown number of epochs." in page
    (run, *_) = json.loads((tmp_path / "reports/page/evidence.json").read_text())["runs"]
    assert run["recipe"] == {"data": "digits", "model": "preact_resnet18", "width": 2, "method": "mixup", "seed": 3}
    command = read_run(place, "zhang3").command
    assert command == f"robustmix import ckpt.t7 --name zhang3 {options}"
    refused = call("train", "--name", "zhang3", "--method", "mixup", "--seed", "3", "--width", "2", "--epochs", "1")
    assert refused.code == 2
    assert "run 'zhang3' " in refused.err


def test_hostile_pickle_ends_with_code_2_and_one_line(call: Any, tmp_path: Path) -> None:
    for zipped in (True, False):
        trap = {"net": {}, "acc": Trap(tmp_path / "sprung")}
        torch.save(trap, tmp_path / "ckpt.t7", _use_new_zipfile_serialization=zipped)
        options = "--name x --model preact_resnet18 --data digits --method erm --normalize none"
        done = call("import", "ckpt.t7", *options.split())
        assert (done.code, done.out) == (2, "")
        (line,) = done.err.splitlines()
        assert line.startswith("robustmix: error: ckpt.t7: refused: its pickle mentions '")
        assert ".mkdir'" in line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.t7"]


@pytest.mark.parametrize("write", [itself, partial(nested, 3000)])
def test_dictionaries_without_end_are_one_line(call: Any, tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "ckpt.t7")
    options = "--name x --model preact_resnet18 --data digits --method erm --normalize none"
    done = call("import", "ckpt.t7", *options.split())
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("robustmix: error: ckpt.t7 holds no state dict within 8 of ")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--name x --data digits --method erm", ["--model is missing"]),
        ("--name x --model preact_resnet18 --method erm", ["--data is missing"]),
        ("--name x --model preact_resnet18 --data digits", ["--method is missing", "a default would be a claim"]),
        ("--model preact_resnet18 --data digits --method erm", ["--name"]),
        ("--name x --model resnet99 --data digits --method erm", ["'resnet99'", "resnet18"]),
        ("--name x --model preact_resnet18 --data digit --method erm --normalize none", ["'digit'", "digits"]),
        ("--name x --model preact_resnet18 --data digits --method mixpu", ["--method", "mixpu"]),
        ("--name x --recipe nothing", ["'nothing'", "zhang-cifar10"]),
        ("--name ../x --model preact_resnet18 --data digits --method erm --normalize none", ["'../x'"]),
        ("--name x --model preact_resnet18 --data digits --method erm", ["--normalize is missing"]),
        ("--name x --model preact_resnet18 --data digits --method erm --normalize none", ["--width", "[2, 1, 3, 3]"]),
        ("--name x --model resnet18 --width 2 --data digits --method erm --normalize none", ["holds no 'stages.1.0."]),
        ("--name x --model preact_resnet18 --width 2 --data digits --method erm --normalize 1/0", ["--normalize 1/0"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    ckpt: Path, call: Any, tmp_path: Path, options: str, parts: list[str]
) -> None:
    done = call("import", ckpt.name, *options.split())
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("robustmix: error: ")
    for part in parts:
        assert part in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.t7"]


def test_named_recipe_says_the_rest(ckpt: Path, call: Any, tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(
        'data = "digits"\nmodel = "preact_resnet18"\nwidth = 2\nmethod = "erm"\nepochs = 7\n'
    )
    assert (
        call(
            "import", "ckpt.t7", "--name", "x", "--recipe", "known.toml", "--method", "mixup", "--normalize", "none"
        ).code
        == 0
    )
    recipe = read_run(Workspace(tmp_path), "x").recipe
    assert (recipe.method, recipe.epochs, recipe.width) == ("mixup", 7, 2)


def test_doubt_is_said_where_the_error_is_that_of_chance(ckpt: Path, call: Any) -> None:
    options = "--name x --model preact_resnet18 --width 2 --data digits --method erm --normalize none"
    assert "that is about chance: are --model, --normalize" in call("import", "ckpt.t7", *options.split()).err
