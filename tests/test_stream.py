"""Streaming: the same images, labels, order and digest as in memory, and nothing left behind, whatever happens."""

import itertools
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustmix import evaluation, measurement
from robustmix.data import Augmentation, Dataset, Share, StreamedSplit, TensorSplit, folder, load_data, stream
from robustmix.errors import DataError, SpecError
from robustmix.evaluation import compute
from robustmix.planning import make_plan
from robustmix.spec.attack import AttackSpec
from robustmix.spec.names import Augment
from robustmix.spec.suite import Suite
from robustmix.store.cell_files import read_cells
from robustmix.store.cells import Cell
from robustmix.store.workspace import Workspace
from robustmix.team import Team

# torch advises against more workers than there are cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CPU = torch.device("cpu")
COUNTS = {"train": 11, "test": 7}
SIZE = (9, 6)


def write_folder(root: Path, modes: tuple[str, ...]) -> Path:
    """Two classes of noise, 22 images to train on and 14 to test on, whose files take turns in their modes."""
    draws = np.random.default_rng(0)
    for half, count in COUNTS.items():
        for label in ("cat", "dog"):
            (root / half / label).mkdir(parents=True)
            for number in range(count):
                mode = modes[number % len(modes)]
                pixels = draws.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
                suffix = "jpg" if mode in ("L", "RGB", "CMYK") and number % 2 else "tif" if mode == "CMYK" else "png"
                Image.fromarray(pixels).convert(mode).save(root / half / label / f"{number:02d}.{suffix}")
    return root


@pytest.fixture
def tree(tmp_path: Path, own_cache: Path) -> Path:
    return write_folder(tmp_path / "data" / "noise", ("RGB",))


def load(root: Path, **options: Any) -> Dataset:
    return load_data(f"folder:{root.name}", root.parent, **options)


