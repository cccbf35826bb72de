"""Training on the page: curves, what is unusual about a run, kinds of runs that must never be taken for one another."""

import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from synthetic import INPUTS, N, identities, make_cell
from test_report import Page

from robustmix.comparability import published_method, same_model
from robustmix.published import figures
from robustmix.report import collect, render
from robustmix.report.comparison import ABLATIONS, CLEAN_EXPERIMENTS
from robustmix.report.effects import effects
from robustmix.report.histories import training_curves
from robustmix.report.material import Material
from robustmix.report.robustness import breaking_tables
from robustmix.report.text import UNUSUAL, also, method_name, unusual
from robustmix.report.words import answers, warnings
from robustmix.spec.named import read_recipe
from robustmix.spec.names import METHODS
from robustmix.spec.recipe import Recipe
from robustmix.spec.suite import Suite, load_suite
from robustmix.spec.validation import validate
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.runs import RunFacts, read_run, write_history, write_recipe
from robustmix.store.workspace import Workspace

FGSM = {"name": "fgsm", "eps": [1, 4]}


def add(
    place: Workspace,
    name: str,
    fields: dict[str, Any],
    rows: list[dict[str, Any]] | None = None,
    *,
    data: str = "cifar10",
    **facts: Any,
) -> None:
    """Write the files of a finished run of a recipe."""
    recipe = Recipe.model_validate({"data": data, "epochs": 2, **fields}).resolved(data)
    values: dict[str, Any] = {
        "data": data, "like": data, "data_note": None, "train_digest": "d" * 64, "train_examples": 50_000,
        "classes": 10, "parameters": 700_506, "device": "cpu", "threads": 2, "robustmix": "0", "torch": "0",
    }  # fmt: skip
    rows = rows or [row(1, test_error=0.4), row(2, test_error=0.3, train_error=0.01)]
    write_recipe(place.run(name), recipe)
    write_history(place.run(name), rows, RunFacts(**{**values, **facts}))
    (place.run(name) / "model.safetensors").write_bytes(f"weights of {name}".encode())


def row(epoch: int, **columns: float | None) -> dict[str, Any]:
    """A row of a history as an older robustmix wrote it, with columns on top."""
    usual = {"lr": 0.1, "train_loss": 1.0 / epoch, "train_error_mixed": 0.5, "train_error": None, "val_error": None}
    return {"epoch": epoch, **usual, "test_error": 0.3, "seconds": 1.0, **columns}


def report(place: Workspace, data: str = "cifar10", suite: Suite | None = None) -> Path:
    """The folder of a report on every run of a workspace under FGSM, each by itself and by every other."""
    from robustmix.store.runs import run_names

    weights = {name: read_run(place, name).weights or "" for name in run_names(place)}
    for target in weights.values():
        write_cell(place.cells, make_cell(clean_identity(target, INPUTS, 256), N, data))
        for source in weights.values():
            for identity in identities(FGSM, source, target):
                write_cell(place.cells, make_cell(identity, N, data))
    return render(collect(place, "r", suite=suite)).parent


