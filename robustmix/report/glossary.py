"""What the attacks of a page are, in a sentence each."""

from typing import Final

from robustmix.report.material import Material
from robustmix.spec.titles import ATTACK_TITLES

ATTACKS: Final = {
    "fgsm": "One step of the length of the budget along the sign of the loss gradient (Goodfellow et al. 2015). It is "
    "a weak attack: withstanding it alone is no evidence of robustness.",
    "ifgsm": "The same in several steps, each cut back to the budget and the range of pixels (Kurakin et al. 2017); "
    "steps of budget / steps unless a length is given.",
    "mifgsm": "I-FGSM along a running sum of normalised gradients (Dong et al. 2018).",
    "pgd": "I-FGSM from a random start (Madry et al. 2018), steps of 2.5 budget / steps unless a length is given; of "
    "several restarts each image keeps the worst.",
    "signs": "Every pixel up or down by the budget at random: no attack, a baseline.",
    "noise": "A change drawn uniformly within the budget: no attack, a baseline.",
    "autoattack": "Four attacks in a row, the last one without gradients (standard; Croce and Hein 2020).",
    "square": "Random search without gradients (Andriushchenko et al. 2020).",
    "deepfool": "Steps to the nearest linearised class boundary (Moosavi-Dezfooli et al. 2016). It looks for the "
    "smallest change.",
    "cw": "Minimises the margin and the length of the change together (Carlini and Wagner 2017, L2). It looks for the "
    "smallest change.",
    "hopskipjump": "Walks along the class boundary by predictions alone (Chen et al. 2020). It looks for the smallest "
    "change.",
}
PARAMETERS: Final = {
    ("norm", "l2"): ("L2", "The budget bounds the Euclidean length of the whole change, still in units of 1/255."),
    ("loss", "logodds"): (
        "Loss logodds",
        "In place of cross-entropy, the logsumexp of the other logits less the label's: the same direction for every "
        "image, and it never saturates.",
    ),
    ("loss", "margin"): ("Loss margin", "In place of cross-entropy, the largest other logit less the label's."),
    ("loss", "dlr"): (
        "Loss dlr",
        "In place of cross-entropy, the margin as a share of how far the largest logits lie apart (Croce and Hein "
        "2020).",
    ),
    ("labels", "predicted"): (
        "Predicted labels",
        "The attack moves away from what the source predicts without one. The error is against the truth all the same.",
    ),
}

# What the statistics of the page are called.
STATISTICS: Final = (
    (
        "Home advantage",
        "How much more the networks of a family err under examples that were crafted on other networks of their own "
        "family than under those of the other family, in points.",
    ),
    (
        "Welch interval",
        "Of the difference between two ways of training, from the means of their seeds (Welch 1947); what the choice "
        "of images and sources adds is in it. Only from three seeds of each on does it speak of the methods.",
    ),
    (
        "Holm",
        "Among several tests one may come out small by chance. Holm's correction (1979) raises the p values of the "
        "tests that were declared beforehand so that this happens in at most 5 % of all reports.",
    ),
    (
        "McNemar, Tango",
        "Two networks on the same images: of those that only one gets wrong, are more on one side than chance "
        "explains (exact test, McNemar 1947), and how large is the difference (score interval, Tango 1998)? Of these "
        "two networks.",
    ),
)


def terms(material: Material) -> list[tuple[str, str]]:
    """The attacks of the page, and what they differ by, explained."""
    shown = [cell.identity for cell in material.cells if cell.identity.source is not None]
    attacks = {identity.attack for identity in shown}
    found = [(ATTACK_TITLES[name], text) for name, text in ATTACKS.items() if name in attacks]
    for (field, value), term in PARAMETERS.items():
        if any(getattr(identity, field) == value for identity in shown):
            found.append(term)
    return [*found, *STATISTICS]
