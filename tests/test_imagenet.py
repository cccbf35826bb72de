"""ImageNet: images of any size, cut as torchvision cuts them, streamed alike by any number of workers."""

import multiprocessing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustmix.data import Augmentation, Dataset, Share, check_augment, images, load_data
from robustmix.data.augment import Part, part_numbers, random_part
from robustmix.data.imagenet import ImageNetSplit, centre, resized
from robustmix.errors import DataError, SpecError

# torch advises against more workers than there are cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CPU = torch.device("cpu")
# Photographs are of any size and mode; a shorter side of 256, a smaller image and a very long one are among them.
SIZES = [(300, 256), (256, 341), (97, 64), (500, 375), (375, 500), (30, 240), (333, 333)]
MODES = ["RGB", "L", "RGB", "CMYK", "RGB"]


def picture(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture with noise, so that no two ways to resize it agree by chance."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(int)
    noise = np.random.default_rng(seed).integers(-40, 40, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).convert(mode)


@pytest.fixture
def tree(tmp_path: Path, own_cache: Path) -> Path:
    """Two classes, seven images to train on and seven to test on."""
    root = tmp_path / "data" / "photos"
    for half in ("train", "val"):
        for number, size in enumerate(SIZES):
            path = root / half / ("n01", "n02")[number % 2] / f"{half}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(size, number + 10 * (half == "val"), MODES[number % len(MODES)]).save(path)
    return root


def load(root: Path, **options: Any) -> Dataset:
    return load_data(f"imagenet:{root.name}", root.parent, **options)


def train_of(root: Path, workers: int = 0) -> ImageNetSplit:
    split = load(root, workers=workers).train
    assert isinstance(split, ImageNetSplit)
    return split


def opened(file: str) -> Image.Image:
    return Image.open(file).convert("RGB")


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# ---- cuts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*SIZES, (224, 224), (256, 256), (257, 999), (1001, 259)])
def test_centre_is_torchvisions_to_the_bit(size: tuple[int, int], torchvision: ModuleType) -> None:
    from torchvision.transforms import v2

    image = picture(size, 0)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image)
    np.testing.assert_array_equal(np.asarray(centre(image)), np.asarray(expected))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "box", [(0, 0, 300, 256), (10, 20, 224, 224), (3, 5, 40, 50), (250, 200, 50, 56), (0, 0, 1, 1)]
)
def test_resized_part_is_torchvisions_to_the_bit(
    box: tuple[int, int, int, int], mirrored: bool, torchvision: ModuleType
) -> None:
    from torchvision.transforms import functional as F

    image = picture((300, 256), 0)
    left, top, width, height = box
    expected = F.resized_crop(image, top, left, height, width, [224, 224])
    expected = F.hflip(expected) if mirrored else expected
    np.testing.assert_array_equal(np.asarray(resized(image, Part(*box, mirrored))), np.asarray(expected))


# ---- the data set ----------------------------------------------------------------------------------------


def test_data_set_is_that_of_the_folder(tree: Path) -> None:
    data = load(tree, workers=2)
    assert (data.name, data.spec, data.like, data.note) == ("imagenet", "imagenet:photos", "imagenet", None)
    assert (data.shape, data.classes) == ((3, 224, 224), ("n01", "n02"))
    for half, split in (("train", data.train), ("val", data.test)):
        assert isinstance(split, ImageNetSplit)
        assert split.workers == 2
        assert {Path(file).name for file in split.files} == {f"{half}_{number}.JPEG" for number in range(7)}
        for file, label in zip(split.files, split.labels.tolist(), strict=True):
            assert Path(file).parent.name == data.classes[label]
    assert load_data(f"imagenet:{tree}").train.digest() == data.train.digest()


def test_facts_beside_the_folder_count(tree: Path) -> None:
    (tree / "dataset.toml").write_text('name = "Photos"\nlike = "photos"\n')
    assert (load(tree).name, load(tree).like) == ("Photos", "photos")


@pytest.mark.parametrize("workers", [0, 2])
def test_test_images_are_centres(tree: Path, workers: int) -> None:
    split = load(tree, workers=workers).test
    assert isinstance(split, ImageNetSplit)
    parts = [torch.tensor([6, 0]), torch.arange(7)]
    for part, (x, y) in zip(parts, split.batches(parts, CPU), strict=True):
        assert torch.equal(x, torch.stack([pixels(centre(opened(split.files[row]))) for row in part]))
        assert torch.equal(y, split.labels[part])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_training_images_are_random_parts_whatever_the_number_of_workers(tree: Path, workers: int) -> None:
    split, augmentation = train_of(tree, workers), Augmentation("resized-crop-flip", 4, 2)
    shares = [
        Share(torch.tensor(rows), torch.tensor([1, 4]), 5, step) for step, rows in enumerate([[6, 0], [3, 3], [1, 5]])
    ]
    for share, (x, y) in zip(shares, split.training_batches(shares, CPU, augmentation), strict=True):
        originals = [opened(split.files[row]) for row in share.rows]
        drawn = part_numbers(augmentation, share)
        expected = [
            pixels(resized(image, random_part(*image.size, row))) for image, row in zip(originals, drawn, strict=True)
        ]
        assert torch.equal(x, torch.stack(expected))
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y, split.labels[share.rows])
    assert multiprocessing.active_children() == []


