"""What the literature reports, each number with its source, how sure it is and what the source leaves open.

The numbers stand in ``published.toml`` beside this file, laid out as the published tables are. This module
turns them into flat figures, and says for a measured cell how comparable a figure is and why they may differ.
"""

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sized
from decimal import Decimal
from functools import cache
from importlib.resources import files
from numbers import Real
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustmix.errors import SpecError

Metric = Literal["top1_error", "top5_error", "train_error_real", "train_error_corrupted"]
Role = Literal["clean", "white", "transfer"]
AttackName = Literal["fgsm", "ifgsm", "pgd"]
Norm = Literal["linf", "l2"]
Statistic = Literal["last", "best-on-test", "median-last-10", "unknown"]
Certainty = Literal["T", "2", "R", "I"]
Level = Literal["same experiment", "same design", "not comparable"]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$")]

CERTAINTY: Final[dict[Certainty, str]] = {
    "T": "read in the source or its authors' code",
    "2": "read in a third-party copy",
    "R": "remembered, not looked up",
    "I": "inferred",
}
STATISTIC: Final[dict[Statistic, str]] = {
    "last": "the last one",
    "best-on-test": "the checkpoint that is best on the test set",
    "median-last-10": "the median of the last ten epochs",
    "unknown": "not stated",
}
# From this training error on, in percent, a network counts as not having fitted its training set.
UNFITTED: Final = 5.0
SHARED_RECIPE: Final = {
    "alpha": "alpha",
    "batch_size": "batch size",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "dropout": "dropout",
}

_FILE: Final = "published.toml"
_ATTACKS: Final = {"bim": "ifgsm", "none": None, "clean": None, "": None}
_METHODS: Final = {"mixupc": "mixup"}
_NORMS: Final = {"inf": "linf"}


