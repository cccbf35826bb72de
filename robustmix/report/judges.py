"""Whether the networks of a report support a claim: each judge holds one kind of claim against what was measured."""

import re
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

from robustmix.report.effects import IFGSM, NOT_ROBUST, Effect, Role, effect, errors
from robustmix.report.material import Material
from robustmix.report.text import amount, budget, final, interval, join_names, percent, plural, probability, range_of
from robustmix.spec.recipe import Recipe
from robustmix.stats import SEEDS_FOR_METHODS, mean_interval
from robustmix.store.runs import Run

Verdict = Literal["supported", "contradicted", "undecided", "not measured"]

# A network that errs on less than this share of its corrupted training labels has learnt most of them by heart.
BY_HEART: Final = 0.5
# A network that errs under an attack on at most so much more than without one is robust to it.
NEAR_CLEAN: Final = 0.05
# What makes another method of mixup; how a run was trained otherwise does not.
MIXING: Final = ("lam", "lam_per", "lam_labels", "mix", "same_class", "nearest")
NOISY: Final = "networks of ERM and of mixup trained on as many corrupted labels"


class Judgement(NamedTuple):
    """The part of a claim that this report adds."""

    number: str
    verdict: Verdict
    reason: str


# What a judge sees: the report, and its effects, whose p values are corrected together.
Judge = Callable[[Material, Sequence[Effect]], Judgement]


# ---- judges ------------------------------------------------------------------------------------------------


def robust(role: Role, label: str) -> Judge:
    """Whether mixup errs less than ERM under a declared attack."""
    by = " by sources of both kinds" if role == "transfer" else ""
    needed = f"networks of plain ERM and of mixup that were both attacked with {label}{by}"

    def judge(material: Material, known: Sequence[Effect]) -> Judgement:
        family = _mixup(material)
        every = [e for e in known if (e.role, e.label, e.family) == (role, label, family)]
        found = next((e for e in every if e.declared), None)
        judged = _less(found, needed)
        apart = [e for e in every if e.source in (material.base_family, family)]
        if role == "white" or not apart or found is None:
            return judged
        return judged._replace(reason=f"{judged.reason}; {_by_source(apart, material)}")

    return judge


def not_robust(material: Material, known: Sequence[Effect]) -> Judgement:
    """Whether both err on nearly everything under white-box I-FGSM."""
    family = _mixup(material)
    found = next((e for e in known if (e.role, e.label, e.family) == ("white", IFGSM, family)), None)
    if found is None:
        return _missing(f"networks of plain ERM and of mixup that were both attacked with {IFGSM}")
    rates = [errors(material, "white", IFGSM, found.eps, names)[0].mean(axis=1).tolist() for names in found.names]
    plain = [errors(material, "clean", "clean", 0.0, names)[0].mean(axis=1).tolist() for names in found.names]
    without = join_names(percent(sum(own) / len(own)) for own in plain)
    more = [[high - low for low, high in zip(*both, strict=True)] for both in zip(plain, rates, strict=True)]
    return _shares(
        rates,
        found.names,
        (found.base, found.family),
        of=f" at {budget(found.eps)}",
        rule=(
            f"not robust means an error of {percent(NOT_ROBUST)} or more, robust one of at most {100 * NEAR_CLEAN:g} "
            f"points above that without an attack ({without}); what lies between is undecided"
        ),
        holds=lambda ends: all(low >= NOT_ROBUST for low, _ in ends),
        fails=lambda _: any(mean_interval(own)[1] <= NEAR_CLEAN for own in more),
    )


def clean(material: Material, _: Sequence[Effect]) -> Judgement:
    """Whether mixup errs less than ERM without an attack."""
    return _less(_clean_effect(material, material.base_family, _mixup(material)), "networks of plain ERM and of mixup")


def combined(method: str) -> Judge:
    """Whether a combination of spatial mixup methods errs less than mixup without an attack."""

    def judge(material: Material, _: Sequence[Effect]) -> Judgement:
        mixup = _mixup(material)
        combination = _family(material, lambda run: run.recipe.training == method, mixup)
        return _less(_clean_effect(material, mixup, combination), f"networks of mixup and of {method}")

    return judge


