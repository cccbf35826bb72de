"""What the literature reports, each number with its source, how sure it is and what the source leaves open.

The numbers stand in ``published.toml`` beside this file, laid out as the published tables are. This module
turns them into flat figures.
"""

import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustmix.errors import SpecError

Metric = Literal["top1_error", "top5_error", "train_error_real", "train_error_corrupted"]
Role = Literal["clean", "white", "transfer"]
AttackName = Literal["fgsm", "ifgsm", "pgd"]
Norm = Literal["linf", "l2"]
Statistic = Literal["last", "best-on-test", "median-last-10", "unknown"]
Certainty = Literal["T", "2", "R", "I"]
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
_FILE: Final = "published.toml"


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