class Frozen(BaseModel):
    """The base of everything read from ``published.toml``: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Source(Frozen):
    """Where figures come from: a paper, its authors' code or a slide deck.

    Attributes:
        key: its key in ``published.toml``.
        authors: in full, comma-separated.
        title: of the paper.
        venue: conference, journal or kind of source.
        year: of publication, if known.
        url: arXiv or home page, if there is one.
        bibtex: one BibTeX entry.
        note: anything a reader should know of it.
    """

    key: Slug
    authors: str
    title: str
    venue: str
    year: int | None = None
    url: str | None = None
    bibtex: str
    note: str = ""


class TrainingFacts(Frozen):
    """What a source states of the training; None where it does not (or where it does not apply).

    Attributes:
        epochs: passes over the training set.
        unmixed_epochs: epochs at the start without mixing.
        batch_size: examples per step.
        optimizer: its name.
        lr: highest learning rate.
        lr_schedule: in words.
        momentum: of SGD.
        weight_decay: L2 penalty.
        alpha: of Beta(alpha, alpha).
        augment: random transformations of the inputs.
        dropout: share of units dropped.
        label_noise: share of training labels replaced at random, in percent.
        label_smoothing: share of the label's mass spread over all classes.
        noise_sd: standard deviation of Gaussian noise added to the inputs.
        layer: stage whose latent representations are mixed, from 1.
        pairs: how an example's partner is chosen.
        input: form of the inputs.
    """

    epochs: int | None = Field(default=None, ge=1)
    unmixed_epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    optimizer: str | None = None
    lr: float | None = Field(default=None, gt=0)
    lr_schedule: str | None = None
    momentum: float | None = Field(default=None, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)
    alpha: float | None = Field(default=None, ge=0)
    augment: str | None = None
    dropout: float | None = Field(default=None, ge=0, le=1)
    label_noise: float | None = Field(default=None, ge=0, le=100)
    label_smoothing: float | None = Field(default=None, ge=0, le=1)
    noise_sd: float | None = Field(default=None, ge=0)
    layer: int | None = Field(default=None, ge=1)
    pairs: str | None = None
    input: str | None = None


class Figure(Frozen):
    """One published number, flat: everything its experiment says of it is resolved here.

    Attributes:
        id: stable, ``EXPERIMENT-ROW-COLUMN``.
        experiment: id of the experiment (the published table) it belongs to.
        source: key of its source.
        where: table, figure or section of the source.
        data: data set.
        train_examples: size of the data set's training split, if known.
        model: architecture.
        width: channels of the first stage (hidden units of an MLP) that the architecture's name implies.
        method: how the scored network was trained.
        metric: which error.
        split: examples that it is taken on.
        value: error in percent.
        reported: the number exactly as the source prints it.
        reported_as: whether ``reported`` is an error or an accuracy; ``value`` is always an error.
        role: clean inputs, inputs crafted on the scored network itself, or on another one.
        attack: how they were crafted; None for clean inputs.
        eps_255: budget in units of 1/255, ``inf`` if unbounded, None if not stated.
        steps: iterations of an iterated attack.
        step_rule: length of one iteration, in the source's words.
        source_method: training method of the network that crafted transferred inputs, if stated.
        norm: of the budget.
        certainty: how sure the number is, a key of ``CERTAINTY``.
        statistic: which epoch's error it is, a key of ``STATISTIC``.
        recipe: what the source states of the training.
        not_stated: what the source leaves open.
        note: anything else a reader should know.
        reproduces: False if it is known not to reproduce.
        corrected_by: id of the figure that replaces it.
        independent: False if it repeats or copies another figure and must not count as further evidence.
    """

    id: Slug
    experiment: Slug
    source: Slug
    where: str
    data: Slug
    train_examples: int | None = None
    model: Slug
    width: int | None = None
    method: Slug
    metric: Metric
    split: Literal["test", "validation", "train"] = "test"
    value: float = Field(ge=0, le=100, allow_inf_nan=False)
    reported: str
    reported_as: Literal["error", "accuracy"] = "error"
    role: Role
    attack: AttackName | None = None
    eps_255: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    step_rule: str | None = None
    source_method: Slug | None = None
    norm: Norm | None = None
    certainty: Certainty
    statistic: Statistic
    recipe: TrainingFacts = TrainingFacts()
    not_stated: tuple[str, ...] = ()
    note: str = ""
    reproduces: bool = True
    corrected_by: Slug | None = None
    independent: bool = True

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.role == "clean" and (self.attack, self.steps, self.step_rule) != (None, None, None):
            raise ValueError("a clean error has no attack")
        if self.role != "clean" and (self.attack is None or self.norm is None):
            raise ValueError("an adversarial error needs 'attack' and 'norm'")
        if self.role != "transfer" and self.source_method is not None:
            raise ValueError("'source_method' belongs to role = 'transfer'")
        return self


class Experiment(Frozen):
    """The figures of one published table.

    Attributes:
        id: stable.
        source: key of its source.
        where: table, figure or section of the source.
        not_stated: what the source leaves open about all of them.
        note: what holds for all of them.
        figures: in the order of the table, row by row.
    """

    id: Slug
    source: Slug
    where: str
    not_stated: tuple[str, ...]
    note: str
    figures: tuple[Figure, ...]


class Published(Frozen):
    """A whole file of figures: sources by key, experiments by id, figures in the file's order."""

    sources: dict[str, Source]
    experiments: dict[str, Experiment]
    figures: tuple[Figure, ...]


class _Column(Frozen):
    model_config = ConfigDict(extra="allow")

    id: Slug


class _Row(_Column):
    values: tuple[Annotated[Decimal, Field(ge=0, le=100)] | Literal["-"], ...]


class _Table(Frozen):
    model_config = ConfigDict(extra="allow")

    id: Slug
    source: Slug
    where: str
    columns: tuple[_Column, ...] = Field(min_length=1)
    rows: tuple[_Row, ...] = Field(min_length=1)
    cell: dict[str, dict[str, Any]] = {}


