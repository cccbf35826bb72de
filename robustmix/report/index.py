"""One page that lists all reports of a workspace; a pure function of their folders."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustmix.errors import RobustmixError
from robustmix.report.answer import answer
from robustmix.report.evidence import EVIDENCE
from robustmix.report.material import Material
from robustmix.report.page import INDEX
from robustmix.report.text import NONE, ROLES, budget, join_names, percent, plural
from robustmix.store.atomic import write_text

HERE: Final = Path(__file__).parent
# As many attacks as stand in the table of one report; its own page has all.
MOST_ATTACKS: Final = 3


@dataclass(frozen=True)
class Entry:
    """One report in the list.

    Attributes:
        name: of its folder.
        title: its heading; its name where it cannot be read.
        linked: whether its page is there.
        note: one sentence below the title.
        answer: what was found, in one sentence.
        facts: terms and their values: data, networks, audit.
        families: that are scored, one per column.
        rows: what was done to the images, and the mean error of each family, as texts.
        problem: why it cannot be read; nothing else is known then.
    """

    name: str
    title: str
    linked: bool
    note: str | None = None
    answer: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    families: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    problem: str | None = None


def write_index(reports: Path) -> Path:
    """Write ``index.html`` beside the folders of all reports: the same folders give the same bytes.

    Args:
        reports: the folder that holds them.

    Returns:
        The page.

    Raises:
        StoreError: it cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("index.html.j2").render(
        entries=entries(reports),
        page=INDEX,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
    )
    path = reports / INDEX
    write_text(path, text)
    return path


def entries(reports: Path) -> list[Entry]:
    """Every report of a folder, by name; one that cannot be read says why."""
    found = []
    for folder in sorted(path.parent for path in reports.glob(f"*/{EVIDENCE}")):
        linked = (folder / INDEX).is_file()
        try:
            found.append(_entry(Material.read(folder), folder.name, linked))
        except RobustmixError as error:
            # The page stays the same wherever the workspace lies.
            problem = str(error).replace(f"{reports}/", "")
            found.append(Entry(folder.name, folder.name, linked, problem=problem))
    return found


def _entry(material: Material, name: str, linked: bool) -> Entry:
    evidence = material.evidence
    shown = [(label, eps) for label in material.attacks if (eps := material.headline(label)) is not None]
    scored = {family: {*names} & {*evidence.targets} for family, names in material.families.items()}
    scored = {family: names for family, names in scored.items() if names}
    rows = [("no attack", *(_mean(material, names, "clean", "clean", 0.0) for names in scored.values()))]
    for label, eps in shown[:MOST_ATTACKS]:
        for role in ("white", "transfer"):
            errors = (_mean(material, names, role, label, eps) for names in scored.values())
            rows.append((f"{label} at {budget(eps)}, {ROLES[role]}", *errors))
    images = material.facts
    data = images.data_spec + (f": {images.data_note}" if images.data_note else "")
    networks = join_names(
        family if family in material.models else f"{plural(len(of), 'run')} of {family}"
        for family, of in material.families.items()
    )
    more = len(shown) - MOST_ATTACKS
    attacks = f"{plural(more, 'more attack')} on the page" if more > 0 else ""
    facts = (("Data", data), ("Networks", networks), ("Audit", _audit(material)), ("Attacks", attacks))
    said = tuple((term, value) for term, value in facts if value)
    return Entry(name, evidence.title, linked, evidence.note, answer(material), said, tuple(scored), tuple(rows))


def _mean(material: Material, targets: set[str], role: str, label: str, eps: float) -> str:
    """The mean error of some networks; under transfer over all pairs with another network that crafts."""
    errors = [r.error for r in material.find(role, label=label, eps=eps) if r.target in targets]
    return percent(fmean(errors)) if errors else NONE


def _audit(material: Material) -> str:
    """The verdicts on the targets, worst first, and who was not audited."""
    verdicts = {record.weights: record.verdict for record in material.evidence.audits}
    groups: dict[str, list[str]] = {"fail": [], "warn": [], "pass": [], "not audited": []}
    for target in material.evidence.targets:
        groups[verdicts.get(material.weights[target], "not audited")].append(target)
    return "; ".join(f"{verdict}: {join_names(names)}" for verdict, names in groups.items() if names)