def labels_too(material: Material, _: Sequence[Effect]) -> Judgement:
    """Whether mixup errs less than the mixing of inputs alone."""
    mixup = _mixup(material)
    inputs_only = _family(material, lambda run: _mixes(run.recipe, mix="inputs"), mixup)
    found = _clean_effect(material, inputs_only, mixup)
    return _less(found, "networks of mixup and of mixup of the inputs alone")


def smoothing(material: Material, _: Sequence[Effect]) -> Judgement:
    """Whether mixup errs less than label smoothing, at the amount that errs least."""
    smoothed = [f for f, run in _firsts(material) if re.fullmatch(r"erm\+smoothing-[^+]*", run.recipe.training)]
    found = [e for family in smoothed if (e := _clean_effect(material, family, _mixup(material)))]
    least = max(found, key=lambda e: e.observed, default=None)
    return _less(least, "networks of label smoothing and of mixup")


def corrupted(material: Material, _: Sequence[Effect]) -> Judgement:
    """Whether mixup errs less than ERM on the test set after training on corrupted labels."""
    return _less(_clean_effect(material, *_noisy(material)), NOISY)


def memorised(material: Material, _: Sequence[Effect]) -> Judgement:
    """Whether ERM has learnt the corrupted labels and mixup has not."""
    erm, mixup = _noisy(material)
    if erm is None or mixup is None:
        return _missing(NOISY)
    column = "train_error_corrupted"
    names = [[name for name in material.families[f] if _has(material.runs[name], column)] for f in (erm, mixup)]
    if not all(names):
        return _missing("training errors on the corrupted labels alone")
    noise = material.runs[names[0][0]].recipe.label_noise
    return _shares(
        [[final(material.runs[name], column) for name in own] for own in names],
        names,
        (erm, mixup),
        of=f" of the corrupted labels, {percent(noise)} of all",
        rule=f"memorised means an error of less than {percent(BY_HEART)} on the corrupted training labels",
        holds=lambda ends: ends[0][1] < BY_HEART <= ends[1][0],
        fails=lambda ends: ends[0][0] >= BY_HEART or ends[1][1] < BY_HEART,
    )


def no_study(what: str) -> Judge:
    """A claim that errors cannot speak to."""
    return lambda _, __: Judgement("", "not measured", f"there is no study of {what} yet")


# ---- what judges share -------------------------------------------------------------------------------------


def told(found: Effect) -> str:
    """Who errs how much more or less often than whom, with the interval: methods, or runs by their names."""
    how = _than(found)
    ends = f" {range_of(found.observed, *found.ends)}" if found.ends else ""
    if found.about == "methods":
        return f"{found.family} errs {how} {found.base}{ends}"
    ones, others = map(join_names, found.names)
    mean = " on average" if max(found.runs) > 1 else ""
    # The runs themselves are as they are: it is other runs of theirs that an interval over seeds speaks of.
    new = f"{ends} over new seeds" if ends else ""
    return f"{others} {_errs(found)} {how} {ones}{mean}{new}"


def _than(found: Effect) -> str:
    how = amount(found.observed)
    return f"{how} {'as' if how == 'as often' else 'than'}"


def _errs(found: Effect) -> str:
    return "errs" if found.about == "methods" or found.runs[1] == 1 else "err"


def _less(found: Effect | None, needed: str) -> Judgement:
    """Whether the second family errs less than the first."""
    if found is None:
        return _missing(needed)
    at = f" at {budget(found.eps)}" if found.eps else ""
    if found.direction is None:
        return Judgement(f"{told(found)}{at}", "undecided", _of_runs(found))
    number = f"{told(found)}{at}, {_seeds(found.runs)}"
    if found.direction == 0:
        return Judgement(number, "undecided", f"that there is no difference cannot be ruled out{_how(found)}")
    verdict: Verdict = "supported" if found.direction == -1 else "contradicted"
    where = "below" if found.direction == -1 else "above"
    return Judgement(number, verdict, f"the interval lies {where} 0{_how(found)}")


def _how(found: Effect) -> str:
    """Whether the tests that were declared beforehand are corrected for, or this is one look of many."""
    if found.p is None:
        return ", uncorrected: no declared test"
    return f", p {probability(found.p) if found.p < 0.001 else f'= {found.p:.2g}'} after Holm"


