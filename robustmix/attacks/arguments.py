"""Arguments of the Python API: a mistake is answered in one line that names it, not by whatever it would break."""

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor, nn

from robustmix.errors import EvaluationError, SpecError
from robustmix.units import described


def check_text(value: object, what: str, example: str) -> str:
    """Check what names one of several choices, before it is looked up.

    Args:
        value: the argument.
        what: its name.
        example: one of the choices.

    Raises:
        SpecError: it is no text.
    """
    if not isinstance(value, str):
        raise SpecError(f"{what} must be a name, such as {example!r}; got {described(value)}")
    return value


def check_whole(value: object, what: str, least: int, most: int | None = None) -> int:
    """Check a number of things.

    Args:
        value: the argument.
        what: its name.
        least: allowed.
        most: allowed; None for any.

    Raises:
        SpecError: it is no whole number, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise SpecError(f"{what}={described(value)} must be a whole number of at least {least}")
    if most is not None and int(value) > most:
        raise SpecError(f"{what}={value} must be at most {most}")
    return int(value)


def check_several(values: object, what: str) -> list[Any]:
    """Check a sequence: of numpy, of torch, or any other.

    Args:
        values: the argument.
        what: its name.

    Returns:
        Its values, those of numpy and torch as plain numbers.

    Raises:
        SpecError: it is a single value, or empty.
    """
    plain = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    if isinstance(plain, str) or not isinstance(plain, Iterable):
        raise SpecError(f"{what} must be a sequence, such as a tuple; got {described(plain)}")
    found = [value.item() if isinstance(value, Tensor) and not value.ndim else value for value in plain]
    if not found:
        raise SpecError(f"{what} is empty: name at least one")
    return found


def check_network(value: object, what: str) -> nn.Module:
    """Check a model: an attack freezes its parameters, so that a function will not do.

    Args:
        value: the argument.
        what: its name.

    Raises:
        SpecError: it is no module.
    """
    if not isinstance(value, nn.Module):
        raise SpecError(f"{what} must be a torch.nn.Module; got {type(value).__name__}")
    return value


def check_logits(value: object, who: str, count: int) -> Tensor:
    """Check what a model returns.

    Args:
        value: of a forward pass.
        who: the model, for messages.
        count: of the inputs.

    Returns:
        Logits [count, K].

    Raises:
        EvaluationError: it is anything else, no real numbers, or there is one logit for all classes.
    """
    if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != count:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise EvaluationError(f"{who} returns {got}, not logits [B, K] of {count} inputs: return its logits alone")
    if not value.is_floating_point():
        raise EvaluationError(f"{who} returns {value.dtype}, which are no logits: return them as real numbers")
    if value.shape[1] < 2:
        raise EvaluationError(f"{who} gives a single logit z: return one for each class, [0, z] for two")
    return value


def check_networks(values: object, what: str) -> None:
    """Check models by name.

    Args:
        values: the argument.
        what: its name.

    Raises:
        SpecError: it is no dictionary, or holds anything but modules by text.
    """
    if not isinstance(values, Mapping):
        raise SpecError(f"{what} must be a dictionary of models by name; got {type(values).__name__}")
    for name, model in values.items():
        if not isinstance(name, str):
            raise SpecError(f"{what} must be a dictionary of models by name, a text each; got {described(name)}")
        check_network(model, f"{what}[{name!r}]")
