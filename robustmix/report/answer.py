"""The page's first screen in words: the question, and one sentence that answers it."""

from collections.abc import Sequence
from dataclasses import replace

from robustmix.report.effects import FGSM, IFGSM, NOT_ROBUST, Effect, effects, errors, unlike
from robustmix.report.material import Material
from robustmix.report.pairs import Paired, paired
from robustmix.report.text import (
    MOST_NAMED,
    amount,
    budget,
    interval,
    named,
    percent,
    plural,
    range_of,
)
from robustmix.stats import SEEDS_FOR_METHODS, mean_interval


def question(material: Material) -> str:
    """What the page answers; it names methods where there are three seeds of each that differ in nothing else."""
    base, family = material.base_family, material.main_family
    if base is None or family is None:
        return f"How robust {_verb(names := list(material.evidence.targets))} {named(names)} on {material.facts.data}?"
    names, others = (material.scored(one) for one in (family, base))
    if min(len(names), len(others)) >= SEEDS_FOR_METHODS and not unlike(material, others, names):
        return f"How robust is {family} compared with {base} on {material.facts.data}?"
    return f"How robust {_verb(names)} {named(names)} compared with {named(others)} on {material.facts.data}?"


def answer(material: Material) -> str:
    """One sentence: how much more or less often, with 95 % intervals, and what follows from it."""
    base, family = material.base_family, material.main_family
    if base is None:
        return _levels(material, "no plain ERM to compare with")
    if family is None:
        return _levels(material, f"no other way of training to compare with {base}")
    white = {e.label: e for e in effects(material) if e.role == "white" and e.family == family}
    chosen = [white[label] for label in (FGSM, IFGSM) if label in white] or list(white.values())[:1]
    if not chosen:
        without = f"no white-box attack at the headline budget on networks of both {base} and {family}"
        return _levels(material, without)
    # Two attacks of which each was made on other networks are not told in one sentence.
    chosen = [effect for effect in chosen if effect.names == chosen[0].names]
    if all(effect.about == "methods" for effect in chosen):
        return f"{_measured(chosen)}: {_verdict(chosen, material)}{_corrected(chosen)}."
    return f"{_of_runs(chosen, material)}, so nothing here is a claim about methods."


def _measured(chosen: Sequence[Effect]) -> str:
    """``At 4/255 mixup errs 12.3 points less than ERM under white-box FGSM [8.1, 16.5] and ...``."""
    parts = [_part(e, f"{e.family} errs", e.base, e.ends) for e in chosen]
    return _joined(parts, chosen)


def _part(effect: Effect, subject: str, other: str, ends: tuple[float, float] | None) -> tuple[str, str]:
    """What one attack says, in full and for standing behind another."""
    how = amount(effect.observed)
    range_ = f" {range_of(effect.observed, *ends)}" if ends else ""
    than = "as" if how == "as often" else "than"
    where = f"under white-box {effect.label}"
    return f"{subject} {how} {than} {other} {where}{range_}", f"{how} under {effect.label}{range_}"


def _joined(parts: Sequence[tuple[str, str]], chosen: Sequence[Effect]) -> str:
    at = f"At {budget(chosen[0].eps)}"
    if len(parts) == 1:
        return f"{at} {parts[0][0]}"
    same = (chosen[0].observed < 0) == (chosen[1].observed < 0)
    return f"{at} {parts[0][0]} {'and' if same else 'but'} {parts[1][1]}"


def _verdict(chosen: Sequence[Effect], material: Material) -> str:
    """What the declared white-box effects mean; a gain under FGSM alone is none."""
    by_label = {effect.label: effect for effect in chosen}
    fgsm, ifgsm = by_label.get(FGSM), by_label.get(IFGSM)
    if fgsm is None or ifgsm is None:
        (only,) = chosen
        return _single(only)
    step, iterated = fgsm.direction, ifgsm.direction
    helpless = [percent(low) for low in _lowest(ifgsm, material)]
    if helpless:
        looks = "it only looks more robust: " if step == -1 else "neither is robust: "
        return f"{looks}under {IFGSM} both err on at least nine images in ten ({' and '.join(helpless)})"
    if iterated == -1:
        return {
            -1: "it is more robust in the white box",
            0: "it is more robust to the stronger attack, and to FGSM that is undecided",
            1: "it is more robust to the stronger attack and less to the weaker one",
        }[step or 0]
    if step == -1:
        apart = fgsm.difference and ifgsm.difference and ifgsm.difference.low > fgsm.difference.high
        if iterated == 1 or apart:
            return "it looks more robust than it is"
        return "under the stronger attack, whether it is more robust is undecided"
    if 1 in (step, iterated):
        return "it is less robust in the white box" if step == iterated else f"it is less robust to {_which(chosen)}"
    return "which of the two is more robust is undecided"


