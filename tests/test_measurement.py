"""One unit: what is recorded of every example and every batch, and what is refused instead."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustmix
from robustmix import AttackSpec, Suite, attacks, crafting, evaluate
from robustmix.attacks.foreign import craft_foreign
from robustmix.cli.tables import print_results
from robustmix.crafting import STATE, Counted, Crafting
from robustmix.errors import EvaluationError
from robustmix.evaluation import compute
from robustmix.measurement import COLUMNS, Measured, _measured, measure, score
from robustmix.participants import Participant
from robustmix.planning import make_plan
from robustmix.spec.attack import Course
from robustmix.store.cell_files import read_cells
from robustmix.store.cells import GAP_QUANTILES, Cell
from robustmix.store.workspace import Workspace
from robustmix.team import Team

CPU = torch.device("cpu")

NETS = """
import torch
from torch import nn
import robustmix

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = robustmix.load_model("erm1", workspace={workspace!r})
        self.register_buffer("image", robustmix.load_data("digits").test.images[300].float() / 255)

class Scaled(Net):
    def forward(self, x):
        return 100 * self.network(x)

class NoSlope(Net):
    '''Finite everywhere, but at one image the slope is 0 x infinity.'''
    def forward(self, x):
        return self.network(x) + 0 * (x - self.image).square().flatten(1).sum(dim=1, keepdim=True).sqrt()

class NoGradient(Net):
    def forward(self, x):
        return self.network(x.detach())

class Stairs(Net):
    '''Of the same predictions nearly, and of no slope.'''
    def forward(self, x):
        return self.network((64 * x).round() / 64)

class NoLogit(Net):
    '''No number where the corner that every digit leaves black is not.'''
    def forward(self, x):
        return torch.where(x[:, :, 0, 0] > 0, torch.nan, self.network(x))

class NoLogitOnLevels(Net):
    '''No number where that corner has a grey level other than black.'''
    def forward(self, x):
        level = 255 * x[:, :, 0, 0]
        return torch.where((level > 0.5) & ((level - level.round()).abs() < 1e-3), torch.nan, self.network(x))
"""


@pytest.fixture
def workspace(tiny: Path, tmp_path: Path) -> Path:
    """The trained runs, models of somebody else's, and no results."""
    (tmp_path / "runs").symlink_to(tiny / "runs")
    (tmp_path / "net.py").write_text(NETS.format(workspace=str(tiny)))
    return tmp_path


def suite(*attacks: AttackSpec, **fields: object) -> Suite:
    fields = {"sources": "erm1", "data": "digits", **fields}
    return Suite.model_validate({"version": 1, "title": "t", "attack": attacks, **fields})


def attacked(workspace: Path) -> list[Cell]:
    """The cells of the workspace that hold an attack."""
    return [cell for cell in read_cells(workspace / "results/cells") if cell.identity.source]


def digits(count: int | None = None) -> tuple[Tensor, Tensor]:
    test = robustmix.load_data("digits").test
    return test.gather(torch.arange(count or len(test)), CPU)  # type: ignore[attr-defined, no-any-return]


def scored(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x.contiguous(memory_format=torch.channels_last))
        return logits


# ---- what a model makes of inputs ------------------------------------------------------------------------


def test_score_against_a_slow_count() -> None:
    logits = torch.tensor([[3.0, 1, 0, -1, -2, -3], [0, 1, 2, 3, 4, 9]])
    labels = torch.tensor([0, 0])
    prediction, in_top5, confidence, gap, finite = score(nn.Identity(), logits, labels)
    assert prediction.tolist() == [0, 5]
    assert in_top5.tolist() == [1, 0]
    assert confidence[0] == pytest.approx(float(logits[0].softmax(0)[0]))
    assert gap.tolist() == [2, -9]
    assert finite.tolist() == [1, 1]


def test_a_logit_that_is_no_number_is_noticed() -> None:
    logits = torch.tensor([[0.0, math.nan], [0, math.inf], [0, 1]])
    assert score(nn.Identity(), logits, torch.zeros(3).long())[4].tolist() == [0, 0, 1]


def test_equal_logits_are_predicted_as_argmax_does() -> None:
    prediction, in_top5, _, gap, _ = score(nn.Identity(), torch.zeros(3, 10), torch.tensor([0, 4, 9]))
    assert prediction.tolist() == [0, 0, 0]
    assert in_top5.tolist() == [1, 1, 1]
    assert gap.tolist() == [0, 0, 0]


