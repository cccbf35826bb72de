import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from robustmix import published
from robustmix.comparability import level, reasons
from robustmix.errors import SpecError
from robustmix.published import Certainty, Figure, Statistic, parse

ALL = {figure.id: figure for figure in published.figures()}


def table(experiment: str, columns: str, rows: dict[str, list[float | None]]) -> Iterator[tuple[str, float]]:
    """The (id, value) pairs of a table typed from the source; None where it reports nothing."""
    for row, values in rows.items():
        for column, value in zip(columns.split(), values, strict=True):
            if value is not None:
                yield f"{experiment}-{row}-{column}", value


# Typed from the sources, in error. Every number of every experiment of these names stands here.
TYPED = dict(
    [
        *table(
            "zhang-table3",
            "white-fgsm white-ifgsm transfer-fgsm transfer-ifgsm",
            {
                "top1-erm": [90.7, 99.9, 57.0, 57.3],
                "top1-mixup": [75.2, 99.6, 46.0, 40.9],
                "top5-erm": [63.1, 93.4, 24.8, 18.1],
                "top5-mixup": [49.1, 95.8, 17.4, 11.8],
            },
        ),
        *table("ali-cifar10", "erm mixup", {"white-fgsm": [53.7, 49.25], "transfer-fgsm": [55.07, 49.76]}),
        *table("ali-clean", "erm mixup", {"cifar10": [5.37, 4.21]}),
        *table(
            "verma-fgsm",
            "erm mixup manifold pgd-at",
            {"cifar10": [63.68, 28.49, 22.5, 43.9], "cifar100": [None, 59.3, None, None]},
        ),
        ("verma-pgd-mixup-pgd200", 99.0),
        *table("pang-mixup", "clean pgd10 pgd50 pgd200", {"mixup": [6.2, 96.4, 96.8, 96.9]}),
        *table("undefended-wrn", "eps2 eps4 eps8", {"erm": [36, 45, 53]}),
        *table(
            "rice-mixup",
            "best last",
            {"pgd-at": [46.5, 54.4], "pgd-at-mixup-1": [48.9, 51.6], "pgd-at-mixup-1.4": [46.3, 47.1]},
        ),
        *table(
            "zhang-fig3a",
            "erm mixup",
            {
                "cifar10-preact-resnet18": [5.6, 3.9],
                "cifar10-wrn28-10": [3.8, 2.7],
                "cifar10-densenet-bc190": [3.7, 2.7],
                "cifar100-preact-resnet18": [25.6, 21.1],
                "cifar100-wrn28-10": [19.4, 17.5],
                "cifar100-densenet-bc190": [19.0, 16.8],
            },
        ),
        *table(
            "liang-table1",
            "erm mixup mixup-h mixup-hv mixup-hc",
            {
                "cifar10-preact-resnet18": [5.6, 3.9, 3.9, 3.4, 3.5],
                "cifar10-densenet-bc190": [3.7, 2.7, 2.7, 2.3, 2.3],
                "cifar10-resnext29-8x64": [3.7, 2.7, None, 2.4, None],
                "cifar100-preact-resnet18": [25.6, 21.1, 21, 19.8, 19.9],
                "cifar100-resnext29-8x64": [17.4, 16.8, None, 14.5, None],
            },
        ),
        *table(
            "liang-table1-imagenet",
            "erm mixup mixup-h mixup-hv mixup-hc",
            {
                "resnet50": [23.5, 23.3, 23.3, 23, 23.1],
                "resnet101": [22.1, 21.5, 21.7, 20.3, 20.5],
                "resnext101-64x4d": [20.4, 19.8, 19.9, 19.3, 19.3],
            },
        ),
    ]
)
SAMPLE = {
    "zhang-code-cifar10-preact-resnet18-mixup": 4.24,
    "liang-landscape-preact-resnet18-erm": 5.36,
    "liang-landscape-vgg11-mixup": 7.35,
    "zhang-table1-90-resnet50-mixup-top5": 6.6,
    "zhang-table1-90-resnext101-32x4d-erm-top1": 21.2,
    "zhang-table1-200-resnet50-mixup-top1": 22.1,
    "zhang-table1-200-resnet101-mixup-top5": 5.4,
    "zhang-table5-erm-wd5e-4": 5.18,
    "zhang-table5-mixup-wd5e-4": 4.68,
    "zhang-table5-latent-4-wd1e-4": 5.95,
    "zhang-table5-label-smoothing-0.2-wd5e-4": 5.06,
    "zhang-table5-inputs-smoothing-0.4-wd1e-4": 5.25,
    "zhang-table5-gaussian-noise-0.2-wd5e-4": 7.24,
    "zhang-corrupted-20-erm-last": 16.6,
    "zhang-corrupted-50-mixup-best": 11.3,
    "zhang-corrupted-80-mixup-train-corrupted": 85.44,
    "zhang-corrupted-80-dropout-train-real": 29.84,
    "zhang-corrupted-80-mixup-dropout-last": 24.8,
    "zhang-speech-lenet-mixup-0.2-test": 11.3,
    "zhang-speech-vgg11-erm-validation": 5.0,
    "zhang-uci-arcene-mixup": 48.0,
    "zhang-uci-iris-erm": 21.3,
}
COUNTS = {
    "zhang-code": 1,
    "zhang-fig3a-corrected": 1,
    "liang-landscape": 4,
    "zhang-table1-90": 14,
    "zhang-table1-200": 12,
    "zhang-table5": 44,
    "zhang-corrupted": 42,
    "zhang-speech": 12,
    "zhang-uci": 12,
}

