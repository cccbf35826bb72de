"""From tables, laid out as they were published, to flat figures."""

import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustmix.errors import SpecError
from robustmix.published.figure import Experiment, Figure, Frozen, Slug, Source

_FILE: Final = "published.toml"


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
    cell: dict[str, dict[str, Any]] = Field(default_factory=dict)


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
    return parse((files("robustmix.published") / _FILE).read_text(encoding="utf-8"))


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
