"""Who takes part in an evaluation: runs of the workspace, and models of anybody else."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from robustmix.checkpoints import load_model, read_spec
from robustmix.errors import SpecError
from robustmix.spec.suite import match_runs
from robustmix.store.runs import WEIGHTS, Run, finished_run, run_names
from robustmix.store.workspace import Workspace
from robustmix.zoo import Shape, Statistics, is_factory, open_model, parse_normalize


@dataclass(frozen=True)
class Participant:
    """A model that crafts or is scored: a run of the workspace, or somebody else's.

    Attributes:
        name: the run's, or the spec as given.
        digest: SHA-256 that tells what it computes apart: a run's weights file; else kind, the source of the user's
            code and of what it imports from its folder, size, normalisation, weights, and of the user's code what it
            makes of two images.
        classes: their names in the order of the logits, or only their number where it has no names for them.
        shape: [C, H, W] of the images that it takes; None for any.
        run: if it is one.
        load: makes the model: eval mode, images [B, C, H, W] in [0, 1] in any layout in, logits [B, K] out.
    """

    name: str
    digest: str
    classes: tuple[str, ...] | int
    shape: Shape | None
    run: Run | None = field(repr=False, compare=False)
    load: Callable[[], nn.Module] = field(repr=False, compare=False)

    @property
    def weights(self) -> str:
        """The digest, by the name that it has on a run."""
        return self.digest

    @property
    def method(self) -> str | None:
        """How a run was trained; None for other models."""
        return self.run.method if self.run else None

    @property
    def seed(self) -> int | None:
        """Of a run's training; None for other models."""
        return self.run.recipe.seed if self.run else None

    @property
    def group(self) -> str:
        """The name that a run shares with those that differ by the seed; other models stand alone."""
        return self.run.group if self.run else self.name


def find_participants(
    place: Workspace,
    patterns: Sequence[str],
    *,
    normalize: str | None = None,
    shape: Shape | None = None,
    classes: int | None = None,
) -> list[Participant]:
    """The models that a list of names, globs and specs selects, each once, in the list's order.

    Args:
        place: the workspace with the runs.
        patterns: sources and targets: runs by name or glob, ``torchvision:NAME``, ``timm:NAME``, ``hf-hub:REPO``, or
            ``FILE.py:FACTORY``, whose code is executed. The name of the latter four is the spec itself.
        normalize: what every ``FILE.py:FACTORY`` is put behind, see `parse_normalize`; nothing if not given.
        shape: [C, H, W] of the images, to which the models of torchvision and timm are fitted.
        classes: number of logits of a ``FILE.py:FACTORY``; a forward pass finds it if not given.

    Raises:
        SpecError: a pattern matches nothing, a factory fails, or `normalize` is no normalisation or has no use.
        CheckpointError: a run has not finished, or weights cannot be downloaded or read.
        EvaluationError: a model takes another number of channels.
    """
    if normalize is not None and not any(is_factory(pattern) for pattern in patterns):
        raise SpecError(
            f"--normalize {normalize} has no use: only FILE.py:FACTORY takes it, other models bring their normalisation"
        )
    statistics = parse_normalize(normalize or "none")
    names = run_names(place)
    found: dict[str, Participant] = {}
    for pattern in patterns:
        foreign = is_foreign(pattern)
        for name in [pattern] if foreign else match_runs((pattern,), names, "run"):
            if name not in found:
                found[name] = _foreign(name, statistics, shape, classes) if foreign else _own(place, name)
    return list(found.values())


def distinct(participants: Iterable[Participant]) -> list[Participant]:
    """Each network once, under the first of its names: what one is measured at holds for all of them."""
    found: dict[str, Participant] = {}
    for one in participants:
        found.setdefault(one.digest, one)
    return list(found.values())


def is_foreign(pattern: str) -> bool:
    """Whether a pattern names a model of somebody else's; no run's name holds a colon."""
    return ":" in pattern


def _own(place: Workspace, name: str) -> Participant:
    run = finished_run(place, name)
    assert run.weights is not None
    folder = place.run(name)
    spec = read_spec(folder / WEIGHTS)
    return Participant(name, run.weights, spec.classes, spec.shape, run, partial(load_model, folder))


def _foreign(spec: str, statistics: Statistics, shape: Shape | None, classes: int | None) -> Participant:
    model = open_model(spec, statistics, shape, classes)
    return Participant(spec, model.digest, model.classes, model.shape, None, model.load)