ON_JPEG: dict[str, Any] = {
    "data": "cifar10-jpeg",
    "like": "cifar10",
    "data_note": "JPEG, quality 75",
    "model": "preact_resnet18",
    "width": 16,
    "epochs": 6,
    "train_examples": 5000,
    "role": "white",
    "method": "erm",
    "attack": "fgsm",
    "eps_255": 4.0,
    "steps": 1,
    "step_255": 4.0,
    "statistic": "last",
    "seeds": 2,
    "n": 10_000,
}
CLEAN: dict[str, Any] = {
    "data": "cifar10",
    "like": "cifar10",
    "model": "preact_resnet18",
    "width": 64,
    "epochs": 200,
    "train_examples": 50_000,
    "eps_255": 0,
}


def test_values_typed_from_the_sources() -> None:
    whole = set(published.experiments()) - set(COUNTS)
    found = {figure.id: figure.value for figure in published.figures() if figure.experiment in whole}
    assert found == TYPED


@pytest.mark.parametrize(("name", "value"), SAMPLE.items())
def test_sample_of_the_longer_tables(name: str, value: float) -> None:
    assert ALL[name].value == value


def test_number_of_figures() -> None:
    assert {name: len(published.experiment(name).figures) for name in COUNTS} == COUNTS
    assert len(ALL) == len(published.figures()) == len(TYPED) + sum(COUNTS.values()) == 231


def test_every_figure_says_where_it_is_from_and_how_sure_it_is() -> None:
    for figure in published.figures():
        source = published.sources()[figure.source]
        assert source.title
        assert source.bibtex.strip().startswith("@")
        assert figure.where
        assert figure.certainty in get_args(Certainty)
        assert figure.statistic in get_args(Statistic)
        assert (figure.role == "clean") == (figure.attack is None)
    assert {figure.source for figure in published.figures()} == set(published.sources())


def test_certainty_and_statistic_of_known_figures() -> None:
    assert ALL["zhang-table5-erm-wd1e-4"].certainty == "T"
    assert {ALL[name].certainty for name in ALL if name.startswith("zhang-table5-latent")} == {"R"}
    assert {figure.certainty for figure in published.experiment("pang-mixup").figures} == {"R"}
    assert {figure.certainty for figure in published.experiment("undefended-wrn").figures} == {"2"}
    assert ALL["zhang-corrupted-20-mixup-dropout-best"].certainty == "2"
    assert {figure.statistic for figure in published.experiment("zhang-table5").figures} == {"median-last-10"}
    assert {figure.statistic for figure in published.experiment("ali-cifar10").figures} == {"best-on-test"}
    assert {figure.statistic for figure in published.experiment("liang-table1").figures} == {"unknown"}
    assert ALL["zhang-corrupted-20-erm-best"].statistic == "best-on-test"
    assert ALL["rice-mixup-pgd-at-last"].statistic == "last"


