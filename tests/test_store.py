"""Files of a workspace: whole or absent, cells that are what their names promise, and the table made of them."""

import errno
import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import Call

from robustmix.errors import CheckpointError, RobustmixError, SpecError, StoreError
from robustmix.spec.recipe import Recipe
from robustmix.spec.titles import attack_label
from robustmix.stats import wilson
from robustmix.store import atomic
from robustmix.store.atomic import write_atomically, write_text
from robustmix.store.cell_files import (
    BLANK,
    DamagedError,
    MissingError,
    _sealed,
    cell_path,
    read_cell,
    read_cells,
    trusted_cell,
    write_cell,
)
from robustmix.store.cells import ROWS, BatchState, Cell, CellFacts, CellIdentity, clean_identity
from robustmix.store.gallery import gallery_path
from robustmix.store.results import COLUMNS, ForeignModel, foreign_bearers, results_table
from robustmix.store.runs import (
    Run,
    RunFacts,
    file_digest,
    finished_run,
    read_run,
    run_names,
    write_history,
    write_recipe,
)
from robustmix.store.workspace import Workspace

# ---- atomic files ----------------------------------------------------------------------------------------


class FullDisk:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file: IO[bytes], space: int) -> None:
        self.file, self.space = file, space

    def write(self, data: Any) -> int:
        self.space -= memoryview(data).nbytes
        if self.space < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@contextmanager
