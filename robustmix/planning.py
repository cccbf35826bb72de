"""What a suite asks for, and what of it is missing in the workspace."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from robustmix.attacks.foreign import check_attack_fits
from robustmix.attacks.libraries import check_installed
from robustmix.attacks.losses import check_loss_fits
from robustmix.data import Dataset, Split, load_data
from robustmix.device import memory_hint
from robustmix.errors import EvaluationError, SpecError
from robustmix.participants import Participant, distinct, find_participants, is_foreign
from robustmix.progress import say
from robustmix.sanity import check_model, some_images
from robustmix.spec.attack import GRADIENT_FREE, AttackSpec, Course
from robustmix.spec.suite import Suite, match_runs
from robustmix.store.cell_files import trusted_cell
from robustmix.store.cells import Cell, CellIdentity
from robustmix.store.gallery import has_images
from robustmix.store.runs import common_data, finished_run, run_names
from robustmix.store.workspace import Workspace
from robustmix.units import GREY_LEVELS, format_budget
from robustmix.work import CLEAN, DEFAULT_BATCH, MOST_EXAMPLES, Unit, halved, make_unit


@dataclass(frozen=True)
class Plan:
    """What a suite asks for and what of it is missing.

    Attributes:
        data: the data set.
        inputs: the test examples in use.
        participants: sources and targets by name.
        wanted: the identities of all cells that are asked for.
        everything: all units, whether their cells are missing or not.
        missing: the keys of the missing cells.
        normalize: what models from a ``FILE.py:FACTORY`` are put behind.
    """

    data: Dataset
    inputs: Split
    participants: dict[str, Participant]
    wanted: tuple[CellIdentity, ...]
    everything: tuple[Unit, ...]
    missing: frozenset[str]
    normalize: str | None

    @property
    def units(self) -> tuple[Unit, ...]:
        """The missing work."""
        return tuple(unit for one in self.everything if (unit := one.only(self.missing)))

    def load(self, one: Participant, device: torch.device) -> nn.Module:
        """A participant's model on a device, in eval mode and frozen; somebody else's is looked over first.

        Raises:
            EvaluationError: it is not what it should be, or memory runs out.
        """
        with memory_hint("--device cpu"):
            model = one.load().to(device).eval().requires_grad_(False)
            if one.run is None:
                followed = any(
                    unit.source and unit.source.digest == one.digest and unit.attack.name not in GRADIENT_FREE
                    for unit in self.everything
                    if unit.attack
                )
                images, labels = some_images(self.data.test, device)
                check_model(one, model, images, labels, self.data.classes, differentiate=followed)
        return model


def make_plan(
    suite: Suite,
    place: Workspace,
    *,
    batch_size: int = DEFAULT_BATCH,
    data_root: str | Path | None = None,
    stream: bool | None = None,
    workers: int = 0,
    save_images: bool = False,
) -> Plan:
    """Resolve names, data and budgets, and find out which cells are missing.

    Args:
        suite: what is asked for.
        place: the workspace.
        batch_size: examples per batch, part of each cell's identity.
        data_root: the folder with the data.
        stream: whether images stay in their folder; None if they do not fit into memory.
        workers: processes that read streamed images.
        save_images: whether adversarial images are kept, so that cells without them count as missing.

    Raises:
        SpecError: a name matches nothing, or a budget cannot be reached.
        CheckpointError: a run is missing or unfinished, or weights cannot be had.
        EvaluationError: a model or an attack does not fit the data.
    """
    if not 1 <= batch_size <= MOST_EXAMPLES:
        raise SpecError(f"batch size {batch_size} must be at least 1 and at most {MOST_EXAMPLES}")
    check_suite_installed(suite)
    sources, targets = suite.source_patterns, suite.target_patterns
    data = load_data(suite.data or _own_data(place, sources), data_root, stream=stream, workers=workers)
    everyone = {
        one.name: one
        for one in find_participants(
            place, [*sources, *targets], normalize=suite.normalize, shape=data.shape, classes=len(data.classes)
        )
    }
    for one in everyone.values():
        _check_fit(one, data)
    for spec in suite.attack:
        check_loss_fits(spec.loss, len(data.classes))
        check_attack_fits(spec.name, len(data.classes))
    _check_lengths(suite, data)
    inputs = data.test.first(suite.limit)
    crafting, scored = (_named(everyone, place, patterns) for patterns in (sources, targets))
    _warn(suite, data, inputs, transferred=len({one.digest for one in (*crafting, *scored)}) > 1)

    digest = inputs.digest()
    wanted: dict[str, CellIdentity] = {}
    units: list[Unit] = []

    def add(source: Participant | None, attack: AttackSpec | None, courses: Sequence[Course], compiled: bool) -> None:
        images = save_images and source is not None
        made = make_unit(source, attack, courses, scored, digest, batch_size, compiled=compiled, save_images=images)
        new = {key: one.identity for one in made.cells if (key := one.identity.key()) not in wanted}
        wanted.update(new)
        if unit := made.only(new):
            units.append(unit)

    attacks = [spec.at(data.like) for spec in suite.attack]
    for compiled in sorted({spec.compiled for spec in attacks}):
        add(None, None, [CLEAN], compiled)
    for source in crafting:
        for attack in attacks:
            add(source, attack, attack.courses(data.like), attack.compiled)
    missing = frozenset().union(*(missing_cells(one, place) for one in units))
    return Plan(data, inputs, everyone, tuple(wanted.values()), tuple(units), missing, suite.normalize)


def check_suite_installed(suite: Suite) -> None:
    """Find out whether the libraries that a suite's attacks need are there.

    Raises:
        SpecError: one is missing.
    """
    check_installed([spec.name for spec in suite.attack], [spec.impl for spec in suite.attack])


def missing_cells(unit: Unit, place: Workspace) -> list[str]:
    """The keys of those cells of a unit that nobody has computed yet."""
    cells = [(one.identity, existing_cell(place, one.identity, save_images=unit.save_images)) for one in unit.cells]
    return [identity.key() for identity, cell in cells if cell is None]


def missing_clean(plan: Plan, place: Workspace) -> frozenset[str]:
    """The keys of the clean cells that are missing beside a plan's attacked ones, to compare these with.

    An attack and the clean predictions of its batch size need not be computed together: memory may run out for either,
    so that they come in smaller batches, and a job may die between the two.
    """
    attacked = [cell.identity for unit in plan.everything if unit.source for cell in unit.cells]
    found = [cell.identity.clean() for identity in attacked if (cell := existing_cell(place, identity))]
    beside = {identity.key(): identity for identity in found}
    return frozenset(key for key, identity in beside.items() if trusted_cell(place.cells, identity) is None)


def _own_data(place: Workspace, sources: Sequence[str]) -> str:
    names = match_runs(tuple(one for one in sources if not is_foreign(one)), run_names(place), "run")
    if not names:
        raise SpecError("--data is missing: nothing that crafts is a run, which would name what to attack on")
    return common_data([finished_run(place, name) for name in names])


def _named(everyone: dict[str, Participant], place: Workspace, patterns: Sequence[str]) -> list[Participant]:
    """The networks that patterns select, each once, in their order."""
    names: list[str] = []
    for pattern in patterns:
        names += [pattern] if is_foreign(pattern) else match_runs((pattern,), run_names(place), "run")
    return distinct(everyone[name] for name in names)


def existing_cell(place: Workspace, identity: CellIdentity, *, save_images: bool = False) -> Cell | None:
    """The cell that is there already, be it computed in smaller batches because memory ran out.

    Args:
        place: the workspace.
        identity: at the batch size that is asked for.
        save_images: whether it counts only with its images.
    """
    for size in halved(identity.batch_size):
        candidate = identity.model_copy(update={"batch_size": size})
        cell = trusted_cell(place.cells, candidate)
        if cell is None:
            continue
        if size < identity.batch_size and not cell.facts.halved_from:
            continue
        if save_images:
            rounded = cell.rows["prediction_uint8"].null_count == 0
            if not (rounded and has_images(place.gallery, candidate, cell.rows.num_rows)):
                return None
        return cell
    return None


def _check_fit(one: Participant, data: Dataset) -> None:
    count = one.classes if isinstance(one.classes, int) else len(one.classes)
    what = f"run {one.name!r}" if one.run else one.name
    way_out = f": attack it on what it was trained on (--data {one.run.recipe.data})" if one.run else ""
    if count != len(data.classes):
        raise EvaluationError(f"{what} tells {count} classes apart, {data.spec} has {len(data.classes)}{way_out}")
    if not isinstance(one.classes, int) and one.classes != data.classes:
        if set(one.classes) == set(data.classes):
            raise EvaluationError(
                f"{what} knows the classes of {data.spec} in another order ({', '.join(one.classes)}): labels would be "
                "wrong"
            )
        say(f"warning: {what} calls its classes {_few(one.classes)}, {data.spec} {_few(data.classes)}")
    if one.shape is not None and one.shape != data.shape:
        raise EvaluationError(f"{what} takes images {list(one.shape)}, {data.spec} has {list(data.shape)}{way_out}")


def _check_lengths(suite: Suite, data: Dataset) -> None:
    """Refuse budgets and steps in L2 that no perturbation of these images can have."""
    longest = GREY_LEVELS * math.sqrt(math.prod(data.shape))
    for spec in suite.attack:
        for course in spec.courses(data.like) if spec.metric == "l2" else ():
            fixed = spec.step if isinstance(spec.step, float) else None
            for what, length in (("budget", course.eps), ("step", fixed)):
                if length is not None and length > longest:
                    raise SpecError(
                        f"{what} {format_budget(length)}/255 in l2 is longer than any perturbation of images "
                        f"{list(data.shape)} within the pixel range, {format_budget(round(longest, 1))}/255"
                    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _warn(suite: Suite, data: Dataset, inputs: Split, *, transferred: bool) -> None:
    """Look at the grey levels of some images, below one of which a budget does little, and at what transfers badly."""
    some = torch.arange(min(len(inputs), DEFAULT_BATCH))
    x, _ = next(iter(inputs.batches([some], torch.device("cpu"))))
    levels = (x * GREY_LEVELS).round().int().unique()
    if len(levels) < 2:
        raise EvaluationError(f"{data.spec}: all test pixels have the same value; there is nothing to attack")
    grey_level = int(levels.diff().min())
    pixelwise = (spec for spec in suite.attack if spec.metric == "linf")
    budgets = {course.eps for spec in pixelwise for course in spec.courses(data.like) if course.eps}
    cleaned = dict.fromkeys(spec.name for spec in suite.attack if spec.name in ("autoattack", "square"))
    if cleaned and transferred:
        say(
            f"warning: {' and '.join(cleaned)} leave an example clean that they do not break: transferred, they are "
            "weak by construction"
        )
    below = [format_budget(eps) for eps in sorted(budgets) if eps < grey_level]
    if below:
        say(f"warning: eps {', '.join(below)} is below one grey level of {data.name}, which is {grey_level}/255")
