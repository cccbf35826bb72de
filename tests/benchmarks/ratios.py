"""From pytest-benchmark's file to ratios: printed as tables, saved as JSON."""

import json
import sys
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, Final

from robustmix.cli.tables import markdown

# Of two parts of a job, the seconds of the first over those of the second.
FIGURES: Final = {
    "ours / limit": ("ours", "limit"),
    "torchattacks / ours": ("torchattacks", "ours"),
    "foolbox / ours": ("foolbox", "ours"),
    "usual loop / ours": ("usual loop", "ours"),
    "torchvision / ours": ("torchvision", "ours"),
    "usual loop / ours in bf16": ("usual loop", "ours, bf16"),
    "torchattacks / ours in bf16": ("torchattacks", "ours, bf16"),
    "ours / ours in bf16": ("ours", "ours, bf16"),
    "ours / limit, bf16": ("ours, bf16", "limit, bf16"),
    "ours / ours compiled": ("ours", "ours, compiled"),
}
CHANGED: Final = "largest change of an error by bf16"


def main(raw: Path, out: Path) -> None:
    """Compare two parts of a job in each turn that both had, the median of which counts.

    A shared machine is slow for some seconds and fast for others. What ran next to each other ran at much the same
    speed; the fastest turn of each need not have.
    """
    run = json.loads(raw.read_text())
    jobs: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for one in run["benchmarks"]:
        info = {"seconds": one["stats"]["min"], **one["extra_info"]}
        turns = jobs.setdefault((info["job"], info["size"]), {}).setdefault(info["part"], {})
        turn = one["params"].get("turn", 0)
        turns[turn] = info
        if "limit" in info:
            # Replayed within the same call, pass by pass.
            limits = jobs[info["job"], info["size"]].setdefault(info["part"].replace("ours", "limit"), {})
            limits[turn] = {**info, "seconds": info["limit"]}
    saved = []
    for (job, size), parts in jobs.items():
        figures = {
            name: median(parts[a][turn]["seconds"] / parts[b][turn]["seconds"] for turn in both)
            for name, (a, b) in FIGURES.items()
            if (both := parts.get(a, {}).keys() & parts.get(b, {}).keys())
        }
        images = next(iter(parts[next(iter(parts))].values()))["images"]
        bf16 = next(iter(parts.get("ours, bf16", {}).values()), {})
        changed = {CHANGED: bf16["changed"]} if "changed" in bf16 else {}
        saved.append({"job": job, "network": size, "images": images, **figures, **changed})
    cpu = run["machine_info"]["cpu"]
    machine = {"cpu": cpu.get("brand_raw", "?"), "threads": run["benchmarks"][0]["extra_info"]["threads"]}
    out.write_text(json.dumps({"machine": machine, "jobs": saved}, indent=1) + "\n")
    print(f"{machine['cpu']}, {machine['threads']} threads; medians of the ratios of each turn")
    for _, group in groupby(saved, key=lambda row: sorted(name for name in row if name.split(" / ")[0] in PEERS)):
        rows = list(group)
        columns = [name for name in (*FIGURES, CHANGED) if any(name in row for row in rows)]
        print()
        print(markdown(["job, network", *columns], [_cells(row, columns) for row in rows]))


PEERS: Final = ("torchattacks", "foolbox", "usual loop", "torchvision")


def _cells(row: dict[str, Any], columns: list[str]) -> list[str]:
    texts = []
    for column in columns:
        value = row.get(column)
        text = "-" if value is None else f"{100 * value:.1f} points" if column == CHANGED else f"{value:.2f}"
        texts.append(text)
    return [f"{row['job']}, {row['network']}", *texts]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
