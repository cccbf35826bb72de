"""TOML files and pydantic errors as one clear line: the file, the key, the value, what it should be."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from robustmix.errors import SpecError
from robustmix.spec.names import unknown


class Spec(BaseModel):
    """The base of everything declared in a file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # As Python has it, ``steps = true`` would be one step.
        if isinstance(value, bool) and _holds_number(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError(f"{str(value).lower()} is not a number")
        return value


AnySpec = TypeVar("AnySpec", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        SpecError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None


def validate(spec: type[AnySpec], values: Mapping[str, Any], where: str = "") -> AnySpec:
    """Build a spec from plain values.

    Args:
        spec: the pydantic model.
        values: its fields.
        where: the file or table that the values come from, put in front of the message.

    Raises:
        SpecError: the first value that is wrong, in one line.
    """
    try:
        return spec.model_validate(values)
    except ValidationError as error:
        raise SpecError(f"{where}: {explain(error, spec)}" if where else explain(error, spec)) from None


def explain(error: ValidationError, spec: type[BaseModel]) -> str:
    """The first mistake of a validation error in one line: key, value and what was expected."""
    first = error.errors(include_url=False)[0]
    location = first["loc"]
    key = ".".join(str(part + 1) if isinstance(part, int) else part for part in location)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return unknown("key", key, _keys_beside(location, spec))
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    if first["type"] == "too_short":
        return f"{key}: at least {first['ctx']['min_length']} is needed"
    if message.startswith("Input should"):
        return f"{key} = {first['input']!r}: {message[0].lower()}{message[1:]}"
    return f"{key}: {message}" if key else message


def _keys_beside(location: tuple[int | str, ...], spec: type[BaseModel]) -> list[str]:
    """The keys that the table at a location knows."""
    for part in location[:-1]:
        if isinstance(part, str) and part in spec.model_fields:
            nested = _table_of(spec.model_fields[part].annotation)
            spec = nested or spec
    return list(spec.model_fields)


def _holds_number(annotation: Any) -> bool:
    """Whether an annotation such as ``int | None`` allows a number."""
    return annotation in (int, float) or any(map(_holds_number, get_args(annotation)))


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as ``tuple[AttackSpec, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _table_of(part))), None)
