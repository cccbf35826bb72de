import re
from pathlib import Path
from typing import Any, get_args

import pytest
from synthetic import INPUTS, N, add_run, identities, make_cell

from robustmix.published import sources
from robustmix.report import collect
from robustmix.report.bibliography import ATTACKS, DATA, DROPS, METHODS, MODELS, bibtex
from robustmix.report.material import Material
from robustmix.report.references import REFERENCES
from robustmix.spec.names import DROPS as ALL_DROPS
from robustmix.spec.names import MODELS as ALL_MODELS
from robustmix.spec.names import AttackName, Method
from robustmix.store.audits import write_audit
from robustmix.store.cell_files import write_cell
from robustmix.store.cells import clean_identity
from robustmix.store.runs import read_run
from robustmix.store.workspace import Workspace

BASELINES = {"signs", "noise"}


def test_everything_that_can_be_chosen_has_a_reference() -> None:
    known = set(REFERENCES) | set(sources())
    assert set(METHODS) == set(get_args(Method))
    assert set(ATTACKS) == set(get_args(AttackName)) - BASELINES
    assert set(DROPS) == set(ALL_DROPS)
    for model in ALL_MODELS:
        assert any(model.startswith(start) for start in MODELS), model
    assert {*METHODS.values(), *ATTACKS.values(), *DROPS.values(), *MODELS.values(), *DATA.values()} <= known


@pytest.mark.parametrize("key", REFERENCES)
def test_entries_are_whole(key: str) -> None:
    entry = REFERENCES[key]
    kind, found = re.match(r"@([a-z]+)\{([a-z0-9]+),\n", entry).groups()  # type: ignore[union-attr]
    assert found == key
    assert kind in ("article", "inproceedings", "misc", "book", "techreport")
    assert entry.count("{") == entry.count("}")
    fields = dict(re.findall(r"^  (\w+) = \{(.*?)\}(?:,$|\n\}$)", entry, re.MULTILINE | re.DOTALL))
    assert {"title", "author", "year"} <= set(fields)
    assert fields["year"] in key
    where = {"article": "journal", "inproceedings": "booktitle", "book": "publisher", "techreport": "institution"}
    assert kind == "misc" or where[kind] in fields
    surname = re.sub(r"[^a-z]", "", fields["author"].split(",")[0].split()[-1].lower())
    assert key.startswith(surname.split("-")[0][:6])
    assert all(", " in " ".join(name.split()) for name in re.split(r"\s+and\s+", fields["author"]) if name != "others")


def material(root: Path, specs: list[dict[str, Any]], **changes: Any) -> Material:
    place = Workspace(root)
    add_run(place, "one", "mixup", 1)
    weights = read_run(place, "one").weights or ""
    write_cell(place.cells, make_cell(clean_identity(weights, INPUTS, 256), N))
    for fields in specs:
        for identity in identities(fields, weights, weights):
            write_cell(place.cells, make_cell(identity.model_copy(update=changes), N))
    return Material.read(collect(place, "r"))


def keys(text: str) -> list[str]:
    return re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE)


def test_only_what_was_used(tmp_path: Path) -> None:
    found = keys(bibtex(material(tmp_path, [{"name": "fgsm", "eps": [4]}]), []))
    assert found[:4] == ["krizhevsky2009learning", "he2016identity", "zhang2018mixup", "goodfellow2015explaining"]
    assert found[-1] == "robustmix"
    assert len(found) == len(set(found))
    assert not {"kurakin2017adversarial", "rauber2020foolbox", "zimmermann2022increasing"} & set(found)
    assert {"wilson1927probable", "holm1979simple", "carlini2019evaluating"} <= set(found)


def test_libraries_losses_and_published_sources(tmp_path: Path) -> None:
    specs = [{"name": "ifgsm", "eps": [4], "loss": "dlr"}]
    cited = [sources()["zhang2018"], sources()["rice2020"]]
    found = keys(bibtex(material(tmp_path / "a", specs), cited))
    assert {"kurakin2017adversarial", "croce2020reliable", "rice2020overfitting"} <= set(found)
    assert found.count("zhang2018mixup") == 1, "as the method and as what it is compared with"
    for library, key in (("foolbox 3.3.4", "rauber2020foolbox"), ("torchattacks 3.5.1", "kim2020torchattacks")):
        found = keys(bibtex(material(tmp_path / library[:5], [{"name": "fgsm", "eps": [4]}], library=library), []))
        assert key in found


def test_audits_bring_theirs(tmp_path: Path) -> None:
    from pages import make_audit

    plain = material(tmp_path, [{"name": "fgsm", "eps": [4]}])
    place = Workspace(tmp_path)
    write_audit(place.audits, make_audit("one", plain.weights["one"], "pass"))
    assert "zimmermann2022increasing" in keys(bibtex(Material.read(collect(place, "r")), []))