def test_the_figure_that_did_not_reproduce_is_marked() -> None:
    wrong = published.find(reproduces=False)
    assert [figure.reported for figure in wrong] == ["3.9", "3.9"]
    assert {figure.source for figure in wrong} == {"zhang2018", "liang2018"}
    for figure in wrong:
        assert figure.corrected_by is not None
        assert ALL[figure.corrected_by].value == 4.2
        assert reasons(figure, CLEAN)[0] == "the published 3.9 did not reproduce: its authors corrected it to 4.2"


def test_attack_of_zhang_table_3() -> None:
    figure = ALL["zhang-table3-top5-mixup-transfer-ifgsm"]
    assert (figure.attack, figure.eps_255, figure.steps, figure.norm) == ("ifgsm", 4, 10, "linf")
    assert (figure.step_rule, figure.source_method) == ("equal step size", "erm")
    assert (figure.data, figure.model, figure.method, figure.metric) == (
        "imagenet",
        "resnet101",
        "mixup",
        "top5_error",
    )
    assert "pixel scale" in figure.not_stated
    assert ALL["zhang-table3-top1-erm-white-fgsm"].source_method is None


def test_recipes_are_merged_from_experiment_row_and_column() -> None:
    figure = ALL["zhang-fig3a-cifar100-wrn28-10-mixup"]
    assert (figure.recipe.epochs, figure.recipe.weight_decay, figure.recipe.alpha) == (200, 1e-4, 1)
    assert ALL["zhang-fig3a-cifar100-wrn28-10-erm"].recipe.alpha is None
    assert ALL["zhang-table5-latent-3-wd5e-4"].recipe.layer == 3
    assert ALL["zhang-table5-latent-3-wd5e-4"].recipe.weight_decay == 5e-4
    assert ALL["zhang-corrupted-80-mixup-last"].recipe.label_noise == 80


def test_accuracies_become_errors_and_are_kept_as_printed() -> None:
    figure = ALL["verma-fgsm-cifar10-manifold"]
    assert (figure.value, figure.reported, figure.reported_as) == (22.5, "77.50", "accuracy")
    assert ALL["zhang-table3-top1-erm-transfer-fgsm"].reported == "57.0"
    assert ALL["zhang-table3-top1-erm-transfer-fgsm"].reported_as == "error"
    accuracies = {figure.experiment for figure in published.find(reported_as="accuracy")}
    assert accuracies == {
        "liang-landscape",
        "pang-mixup",
        "rice-mixup",
        "undefended-wrn",
        "verma-fgsm",
        "verma-pgd",
    }


def test_figures_are_frozen_and_survive_json() -> None:
    for figure in published.figures():
        assert Figure.model_validate_json(figure.model_dump_json()) == figure
    with pytest.raises(ValidationError):
        published.figures()[0].value = 1.0


def test_experiment_and_find_name_what_does_not_exist() -> None:
    assert len(published.experiment("zhang-table3").figures) == 16
    with pytest.raises(SpecError, match=r"unknown published experiment 'zhang-table4'; choose from .*zhang-table3"):
        published.experiment("zhang-table4")
    assert [figure.value for figure in published.find(experiment="ali-cifar10", method="mixup")] == [
        49.25,
        49.76,
    ]
    with pytest.raises(SpecError, match="no field 'epsilon'"):
        published.find(epsilon=4)


def test_needs_no_torch() -> None:
    code = "import sys, robustmix.published as p; p.figures(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the file's grammar ----------------------------------------------------------------------------------

GOOD = """
[sources.paper]
authors = "A"
title = "T"
venue = "V"
bibtex = "@misc{a}"
[models]
net = { name = "Net", width = 64 }
[data]
sets = { name = "Sets" }
[[experiment]]
id = "e"
source = "paper"
where = "table 1"
data = "sets"
model = "net"
role = "clean"
metric = "top1_error"
certainty = "T"
statistic = "last"
note = "Shared."
columns = [{ id = "a", method = "erm" }, { id = "b", method = "mixup" }]
rows = [{ id = "r", values = [10, "-"] }, { id = "s", note = "Own.", values = [20, 30.50] }]
"""


