"""Tests of an evaluation: is the attack too weak, are gradients masked, is the evaluation itself broken?"""

from robustmix.audit.memory import audit_models
from robustmix.audit.workspace import DEFAULT_LIMIT, audit

__all__ = ["DEFAULT_LIMIT", "audit", "audit_models"]
