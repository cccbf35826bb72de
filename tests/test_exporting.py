"""An exported run is the same function elsewhere: by huggingface_hub, by ONNX, and as its card says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustmix import load_model
from robustmix.checkpoints import save_model
from robustmix.errors import CheckpointError, SpecError, StoreError
from robustmix.interchange.exporting import export_run, to_onnx
from robustmix.models import Classifier, ModelSpec, build
from robustmix.spec.recipe import Recipe
from robustmix.store.runs import RunFacts, read_run, write_history, write_recipe
from robustmix.store.workspace import Workspace


def network(
    channels: int = 1, classes: tuple[str, ...] = tuple("0123456789"), name: str = "preact_resnet18"
) -> Classifier:
    """A network that has seen data, behind a normalisation that matters."""
    spec = ModelSpec(name=name, width=2, classes=classes, shape=(channels, 8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build(spec, torch.linspace(0.2, 0.4, channels), torch.linspace(0.1, 0.3, channels)).train()
        model(torch.rand(16, channels, 8, 8))
    return model.eval()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A workspace with the finished runs erm1 and mixup1."""
    for name in ("erm1", "mixup1"):
        folder = tmp_path / "runs" / name
        recipe = Recipe(method=name[:-1], seed=1, width=2, epochs=1)  # type: ignore[arg-type]
        facts = RunFacts("digits", "digits", "8x8 digits", "0" * 64, 8, 10, 11300, "cpu", 1, "0.1.0", "2.6")
        write_recipe(folder, recipe)
        write_history(folder, [{"epoch": 1, "test_error": 0.125, "train_error": 0.1}], facts)
        model = network()
        if name == "mixup1":
            with torch.no_grad():
                model.network.head.bias.add_(torch.arange(10) / 100)
        save_model(folder / "model.safetensors", model)
    return tmp_path


# ---- the folder ------------------------------------------------------------------------------------------


def test_folder_is_loaded_by_the_hub_s_mixin(place: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from robustmix.hub import Pretrained

    folder = export_run("erm1", workspace=place)
    assert folder == place / "exports" / "erm1"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = Pretrained.from_pretrained(folder)
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), load_model("erm1", place)(x))
    assert not any(module.training for module in model.modules())
    assert model.spec == network().spec


