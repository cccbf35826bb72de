"""The command line: every option reaches what it names, and every mistake is one clear line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import CENTRED, TINY, Call, environment, run

import robustmix
from robustmix import Recipe
from robustmix.cli import VERBS
from robustmix.spec.names import ATTACKS
from robustmix.store.cell_files import read_cells
from robustmix.store.cells import CellIdentity


@pytest.fixture
def runs(tiny: Path, tmp_path: Path) -> Path:
    """A workspace with the trained runs, without results."""
    (tmp_path / "runs").symlink_to(tiny / "runs")
    return tmp_path


BAD_INPUT = {
    "train --method mixpu": ["--method", "'mixpu'", "'erm', 'mixup', 'mixup-h'"],
    "train --model resnet99": ["--model", "'resnet99'", "resnet18"],
    "train --epochs many": ["--epochs", "'many'"],
    "train --epochs 0": ["--epochs", "'0'"],
    "train --lr nan": ["--lr", "'nan'"],
    "train --method erm --alpha 1": ["alpha", "erm", "mixup"],
    "train --data digit": ["'digit'", "digits", "cifar10", "folder:", "npz:"],
    "train --data folder:nowhere": ["folder:nowhere", "no such folder"],
    "train --data npz:nothing.npz": ["nothing.npz"],
    "train --name a/b": ["'a/b'", "letters"],
    "train --name ..": ["'..'", "letters"],
    "train --recipe zhang": ["'zhang'", "zhang-cifar10"],
    "train --frob 1": ["--frob"],
    "attack --source nobody": ["'nobody'", "erm1"],
    "attack --source erm1 --target nobod*": ["'nobod*'", "erm1"],
    "attack --source erm1 --attack fgsn": ["'fgsn'", "'fgsm'"],
    "attack --source erm1 --eps 0.0157": ["--eps", "'0.0157'", "4.003", "0.0157/255"],
    "attack --source erm1 --eps=-1": ["--eps", "'-1'"],
    "attack --source erm1 --eps nan": ["--eps", "'nan'"],
    "attack --source erm1 --eps 4/256": ["--eps", "'4/256'", "255"],
    "attack --source erm1 --eps 8 --steps 3 --step-size 2": ["3 steps", "2/255", "8/255"],
    "attack --source erm1 --data nothing": ["'nothing'", "digits"],
    "attack --source erm1 --suite demo --eps 4": ["--eps", "--suite"],
    "attack": ["--source"],
    "attack --source erm1 --attack fgsm --steps 3": ["--steps belongs to ifgsm, mifgsm, pgd, ", "fgsm takes none"],
    "attack --source erm1 --attack fgsm --step-size 3": ["--step-size belongs to ifgsm, mifgsm, pgd; fgsm takes none"],
    "attack --source erm1 --decay 1": ["--decay belongs to mifgsm; fgsm and ifgsm take none"],
    "attack --source erm1 --restarts 2": ["--restarts belongs to pgd, signs, noise;"],
    "attack --source erm1 --seed 2": ["--seed belongs to pgd, signs, noise, autoattack, square, hopskipjump;"],
    "attack --source erm1 --attack pgd --queries 9": ["--queries belongs to square;"],
    "attack --source erm1 --attack cw --eps 9": ["--eps belongs to fgsm,", "cw takes none"],
    "attack --source erm1 --attack signs --loss margin": ["--loss belongs to fgsm, ifgsm, mifgsm, pgd;"],
    "attack --source erm1 --attack mifgsm --impl foolbox": ["--impl belongs to fgsm, ifgsm, pgd;"],
    "attack --source erm1 --attack cw --norm linf": ["cw is an attack in l2", "'linf'"],
    "attack --source erm1 --impl foolbox --loss margin": ["'foolbox'", "loss ce"],
    "attack --source erm1 --norm l1": ["--norm", '"l1"', '"linf", "l2"'],
    "attack --source erm1 --loss hinge": ["--loss", '"hinge"', '"logodds"'],
    "attack --source erm1 --labels guessed": ["--labels", '"guessed"', '"predicted"'],
    "attack --source erm1 --precision fp16": ["--precision", '"fp16"', '"bf16"'],
    "attack --source erm1 --impl art": ["--impl", '"art"', '"foolbox"'],
    "attack --source erm1 --eps 300": ["300/255", "255/255"],
    "attack --source erm1 --attack ifgsm --steps 3 --step-size kurakin": ["'kurakin'", "leave 'steps' out"],
    "attack --source erm1 --attack ifgsm --step-size slow": ["--step-size", "'slow'", "kurakin", "eps/steps"],
    "attack --source erm1 --attack pgd --restarts 0": ["restarts", "1"],
    "attack --source erm1 --attack square --queries 0": ["queries", "1"],
    "attack --source erm1 --attack mifgsm --decay=-1": ["decay", "0"],
    "attack --source erm1 --limit 0": ["limit", "1"],
    "attack --source erm1 --batch-size 0": ["batch size 0"],
    "attack --source erm1 --batch-size 99999999999999999999": ["batch size 99999999999999999999", "2147483647"],
    "attack --source erm1 --normalize cifar10": ["--normalize cifar10 has no use", "FILE.py:FACTORY"],
    "attack --source none.py:make --data digits": ["none.py"],
    "attack --source none.py:make": ["--data"],
    "attack --source toolbox:net --data digits": ["'toolbox:net'", "torchvision:NAME", "FILE.py:FACTORY"],
    "attack --source erm1 --devices 0": ["--devices 0"],
    "attack --source erm1 --workers=-1": ["workers -1"],
    "attack --source erm1 --stream": ["'digits'", "folder:"],
    "attack --source erm1 --suite demo --compile": ["--compile", "--suite"],
    "attack --source erm1 --suite demo --step-size 3": ["--step-size", "--suite"],
    "attack --source erm1 --suite demo --attack fgsm": ["--attack", "--suite"],
    "run nothing": ["'nothing'", "demo"],
    "run demo --method erm": ["--method"],
    "report --suite nothing": ["'nothing'", "demo"],
    "report ../x": ["'../x'"],
    "validate nothing.toml": ["nothing.toml"],
    "frobnicate": ["frobnicate", "train"],
}


@pytest.mark.parametrize("command", BAD_INPUT)
def test_bad_input_is_one_clear_line_and_leaves_nothing(command: str, call: Call, runs: Path, tiny: Path) -> None:
    before = sorted(tiny.rglob("*"))
    done = call(*command.split())
    assert done.code == 2, done.err
    *remarks, line = done.err.splitlines()
    assert line.startswith("robustmix: error: ")
    assert not [remark for remark in remarks if "rror" in remark]
    for part in BAD_INPUT[command]:
        assert part in line
    assert [path.name for path in runs.iterdir()] == ["runs"]
    assert sorted(tiny.rglob("*")) == before


def test_bad_input_of_a_real_process_is_one_line_and_code_2(runs: Path) -> None:
    done = run("attack", "--source", "nobody", cwd=runs)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("robustmix: error: unknown run 'nobody'")


def test_a_truncated_checkpoint_is_one_clear_line(call: Call, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/erm1"
    folder.mkdir(parents=True)
    for file in (tiny / "runs/erm1").iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[: len(data) // 2] if file.name == "model.safetensors" else data)
    done = call("attack", "--source", "erm1", "--eps", "32")
    assert done.code == 2
    assert "model.safetensors is truncated" in done.err.splitlines()[-1]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_no_torch_and_nothing_slow(verb: str) -> None:
    arguments = [verb, "--help"] if verb else ["--help"]
    code = (
        f"import sys; sys.argv = ['robustmix', *{arguments!r}]\n"
        "from robustmix.cli import main\n"
        "try: main()\nexcept SystemExit as stop: code = stop.code\n"
        "slow = {'torch', 'torchvision', 'pandas', 'pyarrow', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "print(f'imported {sorted(slow)} exit {code}')"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=environment())
    assert done.stdout.splitlines()[-1] == "imported [] exit 0", done.stderr
    assert "Usage: robustmix" in done.stdout
    if verb == "attack":
        assert all(attack in done.stdout for attack in ATTACKS)


@pytest.mark.parametrize("arguments", [["results"], ["results", "--format", "csv"], ["ls"], ["validate", "demo"]])
def test_verbs_that_only_read_files_import_no_torch(arguments: list[str], tiny: Path) -> None:
    code = (
        f"import sys; sys.argv = ['robustmix', *{arguments!r}]\n"
        "from robustmix.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=environment(), cwd=tiny)
    assert done.returncode == 0, done.stderr


def test_a_suite_is_refused_before_anything_is_trained_for_it(call: Call, tmp_path: Path) -> None:
    demo = (Path(__file__).parents[1] / "attacks/demo.toml").read_text(encoding="utf-8")
    wrong = {
        "experiment.toml": (demo.replace("zhang-table3", "zang-table3"), "zang-table3"),
        "my suite.toml": (demo, "'my suite'"),
        "glob.toml": (demo.replace("headline_eps", 'sources = ["e*", "zz*"]\nheadline_eps'), "'zz*'"),
    }
    for name, (text, part) in wrong.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        for verb in ("validate", "run"):
            done = call(verb, name)
            assert (done.code, done.out) == (2, ""), done.err
            assert part in done.err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_help_says_what_the_defaults_mean() -> None:
    assert "Zhang et al. 2018" in run("train", "--help", cwd=Path()).stdout
    assert "robustmix-demo" in run("demo", "--help", cwd=Path()).stdout
    assert "replace those of every recipe" in run("run", "--help", cwd=Path()).stdout


def test_version() -> None:
    assert run("--version", cwd=Path()).stdout.strip() == robustmix.__version__


def test_attack_prints_a_table_echoes_budgets_and_caches(call: Call, runs: Path) -> None:
    flags = ["attack", "--source", "erm1", "--target", "mixup1", "erm1", "--eps", "4", "0.5/255", "--attack", "bim"]
    plan = call(*flags, "--dry-run")
    assert "6 cells on 360 examples of digits: 0 cached, 6 missing" in plan.out
    assert not (runs / "results").exists()
    first = call(*flags)
    assert first.code == 0, first.err
    assert "eps 4/255 = 0.01569" in first.err
    assert "below one grey level of digits" in first.err
    assert "computed now: 6 of 6 cells" in first.err
    assert "ifgsm-10" in first.out
    assert "0.5/255" in first.out
    again = call(*flags, "--dry-run")
    assert "6 cached, 0 missing" in again.out
    assert "computed now: 0 of 6 cells" in call(*flags).err
    quiet = call(*flags, "--quiet")
    assert (quiet.out, quiet.err) == (first.out, "")


def test_a_dry_run_says_what_each_unit_costs(call: Call, runs: Path) -> None:
    flags = "--eps 16 32 --steps 3 --labels predicted --save-images --limit 20 --dry-run"
    done = call("attack", "--source", "erm*", "--attack", "ifgsm", "pgd", "deepfool", *flags.split())
    assert done.code == 0, done.err
    header, _, *rows, last = done.out.splitlines()[1:]
    assert header.split() == ["unit", "eps", "(1/255)", "cells", "missing", "forward", "backward"]
    found = {line[:20].strip(): line[20:].split() for line in rows}
    assert found == {
        "clean predictions": ["0", "2", "2", "0"],
        # Shared first gradient; two targets, each scored on the images before and after rounding.
        "ifgsm from erm1": ["16,", "32", "4", str(5 + 2 * 4), "5"],
        "ifgsm from erm2": ["16,", "32", "4", str(5 + 2 * 4), "5"],
        # One more look where the labels are predicted.
        "pgd from erm1": ["16,", "32", "4", str(6 + 1 + 2 * 4), "6"],
        "pgd from erm2": ["16,", "32", "4", str(6 + 1 + 2 * 4), "6"],
        "deepfool from erm1": ["-", "2", "?", "?"],
        "deepfool from erm2": ["-", "2", "?", "?"],
    }
    assert last.startswith("passes are per example; about ")
    assert last.endswith("judged by one timed batch; other libraries' attacks not counted")
    assert sorted(path.name for path in runs.iterdir()) == ["runs"]


# ---- every option reaches the cells ----------------------------------------------------------------------

REACHES = {
    "--attack fgsm --eps 32 --loss logodds --norm l2": [
        {"attack": "fgsm", "loss": "logodds", "norm": "l2", "eps_255": 32, "steps": 1, "step_255": 32}
    ],
    "--attack pgd --eps 32 --steps 2 --restarts 3 --seed 5 --loss dlr": [
        {"attack": "pgd", "steps": 2, "step_255": 40, "restarts": 3, "seed": 5, "loss": "dlr"}
    ],
    "--attack mifgsm --eps 32 --steps 2 --decay 0.25 --step-size 20": [
        {"attack": "mifgsm", "steps": 2, "step_255": 20, "options": {"decay": 0.25}}
    ],
    "--attack bim --eps 4 --step-size kurakin": [{"attack": "ifgsm", "steps": 5, "step_255": 1, "restarts": 1}],
    "--attack bim --eps 32 --steps 4 --step-size 2.5eps/steps": [{"attack": "ifgsm", "steps": 4, "step_255": 20}],
    "--attack bim --eps 32 --steps 4 --step-size 8.5/255": [{"attack": "ifgsm", "steps": 4, "step_255": 8.5}],
    "--attack bim signs --eps 32 --steps 2 --labels predicted --precision bf16": [
        {"attack": "ifgsm", "labels": "predicted", "precision": "bf16", "steps": 2},
        {"attack": "signs", "labels": "predicted", "precision": "bf16", "steps": 1},
    ],
    "--attack fgsm --eps 32 --impl torchattacks": [{"attack": "fgsm", "impl": "torchattacks"}],
    "--attack square --eps 32 --queries 3 --seed 1": [{"attack": "square", "options": {"queries": 3}, "seed": 1}],
    "--attack deepfool fgsm --eps 32 --steps 2": [
        {"attack": "deepfool", "eps_255": None, "norm": "l2", "steps": 2},
        {"attack": "fgsm", "eps_255": 32, "norm": "linf", "steps": 1},
    ],
}


@pytest.mark.parametrize("options", REACHES)
def test_options_reach_the_attacks_that_take_them(options: str, call: Call, runs: Path) -> None:
    if any(word in options for word in ("torchattacks", "square")):
        pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    if "deepfool" in options:
        pytest.importorskip("foolbox", reason="needs the extra 'attacks'")
    done = call("attack", "--source", "erm1", "--limit", "8", "--batch-size", "4", *options.split())
    assert done.code == 0, done.err
    cells = [cell.identity for cell in read_cells(runs / "results/cells")]
    found = sorted((cell for cell in cells if cell.source), key=lambda cell: cell.attack)
    usual = {"loss": "ce", "labels": "true", "precision": "32", "impl": "robustmix", "restarts": 1, "seed": 0}
    assert len(found) == len(REACHES[options])
    for cell, expected in zip(found, REACHES[options], strict=True):
        fields = {key: getattr(cell, key) for key in {**usual, **expected}}
        assert fields == {**usual, **expected}
        assert cell.batch_size == 4
        assert not cell.compiled


def test_the_options_of_which_nothing_was_said_are_the_papers(call: Call, runs: Path) -> None:
    call("attack", "--source", "erm1", "--limit", "8", "--eps", "32")
    found = {cell.identity.attack: cell.identity for cell in read_cells(runs / "results/cells")}
    assert set(found) == {"clean", "fgsm", "ifgsm"}
    expected = CellIdentity(
        source=found["clean"].target,
        target=found["clean"].target,
        inputs=found["clean"].inputs,
        attack="ifgsm",
        eps_255=32,
        steps=10,
        step_255=3.2,
        batch_size=256,
    )
    assert found["ifgsm"] == expected
    assert found["fgsm"] == expected.model_copy(update={"attack": "fgsm", "steps": 1, "step_255": 32})


NETS = (
    CENTRED
    + """
