from pathlib import Path
from typing import Any

import pytest
from pages import make_audit
from synthetic import INPUTS, N, add_run, identities, make_cell

from robustmix.report import collect
from robustmix.report.checklist import ITEMS, Item, checklist
from robustmix.report.material import Material
from robustmix.store.audits import AuditTest, write_audit
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

# What no attack is needed for.
ALWAYS = {
    "The threat model is stated: norm, budget, knowledge, goal",
    "The error without an attack stands beside the others",
    "No image is left out",
    "Intervals, and what they speak of",
    "Compared with what was published",
    "Digests of weights and data, versions, commands",
    "The data of every figure is there",
}


def done(root: Path, specs: list[dict[str, Any]], runs: dict[str, str], tests: tuple[AuditTest, ...] = ()) -> set[str]:
    """What is done beyond what always is, for runs (name: method) each attacked by each."""
    place = Workspace(root)
    digests = {}
    for seed, (name, method) in enumerate(runs.items()):
        add_run(place, name, method, seed)
        digests[name] = read_run(place, name).weights or ""
    for scored in digests.values():
        write_cell(place.cells, make_cell(clean_identity(scored, INPUTS, 256), N))
        for crafts in digests.values():
            for fields in specs:
                for identity in identities(fields, crafts, scored):
                    write_cell(place.cells, make_cell(identity, N))
    if tests:
        record = make_audit("x", next(iter(digests.values())), "pass").model_copy(update={"tests": tests})
        write_audit(place.audits, record)
    items = checklist(Material.read(collect(place, "r")))
    assert [item.what for item in items] == list(ITEMS)
    assert all(item.where for item in items)
    assert {item.what for item in items if item.state == "not applicable"} == {"An attack adapted to the defence"}
    found = {item.what for item in items if item.state == "done"}
    assert found >= ALWAYS
    return found - ALWAYS


ONE = {"erm1": "erm"}


def test_fgsm_alone_does_little(tmp_path: Path) -> None:
    assert done(tmp_path, [{"name": "fgsm", "eps": [4]}], ONE) == set()


def test_each_attack_does_its_part(tmp_path: Path) -> None:
    for number, (fields, expected) in enumerate(
        (
            ({"name": "fgsm", "eps": [1, 2]}, set()),
            ({"name": "fgsm", "eps": [1, 2, 4]}, {"Error against budget, several budgets"}),
            ({"name": "ifgsm", "eps": [4], "steps": 9}, set()),
            ({"name": "ifgsm", "eps": [4], "steps": 10}, {"White box, iterated attack"}),
            (
                {"name": "ifgsm", "eps": [4], "steps": 100},
                {"White box, iterated attack", "White box, at least 100 steps"},
            ),
            ({"name": "pgd", "eps": [4], "restarts": 2}, {"White box, iterated attack", "Random restarts"}),
            ({"name": "fgsm", "eps": [4], "loss": "logodds"}, {"A loss that does not saturate"}),
            ({"name": "signs", "eps": [4]}, {"A baseline that is no attack"}),
            ({"name": "square", "eps": [4]}, {"An attack without gradients"}),
            (
                {"name": "autoattack", "eps": [4]},
                {"An attack without gradients", "A standard ensemble (AutoAttack)"},
            ),
            ({"name": "deepfool"}, {"The smallest perturbation of each image"}),
        )
    ):
        assert done(tmp_path / str(number), [fields], ONE) == expected, fields


def test_networks_do_theirs(tmp_path: Path) -> None:
    fgsm = [{"name": "fgsm", "eps": [4]}]
    assert done(tmp_path / "1", fgsm, {"erm1": "erm", "erm2": "erm"}) == set(), "one kind of source answers by itself"
    assert done(tmp_path / "2", fgsm, {"erm1": "erm", "mixup1": "mixup"}) == {"Transfer from networks of every kind"}
    three = {f"erm{seed}": "erm" for seed in range(3)}
    assert done(tmp_path / "3", fgsm, three) == {"Several seeds"}
    uneven = {**three, "mixup1": "mixup", "mixup2": "mixup"}
    assert "Several seeds" not in done(tmp_path / "4", fgsm, uneven)


def one_test(name: str, verdict: Any) -> AuditTest:
    return AuditTest(name=name, title="t", kind="attack too weak", verdict=verdict, measured="m", meaning="m")


