from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import make_audit
from synthetic import INPUTS, N, add_run, identities, make_cell

from robustmix.report import collect
from robustmix.report.material import Material
from robustmix.report.methods_text import paragraphs
from robustmix.store.audits import write_audit
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.runs import read_run, write_history
from robustmix.store.workspace import Workspace

OTHER = "net.py:make"


def material(
    root: Path,
    specs: list[dict[str, Any]],
    seeds: int = 1,
    other: bool = False,
    single: tuple[str, ...] = (),
    theirs: tuple[str, ...] = (),
    audited: tuple[str, ...] = (),
) -> Material:
    """Seeds of ERM and mixup and single runs of other methods, of which some were imported and some audited."""
    place = Workspace(root)
    digests = {OTHER: "c" * 64} if other else {}
    for seed in range(1, seeds + 1):
        for method in ("erm", "mixup", *(single if seed == 1 else ())):
            add_run(place, f"{method}{seed}", method, seed)
            digests[f"{method}{seed}"] = read_run(place, f"{method}{seed}").weights or ""
    for target, scored in digests.items():
        write_cell(place.cells, make_cell(clean_identity(scored, INPUTS, 256), N, target_name=target))
        for source, crafts in digests.items():
            for fields in specs:
                for identity in identities(fields, crafts, scored):
                    cell = make_cell(identity, N, source_name=source, target_name=target)
                    write_cell(place.cells, cell)
    for name in theirs:
        facts = read_run(place, name).facts
        assert facts
        rows = [{"epoch": 2, "seconds": 1.0}]
        write_history(place.run(name), rows, replace(facts, imported_from="theirs.pt, SHA-256 abc"))
    for name in audited:
        write_audit(place.audits, make_audit(name, digests[name], "fail"))
    return Material.read(collect(place, "r"))


def test_data_and_networks(tmp_path: Path) -> None:
    data, networks, *_ = paragraphs(material(tmp_path, [{"name": "fgsm", "eps": [4]}], seeds=2, other=True))
    assert data.startswith("We evaluated on 50 test images of cifar10 (a note, ")
    assert "10 classes" in data
    assert networks == (
        "We trained preact_resnet18 of width 16 (700,506 parameters) for 2 epochs on 50,000 images with SGD (momentum "
        "0.9, learning rate 0.1 divided by 10 after 1 and 2 epochs, weight decay 0.0005, batches of 64, no "
        "augmentation) by ERM (seeds 1 and 2) and mixup with lambda ~ Beta(1, 1) (seeds 1 and 2). Each network is "
        "that of its last epoch; nothing was selected on the test set. net.py:make was taken as published."
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"name": "fgsm", "eps": ["0.5/255", 1, 4]},
            "FGSM (Goodfellow et al. 2015) at budgets 0.5, 1 and 4 in L-infinity (ascending cross-entropy of the "
            "true labels)",
        ),
        (
            {"name": "ifgsm", "eps": [4]},
            "I-FGSM (Kurakin et al. 2017), 10 steps at budget 4 in L-infinity (ascending cross-entropy of the true "
            "labels, steps of budget / steps)",
        ),
        (
            {"name": "ifgsm", "eps": [2, 4], "step": "kurakin", "labels": "predicted"},
            "I-FGSM (Kurakin et al. 2017), min(eps + 4, 1.25 eps) steps of 1/255, predicted labels at budgets 2 and 4 "
            "in L-infinity (ascending cross-entropy of the predicted labels)",
        ),
        (
            {"name": "pgd", "eps": [4], "restarts": 3, "seed": 7, "loss": "dlr"},
            "PGD (Madry et al. 2018), 10 steps, loss dlr, 3 restarts, seed 7 at budget 4 in L-infinity (ascending the "
            "difference-of-logits ratio of the true labels, steps of 2.5 budget / steps)",
        ),
        (
            {"name": "pgd", "eps": [4]},
            "PGD (Madry et al. 2018), 10 steps at budget 4 in L-infinity (ascending cross-entropy of the true labels, "
            "steps of 2.5 budget / steps, a random start, seed 0)",
        ),
        (
            {"name": "mifgsm", "eps": [64], "norm": "l2"},
            "MI-FGSM (Dong et al. 2018), 10 steps, L2 at budget 64 (ascending cross-entropy of the true labels, steps "
            "of budget / steps, decay 1)",
        ),
        (
            {"name": "deepfool"},
            "DeepFool (Moosavi-Dezfooli et al. 2016) of least length in L2 (50 steps)",
        ),
        (
            {"name": "square", "eps": [4], "queries": 100},
            "Square (Andriushchenko et al. 2020), 100 queries at budget 4 in L-infinity",
        ),
        (
            {"name": "fgsm", "eps": [4], "precision": "bf16", "impl": "foolbox"},
            "FGSM (Goodfellow et al. 2015), bf16, by foolbox at budget 4 in L-infinity (ascending cross-entropy of the "
            "true labels)",
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_attacks_with_all_their_parameters(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    text = paragraphs(material(tmp_path, [fields]))[2]
    assert f": {expected}. Budgets are in units of 1/255" in text
    assert "(white box) and on every other one (transfer)" in text


def test_statistics_speak_of_methods_from_three_seeds_on(tmp_path: Path) -> None:
    few = paragraphs(material(tmp_path / "2", [{"name": "fgsm", "eps": [4]}], seeds=2))[3]
    many = paragraphs(material(tmp_path / "3", [{"name": "fgsm", "eps": [4]}], seeds=3))[3]
    assert few.endswith("With fewer than 3 seeds of each, nothing is claimed of the ways of training.")
    assert "Welch" in many
    assert "Holm" in many
    assert "Welch" not in few


def test_each_way_of_training_is_judged_by_its_own_seeds(tmp_path: Path) -> None:
    text = paragraphs(material(tmp_path, [{"name": "fgsm", "eps": [4]}], seeds=3, single=("cutmix",)))[3]
    assert "mixup is compared with ERM by a Welch t interval" in text
    assert text.endswith(" Of cutmix nothing is claimed: the seeds are too few.")


def test_what_another_program_trained_we_did_not(tmp_path: Path) -> None:
    fgsm = [{"name": "fgsm", "eps": [4]}]
    networks = paragraphs(material(tmp_path / "1", fgsm, theirs=("mixup1",)))[1]
    ours, _, others = networks.partition("Another program trained ")
    assert ours.startswith("We trained ")
    assert "mixup" not in ours
    assert "Each network that we trained is that of its last epoch; nothing was selected on the test set." in ours
    assert "by mixup (" in others
    assert others.endswith("only what was said at the import is on record, not how the weights were chosen.")
    networks = paragraphs(material(tmp_path / "2", fgsm, theirs=("erm1", "mixup1")))[1]
    assert "We trained" not in networks
    assert "last epoch" not in networks


def test_audits_worst_cases_and_versions_are_named(tmp_path: Path) -> None:
    specs = [{"name": "fgsm", "eps": [4]}, {"name": "ifgsm", "eps": [4]}]
    *_, statistics, audits, software = paragraphs(material(tmp_path, specs, audited=("erm1", "mixup1")))
    assert "Worst case within 4/255: an image counts as an error under any of FGSM" in statistics
    assert audits == (
        "The evaluation of erm1 and mixup1 was audited by robustmix on 50 test images of cifar10 at 4/255: Budget "
        "and range are kept; More steps change nothing; FGSM grows with the budget."
    )
    assert software.startswith("Networks were trained with robustmix 0 and torch 0 on cpu")
    assert software.endswith("Attacks were made and scored with robustmix 0 and torch 0 on cpu.")
