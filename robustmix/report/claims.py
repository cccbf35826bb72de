"""What the sources claim of mixup, one by one, and whether it holds for the networks of this report.

From three seeds of each way of training on, where nothing else sets them apart, the interval decides, and for a
declared effect the p value after Holm as well; else the runs and their difference are named and the claim stays
undecided.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from robustmix.published import sources
from robustmix.report import judges
from robustmix.report.comparison import citation
from robustmix.report.effects import FGSM, IFGSM, effects
from robustmix.report.judges import Judge, Verdict
from robustmix.report.material import Material


@dataclass(frozen=True)
class Claim:
    """One claim of a source.

    Attributes:
        id: stable.
        text: the claim in one sentence.
        source: who claims it and where, in a few words.
        number: what was measured here; empty if nothing was.
        verdict: whether that supports it.
        reason: of the verdict.
    """

    id: str
    text: str
    source: str
    number: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Statement:
    """The part of a claim that its sources make.

    Attributes:
        text: in one sentence.
        sources: table, figure or section by key of `robustmix.published.sources`.
        judge: what this report says of it.
    """

    text: str
    sources: Mapping[str, str]
    judge: Judge


def claims(material: Material) -> list[Claim]:
    """Every claim of `CLAIMS`, in its order."""
    known = effects(material)
    found = []
    for name, said in CLAIMS.items():
        who = "; ".join(f"{citation(sources()[key])}, {where}" for key, where in said.sources.items())
        found.append(Claim(name, said.text, who, *said.judge(material, known)))
    return found


CLAIMS: Final[dict[str, Statement]] = {
    "white-fgsm": Statement(
        "mixup is more robust than ERM to white-box FGSM.",
        {"zhang2018": "section 3.5, table 3", "ali": "the deck's own experiments"},
        judges.robust("white", FGSM),
    ),
    "transfer-fgsm": Statement(
        "mixup is more robust than ERM to black-box FGSM.",
        {"zhang2018": "section 3.5, table 3", "ali": "the deck's own experiments"},
        judges.robust("transfer", FGSM),
    ),
    "transfer-ifgsm": Statement(
        "mixup is more robust than ERM to black-box I-FGSM.",
        {"zhang2018": "section 3.5, table 3", "ali": "which repeats it"},
        judges.robust("transfer", IFGSM),
    ),
    "white-ifgsm": Statement(
        "Neither mixup nor ERM is robust to white-box I-FGSM.",
        {"zhang2018": "section 3.5, table 3"},
        judges.not_robust,
    ),
    "clean": Statement(
        "mixup lowers the error on clean images.",
        {"zhang2018": "figure 3a", "ali": "the deck's own experiments", "liang2018": "table 1"},
        judges.clean,
    ),
    "mixup-hv": Statement(
        "Combining horizontal and vertical mixup (HV) generalises better than mixup alone (C).",
        {"liang2018": "table 1, and the slides on it"},
        judges.combined("mixup-hv"),
    ),
    "mixup-hc": Statement(
        "Combining horizontal mixup and mixup (HC) generalises better than mixup alone (C).",
        {"liang2018": "table 1, and the slides on it"},
        judges.combined("mixup-hc"),
    ),
    "labels-too": Statement(
        "It matters that the labels are mixed as well as the inputs.",
        {"zhang2018": "table 5", "liang2018": "figure 1"},
        judges.labels_too,
    ),
    "label-smoothing": Statement(
        "Label smoothing alone does not do what mixup does for the error on clean images.",
        {"zhang2018": "table 5"},
        judges.smoothing,
    ),
    "memorisation": Statement(
        "ERM memorises corrupted labels, and mixup does not.",
        {"zhang2018": "section 3.4, table 2"},
        judges.memorised,
    ),
    "corrupted-labels": Statement(
        "Trained on corrupted labels, mixup errs less than ERM on the test set.",
        {"zhang2018": "section 3.4, table 2"},
        judges.corrupted,
    ),
    "flat-surface": Statement(
        "mixup's loss surface is flatter, and a flatter surface is more robust.",
        {"liang2018": "figures of the loss surface, and the slides on it"},
        judges.no_study("the loss surface"),
    ),
    "small-gradients": Statement(
        "In between two examples mixup's gradients are smaller than ERM's, and it errs less.",
        {"zhang2018": "figure 2"},
        judges.no_study("what happens between examples"),
    ),
}