class Two(Centred):
    def forward(self, x):
        return self.network(x)[:, :2]
"""
)


def test_anybody_s_model_crafts_and_is_scored(call: Call, runs: Path, tiny: Path) -> None:
    """Behind the normalisation that it was made for it is the run that is inside."""
    (runs / "net.py").write_text(NETS.format(workspace=str(tiny)))
    flags = "--source net.py:Centred mixup1 --target net.py:Centred erm1 --normalize 0.5/0.5 --data digits"
    done = call("attack", *flags.split(), "--attack", "fgsm", "--eps", "16", "--limit", "60", "--save-images")
    assert done.code == 0, done.err
    rows = json.loads(call("results", "--format", "json").out)
    found = {(row["source"], row["target"]): row for row in rows}
    assert set(found) == {
        (source, target) for source in (None, "net.py:Centred", "mixup1") for target in ("net.py:Centred", "erm1")
    }
    own, inside = found["net.py:Centred", "net.py:Centred"], found["mixup1", "net.py:Centred"]
    assert (own["role"], inside["role"]) == ("white", "transfer")
    assert abs(own["errors"] - inside["errors"]) <= 2, "the same network, but for rounding"
    assert own["errors"] > found[None, "net.py:Centred"]["errors"] + 5
    assert own["error_uint8"] == pytest.approx(own["error"], abs=0.05)
    assert own["source_method"] is None
    assert inside["source_method"] == "mixup"


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        ("--attack fgsm --loss dlr", "the loss 'dlr' needs three classes, the model tells 2 apart"),
        ("--attack autoattack", "autoattack needs at least 4 classes"),
    ],
)
def test_what_needs_more_classes_is_one_line_before_anything_is_computed(
    refused: str, says: str, call: Call, runs: Path, tiny: Path
) -> None:
    if "autoattack" in refused:
        pytest.importorskip("torchattacks", reason="needs the extra 'attacks'")
    (runs / "net.py").write_text(NETS.format(workspace=str(tiny)))
    data = robustmix.load_data("digits")
    arrays = {}
    for half, split in (("train", data.train), ("test", data.test)):
        chosen = split.labels < 2
        arrays |= {f"x_{half}": split.images[chosen].numpy(), f"y_{half}": split.labels[chosen].numpy()}
    np.savez(runs / "two.npz", **arrays)
    flags = ["attack", "--source", "net.py:Two", "--data", "npz:two.npz", "--eps", "32"]
    for done in (call(*flags, *refused.split()), call(*flags, *refused.split(), "--dry-run")):
        assert done.code == 2
        assert says in done.err.splitlines()[-1]
    assert not (runs / "results").exists()
    assert call(*flags, "--attack", "fgsm", "--loss", "margin").code == 0


def test_a_suite_may_be_made_from_other_sources_on_fewer_examples(call: Call, runs: Path) -> None:
    (runs / "attacks").mkdir()
    text = 'version = 1\ntitle = "t"\nsources = "mixup1"\n[[attack]]\nname = "signs"\neps = [16]\n'
    (runs / "attacks/mine.toml").write_text(text)
    done = call("attack", "--suite", "mine", "--source", "erm1", "--target", "erm2", "--limit", "9", "--save-images")
    assert done.code == 0, done.err
    cells = {cell.identity.attack: cell for cell in read_cells(runs / "results/cells")}
    assert (cells["signs"].facts.source_name, cells["signs"].facts.target_name) == ("erm1", "erm2")
    assert cells["signs"].rows.num_rows == 9
    assert len(list((runs / "results/gallery").glob("*.npy"))) == 1


# ---- tables and lists ------------------------------------------------------------------------------------


def test_results_in_every_format(call: Call, runs: Path) -> None:
    call("attack", "--source", "erm1", "--target", "mixup1", "--eps", "32", "--attack", "fgsm")
    rows = json.loads(call("results", "--format", "json").out)
    assert [row["role"] for row in rows] == ["clean", "transfer"]
    assert rows[1]["errors"] / rows[1]["n"] == pytest.approx(rows[1]["error"])
    csv = call("results", "--format", "csv").out.splitlines()
    assert csv[0].split(",")[:3] == ["data", "source", "target"]
    markdown = call("results", "--format", "markdown").out
    assert f"| {rows[1]['error']:.1%} |" in markdown
    assert f"{rows[1]['error']:.1%}" in call("results").out


def test_weights_that_lost_their_name_are_shown_only_on_demand(call: Call, tmp_path: Path) -> None:
    short = {**TINY, "epochs": 1, "limit": 64}
    for seed in (1, 2):
        robustmix.train(Recipe(seed=seed, **short), name="x", workspace=tmp_path, overwrite=True)
        call("attack", "--source", "x", "--attack", "fgsm", "--eps", "32", "--limit", "50")
    named = call("results", "--format", "csv").out.splitlines()
    everything = call("results", "--format", "csv", "--all").out.splitlines()
    assert len(named) == 1 + 2
    assert len(everything) == 1 + 4


@pytest.mark.parametrize("verb", ["results", "report"])
def test_a_damaged_cell_is_set_aside_by_what_reads_it(verb: str, call: Call, runs: Path) -> None:
    flags = "attack --source erm1 --attack fgsm --eps 16 32 --limit 40"
    call(*flags.split())
    (path,) = (
        runs / f"results/cells/{cell.key}.parquet"
        for cell in read_cells(runs / "results/cells")
        if cell.identity.eps_255 == 16
    )
    path.write_bytes(path.read_bytes()[:500])
    done = call(verb)
    assert done.code == 0, done.err
    assert f"it is set aside as {path.stem}.damaged" in done.err
    assert (path.exists(), path.with_suffix(".damaged").exists()) == (False, True)
    if verb == "results":
        assert "32/255" in done.out
        assert "16/255" not in done.out
    assert "computed now: 1 of 3 cells" in call(*flags.split()).err
    again = call(verb)
    assert (again.code, "set aside" in again.err) == (0, False)
    assert path.exists()


def test_ls_lists_runs_with_their_figures(call: Call, tiny: Path) -> None:
    text = call("ls", cwd=tiny).out
    for word in ("erm1", "mixup2", "finished", "digits", "preact_resnet18", "fgsm", "demo", "zhang-cifar10"):
        assert word in text


def test_an_output_that_is_not_read_to_its_end_is_no_error(tiny: Path) -> None:
    command = f"{sys.executable} -m robustmix ls | head -n 1"
    done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, env=environment(), cwd=tiny)
    assert "Traceback" not in done.stderr
