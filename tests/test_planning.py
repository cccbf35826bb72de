"""What a suite asks for: which cells are missing, what they will cost, and which data and models do not fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import robustmix
from robustmix import AttackSpec, Suite, evaluate, planning
from robustmix.checkpoints import read_spec
from robustmix.data import Dataset, TensorSplit
from robustmix.errors import EvaluationError, SpecError, StoreError
from robustmix.participants import find_participants
from robustmix.planning import existing_cell, make_plan, missing_cells, missing_clean
from robustmix.store.cell_files import cell_path, read_cells, write_cell
from robustmix.store.cells import CellIdentity
from robustmix.store.gallery import gallery_path
from robustmix.store.runs import common_data, finished_run
from robustmix.store.workspace import Workspace
from robustmix.work import CLEAN, Unit, Wanted, clean_unit, halved, make_identity, resized


def suite(*attacks: AttackSpec, **fields: object) -> Suite:
    return Suite.model_validate({"version": 1, "title": "t", "sources": "erm1", "attack": attacks, **fields})


@pytest.fixture
def workspace(tiny: Path, tmp_path: Path) -> Path:
    """The trained runs, without any results."""
    (tmp_path / "runs").symlink_to(tiny / "runs")
    return tmp_path


# ---- what is missing -------------------------------------------------------------------------------------


def test_a_new_budget_and_a_new_target_compute_only_what_is_missing(workspace: Path) -> None:
    small = suite(AttackSpec(name="ifgsm", eps=(16,)), limit=20)
    evaluate(small, workspace=workspace)
    larger = suite(AttackSpec(name="ifgsm", eps=(16, 32)), targets=("erm1", "mixup1"), limit=20)
    plan = make_plan(larger, Workspace(workspace))
    missing = {(unit.title, cell.course.eps, cell.target.name) for unit in plan.units for cell in unit.cells}
    assert missing == {
        ("clean predictions", 0, "mixup1"),
        ("ifgsm from erm1", 16, "mixup1"),
        ("ifgsm from erm1", 32, "erm1"),
        ("ifgsm from erm1", 32, "mixup1"),
    }
    assert (len(plan.wanted), len(plan.missing)) == (6, 4)
    everything = make_plan(larger.model_copy(update={"limit": 21}), Workspace(workspace))
    assert len(everything.missing) == 6, "other inputs, other cells"


def test_a_cell_that_two_attacks_share_is_computed_once(workspace: Path) -> None:
    twice = (AttackSpec(name="ifgsm", eps=(16, 32), steps=4), AttackSpec(name="ifgsm", eps=(16, 32), steps=4, step=8))
    plan = make_plan(suite(*twice), Workspace(workspace))
    courses = [unit.courses for unit in plan.units[1:]]
    assert courses == [((16, 4, 4), (32, 4, 8)), ((16, 4, 8),)], "at 32 both make 4 steps of 8"


def test_one_network_under_several_names_is_measured_once_and_shown_under_each(tiny: Path, tmp_path: Path) -> None:
    for name, copied in (("erm1", "erm1"), ("erm1", "erm1-copied"), ("mixup1", "mixup1")):
        shutil.copytree(tiny / "runs" / name, tmp_path / "runs" / copied)
    wanted = suite(AttackSpec(name="fgsm", eps=(16, 32)), sources="erm*", targets=("mixup1", "erm*"), limit=20)
    plan = make_plan(wanted, Workspace(tmp_path))
    assert [(unit.source and unit.source.name, len(unit.cells)) for unit in plan.units] == [(None, 2), ("erm1", 4)]
    table = evaluate(wanted, workspace=tmp_path)
    names = {"erm1", "erm1-copied"}
    attacked = table[table["role"] != "clean"]
    assert set(zip(attacked["source"], attacked["target"], strict=True)) == {
        (source, target) for source in names for target in ("mixup1", *names)
    }
    assert set(attacked[attacked["target"].isin(names)]["role"]) == {"white"}
    assert attacked.groupby(["eps_255", "role"])["errors"].nunique().eq(1).all()


@pytest.fixture
def cells(workspace: Path) -> tuple[Workspace, dict[str, CellIdentity]]:
    """The clean and the attacked cell of one run, in batches of 8."""
    place = Workspace(workspace)
    plan = make_plan(suite(AttackSpec(name="fgsm", eps=(32,)), limit=16), place, batch_size=8)
    evaluate(suite(AttackSpec(name="fgsm", eps=(32,)), limit=16), workspace=workspace, batch_size=8)
    return place, {identity.attack: identity for identity in plan.wanted}


def test_a_cell_of_smaller_batches_serves_only_if_memory_ran_out(
    cells: tuple[Workspace, dict[str, CellIdentity]],
) -> None:
    place, own = cells
    larger = own["fgsm"].model_copy(update={"batch_size": 32})
    assert existing_cell(place, own["fgsm"])
    assert existing_cell(place, larger) is None, "somebody chose these batches: they are another measurement"
    for cell in read_cells(place.cells):
        write_cell(place.cells, replace(cell, facts=cell.facts.model_copy(update={"halved_from": 16})))
    found = existing_cell(place, larger)
    assert found
    assert found.identity == own["fgsm"]
    assert existing_cell(place, larger.model_copy(update={"batch_size": 31})) is None, "31, 15 and 7 do not come to 8"
    assert existing_cell(place, larger.model_copy(update={"batch_size": 4})) is None, "nobody needs larger batches"


def test_what_an_attacked_cell_is_compared_with_is_missing_beside_it(
    cells: tuple[Workspace, dict[str, CellIdentity]],
) -> None:
    """In the batches that the attack was made in, whatever the size that is asked for."""
    place, own = cells
    wanted = suite(AttackSpec(name="fgsm", eps=(32,)), limit=16)
    asked, larger = (make_plan(wanted, place, batch_size=size) for size in (8, 32))
    assert missing_clean(asked, place) == frozenset()
    cell_path(place.cells, own["clean"]).unlink()
    assert missing_clean(asked, place) == {own["clean"].key()}
    assert missing_clean(larger, place) == frozenset(), "nothing has been attacked in such batches"
    for cell in read_cells(place.cells):
        write_cell(place.cells, replace(cell, facts=cell.facts.model_copy(update={"halved_from": 32})))
    assert missing_clean(larger, place) == {own["clean"].key()}


def test_a_cell_without_its_images_counts_as_missing_where_images_are_wanted(
    cells: tuple[Workspace, dict[str, CellIdentity]],
) -> None:
    place, own = cells
    wanted = suite(AttackSpec(name="fgsm", eps=(32,)), limit=16)
    plan = make_plan(wanted, place, batch_size=8, save_images=True)
    assert plan.missing == {own["fgsm"].key()}, "there are no images of clean predictions"
    found = next(cell for cell in read_cells(place.cells) if cell.identity == own["fgsm"])
    rows = found.rows.set_column(9, "prediction_uint8", found.rows["prediction"])
    write_cell(place.cells, replace(found, rows=rows))
    assert existing_cell(place, own["fgsm"], save_images=True) is None, "scored on images that are gone"
    images = gallery_path(place.gallery, own["fgsm"])
    np.save(images, np.zeros((16, 1, 8, 8), np.uint8))
    assert existing_cell(place, own["fgsm"], save_images=True) is None, "nobody knows what images these are"
    images.with_suffix(".json").write_text("{}")
    assert existing_cell(place, own["fgsm"], save_images=True)
    np.save(images, np.zeros((15, 1, 8, 8), np.uint8))
    assert existing_cell(place, own["fgsm"], save_images=True) is None
    assert images.with_suffix(".npy.damaged").exists()


def test_batch_sizes_are_halved_down_to_one() -> None:
    assert list(halved(256)) == [256, 128, 64, 32, 16, 8, 4, 2, 1]
    assert list(halved(100)) == [100, 50, 25, 12, 6, 3, 1]


# ---- what it costs ---------------------------------------------------------------------------------------


def unit_of(attack: AttackSpec | None, targets: int, place: Workspace, *, save_images: bool = False) -> Unit:
    everyone = find_participants(place, ["erm1", "erm2", "mixup1", "mixup2"])
    courses = attack.courses("digits") if attack else (CLEAN,)
    source = everyone[0] if attack else None
    cells = tuple(
        Wanted(course, target, make_identity(source, target, attack, course, "inputs", 64, compiled=False))
        for course in courses
        for target in everyone[:targets]
    )
    return Unit(source, attack, cells, 64, compiled=False, save_images=save_images)


@pytest.mark.parametrize(
    ("attack", "gradients", "looks"),
    [
        (AttackSpec(name="fgsm", eps=(1, 2, 3, 4, 5, 6, 7, 8)), 1, 0),
        (AttackSpec(name="ifgsm", eps=(1, 2, 4, 8)), 1 + 4 * 9, 0),
        (AttackSpec(name="mifgsm", eps=(1, 2), steps=3), 1 + 2 * 2, 0),
        # 1, 2, 5, 10 and 20 steps of 1/255. They part behind the step that reaches the smaller budget: the tenth of 8.
        (AttackSpec(name="ifgsm", eps=(1, 2, 4, 8, 16), step="kurakin"), 20 + 1, 0),
        (AttackSpec(name="ifgsm", eps=(2, 4, 8), step=2, steps=6), (2 + 4) + (1 + 3) + (2 + 1), 0),
        (AttackSpec(name="pgd", eps=(1, 2), steps=7, restarts=3), 2 * 7 * 3, 2 * 3),
        (AttackSpec(name="pgd", eps=(1, 2), steps=7, labels="predicted"), 2 * 7, 1),
        (AttackSpec(name="fgsm", eps=(1, 2), labels="predicted"), 1, 0),
        (AttackSpec(name="fgsm", eps=(1, 2), labels="predicted", precision="bf16"), 1, 1),
        (AttackSpec(name="noise", eps=(1, 2), labels="predicted", precision="bf16"), 0, 1),
        (AttackSpec(name="signs", eps=(1, 2), restarts=5), 0, 2 * 5),
        (AttackSpec(name="noise", eps=(1, 2)), 0, 0),
    ],
    ids=lambda value: f"{value.name}-{value.labels}" if isinstance(value, AttackSpec) else str(value),
)
def test_passes_are_known_beforehand(attack: AttackSpec, gradients: int, looks: int, tiny: Path) -> None:
    unit = unit_of(attack, 3, Workspace(tiny))
    scored = 3 * len(attack.courses("digits"))
    assert unit.backward == gradients
    assert unit.forward == gradients + looks + scored
    assert replace(unit, save_images=True).forward == unit.forward + scored


def test_clean_predictions_cost_one_pass_for_each_target(tiny: Path) -> None:
    unit = unit_of(None, 4, Workspace(tiny))
    assert (unit.forward, unit.backward, unit.title) == (4, 0, "clean predictions")


def test_two_jobs_claim_the_same_work_under_the_same_key(tiny: Path) -> None:
    """A claim speaks of what is crafted: which budgets and targets are missing may differ from job to job."""
    place = Workspace(tiny)
    attack = AttackSpec(name="ifgsm", eps=(8, 16))
    unit = unit_of(attack, 2, place)
    assert unit_of(AttackSpec(name="ifgsm", eps=(16,)), 3, place).key == unit.key
    assert unit.only({cell.identity.key() for cell in unit.cells[3:]}).key == unit.key  # type: ignore[union-attr]
    others = [
        unit_of(AttackSpec(name="fgsm", eps=(8, 16)), 2, place),
        unit_of(AttackSpec(name="ifgsm", eps=(8, 16), loss="margin"), 2, place),
        unit_of(AttackSpec(name="ifgsm", eps=(8, 16), labels="predicted"), 2, place),
        unit_of(None, 2, place),
        resized(unit, 32),
    ]
    assert len({unit.key, *(other.key for other in others)}) == 6
    assert unit.only(set()) is None


def test_the_clean_unit_has_each_target_once(tiny: Path) -> None:
    unit = clean_unit(unit_of(AttackSpec(name="ifgsm", eps=(8, 16)), 3, Workspace(tiny)))
    assert [cell.target.name for cell in unit.cells] == ["erm1", "erm2", "mixup1"]
    assert missing_cells(unit, Workspace(tiny)) == [cell.identity.key() for cell in unit.cells]
    assert {cell.identity.attack for cell in unit.cells} == {"clean"}


# ---- what does not fit -----------------------------------------------------------------------------------


def test_a_model_that_does_not_fit_the_data_is_refused(workspace: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8),
        "y_train": np.arange(20) % 5,
        "x_test": rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8),
        "y_test": np.arange(20) % 5,
    }
    np.savez(tmp_path / "five.npz", **arrays)
    fgsm = AttackSpec(name="fgsm", eps=(16,))
    with pytest.raises(EvaluationError, match=r"'erm1' tells 10 classes apart, .* has 5"):
        evaluate(suite(fgsm, data=f"npz:{tmp_path}/five.npz"), workspace=workspace)
    arrays.update(y_train=np.arange(20) % 10, y_test=np.arange(20) % 10)
    arrays.update({key: np.repeat(arrays[key], 2, axis=1) for key in ("x_train", "x_test")})
    np.savez(tmp_path / "tall.npz", **arrays)
    with pytest.raises(EvaluationError, match=r"takes images \[1, 8, 8\], .* has \[1, 16, 8\]"):
        evaluate(suite(fgsm, data=f"npz:{tmp_path}/tall.npz"), workspace=workspace)
    assert not (workspace / "results").exists()


def test_sources_trained_on_different_data_need_a_choice(workspace: Path) -> None:
    runs = [finished_run(Workspace(workspace), name) for name in ("erm1", "erm2")]
    other = replace(runs[1], recipe=runs[1].recipe.model_copy(update={"data": "cifar10"}))
    with pytest.raises(SpecError, match=r"cifar10, digits.*--data"):
        common_data([runs[0], other])


def test_without_a_run_among_the_sources_the_data_must_be_named(workspace: Path) -> None:
    (workspace / "net.py").write_text("make = None\n")
    with pytest.raises(SpecError, match="--data is missing: nothing that crafts is a run"):
        make_plan(suite(AttackSpec(name="fgsm"), sources=f"{workspace}/net.py:make"), Workspace(workspace))


def test_classes_in_another_order_are_refused(workspace: Path) -> None:
    place = Workspace(workspace)
    (participant,) = find_participants(place, ["erm1"])
    data = robustmix.load_data("digits")
    assert read_spec(workspace / "runs/erm1/model.safetensors").classes == data.classes == participant.classes
    planning._check_fit(participant, data)
    with pytest.raises(EvaluationError, match="in another order"):
        planning._check_fit(participant, replace(data, classes=data.classes[::-1]))


def test_other_names_of_the_classes_are_remarked_on(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (participant,) = find_participants(Workspace(tiny), ["erm1"])
    data = replace(robustmix.load_data("digits"), classes=tuple("abcdefghij"))
    planning._check_fit(participant, data)
    assert "run 'erm1' calls its classes 0, 1, 2, ..., digits a, b, c, ..." in capsys.readouterr().err


def test_l2_budgets_beyond_the_diagonal_of_the_range_are_refused(workspace: Path) -> None:
    """The longest perturbation of 64 pixels is 8 x 255 grey levels long."""
    make_plan(suite(AttackSpec(name="fgsm", norm="l2", eps=(2040,))), Workspace(workspace))
    with pytest.raises(SpecError, match=r"budget 3000/255 in l2 is longer than any .* \[1, 8, 8\] .* 2040/255$"):
        make_plan(suite(AttackSpec(name="fgsm", norm="l2", eps=(3000,))), Workspace(workspace))
    steps = AttackSpec(name="ifgsm", norm="l2", eps=(200,), step=3000)
    with pytest.raises(SpecError, match=r"step 3000/255 in l2 is longer than any .* 2040/255$"):
        make_plan(suite(steps), Workspace(workspace))


@pytest.mark.parametrize(("eps", "warned"), [((14, 15), "eps 14 is below"), ((15,), ""), ((0.5,), "eps 0.5 is below")])
def test_a_budget_below_the_data_s_grey_level_is_remarked_on(
    eps: tuple[object, ...], warned: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = tuple(f"{value}/255" for value in eps)
    make_plan(suite(AttackSpec(name="fgsm", eps=budgets)), Workspace(tiny))
    err = capsys.readouterr().err
    assert warned in err
    assert ("warning" in err) == bool(warned)
    assert ("one grey level of digits, which is 15/255" in err) == bool(warned)


@pytest.mark.parametrize(
    ("sources", "targets", "warned"),
    [("erm1", None, False), (("erm1", "mixup1"), None, True), ("erm1", "mixup1", True), ("erm1", "erm1", False)],
)
def test_what_leaves_images_clean_is_weak_by_transfer(
    sources: object, targets: object, warned: bool, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    fields = {} if targets is None else {"targets": targets}
    make_plan(suite(AttackSpec(name="square", eps=(32,)), sources=sources, **fields), Workspace(tiny))
    assert ("square leave an example clean that they do not break" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("name", "norm", "version"), [("hopskipjump", "l2", 2), ("hopskipjump", "linf", 1), ("cw", "l2", 1)]
)
def test_cells_of_before_do_not_stand_for_what_an_attack_finds_now(
    name: str, norm: str, version: int, tiny: Path
) -> None:
    pytest.importorskip("foolbox", reason="needs the extra 'attacks'")
    spec = AttackSpec.model_validate({"name": name, "norm": norm})
    plan = make_plan(suite(spec), Workspace(tiny))
    assert {one.attack_version for one in plan.wanted if one.source} == {version}


def test_images_of_one_grey_cannot_be_attacked(tiny: Path) -> None:
    grey = TensorSplit(torch.full((20, 1, 8, 8), 7, dtype=torch.uint8), torch.arange(20) % 10)
    data = Dataset("grey", "npz:grey.npz", grey, grey, tuple("0123456789"))
    with pytest.raises(EvaluationError, match=r"npz:grey\.npz: all test pixels have the same value"):
        planning._warn(suite(AttackSpec(name="fgsm")), data, grey, transferred=False)


@pytest.mark.parametrize("size", [0, -1, 2**31, 10**20])
def test_batches_hold_an_example_at_least_and_can_be_counted(size: int, tiny: Path) -> None:
    with pytest.raises(SpecError, match=f"^batch size {size} must be at least 1 and at most 2147483647$"):
        make_plan(suite(AttackSpec(name="fgsm")), Workspace(tiny), batch_size=size)
    assert make_plan(suite(AttackSpec(name="fgsm")), Workspace(tiny), batch_size=2**31 - 1).units


def test_results_of_cells_that_are_gone_say_what_to_do(workspace: Path) -> None:
    from robustmix.evaluation import planned_results

    plan = make_plan(suite(AttackSpec(name="fgsm", eps=(32,)), limit=16), Workspace(workspace))
    with pytest.raises(StoreError, match="is missing; attack again"):
        planned_results(plan, Workspace(workspace))