def full_disk(space: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        real = os.fdopen
        patch.setattr(atomic.os, "fdopen", lambda handle, mode: FullDisk(real(handle, mode), space))
        yield


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_written_and_replaced_with_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for text in ("first", "second ä"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert names(path.parent) == ["file"]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("existed", [True, False])
def test_full_disk_leaves_the_old_file_and_no_temporary(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "file"
    if existed:
        path.write_bytes(b"old")
    with full_disk(10), pytest.raises(StoreError) as caught:
        write_atomically(path, lambda file: [file.write(b"x" * 6) for _ in range(3)])
    assert str(caught.value) == f"{path} cannot be written: No space left on device; what stood there is unchanged"
    assert names(tmp_path) == (["file"] if existed else [])
    assert not existed or path.read_bytes() == b"old"


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_any_other_failure_is_passed_on_and_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(StoreError, match="cannot be written") as caught:
            write_text(path, "x")
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file", "folder"]


# ---- cells -----------------------------------------------------------------------------------------------

ERM, MIXUP, INPUTS = "e" * 64, "f" * 64, "a" * 64
FACTS = CellFacts(
    data="digits",
    like="digits",
    data_note=None,
    data_spec="digits",
    classes=tuple("0123456789"),
    source_name="erm1",
    target_name="mixup1",
    forward=3,
    backward=1,
    unit_seconds=0.5,
    device="cpu",
    torch="2",
    robustmix="0",
)


def attacked(**changes: Any) -> CellIdentity:
    """FGSM at 8/255, crafted on ERM and scored on mixup."""
    fields = {
        "source": ERM,
        "target": MIXUP,
        "inputs": INPUTS,
        "attack": "fgsm",
        "eps_255": 8.0,
        "steps": 1,
        "step_255": 8.0,
        "batch_size": 256,
    }
    return CellIdentity.model_validate(fields | changes)


def rows(
    label: list[int],
    prediction: list[int],
    norm: float | list[float] = 8 / 255,
    top5: list[bool] | None = None,
    rounded: list[int] | None = None,
) -> pa.Table:
    size = len(label)
    norms = norm if isinstance(norm, list) else [norm * 0.5] * (size - 1) + [norm]
    columns = [range(size), label, prediction, top5 or [True] * size, [0.9] * size, [1.5] * size, norms]
    return pa.table([*columns, [0.0] * size, [1.0] * size, rounded or [None] * size], schema=ROWS)


def cell(identity: CellIdentity, *args: Any, **kwargs: Any) -> Cell:
    return Cell(identity, FACTS, rows(*args, **kwargs))


LABELS = [0, 1, 2, 3, 4, 5, 6, 7]
CELL = cell(attacked(), LABELS, [0, 1, 2, 9, 9, 9, 6, 7])


def test_cell_survives_being_written(tmp_path: Path) -> None:
    write_cell(tmp_path, CELL)
    assert names(tmp_path) == [f"{CELL.key}.parquet"]
    again = read_cell(cell_path(tmp_path, CELL.identity))
    assert (again.identity, again.facts) == (CELL.identity, CELL.facts)
    assert again.rows.equals(CELL.rows)
    assert read_cells(tmp_path) == [again]


def test_cell_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_cell(tmp_path / folder, CELL)
    one, other = (cell_path(tmp_path / folder, CELL.identity).read_bytes() for folder in ("a", "b"))
    assert one == other


def other_value(value: object) -> object:
    return {int: 7, float: 7.5, bool: True, dict: {"decay": 0.5}}.get(type(value), "x")


@pytest.mark.parametrize("field", CellIdentity.model_fields)
def test_key_depends_on_every_field(field: str) -> None:
    identity = attacked()
    changed = identity.model_copy(update={field: other_value(getattr(identity, field))})
    assert getattr(changed, field) != getattr(identity, field)
    assert changed.key() != identity.key()


def test_key_is_a_sha256_that_does_not_depend_on_how_a_number_is_written() -> None:
    assert len(attacked().key()) == 64
    assert attacked(eps_255=8).key() == attacked(eps_255=8.0).key()
    assert attacked(eps_255=8.0).key() != attacked(eps_255=8.000001).key()


def test_clean_cell_belongs_to_target_and_inputs_alone() -> None:
    expected = clean_identity(MIXUP, INPUTS, 256)
    assert (expected.source, expected.attack, expected.eps_255, expected.steps) == (None, "clean", 0, 0)
    for change in ({}, {"source": MIXUP}, {"eps_255": 4}, {"attack": "ifgsm", "steps": 10}):
        assert attacked(**change).clean() == expected
    for change in ({"target": ERM}, {"inputs": "b" * 64}, {"batch_size": 8}, {"compiled": True}):
        assert attacked(**change).clean() != expected


def stand_elsewhere(path: Path) -> None:
    path.rename(path.with_name(f"{'0' * 64}.parquet"))


def stand_under_another_cells_name(path: Path) -> None:
    path.rename(path.with_name(f"{attacked(eps_255=16.0).key()}.parquet"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path) -> None:
    path.write_text("no parquet")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def table_of(path: Path) -> pa.Table:
    with path.open("rb") as file:
        return pq.read_table(file)


def with_metadata(table: pa.Table, **changes: str | bytes) -> pa.Table:
    new = {f"robustmix.{name}".encode(): value for name, value in changes.items()}
    return table.replace_schema_metadata({**table.schema.metadata, **new})


def seal(path: Path, table: pa.Table) -> None:
    """Write a file that is as it says itself, whatever it holds."""
    content = io.BytesIO()
    pq.write_table(with_metadata(table, sha256=BLANK), content)
    path.write_bytes(_sealed(content.getvalue()))


def drop_a_column(path: Path) -> None:
    seal(path, table_of(path).drop_columns(["gap"]))


def change_a_columns_type(path: Path) -> None:
    table = table_of(path)
    seal(path, table.set_column(5, "gap", table["gap"].cast(pa.float64())))


def change_the_identity(path: Path) -> None:
    seal(path, with_metadata(table_of(path), identity=attacked(eps_255=64.0).model_dump_json()))


def drop_the_metadata(path: Path) -> None:
    pq.write_table(table_of(path).replace_schema_metadata(None), path)


def drop_the_digest(path: Path) -> None:
    table = table_of(path)
    kept = {key: value for key, value in table.schema.metadata.items() if key != b"robustmix.sha256"}
    pq.write_table(table.replace_schema_metadata(kept), path)


def digest_in(path: Path) -> bytes:
    return pq.read_metadata(path).metadata[b"robustmix.sha256"]


def change_a_prediction(path: Path) -> None:
    table = table_of(path)
    changed = table.set_column(2, "prediction", pa.array([9] * table.num_rows, pa.int32()))
    pq.write_table(with_metadata(changed, sha256=digest_in(path)), path)


def change_the_facts(path: Path) -> None:
    facts = FACTS.model_copy(update={"target_name": "erm1"})
    pq.write_table(with_metadata(table_of(path), facts=facts.model_dump_json(), sha256=digest_in(path)), path)


@pytest.mark.parametrize(
    "spoil",
    [
        stand_elsewhere,
        stand_under_another_cells_name,
        cut,
        overwrite,
        empty,
        drop_a_column,
        change_a_columns_type,
        change_the_identity,
        drop_the_metadata,
        drop_the_digest,
        change_a_prediction,
        change_the_facts,
    ],
)
def test_cell_that_is_not_what_its_name_promises_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    whole = cell(attacked(eps_255=32.0), LABELS, LABELS)
    for each in (CELL, whole):
        write_cell(tmp_path, each)
    spoil(cell_path(tmp_path, CELL.identity))
    (path,) = set(tmp_path.iterdir()) - {cell_path(tmp_path, whole.identity)}
    content = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        read_cell(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert read_cells(tmp_path) == [whole]
    aside = path.with_suffix(".damaged")
    assert capsys.readouterr().err == f"warning: {caught.value}; it is set aside as {aside.name}\n"
    assert aside.read_bytes() == content
    assert not path.exists()


def test_file_names_the_sha256_that_it_has_with_other_words_in_its_place(tmp_path: Path) -> None:
    write_cell(tmp_path, CELL)
    path = cell_path(tmp_path, CELL.identity)
    content, digest = path.read_bytes(), digest_in(path)
    assert content.count(digest) == 1
    words = b"SHA-256 of this file with these words in its place.............."
    assert len(words) == len(digest)
    assert hashlib.sha256(content.replace(digest, words)).hexdigest().encode() == digest


def test_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    draw = random.Random(0)
    labels = [draw.randrange(10) for _ in range(400)]
    norms = [draw.random() for _ in labels]
    whole = cell(attacked(), labels, [draw.randrange(10) for _ in labels], norms, rounded=labels)
    write_cell(tmp_path, whole)
    path = cell_path(tmp_path, whole.identity)
    content = path.read_bytes()
    for place in draw.sample(range(8 * len(content)), 500):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read_cell(path)
        except StoreError:
            continue
        assert (found.identity, found.facts, found.rows) == (whole.identity, whole.facts, whole.rows)
    path.write_bytes(content)
    assert read_cell(path).rows == whole.rows


def test_cell_is_trusted_only_if_it_is_whole(tmp_path: Path) -> None:
    assert trusted_cell(tmp_path, CELL.identity) is None
    write_cell(tmp_path, CELL)
    assert trusted_cell(tmp_path, CELL.identity) == CELL
    cut(cell_path(tmp_path, CELL.identity))
    assert trusted_cell(tmp_path, CELL.identity) is None
    assert names(tmp_path) == [f"{CELL.key}.damaged"]


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [cut, overwrite, empty, change_a_prediction, drop_a_column, a_folder])
def test_what_a_cell_holds_is_the_only_damage(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = cell_path(tmp_path, CELL.identity)
    with pytest.raises(MissingError, match="it is missing"):
        read_cell(path)
    write_cell(tmp_path, CELL)
    spoil(path)
    with pytest.raises(DamagedError):
        read_cell(path)
    assert read_cells(tmp_path) == []
    assert names(tmp_path) == [f"{CELL.key}.damaged"]


REFUSALS = (errno.EMFILE, errno.ESTALE, errno.EIO, errno.EACCES)


@pytest.mark.parametrize("number", REFUSALS)
def test_cell_that_the_system_does_not_let_be_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refused(self: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(self))

    write_cell(tmp_path, CELL)
    path = cell_path(tmp_path, CELL.identity)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        for read in (
            lambda: read_cell(path),
            lambda: read_cells(tmp_path),
            lambda: trusted_cell(tmp_path, CELL.identity),
        ):
            with pytest.raises(StoreError) as caught:
                read()
            assert str(caught.value) == f"{path} cannot be read: {os.strerror(number)}"
    assert capsys.readouterr().err == ""
    assert read_cells(tmp_path) == [CELL]


def test_cell_that_may_not_be_looked_for_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, **_: Any) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    write_cell(tmp_path, CELL)
    monkeypatch.setattr(Path, "stat", refused)
    assert trusted_cell(tmp_path, CELL.identity) == CELL, "a single look, so that nothing changes in between"


def test_folder_of_cells_that_the_system_does_not_let_be_read_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path) -> Iterator[Path]:
        raise OSError(errno.EMFILE, "Too many open files", str(self))

    assert read_cells(tmp_path / "nowhere") == []
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file cannot be read: Not a directory$"):
        read_cells(tmp_path / "file")
    write_cell(tmp_path, CELL)
    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(StoreError) as caught:
        read_cells(tmp_path)
    assert str(caught.value) == f"{tmp_path} cannot be read: Too many open files"


def test_cell_that_another_job_sets_aside_in_this_moment_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cell(tmp_path, CELL)
    gone = attacked(eps_255=32.0)
    (tmp_path / f"{gone.key()}.parquet").symlink_to("nowhere")
    assert read_cells(tmp_path) == [CELL]
    assert trusted_cell(tmp_path, gone) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", ["results", "report"])
def test_verb_that_may_not_read_a_cell_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, verb: str
) -> None:
    def refused(self: Path) -> bytes:
        if self.suffix == ".parquet":
            raise OSError(errno.EMFILE, "Too many open files", str(self))
        return real(self)

    real, place = Path.read_bytes, Workspace(tmp_path)
    for each in (CELL, CLEAN_MIXUP, CLEAN_ERM):
        write_cell(place.cells, each)
    before = names(place.cells)
    monkeypatch.setattr(Path, "read_bytes", refused)
    done = call(verb)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.endswith(".parquet cannot be read: Too many open files\n")
    assert names(place.cells) == before


@pytest.mark.parametrize("digest", [True, False])
def test_cell_of_another_version_is_left_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], digest: bool
) -> None:
    other = replace(CELL, identity=CELL.identity.model_copy(update={"version": 1}))
    for each in (other, CLEAN_ERM):
        write_cell(tmp_path, each)
    path = cell_path(tmp_path, other.identity)
    if not digest:
        drop_the_digest(path)
    with pytest.raises(StoreError, match="written by another version of robustmix"):
        read_cell(path)
    assert read_cells(tmp_path) == [CLEAN_ERM]
    assert path.exists()
    assert capsys.readouterr().err == (
        f"1 cells in {tmp_path} were written by another version of robustmix and are left out\n"
    )


