"""The orderings that an audit expects, in the published tables."""

from collections import defaultdict
from collections.abc import Collection, Sequence

from robustmix.judging.explained import TESTS
from robustmix.published import Figure, figures
from robustmix.spec.titles import ATTACK_TITLES
from robustmix.store.audits import AuditTest


def published_orderings() -> list[AuditTest]:
    """The same orderings in the published adversarial tables, by signs alone: nobody published what broke which image.

    One test for each experiment and ordering that it has figures for: iterated attacks at least as strong as FGSM in
    the white box, and the white box at least as strong as transfer by the same attack.
    """
    by_experiment: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures():
        if figure.attack is not None:
            by_experiment[figure.experiment].append(figure)
    tests = []
    for experiment, group in by_experiment.items():
        single = [figure for figure in group if figure.role == "white" and figure.attack == "fgsm"]
        iterated = [figure for figure in group if figure.role == "white" and figure.attack != "fgsm"]
        white, transfer = ([figure for figure in group if figure.role == role] for role in ("white", "transfer"))
        for name, weaker, stronger in (("iterated", single, iterated), ("transfer", transfer, white)):
            same_attack = name == "transfer"
            pairs = [(one, other) for one in weaker for other in stronger if _comparable(one, other, same_attack)]
            if pairs:
                tests.append(_ordering(name, experiment, pairs))
    return tests


def _comparable(weaker: Figure, stronger: Figure, same_attack: bool) -> bool:
    """Whether two figures of one experiment differ in nothing but what the ordering is about."""
    shared = ["data", "model", "method", "metric", "split", "eps_255", "norm", "statistic", "recipe"]
    shared += ["attack", "steps"] if same_attack else ["role"]
    return all(getattr(weaker, field) == getattr(stronger, field) for field in shared)


def _ordering(name: str, experiment: str, pairs: Sequence[tuple[Figure, Figure]]) -> AuditTest:
    test = TESTS[name]
    excess = max(weaker.value - stronger.value for weaker, stronger in pairs) / 100
    against = {weaker.attack for weaker, stronger in pairs if weaker.value > stronger.value}
    return AuditTest(
        name=f"{experiment}-{name}",
        title=f"{experiment}: {_expected(name)}",
        kind=test.kind,
        verdict="fail" if against else "pass",
        measured="; ".join(_in_words(weaker, stronger) for weaker, stronger in pairs),
        meaning=_published_meaning(name, against),
        excess=excess,
    )


def _expected(name: str) -> str:
    return "iterated at least as strong as FGSM" if name == "iterated" else "white box at least as strong as transfer"


def _published_meaning(name: str, against: Collection[str | None]) -> str:
    """What it means, from the attacks of the figures that are above what they should not be."""
    if not against:
        return "The published errors are ordered as an audit expects."
    if name == "iterated":
        seen = "One step is published to break more than several"
        why = "the iterated attack may not climb"
    else:
        seen = (
            "Examples crafted on another network are published to break more than those crafted on the network itself"
        )
        why = (
            "a single step may overshoot, and of FGSM our own audit calls it a finding"
            if against == {"fgsm"}
            else "the white-box attack may be too weak, or its gradients masked"
        )
    return f"{seen}: {why}; whether chance explains it cannot be tested from published figures."


def _in_words(weaker: Figure, stronger: Figure) -> str:
    metric = "" if weaker.metric == "top1_error" else " (top 5)"
    against = ">=" if stronger.value >= weaker.value else "<"
    return f"{weaker.method}{metric}: {_figure(stronger)} {against} {_figure(weaker)}"


def _figure(figure: Figure) -> str:
    role = "white" if figure.role == "white" else "transfer"
    return f"{role} {ATTACK_TITLES[figure.attack or 'clean']} {figure.value:g} %"
