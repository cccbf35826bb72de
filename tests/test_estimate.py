"""What a dry run says of the time, and that it says no less than the attack where it cannot say it."""

import math
from pathlib import Path

import pytest
import torch
from tiny import FAILING, Call
from torch import Tensor

from robustmix import AttackSpec, Suite, estimate
from robustmix.errors import EvaluationError
from robustmix.estimate import estimate_seconds
from robustmix.planning import Plan, make_plan
from robustmix.store.workspace import Workspace

CPU = torch.device("cpu")

NETS = (
    FAILING
    + """
class Numb(Net):
    def forward(self, x):
        with torch.no_grad():
            return self.network(x)
"""
)


@pytest.fixture
def workspace(tiny: Path, tmp_path: Path) -> Path:
    """The trained runs, without results, and code of somebody's."""
    (tmp_path / "runs").symlink_to(tiny / "runs")
    (tmp_path / "net.py").write_text(NETS.format(workspace=str(tiny)))
    return tmp_path


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that were timed without a gradient."""
    found: list[int] = []
    right = estimate.score

    def noted(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found.append(len(x))
        return right(model, x, y)

    monkeypatch.setattr(estimate, "score", noted)
    return found


def plan_of(workspace: Path, source: str, *attacks: AttackSpec, batch_size: int = 256, limit: int = 300) -> Plan:
    sources = source if source == "erm1" else f"{workspace}/net.py:{source}"
    fields = {"version": 1, "title": "t", "sources": sources, "attack": attacks, "data": "digits", "limit": limit}
    return make_plan(Suite.model_validate(fields), Workspace(workspace), batch_size=batch_size)


FGSM = AttackSpec(name="fgsm", eps=(16,))


@pytest.mark.parametrize(("size", "limit", "timed"), [(256, 300, 256), (1000, 300, 256), (32, 300, 32), (256, 40, 40)])
def test_batches_are_as_large_as_those_of_the_work(
    size: int, limit: int, timed: int, workspace: Path, sizes: list[int]
) -> None:
    assert 0 < estimate_seconds(plan_of(workspace, "erm1", FGSM, batch_size=size, limit=limit), CPU) < math.inf
    assert set(sizes) == {timed}


def test_gradients_and_other_passes_are_counted_apart(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a prediction takes 1 s and a gradient 10 s a batch."""
    clock = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])

    def taking(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(estimate, "score", lambda model, x, y: taking(1))
    monkeypatch.setattr(estimate.Victim, "gradient", lambda victim, x: taking(10))
    plan = plan_of(workspace, "erm1", FGSM, AttackSpec(name="ifgsm", eps=(16,), steps=3), batch_size=20, limit=200)
    forward, backward = (sum(getattr(unit, what) for unit in plan.units) for what in ("forward", "backward"))
    assert (forward, backward) == (1 + 2 + 4, 1 + 3)
    assert estimate_seconds(plan, CPU) == pytest.approx(10 * (3 * 1 + 4 * 10))
    # Ten batches: of three processes one has four.
    assert estimate_seconds(plan, CPU, 3) == pytest.approx(4 * (3 * 1 + 4 * 10))
    assert estimate_seconds(plan, CPU, 99) == pytest.approx(3 * 1 + 4 * 10)


def test_where_memory_runs_out_the_timed_batch_is_halved(workspace: Path, sizes: list[int]) -> None:
    assert estimate_seconds(plan_of(workspace, "Greedy", FGSM), CPU) > 0
    assert list(dict.fromkeys(sizes)) == [256, 128, 64]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("Numb", "the model's output has no gradient with respect to its input: it runs under no_grad"),
        ("Insatiable", "^memory ran out with a single example$"),
        ("Enormous", "^memory ran out; try --device cpu$"),
        ("Probable", r"gives probabilities .nothing outside"),
    ],
)
def test_what_the_attack_refuses_is_refused_in_the_same_words(net: str, message: str, workspace: Path) -> None:
    with pytest.raises(EvaluationError, match=message) as caught:
        estimate_seconds(plan_of(workspace, net, FGSM), CPU)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_gradient_is_timed_for_what_needs_none(workspace: Path) -> None:
    assert estimate_seconds(plan_of(workspace, "Numb", AttackSpec(name="signs", eps=(16,))), CPU) > 0


def test_other_errors_are_not_taken_for_exhausted_memory(workspace: Path) -> None:
    with pytest.raises(EvaluationError, match=r"RuntimeError: no kernel for this$"):
        estimate_seconds(plan_of(workspace, "Broken", FGSM), CPU)


@pytest.mark.parametrize("attack", ["fgsm --eps 16", "cw", "signs cw"])
def test_a_dry_run_of_a_model_without_a_gradient_is_one_line(attack: str, workspace: Path, call: Call) -> None:
    if "cw" in attack:
        pytest.importorskip("foolbox", reason="needs the extra 'attacks'")
    flags = f"--source net.py:Numb --data digits --limit 40 --attack {attack} --dry-run"
    done = call("attack", *flags.split())
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(
        "robustmix: error: net.py:Numb cannot be attacked: the model's output has no gradient"
    )


def test_a_dry_run_says_that_compiling_comes_on_top(workspace: Path, call: Call) -> None:
    flags = "attack --source erm1 --limit 40 --attack fgsm --eps 16 --dry-run"
    assert "compiling" not in call(*flags.split()).out
    assert " s on cpu, without compiling, judged by" in call(*flags.split(), "--compile", "--device", "cpu").out
    assert "after about a minute per network" in " ".join(call("attack", "--help").out.replace("│", " ").split())
