"""Every random number is a function of a seed, what it is for, and counters."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for, so that no two uses share a stream."""

    INIT = 0
    ORDER = 1
    AUGMENT = 2
    MIX = 3
    VALIDATION = 4
    FOLDER = 5
    ATTACK = 6
    LABEL_NOISE = 7
    DROP = 8
    NOISE = 9
    START = 10


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A generator that is a function of its arguments alone, such as (seed, stream, epoch, step).

    Resuming is exact by construction: nothing has to be remembered between steps.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, *counters])))
