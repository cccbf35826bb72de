"""Every error that robustmix raises on purpose.

RobustmixError            one clear line; the command line prints it and exits with code 2
├── SpecError             a value in a recipe, a suite, an option or an argument
├── DataError             a data set that cannot be found, downloaded or read
├── CheckpointError       a run or a checkpoint that is missing, unfinished, truncated or foreign
├── EvaluationError       a measurement that would be wrong: a NaN, a shape or a class count that does not fit
└── StoreError            a file of the workspace that cannot be written or read
"""


class RobustmixError(Exception):
    """The base of all errors below; its text is one line that names the value, the place and the choices."""


class SpecError(RobustmixError, ValueError):
    """A value in a recipe, a suite, an option or an argument is not acceptable."""


class DataError(RobustmixError):
    """A data set cannot be found, downloaded or read."""


class CheckpointError(RobustmixError):
    """A run or a checkpoint is missing, unfinished, truncated or foreign."""


class EvaluationError(RobustmixError):
    """A measurement would be wrong, so it is refused instead of recorded."""


class StoreError(RobustmixError):
    """A file of the workspace cannot be written or read."""
