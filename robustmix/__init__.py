"""Does mixup make a network robust, or does it only look so?

Everything here is loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from robustmix._version import __version__

if TYPE_CHECKING:
    from robustmix import attacks
    from robustmix.audit import audit_models
    from robustmix.checkpoints import load_model
    from robustmix.data import Dataset, load_data
    from robustmix.errors import RobustmixError
    from robustmix.evaluation import evaluate
    from robustmix.matrix import transfer_matrix
    from robustmix.report.opening import open_report
    from robustmix.spec.attack import AttackSpec
    from robustmix.spec.recipe import Recipe
    from robustmix.spec.suite import Suite
    from robustmix.training import train

__all__ = [
    "AttackSpec",
    "Dataset",
    "Recipe",
    "RobustmixError",
    "Suite",
    "__version__",
    "attacks",
    "audit_models",
    "evaluate",
    "load_data",
    "load_model",
    "open_report",
    "train",
    "transfer_matrix",
]

_HOMES = {
    "AttackSpec": "robustmix.spec.attack",
    "Dataset": "robustmix.data",
    "Recipe": "robustmix.spec.recipe",
    "RobustmixError": "robustmix.errors",
    "Suite": "robustmix.spec.suite",
    "audit_models": "robustmix.audit",
    "evaluate": "robustmix.evaluation",
    "load_data": "robustmix.data",
    "load_model": "robustmix.checkpoints",
    "open_report": "robustmix.report.opening",
    "train": "robustmix.training",
    "transfer_matrix": "robustmix.matrix",
}


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return import_module("robustmix.attacks")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'robustmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
