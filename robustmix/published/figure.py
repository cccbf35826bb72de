"""A published number: where it stands, what it is an error of, and what its source says of the training."""

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Metric = Literal["top1_error", "top5_error", "train_error_real", "train_error_corrupted"]
Role = Literal["clean", "white", "transfer"]
AttackName = Literal["fgsm", "ifgsm", "pgd"]
Norm = Literal["linf", "l2"]
Statistic = Literal["last", "best-on-test", "median-last-10", "unknown"]
Certainty = Literal["T", "2", "R", "I"]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$")]

CERTAINTY: Final[dict[Certainty, str]] = {
    "T": "read in the source or its authors' code",
    "2": "read in a third-party copy",
    "R": "remembered, not looked up",
    "I": "inferred",
}
STATISTIC: Final[dict[Statistic, str]] = {
    "last": "the last one",
    "best-on-test": "the checkpoint that is best on the test set",
    "median-last-10": "the median of the last ten epochs",
    "unknown": "not stated",
}


class Frozen(BaseModel):
    """The base of everything read from ``published.toml``: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Source(Frozen):
    """Where figures come from: a paper, its authors' code or a slide deck.

    Attributes:
        key: its key in ``published.toml``.
        authors: in full, comma-separated.
        title: of the paper.
        venue: conference, journal or kind of source.
        year: of publication, if known.
        url: arXiv or home page, if there is one.
        bibtex: one BibTeX entry.
        note: anything a reader should know of it.
    """

    key: Slug
    authors: str
    title: str
    venue: str
    year: int | None = None
    url: str | None = None
    bibtex: str
    note: str = ""


class TrainingFacts(Frozen):
    """What a source states of the training; None where it does not (or where it does not apply).

    Attributes:
        epochs: passes over the training set.
        unmixed_epochs: epochs at the start without mixing.
        batch_size: examples per step.
        optimizer: its name.
        lr: highest learning rate.
        lr_schedule: in words.
        momentum: of SGD.
        weight_decay: L2 penalty.
        alpha: of Beta(alpha, alpha).
        augment: random transformations of the inputs.
        dropout: share of units dropped.
        label_noise: share of training labels replaced at random, in percent.
        label_smoothing: share of the label's mass spread over all classes.
        noise_sd: standard deviation of Gaussian noise added to the inputs.
        layer: stage whose latent representations are mixed, from 1.
        pairs: how an example's partner is chosen.
        input: form of the inputs.
    """

    epochs: int | None = Field(default=None, ge=1)
    unmixed_epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    optimizer: str | None = None
    lr: float | None = Field(default=None, gt=0)
    lr_schedule: str | None = None
    momentum: float | None = Field(default=None, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)
    alpha: float | None = Field(default=None, ge=0)
    augment: str | None = None
    dropout: float | None = Field(default=None, ge=0, le=1)
    label_noise: float | None = Field(default=None, ge=0, le=100)
    label_smoothing: float | None = Field(default=None, ge=0, le=1)
    noise_sd: float | None = Field(default=None, ge=0)
    layer: int | None = Field(default=None, ge=1)
    pairs: str | None = None
    input: str | None = None


class Figure(Frozen):
    """One published number, flat: everything its experiment says of it is resolved here.

    Attributes:
        id: stable, ``EXPERIMENT-ROW-COLUMN``.
        experiment: id of the experiment (the published table) it belongs to.
        source: key of its source.
        where: table, figure or section of the source.
        data: data set.
        train_examples: size of the data set's training split, if known.
        model: architecture.
        width: channels of the first stage (hidden units of an MLP) that the architecture's name implies.
        method: how the scored network was trained.
        metric: which error.
        split: examples that it is taken on.
        value: error in percent.
        reported: the number exactly as the source prints it.
        reported_as: whether ``reported`` is an error or an accuracy; ``value`` is always an error.
        role: clean inputs, inputs crafted on the scored network itself, or on another one.
        attack: how they were crafted; None for clean inputs.
        eps_255: budget in units of 1/255, ``inf`` if unbounded, None if not stated.
        steps: iterations of an iterated attack.
        step_rule: length of one iteration, in the source's words.
        source_method: training method of the network that crafted transferred inputs, if stated.
        norm: of the budget.
        certainty: how sure the number is, a key of ``CERTAINTY``.
        statistic: which epoch's error it is, a key of ``STATISTIC``.
        recipe: what the source states of the training.
        not_stated: what the source leaves open.
        note: anything else a reader should know.
        reproduces: False if it is known not to reproduce.
        corrected_by: id of the figure that replaces it.
        independent: False if it repeats or copies another figure and must not count as further evidence.
    """

    id: Slug
    experiment: Slug
    source: Slug
    where: str
    data: Slug
    train_examples: int | None = None
    model: Slug
    width: int | None = None
    method: Slug
    metric: Metric
    split: Literal["test", "validation", "train"] = "test"
    value: float = Field(ge=0, le=100, allow_inf_nan=False)
    reported: str
    reported_as: Literal["error", "accuracy"] = "error"
    role: Role
    attack: AttackName | None = None
    eps_255: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    step_rule: str | None = None
    source_method: Slug | None = None
    norm: Norm | None = None
    certainty: Certainty
    statistic: Statistic
    recipe: TrainingFacts = TrainingFacts()
    not_stated: tuple[str, ...] = ()
    note: str = ""
    reproduces: bool = True
    corrected_by: Slug | None = None
    independent: bool = True

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.role == "clean" and (self.attack, self.steps, self.step_rule) != (None, None, None):
            raise ValueError("a clean error has no attack")
        if self.role != "clean" and (self.attack is None or self.norm is None):
            raise ValueError("an adversarial error needs 'attack' and 'norm'")
        if self.role != "transfer" and self.source_method is not None:
            raise ValueError("'source_method' belongs to role = 'transfer'")
        return self


class Experiment(Frozen):
    """The figures of one published table.

    Attributes:
        id: stable.
        source: key of its source.
        where: table, figure or section of the source.
        not_stated: what the source leaves open about all of them.
        note: what holds for all of them.
        figures: in the order of the table, row by row.
    """

    id: Slug
    source: Slug
    where: str
    not_stated: tuple[str, ...]
    note: str
    figures: tuple[Figure, ...]