def _corrected(chosen: Sequence[Effect]) -> str:
    """Why an interval that leaves out 0 may decide nothing."""
    alone = any(e.direction == 0 and e.ends and not e.ends[0] <= 0 <= e.ends[1] for e in chosen)
    return " once the declared tests are corrected together (Holm)" if alone else ""


def _which(chosen: Sequence[Effect]) -> str:
    worse = next(effect.label for effect in chosen if effect.direction == 1)
    other = next(effect.label for effect in chosen if effect.direction != 1)
    return f"{worse}, and to {other} that is undecided"


def _single(effect: Effect) -> str:
    """What a single attack can say."""
    if effect.direction == 0:
        return "whether it is more robust to it is undecided"
    if effect.direction == 1:
        return "it is less robust to it"
    alone = " alone, which by itself is no evidence of robustness" if effect.label == FGSM else ""
    return f"it is more robust to it{alone}"


def _lowest(effect: Effect, material: Material) -> list[float]:
    """The mean errors of the base and the family where both are near the ceiling for sure, else none."""
    means = []
    for names in effect.names:
        rates = errors(material, "white", effect.label, effect.eps, names)[0].mean(axis=1)
        if mean_interval(list(rates))[0] < NOT_ROBUST:
            return []
        means.append(float(rates.mean()))
    return means


def _of_runs(chosen: Sequence[Effect], material: Material) -> str:
    """The same of runs by name: their means where there are two of each, else one of each on the same images."""
    counts = chosen[0].runs
    if min(counts) > 1:
        (base, family), on = chosen[0].names, " on average"
        ends = [effect.ends for effect in chosen]
    else:
        base, family = ((names[0],) for names in chosen[0].names)
        on = f" on these {plural(chosen[0].n, 'image')}"
        pairs = [_paired(material, effect, base[0], family[0]) for effect in chosen]
        chosen = [replace(e, observed=pair.observed) for e, pair in zip(chosen, pairs, strict=True)]
        ends = [pair.interval for pair in pairs]
    subject = f"{named(family)} {'errs' if len(family) == 1 else 'err'}"
    parts = [_part(e, subject, named(base) + on, end) for e, end in zip(chosen, ends, strict=True)]
    # Of single runs the interval is over images, of several over new seeds, which these runs are not.
    new = f", {'intervals' if len(parts) > 1 else 'the interval'} over new seeds" if min(counts) > 1 else ""
    return f"{_joined(parts, chosen)}{new}{_all_helpless(chosen, material)}; {_why_of_runs(chosen[0])}"


def _all_helpless(chosen: Sequence[Effect], material: Material) -> str:
    """That under the iterated attack every one of the runs errs on nearly all of these images, if so."""
    iterated = next((effect for effect in chosen if effect.label == IFGSM), None)
    if iterated is None:
        return ""
    names = [name for side in iterated.names for name in side]
    rates = errors(material, "white", IFGSM, iterated.eps, names)[0].mean(axis=1)
    if min(rates) < NOT_ROBUST:
        return ""
    means = (percent(min(rates)), percent(max(rates)))
    each = " to ".join(dict.fromkeys(means))
    who = "both" if len(names) == 2 else f"all {len(names)}"
    return f"; under {IFGSM} {who} err on at least nine images in ten ({each})"


def _why_of_runs(effect: Effect) -> str:
    """Why the runs of an effect stand for no method."""
    counts = effect.runs
    if effect.unlike:
        return f"they differ in more than the method ({'; '.join(effect.unlike)})"
    few = "fewer than three seeds " + ("each" if max(counts) < SEEDS_FOR_METHODS else "of one kind")
    return {(1, 1): "one seed each", (2, 2): "two seeds each"}.get(counts, few)


def _paired(material: Material, effect: Effect, first: str, second: str) -> Paired:
    found = paired(material, "white", effect.label, effect.eps, first, second)
    assert found is not None, "an effect's runs have its cells"
    return found


def _levels(material: Material, why: str) -> str:
    """Of networks that nothing is held against: how often each errs under the strongest attack, and why only that."""
    targets = [name for name in material.names if name in material.evidence.targets]
    found = []
    for name in targets[:MOST_NAMED]:
        clean = material.find("clean", target=name)[0]
        white = [r for r in material.find("white", target=name) if r.eps and r.eps == material.headline(r.label)]
        text = f"{name} errs on {percent(clean.error)} of {plural(clean.n, 'image')} without an attack"
        if white:
            worst = max(white, key=lambda r: (r.error, r.label))
            attack = f"under white-box {worst.label} at {budget(worst.eps or 0)}"
            text += f" and on {percent(worst.error)} {interval(worst.low, worst.high)} {attack}"
        found.append(text)
    more = len(targets) - len(found)
    rest = f"; {plural(more, 'more network')} {'stand' if more > 1 else 'stands'} in the tables" if more else ""
    single = "one network, " if len(targets) == 1 else ""
    return f"{'; '.join(found)}{rest}; {single}{why}, so nothing here is a claim about methods."


def _verb(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