def test_the_state_of_the_source_is_averaged_over_examples() -> None:
    states = [BatchState(gap=(0.0,) * 7, saturated=share, zero_gradient=share / 2) for share in (0.0, 1.0)]
    size = CELL.rows.num_rows // 2 + 1
    identity = CELL.identity.model_copy(update={"batch_size": size})
    found = replace(CELL, identity=identity, facts=CELL.facts.model_copy(update={"batches": tuple(states)}))
    clean = replace(CLEAN_MIXUP, identity=identity.clean())
    row = results_table([found, clean], RUNS).set_index("attack").loc[identity.attack]
    expected = (CELL.rows.num_rows - size) / CELL.rows.num_rows
    assert row["saturated"] == pytest.approx(expected)
    assert row["zero_gradient"] == pytest.approx(expected / 2)


def test_images_of_all_targets_are_one_file(tmp_path: Path) -> None:
    path = gallery_path(tmp_path, attacked())
    assert path == gallery_path(tmp_path, attacked(target=ERM))
    for change in ({"source": MIXUP}, {"eps_255": 4.0}, {"batch_size": 8}, {"loss": "dlr"}):
        assert gallery_path(tmp_path, attacked(**change)) != path


def test_full_disk_while_a_cell_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_cell(tmp_path, CELL)
    with full_disk(300), pytest.raises(StoreError, match="No space left"):
        write_cell(tmp_path, CELL)
    assert read_cells(tmp_path)[0].rows.equals(CELL.rows)
    assert len(names(tmp_path)) == 1


