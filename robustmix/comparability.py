"""How far a published figure and a measured one can be compared, and why they may differ, derived from metadata."""

import math
import re
from collections.abc import Mapping, Sized
from numbers import Real
from typing import Any, Final, Literal

from robustmix.errors import SpecError
from robustmix.published import CERTAINTY, STATISTIC, Figure, figures

Level = Literal["same experiment", "same design", "not comparable"]

# From this training error on, in percent, a network counts as not having fitted its training set.
UNFITTED: Final = 5.0
SHARED_RECIPE: Final = {
    "alpha": "alpha",
    "batch_size": "batch size",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "dropout": "dropout",
    "label_smoothing": "label smoothing",
    "noise_sd": "noise",
}
# How Zhang et al. word eps / steps.
EQUAL_STEPS: Final = "equal step size"
_ATTACKS: Final = {"bim": "ifgsm", "none": None, "clean": None, "": None}
_METHODS: Final = {"mixupc": "mixup"}
_MODELS: Final = {"resnext298x64d": "resnext298x64"}
_NORMS: Final = {"inf": "linf"}
# What publications call a method together with what `Recipe.training` adds to it, without the amount.
_TRAINED: Final = {
    ("erm", "dropout"): "dropout",
    ("mixup", "dropout"): "mixup-dropout",
    ("erm", "smoothing"): "label-smoothing",
    ("erm", "noise"): "gaussian-noise",
    ("erm", "pgd"): "pgd-at",
    ("mixup", "pgd"): "pgd-at-mixup",
}


def reasons(figure: Figure, measured: Mapping[str, Any]) -> list[str]:
    """Why a measured cell may differ from a published figure: plain sentences, the most important first.

    Args:
        figure: the published one.
        measured: what is known of the cell; absent, None and NaN mean not known, other keys are ignored.
            Texts: ``data`` (its name), ``like`` (the data set it resembles), ``data_note`` (what sets it
            apart from that), ``model``, ``method`` and ``source_method`` (a method's name or a recipe's
            ``training``), ``also`` (what else is unusual about the training, in words), ``metric``, ``role``,
            ``attack`` (absent if clean), ``norm``, ``statistic`` (a key of ``STATISTIC``). Numbers: ``width``,
            ``epochs``, ``train_examples``, ``train_error`` (percent, on unmixed training examples),
            ``label_noise`` (percent, 0 if absent), ``eps_255`` and ``step_255`` (units of 1/255), ``steps``,
            ``n`` (test examples), ``alpha``, ``batch_size``, ``lr``, ``weight_decay``, ``dropout``,
            ``label_smoothing``, ``noise_sd``; ``seeds`` is how many there are or a list of them.

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
    all of them known, and the rest of the recipe as far as both are known. "same design" is the same attack,
    role, method, norm, metric and label noise, and the same budget where the source states one, on whatever
    data and model. Anything else is "not comparable".

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
        and same_model(_text(measured, "model"), figure)
        and width in (None, figure.width)
        and epochs is not None
        and epochs == figure.recipe.epochs
        and not _other_recipe(figure, measured)
        and (figure.attack is None or figure.eps_255 is not None)
        and (figure.steps is None or steps == figure.steps)
    )
    return "same experiment" if same else "same design"


def figure_facts(figure: Figure) -> dict[str, Any]:
    """What is known of a published figure, as `reasons` takes it, so that one can be held against another.

    A figure is one number: it counts as a single seed.
    """
    shared = {key: getattr(figure.recipe, key) for key in SHARED_RECIPE}
    same = ("data", "model", "width", "method", "metric", "role", "attack", "norm", "source_method", "statistic")
    return {
        **{key: getattr(figure, key) for key in (*same, "train_examples", "eps_255", "steps")},
        **shared,
        "epochs": figure.recipe.epochs,
        "label_noise": figure.recipe.label_noise,
        "seeds": 1,
    }


def published_method(training: str) -> str:
    """What publications call a way of training, by `robustmix.spec.recipe.Recipe.training`.

    Label noise is no method of its own, and how much of a thing there is stands in a figure's recipe. What no
    publication has a name for keeps its own.
    """
    method, *extras = training.split("+")
    kinds = [kind for extra in extras if (kind := re.sub(r"-[^a-z].*", "", extra)) != "label-noise"]
    if not kinds:
        return method
    return _TRAINED.get((method, "+".join(kinds)), training)


def same_model(model: str | None, figure: Figure) -> bool:
    """Whether a network is the one of a figure, by whichever package's name."""
    plain = _plain((model or "").rpartition(":")[2])
    return _MODELS.get(plain, plain) == _plain(figure.model)


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
        plain = _plain(published_method(here) if here and key.endswith("method") else here)
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
    if not same_model(model, figure):
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
    found += _other_recipe(figure, measured)
    if also := _text(measured, "also"):
        found.append(f"trained with {also}")
    return found


def _other_recipe(figure: Figure, measured: Mapping[str, Any]) -> list[str]:
    """What of `SHARED_RECIPE` is known of both and differs."""
    found = []
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
    eps = _number(measured, "eps_255")
    equal = steps is not None and step is not None and eps is not None and _close(steps * step, eps)
    if figure.step_rule is not None and step is not None and not (equal and figure.step_rule == EQUAL_STEPS):
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
