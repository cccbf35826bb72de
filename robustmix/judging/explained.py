"""The tests of an audit in words."""

from dataclasses import dataclass
from typing import Final

from robustmix.store.audits import Kind


@dataclass(frozen=True)
class Explained:
    """A test in words.

    Attributes:
        title: what is expected.
        kind: what is wrong where it fails.
        passed: what it means that it passes, one sentence.
        failed: what it means that it does not, one sentence.
        finding: whether that is worth knowing but no mistake.
    """

    title: str
    kind: Kind
    passed: str
    failed: str
    finding: bool = False


# In the order in which they are made and shown.
TESTS: Final[dict[str, Explained]] = {
    "eval-mode": Explained(
        "eval mode reaches every module",
        "evaluation broken",
        "Dropout is off and batch norm uses its running statistics, as they should.",
        "Some module trains on while it is measured, so every number depends on what was measured before.",
    ),
    "same-twice": Explained(
        "the same images give the same logits twice",
        "evaluation broken",
        "The network is a function of its input, so that its gradient at an image is that of its prediction.",
        "The network draws random numbers, so an attack climbs another network than the one that is scored.",
    ),
    "any-batch": Explained(
        "an image has the same logits in any batch",
        "evaluation broken",
        "An image's prediction is its own and does not depend on its neighbours.",
        "An image's logits depend on the others of its batch, so an attacked batch defends or betrays its members.",
    ),
    "finite": Explained(
        "all logits are finite",
        "evaluation broken",
        "Every prediction is one.",
        "Logits that are no numbers make predictions and gradients that mean nothing.",
    ),
    "logits": Explained(
        "the network returns logits",
        "evaluation broken",
        "Losses see logits, as they expect.",
        "The losses take a second softmax of these probabilities, whose gradients are flat where the network is sure.",
    ),
    "accuracy": Explained(
        "clean accuracy is what it should be",
        "evaluation broken",
        "As far as its accuracy tells, the network sees the images as it did in training.",
        "The network does not see the images as it did in training, so the attacks are made on another network.",
    ),
    "bounds": Explained(
        "every adversarial image keeps its budget and the pixel range",
        "evaluation broken",
        "No attack went further than it was allowed to.",
        "Some attack went further than its budget, so its error is that of a larger one.",
    ),
    "iterated": Explained(
        "I-FGSM is at least as strong as FGSM",
        "attack too weak",
        "One step is ahead of ten by at most a point, as it should be where gradients lead uphill.",
        "One step breaks what ten do not, so the iterated attack does not climb: its gradients mislead it, or its "
        "steps are wrong.",
    ),
    "monotone": Explained(
        "I-FGSM breaks no fewer at a larger budget",
        "attack too weak",
        "A larger budget costs the attack at most a point.",
        "A larger budget contains the smaller one, so an attack that finds less in it does not search it.",
    ),
    "convergence": Explained(
        "more steps change at most a point from 100 on",
        "attack too weak",
        "The attack has hardly anything left to gain: twice the steps raise the error by at most a point.",
        "The attack had not converged at 100 steps, so whatever fewer steps report is too low.",
    ),
    "restarts": Explained(
        "random restarts break no more than 100 steps from the image itself",
        "attack too weak",
        "One start is nearly enough: random ones gain at most a point.",
        "The loss has several maxima within the budget and one start finds only one of them: report pgd with restarts.",
        finding=True,
    ),
    "random-signs": Explained(
        "FGSM is at least as strong as random signs",
        "attack too weak",
        "Flipping coins is ahead of the gradient by at most a point.",
        "Flipping coins breaks more than the gradient does, so the attack follows no gradient of this network.",
    ),
    "binarisation": Explained(
        "a planted adversarial example is found",
        "attack too weak",
        "Where an adversarial example is known to exist, the attack misses hardly any.",
        "An adversarial example was planted within the budget and the attack did not find it, so what it does not "
        "break is not thereby robust.",
    ),
    "large-budget": Explained(
        "hardly an image survives a budget of half the pixel range",
        "gradients masked",
        "With enough budget hardly any image survives, so it is the budget that limits the attack.",
        "Images survive at a budget at which any could be turned into another, so it is not the budget that limits the "
        "attack.",
    ),
    "gradient": Explained(
        "every image has a gradient",
        "gradients masked",
        "Hardly any image is without a gradient.",
        "Where there is no gradient nothing is attacked: such images count as robust without a try.",
    ),
    "log-odds": Explained(
        "log-odds is no stronger than cross-entropy at the same steps",
        "gradients masked",
        "The log-odds gain at most a point, so saturation of the cross-entropy hides hardly anything.",
        "The cross-entropy is saturated, so attacks on it look weak for want of numerical range; attack with --loss "
        "logodds.",
    ),
    "transfer": Explained(
        "the white box is at least as strong as transfer",
        "gradients masked",
        "Another network's gradients are ahead of its own by at most a point.",
        "Another network's gradients break it more than its own do, so its own are masked.",
    ),
    "square": Explained(
        "an attack without gradients breaks nothing that gradients did not",
        "gradients masked",
        "Searching at random finds hardly anything that the gradients had missed.",
        "Searching at random breaks what no gradient attack did, so the gradients hide adversarial examples.",
    ),
    "fgsm-monotone": Explained(
        "FGSM breaks no fewer at a larger budget",
        "gradients masked",
        "A larger budget costs even a single step at most a point.",
        "A single step overshoots: FGSM at a large budget understates the error, so read I-FGSM.",
        finding=True,
    ),
    "fgsm-transfer": Explained(
        "FGSM in the white box is at least as strong as its transfer",
        "gradients masked",
        "Even a single step does at most a point less in the white box.",
        "A single step on another network does more than on its own: white-box FGSM understates the error, so read "
        "I-FGSM.",
        finding=True,
    ),
}
