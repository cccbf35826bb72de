"""From pytest-benchmark's file to ratios: printed as a table, saved as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

from robustmix.cli.tables import markdown


def main(raw: Path, out: Path) -> None:
    """Compare the fastest turns of each job."""
    run = json.loads(raw.read_text())
    jobs: dict[tuple[str, str], dict[str, Any]] = {}
    for one in run["benchmarks"]:
        info = {**one["extra_info"], "seconds": one["stats"]["min"]}
        parts = jobs.setdefault((info["job"], info["size"]), {})
        parts[info["part"]] = min(info, parts.get(info["part"], info), key=lambda turn: float(turn["seconds"]))
    rows, saved = [], []
    for (job, size), parts in jobs.items():

        def ratio(one: str, other: str, parts: dict[str, Any] = parts) -> float | None:
            return parts[one]["seconds"] / parts[other]["seconds"] if one in parts and other in parts else None

        figures = {
            "ours / limit": ratio("ours", "limit"),
            "torchattacks / ours": ratio("torchattacks", "ours"),
            "foolbox / ours": ratio("foolbox", "ours"),
            "ours / ours in bf16": ratio("ours", "ours, bf16"),
            "ours / limit, bf16": ratio("ours, bf16", "limit, bf16"),
            "ours / ours compiled": ratio("ours", "ours, compiled"),
        }
        changed = parts.get("ours, bf16", {}).get("changed")
        images = next(iter(parts.values()))["images"]
        saved.append({"job": job, "network": size, "images": images, **figures, "largest change by bf16": changed})
        texts = ["-" if value is None else f"{value:.2f}" for value in figures.values()]
        rows.append([f"{job}, {size}", *texts, "-" if changed is None else f"{100 * changed:.1f} points"])
    cpu = run["machine_info"]["cpu"]
    machine = {"cpu": cpu.get("brand_raw", "?"), "threads": run["benchmarks"][0]["extra_info"]["threads"]}
    out.write_text(json.dumps({"machine": machine, "jobs": saved}, indent=1) + "\n")
    print(f"{machine['cpu']}, {machine['threads']} threads; ratios of the fastest turns")
    print(markdown(["job, network", *figures, "largest change of an error by bf16"], rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
