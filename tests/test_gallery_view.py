import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import INPUTS, N, add_run, identities, make_cell

from robustmix.report import collect, render
from robustmix.report.gallery_view import MOST_CHARACTERS, Picture, Strip, gallery
from robustmix.report.material import Material
from robustmix.store.cell_files import cell_path, read_cell, write_cell
from robustmix.store.cells import Cell, clean_identity
from robustmix.store.gallery import Examples, write_examples
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

SPECS: list[dict[str, Any]] = [
    {"name": "fgsm", "eps": [2, 4]},
    {"name": "ifgsm", "eps": [4]},
    {"name": "pgd", "eps": [4]},
]


def workspace(root: Path) -> tuple[Workspace, dict[tuple[str, str, float | None], Cell]]:
    """Two ERM runs and one of mixup, each attacked in the white box; its cells by (run, attack, budget)."""
    place = Workspace(root)
    cells = {}
    for name, method, seed in (("erm1", "erm", 1), ("erm2", "erm", 2), ("mixup1", "mixup", 1)):
        add_run(place, name, method, seed)
        weights = read_run(place, name).weights or ""
        write_cell(place.cells, make_cell(clean_identity(weights, INPUTS, 256), N))
        for fields in SPECS:
            for identity in identities(fields, weights, weights):
                cells[name, identity.attack, identity.eps_255] = cell = make_cell(identity, N)
                write_cell(place.cells, cell)
    return place, cells


def strips(material: Material, folder: Path) -> tuple[Strip, ...]:
    """All strips, of which none is left out."""
    found = gallery(material, folder)
    assert found.left_out == 0
    return found.strips


def pixels(picture: Picture) -> np.ndarray:
    """The image [H, W] or [H, W, C] behind a data URI."""
    kind, _, content = picture.uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def examples(eps: int, shape: tuple[int, ...] = (4, 3, 8, 8)) -> Examples:
    rng = np.random.default_rng(eps)
    clean = rng.integers(50, 200, shape).astype(np.uint8)
    change = rng.integers(-eps, eps + 1, shape)
    change[0].flat[0], change[0].flat[1] = eps, -eps
    return Examples(np.arange(10, 10 + shape[0], dtype=np.int32), clean, (clean + change).astype(np.uint8))


def test_strips_show_what_is_in_files(tmp_path: Path) -> None:
    place, cells = workspace(tmp_path)
    kept = examples(4)
    for key in (("erm2", "fgsm", 4), ("mixup1", "fgsm", 4), ("mixup1", "pgd", 4), ("erm1", "fgsm", 2)):
        write_examples(place.gallery, cells[key].identity, kept)
    folder = collect(place, "r")
    material = Material.read(folder)
    found = strips(material, folder)
    titles = [strip.title for strip in found]
    assert titles == ["erm2 under white-box FGSM at 4/255", "mixup1 under white-box FGSM at 4/255"], (
        "the first of each family with examples at the headline budget, and no attack but the publications' own"
    )
    strip = found[0]
    assert strip.amplified == f"{255 / 2 / 4:.3g}"
    cell = cells["erm2", "fgsm", 4]
    clean = read_cell(cell_path(place.cells, cell.identity.clean()))
    classes = cell.facts.classes
    for one, index in zip(strip.images, range(10, 14), strict=True):
        now, before = (c.rows.slice(index, 1).to_pylist()[0] for c in (cell, clean))
        assert one.index == index
        assert one.label == classes[now["label"]]
        assert one.before == (classes[before["prediction"]], f"{100 * before['confidence']:.1f}\N{NO-BREAK SPACE}%")
        assert one.after[0] == classes[now["prediction"]]
        assert one.turned == (before["prediction"] == now["label"] != now["prediction"])
        assert (pixels(one.clean) == np.moveaxis(kept.clean[index - 10], 0, -1)).all()
        assert (pixels(one.adversarial) == np.moveaxis(kept.adversarial[index - 10], 0, -1)).all()
        assert str(index) in one.clean.alt
    assert {one.turned for one in strip.images} <= {True, False}
    change = pixels(strip.images[0].change)
    assert (change.flat[0] == 255) != (change.flat[0] == 0), "the whole budget is black or white"
    middle = (kept.clean == kept.adversarial)[0].transpose(1, 2, 0)
    assert set(change[middle].tolist()) <= {127, 128}
    assert strip.images[0].clean.width % 8 == 0, "whole multiples of the pixels"


