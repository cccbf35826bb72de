"""What in results is no sign of robustness: saturated losses, gradients of zero, and unbounded attacks that failed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from robustmix.spec.attack import ITERATED, MINIMUM_NORM

if TYPE_CHECKING:
    import pandas as pd

WORTH_SAYING: Final = 0.01


def doubts(results: "pd.DataFrame") -> Iterator[str]:
    """A line for each source whose attacks look weaker than they are.

    Args:
        results: the table of `robustmix.store.results.results_table`.
    """
    for source, own in results[results["source"].notna()].groupby("source"):
        ascending = own["attack"].isin(("fgsm", *ITERATED)) & (own["loss"] == "ce")
        lost = own.loc[ascending, "saturated"].max()
        if lost > WORTH_SAYING:
            yield (
                f"{source} gives {lost:.1%} of the labels a probability of exactly 1, where cross-entropy has lost its "
                "true-class term: its attacks look weaker than they are; compare --loss logodds"
            )
        none = own["zero_gradient"].max()
        if none > WORTH_SAYING:
            yield (
                f"{source} has a gradient of exactly zero on {none:.1%} of the examples: there attacks by the gradient "
                "had no direction to go"
            )
        unbounded = own[
            own["attack"].isin(MINIMUM_NORM) & (own["role"] == "white") & (own["success"] < 1 - WORTH_SAYING)
        ]
        for attack, rows in unbounded.groupby("attack"):
            yield (
                f"{attack} broke {rows['success'].min():.1%} of the examples that {source} gets right, and no bound "
                "kept it from the others: there it has failed; take more steps, or another attack"
            )
