"""Two networks on the same examples: which of them each gets wrong."""

from dataclasses import dataclass

from robustmix.report.effects import Role
from robustmix.report.material import Material
from robustmix.stats import paired_interval


@dataclass(frozen=True)
class Paired:
    """Two checkpoints on the same examples.

    Attributes:
        errors: of the first and the second.
        only: examples that only the first gets wrong, and that only the second does.
        n: examples.
    """

    errors: tuple[int, int]
    only: tuple[int, int]
    n: int

    @property
    def observed(self) -> float:
        """The second's error less the first's, a fraction."""
        return (self.errors[1] - self.errors[0]) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Of `observed`, at 95 %: it speaks of these two checkpoints."""
        return paired_interval(self.only[1], self.only[0], self.n)


def paired(material: Material, role: Role, label: str, eps: float, first: str, second: str) -> Paired | None:
    """Two runs or models without an attack or each attacked by itself; None where a cell of one is missing."""
    a, b = (material.errs(None if role == "clean" else name, name, label, eps) for name in (first, second))
    if a is None or b is None:
        return None
    return Paired((int(a.sum()), int(b.sum())), (int((a & ~b).sum()), int((b & ~a).sum())), len(a))
