"""Adversarial images that are kept, uint8 and rounded within their budget: a few always, all where one asks for it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustmix.attacks.geometry import round_within
from robustmix.data import Split
from robustmix.errors import StoreError
from robustmix.planning import Plan
from robustmix.progress import say
from robustmix.spec.attack import Course
from robustmix.store.atomic import write_text
from robustmix.store.gallery import CHANNELS, KEPT, Examples, gallery_path, write_examples
from robustmix.store.parts import images_part, taken_over
from robustmix.store.workspace import Workspace
from robustmix.team import Team
from robustmix.units import GREY_LEVELS, to_pixels
from robustmix.work import Unit


class Shown:
    """The first examples of a unit beside what they became at each budget; nothing is written before it is finished.

    They stay on the device until then, so that nothing waits for it.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._kept: dict[Course, tuple[Tensor, Tensor, Tensor]] = {}

    def show(self, course: Course, indices: Tensor, x: Tensor, x_adv: Tensor) -> None:
        """Remember the first of a batch [B, ...], unless they are no images."""
        if self._unit.attack is None or x.ndim != 4 or x.shape[1] not in CHANNELS:
            return
        x, x_adv = x[:KEPT], x_adv[:KEPT]
        eps = None if course.eps is None else to_pixels(course.eps)
        adversarial = round_within(x_adv, x, eps, self._unit.attack.metric)
        self._kept[course] = indices[:KEPT], (x * GREY_LEVELS).round().to(torch.uint8), adversarial

    def write(self, place: Workspace) -> None:
        """Write the examples of every budget."""
        for course, (indices, clean, adversarial) in self._kept.items():
            images = (part.cpu().contiguous().numpy() for part in (clean, adversarial))
            examples = Examples(indices.cpu().numpy().astype(np.int32), *images)
            write_examples(place.gallery, self._unit.at(course)[0].identity, examples)


class Gallery:
    """The adversarial images of a unit as one file of numpy's per budget, written by all processes."""

    def __init__(self, unit: Unit, place: Workspace, inputs: Split, team: Team, making: str) -> None:
        self._paths = {cell.course: gallery_path(place.gallery, cell.identity) for cell in unit.cells}
        self._parts = {course: images_part(path, making) for course, path in self._paths.items()}
        self._unit, self._team = unit, team
        self._shape = (len(inputs), *inputs.shape)
        self._files: dict[Course, int] = {}
        self._start = 0

    def open(self) -> None:
        """Begin the files.

        Raises:
            StoreError: they cannot be written, or another job has taken the work over.
        """
        for part in self._parts.values() if self._team.rank == 0 else ():
            with _writing(part):
                part.parent.mkdir(parents=True, exist_ok=True)
                np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=self._shape).flush()
        self._team.barrier()
        for course, part in self._parts.items():
            with _writing(part):
                self._start = np.lib.format.open_memmap(part, mode="r").offset
                # Through a mapping, or open for reading as well, several machines would write each other's pages.
                self._files[course] = os.open(part, os.O_WRONLY | os.O_DSYNC)

    def keep(self, course: Course, indices: Tensor, levels: Tensor) -> None:
        """Keep uint8 images [B, C, H, W] of consecutive examples [B]; the other processes see them from now on.

        Raises:
            StoreError: they cannot be written.
        """
        images = levels.cpu().contiguous().numpy()
        at, left = self._start + int(indices[0]) * images[0].size, memoryview(images.tobytes())
        with _writing(self._parts[course]):
            while left:  # a disk that is nearly full takes a part of it, and says so at the rest
                written = os.pwrite(self._files[course], left, at)
                at, left = at + written, left[written:]

    def finish(self, plan: Plan) -> None:
        """Give the files their names, each beside what it is.

        Raises:
            StoreError: they cannot be written, or another job has taken the work over.
        """
        for course, path in self._paths.items():
            identity = self._unit.at(course)[0].identity
            what = {
                **identity.model_dump(exclude={"target"}),
                "source_name": self._unit.source.name if self._unit.source else None,
                "data": plan.data.spec,
                "images": path.name,
            }
            write_text(path.with_suffix(".json"), json.dumps(what, indent=1) + "\n")
            with _writing(self._parts[course]):
                self._parts[course].replace(path)
        say(f"adversarial images: {', '.join(str(path) for path in self._paths.values())}")

    def close(self) -> None:
        """Remove what has not been finished."""
        for file in self._files.values():
            os.close(file)
        if self._team.rank == 0:
            for part in self._parts.values():
                part.unlink(missing_ok=True)


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise taken_over(part) from None
    except OSError as error:
        raise StoreError(f"{part} cannot be written: {error.strerror or error}") from None