# ---- the table -------------------------------------------------------------------------------------------


def run(name: str, weights: str | None, method: str = "erm", seed: int = 1) -> Run:
    recipe = Recipe.model_validate({"method": method, "seed": seed})
    return Run(name=name, recipe=recipe, facts=None, history=pd.DataFrame(), weights=weights)


RUNS = [run("erm1", ERM), run("mixup2", MIXUP, "mixup", 2)]
CLEAN_MIXUP = cell(
    clean_identity(MIXUP, INPUTS, 256), LABELS, [0, 1, 2, 3, 4, 9, 9, 7], norm=0, top5=[True] * 7 + [False]
)
CLEAN_ERM = cell(clean_identity(ERM, INPUTS, 256), LABELS, LABELS, norm=0)
WHITE = cell(attacked(target=ERM), LABELS, [9] * 8)


def test_row_of_a_transfer_attack() -> None:
    # CELL is wrong on 3, 4 and 5; unattacked, the target is wrong on 5 and 6
    table = results_table([CELL, CLEAN_MIXUP], RUNS)
    assert tuple(table.columns) == tuple(COLUMNS)
    row = table[table["role"] == "transfer"].iloc[0]
    assert (row["source"], row["target"], row["attack"], row["eps_255"]) == ("erm1", "mixup2", "fgsm", 8)
    assert (row["source_method"], row["target_method"]) == ("erm", "mixup")
    assert (row["source_group"], row["target_group"]) == ("erm", "mixup")
    assert (row["source_seed"], row["target_seed"]) == (1, 2)
    assert (row["n"], row["errors"], row["initially_correct"]) == (8, 3, 6)
    assert row["error"] == 3 / 8
    assert (row["error_low"], row["error_high"]) == wilson(3, 8)
    assert row["clean_error"] == 2 / 8
    assert row["success"] == pytest.approx(2 / 6), "of the initially correct, not of all"
    assert row["delta_max"] == pytest.approx(1)
    assert (row["forward"], row["backward"], row["batch_size"], row["data"]) == (3, 1, 256, "digits")
    assert pd.isna(row["error_uint8"])
    assert pd.isna(row["norm_median_255"])


