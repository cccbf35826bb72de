"""The benchmark's figures: of each turn that two parts had, the median of the ratios."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parent / "benchmarks" / "ratios.py"))
MAIN: Any = SCRIPT["main"]
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

# Seconds by turn: the machine is half as fast in the second turn, and the peer had only the first two.
REPLAYED = {("full", "ours"): [2.0, 4.0, 2.0], ("full", "ours, bf16"): [0.8, 1.0, 0.5], ("narrow", "ours"): [1.0]}
TAKEN = {
    ("full", "ours"): [2.1, 4.4, 2.04],
    ("full", "torchattacks"): [4.2, 11.0],
    ("full", "ours, bf16"): [1.0, 1.0, 1.0],
    ("narrow", "ours"): [3.0],
    # Nothing to compare with, since it had another turn.
    ("narrow", "torchattacks"): [None, 1.0],
}


def test_ratios_are_of_the_same_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks = [
        {
            # A call in which passes were replayed took longer than it says itself that it took.
            "stats": {"min": seconds + 9 * ((size, part) in REPLAYED)},
            "params": {"turn": turn},
            "extra_info": {"job": "a job", "size": size, "part": part, "images": 8, "threads": 1, "changed": 0.25}
            | ({"seconds": seconds, "limit": REPLAYED[size, part][turn]} if (size, part) in REPLAYED else {}),
        }
        for (size, part), all_seconds in TAKEN.items()
        for turn, seconds in enumerate(all_seconds)
        if seconds is not None
    ]
    # In whatever order they ran.
    run = {"machine_info": {"cpu": {"brand_raw": "a machine"}}, "benchmarks": benchmarks[::-1]}
    raw, out = tmp_path / "raw.json", tmp_path / "ratios.json"
    raw.write_text(json.dumps(run))
    MAIN(raw, out)
    found = json.loads(out.read_text())
    assert found["machine"] == {"cpu": "a machine", "threads": 1}
    full, narrow = sorted(found["jobs"], key=lambda row: str(row["network"]))
    assert full == {
        "job": "a job",
        "network": "full",
        "images": 8,
        "ours / limit": pytest.approx(1.05),
        "torchattacks / ours": pytest.approx((2 + 2.5) / 2),
        "torchattacks / ours in bf16": pytest.approx((4.2 + 11) / 2),
        "ours / ours in bf16": pytest.approx(2.1),
        "ours / limit, bf16": pytest.approx(1.25),
        "largest change of an error by bf16": 0.25,
    }
    assert narrow == {"job": "a job", "network": "narrow", "images": 8, "ours / limit": pytest.approx(3)}
    table = capsys.readouterr().out
    assert "| a job, full | 1.05 | 2.25 | 7.60 | 2.10 | 1.25 | 25.0 points |" in table
    assert "| a job, narrow | 3.00 |" in table


def test_the_readme_shows_what_the_benchmark_prints() -> None:
    _, _, speed = README.partition("\n## Speed\n")
    headers = [
        cell
        for line in speed.partition("\n## ")[0].splitlines()
        if " / " in line and line.startswith("|")
        for cell in line.strip("| ").split(" | ")
    ]
    figures = [name for name in headers if " / " in name]
    assert len(figures) >= 7
    assert set(figures) <= set(SCRIPT["FIGURES"])