def test_rows_say_what_the_model_makes_of_each_adversarial_image(workspace: Path) -> None:
    evaluate(suite(AttackSpec(name="fgsm", eps=(32,), norm="l2"), limit=40), workspace=workspace, batch_size=32)
    (cell,) = attacked(workspace)
    model = robustmix.load_model("erm1", workspace=workspace)
    x, y = digits(40)
    x_adv = torch.cat(
        [
            attacks.fgsm(model, part.contiguous(memory_format=torch.channels_last), labels, 32 / 255, norm="l2")
            for part, labels in zip(x.split(32), y.split(32), strict=True)
        ]
    )
    logits = torch.cat([scored(model, part) for part in x_adv.split(32)])
    others = logits.scatter(1, y[:, None], -math.inf).amax(dim=1)
    expected = {
        "index": np.arange(40),
        "label": y.numpy(),
        "prediction": logits.argmax(dim=1).numpy(),
        "in_top5": [bool(label in row) for label, row in zip(y, logits.topk(5).indices, strict=True)],
        "confidence": logits.softmax(dim=1).amax(dim=1).numpy(),
        "gap": (logits.gather(1, y[:, None])[:, 0] - others).numpy(),
        "norm": (x_adv - x).flatten(1).norm(dim=1).numpy(),
        "min": x_adv.flatten(1).amin(dim=1).numpy(),
        "max": x_adv.flatten(1).amax(dim=1).numpy(),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(cell.rows[name].to_numpy(), values, rtol=2e-6, err_msg=name)
    assert cell.rows["prediction_uint8"].null_count == 40


# ---- what is measured of a share of the batches ----------------------------------------------------------


def measured(workspace: Path, spec: AttackSpec, own: slice) -> Measured:
    plan = make_plan(suite(spec, targets=("mixup1", "erm1"), limit=40), Workspace(workspace), batch_size=16)
    batches = torch.arange(40).split(16)
    numbers = range(3)
    return measure(plan.units[1], plan.inputs, batches[own], numbers[own], lambda one: one.load(), CPU, "test")


def test_a_process_measures_of_its_batches_what_one_alone_would(workspace: Path) -> None:
    """Random numbers are a function of the batch's number, not of how many came before it."""
    spec = AttackSpec(name="pgd", eps=(16, 32), steps=2, restarts=2)
    everything, parts = (measured(workspace, spec, own) for own in (slice(None), slice(0, None, 2)))
    kept = [*range(16), *range(32, 40)]
    np.testing.assert_array_equal(parts.columns, everything.columns[:, :, kept])
    np.testing.assert_array_equal(parts.states, everything.states[[0, 2]])
    assert (parts.forward, parts.backward) == (everything.forward * 24 / 40, everything.backward * 24 / 40)


@pytest.mark.parametrize(
    "spec",
    [
        AttackSpec(name="signs", eps=(16,)),
        AttackSpec(name="noise", eps=(16,), norm="l2"),
        AttackSpec(name="pgd", eps=(16,), steps=2),
        AttackSpec(name="pgd", eps=(16,), steps=2, impl="torchattacks"),
        AttackSpec(name="square", eps=(16,), queries=2),
    ],
    ids=["signs", "noise", "pgd", "pgd by torchattacks", "square"],
)
def test_each_batch_has_random_numbers_of_its_own(spec: AttackSpec, workspace: Path) -> None:
    pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    *_, unit = make_plan(suite(spec, limit=8), Workspace(workspace)).units
    network = Counted(robustmix.load_model("erm1", workspace=workspace).requires_grad_(False), CPU, "32")
    x, y = digits(8)

    def made(number: int) -> Tensor:
        ((found,),) = (group.values() for group in Crafting(unit, network, network, x, y, number).groups())
        return found

    first, again, second = made(0), made(0), made(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_a_process_without_a_batch_measures_nothing(workspace: Path) -> None:
    nothing = measured(workspace, AttackSpec(name="fgsm", eps=(16, 32)), slice(3, None))
    assert nothing.columns.shape == (4, len(COLUMNS), 0)
    assert nothing.states.shape == (0, len(STATE))
    assert (nothing.forward, nothing.backward) == (0, 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "steps", "gradients"), [("fgsm", 1, [16]), ("ifgsm", 3, [16, 64, 64])])
def test_budgets_of_compiled_networks_share_small_passes(
    name: str, steps: int, gradients: list[int], norm: str, workspace: Path
) -> None:
    given = {"steps": steps} if name == "ifgsm" else {}
    spec = AttackSpec(name=name, eps=(4, 8, 16, 32), norm=norm, **given)
    plan = make_plan(
        suite(spec, targets=("mixup1", "erm1"), limit=16), Workspace(workspace), batch_size=16, save_images=True
    )
    unit = plan.units[1]
    passes: dict[str, list[int]] = {"erm1": [], "mixup1": []}
    kept: list[tuple[Course, Tensor]] = []

    def load(one: Participant) -> nn.Module:
        model = one.load()
        model.register_forward_pre_hook(lambda _, args: passes[one.name].append(len(args[0])))
        return model

    def measured(compiled: bool) -> Measured:
        return measure(
            replace(unit, compiled=compiled), plan.inputs, (torch.arange(16),), (0,), load, CPU, "test",
            lambda course, _, levels: kept.append((course, levels)),
        )  # fmt: skip

    alone = measured(compiled=False)
    assert passes["mixup1"] == [16] * 8
    for each in passes.values():
        each.clear()
    together = measured(compiled=True)
    assert passes == {"erm1": [*gradients, 64, 64], "mixup1": [64, 64]}
    for column, one, other in zip(COLUMNS, together.columns.swapaxes(0, 1), alone.columns.swapaxes(0, 1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=column)
    assert len(np.unique(alone.columns[:, COLUMNS.index("gap")], axis=0)) == 8, "the test needs cells that differ"
    assert (together.forward, together.backward) == (alone.forward, alone.backward)
    np.testing.assert_allclose(together.states, alone.states, rtol=1e-4)
    for (course, levels), (same, others) in zip(kept[:4], kept[4:], strict=True):
        assert course == same
        assert torch.equal(levels, others)


def test_budgets_share_no_passes_that_are_large_already(workspace: Path) -> None:
    plan = make_plan(suite(AttackSpec(name="fgsm", eps=(16, 32))), Workspace(workspace))
    unit, passes = replace(plan.units[1], compiled=True), []

    def load(one: Participant) -> nn.Module:
        model = one.load()
        model.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
        return model

    measure(unit, plan.inputs, torch.arange(360).split(256), range(2), load, CPU, "test")
    # 256 digits of 64 pixels are more than the 2^13 up to which budgets are put together, 104 are not.
    assert passes == [256, 256, 256, 104, 104, 104]


# ---- how sure the source was -----------------------------------------------------------------------------


def test_the_state_of_the_source_is_recorded_batch_by_batch(workspace: Path) -> None:
    wanted = suite(AttackSpec(name="ifgsm", eps=(16,), steps=2), AttackSpec(name="signs", eps=(16,)))
    evaluate(wanted, workspace=workspace)
    cells = {cell.identity.attack: cell for cell in attacked(workspace)}
    assert cells["signs"].facts.batches == (), "no gradient was taken"
    model = robustmix.load_model("erm1", workspace=workspace)
    states = cells["ifgsm"].facts.batches
    assert len(states) == 2
    for state, x, y in zip(states, *(part.split(256) for part in digits()), strict=True):
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        logits = model(x)
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
        others = logits.scatter(1, y[:, None], -math.inf).amax(dim=1)
        gaps = (logits.gather(1, y[:, None])[:, 0] - others).detach().sort().values
        expected = [float(gaps[math.floor(q * (len(y) - 1) + 1e-5)]) for q in GAP_QUANTILES]
        assert state.gap == pytest.approx(expected, rel=1e-3)
        sure = logits.softmax(dim=1).gather(1, y[:, None])[:, 0] == 1
        assert state.saturated == pytest.approx(float(sure.double().mean()), rel=1e-3)
        assert state.zero_gradient == pytest.approx(float((slope.flatten(1) == 0).all(dim=1).double().mean()), rel=1e-3)


def test_logits_a_hundred_times_as_large_are_recorded_as_saturated(workspace: Path) -> None:
    """The predictions are the same, and so is the network's robustness: only cross-entropy no longer finds a way."""
    losses = ("ce", "logodds", "margin")
    evaluate(
        suite(
            *(AttackSpec(name="fgsm", eps=(32,), loss=loss) for loss in losses),
            sources=("erm1", f"{workspace}/net.py:Scaled"),
        ),
        workspace=workspace,
    )
    white = {
        (cell.facts.source_name == "erm1", cell.identity.loss): cell
        for cell in attacked(workspace)
        if cell.identity.source == cell.identity.target
    }
    for loss in losses:
        honest, scaled = (white[own, loss].facts.batches for own in (True, False))
        assert all(state.saturated < 0.3 for state in honest)
        assert all(state.saturated > 0.7 for state in scaled)
    zero = {key: np.mean([state.zero_gradient for state in cell.facts.batches]) for key, cell in white.items()}
    assert zero[False, "ce"] > 0.5
    assert zero[True, "ce"] == zero[False, "logodds"] == zero[False, "margin"] == 0
    errors = {key: np.mean(cell.rows["prediction"].to_numpy() != digits()[1].numpy()) for key, cell in white.items()}
    assert errors[False, "ce"] < errors[True, "ce"] - 0.1
    assert errors[False, "logodds"] == pytest.approx(errors[True, "logodds"], abs=0.05)
    assert errors[False, "margin"] == errors[True, "margin"]


@pytest.mark.parametrize("impl", ["torchattacks", "foolbox"])
def test_what_saturates_is_recorded_whoever_makes_the_attack(impl: Any, workspace: Path) -> None:
    pytest.importorskip(impl, reason="needs the extra 'attacks'")
    kinds = [
        AttackSpec(name="fgsm", eps=(16, 32)),
        AttackSpec(name="fgsm", eps=(16, 32), labels="predicted"),
        AttackSpec(name="ifgsm", eps=(32,), steps=2),
    ]
    both = [spec.model_copy(update={"impl": by}) for spec in kinds for by in ("robustmix", impl)]
    evaluate(
        suite(*both, AttackSpec(name="pgd", eps=(32,), impl=impl), sources=f"{workspace}/net.py:Scaled", limit=200),
        workspace=workspace,
    )
    found: dict[tuple[object, ...], dict[str, Cell]] = {}
    for cell in attacked(workspace):
        kind = cell.identity.attack, cell.identity.eps_255, cell.identity.labels
        found.setdefault(kind, {})[cell.identity.impl] = cell
    for (attack, *_), cells in found.items():
        (state,) = cells[impl].facts.batches
        if attack == "pgd":
            assert state.saturated > 0.3
        else:
            (ours,) = cells["robustmix"].facts.batches
            assert (state.gap, state.saturated) == (ours.gap, ours.saturated)
            # The mean over the batch that torchattacks ascends is smaller, and sooner nothing.
            assert state.zero_gradient >= ours.zero_gradient > 0.5


def test_what_vanishes_is_recorded_of_the_smallest_perturbations_too(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no direction to go they find nothing, and would find the network robust."""
    pytest.importorskip("foolbox", reason="needs the extra 'attacks'")
    steep, stairs = "erm1", f"{workspace}/net.py:Stairs"
    kinds = [AttackSpec(name="fgsm", eps=(16,)), *(AttackSpec(name=name, steps=3) for name in ("deepfool", "cw"))]
    wanted = suite(*kinds, AttackSpec(name="hopskipjump", steps=2), sources=(steep, stairs), limit=60)
    results = evaluate(wanted, workspace=workspace, batch_size=20)
    white = [cell for cell in attacked(workspace) if cell.identity.source == cell.identity.target]
    found = {(cell.facts.source_name, cell.identity.attack): cell.facts.batches for cell in white}
    own = results[results["role"] != "transfer"].set_index(["target", "attack"])
    for source in (steep, stairs):
        assert found[source, "hopskipjump"] == (), "no gradient was taken"
        assert len(found[source, "fgsm"]) == 3
        for attack in ("deepfool", "cw"):
            for state, ours in zip(found[source, attack], found[source, "fgsm"], strict=True):
                assert (state.gap, state.saturated) == (ours.gap, ours.saturated)
            # What is misclassified already is not attacked.
            expected = 1 - own["error"][source, "clean"] if source == stairs else 0
            assert own["zero_gradient"][source, attack] == pytest.approx(expected, rel=1e-3)
    capsys.readouterr()
    print_results(results)
    assert f"warning: {stairs} has a gradient of exactly zero on" in capsys.readouterr().err


# ---- nothing waits ---------------------------------------------------------------------------------------

UNWAITED: Final = (
    AttackSpec(name="fgsm", eps=(16, 32)),
    AttackSpec(name="ifgsm", eps=(16, 32), steps=2, labels="predicted"),
    # 12 and 24 meet neither budget, so that nothing is to be compared.
    AttackSpec(name="ifgsm", eps=(16, 32), steps=3, step=12),
    AttackSpec(name="mifgsm", eps=(64,), steps=2, norm="l2"),
    AttackSpec(name="pgd", eps=(32,), steps=2, restarts=2),
    AttackSpec(name="signs", eps=(32,), restarts=2),
    AttackSpec(name="noise", eps=(64,), norm="l2"),
)


def test_a_batch_is_measured_without_a_look_at_a_number(workspace: Path) -> None:
    """The meta device has shapes and no numbers: whoever waits for one there fails."""
    meta = torch.device("meta")
    network = Counted(robustmix.load_model("erm1", workspace=workspace).to(meta), CPU, "32")
    x, y = (part.to(meta) for part in digits(64))
    units = make_plan(suite(*UNWAITED), Workspace(workspace)).units
    assert len(units) == 1 + len(UNWAITED)
    for unit in units:
        batch = Crafting(unit, network if unit.source else None, network, x, y, 0)
        targets = {cell.target.digest: network for cell in unit.cells}
        found = _measured(batch, torch.arange(64), targets, None, None)
        assert [column.shape for column in found.values()] == [(len(COLUMNS), 64)] * len(unit.cells)
        assert all(part.device == meta for part in [*found.values(), *batch.state()])
        # Apple's GPUs have no float64.
        assert all(part.dtype == torch.float32 for part in [*found.values(), *batch.state()])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA's")
def test_the_host_does_not_wait_for_a_gpu_within_a_unit(workspace: Path) -> None:
    device = torch.device("cuda")
    network = Counted(robustmix.load_model("erm1", workspace=workspace).to(device), device, "32")
    split = robustmix.load_data("digits").test.to(device)
    for unit in make_plan(suite(*UNWAITED), Workspace(workspace)).units:
        targets = {cell.target.digest: network for cell in unit.cells}
        torch.cuda.set_sync_debug_mode("error")
        try:
            for number, (x, y) in enumerate(split.batches(torch.arange(128).split(64), device)):
                batch = Crafting(unit, network if unit.source else None, network, x, y, number)
                _measured(batch, torch.arange(64), targets, None, None)
                batch.state()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            "NoSlope",
            r"^fgsm from \S+net\.py:NoSlope: in batch 1 the gradient or a logit of 1 of 104 examples is NaN or "
            r"infinite \(first: number 44 of the batch\)",
        ),
        (
            "NoGradient",
            r"^\S+net\.py:NoGradient cannot be attacked: the model's output has no gradient with respect",
        ),
        ("NoLogit", r"^fgsm from \S+net\.py:NoLogit: in batch 0 a logit of \S+net\.py:NoLogit is NaN or infinite"),
    ],
)
def test_no_number_is_an_error_that_names_unit_and_batch(net: str, message: str, workspace: Path) -> None:
    bad = f"{workspace}/net.py:{net}"
    wanted = suite(AttackSpec(name="fgsm", eps=(16, 32)), sources=("erm1", bad), targets=("erm1", bad))
    if net == "NoLogit":
        wanted = wanted.model_copy(update={"sources": (bad,)})
    with pytest.raises(EvaluationError, match=message):
        evaluate(wanted, workspace=workspace)
    assert {cell.facts.source_name for cell in attacked(workspace)} == ({"erm1"} if net == "NoSlope" else set())
    assert not list((workspace / "results").glob("parts/*")), "the claim on the unit is given back"


def test_no_number_on_the_rounded_images_is_an_error_too(workspace: Path) -> None:
    net = f"{workspace}/net.py:NoLogitOnLevels"
    wanted = suite(AttackSpec(name="fgsm", eps=("31.7/255",)), sources="erm1", targets=("erm1", net), limit=64)
    plan = make_plan(wanted, Workspace(workspace), save_images=True)
    with pytest.raises(
        EvaluationError, match=r"^fgsm from erm1: in batch 0 a logit of \S+:NoLogitOnLevels on the .*rounded"
    ):
        compute(plan, Workspace(workspace), Team(CPU))
    assert attacked(workspace) == []
    evaluate(wanted, workspace=workspace)
    assert len(attacked(workspace)) == 2, "the images that are not rounded have logits"


def test_no_number_in_another_library_s_hands_is_an_error_that_names_the_batch(workspace: Path) -> None:
    pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    wanted = suite(
        AttackSpec(name="ifgsm", eps=(16,), steps=2, impl="torchattacks"), sources=f"{workspace}/net.py:NoSlope"
    )
    with pytest.raises(EvaluationError, match=r"^ifgsm from \S+:NoSlope: in batch 1: .* a gradient is NaN or infinite"):
        evaluate(wanted, workspace=workspace)
    assert attacked(workspace) == []


Crafter = Callable[..., Iterator[tuple[Course, Tensor]]]


def moving(distance: Callable[[Course, Tensor], Tensor]) -> Crafter:
    def craft(name: str, victim: object, x: Tensor, courses: list[Course], *_: object) -> Any:
        yield from ((course, x + distance(course, x)) for course in courses)

    return craft


MUTANTS: dict[str, tuple[str, Crafter, str]] = {
    "beyond eps": (
        "linf",
        moving(lambda course, x: (x + 1.001 * (course.eps or 0)).clamp(max=1) - x),
        r"inputs leave the budget 16/255 = 0.06275 or the range .* first in batch 0; the largest perturbation is 0.06",
    ),
    "beyond eps in l2": (
        "l2",
        moving(lambda course, x: 1.001 * (course.eps or 0) * F.normalize(0.5 - x, dim=(1, 2, 3))),
        r"360 adversarial inputs leave the budget 16/255",
    ),
    "above 1": ("linf", moving(lambda course, x: torch.full_like(x, 0.03)), r"or the range \[0, 1\]"),
    "below 0": ("linf", moving(lambda course, x: torch.full_like(x, -0.03)), r"or the range \[0, 1\]"),
    "NaN": ("linf", moving(lambda course, x: torch.full_like(x, math.nan)), "in batch 0 a logit of erm1 is NaN"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_an_attack_that_leaves_its_budget_is_an_error(
    mutant: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, craft, message = MUTANTS[mutant]
    monkeypatch.setattr(crafting, "craft", craft)
    with pytest.raises(EvaluationError, match=f"^fgsm from erm1: .*{message}"):
        evaluate(suite(AttackSpec(name="fgsm", eps=(16,), norm=norm)), workspace=workspace)
    assert attacked(workspace) == []


def test_only_the_batch_that_leaves_its_budget_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y = digits()[1]

    def craft(name: str, victim: Any, x: Tensor, courses: list[Course], *_: object) -> Any:
        far = torch.equal(victim.labels, y[256:])
        yield from ((course, (x + (2 if far else 1) * (course.eps or 0)).clamp(0, 1)) for course in courses)

    monkeypatch.setattr(crafting, "craft", craft)
    with pytest.raises(EvaluationError, match=r"104 adversarial inputs leave .* the first in batch 1;"):
        evaluate(suite(AttackSpec(name="fgsm", eps=(16,))), workspace=workspace)


# ---- what the attack moves away from, and in which precision ---------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        AttackSpec(name="ifgsm", eps=(16, 32), steps=3, labels="predicted"),
        AttackSpec(name="ifgsm", eps=(16, 32), steps=3, labels="predicted", precision="bf16"),
        AttackSpec(name="pgd", eps=(32,), steps=2, restarts=2, labels="predicted"),
        AttackSpec(name="signs", eps=(32,), restarts=2, labels="predicted"),
        AttackSpec(name="fgsm", eps=(32,), labels="predicted", impl="torchattacks"),
    ],
    ids=lambda spec: f"{spec.name}-{spec.precision}-{spec.impl}",
)
def test_predicted_labels_are_the_source_s_without_an_attack(spec: AttackSpec, workspace: Path) -> None:
    """As if the source's clean predictions were the truth; but the error is against the truth."""
    if spec.impl == "torchattacks":
        pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    wanted = suite(spec, spec.model_copy(update={"labels": "true"}), targets=("mixup1",), limit=200)
    evaluate(wanted, workspace=workspace)
    test = robustmix.load_data("digits").test
    pretended = scored(robustmix.load_model("erm1", workspace=workspace), digits(200)[0]).argmax(dim=1)
    train = robustmix.load_data("digits").train.first(200)
    arrays = {
        "x_train": train.images.numpy(),  # type: ignore[attr-defined]
        "y_train": train.labels.numpy(),
        "x_test": test.first(200).images.numpy(),  # type: ignore[attr-defined]
        "y_test": pretended.numpy(),
    }
    np.savez(workspace / "pretended.npz", **arrays)
    elsewhere = workspace / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "runs").symlink_to(workspace / "runs")
    as_true = suite(wanted.attack[1], targets=("mixup1",), data=f"npz:{workspace}/pretended.npz")
    evaluate(as_true, workspace=elsewhere)

    def predictions(folder: Path, labels: str) -> dict[float | None, list[int]]:
        return {
            cell.identity.eps_255: cell.rows["prediction"].to_pylist()
            for cell in attacked(folder)
            if cell.identity.labels == labels
        }

    found = predictions(workspace, "predicted")
    assert found == predictions(elsewhere, "true")
    wrong = (pretended != test.labels[:200]).numpy()
    assert wrong.sum() > 20
    for cell in attacked(workspace):
        assert cell.rows["label"].to_pylist() == test.labels[:200].tolist(), "the error is against the truth"
    if spec.name != "signs":
        true = predictions(workspace, "true")
        different = np.array(found[32]) != np.array(true[32])
        assert different[wrong].any()
        assert not different[~wrong].any() or spec.name == "pgd"


def test_bf16_crafts_and_float32_scores(workspace: Path) -> None:
    specs = [AttackSpec(name="fgsm", eps=(32,), precision=precision) for precision in ("bf16", "32")]
    evaluate(suite(*specs, limit=64), workspace=workspace)
    cells = {cell.identity.precision: cell for cell in attacked(workspace)}
    assert set(cells) == {"bf16", "32"}
    model = robustmix.load_model("erm1", workspace=workspace)
    x, y = digits(64)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = attacks.fgsm(model, x, y, 32 / 255)
        rough = model(x_adv).float().softmax(dim=1).amax(dim=1)
    assert not torch.equal(x_adv, attacks.fgsm(model, x, y, 32 / 255)), "bf16 flips some signs"
    exact = scored(model, x_adv)
    confidence = cells["bf16"].rows["confidence"].to_numpy()
    np.testing.assert_array_equal(cells["bf16"].rows["prediction"].to_numpy(), exact.argmax(dim=1).numpy())
    np.testing.assert_allclose(confidence, exact.softmax(dim=1).amax(dim=1).numpy(), rtol=1e-6)
    assert np.abs(confidence - rough.detach().numpy()).max() > 1e-4


# ---- other libraries' attacks ----------------------------------------------------------------------------


def test_another_library_s_attack_is_scored_by_ourselves(workspace: Path) -> None:
    pytest.importorskip("foolbox", reason="needs the extra 'attacks'")
    wanted = suite(AttackSpec(name="deepfool", steps=20), targets=("erm1", "mixup1"), limit=24)
    table = evaluate(wanted, workspace=workspace, batch_size=16)
    model, other = (robustmix.load_model(name, workspace=workspace) for name in ("erm1", "mixup1"))
    x_adv = torch.cat(
        [
            craft_foreign(
                "deepfool", model, x.contiguous(memory_format=torch.channels_last), y, None,
                norm="l2", steps=20, options={}, classes=10, seed=[0, number],
            )
            for number, (x, y) in enumerate(zip(*(part.split(16) for part in digits(24)), strict=True))
        ]
    )  # fmt: skip
    for cell in attacked(workspace):
        victim = model if cell.facts.target_name == "erm1" else other
        predicted = torch.cat([scored(victim, part) for part in x_adv.split(16)]).argmax(dim=1)
        assert cell.rows["prediction"].to_pylist() == predicted.tolist()
        length = (x_adv - digits(24)[0]).flatten(1).norm(dim=1)
        np.testing.assert_allclose(cell.rows["norm"].to_numpy(), length.numpy(), rtol=1e-5)
        assert len(cell.facts.batches) == 2
    row = table[(table["attack"] == "deepfool") & (table["role"] == "white")].iloc[0]
    assert math.isnan(row["eps_255"])
    assert 0 < row["norm_median_255"] < 1000