class _Name(Frozen):
    name: str
    width: int | None = None
    train_examples: int | None = None


class _File(Frozen):
    sources: dict[str, dict[str, Any]]
    models: dict[str, _Name]
    data: dict[str, _Name]
    experiment: tuple[_Table, ...]


_Model = TypeVar("_Model", bound=BaseModel)


# ---- reading -----------------------------------------------------------------------------------------------


def figures() -> tuple[Figure, ...]:
    """Every published figure, in the order of the file."""
    return _published().figures


def sources() -> dict[str, Source]:
    """Every source, by key."""
    return dict(_published().sources)


def experiments() -> dict[str, Experiment]:
    """Every experiment (published table), by id."""
    return dict(_published().experiments)


def experiment(name: str) -> Experiment:
    """One experiment by its id.

    Raises:
        SpecError: there is none of that id.
    """
    known = _published().experiments
    if name not in known:
        raise SpecError(f"unknown published experiment {name!r}; choose from {', '.join(sorted(known))}")
    return known[name]


def find(**criteria: object) -> list[Figure]:
    """The figures whose fields equal all the given values, such as ``find(role="white", method="mixup")``.

    Raises:
        SpecError: a figure has no such field.
    """
    fields = Figure.model_fields
    if unknown := sorted(set(criteria) - set(fields)):
        raise SpecError(f"a published figure has no field {unknown[0]!r}; choose from {', '.join(fields)}")
    wanted = criteria.items()
    return [figure for figure in figures() if all(getattr(figure, key) == value for key, value in wanted)]


def parse(text: str) -> Published:
    """Read figures from TOML of the grammar that the head of ``published.toml`` describes.

    Args:
        text: the file's content; figures are percentages.

    Raises:
        SpecError: not TOML, an unknown or missing key, a value out of range, an id that stands twice, or a
            source, model, data set or correction that does not exist.
    """
    try:
        raw = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{_FILE}: not valid TOML: {error}") from None
    file = _validate(_File, raw, "")
    found = {}
    for key, source in file.sources.items():
        found[key] = _validate(Source, {**source, "key": key}, f"sources.{key}")
    tables = [_read_experiment(table, file) for table in file.experiment]
    every = tuple(figure for table in tables for figure in table.figures)
    _check_unique((table.id for table in tables), "experiment")
    _check_unique((figure.id for figure in every), "figure")
    ids = {figure.id for figure in every}
    for figure in every:
        better = figure.corrected_by
        if better is not None and better not in ids:
            raise SpecError(f"{_FILE}: {figure.id}: corrected_by = {better!r}: there is no such figure")
    return Published(sources=found, experiments={table.id: table for table in tables}, figures=every)


@cache
def _published() -> Published:
    return parse((files("robustmix") / _FILE).read_text(encoding="utf-8"))


