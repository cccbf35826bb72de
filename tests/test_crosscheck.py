"""The comparison with the peers tells agreement from difference: in the API, on the command line, in the demo."""

from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from tiny import CENTRED, FAILING
from torch import Tensor, nn

import robustmix
from robustmix import AttackSpec, Suite, attacks
from robustmix.cli.crosscheck import crosscheck as verb
from robustmix.cli.options import Machine, Place
from robustmix.crosscheck import Comparison, crosscheck, crosscheck_line
from robustmix.errors import EvaluationError, SpecError, StoreError
from robustmix.evaluation import evaluate
from robustmix.store.cell_files import cell_path, read_cells, write_cell
from robustmix.store.workspace import Workspace

pytest.importorskip("torchattacks", reason="pip install robustmix[attacks]")
pytest.importorskip("foolbox", reason="pip install robustmix[attacks]")

CPU = Machine(device="cpu")
OURS, PEERS = "robustmix", ("torchattacks", "foolbox")


@pytest.fixture
def half_as_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our FGSM goes half as far as it should."""
    right = attacks.fgsm
    monkeypatch.setattr(attacks, "fgsm", lambda model, x, y, eps: right(model, x, y, eps / 2))


def digits(count: int) -> tuple[Tensor, Tensor]:
    return robustmix.load_data("digits").test.in_memory().gather(torch.arange(count), torch.device("cpu"))


def share(which: Tensor) -> float:
    return float(which.double().mean())


def compare(tiny: Path, name: Any, x: Tensor, y: Tensor) -> list[Comparison]:
    model = robustmix.load_model("mixup1", workspace=tiny)
    batches = zip(x.split(32), y.split(32), strict=True)
    return crosscheck(model, batches, name=name, eps=32 / 255, steps=3, length=16 / 255)


@pytest.mark.parametrize("name", ["fgsm", "ifgsm"])
def test_ours_and_both_peers_agree_to_the_pixel(tiny: Path, name: str) -> None:
    x, y = digits(80)
    found = compare(tiny, name, x, y)
    model = robustmix.load_model("mixup1", workspace=tiny)
    x_adv = attacks.fgsm(model, x, y, 32 / 255) if name == "fgsm" else attacks.ifgsm(model, x, y, 32 / 255, 3, 16 / 255)
    error = share(model(x_adv).argmax(1) != y)
    assert error > 0.5
    assert found == [Comparison(by, error, 0, 0, 0) for by in (OURS, *PEERS)]


@pytest.mark.usefixtures("half_as_far")
def test_a_difference_is_counted(tiny: Path) -> None:
    x, y = digits(64)
    ours, *theirs = compare(tiny, "fgsm", x, y)
    model = robustmix.load_model("mixup1", workspace=tiny)
    near, far = (attacks.fgsm(model, x, y, eps) for eps in (32 / 255, 64 / 255))
    by_near, by_far = model(near).argmax(1), model(far).argmax(1)
    assert ours == Comparison(OURS, share(by_near != y), 0, 0, 0)
    for one, by in zip(theirs, PEERS, strict=True):
        assert (one.by, one.error) == (by, share(by_far != y))
        assert one.pixels == share(near != far) > 0.5
        assert one.predictions == share(by_near != by_far) > 0.1
        assert one.largest == pytest.approx(16 / 255)


class Known(nn.Module):
    """A network with numbers for some images only, told by their sums."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("sums", self.summed(x))

    def summed(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.summed(x) == self.get_buffer("sums"), self.network(x), torch.nan)


def test_no_number_is_no_prediction(tiny: Path) -> None:
    x, y = digits(32)
    model = Known(robustmix.load_model("mixup1", workspace=tiny), x)
    with pytest.raises(EvaluationError, match="a logit on the images of robustmix is NaN or infinite"):
        crosscheck(model, [(x, y)], name="fgsm", eps=32 / 255, steps=1, length=1)


def test_peers_that_are_missing_are_left_out_and_without_any_it_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: there(name) if name == "foolbox" else None)
    assert [one.by for one in compare(tiny, "fgsm", *digits(8))] == [OURS, "foolbox"]
    assert verb(target=["erm1"], eps=["16"], limit=8, machine=CPU, place=Place(tiny)) == 0
    printed = capsys.readouterr()
    assert "warning: torchattacks is left out: it is not installed (pip install 'robustmix[attacks]')" in printed.err
    assert "foolbox is left out" not in printed.err
    assert "torchattacks" not in printed.out
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"not installed: pip install 'robustmix\[attacks\]'$"):
        verb(target=["erm1"], eps=["16"], limit=8, machine=CPU, place=Place(tiny))
    assert "cross-check: not made, torchattacks and foolbox not installed" in crosscheck_line(Workspace(tiny), "erm1")


def test_the_table_on_the_command_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = verb(target=["erm*"], steps=3, limit=32, machine=CPU, place=Place(tiny, quiet=True))
    out = capsys.readouterr().out
    head, _, *rows = [line.split() for line in out.splitlines() if line.strip()]
    assert " ".join(head) == (
        "target attack eps by error pixels that differ predictions that differ largest difference"
    )
    budgets = ["8/255", "16/255", "24/255", "32/255", "48/255", "64/255"]
    wanted = [
        (run, a, e, by)
        for run in ("erm1", "erm2")
        for a in ("fgsm", "ifgsm-3")
        for e in budgets
        for by in [OURS, *PEERS]
    ]
    assert [tuple(row[:4]) for row in rows] == wanted
    assert all(row[5:] == ["0", "0", "0"] for row in rows)
    assert len({row[4] for row in rows}) > 5
    assert code == 0


