"""Attacks: pure functions from a model, inputs, labels and budgets to adversarial inputs. Lengths in pixel units."""

from robustmix.attacks.gradient import fgsm, ifgsm, sweep

__all__ = ["fgsm", "ifgsm", "sweep"]