def test_no_examples_no_strips(tmp_path: Path) -> None:
    place, _ = workspace(tmp_path)
    folder = collect(place, "r")
    assert strips(Material.read(folder), folder) == ()


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 224, 200)])
def test_grey_and_large_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    place, cells = workspace(tmp_path)
    write_examples(place.gallery, cells["erm1", "fgsm", 4].identity, examples(4, shape))
    folder = collect(place, "r")
    (strip,) = strips(Material.read(folder), folder)
    found = pixels(strip.images[0].clean)
    assert strip.reduced == (1 if shape[2] == 28 else 3)
    assert found.shape == ((28, 28) if shape[1] == 1 else (75, 67, 3))


def test_strips_are_cut_to_what_a_page_can_bear(tmp_path: Path) -> None:
    place, cells = workspace(tmp_path)
    for key in (("erm1", "fgsm", 4), ("mixup1", "fgsm", 4), ("erm1", "ifgsm", 4), ("mixup1", "ifgsm", 4)):
        write_examples(place.gallery, cells[key].identity, examples(4, (8, 3, 96, 96)))
    folder = collect(place, "r")
    found = strips(Material.read(folder), folder)
    counts = {len(strip.images) for strip in found}
    assert len(found) == 4
    assert len(counts) == 1, "each of them alike"
    sizes = [
        len(part.uri) for strip in found for one in strip.images for part in (one.clean, one.change, one.adversarial)
    ]
    assert sum(sizes) <= MOST_CHARACTERS < sum(sizes) * (min(counts) + 1) / min(counts) * 1.05
    assert 0 < min(counts) < 8


def test_other_attacks_are_shown_where_the_usual_ones_have_no_examples(tmp_path: Path) -> None:
    place, cells = workspace(tmp_path)
    write_examples(place.gallery, cells["mixup1", "pgd", 4].identity, examples(4))
    folder = collect(place, "r")
    (strip,) = strips(Material.read(folder), folder)
    assert strip.title == "mixup1 under white-box PGD, 10 steps at 4/255"


def test_what_is_left_out_is_told_from_what_was_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, cells = workspace(tmp_path)
    folder = collect(place, "r")
    assert "None are kept" in render(folder).read_text(encoding="utf-8")
    for name in ("erm1", "mixup1"):
        write_examples(place.gallery, cells[name, "fgsm", 4].identity, examples(4, (2, 3, 96, 96)))
    folder = collect(place, "r")
    monkeypatch.setattr("robustmix.report.gallery_view.MOST_CHARACTERS", 120_000)
    found = gallery(Material.read(folder), folder)
    assert [len(strip.images) for strip in found.strips] == [1]
    assert found.left_out == 1
    assert "1 strip more was left out to keep this page small" in render(folder).read_text(encoding="utf-8")
    monkeypatch.setattr("robustmix.report.gallery_view.MOST_CHARACTERS", 1)
    text = render(folder).read_text(encoding="utf-8")
    assert "all left out to keep this page small" in text
    assert "None are kept" not in text


def test_damaged_examples_are_left_out_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, cells = workspace(tmp_path)
    first, second = (
        write_examples(place.gallery, cells[name, "fgsm", 4].identity, examples(4)) for name in ("erm1", "erm2")
    )
    collect(place, "r")
    first.write_bytes(first.read_bytes()[:500])
    folder = collect(place, "r")
    assert capsys.readouterr().err == (
        f"warning: {first} holds no examples that can be read (BadZipFile); it is set aside as {first.name}.damaged\n"
    )
    assert [path.name for path in (folder / "examples").iterdir()] == [second.name], "nor does an older copy stay"
    assert "erm2 under white-box FGSM at 4/255" in render(folder).read_text(encoding="utf-8")
    collect(place, "r")
    assert capsys.readouterr().err == "", "said once"


def test_a_damaged_copy_is_left_out_of_the_page_and_made_again_with_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, cells = workspace(tmp_path)
    original = write_examples(place.gallery, cells["erm1", "fgsm", 4].identity, examples(4))
    folder = collect(place, "r")
    copy = folder / "examples" / original.name
    copy.write_bytes(b"PK")
    assert "None are kept" in render(folder).read_text(encoding="utf-8")
    assert capsys.readouterr().err == (
        f"warning: {copy} holds no examples that can be read (ValueError); they are left out of the page\n"
    )
    assert copy.read_bytes() == b"PK", "rendering changes nothing but the page"
    collect(place, "r")
    assert copy.read_bytes() == original.read_bytes()
