"""Other people's packages: imported beside any torch, their networks found by name, their errors told in one line."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import library

from robustmix.errors import RobustmixError, SpecError


def import_beside_torch(name: str) -> ModuleType:
    """Import torchvision, or what itself imports it, also where its operators were built for another torch.

    So it is with a CPU build of torch beside the package index's torchvision. Data sets and classifiers need no
    operator, but the import wants two of them declared.

    Raises:
        ImportError: it is not installed, or misses something.
        RuntimeError: it does not fit this torch.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        _declared.append(declaring := library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            declaring.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return import_module(name)


# Declarations live as long as the library object that made them.
_declared: list[object] = []


def torchvision_models(spec: str, name: str) -> ModuleType:
    """``torchvision.models``, which has a classifier of that name.

    Args:
        spec: what was asked for, for messages.
        name: of the classifier.

    Raises:
        SpecError: it has none, or cannot be imported.
    """
    models = _import(spec, "torchvision.models", "install the torchvision that fits this torch")
    if name not in (names := models.list_models(module=models)):
        raise SpecError(f"unknown torchvision classifier {name!r}{_hint(name, names)}")
    return models


def timm_models(spec: str, name: str | None) -> ModuleType:
    """``timm``, which has a network of that name.

    Args:
        spec: what was asked for, for messages.
        name: of the network; None for any.

    Raises:
        SpecError: it has none, or cannot be imported.
    """
    timm = _import(spec, "timm", "pip install 'robustmix[zoo]'")
    if name is not None and not timm.is_model(name):
        hint = _hint(name, [*timm.list_models(), *timm.list_pretrained()])
        raise SpecError(f"unknown timm model {name!r}{hint}; timm.list_models() names them all")
    return timm


@contextmanager
def one_line(what: str, kind: type[RobustmixError], way_out: str = "", path: Path | None = None) -> Iterator[None]:
    """Turn whatever other people's code raises into one line; keep what it prints out of our output.

    Args:
        what: failed.
        kind: of the error that is raised.
        way_out: what to do about it.
        path: the user's file, whose last line on the way to the error is named.

    Raises:
        RobustmixError: anything was raised.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except RobustmixError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise kind(f"{what}{where}: {type(error).__name__}: {told(error)}{way_out}") from None


def told(error: BaseException) -> str:
    """The first line of an error's text that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _import(spec: str, name: str, way_out: str) -> ModuleType:
    try:
        return import_beside_torch(name)
    except (ImportError, RuntimeError) as error:
        package = name.partition(".")[0]
        raise SpecError(f"{spec} needs {package}, which cannot be imported ({told(error)}): {way_out}") from None


def _hint(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=3)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
