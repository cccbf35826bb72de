from pathlib import Path
from typing import Any

from pages import make_audit
from synthetic import INPUTS, N, add_run, identities, make_cell

from robustmix.report import collect
from robustmix.report.checklist import ITEMS, checklist
from robustmix.report.material import Material
from robustmix.store.audits import AuditTest, write_audit
from robustmix.store.cells import clean_identity, write_cell
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


def test_audits_count_where_they_ran(tmp_path: Path) -> None:
    def test(name: str, verdict: Any) -> AuditTest:
        return AuditTest(name=name, title="t", kind="attack too weak", verdict=verdict, measured="m", meaning="m")

    fgsm = [{"name": "fgsm", "eps": [4]}]
    audit = "The evaluation itself is tested"
    found = done(tmp_path / "1", fgsm, ONE, (test("convergence", "pass"), test("square", "not run")))
    assert found == {audit, "White box, at least 100 steps", "Random restarts"}
    names = ("square", "random-signs", "log-odds", "large-budget")
    assert done(tmp_path / "2", fgsm, ONE, tuple(test(name, "fail") for name in names)) == {
        audit,
        "An attack without gradients",
        "A baseline that is no attack",
        "A loss that does not saturate",
        "A large budget breaks every network",
    }