def streamed(root: Path, half: str = "test", workers: int = 0) -> StreamedSplit:
    split = getattr(load(root, stream=True, workers=workers), half)
    assert isinstance(split, StreamedSplit)
    return split


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded in this process, in order."""
    names: list[str] = []
    read_image = folder.read_image

    def spy(file: str, *rest: Any) -> np.ndarray:
        names.append(Path(file).name)
        return read_image(file, *rest)

    monkeypatch.setattr(folder, "read_image", spy)
    return names


# ---- the same as in memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("modes", "channels"),
    [(("RGB",), 3), (("L", "1"), 1), (("L", "L", "L", "L", "RGB"), 3), (("L", "LA"), 3), (("P", "RGBA", "CMYK"), 3)],
    ids=["colour", "grey", "one in five coloured", "grey with transparency", "palette, transparency, print"],
)
def test_images_labels_order_and_digest_are_those_in_memory(
    tmp_path: Path, own_cache: Path, modes: tuple[str, ...], channels: int, workers: int
) -> None:
    root = write_folder(tmp_path / "noise", modes)
    files, memory = load(root, stream=True, workers=workers), load(root, stream=False)
    assert files.shape == memory.shape == (channels, SIZE[1], SIZE[0])
    assert (files.classes, files.name, files.spec) == (memory.classes, memory.name, memory.spec)
    for ours, theirs in ((files.train, memory.train), (files.test, memory.test)):
        assert isinstance(ours, StreamedSplit)
        assert isinstance(theirs, TensorSplit)
        assert len(ours) == len(theirs) == len(theirs.labels)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.labels.dtype == torch.int64
        for image, file in zip(theirs.images, ours.files, strict=True):
            whole = np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1)
            assert np.array_equal(image, whole[:channels])
        assert ours.digest() == theirs.digest()
        parts = [torch.tensor([5]), torch.tensor([13, 0, 5, 5]), torch.arange(len(ours)), torch.arange(3, 9)]
        batches = list(ours.batches(parts, CPU))
        for part, (x, y), expected in zip(parts, batches, theirs.batches(parts, CPU), strict=True):
            assert x.dtype == torch.float32
            assert torch.equal(x, theirs.images[part].float() / 255)
            assert torch.equal(x, expected[0])
            assert torch.equal(y, theirs.labels[part])
            assert torch.equal(y, expected[1])


def test_parts_of_it_are_those_in_memory(tree: Path) -> None:
    files, memory = load(tree, stream=True), load(tree, stream=False)
    for count in (1, 9, 22, 50, None):
        assert len(files.train.first(count)) == len(memory.train.first(count))
        assert files.train.first(count).digest() == memory.train.first(count).digest()
    indices = torch.tensor([4, 21, 0])
    assert files.train.take(indices).digest() == memory.train.take(indices).digest()
    ours, theirs = files.with_validation(8), memory.with_validation(8)
    assert ours.val is not None
    assert theirs.val is not None
    assert (len(ours.train), len(ours.val)) == (14, 8)
    assert ours.train.digest() == theirs.train.digest()
    assert ours.val.digest() == theirs.val.digest()
    split = streamed(tree)
    assert split.to(CPU) is split


def test_a_part_keeps_the_channels_of_the_whole(tmp_path: Path, own_cache: Path) -> None:
    files = load(write_folder(tmp_path / "noise", ("L", "L", "L", "L", "RGB")), stream=True).train
    grey = torch.tensor([index for index, file in enumerate(files.files) if Path(file).stem not in ("04", "09")])
    x, _ = next(files.take(grey).batches([torch.arange(len(grey))], CPU))
    assert x.shape == (18, 3, SIZE[1], SIZE[0])
    assert torch.equal(x[:, 0], x[:, 2])


def test_nothing_is_decoded_before_it_is_asked_for_and_nothing_is_kept(
    tree: Path, own_cache: Path, decoded: list[str]
) -> None:
    split = streamed(tree)
    assert decoded == []
    for _ in range(2):
        next(split.batches([torch.tensor([1, 0]), torch.tensor([2])], CPU))
    assert decoded == [Path(split.files[index]).name for index in (1, 0)] * 2
    assert not own_cache.exists()


# ---- training --------------------------------------------------------------------------------------------


def shares(batches: int = 4) -> list[Share]:
    """What the second of two processes needs of batches of six."""
    draws = np.random.default_rng(0)
    parts = [torch.from_numpy(draws.permutation(22)[:3]) for _ in range(batches)]
    return [Share(rows, torch.tensor([3, 5, 1]), 6, step) for step, rows in enumerate(parts)]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("how", ["none", "crop", "crop-flip"])
def test_training_batches_are_those_in_memory_whatever_the_number_of_workers(
    tree: Path, how: Augment, workers: int
) -> None:
    files, memory = streamed(tree, "train", workers), load(tree, stream=False).train
    augmentation = Augmentation(how, 3, 1)
    found = list(files.training_batches(shares(), CPU, augmentation))
    for (x, y), (x_memory, y_memory) in zip(found, memory.training_batches(shares(), CPU, augmentation), strict=True):
        assert torch.equal(x, x_memory)
        assert torch.equal(y, y_memory)
        assert x.is_contiguous(memory_format=torch.channels_last)
    assert files.augments == memory.augments


@pytest.mark.parametrize("workers", [0, 2])
def test_training_takes_its_shares_only_a_few_batches_ahead(tree: Path, workers: int) -> None:
    taken = []

    def endless() -> Iterator[Share]:
        for step in itertools.count():
            taken.append(step)
            yield Share(torch.tensor([step % 22]), torch.arange(1), 1, step)

    split = streamed(tree, "train", workers)
    batches = split.training_batches(endless(), CPU, Augmentation("none", 0, 0))
    assert taken == []
    for step in range(5):
        _, y = next(batches)
        assert y.item() == split.labels[step]
    assert len(taken) <= 5 + 2 * workers
    batches.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_training_image_that_is_wrong_is_named_in_one_line(tree: Path, workers: int) -> None:
    split = streamed(tree, "train", workers)
    Path(split.files[shares()[2].rows[1]]).write_text("no image")
    batches = split.training_batches(shares(), CPU, Augmentation("crop", 0, 0))
    with pytest.raises(DataError, match=r"^folder:noise: .* cannot be decoded: ") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_channel_statistics_are_those_in_memory_and_cost_one_pass(tree: Path, decoded: list[str]) -> None:
    files = streamed(tree, "train")
    mean, std = files.channel_statistics()
    expected = load(tree, stream=False).train.channel_statistics()
    assert torch.equal(mean, expected[0])
    assert torch.equal(std, expected[1])
    decoded.clear()
    again = streamed(tree, "train").relabelled(1 - files.labels).channel_statistics()
    assert torch.equal(again[0], mean)
    assert torch.equal(again[1], std)
    assert decoded == []
    files.first(5).channel_statistics()
    assert len(decoded) == 5


def test_other_labels_come_with_the_same_images(tree: Path) -> None:
    files, memory = streamed(tree, "train"), load(tree, stream=False).train
    labels = 1 - files.labels
    _, y = next(files.relabelled(labels).batches([torch.arange(22)], CPU))
    assert torch.equal(y, labels)
    assert files.relabelled(labels).digest() == memory.relabelled(labels).digest() != files.digest()


# ---- the digest ------------------------------------------------------------------------------------------


def test_digest_is_of_the_content_not_of_the_place_or_the_time(tree: Path, tmp_path: Path) -> None:
    digest = streamed(tree).digest()
    shutil.copytree(tree, tmp_path / "copy")
    assert streamed(tmp_path / "copy").digest() == digest
    for file in tree.rglob("*.*"):
        os.utime(file, (1, 1))
    assert streamed(tree).digest() == digest
    image, label = next((tree / "test").rglob("*.png")), tree / "test" / "cat" / "00.png"
    pixels = np.array(Image.open(image))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    changed = streamed(tree).digest()
    label.rename(tree / "test" / "dog" / "99.png")
    assert len({digest, changed, streamed(tree).digest()}) == 3


def test_digest_costs_one_pass_until_a_file_changes(tree: Path, decoded: list[str]) -> None:
    file = tree / "test" / "dog" / "11.bmp"
    shutil.copy(tree / "test" / "dog" / "00.png", file)
    Image.open(file).save(file)
    digest = streamed(tree).digest()
    assert len(decoded) == 15
    assert streamed(tree).digest() == digest
    assert len(decoded) == 15

    stat = file.stat()
    Image.open(file).transpose(Image.Transpose.ROTATE_180).save(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file.stat().st_size == stat.st_size
    assert streamed(tree).digest() != digest
    assert len(decoded) == 30

    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    streamed(tree).digest()
    assert len(decoded) == 45


def test_digest_of_another_part_label_or_shape_is_not_mistaken_for_a_remembered_one(tree: Path) -> None:
    split = streamed(tree)
    others = (replace(split, labels=1 - split.labels), replace(split, shape=(1, *split.shape[1:])))
    digests = {part.digest() for part in (split, split.first(5), split.take(torch.arange(13, -1, -1)), *others)}
    assert len(digests) == 5


def test_another_pillow_may_decode_otherwise(tree: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    streamed(tree).digest()
    monkeypatch.setattr(stream.PIL, "__version__", "0.0")
    streamed(tree).digest()
    assert len(decoded) == 28


def test_digest_without_a_cache_is_given_with_a_warning(
    tree: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cache.parent.mkdir(exist_ok=True)
    own_cache.write_text("a file where the folder should be")
    assert streamed(tree).digest() == load(tree, stream=False).test.digest()
    assert "warning: the digest of folder:noise cannot be kept" in capsys.readouterr().err


# ---- what is wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:80]), r"04\.png cannot be decoded: "),
        (lambda file: file.write_text("no image"), r"04\.png cannot be decoded: "),
        (lambda file: file.unlink(), r"04\.png cannot be (decoded|read): .*No such file"),
        (lambda file: Image.new("RGB", (9, 7)).save(file), r"/\d\d\.(png|jpg) is 9x6, .*04\.png is 9x7; resize them"),
        (lambda file: Image.new("I;16", SIZE).save(file), r"04\.png has more than 8 bits per channel"),
    ],
    ids=["truncated", "no image", "gone", "another size", "16 bits"],
)
def test_wrong_image_is_named_in_one_line_in_batches_and_digest(
    tree: Path, spoil: Any, message: str, workers: int
) -> None:
    split = streamed(tree, workers=workers)
    file = tree / "test" / "dog" / "04.png"
    where = split.files.index(str(file))
    assert split.shaped_by != str(file)
    spoil(file)
    parts = [torch.arange(len(split))[torch.arange(len(split)) != where], torch.tensor([0, where])]
    batches = split.batches(parts, CPU)
    assert len(next(batches)[1]) == 13
    for look in (lambda: next(batches), split.digest):
        with pytest.raises(DataError, match=message) as caught:
            look()
        assert str(caught.value).startswith("folder:noise: ")
        assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_test_images_of_another_shape_are_refused_before_any_is_decoded(tree: Path, decoded: list[str]) -> None:
    for file in (tree / "test").rglob("*.*"):
        Image.open(file).convert("L").save(file)
    with pytest.raises(DataError, match=r"test images are \[1, 6, 9\], training images \[3, 6, 9\]"):
        load(tree, stream=True)
    assert decoded == []


def test_what_needs_images_in_memory_is_refused(tree: Path) -> None:
    data = load(tree, stream=True)
    with pytest.raises(DataError, match=r"^folder:noise: 22 images \(.* decoded\) are streamed .* memory") as caught:
        data.train.in_memory()
    assert "\n" not in str(caught.value)
    memory = load(tree, stream=False).train
    assert memory.in_memory() is memory


@pytest.mark.parametrize("spec", ["digits", "cifar10", "npz:some.npz", "nothing"])
def test_only_folders_can_be_streamed(spec: str, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=rf"data '{spec}' cannot be streamed; only imagenet:PATH and folder:NAME_OR_PATH can"
    ):
        load_data(spec, tmp_path, stream=True)


def test_number_of_workers_is_checked() -> None:
    with pytest.raises(SpecError, match="workers -1 must be at least 0"):
        load_data("digits", workers=-1)


# ---- workers ---------------------------------------------------------------------------------------------


def interrupted(batches: Iterator[Any]) -> None:
    for _ in batches:
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt


def left_alone(batches: Iterator[Any]) -> None:
    for _ in batches:
        break


def used_up(batches: Iterator[Any]) -> None:
    assert len(list(batches)) == 14


@pytest.mark.parametrize("use", [interrupted, left_alone, used_up])
def test_workers_end_with_the_iteration(tree: Path, use: Any) -> None:
    batches = streamed(tree, workers=2).batches(torch.arange(14).split(1), CPU)
    try:
        use(batches)
    except KeyboardInterrupt:
        assert use is interrupted
    del batches
    assert multiprocessing.active_children() == []


def test_workers_have_one_thread_each_and_draw_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers are forked, so they inherit the patch.
    monkeypatch.setattr(
        folder, "read_image", lambda *_: np.full((SIZE[1], SIZE[0], 3), torch.get_num_threads(), np.uint8)
    )
    split, threads, state = streamed(tree, workers=2), torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)
    try:
        seen = torch.cat([x for x, _ in split.batches(torch.arange(14).split(4), CPU)])
    finally:
        torch.set_num_threads(threads)
    assert ((seen * 255).round() == 1).all()
    assert torch.equal(torch.get_rng_state(), state)


# ---- attacks ---------------------------------------------------------------------------------------------

# Somebody's network, which knows the images to test on by heart.
NET = """
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from torch import nn

