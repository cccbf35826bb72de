"""A report in which every section has something to show, and everything that can be hostile is; a plain one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import EVIL, INPUTS, N, add_run, identities, make_cell

from robustmix.report import collect, render
from robustmix.spec.suite import Suite
from robustmix.spec.validation import validate
from robustmix.store.audits import AuditRecord, AuditTest, write_audit
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import BatchState, clean_identity
from robustmix.store.gallery import Examples, write_examples
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

# A run's name becomes a folder's; somebody else's model may be called anything.
OTHER = f"net.py:{EVIL}"
SEEDS = (1, 2, 3)
ATTACKS: list[dict[str, Any]] = [
    {"name": "fgsm", "eps": [1, 2, 4]},
    {"name": "ifgsm", "eps": [2, 4]},
    {"name": "pgd", "eps": [4], "restarts": 3},
]
SUITE: dict[str, Any] = {
    "version": 1,
    "title": f"Is mixup robust? {EVIL} {'Donaudampfschifffahrt' * 5}",
    "note": f"A note. {EVIL}",
    "data": "cifar10",
    "headline_eps": 4,
    "sources": ["*", OTHER],
    "attack": ATTACKS,
    "published": {
        "experiments": ["ali-cifar10", "zhang-table3"],
        "white": ["erm1", "mixup1"],
        "source": "erm1",
        "targets": ["erm2", "mixup1"],
    },
}


def make_workspace(root: Path) -> Workspace:
    """Three seeds of ERM and of mixup and a model of somebody else's, attacked, audited, with examples kept."""
    place = Workspace(root)
    digests = {OTHER: "c" * 64}
    for method in ("erm", "mixup"):
        for seed in SEEDS:
            add_run(place, f"{method}{seed}", method, seed)
            digests[f"{method}{seed}"] = read_run(place, f"{method}{seed}").weights or ""
    state = BatchState(gap=tuple(range(-3, 4)), saturated=0.04, zero_gradient=0.0)
    for target, scored in digests.items():
        write_cell(place.cells, make_cell(clean_identity(scored, INPUTS, 256), N, target_name=target))
        for source, crafts in digests.items():
            for fields in ATTACKS:
                for identity in identities(fields, crafts, scored):
                    facts = {"source_name": source, "target_name": target, "batches": [state]}
                    write_cell(place.cells, make_cell(identity, N, **facts))
                    if source == target and fields["name"] == "fgsm":
                        write_examples(place.gallery, identity, make_examples(identity.eps_255 or 0))
    for name, verdict in (("erm1", "pass"), ("mixup1", "fail")):
        write_audit(place.audits, make_audit(name, digests[name], verdict))
    return place


def make_matrix(root: Path, runs: Mapping[str, tuple[str, int]], attacks: Sequence[dict[str, Any]]) -> Workspace:
    """Runs by name with their methods and seeds, each scored without an attack and under examples of every run."""
    place = Workspace(root)
    for name, (method, seed) in runs.items():
        add_run(place, name, method, seed)
    weights = [read_run(place, name).weights or "" for name in runs]
    for target in weights:
        write_cell(place.cells, make_cell(clean_identity(target, INPUTS, 256), N))
        for source in weights:
            for fields in attacks:
                for identity in identities(fields, source, target):
                    write_cell(place.cells, make_cell(identity, N))
    return place


def make_examples(eps: float, count: int = 8, side: int = 32, channels: int = 3) -> Examples:
    """Images of noise, changed by plus or minus the budget."""
    rng = np.random.default_rng(7)
    clean = rng.integers(64, 192, (count, channels, side, side)).astype(np.uint8)
    signs = rng.choice([-1, 1], clean.shape)
    return Examples(np.arange(count, dtype=np.int32), clean, (clean + eps * signs).astype(np.uint8))


def make_audit(name: str, weights: str, verdict: Any) -> AuditRecord:
    """An audit with a test of every verdict but one, hostile texts among them."""
    tests = [
        AuditTest(name="range", title="Budget and range are kept", kind="evaluation broken", verdict="pass",
                  measured="0 of 50 images leave them", meaning="Every adversarial image is one."),
        AuditTest(name="more-steps", title="More steps change nothing", kind="attack too weak", verdict=verdict,
                  measured=f"200 steps break 12.5 % more {EVIL}", meaning=f"The attack is too weak {EVIL}.",
                  excess=0.125, p=0.0004),
        AuditTest(name="fgsm-monotone", title="FGSM grows with the budget", kind="gradients masked",
                  verdict="finding", measured="3 inversions", meaning="FGSM is one step."),
        AuditTest(name="square", title="Gradient-free finds nothing new", kind="gradients masked", verdict="not run",
                  measured="–", meaning="pip install 'robustmix[attacks]' for it."),
    ]  # fmt: skip
    return AuditRecord(
        target=name, weights=weights, data="cifar10", inputs=INPUTS, n=N, eps_255=4, tests=tuple(tests), robustmix="0",
        torch="0", device=f"cpu {EVIL}", command=f"robustmix audit --target {name}",
    )  # fmt: skip


def make_page(root: Path) -> Path:
    """The page of such a workspace."""
    suite = validate(Suite, SUITE)
    return render(collect(make_workspace(root), "mine", suite=suite, suite_name="mine", command="robustmix run mine"))
