"""Attacks: pure functions from a model, inputs, labels and budgets to adversarial inputs. Lengths in pixel units."""

from robustmix.attacks.sweep import craft, fgsm, ifgsm, mifgsm, pgd, sweep
from robustmix.attacks.victim import Victim

__all__ = ["Victim", "craft", "fgsm", "ifgsm", "mifgsm", "pgd", "sweep"]