def net():
    files = sorted(Path({root!r}, "test").rglob("*.*"))
    x = torch.tensor(np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1).ravel() for file in files])) / 255 - 0.5
    weight = torch.linalg.pinv(x) @ torch.tensor([1.0 if file.parent.name == "dog" else -1.0 for file in files])
    linear = nn.Linear(x.shape[1], 2)
    linear.weight.data = torch.stack([-weight, weight])
    linear.bias.data = torch.tensor([weight.sum() / 2, -weight.sum() / 2])
    return nn.Sequential(nn.Flatten(), linear)
"""


def attacked(root: Path, place: Path, **options: Any) -> dict[str, Cell]:
    """The cells of an evaluation in a workspace of its own: four batches, the last one smaller."""
    net = root.parent / "net.py"
    net.write_text(NET.format(root=str(root)))
    attacks = AttackSpec(name="fgsm", eps=(8, 16)), AttackSpec(name="ifgsm", eps=(8,), steps=2)
    wanted = Suite(version=1, title="t", sources=(f"{net}:net",), data=f"folder:{root.name}", attack=attacks)
    plan = make_plan(wanted, Workspace(place), batch_size=4, data_root=root.parent, **options)
    assert isinstance(plan.inputs, StreamedSplit if options["stream"] else TensorSplit)
    compute(plan, Workspace(place), Team(CPU))
    cells = {cell.key: cell for cell in read_cells(Workspace(place).cells)}
    assert len(cells) == 1 + 2 + 1
    return cells


@pytest.mark.parametrize("workers", [0, 2])
def test_attacks_on_streamed_images_give_the_cells_of_those_in_memory(tree: Path, tmp_path: Path, workers: int) -> None:
    ours = attacked(tree, tmp_path / "streamed", stream=True, workers=workers)
    theirs = attacked(tree, tmp_path / "memory", stream=False)
    assert ours.keys() == theirs.keys()
    for key, cell in theirs.items():
        assert ours[key].rows.equals(cell.rows)
        assert ours[key].facts.data_spec == cell.facts.data_spec
    attacks = [cell for cell in theirs.values() if cell.identity.source]
    assert any(cell.rows["norm"].to_numpy().max() > 0 for cell in attacks)


class Clock:
    """Seconds that pass only when something says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("reading", "computing", "share", "percent"),
    [(1, 1, 0.5, "50%"), (3, 1, 0.75, "75%"), (1, 9, 0.1, "10%"), (1, 24, 0.04, None), (0, 1, 0, None)],
)
def test_time_that_goes_into_waiting_for_data_is_recorded_and_told(
    reading: int,
    computing: int,
    share: float,
    percent: str | None,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a clock of its own: each image takes so many seconds to read, and as much per image goes into the rest."""
    clock, read_image, measure = Clock(), folder.read_image, evaluation.measure

    def slow_reader(*arguments: Any) -> np.ndarray:
        clock.now += reading
        return read_image(*arguments)

    def slow_device(*arguments: Any) -> Any:
        measured = measure(*arguments)
        clock.now += computing * COUNTS["test"] * 2
        return measured

    monkeypatch.setattr(folder, "read_image", slow_reader)
    monkeypatch.setattr(evaluation, "measure", slow_device)
    for module in (evaluation, measurement):
        monkeypatch.setattr(module, "time", clock)
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "is_idle", lambda device: False)
        busy = attacked(tree, tmp_path / "busy", stream=True)
        assert {cell.facts.data_wait for cell in busy.values()} == {0}, "a device with work left waits for nothing"
        capsys.readouterr()
    cells = attacked(tree, tmp_path / "here", stream=True)
    assert {cell.facts.data_wait for cell in cells.values()} == {share}
    assert {cell.facts.unit_seconds for cell in cells.values()} == {14 * (reading + computing)}
    told = [line for line in capsys.readouterr().err.splitlines() if "waiting for data" in line]
    assert len(told) == (3 if percent else 0), "once per unit"
    assert all(f": {percent} of the time went into waiting for data (--workers)" in line for line in told)


# ---- when ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modes", "channels"), [(("RGB",), 3), (("L", "1"), 1), (("L", "L", "L", "RGB"), 3)])
def test_folder_is_streamed_if_it_would_fill_more_than_half_of_the_free_memory(
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    modes: tuple[str, ...],
    channels: int,
) -> None:
    root = write_folder(tmp_path / "noise", modes)
    size = (22 + 14) * channels * SIZE[0] * SIZE[1]
    monkeypatch.setattr(folder, "available_memory", lambda: 2.0 * size)
    assert isinstance(load(root).test, TensorSplit)
    assert isinstance(load(root, stream=True).test, StreamedSplit)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(folder, "available_memory", lambda: 2.0 * size - 1)
    data = load(root, workers=2)
    assert isinstance(data.train, StreamedSplit)
    assert isinstance(data.test, StreamedSplit)
    assert data.test.workers == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("folder:noise: ")
    assert "more than half of the free memory" in line
    assert isinstance(load(root, stream=False).test, TensorSplit)


def test_available_memory_is_part_of_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < folder.available_memory() <= total

    def no_proc(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", no_proc)
    assert folder.available_memory() == total


# ---- the large data --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_jpegs_stream_as_they_are_in_memory(large_data: Path, own_cache: Path) -> None:
    if not (large_data / "tiny-imagenet-20").is_dir():
        pytest.skip(f"{large_data} has no tiny-imagenet-20/")
    ours = load_data("folder:tiny-imagenet-20", large_data, stream=True, workers=2).test.first(500)
    theirs = load_data("folder:tiny-imagenet-20", large_data, stream=False).test.first(500)
    assert ours.shape == theirs.shape == (3, 64, 64)
    assert ours.digest() == theirs.digest()
    parts = torch.arange(500).split(64)
    for (x, y), (x_memory, y_memory) in zip(ours.batches(parts, CPU), theirs.batches(parts, CPU), strict=True):
        assert torch.equal(x, x_memory)
        assert torch.equal(y, y_memory)
    assert len(ours.labels.unique()) == 20