def _by_source(apart: Sequence[Effect], material: Material) -> str:
    """How much more or less often the second errs under the examples of each kind; of methods or of runs by name."""
    said = []
    for found in apart:
        source = found.source or ""
        if found.about == "methods":
            crafted, one, other = source, found.base, found.family
        else:
            crafting = material.crafting(source)
            crafted, one, other = join_names(crafting), *map(join_names, found.names)
        said.append(f"under examples of {crafted}, {other} {_errs(found)} {_than(found)} {one}")
    return "; ".join(said)


def _shares(
    rates: Sequence[Sequence[float]],
    names: Sequence[Sequence[str]],
    families: tuple[str, str],
    *,
    of: str,
    rule: str,
    holds: Callable[[list[tuple[float, float]]], bool],
    fails: Callable[[list[tuple[float, float]]], bool],
) -> Judgement:
    """A claim about the errors of two families: where their intervals over seeds lie."""
    runs = len(rates[0]), len(rates[1])
    if min(runs) < SEEDS_FOR_METHODS:
        each = [f"{name} {percent(rate)}" for own, errs in zip(names, rates, strict=True)
                for name, rate in zip(own, errs, strict=True)]  # fmt: skip
        return Judgement(f"{join_names(each)}{of}", "undecided", f"{_few(runs)}; {rule}")
    ends = [mean_interval(own) for own in rates]
    each = [
        f"{family} {percent(sum(own) / len(own))} {interval(max(low, 0), min(high, 1))}"
        for family, own, (low, high) in zip(families, rates, ends, strict=True)
    ]
    verdict: Verdict = "supported" if holds(ends) else "contradicted" if fails(ends) else "undecided"
    return Judgement(f"{join_names(each)}{of}, {_seeds(runs)}", verdict, rule)


def _missing(needed: str) -> Judgement:
    return Judgement("", "not measured", f"there are no {needed} here")


def _few(runs: Sequence[int]) -> str:
    return (
        f"{join_names(plural(count, 'run') for count in runs)}: a claim about methods needs {SEEDS_FOR_METHODS} of each"
    )


def _of_runs(found: Effect) -> str:
    """Why an effect speaks of runs alone."""
    if found.unlike:
        return f"they differ in more than the method: {'; '.join(found.unlike)}"
    return _few(found.runs)


def _seeds(runs: Sequence[int]) -> str:
    return f"{join_names(map(str, runs))} seeds"


def _clean_effect(material: Material, base: str | None, family: str | None) -> Effect | None:
    return effect(material, "clean", "clean", 0.0, base, family) if base and family else None


def _firsts(material: Material) -> list[tuple[str, Run]]:
    """The families of runs, each with its first."""
    return [(f, material.runs[names[0]]) for f, names in material.families.items() if f not in material.models]


def _family(material: Material, wanted: Callable[[Run], bool], near: str | None) -> str | None:
    """Of the families that were trained in some way the one most like another; None if there is none."""
    found = {family: run for family, run in _firsts(material) if wanted(run)}
    like = material.runs[material.families[near][0]] if near else None

    def apart(family: str) -> int:
        return len(found[family].recipe.differences(like.recipe)) if like else 0

    return min(found, key=apart, default=None)


def _mixup(material: Material) -> str | None:
    """The family of plain mixup that is most like the base."""
    return _family(material, lambda run: _mixes(run.recipe), material.base_family)


def _mixes(recipe: Recipe, **but: object) -> bool:
    """Whether a run was trained by mixup as published, but for some fields."""
    usual = {field: Recipe.model_fields[field].default for field in MIXING} | but
    return recipe.training == "mixup" and all(getattr(recipe, field) == value for field, value in usual.items())


def _noisy(material: Material) -> tuple[str | None, str | None]:
    """The families of ERM and of mixup on the most corrupted labels that both have been trained on."""
    by_noise: dict[float, dict[str, str]] = {}
    for family, run in _firsts(material):
        recipe = run.recipe
        if recipe.label_noise and recipe.training == f"{recipe.method}+label-noise-{recipe.label_noise:g}":
            by_noise.setdefault(recipe.label_noise, {}).setdefault(recipe.method, family)
    both = [by_noise[noise] for noise in sorted(by_noise) if {"erm", "mixup"} <= by_noise[noise].keys()]
    return (both[-1]["erm"], both[-1]["mixup"]) if both else (None, None)


def _has(run: Run, column: str) -> bool:
    value = final(run, column)
    return value == value