def test_row_says_everything_about_the_attack() -> None:
    changes = {
        "attack": "mifgsm", "steps": 5, "step_255": 2.0, "norm": "l2", "loss": "dlr", "labels": "predicted", "seed": 3,
        "restarts": 4, "options": {"decay": 0.9}, "precision": "bf16", "impl": "foolbox",
    }  # fmt: skip
    (_, row) = results_table([cell(attacked(**changes), LABELS, LABELS), CLEAN_MIXUP], RUNS).to_dict("records")
    assert {key: row[key] for key in changes} == changes
    assert (row["compiled"], row["eps_255"]) == (False, 8)
    assert attack_label({str(key): value for key, value in row.items()}, brief=True) == (
        "mifgsm-5 x 2/255 L2 loss dlr 4 restarts predicted labels seed 3 bf16 by foolbox decay 0.9"
    )


def test_error_of_the_rounded_images() -> None:
    kept = cell(attacked(), LABELS, [9] * 8, rounded=[9, 9, 9, 3, 4, 5, 6, 7])
    row = results_table([kept, CLEAN_MIXUP], RUNS).iloc[-1]
    assert (row["error"], row["error_uint8"]) == (1, 3 / 8)


def test_smallest_perturbations_have_a_median_in_place_of_a_budget() -> None:
    # The target errs on 5 and 6 anyway, which count as 0; the attack fails on 4 and 7, which count as infinite.
    changes = {"attack": "deepfool", "norm": "l2", "eps_255": None, "steps": 50, "step_255": 0.0}
    norms = [length / 255 for length in (1.0, 2.0, 3.0, 4.0, 0.0, 6.0, 7.0, 0.0)]
    for predictions, median in (([9, 9, 9, 9, 4, 9, 9, 7], 2.5), ([0, 1, 9, 9, 4, 9, 9, 7], np.inf)):
        own = cell(attacked(source=MIXUP, **changes), LABELS, predictions, norm=norms)
        moved = cell(attacked(**changes), LABELS, predictions, norm=norms)
        table = results_table([own, moved, CLEAN_MIXUP], RUNS)
        assert table["role"].tolist() == ["clean", "white", "transfer"]
        assert table["norm_median_255"].iloc[1] == pytest.approx(median)
        assert table["norm_median_255"].isna().tolist() == [True, False, True], (
            "a source's perturbation, not a target's"
        )
        assert table["eps_255"].isna().tolist() == [False, True, True]
        assert table["delta_max"].isna().all()