def _read_experiment(table: _Table, file: _File) -> Experiment:
    shared = dict(table.model_extra or {})
    cells = dict(table.cell)
    found = []
    for row in table.rows:
        given, needed = len(row.values), len(table.columns)
        if given != needed:
            raise SpecError(f"{_FILE}: {table.id}-{row.id}: {given} values for {needed} columns")
        for column, value in zip(table.columns, row.values, strict=True):
            of_column, of_row = dict(column.model_extra or {}), dict(row.model_extra or {})
            name = f"{row.id}-{column.id}"
            if value == "-":
                continue
            if twice := sorted((set(of_column) & set(of_row)) - {"recipe", "note"}):
                raise SpecError(f"{_FILE}: {table.id}-{name}: row and column both set {twice[0]!r}")
            facts = _merge(shared, of_column, of_row, cells.pop(name, {}))
            as_accuracy = facts.get("reported_as") == "accuracy"
            facts |= {
                "id": f"{table.id}-{name}",
                "experiment": table.id,
                "source": _known(table.source, file.sources, f"{table.id}: source"),
                "where": table.where,
                "value": 100 - value if as_accuracy else value,
                "reported": str(value),
            }
            for field, names in (("model", file.models), ("data", file.data)):
                _known(facts.get(field), names, f"{table.id}-{name}: {field}")
            facts["width"] = file.models[facts["model"]].width
            facts["train_examples"] = file.data[facts["data"]].train_examples
            found.append(_validate(Figure, facts, f"{table.id}-{name}"))
    if cells:
        raise SpecError(f"{_FILE}: {table.id}: there is no cell {min(cells)!r}")
    return Experiment(
        id=table.id,
        source=table.source,
        where=table.where,
        not_stated=tuple(shared.get("not_stated", ())),
        note=shared.get("note", ""),
        figures=tuple(found),
    )


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers override earlier ones; recipes are merged and notes joined."""
    merged: dict[str, Any] = {}
    for layer in layers:
        recipe = {**merged.get("recipe", {}), **layer.get("recipe", {})}
        note = " ".join(filter(None, (merged.get("note"), layer.get("note"))))
        merged |= {**layer, "recipe": recipe, "note": note}
    return merged


def _known(name: object, names: Mapping[str, object], where: str) -> str:
    if not isinstance(name, str) or name not in names:
        raise SpecError(f"{_FILE}: {where} = {name!r}: should be one of {', '.join(sorted(names))}")
    return name


def _check_unique(ids: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise SpecError(f"{_FILE}: the {what} {name!r} stands twice")
        seen.add(name)


def _validate(model: type[_Model], values: Mapping[str, Any], where: str) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        raise SpecError(f"{_FILE}: {place} = {first['input']!r}: {first['msg']}") from None


# ---- comparing ---------------------------------------------------------------------------------------------


def reasons(figure: Figure, measured: Mapping[str, Any]) -> list[str]:
    """Why a measured cell may differ from a published figure: plain sentences, the most important first.

    Args:
        figure: the published one.
        measured: what is known of the cell; absent, None and NaN mean not known, other keys are ignored.
            Texts: ``data`` (its name), ``like`` (the data set it resembles), ``data_note`` (what sets it
            apart from that), ``model``, ``method``, ``metric``, ``role``, ``attack`` (absent if clean),
            ``norm``, ``source_method``, ``statistic`` (a key of ``STATISTIC``). Numbers: ``width``,
            ``epochs``, ``train_examples``, ``train_error`` (percent, on unmixed training examples),
            ``label_noise`` (percent, 0 if absent), ``eps_255`` and ``step_255`` (units of 1/255), ``steps``,
            ``n`` (test examples), ``alpha``, ``batch_size``, ``lr``, ``weight_decay``, ``dropout``;
            ``seeds`` is how many there are or a list of them.

    Raises:
        SpecError: a value is of the wrong type.
    """
    found = [_not_reproduced(figure), *_other_design(figure, measured), _other_data(figure, measured)]
    found += [*_other_network(figure, measured), *_other_training(figure, measured)]
    found += [*_other_attack_details(figure, measured), _other_checkpoint(figure, measured)]
    if figure.certainty != "T":
        found.append(f"the published figure is {CERTAINTY[figure.certainty]}")
    open_points = [*figure.not_stated, *(["checkpoint"] if figure.statistic == "unknown" else [])]
    if open_points:
        found.append(f"not stated there: {', '.join(open_points)}")
    found += [_few_examples(figure, measured), _one_seed(measured)]
    return [reason for reason in found if reason]


def level(figure: Figure, measured: Mapping[str, Any]) -> Level:
    """How far a measured cell can be compared with a published figure.

    "same experiment" needs the same design and the same data set, model, width, epochs, attack and budget,
    all of them known. "same design" is the same attack, role, method, norm, metric and label noise, and the
    same budget where the source states one, on whatever data and model. Anything else is "not comparable".

    Args:
        figure: the published one.
        measured: as in `reasons`; role, method, norm, metric and source_method count as equal where absent,
            since whoever picked the figure has matched them, and an absent width is the architecture's own.

    Raises:
        SpecError: a value is of the wrong type.
    """
    if _other_design(figure, measured):
        return "not comparable"
    width, epochs, steps = (_number(measured, key) for key in ("width", "epochs", "steps"))
    size = _number(measured, "train_examples")
    same = (
        not _other_data(figure, measured)
        and (size is None or figure.train_examples is None or size == figure.train_examples)
        and _plain(_text(measured, "model")) == _plain(figure.model)
        and width in (None, figure.width)
        and epochs is not None
        and epochs == figure.recipe.epochs
        and (figure.attack is None or figure.eps_255 is not None)
        and (figure.steps is None or steps == figure.steps)
    )
    return "same experiment" if same else "same design"


def _not_reproduced(figure: Figure) -> str:
    if figure.reproduces:
        return ""
    better = next((other.reported for other in figures() if other.id == figure.corrected_by), None)
    corrected = f": its authors corrected it to {better}" if better else ""
    return f"the published {figure.reported} did not reproduce{corrected}"


def _other_design(figure: Figure, measured: Mapping[str, Any]) -> list[str]:
    attack = _attack(measured)
    found = []
    if attack != figure.attack:
        found.append(f"another attack: {attack or 'none'} instead of {figure.attack or 'none'}")
    pairs: tuple[tuple[str, str, str | None, dict[str, str]], ...] = (
        ("role", "role", figure.role, {}),
        ("method", "method", figure.method, _METHODS),
        ("source of the examples", "source_method", figure.source_method, _METHODS),
        ("metric", "metric", figure.metric, {}),
        ("norm", "norm", figure.norm, _NORMS),
    )
    for what, key, published, names in pairs:
        here = _text(measured, key)
        plain = _plain(here)
        if here is not None and published is not None and names.get(plain, plain) != _plain(published):
            found.append(f"another {what}: {here} instead of {published}")
    noise, published_noise = _number(measured, "label_noise") or 0, figure.recipe.label_noise or 0
    if not _close(noise, published_noise):
        found.append(f"other label noise: {noise:g} % of the labels instead of {published_noise:g} %")
    if attack and figure.attack and figure.eps_255 is not None:
        eps = _number(measured, "eps_255")
        if eps is None or not _close(eps, figure.eps_255):
            found.append(f"another budget: {_budget(eps)} instead of {_budget(figure.eps_255)}")
    return found


def _other_data(figure: Figure, measured: Mapping[str, Any]) -> str:
    data, like, note = (_text(measured, key) for key in ("data", "like", "data_note"))
    # Up to its first comma a note says what the data are; the rest is detail that a reason has no room for.
    brief = f" ({re.split('[,;:]', note)[0].strip()})" if note else ""
    if _plain(data) == _plain(figure.data):
        altered = note or _plain(like or data) != _plain(data)
        return f"not the original {figure.data}{brief}" if altered else ""
    if like is not None and _plain(like) == _plain(figure.data):
        return f"not the original {figure.data}: {data}{brief}"
    return f"another data set: {like or data or 'unknown'}{brief} instead of {figure.data}"


def _other_network(figure: Figure, measured: Mapping[str, Any]) -> list[str]:
    found = []
    model, width = _text(measured, "model"), _number(measured, "width")
    if _plain(model) != _plain(figure.model):
        found.append(f"another model: {model or 'unknown'} instead of {figure.model}")
    if width is not None and figure.width is not None and width < figure.width:
        found.append(f"a narrower network: width {width:g} of {figure.width}")
    if width is not None and figure.width is not None and width > figure.width:
        found.append(f"a wider network: width {width:g} instead of {figure.width}")
    return found


def _other_training(figure: Figure, measured: Mapping[str, Any]) -> list[str]:
    found = []
    size, epochs, error = (_number(measured, key) for key in ("train_examples", "epochs", "train_error"))
    alike = _plain(figure.data) in (_plain(_text(measured, "data")), _plain(_text(measured, "like")))
    if alike and size is not None and figure.train_examples is not None and size != figure.train_examples:
        found.append(f"{size:,.0f} training examples instead of {figure.train_examples:,}")
    if epochs is not None and figure.recipe.epochs is not None and epochs != figure.recipe.epochs:
        found.append(f"{epochs:g} epoch{'' if epochs == 1 else 's'} instead of {figure.recipe.epochs}")
    # Adversarial training never fits its training set, published or not.
    if error is not None and error >= UNFITTED and not figure.method.startswith("pgd-at"):
        found.append(f"not trained to the end: {error:.3g} % error on its own training set")
    for key, name in SHARED_RECIPE.items():
        here, there = _number(measured, key), getattr(figure.recipe, key)
        if here is not None and there is not None and not _close(here, there):
            found.append(f"{name} {here:g} instead of {there:g}")
    return found


def _other_attack_details(figure: Figure, measured: Mapping[str, Any]) -> list[str]:
    found = []
    steps, step = _number(measured, "steps"), _number(measured, "step_255")
    if figure.steps is not None and steps is not None and steps != figure.steps:
        found.append(f"{steps:g} iterations instead of {figure.steps}")
    if figure.step_rule is not None and step is not None:
        found.append(f"steps of {_budget(step)}; published: {figure.step_rule}")
    return found


def _other_checkpoint(figure: Figure, measured: Mapping[str, Any]) -> str:
    here = _text(measured, "statistic") or "unknown"
    if here not in STATISTIC:
        raise SpecError(f"statistic = {here!r}: should be one of {', '.join(STATISTIC)}")
    if "unknown" in (here, figure.statistic) or here == figure.statistic:
        return ""
    return f"published: {STATISTIC[figure.statistic]}; here: {STATISTIC[here]}"


def _few_examples(figure: Figure, measured: Mapping[str, Any]) -> str:
    """The 95 % interval of a share (normal approximation, at the published error) if it exceeds one point."""
    n = _number(measured, "n")
    points = 1.96 * math.sqrt(figure.value * (100 - figure.value) / n) if n else 0
    return f"only {n:,.0f} test examples: chance alone moves it by {points:.1f} points" if points >= 1 else ""


def _one_seed(measured: Mapping[str, Any]) -> str:
    seeds = measured.get("seeds")
    if isinstance(seeds, Sized) and not isinstance(seeds, str):
        seeds = len(seeds)
    return "a single seed" if _number({"seeds": seeds}, "seeds") == 1 else ""


# ---- values ------------------------------------------------------------------------------------------------


def _attack(measured: Mapping[str, Any]) -> str | None:
    """The cell's attack by the name that figures use; None if its inputs are clean."""
    written = _text(measured, "attack") or ""
    if _number(measured, "eps_255") == 0 or _text(measured, "role") == "clean":
        return None
    plain = _plain(written)
    name = _ATTACKS.get(plain, plain)
    return "fgsm" if name == "ifgsm" and _number(measured, "steps") == 1 else name


def _number(measured: Mapping[str, Any], key: str) -> float | None:
    value = measured.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SpecError(f"{key} = {value!r}: should be a number")
    return None if math.isnan(value) else float(value)


def _text(measured: Mapping[str, Any], key: str) -> str | None:
    value = measured.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):  # a data frame's empty cell
        return None
    if not isinstance(value, str):
        raise SpecError(f"{key} = {value!r}: should be a text")
    return value


def _plain(name: str | None) -> str:
    """A name without case, dots, dashes and underscores, so that PreAct-ResNet18 is preact_resnet18."""
    return re.sub("[^a-z0-9]", "", (name or "").lower())


def _close(here: float, there: float) -> bool:
    return math.isclose(here, there, rel_tol=1e-6, abs_tol=1e-9)


def _budget(eps: float | None) -> str:
    if eps is None:
        return "an unknown one"
    return "unbounded" if math.isinf(eps) else f"{eps:.4g}/255"
