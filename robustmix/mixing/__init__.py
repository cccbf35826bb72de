"""How a training batch is mixed. A method plans on the labels alone; the plan is then applied to inputs and labels."""

from robustmix.mixing.methods import METHODS, plan
from robustmix.mixing.mix import Mix, apply, mixed_correct, soft_cross_entropy, soft_labels
from robustmix.mixing.neighbours import nearest_neighbours
from robustmix.mixing.noise import add_noise

__all__ = [
    "METHODS",
    "Mix",
    "add_noise",
    "apply",
    "mixed_correct",
    "nearest_neighbours",
    "plan",
    "soft_cross_entropy",
    "soft_labels",
]