def test_json_keeps_every_digit_and_tells_infinite_from_not_applicable(tmp_path: Path, call: Call) -> None:
    changes = {"attack": "deepfool", "norm": "l2", "eps_255": None, "steps": 50, "step_255": 1 / 3}
    place = Workspace(tmp_path)
    failing, working = [0, 1, 9, 9, 4, 9, 9, 7], [9] * 8
    for predictions, step in ((failing, 1 / 3), (working, 2 / 3)):
        identity = attacked(source=MIXUP, **{**changes, "step_255": step})
        write_cell(place.cells, cell(identity, LABELS, predictions, norm=[0.1] * 8))
    write_cell(place.cells, CLEAN_MIXUP)
    write_cell(place.cells, cell(attacked(attack="mifgsm", options={"decay": 1 / 7}), LABELS, LABELS))
    table = results_table(read_cells(place.cells), [], unnamed=True)
    done = call("results", "--format", "json", "--all")
    assert done.code == 0, done.err

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(done.out, parse_constant=refused)
    assert [list(row) for row in found] == [list(COLUMNS)] * 4
    for row, expected in zip(found, table.to_dict("records"), strict=True):
        for column, value in expected.items():
            if isinstance(value, float) and np.isinf(value):
                assert row[column] == "inf"
            elif not isinstance(value, dict) and pd.isna(value):
                assert row[column] is None
            else:
                assert (row[column], type(row[column])) == (value, type(value)), column
    by_step = {row["step_255"]: row["norm_median_255"] for row in found if row["attack"] == "deepfool"}
    assert by_step == {1 / 3: "inf", 2 / 3: float(np.float32(0.1)) * 255}
    assert [row["norm_median_255"] for row in found if row["attack"] != "deepfool"] == [None, None]
    assert [row["options"] for row in found if row["attack"] == "mifgsm"] == [{"decay": 1 / 7}]
    (tmp_path / "empty").mkdir()
    assert json.loads(call("results", "--format", "json", cwd=tmp_path / "empty").out) == []


def test_row_of_clean_predictions() -> None:
    (row,) = results_table([CLEAN_MIXUP], RUNS).to_dict("records")
    assert (row["role"], row["target"], row["attack"], row["eps_255"]) == ("clean", "mixup2", "clean", 0)
    assert row["error"] == row["clean_error"] == 2 / 8
    assert row["top5_error"] == 1 / 8
    assert all(pd.isna(row[name]) for name in ("source", "source_method", "source_seed", "success", "delta_max"))


def test_weights_that_attack_themselves_are_white_box() -> None:
    table = results_table([WHITE, CELL, CLEAN_ERM, CLEAN_MIXUP], RUNS)
    assert table["role"].tolist() == ["clean", "clean", "white", "transfer"]
    (row,) = table[table["role"] == "white"].to_dict("records")
    assert (row["source"], row["target"], row["error"], row["success"]) == ("erm1", "erm1", 1, 1)


def test_largest_perturbation_is_a_share_of_the_budget() -> None:
    half = cell(attacked(eps_255=16.0), LABELS, LABELS, norm=8 / 255)
    table = results_table([half, CLEAN_MIXUP], RUNS)
    assert table["delta_max"].iloc[-1] == pytest.approx(0.5)


