"""The claims of the sources: every judge in every case, from numbers that decide it."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from families import FGSM, IFGSM, TWO, N, Wrong, attacked, kind, network, report, seed, study

from robustmix.published import sources
from robustmix.report.claims import CLAIMS, Claim, claims
from robustmix.report.effects import effect, effects
from robustmix.report.material import Material
from robustmix.report.text import range_of
from robustmix.stats import mean_interval

SIGN = {"supported": -1, "contradicted": 1, "undecided": 0}


def claim(material: Material, name: str) -> Claim:
    (found,) = [one for one in claims(material) if one.id == name]
    return found


def plain(text: str) -> str:
    return " ".join(text.split())


def white_and_transfer(white: Mapping[str, int], transfer: int) -> Wrong:
    """Mixup errs on so many images more than ERM, by attack in the white box, and under all transfer."""

    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        more = {"clean": 0, "white": white.get(name or "", 0), "transfer": transfer}[role]
        return 200 + (more if kind(target) == "mixup" else 0) + 2 * seed(target)

    return wrong


@pytest.mark.parametrize("verdict", SIGN)
def test_robust_to_white_box_fgsm(verdict: str) -> None:
    material = study(TWO, 3, white_and_transfer({"fgsm": 60 * SIGN[verdict]}, 0))
    found = claim(material, "white-fgsm")
    assert found.verdict == verdict
    assert found.number.startswith("mixup errs ")
    assert found.number.endswith("at 4/255, 3 and 3 seeds")
    (declared,) = [e for e in effects(material) if e.role == "white" and e.label == "FGSM"]
    assert declared.ends is not None
    assert plain(range_of(declared.observed, *declared.ends)) in plain(found.number)
    word = {"supported": "15.0 points less than ERM", "contradicted": "15.0 points more than ERM"}
    assert word.get(verdict, "as often as ERM") in found.number
    assert "after Holm" in found.reason
    assert "uncorrected" not in found.reason


@pytest.mark.parametrize("verdict", SIGN)
@pytest.mark.parametrize(("name", "label"), [("transfer-fgsm", "FGSM"), ("transfer-ifgsm", "I-FGSM, 10 steps")])
def test_robust_to_transfer_by_sources_that_favour_neither(verdict: str, name: str, label: str) -> None:
    found = claim(study(TWO, 3, white_and_transfer({}, 60 * SIGN[verdict])), name)
    assert found.verdict == verdict
    assert "; under examples of ERM, mixup errs " in found.reason
    assert "; under examples of mixup, mixup errs " in found.reason


def test_transfer_from_erm_alone_decides_nothing() -> None:
    """From ERM mixup errs less, from mixup more: by an ERM source alone the claim would hold."""

    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        return 100 + (80 if kind(source) == kind(target) else 0) + 2 * seed(target)

    material = study(TWO, 3, wrong)
    found = claim(material, "transfer-fgsm")
    assert found.verdict == "undecided"
    assert found.reason.endswith(
        "; under examples of ERM, mixup errs 20.0 points less than ERM; under examples of mixup, mixup errs 20.0 "
        "points more than ERM"
    )
    few = claim(study(TWO, 2, wrong), "transfer-fgsm").reason
    assert few.endswith(
        "; under examples of erm1 and erm2, mixup1 and mixup2 err 20.0 points less than erm1 and erm2; under examples "
        "of mixup1 and mixup2, mixup1 and mixup2 err 20.0 points more than erm1 and erm2"
    )
    alone = [e for e in effects(material) if e.role == "transfer" and e.source == "ERM"]
    assert {e.direction for e in alone} == {-1}
    only = study(TWO, 3, wrong, sources=lambda name: kind(name) == "erm")
    found = claim(only, "transfer-fgsm")
    assert (found.verdict, found.number) == ("not measured", "")
    assert "by sources of both kinds" in found.reason


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((398, 396), "supported"),
        ((396, 300), "undecided"),
        ((300, 396), "undecided"),
        ((396, 362), "undecided"),
        ((396, 219), "undecided"),  # up to 5.4 points above the 50 % without an attack
        ((396, 210), "contradicted"),
        ((210, 396), "contradicted"),
    ],
)
def test_neither_is_robust_to_iterated_attacks(counts: tuple[int, int], verdict: str) -> None:
    errs = dict(zip(TWO, counts, strict=True))

    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        return errs[kind(target)] + seed(target) - 2 if (role, name) == ("white", "ifgsm") else 200

    found = claim(study(TWO, 3, wrong), "white-ifgsm")
    assert found.verdict == verdict
    ends = [mean_interval([(count + k) / N for k in (-1, 0, 1)]) for count in counts]
    low, high = (100 * end for end in ends[0])
    assert plain(found.number).startswith(
        f"ERM {100 * counts[0] / N:.1f} % [{low:.1f}, {min(high, 100):.1f}] and mixup"
    )
    assert plain(found.reason) == (
        "not robust means an error of 90.0 % or more, robust one of at most 5 points above that without an attack "
        "(50.0 % and 50.0 %); what lies between is undecided"
    )


def test_neither_is_robust_with_few_seeds_names_runs() -> None:
    found = claim(study(TWO, 1, lambda *_: 396), "white-ifgsm")
    assert found.verdict == "undecided"
    assert plain(found.number) == "erm1 99.0 % and mixup1 99.0 % at 4/255"


def cleanly(kinds: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], seeds: int = 3) -> Material:
    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        return counts[kind(target)] + seed(target)

    return study(kinds, seeds, wrong, [FGSM], sources=lambda name: False)


@pytest.mark.parametrize(
    ("counts", "verdict"), [((80, 40), "supported"), ((40, 80), "contradicted"), ((60, 60), "undecided")]
)
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("clean", {}, {"method": "mixup"}),
        ("mixup-hv", {"method": "mixup"}, {"method": "mixup-hv"}),
        ("mixup-hc", {"method": "mixup"}, {"method": "mixup-hc"}),
        ("labels-too", {"method": "mixup", "mix": "inputs"}, {"method": "mixup"}),
        ("label-smoothing", {"label_smoothing": 0.1}, {"method": "mixup"}),
        ("corrupted-labels", {"label_noise": 0.8}, {"label_noise": 0.8, "method": "mixup", "alpha": 32}),
    ],
)
def test_claims_about_clean_errors(
    name: str, first: dict[str, Any], second: dict[str, Any], counts: tuple[int, int], verdict: str
) -> None:
    material = cleanly({"one": first, "other": second}, {"one": counts[0], "other": counts[1]})
    found = claim(material, name)
    assert found.verdict == verdict
    one, other = (material.family_of[run] for run in ("one1", "other1"))
    compared = effect(material, "clean", "clean", 0.0, one, other)
    assert compared is not None
    assert compared.ends is not None
    assert found.number.startswith(f"{other} errs ")
    assert f" {one} {range_of(compared.observed, *compared.ends)}, 3 and 3 seeds" in found.number
    assert "/255" not in found.number
    assert "after Holm" not in found.reason, "it is not among the declared tests"
    assert found.reason.endswith(", uncorrected: no declared test")


def test_other_recipes_decide_no_claim() -> None:
    kinds: dict[str, dict[str, Any]] = {"erm": {"width": 16}, "mixup": {"method": "mixup", "width": 64}}
    found = claim(cleanly(kinds, {"erm": 80, "mixup": 40}), "clean")
    assert (found.verdict, found.reason) == ("undecided", "they differ in more than the method: width 16 or 64")
    assert found.number.startswith("mixup1, mixup2 and mixup3 err 10.0 points less than erm1, erm2 and erm3 on average")


def test_the_best_smoothing_is_held_against_mixup() -> None:
    kinds: dict[str, dict[str, Any]] = {
        "little": {"label_smoothing": 0.05},
        "much": {"label_smoothing": 0.2},
        "mixup": {"method": "mixup"},
    }
    found = claim(cleanly(kinds, {"little": 80, "much": 40, "mixup": 60}), "label-smoothing")
    assert "ERM, label smoothing 0.2" in found.number
    assert found.verdict == "contradicted"


def test_the_mixup_most_like_the_base_is_meant() -> None:
    kinds: dict[str, dict[str, Any]] = {
        "erm": {"weight_decay": 5e-4},
        "far": {"method": "mixup", "weight_decay": 1e-4, "lr": 0.05},
        "near": {"method": "mixup", "weight_decay": 5e-4},
        "odd": {"method": "mixup", "weight_decay": 5e-4, "lam": "uniform:0,1"},
        "single": {"method": "mixup", "weight_decay": 5e-4, "lam_per": "example"},
    }
    found = claim(cleanly(kinds, {"erm": 80, "far": 70, "near": 40, "odd": 60, "single": 50}), "clean")
    assert found.number.startswith("near errs 10.0 points less than ERM")


def test_what_has_nothing_to_do_with_mixing_makes_no_other_method() -> None:
    fields = {"precision": "bf16", "nesterov": True, "epochs": 2}
    kinds = {
        "erm": fields,
        "mixup": {**fields, "method": "mixup"},
        "inputs": {**fields, "method": "mixup", "mix": "inputs"},
    }
    material = cleanly(kinds, {"erm": 80, "mixup": 40, "inputs": 60})
    assert claim(material, "clean").verdict == claim(material, "labels-too").verdict == "supported"


def noisy(errors: Mapping[str, float], seeds: int = 3, noise: float = 0.8) -> Material:
    runs = [
        network(
            f"{one}{k}",
            {"method": one, "label_noise": noise},
            last={"train_error_corrupted": errors[one] + k / 1000},
        )
        for one in ("erm", "mixup")
        for k in range(1, seeds + 1)
    ]
    cells = attacked([], [run.name for run in runs], [], lambda *_: 40)
    return report(runs, cells, sources=[])


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ({"erm": 0.008, "mixup": 0.85}, "supported"),
        ({"erm": 0.008, "mixup": 0.1}, "contradicted"),
        ({"erm": 0.7, "mixup": 0.85}, "contradicted"),
        ({"erm": 0.008, "mixup": 0.498}, "undecided"),
        ({"erm": 0.498, "mixup": 0.9}, "undecided"),
    ],
)
def test_memorisation(errors: dict[str, float], verdict: str) -> None:
    found = claim(noisy(errors), "memorisation")
    assert found.verdict == verdict
    number = plain(found.number)
    assert number.startswith(f"ERM, label noise 0.8 {100 * errors['erm'] + 0.2:.1f} % [")
    assert number.endswith("of the corrupted labels, 80.0 % of all, 3 and 3 seeds")


def test_memorisation_with_few_seeds_names_runs() -> None:
    found = claim(noisy({"erm": 0.008, "mixup": 0.85}, seeds=1), "memorisation")
    assert found.verdict == "undecided"
    assert plain(found.number) == "erm1 0.9 % and mixup1 85.1 % of the corrupted labels, 80.0 % of all"


def test_memorisation_needs_the_same_share_of_corrupted_labels_and_its_history() -> None:
    kinds: dict[str, dict[str, Any]] = {"erm": {"label_noise": 0.2}, "mixup": {"label_noise": 0.4, "method": "mixup"}}
    assert claim(cleanly(kinds, {"erm": 40, "mixup": 40}), "memorisation").verdict == "not measured"
    kinds["mixup"]["label_noise"] = 0.2
    found = claim(cleanly(kinds, {"erm": 40, "mixup": 40}), "memorisation")
    assert (found.verdict, found.reason) == (
        "not measured",
        "there are no training errors on the corrupted labels alone here",
    )


def test_what_no_error_can_speak_to_is_not_measured() -> None:
    material = study(TWO, 3, lambda *_: 40)
    for name in ("flat-surface", "small-gradients"):
        found = claim(material, name)
        assert (found.verdict, found.number) == ("not measured", "")
        assert found.reason.startswith("there is no study of ")


def test_below_three_seeds_runs_are_named_and_nothing_is_decided() -> None:
    material = study(TWO, 2, white_and_transfer({"fgsm": -100}, -60))
    for found in claims(material):
        assert found.verdict in ("undecided", "not measured")
        assert not re.search(r"\b(ERM|mixup)\b", found.number), found.number
    number = claim(material, "white-fgsm").number
    assert number.startswith("mixup1 and mixup2 err 25.0 points less than erm1 and erm2 on average [")
    assert number.endswith("] over new seeds at 4/255")
    assert claim(material, "white-fgsm").reason == "2 runs and 2 runs: a claim about methods needs 3 of each"
    single = claim(study(TWO, 1, white_and_transfer({"fgsm": -100}, 0)), "white-fgsm")
    assert single.number == "mixup1 errs 25.0 points less than erm1 at 4/255"


def test_nothing_is_measured_without_such_networks() -> None:
    names = ["x.py:make"]
    material = report([], attacked(names, names, [FGSM], lambda *_: 40), models=names)
    assert {found.verdict for found in claims(material)} == {"not measured"}
    assert {found.number for found in claims(material)} == {""}


def test_other_parameters_than_the_usual_do_not_count() -> None:
    found = claims(study(TWO, 3, white_and_transfer({"ifgsm": -100}, 0), [{**IFGSM, "steps": 20}]))
    verdicts = {one.id: one.verdict for one in found}
    assert (verdicts["transfer-ifgsm"], verdicts["white-ifgsm"]) == ("not measured", "not measured")


def test_every_claim_says_who_makes_it_and_where() -> None:
    found = claims(study(TWO, 1, lambda *_: 40))
    assert [one.id for one in found] == list(CLAIMS)
    for one, said in zip(found, CLAIMS.values(), strict=True):
        assert one.text.endswith(".")
        assert ", " in one.source
        assert len(one.source.split("; ")) == len(said.sources)
        assert set(said.sources) <= sources().keys()
    assert claim(study(TWO, 1, lambda *_: 40), "clean").source == (
        "Zhang et al. 2018, figure 3a; Mixup: beyond empirical risk minimization, slides, the deck's own experiments; "
        "Liang et al. 2018, table 1"
    )