def test_a_small_file() -> None:
    found = parse(GOOD).figures
    assert [(figure.id, figure.value, figure.reported) for figure in found] == [
        ("e-r-a", 10, "10"),
        ("e-s-a", 20, "20"),
        ("e-s-b", 30.5, "30.50"),
    ]
    assert [figure.note for figure in found] == ["Shared.", "Shared. Own.", "Shared. Own."]
    assert found[0].width == 64


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "paper"', 'source = "book"', "e: source = 'book': should be one of paper"),
        ('model = "net"', 'model = "nets"', "model = 'nets': should be one of net"),
        ('data = "sets"', "", "data = None: should be one of sets"),
        ("[10,", "[101,", "values"),
        ("[10,", "[-1,", "values"),
        ("[10,", '["?",', "values"),
        ("[10,", "[nan,", "values"),
        ('[10, "-"]', "[10]", "e-r: 1 values for 2 columns"),
        ('id = "s"', 'id = "r"', "the figure 'e-r-a' stands twice"),
        ('note = "Own."', 'notes = "Own."', "notes"),
        ('note = "Own."', 'method = "erm"', "row and column both set 'method'"),
        ('note = "Own."', "recipe.epoch = 3", r"e-s-a.recipe.epoch = 3: Extra inputs"),
        ('note = "Own."', "steps = 3", "a clean error has no attack"),
        ('role = "clean"', 'role = "white"', "needs 'attack' and 'norm'"),
        ('certainty = "T"', 'certainty = "X"', "certainty = 'X'"),
        ('statistic = "last"', "", "statistic"),
        ('note = "Shared."', "cell.r-c.note = 'x'", "there is no cell 'r-c'"),
        ('note = "Shared."', "cell.r-a.corrected_by = 'x'", "corrected_by = 'x': there is no such figure"),
        ('title = "T"', "", "sources.paper.title"),
        ("[sources.paper]", "[sources.paper", "not valid TOML"),
        ("[models]", "[modules]\n[models]", "modules"),
    ],
)
def test_mistakes_in_the_file_are_named(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(SpecError, match=message):
        parse(GOOD.replace(old, new, 1))


# ---- reasons and level -----------------------------------------------------------------------------------


def test_reasons_against_imagenet() -> None:
    assert reasons(ALL["zhang-table3-top1-erm-white-fgsm"], ON_JPEG) == [
        "another data set: cifar10 (JPEG) instead of imagenet",
        "another model: preact_resnet18 instead of resnet101",
        "a narrower network: width 16 of 64",
        "not stated there: pixel scale, step, clipping, random start, true or predicted label, alpha, "
        "epochs, image count, seeds, checkpoint",
    ]


def test_reasons_against_the_same_data_in_another_form() -> None:
    measured = ON_JPEG | {"model": "resnet18", "seeds": [1], "n": 500, "train_error": 23.4}
    assert reasons(ALL["ali-cifar10-white-fgsm-erm"], measured) == [
        "not the original cifar10: cifar10-jpeg (JPEG)",
        "a narrower network: width 16 of 64",
        "5,000 training examples instead of 50,000",
        "not trained to the end: 23.4 % error on its own training set",
        "published: the checkpoint that is best on the test set; here: the last one",
        "not stated there: eps, step, normalisation",
        "only 500 test examples: chance alone moves it by 4.4 points",
        "a single seed",
    ]


def test_reasons_name_epochs_recipe_steps_and_certainty() -> None:
    clean = CLEAN | {"method": "mixup", "epochs": 6, "alpha": 0.2, "weight_decay": 1e-4, "statistic": "last"}
    assert reasons(ALL["zhang-fig3a-cifar10-wrn28-10-mixup"], clean) == [
        "another model: preact_resnet18 instead of wrn28_10",
        "6 epochs instead of 200",
        "alpha 0.2 instead of 1",
        "not stated there: checkpoint",
    ]
    iterated = ON_JPEG | {"attack": "i-fgsm", "steps": 40, "step_255": 0.4}
    found = reasons(ALL["zhang-table3-top1-erm-white-ifgsm"], iterated)
    assert "40 iterations instead of 10" in found
    assert "steps of 0.4/255; published: equal step size" in found
    found = reasons(ALL["zhang-table5-latent-1-wd1e-4"], CLEAN | {"statistic": "last"})
    assert "published: the median of the last ten epochs; here: the last one" in found
    assert "the published figure is remembered, not looked up" in found


def test_no_reason_where_everything_agrees() -> None:
    assert reasons(ALL["zhang-table5-erm-wd1e-4"], CLEAN | {"statistic": "median-last-10"}) == []


def test_adversarial_training_need_not_fit_its_training_set() -> None:
    measured = CLEAN | {"role": "white", "attack": "pgd", "eps_255": 8, "train_error": 40}
    assert not any("training set" in reason for reason in reasons(ALL["rice-mixup-pgd-at-last"], measured))


def test_same_experiment() -> None:
    figure = ALL["zhang-fig3a-cifar10-preact-resnet18-erm"]
    assert level(figure, CLEAN) == "same experiment"
    assert level(figure, CLEAN | {"attack": "none", "role": "clean", "method": "erm"}) == "same experiment"
    assert level(figure, CLEAN | {"model": "PreAct-ResNet18"}) == "same experiment"


@pytest.mark.parametrize(
    "change",
    [
        {"data": "cifar100", "like": "cifar100"},
        {"data": "cifar10-jpeg"},
        {"data_note": "JPEG"},
        {"model": "resnet18"},
        {"model": None},
        {"width": 16},
        {"epochs": 6},
        {"epochs": None},
        {"epochs": float("nan")},
        {"train_examples": 5000},
    ],
)
def test_same_design_where_data_or_training_differ(change: dict[str, Any]) -> None:
    assert level(ALL["zhang-fig3a-cifar10-preact-resnet18-erm"], CLEAN | change) == "same design"


def test_same_attack_on_other_data_is_the_same_design() -> None:
    assert level(ALL["zhang-table3-top1-erm-white-fgsm"], ON_JPEG) == "same design"
    assert level(ALL["ali-cifar10-white-fgsm-erm"], ON_JPEG | {"eps_255": 1}) == "same design"
    one_step = ON_JPEG | {"attack": "bim", "steps": 1}
    assert level(ALL["zhang-table3-top1-erm-white-fgsm"], one_step) == "same design"


def test_an_unstated_budget_is_never_the_same_experiment() -> None:
    measured = CLEAN | {"role": "white", "attack": "fgsm", "eps_255": 8, "epochs": 1200, "method": "mixup"}
    assert level(ALL["verma-fgsm-cifar10-mixup"], measured) == "same design"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attack": "ifgsm", "steps": 10}, "another attack: ifgsm instead of fgsm"),
        ({"attack": None, "eps_255": 0}, "another attack: none instead of fgsm"),
        ({"role": "transfer"}, "another role: transfer instead of white"),
        ({"method": "mixup"}, "another method: mixup instead of erm"),
        ({"metric": "top5_error"}, "another metric: top5_error instead of top1_error"),
        ({"norm": "L2"}, "another norm: L2 instead of linf"),
        ({"eps_255": 8}, "another budget: 8/255 instead of 4/255"),
        ({"eps_255": None}, "another budget: an unknown one instead of 4/255"),
        ({"label_noise": 20}, "other label noise: 20 % of the labels instead of 0 %"),
    ],
)
def test_not_comparable(change: dict[str, Any], reason: str) -> None:
    figure = ALL["zhang-table3-top1-erm-white-fgsm"]
    assert level(figure, ON_JPEG | change) == "not comparable"
    assert reasons(figure, ON_JPEG | change)[0] == reason


def test_who_crafted_the_examples_matters_in_transfer() -> None:
    figure = ALL["zhang-table3-top1-mixup-transfer-fgsm"]
    measured = ON_JPEG | {"role": "transfer", "method": "mixup-C", "norm": "Linf"}
    assert level(figure, measured | {"source_method": "erm"}) == "same design"
    assert level(figure, measured | {"source_method": "mixup"}) == "not comparable"


def test_an_unbounded_attack_is_not_comparable_with_a_bounded_one() -> None:
    measured = ON_JPEG | {"method": "mixup", "attack": "pgd", "steps": 200}
    assert level(ALL["verma-pgd-mixup-pgd200"], measured) == "not comparable"
    assert "another budget: 4/255 instead of unbounded" in reasons(ALL["verma-pgd-mixup-pgd200"], measured)


@pytest.mark.parametrize(
    "wrong", [{"epochs": "6"}, {"width": True}, {"data": 3}, {"statistic": "first"}, {"seeds": "1"}]
)
def test_values_of_the_wrong_type_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(wrong))):
        reasons(ALL["zhang-table3-top1-erm-white-fgsm"], ON_JPEG | wrong)
