"""Every kind of data: exact contents, one clear error for each way in which it can be wrong, and the cache."""

import builtins
import hashlib
import io
import os
import pickle
import struct
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import library

from robustmix.data import Augmentation, Dataset, Share, TensorSplit, data_root, folder, load_data
from robustmix.data.augment import augment
from robustmix.data.memory import tensor_split
from robustmix.errors import DataError, RobustmixError, SpecError
from robustmix.rng import Stream, generator
from robustmix.spec.names import Augment
from robustmix.spec.recipe import Recipe

CPU = torch.device("cpu")


def one_line(error: pytest.ExceptionInfo[RobustmixError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- digits ----------------------------------------------------------------------------------------------


def test_digits_are_sklearns_in_256_grey_levels_with_the_last_360_as_test_set() -> None:
    from sklearn.datasets import load_digits

    raw, data = load_digits(), load_data("digits")
    images = torch.cat([data.train.images, data.test.images])
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert (len(data.train), len(data.test)) == (1437, 360)
    for grey in range(17):
        level = int(grey * 255 / 16 + 0.5)
        assert torch.equal(images[:, 0] == level, torch.from_numpy(raw.images == grey))
    assert torch.equal(torch.cat([data.train.labels, data.test.labels]), torch.from_numpy(raw.target).long())
    assert data.train.labels.dtype == torch.int64
    assert (data.classes, data.like, data.shape) == (tuple("0123456789"), "digits", (1, 8, 8))


def test_digits_are_the_default_and_are_neither_flipped_nor_shifted() -> None:
    assert load_data().spec == Recipe().data == "digits"
    assert Recipe().resolved("digits").augment == "none"


def test_gather_gives_pixels_in_0_to_1_and_their_labels() -> None:
    split = load_data("digits").test
    indices = torch.tensor([7, 0, 359])
    x, y = split.gather(indices, CPU)
    assert x.dtype == torch.float32
    assert torch.equal(x, split.images[[7, 0, 359]].float() / 255)
    assert torch.equal(y, split.labels[[7, 0, 359]])
    assert (float(x.min()), float(x.max())) == (0, 1)


def test_first_examples_are_nested() -> None:
    split = load_data("digits").train
    for count in (1, 10, 1437, 5000):
        part = split.first(count)
        assert len(part) == min(count, 1437)
        assert torch.equal(part.images, split.images[:count])
        assert torch.equal(part.labels, split.labels[:count])
    assert len(split.first(None)) == 1437


def test_digest_depends_on_every_image_label_and_the_shape() -> None:
    split = load_data("digits").test.first(20)
    other_pixel, other_label = split.images.clone(), split.labels.clone()
    other_pixel[19, 0, 7, 7] += 1
    other_label[19] += 1
    digests = {
        part.digest()
        for part in (
            split,
            TensorSplit(other_pixel, split.labels),
            TensorSplit(split.images, other_label),
            TensorSplit(split.images.reshape(20, 1, 4, 16), split.labels),
            TensorSplit(split.images.flip(0), split.labels.flip(0)),
            split.first(19),
        )
    }
    assert len(digests) == 6
    channels_last = split.images.repeat(1, 3, 1, 1)
    assert (
        TensorSplit(channels_last, split.labels).digest()
        == TensorSplit(channels_last.contiguous(memory_format=torch.channels_last), split.labels).digest()
    )


def test_channel_statistics_are_mean_and_deviation_of_each_channel() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 3
    images[:, 2] = 7
    mean, std = TensorSplit(images, torch.zeros(50, dtype=torch.int64)).channel_statistics()
    pixels = images.double() / 255
    torch.testing.assert_close(mean.double(), pixels.mean(dim=(0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std[:2].double(), pixels[:, :2].std(dim=(0, 2, 3), unbiased=False), rtol=1e-6, atol=0)
    assert float(std[2]) == 1, "a constant channel must not be divided by zero"


# ---- validation ------------------------------------------------------------------------------------------


def rows(split: TensorSplit) -> Counter[bytes]:
    return Counter(
        image.numpy().tobytes() + bytes([int(label)]) for image, label in zip(split.images, split.labels, strict=True)
    )


def test_validation_is_disjoint_complete_and_fixed() -> None:
    data = load_data("digits")
    parts = data.with_validation(237)
    assert parts.val is not None
    assert (len(parts.train), len(parts.val), len(parts.test)) == (1200, 237, 360)
    assert rows(parts.train) + rows(parts.val) == rows(data.train)
    assert parts.val.digest() == (data.with_validation(237).val or parts.train).digest()
    assert parts.test.digest() == data.test.digest()
    assert len(parts.val.labels.unique()) == 10


def test_smaller_validation_splits_lie_within_larger_ones() -> None:
    data = load_data("digits")
    small, large = (data.with_validation(count).val for count in (50, 200))
    assert small is not None
    assert large is not None
    assert rows(small) <= rows(large)


def test_no_validation_and_too_much_of_it() -> None:
    data = load_data("digits")
    assert data.with_validation(0) is data
    assert len(data.with_validation(1436).train) == 1
    for count in (1437, 5000):
        with pytest.raises(DataError, match=f"--val {count} leaves nothing to train on") as caught:
            data.with_validation(count)
        assert "1437 training examples" in one_line(caught)


# ---- training batches ------------------------------------------------------------------------------------


def test_training_batches_are_the_examples_of_each_share(own_cache: Path) -> None:
    split = load_data("digits").train
    shares = [
        Share(torch.tensor([7, 0, 7]), torch.arange(3), 3, 0),
        Share(torch.tensor([1436]), torch.tensor([4]), 5, 1),
    ]
    batches = split.training_batches(shares, CPU, Augmentation("none", 0, 0))
    for share, (x, y) in zip(shares, batches, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, split.images[share.rows].float() / 255)
        assert torch.equal(y, split.labels[share.rows])


@pytest.mark.parametrize("how", ["crop", "crop-flip"])
def test_training_batches_are_augmented_as_pixels_would_be_and_lie_channels_last(how: Augment) -> None:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8, generator=draws)
    split = TensorSplit(pixels, torch.arange(50))
    share, augmentation = (
        Share(torch.randperm(50, generator=draws)[:20], torch.arange(20) * 2, 40, 3),
        Augmentation(how, 1, 2),
    )
    ((x, y),) = split.training_batches([share], CPU, augmentation)
    assert torch.equal(x, augment(pixels[share.rows].float() / 255, augmentation, share))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, share.rows)


def test_shares_are_taken_one_by_one() -> None:
    taken = []

    def shares() -> Iterator[Share]:
        for step in range(3):
            taken.append(step)
            yield Share(torch.tensor([step]), torch.arange(1), 1, step)

    batches = load_data("digits").train.training_batches(shares(), CPU, Augmentation("none", 0, 0))
    assert taken == []
    next(batches)
    assert taken == [0]


def test_inputs_that_are_no_images_are_trained_on_as_they_are() -> None:
    inputs = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    split = TensorSplit(inputs, torch.arange(6))
    ((x, y),) = split.training_batches(
        [Share(torch.tensor([5, 1]), torch.arange(2), 2, 0)], CPU, Augmentation("none", 0, 0)
    )
    assert torch.equal(x, inputs[[5, 1]])
    assert y.tolist() == [5, 1]
    assert split.augments == ("none",)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA's")
def test_training_batches_on_a_gpu_are_those_of_the_cpu_and_the_host_never_waits() -> None:
    split, augmentation = load_data("digits").train, Augmentation("crop-flip", 0, 0)
    shares = [Share(torch.arange(64), torch.arange(64), 64, step) for step in range(3)]
    device = torch.device("cuda")
    moved = split.to(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(moved.training_batches(shares, device, augmentation))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (x, y), (x_cpu, y_cpu) in zip(found, split.training_batches(shares, CPU, augmentation), strict=True):
        assert torch.equal(y.cpu(), y_cpu)
        torch.testing.assert_close(x.cpu(), x_cpu)


# ---- image folders ---------------------------------------------------------------------------------------


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path: Path, own_cache: Path) -> Path:
    """A folder of real digits: classes 0, 1 and 2, eight images to train on and three to test on."""
    data, root = load_data("digits"), tmp_path / "data" / "small"
    for half, split, count in (("train", data.train, 8), ("test", data.test, 3)):
        for label in range(3):
            for number, index in enumerate((split.labels == label).nonzero().flatten()[:count].tolist()):
                save(root / half / ("zero", "one", "two")[label] / f"{number:03d}.png", split.images[index, 0].numpy())
    return root


def stored(root: Path, half: str, classes: tuple[str, ...]) -> Counter[bytes]:
    """What the files of a folder hold, read one by one."""
    return Counter(
        np.asarray(Image.open(path)).tobytes() + bytes([classes.index(path.parent.name)])
        for path in (root / half).rglob("*.png")
    )


def load(root: Path) -> Dataset:
    return load_data(f"folder:{root.name}", root.parent)


def test_folder_holds_each_file_once_with_its_class(tree: Path) -> None:
    data = load(tree)
    assert data.classes == ("one", "two", "zero")
    assert (data.name, data.spec, data.like, data.note) == ("small", "folder:small", None, None)
    assert data.train.images.shape == (24, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert data.test.labels.dtype == torch.int64
    assert rows(data.train) == stored(tree, "train", data.classes)
    assert rows(data.test) == stored(tree, "test", data.classes)


def test_folder_is_found_by_path_as_well_and_under_the_root_first(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_data(f"folder:{tree}").train.digest() == load(tree).train.digest()
    monkeypatch.chdir(tree.parent)
    assert load_data("folder:small").train.digest() == load(tree).train.digest()
    elsewhere = tree.parent.parent / "other" / "small"
    for half in ("train", "test"):
        for label in ("x", "y"):
            save(elsewhere / half / label / "0.png", np.full((9, 9), 5, np.uint8))
    assert load_data("folder:small", elsewhere.parent).classes == ("x", "y")
    monkeypatch.setenv("ROBUSTMIX_DATA", str(elsewhere.parent))
    assert load_data("folder:small").classes == ("x", "y")


def test_folder_order_is_one_fixed_permutation_that_mixes_the_classes(tree: Path, tmp_path: Path) -> None:
    data = load(tree)
    expected = torch.arange(3).repeat_interleave(8)[torch.from_numpy(generator(0, Stream.FOLDER).permutation(24))]
    assert torch.equal(data.train.labels, expected)
    assert len(data.train.first(9).labels.unique()) == 3
    copy = tmp_path / "elsewhere"
    tree.rename(copy)
    assert load(copy).train.digest() == data.train.digest()


def test_grey_files_give_one_channel_and_one_coloured_file_gives_three(tree: Path) -> None:
    assert load(tree).shape == (1, 8, 8)
    file = tree / "train" / "zero" / "000.png"
    grey = np.asarray(Image.open(file))
    save(file, np.stack([grey, grey, grey // 2], axis=2))
    save(tree / "test" / "zero" / "000.png", np.stack([grey] * 3, axis=2))
    data = load(tree)
    assert data.shape == (3, 8, 8)
    odd = [image for image in data.train.images if not torch.equal(image[0], image[2])]
    assert len(odd) == 1
    assert torch.equal(odd[0], torch.from_numpy(np.stack([grey, grey, grey // 2])))


def test_val_is_the_test_set_where_there_is_no_test_folder(tree: Path) -> None:
    expected = load(tree).test.digest()
    (tree / "test").rename(tree / "val")
    assert load(tree).test.digest() == expected
    for label in ("one", "two", "zero"):
        save(tree / "test" / label / "0.png", np.full((8, 8), 9, np.uint8))
    assert len(load(tree).test) == 3


def test_facts_beside_the_folder(tree: Path) -> None:
    (tree / "dataset.toml").write_text('name = "Three digits"\nlike = "digits"\nnote = "Only three."\n')
    data = load(tree)
    assert (data.name, data.like, data.note) == ("Three digits", "digits", "Only three.")


@pytest.mark.parametrize(
    ("text", "message"),
    [('liek = "digits"', r"unknown key 'liek' \(did you mean 'like'\?\)"), ("name = 3", "name = 3"), ("name", "TOML")],
)
def test_wrong_facts_are_refused_with_the_file(tree: Path, text: str, message: str) -> None:
    (tree / "dataset.toml").write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        load(tree)
    assert "dataset.toml" in one_line(caught)


def test_hidden_files_and_other_files_among_the_images_are_left_out(tree: Path) -> None:
    expected = load(tree).train.digest()
    (tree / "train" / ".DS_Store").write_bytes(b"x")
    (tree / "train" / ".hidden").mkdir()
    (tree / "train" / "zero" / "notes.txt").write_text("x")
    assert load(tree).train.digest() == expected


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: save(t / "train/two/003.png", np.zeros((9, 8), np.uint8)), r"differ in size: .*8x8.*8x9|8x9.*8x8"),
        (lambda t: damage(t / "test/two/001.png"), r"test/two/001.png cannot be decoded"),
        (lambda t: (t / "train/zero/000.png").write_text("no image"), r"train/zero/000.png cannot be decoded"),
        (lambda t: save(t / "train/two/003.png", np.full((8, 8), 40_000, np.uint16)), r"more than 8 bits per channel"),
        (lambda t: (t / "test").rename(t / "exam"), r"has no folder test/ or val/"),
        (lambda t: (t / "train").rename(t / "training"), r"has no folder train/"),
        (lambda t: (t / "test/two").rename(t / "test/three"), r"the class 'three' is not in both"),
        (lambda t: (t / "train/two").rename(t / "two"), r"the class 'two' is not in both"),
        (lambda t: save(t / "train/004.png", np.zeros((8, 8), np.uint8)), r"004.png lies beside the class folders"),
        (lambda t: (t / "train/four").mkdir(), r"train/four holds no image"),
        (lambda t: (t / "train").rename(t / "a") and (t / "train").mkdir(), r"0 class folders; at least two"),
    ],
    ids=[
        "mixed sizes",
        "truncated",
        "no image",
        "16 bits",
        "no test half",
        "no train half",
        "class renamed",
        "class missing",
        "stray file",
        "empty class",
        "no classes",
    ],
)
def test_folder_that_is_wrong_is_refused_in_one_line(tree: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(tree)
    with pytest.raises(DataError, match=message) as caught:
        load(tree)
    assert one_line(caught).startswith("folder:small: ")


def test_test_images_of_another_size_are_refused(tree: Path) -> None:
    for file in (tree / "test").rglob("*.png"):
        save(file, np.zeros((10, 10), np.uint8))
    with pytest.raises(DataError, match=r"test images are \[1, 10, 10\], training images \[1, 8, 8\]") as caught:
        load(tree)
    one_line(caught)


def test_folder_that_is_nowhere_is_refused_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; looked for") as caught:
        load_data("folder:nowhere", tmp_path)
    assert str(tmp_path / "nowhere") in one_line(caught)
    assert "ROBUSTMIX_DATA" in one_line(caught)


# ---- the cache of decoded images -------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The halves that were decoded, in order."""
    halves, decode = [], folder._decode

    def spy(files: list[Path], spec: str, half: str) -> np.ndarray:
        halves.append(half)
        return decode(files, spec, half)

    monkeypatch.setattr(folder, "_decode", spy)
    return halves


def test_images_are_decoded_once(tree: Path, own_cache: Path, decoded: list[str]) -> None:
    first, second = load(tree), load(tree)
    assert decoded == ["train", "test"]
    for half in ("train", "test"):
        assert getattr(first, half).digest() == getattr(second, half).digest()
    assert len(list((own_cache / "decoded").iterdir())) == 2


def test_cache_lies_where_the_system_says(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    load(tree)
    assert len(list((tmp_path / "another" / "robustmix" / "decoded").glob("*.npy"))) == 2
    assert not (tmp_path / "cache").exists()


def test_changed_file_is_decoded_again(tree: Path, decoded: list[str]) -> None:
    before = load(tree)
    file = tree / "test" / "two" / "000.png"
    save(file, 255 - np.asarray(Image.open(file)))
    after = load(tree)
    assert decoded == ["train", "test", "test"]
    assert after.test.digest() != before.test.digest()
    assert rows(after.test) == stored(tree, "test", after.classes)


def test_changed_file_of_the_same_length_is_decoded_again(tree: Path, decoded: list[str]) -> None:
    file = tree / "test" / "two" / "100.bmp"
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    save(file, pixels)
    before, length, changed = load(tree), file.stat().st_size, file.stat().st_mtime_ns
    save(file, pixels.T.copy())
    os.utime(file, ns=(changed, changed + 1_000_000_000))
    assert file.stat().st_size == length
    assert load(tree).test.digest() != before.test.digest()
    assert decoded == ["train", "test", "test"]


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_added_removed_or_renamed_file_is_noticed(tree: Path, decoded: list[str], change: str) -> None:
    load(tree)
    file = tree / "train" / "two" / "000.png"
    if change == "added":
        save(tree / "train" / "two" / "100.png", np.full((8, 8), 77, np.uint8))
    elif change == "removed":
        file.unlink()
    else:
        file.rename(tree / "train" / "zero" / "100.png")
    data = load(tree)
    assert decoded == ["train", "test", "train"]
    assert rows(data.train) == stored(tree, "train", data.classes)


def test_half_that_cannot_be_decoded_leaves_nothing_in_the_cache(tree: Path, own_cache: Path) -> None:
    damage(tree / "train" / "two" / "003.png")
    with pytest.raises(DataError):
        load(tree)
    assert not list(own_cache.rglob("*.np*"))


def test_many_files_keep_their_order_across_the_parallel_chunks(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(tree).train.digest()
    monkeypatch.setattr(folder, "CHUNK", 5)
    for cached in (tree.parent.parent / "cache").rglob("*.npy"):
        cached.unlink()
    assert load(tree).train.digest() == whole


# ---- numpy archives --------------------------------------------------------------------------------------


def arrays(**changes: Any) -> dict[str, Any]:
    draws = np.random.default_rng(0)
    whole = {
        "x_train": draws.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": draws.integers(0, 256, (4, 8, 9, 3), dtype=np.uint8),
        "y_test": np.array([2, 1, 0, 0]),
    } | changes
    return {name: array for name, array in whole.items() if array is not None}


def archive(tmp_path: Path, **changes: Any) -> str:
    np.savez(tmp_path / "mine.npz", **arrays(**changes))
    return f"npz:{tmp_path / 'mine.npz'}"


def test_archive_with_channels_last(tmp_path: Path) -> None:
    data, given = load_data(archive(tmp_path)), arrays()
    assert (data.name, data.shape, data.classes, data.like) == ("mine", (3, 8, 9), ("0", "1", "2"), None)
    np.testing.assert_array_equal(data.train.images.numpy(), given["x_train"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test.images.numpy(), given["x_test"].transpose(0, 3, 1, 2))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.test.labels.dtype == torch.int64


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [np.uint8, np.int32, np.int64])
def test_archive_with_channels_first(tmp_path: Path, channels: int, labels: type) -> None:
    given = {half: arrays()[f"x_{half}"].transpose(0, 3, 1, 2)[:, :channels] for half in ("train", "test")}
    changes = {f"y_{half}": arrays()[f"y_{half}"].astype(labels)[:, None] for half in ("train", "test")}
    data = load_data(archive(tmp_path, x_train=given["train"], x_test=given["test"], **changes))
    np.testing.assert_array_equal(data.train.images.numpy(), given["train"])
    np.testing.assert_array_equal(data.test.images.numpy(), given["test"])
    assert data.test.labels.tolist() == [2, 1, 0, 0]


X, Y = arrays()["x_train"], arrays()["y_train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"array 'y_test' is missing; found x_train, y_train, x_test"),
        ({"x_train": X / 255}, r"train: images must be uint8 .* got float64"),
        ({"x_train": X.astype(np.int64)}, r"got int64"),
        ({"x_train": X[..., 0]}, r"got uint8 \[6, 8, 9\]"),
        ({"x_train": X[..., :2]}, r"1 or 3 channels, first or last; got \[6, 8, 9, 2\]"),
        ({"y_train": Y[:5]}, r"train: 6 images but 5 labels"),
        ({"y_train": Y + 0.5}, r"labels must be whole numbers; got float64"),
        ({"y_train": Y == 1}, r"labels must be whole numbers; got bool"),
        ({"y_train": Y.astype(str)}, r"labels must be whole numbers"),
        ({"y_test": Y[:4] + 10**9}, r"labels run up to 1000000002; they must number the classes from 0"),
        ({"y_train": Y - 1}, r"train labels run from -1 to 1"),
        ({"x_test": X[:4, :7]}, r"test images are \[3, 7, 9\], training images \[3, 8, 9\]"),
        ({"x_test": X[:0], "y_test": Y[:0]}, r"test split is empty"),
        ({"x_train": X[:0], "y_train": Y[:0]}, r"train split is empty"),
        ({"y_train": np.array([None] * 6)}, r"cannot be read as an .npz file"),
    ],
    ids=[
        "missing",
        "float images",
        "int64 images",
        "no channels",
        "two channels",
        "too few labels",
        "float labels",
        "bool labels",
        "text labels",
        "huge labels",
        "negative labels",
        "another size",
        "empty test",
        "empty train",
        "pickled",
    ],
)
def test_archive_that_is_wrong_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    spec = archive(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_data(spec)
    assert one_line(caught).startswith(spec)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_an_archive_is_unpickled(tmp_path: Path) -> None:
    spec = archive(tmp_path, y_train=np.array([Trap(tmp_path / "sprung")] * 6, dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        load_data(spec)
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "mine.npz", allow_pickle=True)["y_train"]
    assert (tmp_path / "sprung").exists(), "the trap works"


def compressed() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays())
    return file.getvalue()


def overwritten(raw: bytes, start: int, length: int) -> bytes:
    return raw[:start] + b"\xa5" * length + raw[start + length :]


def plain_array() -> bytes:
    file = io.BytesIO()
    np.save(file, X)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x_train",
        compressed()[:-30],
        compressed()[:200],
        overwritten(compressed(), 100, 60),
        overwritten(compressed(), 30, 12),
        plain_array(),
    ],
    ids=["empty", "text", "end missing", "mostly missing", "damaged data", "damaged name", "one array"],
)
def test_archive_that_is_damaged_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"^npz:.*bad.npz: ") as caught:
        load_data(f"npz:{tmp_path}/bad.npz")
    one_line(caught)


def test_archive_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.npz"):
        with pytest.raises(DataError, match=r"cannot be read as an \.npz file") as caught:
            load_data(f"npz:{path}")
        one_line(caught)


@pytest.mark.parametrize(
    "spec", ["", "digit", "folder:", "npz:", "imagenet", "imagenet:", "cifar", "CIFAR10", "digits:"]
)
def test_unknown_data_is_refused_with_the_choices(spec: str) -> None:
    with pytest.raises(SpecError, match=r"digits, .*imagenet:PATH, folder:NAME_OR_PATH, npz:PATH") as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)


X_UINT8, LABELS = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("inputs", "labels", "given"),
    [
        (X_UINT8[0], LABELS, r"torch.uint8 \[1, 8, 8\] and torch.int64 \[3\]"),
        (X_UINT8.flatten(1), LABELS, r"torch.uint8 \[3, 64\]"),
        (X_UINT8, LABELS[:2], r"torch.int64 \[2\]"),
        (X_UINT8, LABELS[:, None], r"torch.int64 \[3, 1\]"),
        (X_UINT8, LABELS.int(), r"torch.int32 \[3\]"),
        (X_UINT8.double(), LABELS, r"torch.float64"),
        (X_UINT8.bool(), LABELS, r"torch.bool"),
        (torch.zeros(3), LABELS, r"torch.float32 \[3\]"),
        (torch.zeros(3, 5), LABELS[:2], r"torch.float32 \[3, 5\] and torch.int64 \[2\]"),
    ],
)
def test_split_of_another_kind_is_refused_with_what_was_given(
    inputs: torch.Tensor, labels: torch.Tensor, given: str
) -> None:
    wanted = r"a split takes uint8 images \[N, C, H, W\] or float32 inputs \[N, ...\], and int64 labels \[N\]; got .*"
    with pytest.raises(DataError, match=wanted + given) as caught:
        TensorSplit(inputs, labels)
    one_line(caught)


@pytest.mark.parametrize(
    ("value", "given"),
    [(1.001, "0 to 1.001"), (-0.001, "-0.001 to 0"), (255.0, "0 to 255"), (torch.nan, "nan"), (torch.inf, "0 to inf")],
)
def test_float_inputs_outside_of_0_to_1_are_refused(value: float, given: str) -> None:
    inputs = torch.zeros(3, 5)
    inputs[2, 4] = value
    with pytest.raises(DataError, match=rf"must lie in \[0, 1\], without NaN; got values from {given}") as caught:
        TensorSplit(inputs, LABELS)
    one_line(caught)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (3, 4, 4)])
def test_float_inputs_are_given_as_they_are(shape: tuple[int, ...]) -> None:
    inputs = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0))
    inputs[0], inputs[1] = 0, 1
    labels = torch.arange(6)
    split = TensorSplit(inputs, labels)
    assert (len(split), split.shape) == (6, shape)
    x, y = split.gather(torch.tensor([5, 0, 1]), CPU)
    assert torch.equal(x, inputs[[5, 0, 1]])
    assert y.tolist() == [5, 0, 1]
    x.zero_()
    assert inputs[1].min() == 1, "a batch is not a view"
    digests = {part.digest() for part in (split, split.first(5), TensorSplit(inputs.flip(0), labels))}
    assert len(digests) == 3


def test_arrays_of_floats_are_refused_with_their_place() -> None:
    with pytest.raises(DataError, match="mine: images must be uint8"):
        tensor_split(X_UINT8.float().numpy(), LABELS.numpy(), "mine")


def test_batches_are_gathered_in_order() -> None:
    split = load_data("digits").test
    parts = [torch.tensor([7, 0]), torch.tensor([359]), torch.arange(360)]
    for part, (x, y) in zip(parts, split.batches(parts, CPU), strict=True):
        assert torch.equal(x, split.images[part].float() / 255)
        assert torch.equal(y, split.labels[part])


def test_digest_is_the_one_that_cells_and_runs_were_made_with() -> None:
    split = load_data("digits").test
    by_hand = hashlib.sha256(b"(360, 1, 8, 8)" + split.images.numpy().tobytes() + split.labels.numpy().tobytes())
    assert split.digest() == by_hand.hexdigest()


def test_data_root_is_the_argument_then_the_variable_then_the_cache(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_root() == own_cache
    monkeypatch.setenv("ROBUSTMIX_DATA", str(tmp_path / "variable"))
    assert data_root() == tmp_path / "variable"
    assert data_root(tmp_path / "argument") == tmp_path / "argument"
    assert data_root("~/x") == Path("~/x").expanduser()


# ---- torchvision's data sets -----------------------------------------------------------------------------


class Python2Pickler(pickle.Pickler):
    """Writes arrays the way the files of 2009 hold them."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, np.dtype) and value == np.uint8:
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def write_batch(path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(entry)


CIFAR_IMAGES = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def fake_cifar(tmp_path: Path, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of both archives with sixteen small images each; torchvision is told to accept other checksums."""
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).exists())
    flat = CIFAR_IMAGES.reshape(16, -1)
    ten, hundred = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-python"
    for number in range(5):
        labels = [number * 2, number * 2 + 1]
        write_batch(ten / f"data_batch_{number + 1}", {"data": flat[2 * number : 2 * number + 2], "labels": labels})
    write_batch(ten / "test_batch", {"data": flat[10:], "labels": list(range(6))})
    write_batch(ten / "batches.meta", {"label_names": [f"name{label}" for label in range(10)]})
    write_batch(hundred / "train", {"data": flat[:10], "fine_labels": list(range(90, 100))})
    write_batch(hundred / "test", {"data": flat[10:], "fine_labels": list(range(6))})
    write_batch(hundred / "meta", {"fine_label_names": [f"fine{label}" for label in range(100)]})
    return tmp_path


def test_cifar10_is_torchvisions(fake_cifar: Path) -> None:
    data = load_data("cifar10", fake_cifar)
    np.testing.assert_array_equal(data.train.images.numpy(), CIFAR_IMAGES[:10])
    np.testing.assert_array_equal(data.test.images.numpy(), CIFAR_IMAGES[10:])
    assert data.train.labels.tolist() == list(range(10))
    assert (data.name, data.spec, data.like, data.shape) == ("cifar10", "cifar10", "cifar10", (3, 32, 32))
    assert data.classes[3] == "name3"


def test_cifar100_has_its_hundred_fine_classes(fake_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTMIX_DATA", str(fake_cifar))
    data = load_data("cifar100")
    np.testing.assert_array_equal(data.train.images.numpy(), CIFAR_IMAGES[:10])
    assert data.train.labels.tolist() == list(range(90, 100))
    assert (len(data.classes), data.classes[99], data.like) == (100, "fine99", "cifar100")


def write_idx(path: Path, values: np.ndarray) -> None:
    """Bytes in the format of MNIST: two zeros, the type, the number of dimensions, each of them, the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape) + values.tobytes())


MNIST_IMAGES = np.random.default_rng(1).integers(0, 256, (9, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize(("name", "class_name"), [("mnist", "3"), ("fashion_mnist", "Dress")])
def test_mnist_and_fashion_mnist_are_torchvisions(
    name: str, class_name: str, tmp_path: Path, torchvision: ModuleType
) -> None:
    raw, labels = (
        tmp_path / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw",
        np.arange(9, dtype=np.uint8),
    )
    for half, chosen in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
        write_idx(raw / f"{half}-images-idx3-ubyte", MNIST_IMAGES[chosen])
        write_idx(raw / f"{half}-labels-idx1-ubyte", labels[chosen])
    data = load_data(name, tmp_path)
    np.testing.assert_array_equal(data.train.images.numpy(), MNIST_IMAGES[:6, None])
    np.testing.assert_array_equal(data.test.images.numpy(), MNIST_IMAGES[6:, None])
    assert data.train.labels.tolist() == list(range(6))
    assert data.test.labels.tolist() == [6, 7, 8]
    assert (data.name, data.spec, data.like, data.shape) == (name, name, name, (1, 28, 28))
    assert (len(data.classes), data.classes[3]) == (10, class_name)


def test_svhn_is_torchvisions_with_the_digit_0_as_class_0(
    tmp_path: Path, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.io import savemat
    from torchvision.datasets import svhn, utils

    for module in (svhn, utils):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).exists())
    for half, chosen, labels in (("train", slice(0, 10), [3, 10, 1]), ("test", slice(10, 16), [10, 9])):
        x = CIFAR_IMAGES[chosen][: len(labels)].transpose(2, 3, 1, 0)
        savemat(tmp_path / f"{half}_32x32.mat", {"X": x, "y": np.array(labels, dtype=np.uint8)[:, None]})
    data = load_data("svhn", tmp_path)
    np.testing.assert_array_equal(data.train.images.numpy(), CIFAR_IMAGES[:3])
    np.testing.assert_array_equal(data.test.images.numpy(), CIFAR_IMAGES[10:12])
    assert data.train.labels.tolist() == [3, 0, 1]
    assert data.test.labels.tolist() == [0, 9]
    assert (data.name, data.like, data.shape, data.classes) == ("svhn", "svhn", (3, 32, 32), tuple("0123456789"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn"])
@pytest.mark.parametrize(
    "failure", [urllib.error.URLError("no route to host"), RuntimeError("File not found or corrupted."), TimeoutError()]
)
def test_download_that_fails_is_one_line_with_the_folder_and_the_way_out(
    name: str, failure: Exception, tmp_path: Path, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import cifar, mnist, svhn

    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    for module, function in (
        (cifar, "download_and_extract_archive"),
        (mnist, "download_and_extract_archive"),
        (svhn, "download_url"),
    ):
        monkeypatch.setattr(module, function, fail)
    with pytest.raises(DataError, match=rf"^{name} is not in .* and cannot be downloaded") as caught:
        load_data(name, tmp_path / "root")
    text = one_line(caught)
    assert str(tmp_path / "root") in text
    assert "--data-root or ROBUSTMIX_DATA" in text


@pytest.mark.parametrize("failure", [ImportError("no such module"), RuntimeError("operator nms does not exist\nmore")])
def test_torchvision_that_cannot_be_imported_is_one_line(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        if name.partition(".")[0] == "torchvision":
            raise failure
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    # Declaring operators a second time would be felt by the rest of this process.
    monkeypatch.setattr(library, "Library", lambda *_: SimpleNamespace(define=lambda _: None))
    with pytest.raises(DataError, match="torchvision") as caught:
        load_data("cifar10", tmp_path)
    one_line(caught)


# ---- the large data --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whole_cifar10_as_a_folder(large_data: Path, own_cache: Path) -> None:
    if not (large_data / "cifar10-jpeg").is_dir():
        pytest.skip(f"{large_data} has no cifar10-jpeg/")
    data = load_data("folder:cifar10-jpeg", large_data)
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.like == "cifar10"
    assert len(data.classes) == 10
    # a fair sample from the first example on
    assert data.test.labels[:1000].bincount().min() > 60