def test_success_is_undefined_where_nothing_was_right_to_begin_with() -> None:
    nothing = cell(clean_identity(MIXUP, INPUTS, 256), LABELS, [9] * 8, norm=0)
    table = results_table([CELL, nothing], RUNS)
    assert table["initially_correct"].tolist() == [0, 0]
    assert table["success"].isna().all()


def test_missing_clean_cell_is_an_error() -> None:
    for cells in ([CELL], [CELL, CLEAN_ERM], [WHITE, CLEAN_MIXUP]):
        with pytest.raises(StoreError, match="has no clean cell of its target"):
            results_table(cells, RUNS)


def test_two_names_for_the_same_weights_get_a_row_each() -> None:
    table = results_table([CELL, WHITE, CLEAN_ERM, CLEAN_MIXUP], [*RUNS, run("copy", ERM)])
    assert sorted(table[table["role"] == "clean"]["target"]) == ["copy", "erm1", "mixup2"]
    assert sorted(table[table["role"] == "transfer"]["source"]) == ["copy", "erm1"]
    white = table[table["role"] == "white"]
    assert sorted(zip(white["source"], white["target"], strict=True)) == [
        ("copy", "copy"),
        ("copy", "erm1"),
        ("erm1", "copy"),
        ("erm1", "erm1"),
    ]


def test_weights_without_a_name_are_left_out_unless_asked_for() -> None:
    cells = [CELL, CLEAN_ERM, CLEAN_MIXUP]
    assert results_table(cells, RUNS[1:])["target"].tolist() == ["mixup2"]
    table = results_table(cells, RUNS[1:], unnamed=True)
    assert set(table["target"]) == {"mixup2", ERM[:12]}
    (row,) = table[table["role"] == "transfer"].to_dict("records")
    assert row["source"] == ERM[:12]
    assert pd.isna(row["source_method"])


def test_unfinished_runs_name_nothing() -> None:
    assert results_table([CLEAN_ERM], [run("erm1", None)]).empty


def test_models_of_others_bear_the_name_that_they_were_attacked_under() -> None:
    named = FACTS.model_copy(update={"source_name": "erm1", "target_name": "net.py:make"})
    clean = FACTS.model_copy(update={"source_name": None, "target_name": "net.py:make"})
    cells = [replace(CELL, facts=named), replace(CLEAN_MIXUP, facts=clean)]
    (model,) = foreign_bearers([*cells, CLEAN_ERM])
    assert model == ForeignModel("net.py:make", MIXUP)
    table = results_table(cells, [run("erm1", ERM), model])
    assert table["target"].tolist() == ["net.py:make"] * 2
    assert table["target_group"].tolist() == ["net.py:make"] * 2
    assert table[["target_method", "target_seed"]].isna().all(axis=None)
    other = replace(CLEAN_ERM, facts=clean)
    assert foreign_bearers([*cells, other]) == [
        ForeignModel("net.py:make@eeeeeeee", ERM),
        ForeignModel("net.py:make@ffffffff", MIXUP),
    ]
    crafts = FACTS.model_copy(update={"source_name": "timm:x"})
    assert foreign_bearers([replace(CELL, facts=crafts)]) == [ForeignModel("timm:x", ERM)]


def test_repeated_cells_count_once_and_order_does_not_matter() -> None:
    slow = {"attack": "mifgsm", "steps": 5, "step_255": 2.0}
    momenta = [cell(attacked(**slow, options={"decay": decay}), LABELS, LABELS) for decay in (0.5, 1.0)]
    cells = [CELL, CLEAN_ERM, CLEAN_MIXUP, WHITE, *momenta]
    table = results_table(cells, RUNS)
    pd.testing.assert_frame_equal(results_table([*cells[::-1], CELL], RUNS[::-1]), table)
    assert len(table) == 6


def test_no_cells_give_an_empty_table_with_all_columns() -> None:
    table = results_table([], RUNS)
    assert table.empty
    assert tuple(table.columns) == tuple(COLUMNS)


