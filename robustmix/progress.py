"""Progress of long work: a live bar in a terminal, a plain line now and then everywhere else, nothing if quiet."""

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

PLAIN_LINE_EVERY_S = 5.0

quiet = False


def say(text: str) -> None:
    """Print one line about what is going on, to standard error, unless quiet."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


class Progress(AbstractContextManager["Progress"]):
    """One piece of long work with a known number of steps.

    Args:
        title: what is being done.
        total: number of steps.
        unit: what a step is, for the rate; empty for no rate.
    """

    def __init__(self, title: str, total: int, unit: str = "") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._started = self._printed = time.monotonic()
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether a note would be seen now, so that a device need not be asked for figures nobody reads."""
        now = time.monotonic()
        return not quiet and now - self._printed >= (0.2 if self._bar else PLAIN_LINE_EVERY_S)

    def advance(self, steps: int, note: str = "") -> None:
        """Count steps as done and show them if it is time to."""
        self.done += steps
        if not self.due:
            return
        self._printed = time.monotonic()
        elapsed = self._printed - self._started
        rate = self.done / elapsed
        text = "  ".join(part for part in (note, f"{rate:,.0f} {self.unit}/s" if self.unit else "") if part)
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=text)
        else:
            left = (self.total - self.done) / rate
            say(f"{self.title}: {self.done}/{self.total}  {text}  {left:,.0f} s left")