def test_hub_s_folder_is_saved_and_loaded_again(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from robustmix.hub import Pretrained

    model = Pretrained.from_pretrained(export_run("erm1", workspace=place))
    model.to(memory_format=torch.contiguous_format).save_pretrained(tmp_path / "again")
    again = Pretrained.from_pretrained(tmp_path / "again")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_hub_refuses_weights_that_are_not_whole(place: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from safetensors.torch import load_file, save_file

    from robustmix.hub import Pretrained

    folder = export_run("erm1", workspace=place)
    state = load_file(folder / "model.safetensors")
    del state["network.head.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"network\.head\.bias"):
        Pretrained.from_pretrained(folder)


def test_weights_and_configuration_are_the_run_s(place: Path) -> None:
    folder = export_run("erm1", place / "elsewhere", workspace=place)
    assert folder == place / "elsewhere"
    weights = (place / "runs/erm1/model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights
    assert json.loads((folder / "config.json").read_text()) == {
        "name": "preact_resnet18",
        "width": 2,
        "classes": [*"0123456789"],
        "shape": [1, 8, 8],
    }
    assert isinstance(load_model(folder), Classifier)


def test_export_replaces_its_own_files_and_no_other(place: Path) -> None:
    folder = export_run("mixup1", place / "out", workspace=place)
    (folder / "notes.txt").write_text("mine")
    export_run("erm1", folder, workspace=place)
    assert (folder / "notes.txt").read_text() == "mine"
    assert "# erm1" in (folder / "README.md").read_text()
    assert not list(folder.glob(".*"))


def test_only_finished_runs_are_exported(place: Path) -> None:
    write_recipe(place / "runs/begun", Recipe(epochs=3))
    for name, message in (("begun", "has not finished"), ("nobody", "unknown run 'nobody'")):
        with pytest.raises(CheckpointError, match=message):
            export_run(name, workspace=place)
    assert not (place / "exports").exists()


def test_folder_that_cannot_be_written_is_one_line(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        export_run("erm1", place / "file", workspace=place)


# ---- ONNX ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channels"), [("preact_resnet18", 1), ("resnet18", 3)])
def test_onnx_is_the_same_function_of_pixels_for_any_batch(name: str, channels: int) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model = network(channels, ("a", "b", "c"), name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    graph = onnx.load_from_string(to_onnx(model.to(memory_format=torch.channels_last)))
    onnx.checker.check_model(graph)
    assert [opset.version for opset in graph.opset_import if not opset.domain] == [18]
    runtime = ReferenceEvaluator(graph)
    for size in (1, 2, 5):
        x = torch.rand(size, channels, 8, 8)
        (found,) = runtime.run(["logits"], {"images": x.numpy()})
        with torch.no_grad():
            expected = model(x).numpy()
        assert found.shape == (size, 3)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.01
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())
    assert not model.training


def test_onnx_file_tells_nothing_of_this_machine() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    content = to_onnx(network())
    for text in (str(Path(__file__).parents[1]), "classifier.py", "site-packages"):
        assert text.encode() not in content


def test_onnx_without_the_extra_is_one_line_and_leaves_nothing(
    place: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "robustmix.interchange.exporting.find_spec", lambda name: None if name == "onnxscript" else True
    )
    with pytest.raises(SpecError, match=r"--onnx needs onnxscript: pip install 'robustmix\[onnx\]'"):
        to_onnx(network())
    done = call("export", "erm1", "--onnx")
    assert (done.code, done.out) == (2, "")
    assert done.err == "robustmix: error: --onnx needs onnxscript: pip install 'robustmix[onnx]'\n"
    assert not (place / "exports").exists()


# ---- the command -----------------------------------------------------------------------------------------


def test_command_writes_the_folder_and_names_it(call: Any, place: Path) -> None:
    done = call("export", "erm1")
    assert (done.code, done.out.strip(), done.err) == (0, "exports/erm1", "")
    done = call("export", "erm1", "--to", "there")
    assert (done.code, done.out.strip()) == (0, "there")
    assert (place / "there/config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["nobody"], "unknown run 'nobody'"), (["../x"], "'../x'"), ([], "name"), (["erm1", "--frob"], "--frob")],
)
def test_bad_input_is_one_line_and_leaves_nothing(call: Any, place: Path, arguments: list[str], part: str) -> None:
    done = call("export", *arguments)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("robustmix: error: ")
    assert part.lower() in line.lower()
    assert sorted(path.name for path in place.iterdir()) == ["runs"]


# ---- its card's figures ----------------------------------------------------------------------------------


def test_card_shows_the_figures_of_this_target_and_how_to_compute_them(call: Any, place: Path) -> None:
    attack = "attack --source erm1 mixup1 --target erm1 mixup1 --attack fgsm ifgsm --eps 8 --limit 60 --quiet"
    assert call(*attack.split()).code == 0
    assert call("export", "erm1").code == 0
    card = (place / "exports/erm1/README.md").read_text()
    table = json.loads(call("results", "--format", "json").out)
    mine = [row for row in table if row["target"] == "erm1" and row["source"]]
    lines = [line for line in card.splitlines() if line.startswith("| ") and "8/255" in line]
    assert len(lines) == len(mine) == 4
    for row in mine:
        source = "itself (white box)" if row["source"] == "erm1" else row["source"]
        method = "I-FGSM, 10 steps" if row["attack"] == "ifgsm" else "FGSM"
        start = f"| {source} | {method} | 8/255 | {row['error']:.1%} |"
        assert [line for line in lines if line.startswith(start)], (start, lines)
    (fgsm, ifgsm) = [line for line in card.splitlines() if line.startswith("robustmix attack")]
    assert fgsm == (
        "robustmix attack --data digits --source erm1 mixup1 --target erm1 --attack fgsm --eps 8 --limit 60 "
        "--batch-size 256"
    )
    assert "--attack ifgsm" in ifgsm
    assert "No audit stands behind these figures" in card
    # The commands are exact: nothing is left to compute.
    again = call(*fgsm.split()[1:])
    assert again.err.splitlines()[-1] == "computed now: 0 of 3 cells"


def test_card_of_an_attacked_source_only_says_not_measured(call: Any, place: Path) -> None:
    attack = "attack --source erm1 --target mixup1 --attack fgsm --eps 8 --limit 20 --quiet"
    assert call(*attack.split()).code == 0
    call("export", "erm1")
    card = (place / "exports/erm1/README.md").read_text()
    assert "Not measured." in card
    assert "robustmix attack --source erm1" in card
    assert read_run(Workspace(place), "erm1").finished
