"""From a data spec (``digits``, ``cifar10``, ``imagenet:PATH``, ``folder:NAME``, ``npz:PATH``) to a data set."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from robustmix.data.dataset import Dataset
from robustmix.data.folder import load_folder
from robustmix.data.imagenet import load_imagenet
from robustmix.data.memory import TensorSplit, tensor_split
from robustmix.errors import DataError, SpecError
from robustmix.packages import import_beside_torch
from robustmix.spec.names import DATA, DATA_CHOICES, unknown
from robustmix.units import GREY_LEVELS

# MNIST (LeCun et al. 1998), Fashion-MNIST (Xiao et al. 2017), the cropped digits of SVHN without the extra ones
# (Netzer et al. 2011) and CIFAR (Krizhevsky 2009), by the names of torchvision's classes.
TORCHVISION: Final = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
DIGITS_TEST = 360
MAX_CLASSES = 100_000

# What numpy raises for a file that is no archive (a single array has no context manager), or a damaged one.
_DAMAGED = (OSError, ValueError, EOFError, TypeError, IndexError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def cache_folder() -> Path:
    """The user's cache for downloads and decoded images."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "robustmix"


def data_root(root: str | Path | None = None) -> Path:
    """Where data sets lie: the argument, else ``ROBUSTMIX_DATA``, else the user's cache."""
    chosen = root or os.environ.get("ROBUSTMIX_DATA")
    return Path(chosen).expanduser() if chosen else cache_folder()


def load_data(
    spec: str = "digits", root: str | Path | None = None, *, stream: bool | None = None, workers: int = 0
) -> Dataset:
    """Load a data set.

    Args:
        spec: ``digits`` (embedded), ``mnist``, ``fashion_mnist``, ``svhn``, ``cifar10`` or ``cifar100`` (downloaded
            once), ``imagenet:PATH`` (``train/CLASS/`` and ``val/CLASS/`` with images of any size, always streamed),
            ``folder:NAME_OR_PATH`` (folders ``train/CLASS/`` and ``test/CLASS/`` or ``val/CLASS/``, under the root or
            anywhere) or ``npz:PATH`` (arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``).
        root: the folder with the data; see `data_root`.
        stream: decode the images of a folder batch by batch instead of keeping them in memory; None does so if they
            would fill more than half of the free memory.
        workers: processes that decode ahead when streaming; 0 decodes in this one.

    Raises:
        SpecError: no such data set, one that cannot be streamed, or a negative number of workers.
        DataError: it cannot be downloaded or read.
    """
    if workers < 0:
        raise SpecError(f"workers {workers} must be at least 0")
    kind, colon, rest = spec.partition(":")
    if colon and not rest:
        raise SpecError(f"data {spec!r} names no path; choose from {DATA_CHOICES}")
    if colon and kind == "folder":
        return load_folder(spec, rest, data_root(root), cache_folder() / "decoded", stream=stream, workers=workers)
    if colon and kind == "imagenet":
        if stream is False:
            raise SpecError(f"data {spec!r} is always streamed: its images have any size")
        return load_imagenet(spec, rest, data_root(root), cache_folder() / "decoded", workers=workers)
    if stream:
        raise SpecError(f"data {spec!r} cannot be streamed; only imagenet:PATH and folder:NAME_OR_PATH can")
    if spec == "digits":
        return _digits()
    if spec in TORCHVISION:
        return _from_torchvision(spec, data_root(root))
    if colon and kind == "npz":
        return _npz(spec, Path(rest).expanduser())
    raise SpecError(f"{unknown('data', spec, DATA)}, imagenet:PATH, folder:NAME_OR_PATH, npz:PATH")


def _digits() -> Dataset:
    """The 1,797 8x8 digits of scikit-learn; grey levels 0-16 become 0-255; the last 360 are the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * GREY_LEVELS / 16).astype(np.uint8)[:, None]
    cut = len(images) - DIGITS_TEST
    return Dataset(
        name="digits",
        spec="digits",
        train=tensor_split(images[:cut], bunch.target[:cut], "digits"),
        test=tensor_split(images[cut:], bunch.target[cut:], "digits"),
        classes=tuple(str(name) for name in bunch.target_names),
        like="digits",
        note="8x8 digits of scikit-learn, the last 360 of 1,797 as the test set",
    )


def _from_torchvision(spec: str, root: Path) -> Dataset:
    """A data set through torchvision, which downloads it once and checks it."""
    try:
        datasets = import_beside_torch("torchvision.datasets")
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"{spec} is read by torchvision, which cannot be imported ({_first_line(error)}): install the build that "
            "fits this torch, or use folder:NAME_OR_PATH or npz:PATH"
        ) from None
    kind = getattr(datasets, TORCHVISION[spec])
    # torchvision names the halves of some by a flag, those of others by a word; both come second.
    halves: tuple[object, object] = ("train", "test") if spec == "svhn" else (True, False)
    try:
        train, test = (kind(str(root), half, download=True) for half in halves)
    except (OSError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{spec} is not in {root} and cannot be downloaded into it ({_first_line(error)}); put torchvision's copy "
            "there, or name the folder that has it with --data-root or ROBUSTMIX_DATA"
        ) from None
    return Dataset(
        name=spec,
        spec=spec,
        train=_half(train, spec),
        test=_half(test, spec),
        classes=tuple("0123456789") if spec in ("mnist", "svhn") else tuple(train.classes),
        like=spec,
    )


def _half(half: Any, spec: str) -> TensorSplit:
    images = np.asarray(half.data)
    labels = half.labels if spec == "svhn" else half.targets
    return tensor_split(images[:, None] if images.ndim == 3 else images, np.asarray(labels), spec)


def _npz(spec: str, path: Path) -> Dataset:
    """Arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` in one file of numpy's; nothing in it is unpickled."""
    wanted = ("x_train", "y_train", "x_test", "y_test")
    try:
        # Opened by hand: numpy leaves the file open where the archive is damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = [key for key in wanted if key not in file]
            if missing:
                raise DataError(f"{spec}: array {missing[0]!r} is missing; found {', '.join(file) or 'none'}")
            arrays = {key: file[key] for key in wanted}
    except _DAMAGED as error:
        raise DataError(f"{spec}: cannot be read as an .npz file: {_first_line(error)}") from None
    train = tensor_split(arrays["x_train"], arrays["y_train"], f"{spec}: train")
    test = tensor_split(arrays["x_test"], arrays["y_test"], f"{spec}: test")
    count = 1 + max((int(split.labels.max()) for split in (train, test) if len(split)), default=0)
    if count > MAX_CLASSES:
        raise DataError(f"{spec}: labels run up to {count - 1}; they must number the classes from 0")
    return Dataset(
        name=path.stem,
        spec=spec,
        train=train,
        test=test,
        classes=tuple(str(label) for label in range(max(2, count))),
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