# ---- runs and workspaces ---------------------------------------------------------------------------------

RUN_FACTS = RunFacts(
    data="digits",
    like="digits",
    data_note=None,
    train_digest="d" * 64,
    train_examples=100,
    classes=10,
    parameters=1000,
    device="cpu",
    threads=1,
    robustmix="0",
    torch="2",
)
HISTORY = [{"epoch": 1, "test_error": 0.5, "train_error": np.nan}, {"epoch": 2, "test_error": 0.25, "train_error": 0.1}]


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A workspace with the finished run erm1."""
    folder = tmp_path / "runs" / "erm1"
    write_recipe(folder, Recipe(seed=1, epochs=2).resolved("digits"))
    write_history(folder, HISTORY, RUN_FACTS)
    (folder / "model.safetensors").write_bytes(b"weights")
    return Workspace(tmp_path)


def test_run_is_what_its_files_say(place: Workspace) -> None:
    found = read_run(place, "erm1")
    assert found == replace(found, facts=RUN_FACTS, recipe=Recipe(seed=1, epochs=2).resolved("digits"))
    assert found.weights == file_digest(place.runs / "erm1" / "model.safetensors")
    assert (found.finished, found.final("test_error"), len(found.history)) == (True, 0.25, 2)
    assert run_names(place) == ["erm1"]


def test_run_without_weights_has_not_finished_and_says_how_to_go_on(place: Workspace) -> None:
    (place.runs / "erm1" / "model.safetensors").unlink()
    assert not read_run(place, "erm1").finished
    with pytest.raises(
        CheckpointError, match=r"run 'erm1' has not finished: 2 of 2 epochs; go on with: robustmix train"
    ):
        finished_run(place, "erm1")


def test_run_before_its_first_epoch_has_no_figures(place: Workspace) -> None:
    write_recipe(place.runs / "new", Recipe())
    found = read_run(place, "new")
    assert (found.facts, found.finished, len(found.history)) == (None, False, 0)
    assert np.isnan(found.final("test_error"))


def test_unknown_run_is_refused_with_those_that_exist(place: Workspace) -> None:
    with pytest.raises(CheckpointError, match=r"unknown run 'emr1' \(did you mean 'erm1'\?\); choose from erm1"):
        read_run(place, "emr1")
    with pytest.raises(CheckpointError, match="there is none yet"):
        read_run(Workspace(place.root / "nowhere"), "erm1")
    assert run_names(Workspace(place.root / "nowhere")) == []


@pytest.mark.parametrize("file", ["recipe.json", "history.parquet"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_damaged_file_of_a_run_is_one_line_that_names_it(place: Workspace, file: str, content: bytes) -> None:
    (place.runs / "erm1" / file).write_bytes(content)
    with pytest.raises(RobustmixError) as caught:
        read_run(place, "erm1")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "seed", "group"),
    [("erm1", 1, "erm"), ("erm", 0, "erm"), ("mixup-0.2-10", 10, "mixup-0.2"), ("7", 7, "7"), ("erm2", 1, "erm2")],
)
def test_group_is_the_name_without_the_seed(name: str, seed: int, group: str) -> None:
    assert run(name, None, seed=seed).group == group


def test_workspace_is_the_argument_then_the_variable_then_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Workspace.find().root == Path()
    monkeypatch.setenv("ROBUSTMIX_WORKSPACE", str(tmp_path / "variable"))
    assert Workspace.find().root == tmp_path / "variable"
    assert Workspace.find(tmp_path / "argument").root == tmp_path / "argument"
    assert Workspace.find("~/x").root == Path("~/x").expanduser()


def test_names_cannot_lead_out_of_a_workspace(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for name in ("../x", "/etc", "a/b", "..", ""):
        for folder in (place.run, place.report):
            with pytest.raises(SpecError, match="not a usable name"):
                folder(name)
    assert place.run("erm1") == tmp_path / "runs" / "erm1"
    assert place.report("demo") == tmp_path / "reports" / "demo"
    assert place.cells == tmp_path / "results" / "cells"
    assert not list(tmp_path.iterdir())
