"""A suite: which runs to train, which attacks to make on them, and at which budgets. One TOML file each.

A suite by name is looked for in the workspace's ``attacks/``, then in the package, then in the checkout.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from robustmix.errors import SpecError
from robustmix.spec.attack import MINIMUM_NORM, AttackSpec
from robustmix.spec.named import on_top, read_recipe
from robustmix.spec.names import check_name, unknown
from robustmix.spec.recipe import FIELDS_OF_METHODS, NEEDS, Recipe, load_recipe_fields
from robustmix.spec.validation import Spec, read_toml, validate
from robustmix.units import Budget, format_budget


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class PublishedDesign(Spec):
    """The subset of the matrix that a publication scored, so that the report can mark it.

    Attributes:
        experiments: ids of the experiments in ``published.toml``.
        white: runs that attack themselves.
        source: the run that crafts the black-box examples.
        targets: the runs that are scored on them.
    """

    experiments: Names
    white: tuple[str, ...]
    source: str
    targets: tuple[str, ...]


class Suite(Spec):
    """What is trained, attacked and reported together.

    Attributes:
        version: of this grammar.
        title: the page's heading.
        data: the data set, as `robustmix.load_data` takes it, that is attacked and trained on; the recipes' and the
            sources' own if not set.
        train: tables ``[train.NAME]``: a recipe's fields, or ``recipe = NAME`` and fields on top, and ``seeds``. A
            table's own ``data`` counts more than the suite's, the suite's more than a recipe's.
        sources: runs that craft, names or globs; all trained here if not set.
        targets: runs that are scored, names or globs; the sources if not set.
        normalize: what sources and targets from a ``file.py:factory`` expect: ``none``, ``cifar10``, ``imagenet`` or
            MEAN/STD.
        attack: tables ``[[attack]]``.
        limit: attack the first N test examples only.
        headline_eps: the budget (units of 1/255) of the page's head.
        audit: what ``robustmix run`` audits after the attacks: names or globs.
        audit_eps: the budget (units of 1/255) at which the audit compares attacks; the headline's, where an attack in
            L-infinity has one, if not set. Where nearly all images break, an audit has little left to tell.
        published: the publication's own subset of the matrix.
        note: one sentence that the page shows below its heading.
    """

    version: Literal[1]
    title: str
    data: str | None = None
    train: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sources: Names | None = None
    targets: Names | None = None
    normalize: str | None = None
    attack: tuple[AttackSpec, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    headline_eps: Budget | None = None
    audit: Names | None = None
    audit_eps: Budget | None = None
    published: PublishedDesign | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        runs = self.runs()
        if not runs and not self.sources:
            raise ValueError("nothing to attack: name a run or model in 'sources', or add a [train.NAME] table")
        if self.audit_eps is not None and self.audit is None:
            raise ValueError("audit_eps belongs to 'audit', which names what is audited")
        if self.published:
            named = {*self.published.white, self.published.source, *self.published.targets}
            if runs and (missing := sorted(named - set(runs))):
                raise ValueError(unknown("run in [published]", missing[0], runs))
        attacks = [spec.model_copy(update={"eps": None}) for spec in self.attack]
        if any(spec in attacks[:number] for number, spec in enumerate(attacks)):
            raise ValueError("the same attack stands twice with the same steps: put its budgets into one eps list")
        budgets = {eps for spec in self.attack for eps in spec.eps or ()}
        all_listed = all(spec.eps is not None or spec.name in MINIMUM_NORM for spec in self.attack)
        if self.headline_eps is not None and all_listed and self.headline_eps not in budgets:
            raise ValueError(f"headline_eps = {format_budget(self.headline_eps)} is not among the eps of any attack")
        return self

    @property
    def source_patterns(self) -> tuple[str, ...]:
        """Names and globs of what crafts."""
        return self.sources or tuple(self.runs())

    @property
    def target_patterns(self) -> tuple[str, ...]:
        """Names and globs of what is scored."""
        return self.targets or self.source_patterns

    def runs(self, changes: Mapping[str, Any] | None = None) -> dict[str, Recipe]:
        """The recipe of every run that the suite trains, by name.

        Args:
            changes: fields that replace those of every recipe (``robustmix run SUITE --epochs 5``); one that a run's
                method does not have is left out for that run.

        Raises:
            SpecError: a table holds a wrong field.
        """
        recipes = {}
        for name, table in self.train.items():
            fields = dict(table)
            seeds = fields.pop("seeds", [1])
            base = fields.pop("recipe", None)
            where = f"train.{name}"
            check_name(name, "run")
            if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
                raise SpecError(f"{where}.seeds = {seeds!r}: should be a list of whole numbers, such as [1, 2]")
            # Before the recipe's own: a suite trains on what it attacks, unless the table itself says otherwise.
            if self.data is not None:
                fields.setdefault("data", self.data)
            if base is not None:
                fields = on_top(read_recipe(base), fields)
            # A table without a method is for ERM: that is said here, so that its other fields are held against it.
            method = fields.setdefault("method", "erm")
            top = {
                key: value
                for key, value in (changes or {}).items()
                if (key not in FIELDS_OF_METHODS or method in FIELDS_OF_METHODS[key])
                and (key not in NEEDS or NEEDS[key] in {**fields, **(changes or {})})
            }
            for seed in seeds:
                recipes[f"{name}{seed}"] = load_recipe_fields({**on_top(fields, top), "seed": seed}, where)
        return recipes


def shipped_suites() -> dict[str, Path]:
    """The suites inside the package, by name; in a checkout, those of its ``attacks/``."""
    packaged = Path(str(files("robustmix") / "suites"))
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "attacks"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def known_suites(workspace: Path) -> dict[str, Path]:
    """Every suite that can be named: the workspace's own hide shipped ones of the same name."""
    return {
        **shipped_suites(),
        **{path.stem: path for path in sorted((workspace / "attacks").glob("*.toml"))},
    }


def load_suite(name_or_path: str | Path, workspace: Path = Path()) -> Suite:
    """A suite by name or by file.

    Raises:
        SpecError: there is none of that name, or the file is not a valid suite; says file, key, value and choices.
    """
    known = known_suites(workspace)
    path = known.get(str(name_or_path), Path(name_or_path))
    if path.suffix != ".toml":
        raise SpecError(f"{unknown('suite', str(name_or_path), known)}, or give a file that ends in .toml")
    return validate(Suite, read_toml(path), str(path))


def match_runs(patterns: tuple[str, ...], names: list[str], what: str) -> list[str]:
    """The names that a list of names and globs selects, each once, in the patterns' order.

    Raises:
        SpecError: a pattern matches nothing.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise SpecError(unknown(what, pattern, names) + _way_out(pattern, names, what))
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _way_out(pattern: str, names: list[str], what: str) -> str:
    if pattern.endswith(".py"):
        return f"; a network of your own is named FILE.py:FACTORY, as {pattern}:FACTORY"
    return "; 'robustmix run SUITE' trains those of a suite" if what == "run" and not names else ""