@pytest.mark.usefixtures("half_as_far")
def test_a_prediction_that_differs_is_exit_code_1(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = verb(target=["erm1"], attack=["fgsm"], eps=["64"], limit=64, machine=CPU, place=Place(tiny, quiet=True))
    assert code == 1
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert (last[3], last[7]) == ("foolbox", "0.13")
    assert float(last[6].rstrip("%")) > 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"attack": ["pgd"]},
            "'pgd' cannot be cross-checked: only fgsm and ifgsm are deterministic and the same in all",
        ),
        ({"attack": ["fgsn"]}, "did you mean 'fgsm'"),
        ({"attack": ["fgsm"], "steps": 3}, "--steps belongs to ifgsm"),
        ({"attack": ["fgsm"], "step_size": "3"}, "--step-size belongs to ifgsm"),
        ({"eps": ["0.5"]}, "--eps: budget '0.5' is ambiguous"),
        ({"eps": ["16"], "steps": 2, "step_size": "4"}, "reach only 8/255"),
        ({"limit": 0}, "limit = 0: input should be greater than or equal to 1"),
        ({"batch_size": 0}, "batch size 0 must be at least 1"),
        ({"batch_size": 2**70}, "batch size 1180591620717411303424 must be .* at most 2147483647"),
        ({"target": ["erm9"]}, "unknown run 'erm9'"),
        ({"target": ["net.py:Centred"]}, "--data is missing"),
        ({"normalize": "0.5/0.5"}, "--normalize 0.5/0.5 has no use"),
    ],
)
def test_bad_options_are_one_line(tiny: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        verb(**{"target": ["erm1"], "machine": CPU, "place": Place(tiny), **options})
    assert "\n" not in str(caught.value)


def test_anybody_s_model_is_checked_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind the normalisation that it was made for it is the run that is inside."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(CENTRED.format(workspace=str(tiny)))
    given: dict[str, Any] = {"attack": ["fgsm"], "eps": ["16"], "limit": 40, "machine": CPU}

    def errors(**options: Any) -> list[str]:
        assert verb(**given, **options) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
        assert [(row[0], row[3], row[6]) for row in rows] == [(options["target"][0], by, "0") for by in (OURS, *PEERS)]
        return [row[4] for row in rows]

    foreign = errors(target=["net.py:Centred"], normalize="0.5/0.5", data="digits", place=Place(tmp_path, quiet=True))
    assert foreign == errors(target=["mixup1"], place=Place(tiny, quiet=True))
    verb(**given, target=["net.py:Centred"], normalize="0.5/0.01", data="digits", place=Place(tmp_path))
    assert "with --normalize 0.5/0.5 it would be" in capsys.readouterr().err


@pytest.mark.parametrize(("net", "way_out"), [("Greedy", "a smaller --batch-size"), ("Enormous", "--device cpu")])
def test_memory_that_runs_out_is_one_line(net: str, way_out: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FAILING.format(workspace=str(tiny)))
    given: dict[str, Any] = {"target": [f"{tmp_path}/net.py:{net}"], "data": "digits", "eps": ["16"], "limit": 101}
    with pytest.raises(EvaluationError, match=f"^memory ran out; try {way_out}$"):
        verb(**given, machine=CPU, place=Place(tmp_path))


def test_the_line_is_of_the_examples_that_were_attacked(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    wanted = Suite(version=1, title="t", sources=("erm1",), attack=(AttackSpec(name="ifgsm", eps=(32,)),), limit=20)
    evaluate(wanted, workspace=tmp_path)
    assert "I-FGSM-10 on erm1" in crosscheck_line(Workspace(tmp_path), "erm1")
    for cell in read_cells(tmp_path / "results/cells"):
        other = cell.identity.model_copy(update={"inputs": "0" * 64})
        cell_path(tmp_path / "results/cells", cell.identity).unlink()
        write_cell(tmp_path / "results/cells", replace(cell, identity=other))
    with pytest.raises(StoreError, match="digits has other test examples than run 'erm1' was attacked on"):
        crosscheck_line(Workspace(tmp_path), "erm1")


def test_the_line_compares_a_cell_with_both_peers(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    with pytest.raises(StoreError, match="no white-box ifgsm cell of run 'erm1'"):
        crosscheck_line(Workspace(tmp_path), "erm1")
    ifgsm = AttackSpec(name="ifgsm", eps=(16, 32), steps=4)
    # Another loss ascends otherwise: no cell of it is one that the peers could reproduce.
    others = [AttackSpec(name="ifgsm", eps=(64,), steps=4, loss="margin"), AttackSpec(name="fgsm", eps=(64,))]
    evaluate(Suite(version=1, title="test", sources=("erm1",), attack=(ifgsm, *others)), workspace=tmp_path)
    # As an audit leaves them behind: the same attack with more steps, or on a few of the examples.
    for eps, steps, limit in (((40, 48), 6, None), ((20, 24), 2, 50)):
        repeated = AttackSpec(name="ifgsm", eps=eps, steps=steps)
        evaluate(Suite(version=1, title="t", sources=("erm1",), attack=(repeated,), limit=limit), workspace=tmp_path)
    line = crosscheck_line(Workspace(tmp_path), "erm1")
    assert "I-FGSM-4 on erm1 in the white box, eps 32/255 = 0.1255" in line
    assert line.count("other predictions on 0") == 2
    for cell in read_cells(tmp_path / "results/cells"):
        wrong = cell.rows.set_column(2, "prediction", pc.add(cell.rows["prediction"], 1).cast("int32"))
        write_cell(tmp_path / "results/cells", replace(cell, rows=wrong))
    assert crosscheck_line(Workspace(tmp_path), "erm1").count("other predictions on 360") == 2
