"""What TensorBoard shows of a run: the slides' four curves and the learning rate."""

import math
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from robustmix.errors import SpecError

FOLDER: Final = "tensorboard"
# Tag, column of the history, and whether it is shown as 1 minus it.
TAGS: Final = (
    ("accuracy/train", "train_error_mixed", True),
    ("accuracy/validation", "val_error", True),
    ("accuracy/test", "test_error", True),
    ("error/validation", "val_error", False),
    ("error/test", "test_error", False),
    ("loss/train", "train_loss", False),
    ("loss/validation", "val_loss", False),
    ("loss/test", "test_loss", False),
    ("learning rate", "lr", False),
)


def check_tensorboard() -> None:
    """Refuse event files where TensorBoard is missing.

    Raises:
        SpecError: it is not installed.
    """
    if find_spec("tensorboard") is None:
        raise SpecError("--tensorboard needs the package tensorboard: pip install robustmix[tensorboard]")


class Scalars:
    """Event files of one run, written anew from its history whenever its training goes on.

    Args:
        folder: of the run.
        history: of the epochs that have finished.
    """

    def __init__(self, folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(str(folder / FOLDER))
        for row in history:
            self.write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one epoch."""
        for tag, column, complement in TAGS:
            value = row.get(column, math.nan)
            if not math.isnan(value):
                self._writer.add_scalar(tag, 1 - value if complement else value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
