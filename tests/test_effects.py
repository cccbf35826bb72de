"""Differences between families: the right cells, the right sign, no network against itself, one family of tests."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from families import FGSM, IFGSM, TWO, N, attacked, kind, network, report, seed, study, weights

from robustmix.report.effects import DECLARED, Effect, effect, effects, errors, pooled
from robustmix.report.material import Material
from robustmix.report.pairs import paired
from robustmix.spec.attack import AttackSpec
from robustmix.spec.titles import attack_label
from robustmix.stats import Difference, difference, holm, paired_interval
from robustmix.store.cells import clean_identity
from robustmix.store.results import attack_columns

NAMES = [f"{one}{k}" for one in TWO for k in (1, 2, 3)]
RATES = {"erm": 0.5, "mixup": 0.35}


def drawn(role: str, name: str | None, source: str | None, target: str) -> np.ndarray:
    """Errors of a cell, the same whenever it is asked for: images of one difficulty, networks of one rate each."""
    text = f"{role} {name} {source} {target}"
    rng = np.random.default_rng(list(text.encode()))
    difficulty = np.random.default_rng(7).random(N)
    home = 0.2 if role == "transfer" and kind(source) == kind(target) else 0
    rate = RATES.get(kind(target), 0.4) + 0.02 * seed(target) + home - (0.3 if role == "clean" else 0)
    return np.asarray(0.6 * difficulty + 0.4 * rng.random(N) < rate)


@pytest.fixture(scope="module")
def three() -> Material:
    return study(TWO, 3, drawn)


def one(found: list[Effect], **criteria: object) -> Effect:
    (only,) = [e for e in found if all(getattr(e, key) == value for key, value in criteria.items())]
    return only


def attacked_only(material: Material) -> list[Effect]:
    return [e for e in effects(material) if e.role != "clean"]


def white(name: str, of: str) -> np.ndarray:
    return np.array([[drawn("white", name, f"{of}{k}", f"{of}{k}") for k in (1, 2, 3)]], float)


def transfer(name: str, sources: str, of: str) -> np.ndarray:
    found = np.full((3, 3, N), np.nan)
    for i in range(3):
        for j in range(3):
            if f"{sources}{i + 1}" != f"{of}{j + 1}":
                found[i, j] = drawn("transfer", name, f"{sources}{i + 1}", f"{of}{j + 1}")
    return found


def test_declared_labels_are_those_of_the_attacks_without_parameters() -> None:
    for name, label in zip(("fgsm", "ifgsm"), DECLARED, strict=True):
        spec = AttackSpec(name=name, eps=(4.0,))  # type: ignore[arg-type]
        course = spec.course(4.0)
        row = attack_columns(clean_identity("a", "b", 1)) | {
            "attack": name, "steps": course.steps, "step_255": course.step, "eps_255": 4.0
        }  # fmt: skip
        assert attack_label(row) == label


def test_white_box_holds_each_network_against_its_own_examples(three: Material) -> None:
    found = one(effects(three), role="white", label="FGSM")
    expected = difference(white("fgsm", "erm"), white("fgsm", "mixup"))
    assert found.difference == expected
    assert found.observed == expected.estimate < -0.05, "mixup errs less: below zero"
    assert (found.base, found.family, found.source) == ("ERM", "mixup", None)
    assert (found.runs, found.n, found.eps, found.attack) == ((3, 3), N, 4, "fgsm")
    assert found.names == (("erm1", "erm2", "erm3"), ("mixup1", "mixup2", "mixup3"))


@pytest.mark.parametrize(("source", "of"), [("ERM", "erm"), ("mixup", "mixup")])
def test_transfer_from_one_family_leaves_out_a_network_against_itself(three: Material, source: str, of: str) -> None:
    found = one(effects(three), role="transfer", label="I-FGSM, 10 steps", source=source)
    first, second = (transfer("ifgsm", of, target) for target in ("erm", "mixup"))
    assert found.difference == difference(first, second)
    assert np.isnan(first).any() != np.isnan(second).any()
    assert not found.declared
    assert found.p is None
    home = 1 if source == "mixup" else -1
    assert home * found.observed > 0, "a source's own family errs more"


def test_pooled_sources_come_in_pairs_that_favour_neither(three: Material) -> None:
    found = one(effects(three), role="transfer", label="FGSM", source="ERM and mixup")
    sides = [(transfer("fgsm", "erm", of) + transfer("fgsm", "mixup", of)) / 2 for of in ("erm", "mixup")]
    expected = difference(*sides)
    assert found.difference == expected
    assert found.declared
    assert found.source == pooled("ERM", "mixup")
    # Every target meets the two other pairs, each with one source of either family.
    assert [int((~np.isnan(side[:, :, 0])).sum()) for side in sides] == [6, 6]
    alone = [one(effects(three), role="transfer", label="FGSM", source=of) for of in ("ERM", "mixup")]
    ends = [e.ends[1] - e.ends[0] for e in (*alone, found) if e.ends]
    assert ends[2] < 2 * max(ends[:2]), "that examples transfer better at home is no chance between sources"


def test_a_stronger_kind_of_source_does_not_move_the_pooled_effect() -> None:
    def wrong(role: str, _: str | None, source: str | None, target: str) -> int:
        return 200 if role == "clean" else 100 + (120 if kind(source) == "erm" else 0) + seed(target)

    found = study(TWO, 3, wrong, [FGSM])
    assert one(effects(found), role="transfer", source="ERM and mixup").observed == pytest.approx(0, abs=1e-12)


def test_without_sources_of_both_no_transfer_is_declared() -> None:
    found = study(TWO, 3, drawn, sources=lambda name: kind(name) == "erm")
    assert {(e.role, e.source, e.declared) for e in attacked_only(found)} == {("transfer", "ERM", False)}


def test_white_box_needs_targets_that_craft() -> None:
    found = study(TWO, 3, drawn, [FGSM], sources=lambda name: name == "erm1")
    (only,) = attacked_only(found)
    assert (only.role, only.source) == ("transfer", "ERM")
    assert only.names[0] == ("erm2", "erm3"), "what only attacks itself is no target of transfer"
    assert only.about == "runs", "one source says nothing about others of its kind"


def test_p_values_are_corrected_over_the_declared_family_alone() -> None:
    kinds = {**TWO, "hv": {"method": "mixup-hv"}}
    attacks = [FGSM, IFGSM, {**FGSM, "loss": "logodds"}, {**IFGSM, "steps": 20}, {"name": "pgd", "eps": [4]}]
    found = effects(study(kinds, 2, drawn, attacks))
    tested = [e for e in found if e.p is not None]
    assert {(e.role, e.label, e.family) for e in tested} == {
        (role, label, family)
        for role in ("white", "transfer")
        for label in DECLARED
        for family in ("mixup", "mixup-hv")
    }
    assert [e.declared for e in found] == [e.p is not None for e in found]
    assert all(e.source in (None, f"ERM and {e.family}") for e in tested)
    assert [e.p for e in tested] == holm([e.difference.p for e in tested if e.difference])
    assert {e.label for e in found} > set(DECLARED)
    # Beside the pooled one there is a line for each family of sources, third ones included.
    assert {e.source for e in found if e.role == "transfer" and e.family == "mixup"} == {
        "ERM and mixup", "ERM", "mixup", "mixup-hv"
    }  # fmt: skip


@pytest.mark.parametrize(("seeds", "about"), [(1, "runs"), (2, "runs"), (3, "methods")])
def test_below_three_seeds_an_effect_speaks_of_runs(seeds: int, about: str) -> None:
    found = effects(study(TWO, seeds, drawn, [FGSM]))
    assert {e.about for e in found} == {about}
    assert all((e.difference is None) == (min(e.runs) < 2) for e in found)
    if seeds == 1:
        only = one(found, role="white")
        expected = drawn("white", "fgsm", "mixup1", "mixup1").mean() - drawn("white", "fgsm", "erm1", "erm1").mean()
        assert only.observed == pytest.approx(expected)
        assert (only.p, only.ends, only.direction) == (None, None, None)
    else:
        assert all((e.direction is None) == (about == "runs") for e in found)


def test_the_fewer_seeds_count() -> None:
    found = attacked_only(study(TWO, {"erm": 3, "mixup": 1}, drawn, [FGSM]))
    assert {(e.role, e.source): (e.runs, e.difference) for e in found} == {
        ("white", None): ((3, 1), None),
        # mixup1 attacks no other of its kind, and in the one pair it would attack itself.
        ("transfer", "ERM"): ((3, 1), None),
    }


def test_direction_takes_the_interval_and_holm() -> None:
    usual = Effect(
        role="white", label="FGSM", attack="fgsm", eps=4, base="ERM", family="mixup", source=None,
        names=(("a", "b", "c"), ("d", "e", "f")), n=10, observed=-0.1,
        difference=Difference(-0.1, -0.2, -0.01, 0.03, 4), p=0.04, declared=True, about="methods",
    )  # fmt: skip
    assert usual.direction == -1
    assert replace(usual, p=0.06).direction == 0, "what Holm takes back counts for nothing"
    assert replace(usual, p=None, declared=False).direction == -1
    assert replace(usual, difference=Difference(-0.1, -0.2, 0.01, 0.06, 4)).direction == 0
    assert replace(usual, difference=Difference(0.1, 0.01, 0.2, 0.03, 4)).direction == 1
    assert replace(usual, about="runs").direction is None


def test_no_plain_erm_no_effects() -> None:
    kinds: dict[str, dict[str, Any]] = {"erm": {"label_smoothing": 0.1}, "mixup": {"method": "mixup"}}
    assert effects(study(kinds, 2, drawn, [FGSM])) == ()


def test_a_source_that_missed_a_target_is_left_out_for_all() -> None:
    names = ("erm1", "mixup2")
    cells = [
        cell
        for cell in attacked(NAMES, NAMES, [FGSM], drawn)
        if (cell.identity.source, cell.identity.target) != tuple(map(weights, names))
    ]
    found = effects(report([network(name, TWO[kind(name)]) for name in NAMES], cells))
    first, second = (transfer("fgsm", "erm", of)[1:] for of in ("erm", "mixup"))
    assert one(found, role="transfer", source="ERM").difference == difference(first, second)
    first, second = ((transfer("fgsm", "erm", of) + transfer("fgsm", "mixup", of))[1:] / 2 for of in ("erm", "mixup"))
    assert one(found, role="transfer", source="ERM and mixup").difference == difference(first, second)
    assert one(found, role="transfer", source="ERM").about == "runs", "two sources are left"


def test_clean_effect_is_on_clean_cells(three: Material) -> None:
    found = effect(three, "clean", "clean", 0.0, "ERM", "mixup")
    assert found is not None
    first, second = (np.array([[drawn("clean", None, None, f"{of}{k}") for k in (1, 2, 3)]], float) for of in RATES)
    assert found.difference == difference(first, second)
    assert (found.attack, found.p, found.declared) == ("clean", None, False)
    assert effects(three)[-1] == found, "last, and descriptive"


WIDE: dict[str, Any] = {"model": "preact_resnet50", "width": 64, "lr": 0.2}


@pytest.mark.parametrize(
    ("first", "second", "besides"),
    [
        ({"width": 16}, {"method": "mixup", "width": 16, "alpha": 0.4, "lam_per": "example"}, ()),
        ({}, {"label_smoothing": 0.1, "noise": 0.1, "drop": "dropout:0.3"}, ()),
        ({}, {"adversarial_eps": 8, "adversarial_steps": 7}, ()),
        ({"width": 16}, {"method": "mixup", **WIDE}, ("model", "width", "lr")),
        ({"weight_decay": 5e-4}, {"weight_decay": 1e-3}, ()),
        ({"weight_decay": 5e-4}, {"weight_decay": 1e-3, "epochs": 3}, ("epochs", "weight decay")),
        ({"weight_decay": 5e-4}, {"weight_decay": 1e-3, "method": "mixup"}, ("weight decay",)),
        ({}, {"method": "mixup", "limit": 500}, ("limit",)),
        ({"epochs": 8}, {"method": "mixup", "epochs": 8, "milestones": "4,6"}, ()),
        ({"epochs": 8}, {"method": "mixup", "epochs": 8, "milestones": "2,6"}, ("milestones",)),
    ],
)
def test_methods_differ_in_nothing_else(
    first: dict[str, Any], second: dict[str, Any], besides: tuple[str, ...]
) -> None:
    found = study({"one": first, "other": second}, 3, drawn, [FGSM])
    families = list(found.families)
    compared = effect(found, "clean", "clean", 0.0, families[0], families[1])
    assert compared is not None
    assert len(compared.unlike) == len(besides)
    assert all(text.startswith(f"{name} ") for text, name in zip(compared.unlike, besides, strict=True))
    assert compared.about == ("runs" if besides else "methods")
    if besides:
        assert compared.direction is None


def test_what_else_differs_is_said_with_its_values() -> None:
    found = study({"erm": {"width": 16, "limit": 500}, "mixup": {"method": "mixup", **WIDE}}, 3, drawn, [FGSM])
    assert {e.unlike for e in effects(found)} == {
        ("limit 500 or none", "model preact_resnet18 or preact_resnet50", "width 16 or 64", "lr 0.1 or 0.2")
    }


def test_errors_say_where_there_is_no_cell(three: Material) -> None:
    found = errors(three, "transfer", "FGSM", 4.0, ["erm1", "mixup1"], ["erm1", "mixup2"])
    assert np.isnan(found[0, 0]).all()
    assert found[1, 1].tolist() == drawn("transfer", "fgsm", "mixup2", "mixup1").tolist()
    assert np.isnan(found).sum() == N
    nothing = errors(three, "white", "FGSM", 5.0, ["erm1"])
    assert nothing.shape == (1, 1, N)
    assert np.isnan(nothing).all()


def test_two_checkpoints_are_paired_image_by_image(three: Material) -> None:
    found = paired(three, "white", "FGSM", 4.0, "erm1", "mixup1")
    assert found is not None
    a, b = drawn("white", "fgsm", "erm1", "erm1"), drawn("white", "fgsm", "mixup1", "mixup1")
    only = int((a & ~b).sum()), int((b & ~a).sum())
    assert (found.errors, found.only, found.n) == ((a.sum(), b.sum()), only, N)
    assert found.observed == pytest.approx((only[1] - only[0]) / N)
    assert found.interval == paired_interval(only[1], only[0], N)
    assert found.interval[0] < found.observed < found.interval[1] < 0
    assert paired(three, "white", "FGSM", 8.0, "erm1", "mixup1") is None


def test_models_of_others_are_no_family_of_runs_but_sources() -> None:
    other = "x.py:make"
    cells = attacked([*NAMES, other], [*NAMES, other], [FGSM], lambda *_: 10)
    found = effects(report([network(name, TWO[kind(name)]) for name in NAMES], cells, models=[other]))
    assert {e.family for e in found} == {"mixup"}
    assert {e.source for e in found} == {None, "ERM and mixup", "ERM", "mixup", other}
    assert {e.role for e in found} == {"clean", "white", "transfer"}
    assert one(found, source=other).about == "runs"