def test_audits_count_where_they_succeeded(tmp_path: Path) -> None:
    fgsm = [{"name": "fgsm", "eps": [4]}]
    audit = "The evaluation itself is tested"
    found = done(tmp_path / "1", fgsm, ONE, (one_test("convergence", "pass"), one_test("square", "not run")))
    assert found == {audit, "White box, at least 100 steps"}
    assert done(tmp_path / "3", fgsm, ONE, (one_test("restarts", "finding"),)) == {audit, "Random restarts"}
    names = ("square", "random-signs", "log-odds", "large-budget")
    assert done(tmp_path / "2", fgsm, ONE, tuple(one_test(name, "pass") for name in names)) == {
        audit,
        "An attack without gradients",
        "A baseline that is no attack",
        "A loss that does not saturate",
        "A large budget breaks every network",
    }
    for verdict in ("warn", "fail"):
        assert done(tmp_path / verdict, fgsm, ONE, tuple(one_test(name, verdict) for name in names)) == {audit}


def several(root: Path, *, verdicts: dict[str, Any], crafting: tuple[str, ...], other: bool = False) -> dict[str, Item]:
    """The items of three networks attacked by some of them, of which some were audited with a large budget."""
    place = Workspace(root)
    digests = {"net.py:make": "c" * 64} if other else {}
    for name, (method, seed) in {"erm1": ("erm", 1), "mixup1": ("mixup", 1), "cutmix1": ("cutmix", 1)}.items():
        add_run(place, name, method, seed)
        digests[name] = read_run(place, name).weights or ""
    for target, scored in digests.items():
        write_cell(place.cells, make_cell(clean_identity(scored, INPUTS, 256), N, target_name=target))
        for source in crafting:
            for identity in identities({"name": "fgsm", "eps": [4]}, digests[source], scored):
                write_cell(place.cells, make_cell(identity, N, source_name=source, target_name=target))
    for name, verdict in verdicts.items():
        record = make_audit(name, digests[name], "pass")
        write_audit(place.audits, record.model_copy(update={"tests": (one_test("large-budget", verdict),)}))
    return {item.what: item for item in checklist(Material.read(collect(place, "r")))}


def test_a_test_that_fails_or_was_not_run_is_not_done(tmp_path: Path) -> None:
    names = ("erm1", "mixup1", "cutmix1")

    def breaks(number: int, **verdicts: Any) -> Item:
        return several(tmp_path / str(number), verdicts=verdicts, crafting=names)["A large budget breaks every network"]

    every = breaks(1, erm1="pass", mixup1="finding", cutmix1="pass")
    assert (every.state, every.where) == ("done", "Audit of cutmix1, erm1 and mixup1.")
    some = breaks(2, erm1="pass", mixup1="fail")
    assert (some.state, some.where) == ("partly", "Audit of erm1, failed for mixup1, not run for cutmix1.")
    none = breaks(3, erm1="fail", mixup1="warn", cutmix1="fail")
    assert (none.state, none.where) == ("not done", "Audit with a warning for mixup1, failed for cutmix1 and erm1.")


def test_every_network_must_be_audited_and_every_kind_must_craft(tmp_path: Path) -> None:
    items = several(tmp_path / "1", verdicts={"erm1": "fail"}, crafting=("erm1", "mixup1"))
    audited, transfer = items["The evaluation itself is tested"], items["Transfer from networks of every kind"]
    assert (audited.state, audited.where) == ("partly", "Audit; without cutmix1 and mixup1.")
    assert (transfer.state, transfer.where) == ("partly", "From networks of 2 kinds, none of cutmix: Transfer.")
    whole = several(tmp_path / "2", verdicts={}, crafting=("erm1", "mixup1", "cutmix1"))
    assert whole["Transfer from networks of every kind"].state == "done"


def test_nothing_is_said_of_what_models_of_others_add(tmp_path: Path) -> None:
    item = several(tmp_path, verdicts={}, crafting=("erm1",), other=True)["An attack adapted to the defence"]
    assert item.state == "not done"
    assert "net.py:make" in item.where
    assert "nothing is added" not in item.where


def test_published_figures_must_stand_beside_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustmix.report.checklist.comparison_tables", lambda material: [])
    assert several(tmp_path, verdicts={}, crafting=("erm1",))["Compared with what was published"].state == "not done"
