import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import environment, run

import robustmix
from robustmix.cli import VERBS

BAD_INPUT = {
    "train --method mixpu": ["--method", "'mixpu'", "'erm' or 'mixup'"],
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
    "run nothing": ["'nothing'", "demo"],
    "run demo --method erm": ["--method"],
    "report --suite nothing": ["'nothing'", "demo"],
    "report ../x": ["'../x'"],
    "validate nothing.toml": ["nothing.toml"],
    "frobnicate": ["frobnicate", "train"],
}


@pytest.mark.parametrize("command", BAD_INPUT)
def test_bad_input_is_one_clear_line_and_leaves_nothing(command: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    before = sorted(tiny.rglob("*"))
    done = run(*command.split(), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("robustmix: error: ")
    assert "Traceback" not in done.stderr
    for part in BAD_INPUT[command]:
        assert part in line
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert sorted(tiny.rglob("*")) == before


def test_a_truncated_checkpoint_is_one_clear_line(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/erm1"
    folder.mkdir(parents=True)
    for file in (tiny / "runs/erm1").iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[: len(data) // 2] if file.name == "model.safetensors" else data)
    done = run("attack", "--source", "erm1", "--eps", "32", cwd=tmp_path)
    assert done.returncode == 2
    assert "model.safetensors is truncated" in done.stderr.splitlines()[-1]


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


def test_a_suite_is_refused_before_anything_is_trained_for_it(tmp_path: Path) -> None:
    demo = (Path(__file__).parents[1] / "attacks/demo.toml").read_text(encoding="utf-8")
    wrong = {
        "experiment.toml": (demo.replace("zhang-table3", "zang-table3"), "zang-table3"),
        "my suite.toml": (demo, "'my suite'"),
        "glob.toml": (demo.replace("headline_eps", 'sources = ["e*", "zz*"]\nheadline_eps'), "'zz*'"),
    }
    for name, (text, part) in wrong.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        for verb in ("validate", "run"):
            done = run(verb, name, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            assert part in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_help_says_what_the_defaults_mean() -> None:
    assert "Zhang et al. 2018" in run("train", "--help", cwd=Path()).stdout
    assert "robustmix-demo" in run("demo", "--help", cwd=Path()).stdout
    assert "replace those of every recipe" in run("run", "--help", cwd=Path()).stdout


def test_version() -> None:
    assert run("--version", cwd=Path()).stdout.strip() == robustmix.__version__


def test_attack_prints_a_table_echoes_budgets_and_caches(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    flags = ["attack", "--source", "erm1", "--target", "mixup1", "erm1", "--eps", "4", "0.5/255", "--attack", "bim"]
    plan = run(*flags, "--dry-run", cwd=tmp_path)
    assert "6 cells on 360 examples of digits: 0 cached, 6 missing" in plan.stdout
    assert not (tmp_path / "results").exists()
    first = run(*flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "eps 4/255 = 0.01569" in first.stderr
    assert "below one grey level of digits" in first.stderr
    assert "ifgsm-10" in first.stdout
    assert "0.5/255" in first.stdout
    assert "6 cached, 0 missing" in run(*flags, "--dry-run", cwd=tmp_path).stdout
    quiet = run(*flags, "--quiet", cwd=tmp_path)
    assert (quiet.stdout, quiet.stderr) == (first.stdout, "")


def test_results_in_every_format(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    run("attack", "--source", "erm1", "--target", "mixup1", "--eps", "32", "--attack", "fgsm", cwd=tmp_path)
    rows = json.loads(run("results", "--format", "json", cwd=tmp_path).stdout)
    assert [row["role"] for row in rows] == ["clean", "transfer"]
    assert rows[1]["errors"] / rows[1]["n"] == pytest.approx(rows[1]["error"])
    csv = run("results", "--format", "csv", cwd=tmp_path).stdout.splitlines()
    assert csv[0].split(",")[:3] == ["data", "source", "target"]
    markdown = run("results", "--format", "markdown", cwd=tmp_path).stdout
    assert f"| {rows[1]['error']:.1%} |" in markdown
    assert f"{rows[1]['error']:.1%}" in run("results", cwd=tmp_path).stdout


def test_ls_lists_runs_with_their_figures(tiny: Path) -> None:
    text = run("ls", cwd=tiny).stdout
    for word in ("erm1", "mixup2", "finished", "digits", "preact_resnet18", "fgsm", "demo", "zhang-cifar10"):
        assert word in text


def test_an_output_that_is_not_read_to_its_end_is_no_error(tiny: Path) -> None:
    command = f"{sys.executable} -m robustmix ls | head -n 1"
    done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, env=environment(), cwd=tiny)
    assert "Traceback" not in done.stderr
