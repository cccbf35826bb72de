from pathlib import Path

import pytest
from synthetic import INPUTS, N, add_run, identities, make_cell

from robustmix.report import collect
from robustmix.report.cost import cost, duration
from robustmix.report.material import Material
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace


def test_each_piece_of_a_unit_counts_once(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    digests = {}
    for name, method in (("erm1", "erm"), ("mixup1", "mixup")):
        add_run(place, name, method, 1)
        digests[name] = read_run(place, name).weights or ""
        clean = clean_identity(digests[name], INPUTS, 256)
        write_cell(place.cells, make_cell(clean, N, forward=2, backward=0, unit_seconds=0.5))
    for target in digests.values():
        # Two budgets in one piece for both targets; a third was added later.
        for eps, facts in (
            (1, {"forward": 5, "backward": 1, "unit_seconds": 2.0}),
            (2, {"forward": 5, "backward": 1, "unit_seconds": 2.0}),
            (4, {"forward": 3, "backward": 1, "unit_seconds": 8.0}),
        ):
            (identity,) = identities({"name": "fgsm", "eps": [eps]}, digests["erm1"], target)
            write_cell(place.cells, make_cell(identity, N, **facts))
    found = cost(Material.read(collect(place, "r")))
    assert found.table.rows == [
        ["–", "no attack", "–", "2", "2 + 0", "0.5", "100"],
        ["erm1", "FGSM", "3", "2", "8 + 2", "10.0", "5"],
    ]
    assert (
        found.total
        == f"In all {N * (2 + 8 + 2)} passes of one image through a network, forward and backward, in 10.5 seconds."
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 seconds"), (59.9, "59.9 seconds"), (200, "3 min 20 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
