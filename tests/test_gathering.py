"""What `collect` brings into a report's folder beside its cells: audits and examples."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import network
from synthetic import INPUTS, RUNS, N, add_run, identities, make_cell

from robustmix.errors import SpecError, StoreError
from robustmix.report import collect, load
from robustmix.report.effects import effects
from robustmix.report.evidence import EVIDENCE, EXAMPLES
from robustmix.report.material import Material
from robustmix.report.methods_text import paragraphs
from robustmix.report.naming import shown_names
from robustmix.spec.suite import Suite
from robustmix.spec.validation import validate
from robustmix.store.audits import AuditRecord, AuditTest, write_audit
from robustmix.store.cell_files import read_cells, write_cell
from robustmix.store.cells import CellIdentity, clean_identity
from robustmix.store.gallery import Examples, examples_path, read_examples, write_examples
from robustmix.store.results import ForeignModel
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

FGSM, DEEPFOOL = {"name": "fgsm", "eps": [1, 4]}, {"name": "deepfool"}
L2: dict[str, Any] = {"name": "fgsm", "norm": "l2", "eps": [32, 64, 128]}
NAMES = ("erm1", "mixup1")


def weights(place: Workspace, name: str) -> str:
    return read_run(place, name).weights or ""


def examples(identity: CellIdentity) -> Examples:
    shade = int(examples_path(Path(), identity).name[:2], 16)
    clean = np.full((2, 1, 3, 3), shade, np.uint8)
    return Examples(np.arange(2, dtype=np.int32), clean, 255 - clean)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    place = Workspace(tmp_path_factory.mktemp("made"))
    for name in NAMES:
        add_run(place, name, *RUNS[name])
        write_cell(place.cells, make_cell(clean_identity(weights(place, name), INPUTS, 256), N))
    for source in NAMES:
        for target in NAMES:
            for fields in (FGSM, DEEPFOOL, L2):
                for identity in identities(fields, weights(place, source), weights(place, target)):
                    write_cell(place.cells, make_cell(identity, N))
                    write_examples(place.gallery, identity, examples(identity))
    return place


@pytest.fixture
def place(made: Workspace, tmp_path: Path) -> Workspace:
    """A workspace of one's own to spoil."""
    shutil.copytree(made.root, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def record(name: str, digest: str, **changes: Any) -> AuditRecord:
    test = AuditTest(name="t", title="t", kind="attack too weak", verdict="pass", measured="m", meaning="m")
    fields: dict[str, Any] = {
        "target": name, "weights": digest, "data": "cifar10", "inputs": INPUTS, "n": N, "eps_255": 4.0,
        "tests": (test,), "robustmix": "0", "torch": "0", "device": "cpu", "command": "robustmix audit",
    }  # fmt: skip
    return AuditRecord(**{**fields, **changes})


# ---- examples ----------------------------------------------------------------------------------------------


def copied(folder: Path) -> set[str]:
    return {path.name for path in (folder / EXAMPLES).glob("*")}


def test_examples_of_the_headline_budget_come_along(place: Workspace) -> None:
    folder = collect(place, "r")
    at = {(identity.attack, identity.norm, identity.eps_255): identity for identity in identified(place)}
    assert load(folder).headline_eps == 4
    expected = {
        examples_path(place.gallery, identity).name
        for identity in identified(place)
        if (identity.norm, identity.eps_255) in (("linf", 4), ("l2", 64))
    }
    assert len(expected) == 2 * 2, "one of each source and attack, whoever is scored"
    assert copied(folder) == expected
    identity = at["fgsm", "linf", 4.0]
    found, wanted = read_examples(folder / EXAMPLES, identity), examples(identity)
    assert found is not None
    assert (found.adversarial == wanted.adversarial).all()
    assert read_examples(folder / EXAMPLES, at["fgsm", "linf", 1.0]) is None


def identified(place: Workspace) -> list[CellIdentity]:
    return [cell.identity for cell in read_cells(place.cells) if cell.identity.source]


def test_examples_that_are_no_longer_listed_are_removed(place: Workspace) -> None:
    folder = collect(place, "r")
    first = copied(folder)
    suite = {"version": 1, "title": "t", "data": "cifar10", "sources": "erm1", "targets": "*1", "attack": [FGSM]}
    collect(place, "r", suite=validate(Suite, suite))
    (left,) = copied(folder)
    assert left in first
    collect(place, "r", suite=validate(Suite, {**suite, "headline_eps": 1}))
    assert copied(folder).isdisjoint(first)
    assert len(copied(folder)) == 1


def test_a_workspace_without_examples_is_reported_all_the_same(place: Workspace) -> None:
    folder = collect(place, "r")
    before = (folder / EVIDENCE).read_bytes()
    shutil.rmtree(place.gallery)
    collect(place, "r")
    assert copied(folder) == set()
    assert (folder / EVIDENCE).read_bytes() == before


def test_examples_are_copied_byte_by_byte_and_again_where_they_changed(place: Workspace) -> None:
    folder = collect(place, "r")
    path = next(iter(sorted((folder / EXAMPLES).iterdir())))
    original = (place.gallery / path.name).read_bytes()
    assert path.read_bytes() == original
    path.write_bytes(b"spoiled")
    collect(place, "r")
    assert path.read_bytes() == original


def test_an_example_that_cannot_be_copied_is_one_line(place: Workspace) -> None:
    folder = collect(place, "r")
    path = next(iter(sorted((folder / EXAMPLES).iterdir())))
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="cannot be copied"):
        collect(place, "r")


