"""What the literature reports, each number with its source, how sure it is and what the source leaves open.

The numbers stand in ``published.toml`` beside this file, laid out as the published tables are.
`figures` makes them flat.
"""

from robustmix.published.figure import CERTAINTY, STATISTIC, Certainty, Experiment, Figure, Source, Statistic
from robustmix.published.reading import experiment, experiments, figures, find, parse, sources

__all__ = [
    "CERTAINTY",
    "STATISTIC",
    "Certainty",
    "Experiment",
    "Figure",
    "Source",
    "Statistic",
    "experiment",
    "experiments",
    "figures",
    "find",
    "parse",
    "sources",
]