def test_the_same_place_gets_the_same_part_in_whatever_share_it_stands(tree: Path) -> None:
    split, augmentation = train_of(tree), Augmentation("resized-crop-flip", 0, 0)
    rows, places = torch.tensor([5, 2, 2, 0]), torch.arange(4)
    wanted = [Share(rows, places, 4, 0), Share(rows[2:], places[2:], 4, 0)]
    (together, _), (part, _) = split.training_batches(wanted, CPU, augmentation)
    assert torch.equal(part, together[2:])
    assert not torch.equal(together[1], together[2])


def test_without_augmentation_it_is_trained_on_centres(tree: Path) -> None:
    split = train_of(tree)
    share = Share(torch.arange(7), torch.arange(7), 7, 0)
    ((x, _),) = split.training_batches([share], CPU, Augmentation("none", 0, 0))
    assert torch.equal(x, torch.stack([pixels(centre(opened(file))) for file in split.files]))


@pytest.mark.parametrize("how", ["crop", "crop-flip"])
def test_augmentations_of_images_of_one_size_are_refused(tree: Path, how: Any) -> None:
    split = train_of(tree)
    with pytest.raises(SpecError, match=rf"--augment {how} does not apply .*: choose from none, resized-crop-flip"):
        check_augment(how, split)
    for fits in ("none", "resized-crop-flip"):
        check_augment(fits, split)  # type: ignore[arg-type]


# ---- what is not read ------------------------------------------------------------------------------------


def test_statistics_are_the_published_ones_and_training_digests_read_no_image(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object) -> None:
        raise AssertionError("an image was opened")

    split = train_of(tree)
    monkeypatch.setattr(images.Image, "open", unread)
    mean, std = split.channel_statistics()
    torch.testing.assert_close(mean, torch.tensor([0.485, 0.456, 0.406]), rtol=0, atol=0)
    torch.testing.assert_close(std, torch.tensor([0.229, 0.224, 0.225]), rtol=0, atol=0)
    whole = split.digest()
    others = [split.first(6), split.take(torch.arange(6, -1, -1)), split.relabelled(1 - split.labels)]
    assert len({whole, *(other.digest() for other in others)}) == 4


def test_training_digest_is_of_names_and_lengths_not_of_the_place(tree: Path) -> None:
    before = load(tree).train.digest()
    moved = tree.rename(tree.with_name("elsewhere"))
    assert load(moved).train.digest() == before
    file = next((moved / "train").rglob("*.JPEG"))
    file.write_bytes(file.read_bytes() + b"\0")
    longer = load(moved).train.digest()
    file.rename(file.with_name("other.JPEG"))
    assert len({before, longer, load(moved).train.digest()}) == 3


def test_test_digest_is_of_the_pixels(tree: Path) -> None:
    before = load(tree).test.digest()
    file = Path(load(tree).test.files[0])  # type: ignore[attr-defined]
    image = opened(str(file)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.save(file)
    assert load(tree).test.digest() != before


def test_digest_of_the_same_files_as_a_folder_is_not_mistaken_for_theirs(tree: Path) -> None:
    for number, file in enumerate(tree.rglob("*.JPEG")):
        picture((224, 224), number).save(file)
    as_folder = load_data("folder:photos", tree.parent, stream=True).test.digest()
    assert load(tree).test.digest() != as_folder


# ---- what is wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["none", "resized-crop-flip"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:300]), "cannot be decoded"),
        (lambda file: file.unlink(), "cannot be decoded: .*No such file"),
        (lambda file: Image.new("I;16", (300, 300)).save(file, "PNG"), "has more than 8 bits per channel"),
    ],
    ids=["truncated", "gone", "16 bits"],
)
def test_wrong_image_is_named_in_one_line(tree: Path, spoil: Any, message: str, how: Any, workers: int) -> None:
    split = train_of(tree, workers)
    spoil(Path(split.files[3]))
    shares = [Share(torch.tensor([row]), torch.arange(1), 1, row) for row in range(5)]
    batches = split.training_batches(shares, CPU, Augmentation(how, 0, 0))
    for _ in range(3):
        next(batches)
    with pytest.raises(DataError, match=rf"^imagenet:photos: .*JPEG {message}") as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_file_that_is_gone_has_no_digest(tree: Path) -> None:
    split = train_of(tree)
    Path(split.files[3]).unlink()
    with pytest.raises(DataError, match=r"^imagenet:photos: .* cannot be read: No such file"):
        split.digest()


def test_workers_end_when_training_stops_early(tree: Path) -> None:
    shares = (Share(torch.tensor([row % 7]), torch.arange(1), 1, row) for row in range(1000))
    batches = train_of(tree, 2).training_batches(shares, CPU, Augmentation("resized-crop-flip", 0, 0))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_test_images_are_those_of_val(tree: Path) -> None:
    (tree / "val").rename(tree / "test")
    with pytest.raises(DataError, match=r"^imagenet:photos: .* has no folder val/$"):
        load(tree)


def test_it_is_always_streamed(tree: Path) -> None:
    assert isinstance(load(tree, stream=True).train, ImageNetSplit)
    with pytest.raises(SpecError, match=r"data 'imagenet:photos' is always streamed"):
        load(tree, stream=False)
