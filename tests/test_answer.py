"""The question, the sentence that answers it in every case, and the means of the first screen."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from families import FGSM, IFGSM, TWO, N, Wrong, attacked, kind, network, report, seed, study

from robustmix.report.answer import answer, question
from robustmix.report.effects import effects
from robustmix.report.headline import headline_tables
from robustmix.report.material import Material
from robustmix.report.text import amount, range_of
from robustmix.report.words import answers, warnings
from robustmix.stats import difference, mean_interval, paired_interval

BOTH = "under I-FGSM, 10 steps both err on at least nine images in ten"


def rates(erm_fgsm: float, mixup_fgsm: float, erm_ifgsm: float, mixup_ifgsm: float, spread: int = 2) -> Wrong:
    """White-box errors by kind and attack; seeds differ by so many images."""
    share = {("erm", "fgsm"): erm_fgsm, ("mixup", "fgsm"): mixup_fgsm}
    share |= {("erm", "ifgsm"): erm_ifgsm, ("mixup", "ifgsm"): mixup_ifgsm}

    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        return round(N * share.get((kind(target), name or ""), 0.1)) + spread * (seed(target) - 2)

    return wrong


def plain(text: str) -> str:
    return " ".join(text.split())


def white(material: Material, label: str) -> Any:
    (found,) = [e for e in effects(material) if e.role == "white" and e.label == label]
    return found


# ---- three seeds of each: a claim about methods --------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((0.6, 0.4, 0.8, 0.6), "it is more robust in the white box."),
        ((0.6, 0.4, 0.7, 0.7), "it looks more robust than it is."),
        ((0.6, 0.4, 0.6, 0.7), "it looks more robust than it is."),
        ((0.6, 0.47, 0.6, 0.56, 10), "under the stronger attack, whether it is more robust is undecided."),
        ((0.5, 0.5, 0.7, 0.6), "it is more robust to the stronger attack, and to FGSM that is undecided."),
        ((0.4, 0.5, 0.7, 0.6), "it is more robust to the stronger attack and less to the weaker one."),
        ((0.4, 0.6, 0.6, 0.8), "it is less robust in the white box."),
        ((0.4, 0.6, 0.7, 0.7), "it is less robust to FGSM, and to I-FGSM, 10 steps that is undecided."),
        ((0.5, 0.5, 0.6, 0.8), "it is less robust to I-FGSM, 10 steps, and to FGSM that is undecided."),
        ((0.5, 0.5, 0.7, 0.7), "which of the two is more robust is undecided."),
        (
            (0.9, 0.75, 0.99, 0.985),
            f"it only looks more robust: {BOTH} (99.0 % and 98.5 %).",
        ),
        (
            (0.95, 0.95, 0.99, 0.97),
            f"neither is robust: {BOTH} (99.0 % and 97.0 %).",
        ),
    ],
)
def test_every_verdict(shares: tuple[Any, ...], verdict: str) -> None:
    material = study(TWO, 3, rates(*shares))
    text = plain(answer(material))
    assert text.endswith(f": {verdict}"), text
    assert text.count(". ") == 0, "one sentence"
    for label in ("FGSM", "I-FGSM, 10 steps"):
        found = white(material, label)
        assert plain(f"{amount(found.observed)} ") in text
        assert plain(range_of(found.observed, *found.ends)) in text


def test_the_sentence_has_the_numbers_and_names_the_methods() -> None:
    material = study(TWO, 3, rates(0.6, 0.45, 0.7, 0.72))
    arrays = [
        np.array([[np.arange(N) < round(N * share) + 2 * (k - 2) for k in (1, 2, 3)]], float)
        for share in (0.6, 0.45, 0.7, 0.72)
    ]
    fgsm, ifgsm = difference(arrays[0], arrays[1]), difference(arrays[2], arrays[3])
    assert plain(answer(material)) == (
        f"At 4/255 mixup errs 15.0 points less than ERM under white-box FGSM "
        f"[{-100 * fgsm.high:.1f}, {-100 * fgsm.low:.1f}] but 2.0 points more under I-FGSM, 10 steps "
        f"[{100 * ifgsm.low:.1f}, {100 * ifgsm.high:.1f}]: it looks more robust than it is."
    )
    assert question(material) == "How robust is mixup compared with ERM on cifar10?"


def test_near_the_ceiling_the_interval_decides() -> None:
    # One network of three far below takes the lower end of the mean's interval below nine in ten.
    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        return 340 if (target, name) == ("mixup3", "ifgsm") else 396

    material = study(TWO, 3, wrong)
    assert mean_interval([0.99, 0.99, 0.85])[0] < 0.9
    assert answer(material).endswith("which of the two is more robust is undecided.")


def test_holm_can_take_a_verdict_back() -> None:
    material = study(TWO, 3, rates(0.6, 0.5, 0.6, 0.56, 16))
    found = white(material, "FGSM")
    assert found.ends[1] < 0 < 0.05 < found.p
    assert answer(material).endswith(
        ": which of the two is more robust is undecided once the declared tests are corrected together (Holm)."
    )


@pytest.mark.parametrize(
    ("attack", "shares", "verdict"),
    [
        (FGSM, (0.6, 0.4), "it is more robust to it alone, which by itself is no evidence of robustness."),
        (IFGSM, (0.6, 0.4), "it is more robust to it."),
        (FGSM, (0.4, 0.6), "it is less robust to it."),
        (IFGSM, (0.5, 0.5), "whether it is more robust to it is undecided."),
        ({"name": "pgd", "eps": [4]}, (0.6, 0.4), "it is more robust to it."),
    ],
)
def test_a_single_attack(attack: dict[str, Any], shares: tuple[float, float], verdict: str) -> None:
    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        return round(N * shares[kind(target) == "mixup"]) + 2 * seed(target)

    text = answer(study(TWO, 3, wrong, [attack]))
    assert text.startswith("At 4/255 mixup errs ")
    assert text.endswith(f": {verdict}")


def test_the_published_design_says_which_method_the_sentence_is_about() -> None:
    kinds: dict[str, dict[str, Any]] = {"erm": {}, "hv": {"method": "mixup-hv"}, "mixup": {"method": "mixup"}}
    wrong = rates(0.6, 0.4, 0.7, 0.5)
    assert "mixup errs" in answer(study(kinds, 3, wrong))
    design = {"experiments": "ali-cifar10", "white": ["erm1", "hv1"], "source": "erm1", "targets": ["erm2", "hv1"]}
    assert "mixup-hv errs" in answer(study(kinds, 3, wrong, published=design))
    assert "mixup-hv errs" in answer(study({"erm": {}, "hv": {"method": "mixup-hv"}}, 3, wrong))


# ---- fewer: runs by name ---------------------------------------------------------------------------------------


def test_one_seed_each_is_about_two_checkpoints() -> None:
    material = study(TWO, 1, rates(0.6, 0.5, 0.7, 0.7))
    # 240 and 200 of the same first images: 40 that only erm1 gets wrong; none under I-FGSM.
    fgsm, ifgsm = ("[{:.1f}, {:.1f}]".format(*(100 * end for end in paired_interval(only, 0, N))) for only in (40, 0))
    assert plain(answer(material)) == (
        f"At 4/255 mixup1 errs 10.0 points less than erm1 on these 400 images under white-box FGSM {fgsm} but as often "
        f"under I-FGSM, 10 steps {ifgsm}; one seed each, so nothing here is a claim about methods."
    )
    assert question(material) == "How robust is mixup1 compared with erm1 on cifar10?"


@pytest.mark.parametrize(
    ("seeds", "start", "end"),
    [
        (2, "At 4/255 mixup1 and mixup2 err 10.0 points less than erm1 and erm2 on average under", "two seeds each"),
        ({"erm": 2, "mixup": 1}, "At 4/255 mixup1 errs 10.0 points less than erm1 on these", "three seeds each"),
        ({"erm": 1, "mixup": 5}, "At 4/255 mixup1 errs 10.0 points less than erm1 on these", "seeds of one kind"),
        (
            {"erm": 6, "mixup": 2},
            "At 4/255 mixup1 and mixup2 err 11.0 points less than erm1, erm2, erm3, erm4 and 2 more on average under",
            "seeds of one kind",
        ),
    ],
)
def test_below_three_seeds_runs_are_named(seeds: Any, start: str, end: str) -> None:
    material = study(TWO, seeds, rates(0.6, 0.5, 0.7, 0.6))
    text = plain(answer(material))
    assert text.startswith(start), text
    assert text.endswith(f"{end}, so nothing here is a claim about methods.")
    for sentence in (text, question(material), *(table.advantage or "" for table in headline_tables(material))):
        assert not re.search(r"\b(ERM|mixup)\b", sentence), sentence


def test_nothing_to_compare_with() -> None:
    material = study({"mixup": {"method": "mixup"}}, 1, rates(0, 0.4, 0, 0.5, 0))
    assert plain(answer(material)) == (
        "mixup1 errs on 10.0 % of 400 images without an attack and on 50.0 % [45.1, 54.9] under white-box I-FGSM, "
        "10 steps at 4/255; one network, no plain ERM to compare with, so nothing here is a claim about methods."
    )
    assert question(material) == "How robust is mixup1 on cifar10?"


def test_models_of_others() -> None:
    names = [f"x.py:make{k}" for k in range(6)]
    cells = attacked(names, names, [FGSM], lambda role, *_: 40 if role == "clean" else 100)
    material = report([], cells, models=names, attacks=[FGSM])
    text = plain(answer(material))
    assert text.count("errs on 10.0 % of 400 images without an attack and on 25.0 %") == 4
    assert text.endswith(
        "; 2 more networks stand in the tables; no plain ERM to compare with, so nothing here is a claim about methods."
    )
    assert question(material).startswith("How robust are x.py:make0, x.py:make1, x.py:make2, x.py:make3 and 2 more on")
    assert [table.advantage for table in headline_tables(material)] == [None]


def test_targets_that_attack_nobody() -> None:
    material = study(TWO, 3, rates(0.5, 0.4, 0.5, 0.4), sources=lambda name: name == "erm1")
    text = answer(material)
    assert "mixup1 errs on" in text, "without a white box of both there is nothing to hold together"
    assert text.endswith(
        "; no white-box attack at the headline budget on networks of both ERM and mixup, so nothing here is a claim "
        "about methods."
    )


def test_attacks_without_a_budget_say_so() -> None:
    material = study(TWO, 2, lambda *_: 40, [{"name": "deepfool"}], eps=None)
    assert "no white-box attack at the headline budget on networks of both ERM and mixup" in answer(material)


def test_erm_alone_is_not_said_to_lack_erm() -> None:
    text = answer(study({"erm": {}}, 2, rates(0.5, 0, 0.6, 0)))
    assert text.endswith("; no other way of training to compare with ERM, so nothing here is a claim about methods.")


def test_attacks_on_different_networks_are_not_told_together() -> None:
    names = ["erm1", "erm2", "mixup1", "mixup2"]
    cells = attacked([], names, [], lambda *_: 40)
    for attack, k in ((FGSM, 1), (IFGSM, 2)):
        for name in (f"erm{k}", f"mixup{k}"):
            cells += attacked([name], [name], [attack], lambda *_: 200)[1:]
    material = report([network(name, TWO[kind(name)]) for name in names], cells)
    text = answer(material)
    assert text.startswith("At 4/255 mixup1 errs as often as erm1 on these 400 images under white-box FGSM [")
    assert "I-FGSM" not in text


def test_other_recipes_are_no_two_methods() -> None:
    kinds: dict[str, dict[str, Any]] = {
        "erm": {"width": 16, "lr": 0.1},
        "mixup": {"method": "mixup", "model": "preact_resnet50", "width": 64, "lr": 0.2},
    }
    material = study(kinds, 3, rates(0.6, 0.4, 0.8, 0.6))
    text = plain(answer(material))
    assert text.startswith(
        "At 4/255 mixup1, mixup2 and mixup3 err 20.0 points less than erm1, erm2 and erm3 on average"
    )
    assert text.endswith(
        "they differ in more than the method (model preact_resnet18 or preact_resnet50; width 16 or 64; lr 0.1 or "
        "0.2), so nothing here is a claim about methods."
    )
    assert question(material).startswith("How robust are mixup1, mixup2 and mixup3 compared with erm1")


def test_an_interval_over_seeds_does_not_pass_for_one_of_the_runs() -> None:
    text = plain(answer(study(TWO, 2, rates(0.6, 0.5, 0.7, 0.6))))
    assert "], intervals over new seeds; two seeds each" in text
    single = plain(answer(study(TWO, 2, rates(0.6, 0.5, 0, 0), [FGSM])))
    assert "], the interval over new seeds; two seeds each" in single
    assert "new seeds" not in answer(study(TWO, 1, rates(0.6, 0.5, 0.7, 0.6)))


@pytest.mark.parametrize(("seeds", "who"), [(1, "both err"), (2, "all 4 err")])
def test_near_the_ceiling_few_runs_are_helpless_too(seeds: int, who: str) -> None:
    text = plain(answer(study(TWO, seeds, rates(0.9, 0.5, 0.99, 0.95, 0))))
    assert f"; under I-FGSM, 10 steps {who} on at least nine images in ten (95.0 % to 99.0 %); " in text
    assert "nine images" not in answer(study(TWO, seeds, rates(0.9, 0.5, 0.99, 0.85, 0)))


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_lines_below_tell_clean_errors_and_transfer(seeds: int) -> None:
    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        less = {"clean": 8, "white": 0, "transfer": 20 if name == "fgsm" else 40}[role]
        return 200 + seed(target) - (less if kind(target) == "mixup" else 0)

    found = [plain(line) for line in answers(study(TWO, seeds, wrong))]
    who, whom = ("mixup errs", "ERM [") if seeds > 2 else ("mixup1 and mixup2 err", "erm1 and erm2 on average [")
    starts = [
        f"On clean images, {who} 2.0 points less than {whom}",
        f"Under transfer of FGSM at 4/255, crafted on as many of either kind, {who} 5.0 points less than {whom}",
        f"Under transfer of I-FGSM, 10 steps at 4/255, crafted on as many of either kind, {who} 10.0 points less than "
        f"{whom}",
    ]
    lines = {line for line in found for start in starts if line.startswith(start)}
    assert len(lines) == 3, found
    assert all(line.endswith("over new seeds." if seeds < 3 else "].") for line in lines)


def test_what_cannot_fit_its_training_set_may_have_converged() -> None:
    fields: dict[str, dict[str, Any]] = {"erm": {}, "pgd": {"adversarial_eps": 8}, "noisy": {"label_noise": 0.5}}
    runs = [network(f"{one}1", own, last={"train_error": 0.4}) for one, own in fields.items()]
    names = [run.name for run in runs]
    found = warnings(report(runs, attacked([], names, [], lambda *_: 40), sources=[]))
    assert [text for text in found if "not converged" in text] == ["erm1 did not fit the training set: not converged."]


# ---- who crafts and who is scored -------------------------------------------------------------------------------


def home(own: Callable[[str, str], int], other: Callable[[str, str], int]) -> Wrong:
    def wrong(role: str, name: str | None, source: str | None, target: str) -> int:
        if role != "transfer" or source is None:
            return 200
        return (own if kind(source) == kind(target) else other)(source, target)

    return wrong


def test_headline_means_leave_out_a_network_against_itself() -> None:
    material = study(TWO, 2, home(lambda s, t: 100 + 12 * seed(t), lambda s, t: 40 + seed(s)), [FGSM])
    (table,) = headline_tables(material)
    assert (table.title, table.families) == ("FGSM at 4/255", ("ERM", "mixup"))
    rows = [(source, [tuple(map(plain, cell)) if cell else None for cell in cells]) for source, cells in table.rows]
    assert rows == [
        ("no attack", [("50.0 %", "50.0 to 50.0", "2 runs")] * 2),
        ("itself (white box)", [("50.0 %", "50.0 to 50.0", "2 runs")] * 2),
        ("a run of ERM", [("29.5 %", "28.0 to 31.0", "2 pairs"), ("10.4 %", "10.2 to 10.5", "4 pairs")]),
        ("a run of mixup", [("10.4 %", "10.2 to 10.5", "4 pairs"), ("29.5 %", "28.0 to 31.0", "2 pairs")]),
    ]


def test_home_advantage_is_the_contrast_of_own_and_other_examples() -> None:
    # Examples of ERM are stronger for everybody by 60 images: that is no home advantage and cancels.
    def own(source: str, target: str) -> int:
        return 140 + 6 * seed(target) + 60 * (kind(source) == "erm")

    def other(source: str, target: str) -> int:
        return 100 + 2 * seed(target) + 60 * (kind(source) == "erm")

    (table,) = headline_tables(study(TWO, 3, home(own, other), [FGSM]))
    # Per network 40 + 4 seed images of 400, with 60 more for ERM and 60 less for mixup. Sources and targets are the
    # same networks: an interval over the targets alone would be too narrow.
    assert table.advantage == (
        "Home advantage: +12.0 points (-4.0 to 28.0 over the networks). So much more these 6 networks of ERM and of "
        "mixup err under examples of other runs of their own recipe than under those of the other one."
    )


def test_home_advantage_of_few_seeds_has_a_range_and_names_runs() -> None:
    (table,) = headline_tables(study(TWO, 2, home(lambda s, t: 100 + 8 * seed(t), lambda s, t: 60), [FGSM]))
    assert table.advantage == (
        "Home advantage: +13.0 points (12.0 to 14.0 over the networks, fewer than 3 seeds each). So much more "
        "erm1, erm2, mixup1 and mixup2 err under examples of other runs of their own recipe than under those of the "
        "other one."
    )


def test_home_disadvantage_is_negative() -> None:
    (table,) = headline_tables(study(TWO, 2, home(lambda s, t: 60, lambda s, t: 100), [FGSM]))
    assert (table.advantage or "").startswith("Home advantage: -10.0 points")


def test_no_home_without_others_of_the_same_kind() -> None:
    (table,) = headline_tables(study(TWO, {"erm": 3, "mixup": 1}, home(lambda s, t: 60, lambda s, t: 100), [FGSM]))
    assert table.advantage is None
    assert table.rows[3][1][1] is None, "a single network attacks no other of its kind"


def test_home_advantage_without_plain_erm() -> None:
    kinds: dict[str, dict[str, Any]] = {"smooth": {"label_smoothing": 0.1}, "mixup": {"method": "mixup"}}
    wrong = home(lambda s, t: 100, lambda s, t: 60)
    (table,) = headline_tables(study(kinds, 3, wrong, [FGSM]))
    assert (table.advantage or "").startswith("Home advantage: +10.0 points (10.0 to 10.0 over the networks)")
