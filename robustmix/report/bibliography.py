"""BibTeX of everything that a page uses: data, networks, methods, attacks, statistics, software, published figures."""

from collections.abc import Iterable, Sequence
from typing import Final

from robustmix.published import Source, sources
from robustmix.report.material import Material
from robustmix.report.references import REFERENCES
from robustmix.spec.names import AttackName, Method
from robustmix.spec.recipe import Recipe

DATA: Final = {
    "digits": "alpaydin1998digits",
    "mnist": "lecun1998gradient",
    "fashion_mnist": "xiao2017fashion",
    "svhn": "netzer2011reading",
    "cifar10": "krizhevsky2009learning",
    "cifar100": "krizhevsky2009learning",
    "imagenet": "russakovsky2015imagenet",
}
# By the beginning of the network's name.
MODELS: Final = {
    "preact_resnet": "he2016identity",
    "resnet": "he2016deep",
    "wrn": "zagoruyko2016wide",
    "densenet": "huang2017densely",
    "resnext": "xie2017aggregated",
    "vgg": "simonyan2015very",
    "lenet": "lecun1998gradient",
}
# Keys of `robustmix.published.sources` or of `REFERENCES`.
METHODS: Final[dict[Method, str]] = {
    "erm": "vapnik1998statistical",
    "mixup": "zhang2018",
    "mixup-h": "liang2018",
    "mixup-v": "liang2018",
    "mixup-hv": "liang2018",
    "mixup-hc": "liang2018",
    "manifold": "verma2019",
    "cutmix": "yun2019cutmix",
    "samplepairing": "inoue2018data",
    "disturblabel": "xie2016disturblabel",
    "patchshuffle": "kang2017patchshuffle",
}
DROPS: Final = {
    "dropout": "srivastava2014dropout",
    "dropconnect": "wan2013regularization",
    "stochastic_depth": "huang2016deep",
    "swapout": "singh2016swapout",
}
ATTACKS: Final[dict[AttackName, str]] = {
    "fgsm": "goodfellow2015explaining",
    "ifgsm": "kurakin2017adversarial",
    "mifgsm": "dong2018boosting",
    "pgd": "madry2018towards",
    "autoattack": "croce2020reliable",
    "square": "andriushchenko2020square",
    "deepfool": "moosavi2016deepfool",
    "cw": "carlini2017towards",
    "hopskipjump": "chen2020hopskipjump",
}
LIBRARIES: Final = {"torchattacks": "kim2020torchattacks", "foolbox": "rauber2020foolbox"}
# Of every page: its intervals, its tests, its checklist.
ALWAYS: Final = (
    "wilson1927probable",
    "mcnemar1947note",
    "tango1998equivalence",
    "welch1947generalization",
    "holm1979simple",
    "carlini2019evaluating",
    "paszke2019pytorch",
)


def bibtex(material: Material, cited: Sequence[Source]) -> str:
    """The entries of everything that a page uses, each once, in the order of use.

    Args:
        material: of the page.
        cited: the sources of the published figures that it shows.
    """
    published = {source.key: source.bibtex.strip() for source in sources().values()}
    keys = dict.fromkeys([*_used(material), *(source.key for source in cited)])
    software = (
        f"@software{{robustmix,\n  title = {{robustmix}},\n  author = {{{{The robustmix authors}}}},\n"
        f"  version = {{{material.evidence.robustmix}}}\n}}"
    )
    return "\n\n".join([*((published | REFERENCES)[key] for key in keys), software])


def _used(material: Material) -> Iterable[str]:
    yield from (DATA[name] for name in (material.facts.like, material.facts.data) if name in DATA)
    for run in material.runs.values():
        yield from (key for start, key in MODELS.items() if run.recipe.model.rpartition(":")[2].startswith(start))
    for run in material.runs.values():
        yield from _of_recipe(run.recipe)
    attacked = [cell.identity for cell in material.cells if cell.identity.source]
    yield from (key for name, key in ATTACKS.items() if any(identity.attack == name for identity in attacked))
    if any(identity.loss == "dlr" for identity in attacked):
        yield ATTACKS["autoattack"]
    libraries = {identity.maker.split()[0].partition("==")[0] for identity in attacked}
    yield from (key for name, key in LIBRARIES.items() if any(name in library.lower() for library in libraries))
    yield from ALWAYS
    if material.evidence.audits:
        yield "zimmermann2022increasing"


def _of_recipe(recipe: Recipe) -> Iterable[str]:
    yield METHODS[recipe.method]
    if recipe.label_smoothing:
        yield "szegedy2016rethinking"
    if recipe.dropped:
        yield DROPS[recipe.dropped[0]]
    if recipe.adversarial_eps:
        yield ATTACKS["pgd"]
