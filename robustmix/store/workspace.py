"""A workspace: the folder with ``runs/``, ``results/``, ``reports/`` and ``attacks/``."""

import os
from dataclasses import dataclass
from pathlib import Path

from robustmix.spec.names import check_name


@dataclass(frozen=True)
class Workspace:
    """Where things lie. Nothing is created before something is written.

    Attributes:
        root: the folder.
    """

    root: Path

    @classmethod
    def find(cls, root: str | Path | None = None) -> "Workspace":
        """The given folder, else ``ROBUSTMIX_WORKSPACE``, else the current folder."""
        return cls(Path(root or os.environ.get("ROBUSTMIX_WORKSPACE") or ".").expanduser())

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.root / "runs"

    @property
    def cells(self) -> Path:
        """The folder of all cells."""
        return self.root / "results" / "cells"

    @property
    def gallery(self) -> Path:
        """The folder of adversarial images that are kept."""
        return self.root / "results" / "gallery"

    @property
    def audits(self) -> Path:
        """The folder of all audits."""
        return self.root / "results" / "audits"

    @property
    def parts(self) -> Path:
        """The folder of claims, and of what several processes have computed of a unit."""
        return self.root / "results" / "parts"

    def run(self, name: str) -> Path:
        """The folder of one run, whether it exists or not.

        Raises:
            SpecError: the name cannot be a folder's.
        """
        return self.runs / check_name(name, "run")

    def report(self, name: str) -> Path:
        """The folder of one report, whether it exists or not.

        Raises:
            SpecError: the name cannot be a folder's.
        """
        return self.root / "reports" / check_name(name, "report")