def test_no_cell_is_read_again_for_the_examples(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("robustmix.report.material.load_cells", refuse)
    assert copied(collect(place, "r"))


# ---- one network under several names -------------------------------------------------------------------------


def copy_run(place: Workspace, name: str, *copies: str) -> None:
    for copy in copies:
        shutil.copytree(place.run(name), place.run(copy))


def asked(**changes: Any) -> Suite:
    fields = {"version": 1, "title": "t", "data": "cifar10", "sources": "*", "attack": [FGSM]}
    return validate(Suite, {**fields, **changes})


REMARK = (
    "copy has the weights of erm1: shown once, as erm1; m2 and m3 have the weights of mixup1: shown once, as mixup1\n"
)


@pytest.mark.parametrize("suite", [None, asked()])
def test_copies_of_a_run_change_nothing_and_are_named(
    place: Workspace, suite: Suite | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        write_audit(place.audits, record(name, weights(place, name)))
    folder = collect(place, "r", suite=suite)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert capsys.readouterr().err == ""
    copy_run(place, "erm1", "copy")
    copy_run(place, "mixup1", "m2", "m3")
    assert collect(place, "r", suite=suite) == folder
    assert capsys.readouterr().err == REMARK
    assert load(folder).targets == NAMES
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


def test_copies_are_no_seeds_on_the_page(place: Workspace) -> None:
    copy_run(place, "erm1", "erm8", "erm9")
    copy_run(place, "mixup1", "mixup8", "mixup9")
    folder = collect(place, "r")
    material = Material.read(folder)
    assert material.families == {"ERM": ["erm1"], "mixup": ["mixup1"]}
    assert {effect.runs for effect in effects(material)} == {(1, 1)}
    assert all(effect.difference is None and effect.about == "runs" for effect in effects(material))


def test_an_audit_of_a_copy_is_told_of_the_name_that_is_shown(place: Workspace) -> None:
    copy_run(place, "erm1", "copy")
    write_audit(place.audits, record("copy", weights(place, "erm1")))
    told = paragraphs(Material.read(collect(place, "r")))
    assert next(text for text in told if "was audited" in text).startswith("The evaluation of erm1 was audited")


def test_copies_that_are_not_in_the_report_are_not_named(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    add_run(place, "erm2", *RUNS["erm2"])
    copy_run(place, "erm2", "copy")
    for name in ("begun", "begun2"):
        add_run(place, name, "erm", 3)
        (place.run(name) / "model.safetensors").unlink()
    assert load(collect(place, "r")).targets == NAMES
    assert capsys.readouterr().err == ""


def test_what_the_suite_names_comes_before_what_it_matches(place: Workspace) -> None:
    copy_run(place, "erm1", "copy")
    for sources, kept in ((["copy", "mixup1"], "copy"), (["erm1", "mixup1"], "erm1"), (["*"], "erm1")):
        evidence = load(collect(place, "r", suite=asked(sources=sources, targets="*")))
        assert evidence.targets == (kept, "mixup1")
        assert evidence.sources == (kept, "mixup1")
        assert [run.name for run in evidence.runs] == [kept, "mixup1"]


def test_a_publication_s_networks_keep_their_names_and_are_different_ones(place: Workspace) -> None:
    copy_run(place, "erm1", "copy")
    design = {"experiments": ["zhang-table3"], "white": ["copy", "mixup1"], "source": "copy", "targets": ["mixup1"]}
    folder = collect(place, "r", suite=asked(sources=["erm1", "copy", "mixup1"], published=design))
    assert load(folder).sources == ("copy", "mixup1")
    before = (folder / EVIDENCE).read_bytes()
    with pytest.raises(SpecError) as error:
        collect(place, "r", suite=asked(published={**design, "targets": ["erm1", "mixup1"]}))
    assert str(error.value) == (
        "published: copy has the weights of erm1, but stands for another network: train copy anew, or leave "
        "[published] out"
    )
    assert (folder / EVIDENCE).read_bytes() == before


def test_a_run_comes_before_models_of_others_and_these_in_their_order() -> None:
    run = network("erm1", {}).as_run()
    theirs = [ForeignModel(name, digest) for name, digest in (("a:b", run.weights or ""), ("b:b", "1" * 64))]
    again = ForeignModel("c:b", "1" * 64)
    assert shown_names([*theirs, run, again], []) == {"a:b": "erm1", "erm1": "erm1", "b:b": "b:b", "c:b": "b:b"}


# ---- audits ------------------------------------------------------------------------------------------------


def test_audits_of_the_targets_come_along_in_their_order(place: Workspace) -> None:
    ours = [record(name, weights(place, name)) for name in reversed(NAMES)]
    elsewhere = record("erm1", weights(place, "erm1"), data="digits", inputs="8" * 64, n=9_999)
    for one in (*ours, elsewhere, record("stranger", "e" * 64)):
        write_audit(place.audits, one)
    folder = collect(place, "r")
    assert load(folder).audits == tuple(reversed(ours))


def test_the_audit_of_the_same_examples_comes_before_a_larger_one(place: Workspace) -> None:
    digest = weights(place, "erm1")
    smaller, larger = (record("erm1", digest, inputs=letter * 64, n=n) for letter, n in (("6", 20), ("7", 30)))
    for one in (larger, smaller):
        write_audit(place.audits, one)
    assert load(collect(place, "r")).audits == (larger,)
    same = record("erm1", digest, n=10)
    write_audit(place.audits, same)
    assert load(collect(place, "r")).audits == (same,)


def test_of_several_budgets_the_audit_at_the_head_s_comes_along_else_the_smallest(place: Workspace) -> None:
    digest = weights(place, "erm1")
    head = load(collect(place, "r")).headline_eps
    assert head is not None
    smaller, larger, own = (
        record("erm1", digest).model_copy(update={"eps_255": eps}) for eps in (head / 2, 64.0, head)
    )
    for one in (larger, smaller):
        write_audit(place.audits, one)
    assert load(collect(place, "r")).audits == (smaller,)
    write_audit(place.audits, own)
    assert load(collect(place, "r")).audits == (own,)


def test_audits_follow_the_weights_and_not_the_name(place: Workspace) -> None:
    write_audit(place.audits, record("erm1", "e" * 64))
    renamed = record("as-it-was-called", weights(place, "erm1"))
    write_audit(place.audits, renamed)
    assert load(collect(place, "r")).audits == (renamed,)


def test_evidence_of_before_audits_can_be_read(place: Workspace) -> None:
    folder = collect(place, "r")
    values = json.loads((folder / EVIDENCE).read_text(encoding="utf-8"))
    assert values.pop("audits") == []
    (folder / EVIDENCE).write_text(json.dumps(values), encoding="utf-8")
    assert load(folder).audits == ()
    values["audits"] = [{"target": "erm1"}]
    (folder / EVIDENCE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(SpecError, match="audits"):
        load(folder)