def page_of(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


CONTROLS: dict[str, dict[str, Any]] = {
    "erm": {},
    "erm-decay": {"weight_decay": 5e-4},
    "smoothing": {"label_smoothing": 0.1},
    "mixup": {"method": "mixup"},
    "pgd": {"adversarial_eps": 8, "adversarial_steps": 7},
}


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on the kinds of networks of the suite `controls`, two seeds each, by the design of table 3."""
    place = Workspace(tmp_path_factory.mktemp("controls"))
    for group, fields in CONTROLS.items():
        for seed in (1, 2):
            add(place, f"{group}{seed}", {**fields, "seed": seed})
    design = load_suite("controls").published
    assert design is not None
    fields = {"version": 1, "title": "T", "data": "cifar10", "headline_eps": 4, "attack": [FGSM]}
    fields |= {"sources": [f"{group}?" for group in CONTROLS], "published": design.model_dump()}
    return report(place, suite=validate(Suite, fields))


# ---- kinds of networks -------------------------------------------------------------------------------------


def test_kinds_are_told_apart_by_all_that_makes_them(controls: Path) -> None:
    assert Material.read(controls).families == {
        "erm": ["erm1", "erm2"],
        "erm-decay": ["erm-decay1", "erm-decay2"],
        "ERM, label smoothing 0.1": ["smoothing1", "smoothing2"],
        "mixup": ["mixup1", "mixup2"],
        "ERM, PGD training at 8/255": ["pgd1", "pgd2"],
    }


def test_no_control_counts_as_erm(controls: Path) -> None:
    material = Material.read(controls)
    assert material.base == ["erm1", "erm2"]
    compared = {effect.names for effect in effects(material)}
    assert {base for base, _ in compared} == {("erm1", "erm2")}
    assert {names for _, names in compared} == {(f"{group}1", f"{group}2") for group in CONTROLS if group != "erm"}
    assert {(row[1], row[2]) for row in breaking_tables(material)[1].rows} == {
        ("erm1", f"{group}1") for group in CONTROLS if group != "erm"
    }


def test_sentences_name_the_design_and_one_of_every_other_kind(controls: Path) -> None:
    (clean,) = [text for text in answers(Material.read(controls)) if text.startswith("Without an attack")]
    named = re.findall(r"(?:, |and )?([a-z0-9-]+) (?:errs )?on ", clean)
    assert set(named) == {"erm1", "mixup1", "erm2", "erm-decay1", "smoothing1", "pgd1"}


def test_published_figure_stands_beside_the_runs_that_were_trained_so(controls: Path) -> None:
    page = page_of(controls)

    def beside(part: str) -> list[list[str]]:
        (caption,) = [caption for caption in page.tables if part in caption and "published on" in caption]
        return page.table(caption)[1:]

    both = {row[1]: row[2] for row in beside("figure 3a (first")}
    assert both == {"ERM": "erm1erm2", "mixup": "mixup1mixup2"}
    assert {row[1]: row[2] for row in beside("clean error")} == both
    by_method: dict[str, list[tuple[str, str]]] = {}
    for _, method, run, _, published, *_ in beside("table 5"):
        by_method.setdefault(method, []).append((run, published))
    # Of what the tables above have, only the weight decay that they have not; of label smoothing, the same amount.
    assert by_method == {
        "ERM": [("erm-decay1erm-decay2", "5.18 % T")],
        "label-smoothing": [("smoothing1smoothing2", "5.33 % R")],
    }
    assert {row[2] for row in beside("table 3") if row[1] == "ERM"} <= {"erm1", "erm2 from erm1", "–"}


def test_figures_of_a_table_that_nothing_was_trained_like_are_not_shown(controls: Path) -> None:
    captions = " ".join(page_of(controls).tables)
    assert "figure 3a" in captions
    for experiment in ("corrupted labels", "table 1, CIFAR"):
        assert experiment not in captions


def test_training_table_says_what_is_unusual(controls: Path) -> None:
    header, *rows = page_of(controls).table("as they ended")
    assert header[:4] == ["Run", "Method", "Also", "alpha"]
    assert {row[0]: row[1:3] for row in rows if row[0].endswith("1")} == {
        "erm1": ["ERM", "–"],
        "erm-decay1": ["ERM", "–"],
        "smoothing1": ["ERM", "label smoothing 0.1"],
        "mixup1": ["mixup", "–"],
        "pgd1": ["ERM", "PGD training at 8/255 in 7 steps"],
    }
    assert dict(zip(header, rows[2], strict=True))["Decay"] == "0.0005"


def test_usual_training_has_no_column_for_what_is_not_there(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add(place, "erm1", {"seed": 1})
    header, _ = page_of(report(place)).table("as they ended")
    assert not {"Also", "Validation error", "… real labels", "… corrupted labels"} & set(header)


def test_spatial_mixup_stands_beside_its_own_figures_and_its_own_network(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add(place, "hv1", {"method": "mixup-hv", "model": "resnext29_8x64d", "epochs": 2})
    add(place, "h1", {"method": "mixup-h"})
    add(place, "wide1", {"model": "wrn28_10"})
    page = page_of(report(place))
    rows = page.table("table 1, CIFAR")[1:]
    assert [(row[1], row[2], row[4]) for row in rows] == [("mixup-h", "h1", "3.9 % T"), ("mixup-hv", "hv1", "2.4 % T")]
    assert [(row[1], row[2], row[4]) for row in page.table("figure 3a (first")[1:]] == [("ERM", "wide1", "3.8 % T")]
    assert "another model" not in " ".join(row[7] for row in rows)


def test_corrupted_labels_stand_beside_as_many_corrupted_labels_only(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    last = row(2, train_error=0.3, train_error_real=0.05, train_error_corrupted=0.8)
    add(place, "noisy1", {"label_noise": 0.2}, [row(1, train_error_real=None, train_error_corrupted=None), last])
    add(place, "other1", {"label_noise": 0.4, "method": "mixup"})
    page = page_of(report(place))
    rows = page.table("corrupted labels")[1:]
    assert [(row[1], row[2], row[4], row[5]) for row in rows] == [
        ("ERM", "noisy1", "12.7 % T", "best on test"),
        ("ERM", "noisy1", "16.6 % T", "last epoch"),
    ]
    assert not any("figure 3a" in caption for caption in page.tables)
    header, *rows = page.table("as they ended")
    assert header[2:8] == ["Also", "alpha", "Epochs", "Training error", "… real labels", "… corrupted labels"]
    assert rows[0][2:8] == ["20 % of the labels at random", "–", "2", "30.0 %", "5.0 %", "80.0 %"]
    assert rows[1][6:8] == ["–", "–"]
    assert "against the label that they were given" in " ".join(page.text.split())


def test_other_ways_to_draw_lambda_are_a_reason(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add(place, "mixup1", {"method": "mixup", "lam": "uniform:0.5,1", "nesterov": True})
    text = " ".join(page_of(report(place)).text.split())
    assert "trained with lambda from uniform:0.5,1 and Nesterov" in text


def test_imported_network_is_not_said_to_have_been_trained_here(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    nan = dict.fromkeys(("lr", "train_loss", "train_error_mixed", "train_error", "val_error", "seconds"), math.nan)
    command = "robustmix import theirs.pt --name theirs1 --model resnet18"
    add(place, "theirs1", {"model": "resnet18", "epochs": 200}, [{**nan, "epoch": 200, "test_error": 0.05}],
        imported_from="theirs.pt, SHA-256 abc", imported_by=command)  # fmt: skip
    folder = report(place)
    page = page_of(folder)
    header, rows = page.table("as they ended")
    told = dict(zip(header, rows, strict=True))
    assert told["Epochs"] == "200"
    # The recipe of this run says everything; that of the next test only what somebody said.
    assert (told["lr"], told["Images"]) == ("0.1", "–")
    assert "imported from theirs.pt, SHA-256 abc" in page.text
    assert command in [" ".join(item.split()) for item in page.items]
    assert any("trained for 200 epochs" in text for text in warnings(Material.read(folder)))
    assert [drawing.title for drawing in training_curves(Material.read(folder))] == ["Test error by epoch"]


def test_nothing_is_made_up_of_what_nobody_said_at_an_import(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    nan = dict.fromkeys(("lr", "train_loss", "train_error_mixed", "train_error", "val_error", "seconds"), math.nan)
    rows = [{**nan, "epoch": 0, "test_error": 0.05, "test_loss": 0.2}]
    add(place, "theirs1", {"model": "preact_resnet18"}, rows, imported_from="theirs.pt, SHA-256 abc")
    said = {"data": "cifar10", "model": "preact_resnet18", "width": 64, "method": "erm"}
    (place.run("theirs1") / "recipe.json").write_text(json.dumps(said))
    folder = report(place)
    page = page_of(folder)
    told = dict(zip(*page.table("as they ended"), strict=True))
    assert {key for key, value in told.items() if value == "–"} == {
        *("alpha", "Epochs", "Training error", "… as mixed", "Images", "Batch", "lr", "Schedule", "Decay", "Augment")
    }
    assert (told["Test error"], told["Width"], told["Parameters"]) == ("5.0 %", "64", "700,506")
    header, row_of_run = page.table("Where each run comes from")
    origin = dict(zip(header, row_of_run, strict=True))
    assert (origin["Recipe"], origin["Seed"], origin["Trained on"]) == (
        "–",
        "–",
        "imported from theirs.pt, SHA-256 abc",
    )
    material = Material.read(folder)
    assert warnings(material) == [
        "theirs1 is preact_resnet18 of width 64, trained for an unknown number of epochs.",
        "theirs1 was trained by another program: nobody has checked what is said of it.",
    ]
    assert training_curves(material) == []
    assert not re.search(r"\b[01] epochs|20 epochs|50,000 (training|images)", " ".join(page.text.split()))
    # Beside a published figure nothing that nobody said is a reason, nor makes the two the same experiment.
    (_, compared) = page.table("figure 3a (first")
    assert compared[6] == "same design"
    for word in ("learning rate", "batch size", "weight decay", "epoch", "alpha", "training examples"):
        assert word not in compared[7]
    assert not any("table 5" in caption for caption in page.tables)  # whose rows are told apart by the weight decay


def test_dropout_stands_beside_its_own_figures(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    base = {**read_recipe("zhang-noise-20"), "epochs": 2}
    add(place, "drop1", {**base, "drop": "dropout:0.7"})
    add(place, "less1", {**base, "drop": "dropout:0.5"})
    add(place, "depth1", {**base, "drop": "stochastic_depth:0.7"})
    add(place, "both1", {**base, "method": "mixup", "alpha": 8, "drop": "dropout:0.3"})
    add(place, "clean1", {"drop": "dropout:0.7"})
    folder = report(place)
    page = page_of(folder)
    rows = page.table("corrupted labels")[1:]
    assert [(row[1], row[2], row[4]) for row in rows] == [
        ("dropout", "drop1", "8.8 % T"),
        ("dropout", "drop1", "10.4 % T"),
        ("mixup-dropout", "both1", "6.2 % 2"),
        ("mixup-dropout", "both1", "6.2 % 2"),
    ]
    assert {row[6] for row in rows} == {"same design"}
    assert "dropout 0" not in " ".join(row[7] for row in rows)
    assert not any("figure 3a" in caption for caption in page.tables)
    material = Material.read(folder)
    assert set(material.families) == {
        "ERM, dropout 0.7, label noise 0.2",
        "ERM, dropout 0.5, label noise 0.2",
        "ERM, stochastic depth 0.7, label noise 0.2",
        "mixup, dropout 0.3, label noise 0.2",
        "ERM, dropout 0.7",
    }
    assert material.base == []
    assert page.table("as they ended")[1][:3] == ["both1", "mixup", "dropout 0.3, 20 % of the labels at random"]


def test_means_over_seeds(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for seed, error in ((1, 0.1), (2, 0.25), (3, 0.4)):
        add(place, f"erm{seed}", {"seed": seed}, [row(1, test_error=0.9), row(2, test_error=error)])
    add(place, "mixup1", {"method": "mixup", "seed": 1})
    header, *rows = page_of(report(place)).table("over the seeds")
    assert header == ["Runs of", "Runs", "Mean", "Smallest", "Largest"]
    assert rows == [["ERM", "3", "25.0 %", "10.0 %", "40.0 %"]]


def test_single_seeds_have_no_means(trained: Path) -> None:
    assert not any("over the seeds" in caption for caption in page_of(trained).tables)


# ---- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "name"),
    [
        ("erm", "ERM"),
        ("mixup-hv", "mixup-hv"),
        ("erm+smoothing-0.1", "ERM, label smoothing 0.1"),
        ("mixup+noise-1e-05", "mixup, noise 1e-05"),
        ("erm+dropout-0.25", "ERM, dropout 0.25"),
        ("erm+stochastic-depth-0.5+smoothing-0.1", "ERM, stochastic depth 0.5, label smoothing 0.1"),
        ("erm+pgd-8", "ERM, PGD training at 8/255"),
        ("erm+label-noise-0.2", "ERM, label noise 0.2"),
        ("cutmix+noise-0.1+pgd-4+label-noise-0.5", "cutmix, noise 0.1, PGD training at 4/255, label noise 0.5"),
    ],
)  # fmt: skip
def test_ways_of_training_have_names(training: str, name: str) -> None:
    assert method_name(training) == name


@pytest.mark.parametrize(
    ("training", "method"),
    [
        ("erm", "erm"),
        ("mixup-hv", "mixup-hv"),
        ("erm+smoothing-0.1", "label-smoothing"),
        ("erm+noise-1e-05", "gaussian-noise"),
        ("erm+pgd-8", "pgd-at"),
        ("mixup+pgd-0.5", "pgd-at-mixup"),
        ("erm+label-noise-0.2", "erm"),
        ("erm+dropout-0.7", "dropout"),
        ("erm+dropout-0.7+label-noise-0.2", "dropout"),
        ("mixup+dropout-0.3+label-noise-0.2", "mixup-dropout"),
        ("erm+stochastic-depth-0.5", "erm+stochastic-depth-0.5"),
        ("erm+smoothing-0.1+label-noise-0.2", "label-smoothing"),
        ("mixup+smoothing-0.1", "mixup+smoothing-0.1"),
        ("erm+smoothing-0.1+pgd-8", "erm+smoothing-0.1+pgd-8"),
    ],
)
def test_what_publications_call_a_way_of_training(training: str, method: str) -> None:
    assert published_method(training) == method


def test_names_of_publications_are_real() -> None:
    known = {figure.method for figure in figures()}
    assert {"label-smoothing", "gaussian-noise", "pgd-at", "pgd-at-mixup", "dropout", "mixup-dropout"} <= known
    experiments = {figure.experiment for figure in figures()}
    assert {*CLEAN_EXPERIMENTS, *ABLATIONS} <= experiments


@pytest.mark.parametrize(
    ("model", "theirs", "same"),
    [
        ("preact_resnet18", "preact_resnet18", True),
        ("resnet18", "preact_resnet18", False),
        ("resnext29_8x64d", "resnext29_8x64", True),
        ("torchvision:resnet50", "resnet50", True),
        ("timm:resnext101_64x4d", "resnext101_64x4d", True),
        (None, "resnet50", False),
    ],
)
def test_network_is_known_by_any_packages_name(model: str | None, theirs: str, same: bool) -> None:
    figure = next(figure for figure in figures() if figure.model == theirs)
    assert same_model(model, figure) is same


def test_nothing_is_unusual_about_a_plain_recipe() -> None:
    for method in METHODS:
        recipe = Recipe(method=method).resolved("cifar10")
        expected = {"manifold": ["mixed at stages 0,2,3"], "disturblabel": ["rate 0.1"], "patchshuffle": ["rate 0.05"]}
        assert also(recipe) == unusual(recipe) == expected.get(method, [])


def test_everything_unusual_is_said() -> None:
    recipe = Recipe(
        method="mixup", lam="uniform:0.5,1", lam_per="example", lam_labels="0.5", same_class=True,
        nearest=5, drop="swapout:0.2", momentum=0.8, nesterov=True, precision="fp16", val=5000, sync_batch_norm=True,
        label_smoothing=0.1, noise=0.05, adversarial_eps=8, label_noise=0.2, milestones="3,4", warmup=5, warmup_lr=0.1,
    )  # fmt: skip
    assert unusual(recipe) == [
        "lambda from uniform:0.5,1", "lambda per example", "the labels' lambda from 0.5",
        "partners of the same class", "partners among the 5 nearest", "momentum 0.8", "Nesterov",
        "fp16", "batch norm over all devices", "5,000 images held out",
    ]  # fmt: skip
    assert unusual(Recipe(method="mixup", mix="labels")) == ["only labels mixed"]
    assert unusual(Recipe(method="mixup-h", correct_lam=True)) == ["labels by the share of pixels"]
    named = [text.replace("\N{NO-BREAK SPACE}", " ") for text in also(recipe)]
    assert named[:5] == [
        "swapout 0.2",
        *("label smoothing 0.1", "Gaussian noise 0.05", "PGD training at 8/255 in 10 steps"),
        "20 % of the labels at random",
    ]
    assert named[-2:] == ["learning rate / 10 after 3 and 4 epochs", "warm-up from 0.1 over 5 epochs"]
    assert set(UNUSUAL) <= set(Recipe.model_fields)


def test_no_field_of_a_recipe_is_left_unsaid() -> None:
    """Every field has a column of the table, stands in `also`, or is one of those that both leave out on purpose."""
    columns = {"method", "alpha", "seed", "model", "width", "epochs", "batch_size", "lr", "schedule", "weight_decay"}
    columns |= {"augment", "limit"}  # a limit shows in the number of images
    in_also = {"drop", "label_smoothing", "noise", "adversarial_eps", "adversarial_steps", "label_noise", "milestones"}
    in_also |= {"warmup", "warmup_lr", *UNUSUAL}
    assert columns | in_also | {"data"} == set(Recipe.model_fields)
    assert not columns & in_also


# ---- curves ------------------------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, ElementTree.Element]:
    """The figures of the histories by title."""
    text = (folder / "index.html").read_text(encoding="utf-8")
    found = [
        ElementTree.fromstring(svg)
        for svg in re.findall(r'<svg role="img" aria-labelledby="history.*?</svg>', text, re.S)
    ]
    return {svg.findtext("title") or "": svg for svg in found}


def line_points(svg: ElementTree.Element, colour: str) -> list[tuple[float, float]]:
    """The corners of the line of a colour, in the figure's own units, y downwards."""
    (path,) = [
        path
        for path in svg.iter("path")
        if f"stroke: {colour}" in path.get("style", "").replace("var(--line1, ", "").replace("var(--line2, ", "")
        and path.get("clip-path")
    ]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d", ""))]


def ticks(svg: ElementTree.Element) -> list[float]:
    """The numbers that stand beside the axes."""
    texts = [unescape(text.text or "") for text in svg.iter("text")]
    return [float(text) for text in texts if re.fullmatch(r"[\d.]+", text)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a run with validation examples, and one of an older robustmix without several columns."""
    place = Workspace(tmp_path_factory.mktemp("trained"))
    rows = [
        row(epoch, test_error=error, test_loss=1.5, train_loss=loss, val_error=error + 0.01, val_loss=error / 10)
        for epoch, error, loss in ((1, 0.5, 2.0), (2, 0.25, 0.2), (3, 0.1, 0.02))
    ]
    add(place, "erm1", {"val": 5000, "epochs": 3}, rows)
    theirs = [row(k, test_error=0.6 - 0.1 * k, train_error_mixed=0.4) for k in (1, 2, 3)]
    add(place, "mixup1", {"method": "mixup", "epochs": 3}, theirs)
    return report(place)


def test_curves_are_drawn_of_what_there_is(trained: Path, controls: Path) -> None:
    assert list(curves(trained)) == [
        *("Test error by epoch", "Validation error by epoch", "Training error by epoch, as mixed"),
        *("Test loss by epoch", "Validation loss by epoch", "Training loss by epoch"),
    ]
    # Of an older robustmix, which recorded no loss but that of training.
    assert list(curves(controls)) == [
        *("Test error by epoch", "Training error by epoch, as mixed", "Training loss by epoch")
    ]
    assert "#histories" in (trained / "index.html").read_text(encoding="utf-8")


def test_curves_say_in_words_what_they_show(trained: Path) -> None:
    found = curves(trained)
    assert found["Test error by epoch"].findtext("desc") == (
        "erm1: 50 % after 1 epoch, 25 % after 2 epochs and 10 % after 3 epochs. "
        "mixup1: 50 % after 1 epoch, 40 % after 2 epochs and 30 % after 3 epochs"
    )
    assert found["Training loss by epoch"].findtext("desc") == (
        "erm1: 2 after 1 epoch, 0.2 after 2 epochs and 0.02 after 3 epochs. "
        "mixup1: 1 after 1 epoch, 0.5 after 2 epochs and 0.333 after 3 epochs"
    )
    assert (found["Validation error by epoch"].findtext("desc") or "").startswith("erm1: 51 % after 1 epoch")
    assert found["Training error by epoch, as mixed"].findtext("desc") == (
        "erm1: 50 % after 1 epoch, 50 % after 2 epochs and 50 % after 3 epochs. "
        "mixup1: 40 % after 1 epoch, 40 % after 2 epochs and 40 % after 3 epochs"
    )
    assert found["Test loss by epoch"].findtext("desc") == (
        "erm1: 1.5 after 1 epoch, 1.5 after 2 epochs and 1.5 after 3 epochs"
    )
    assert found["Validation loss by epoch"].findtext("desc") == (
        "erm1: 0.05 after 1 epoch, 0.025 after 2 epochs and 0.01 after 3 epochs"
    )


def test_error_is_linear_from_0_and_a_loss_over_decades_logarithmic(trained: Path) -> None:
    found = curves(trained)
    points = line_points(found["Test error by epoch"], "#0072b2")
    assert [x for x, _ in points] == pytest.approx([points[0][0] + k * (points[1][0] - points[0][0]) for k in range(3)])
    heights = [y for _, y in points]
    # 50, 25 and 10 %: the drops on paper are as 25 to 15.
    assert (heights[1] - heights[0]) / (heights[2] - heights[1]) == pytest.approx(25 / 15, rel=1e-3)
    loss = [y for _, y in line_points(found["Training loss by epoch"], "#0072b2")]
    # 2, 0.2 and 0.02: equal drops on a logarithmic axis.
    assert loss[1] - loss[0] == pytest.approx(loss[2] - loss[1], rel=1e-3)
    assert 0 in ticks(found["Test error by epoch"])
    assert 0 not in ticks(found["Training loss by epoch"])
    for svg in found.values():
        assert not any("$" in (text.text or "") for text in svg.iter("text"))
        assert {1, 2, 3} <= set(ticks(svg))


def test_error_that_reaches_0_is_drawn(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add(place, "erm1", {"epochs": 3}, [row(1, test_error=0.9), row(2, test_error=0.001), row(3, test_error=0.0)])
    (svg,) = [svg for title, svg in curves(report(place)).items() if title.startswith("Test error")]
    assert len(line_points(svg, "#0072b2")) == 3
    assert 0 in ticks(svg)


def test_a_single_epoch_is_a_mark(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add(place, "erm1", {"epochs": 1}, [row(1, test_error=0.0, train_loss=0.0)])
    found = curves(report(place))
    assert found["Test error by epoch"].findtext("desc") == "erm1: 0 % after 1 epoch"
    assert list(found["Test error by epoch"].iter("use"))


def test_marks_give_way_where_they_would_hide_the_line(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    add(place, "erm1", {"epochs": 200}, [row(k, test_error=0.5 + 0.4 * math.cos(k)) for k in range(1, 201)])
    svg = curves(report(place))["Test error by epoch"]
    assert len(line_points(svg, "#0072b2")) > 100
    assert not [use for use in svg.iter("use") if "0072b2" in use.get("style", "")]
    assert max(ticks(svg)) == 200
