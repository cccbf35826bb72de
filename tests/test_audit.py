"""Each broken network and attack is caught by the test that is meant for it; honest ones pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from broken import BROKEN, MASKED, WEAK, Behind, Images, Nets, digits, honest_nets
from torch import Tensor, nn

import robustmix
from robustmix.attacks import gradient
from robustmix.audit import audit
from robustmix.audit.battery import LARGE, make_battery
from robustmix.audit.binarisation import Features, binarise
from robustmix.audit.reading import paired
from robustmix.checkpoints import digest_model
from robustmix.errors import EvaluationError, SpecError
from robustmix.judging import TESTS, Pair
from robustmix.launching import launch
from robustmix.spec.attack import Course
from robustmix.store.audits import AuditTest, read_audits
from robustmix.store.workspace import Workspace

EPS = 24 / 255
N = 128


@pytest.fixture(scope="module")
def images() -> Images:
    return digits("test", N)


@pytest.fixture(scope="module")
def nets() -> Nets:
    return honest_nets()


@pytest.fixture
def no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds, and most tests are about something else."""
    for home in ("memory", "workspace"):
        monkeypatch.setattr(f"robustmix.audit.{home}.why_no_square", lambda _inputs: "Left out.")


@pytest.fixture
def small_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of it."""
    monkeypatch.setattr("robustmix.audit.battery.SQUARE_QUERIES", 250)


def audited(images: Images, **models: nn.Module) -> dict[str, AuditTest]:
    """The tests of the first of some models, by name."""
    first, *_ = robustmix.audit_models(models, *images, eps=EPS)
    assert [test.name for test in first.tests] == list(TESTS)
    return {test.name: test for test in first.tests}


def failed(tests: dict[str, AuditTest]) -> set[str]:
    return {name for name, test in tests.items() if test.verdict == "fail"}


# ---- honest ----------------------------------------------------------------------------------------------


def test_a_network_under_several_names_has_one_record_under_the_first(
    images: Images, nets: Nets, no_square: None
) -> None:
    (record,) = robustmix.audit_models({"first": nets["erm"], "again": nets["erm"]}, *images, eps=EPS)
    assert record.target == "first"


def test_honest_networks_pass_every_test(images: Images, nets: Nets, small_square: None) -> None:
    pytest.importorskip("torchattacks")
    before = {name: value.clone() for name, value in nets["erm"].state_dict().items()}
    records = robustmix.audit_models({"erm": nets["erm"].train(), "other": nets["other"]}, *images, eps=EPS)
    assert all(module.training for module in nets["erm"].modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in nets["erm"].parameters())
    assert all(torch.equal(before[name], value) for name, value in nets["erm"].state_dict().items())
    assert [(record.target, record.verdict, record.n) for record in records] == [
        ("erm", "pass", N),
        ("other", "pass", N),
    ]
    for record in records:
        assert {test.verdict for test in record.tests} <= {"pass", "finding"}
        assert record.eps_255 == 24
    assert records[0].weights != records[1].weights
    assert records[0].weights == digest_model(type(nets["erm"]).__qualname__, nets["erm"])
    assert records[0].inputs == records[1].inputs


def test_measured_numbers_are_those_of_the_attacks(images: Images, nets: Nets, no_square: None) -> None:
    x, y = images
    tests = audited(images, erm=nets["erm"], other=nets["other"])

    def error(x_adv: Tensor) -> str:
        return f"{100 * float((nets['erm'](x_adv).argmax(1) != y).float().mean()):.1f} %"

    single, iterated = (
        error(attack(nets["erm"], x, y, EPS)) for attack in (robustmix.attacks.fgsm, robustmix.attacks.ifgsm)
    )
    assert tests["iterated"].measured.startswith(f"I-FGSM, 10 steps {iterated}, FGSM {single} (")
    long = error(robustmix.attacks.ifgsm(nets["erm"], x, y, EPS, 100, 2.5 * EPS / 100))
    assert f"I-FGSM, 100 steps {long}, I-FGSM, 200 steps" in tests["convergence"].measured
    transferred = error(robustmix.attacks.ifgsm(nets["other"], x, y, EPS))
    assert tests["transfer"].measured == f"I-FGSM, 10 steps: white box {iterated}, from other {transferred}"
    levels = [error(x)] + [error(robustmix.attacks.fgsm(nets["erm"], x, y, eps / 255)) for eps in (6, 12, 24, 48)]
    text = ", ".join(f"{eps}: {level}" for eps, level in zip((0, 6, 12, 24, 48), levels, strict=True))
    assert tests["fgsm-monotone"].measured == f"error by eps (1/255) {text}"
    assert tests["gradient"].measured == f"exactly zero on 0 of {N} images"
    assert tests["bounds"].measured.startswith("largest perturbation 1 of the budget")
    assert tests["square"].meaning == "Left out."


def test_one_network_has_nobody_to_transfer_from(images: Images, nets: Nets, no_square: None) -> None:
    tests = audited(images, erm=nets["erm"])
    for name in ("transfer", "fgsm-transfer"):
        assert tests[name].verdict == "not run"
        assert "name several" in tests[name].meaning


def test_where_all_is_broken_nothing_is_left_to_compare(images: Images, nets: Nets, small_square: None) -> None:
    pytest.importorskip("torchattacks")
    (record, _) = robustmix.audit_models({"erm": nets["erm"], "other": nets["other"]}, *images, eps=120 / 255)
    tests = {test.name: test for test in record.tests}
    for name in ("iterated", "convergence", "restarts", "log-odds", "transfer", "square"):
        assert tests[name].verdict == "not run"
        assert tests[name].meaning.endswith("left to tell anything at this budget: choose a smaller --eps.")
    assert tests["monotone"].verdict == "pass"
    assert tests["large-budget"].verdict == "pass"


def test_room_is_what_the_expected_attack_left() -> None:
    contrary, expected = np.array([1, 1, 0, 0, 0, 1], bool), np.array([1, 0, 1, 1, 0, 0], bool)
    assert paired(contrary, expected) == Pair(contrary=2, expected=2, n=6, room=3)


# ---- evaluation broken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BROKEN)
def test_broken_evaluation_is_found_and_nothing_is_attacked(
    what: str, images: Images, nets: Nets, no_square: None
) -> None:
    meant, make = BROKEN[what]
    tests = audited(images, broken=make(nets).eval())
    assert failed(tests) == {meant}
    assert tests[meant].meaning == TESTS[meant].failed
    attacks = [tests[name] for name in ("iterated", "large-budget", "binarisation", "transfer", "bounds")]
    assert {test.verdict for test in attacks} == {"not run"}
    assert all(f"({meant})" in test.meaning for test in attacks)


def test_broken_network_does_not_keep_the_others_from_their_audit(images: Images, nets: Nets, no_square: None) -> None:
    models = {"erm": nets["erm"], "soft": Behind(nets["other"], after=lambda z: z.softmax(1)), "other": nets["other"]}
    records = {record.target: record for record in robustmix.audit_models(models, *images, eps=EPS)}
    assert {name: record.verdict for name, record in records.items()} == {
        "erm": "pass",
        "soft": "fail",
        "other": "pass",
    }
    (transfer,) = [test for test in records["erm"].tests if test.name == "transfer"]
    assert "from other" in transfer.measured
    assert "soft" not in transfer.measured


# ---- gradients masked ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", MASKED)
def test_masked_gradients_are_found(what: str, images: Images, nets: Nets, no_square: None) -> None:
    meant, make = MASKED[what]
    tests = audited(images, masked=make(nets), erm=nets["erm"])
    assert failed(tests) >= meant
    assert all(tests[name].meaning == TESTS[name].failed for name in meant)
    assert failed(tests).isdisjoint({"eval-mode", "same-twice", "any-batch", "finite", "logits", "accuracy", "bounds"})


def test_what_has_no_gradient_falls_to_a_random_search(images: Images, nets: Nets, small_square: None) -> None:
    pytest.importorskip("torchattacks")
    tests = audited(images, masked=MASKED["rounded activations"][1](nets))
    assert "square" in failed(tests)
    assert tests["gradient"].measured == f"exactly zero on {N} of {N} images"


def test_log_odds_make_up_for_saturation(images: Images, nets: Nets, no_square: None) -> None:
    def by_log_odds(tests: dict[str, AuditTest]) -> float:
        return float(tests["log-odds"].measured.split("log-odds ")[1].split(" %")[0])

    saturated, honest = audited(images, net=MASKED["saturated logits"][1](nets)), audited(images, net=nets["erm"])
    assert by_log_odds(saturated) == pytest.approx(by_log_odds(honest), abs=2)
    assert honest["log-odds"].verdict == "pass"


# ---- attack too weak -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", WEAK)
def test_weak_attack_is_found(
    what: str, images: Images, nets: Nets, no_square: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant, part, instead = WEAK[what]
    monkeypatch.setattr(gradient, part, instead)
    found = failed(audited(images, erm=nets["erm"]))
    assert found >= meant


# ---- binarisation ----------------------------------------------------------------------------------------


def test_attack_finds_what_is_planted_and_random_points_rarely_do(images: Images, nets: Nets) -> None:
    found = binarise(nets["erm"], images[0][:50], Course(EPS, 100, 2.5 * EPS / 100))
    assert found.examples == 50
    assert found.judged >= 35
    assert found.found >= found.judged - 1


def test_features_are_what_the_last_linear_layer_is_given(images: Images, nets: Nets) -> None:
    x, _ = images
    network = nets["erm"]
    assert isinstance(network, nn.Sequential)
    torch.testing.assert_close(Features(network, x[:1])(x), network[:-1](x))
    convolutional = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    torch.testing.assert_close(Features(convolutional, x[:1])(x), convolutional(x))


# ---- wrong input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0, 128 / 255, 24, -0.1, float("nan")])
def test_unusable_budget_is_refused(eps: float, images: Images, nets: Nets) -> None:
    with pytest.raises(SpecError, match="eps"):
        robustmix.audit_models(nets, *images, eps=eps)


def test_nothing_to_audit_is_refused(images: Images, nets: Nets) -> None:
    with pytest.raises(SpecError, match="no model"):
        robustmix.audit_models({}, *images, eps=EPS)
    with pytest.raises(SpecError, match="models must be a dictionary of models by name, a text each; got 1"):
        robustmix.audit_models({1: nets["erm"]}, *images, eps=EPS)  # type: ignore[dict-item]


def test_middle_budget_is_compared_unless_another_is_named() -> None:
    battery = make_battery("digits", None)
    assert (battery.eps, battery.sweep) == (32, (8, 16, 24, 32, 48, 64))
    assert make_battery(None, 3).sweep == (1, 2, 3, 4, 8)
    assert max(course.eps or 0 for course in battery.parts["ifgsm"].courses(None)) == LARGE


# ---- in a workspace --------------------------------------------------------------------------------------


@pytest.fixture
def place(tiny: Path, tmp_path: Path) -> Workspace:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    return Workspace(tmp_path)


def test_runs_are_audited_by_way_of_their_cells(place: Workspace, no_square: None) -> None:
    records = audit(["erm1", "mixup1"], place, launch("cpu"), limit=16, eps=24)
    assert read_audits(place.audits) == records
    assert [record.target for record in records] == ["erm1", "mixup1"]
    first = records[0]
    assert (first.n, first.eps_255, first.data) == (16, 24, "digits")
    assert first.command == "robustmix audit --target erm1 mixup1 --limit 16 --eps 24"
    tests = {test.name: test for test in first.tests}
    assert tests["accuracy"].verdict == "pass"
    assert "error on all 360 test images" in tests["accuracy"].measured
    cells = {path: path.stat().st_mtime_ns for path in place.cells.glob("*.parquet")}
    # white: 7 + 6 budgets of (I-)FGSM on two targets, and six more; clean ones of two targets
    assert len(cells) == 2 * ((7 + 6) * 2 + 5) + 2
    assert audit(["erm1", "mixup1"], place, launch("cpu"), limit=16, eps=24) == records
    assert {path: path.stat().st_mtime_ns for path in place.cells.glob("*.parquet")} == cells


def test_cells_are_those_of_an_attack(place: Workspace, no_square: None) -> None:
    robustmix.evaluate(
        robustmix.Suite(
            version=1,
            title="t",
            sources="erm1",
            limit=12,
            attack=[robustmix.AttackSpec(name="fgsm"), robustmix.AttackSpec(name="ifgsm")],
        ),
        workspace=place.root,
        device="cpu",
    )
    before = {path: path.stat().st_mtime_ns for path in place.cells.glob("*.parquet")}
    audit(["erm1"], place, launch("cpu"), limit=12)
    after = {path: path.stat().st_mtime_ns for path in place.cells.glob("*.parquet")}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 1 + 5  # I-FGSM at the large budget, and the rest of the battery


def test_run_whose_accuracy_is_not_that_of_its_training_is_not_attacked(
    place: Workspace, no_square: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustmix.audit import direct

    monkeypatch.setattr(direct, "OTHER_ACCURACY", -1.0)
    monkeypatch.setattr(direct, "SAME_ACCURACY", -2.0)
    (record,) = audit(["erm1"], place, launch("cpu"), limit=12)
    found = {test.name: test.verdict for test in record.tests}
    assert found["accuracy"] == "fail"
    assert found["iterated"] == "not run"
    assert not list(place.cells.glob("*.parquet"))


def test_other_peoples_broken_model_is_recorded_not_refused(place: Workspace, tiny: Path, no_square: None) -> None:
    code = place.root / "nets.py"
    code.write_text(
        "from pathlib import Path\nfrom torch import nn\nfrom robustmix.checkpoints import read_model\n"
        f"def soft():\n    return nn.Sequential(read_model(Path({str(tiny / 'runs/erm1/model.safetensors')!r})), "
        "nn.Softmax(1))\n"
    )
    (record,) = audit([f"{code}:soft"], place, launch("cpu"), data="digits", limit=20)
    assert {test.name for test in record.tests if test.verdict == "fail"} == {"logits"}


def test_labels_that_do_not_fit_are_refused(images: Images, nets: Nets) -> None:
    x, y = images
    with pytest.raises(EvaluationError, match="labels run from"):
        robustmix.audit_models(nets, x, y + 5, eps=EPS)
