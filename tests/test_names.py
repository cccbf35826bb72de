"""Names without torch agree with the registries behind them, and names become folders safely."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from robustmix import attacks, mixing
from robustmix.attacks.libraries import MAKERS
from robustmix.data import load_data
from robustmix.device import AUTOCAST, pick_device
from robustmix.errors import DataError, SpecError
from robustmix.models import classifier
from robustmix.spec import names
from robustmix.spec.attack import FOREIGN, SWEEPS
from robustmix.spec.recipe import DATA_DEFAULTS, Recipe


def test_registries_have_exactly_the_names_that_can_be_chosen() -> None:
    assert tuple(classifier.MODELS) == names.MODELS == get_args(names.ModelName)
    assert tuple(mixing.METHODS) == names.METHODS == get_args(names.Method)
    assert set(AUTOCAST) | {"32"} == set(get_args(names.Precision))


@pytest.mark.parametrize("name", [name for name in names.ATTACKS if name not in FOREIGN])
def test_every_attack_of_our_own_can_be_made(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    ((eps, x_adv),) = attacks.sweep(name, model, torch.full((1, 1, 8, 8), 0.5), torch.tensor([0]), [0.1])
    assert eps == 0.1
    assert (x_adv - 0.5).abs().max() > 0.09


def test_every_attack_of_others_has_a_maker() -> None:
    assert set(MAKERS) == set(FOREIGN) < set(names.ATTACKS)
    assert set(MAKERS.values()) | {"robustmix"} == set(get_args(names.Impl))


def test_aliases_lead_to_attacks() -> None:
    assert set(names.ALIASES.values()) <= set(names.ATTACKS)
    assert not set(names.ALIASES) & set(names.ATTACKS)
    assert names.attack_name("BIM") == names.attack_name("I-FGSM") == "ifgsm"
    assert names.attack_name("FGSM") == "fgsm"
    assert names.attack_name("C&W") == "cw"
    assert names.attack_name("MI-FGSM") == "mifgsm"
    assert names.attack_name(3) == 3


def test_data_with_defaults_of_its_own_exists() -> None:
    assert set(SWEEPS) == set(names.DATA)
    assert set(DATA_DEFAULTS) <= {*names.DATA, "imagenet"}
    for fields in DATA_DEFAULTS.values():
        Recipe.model_validate(fields)
    assert load_data(names.DATA[0]).name == names.DATA[0]


def test_unknown_data_is_refused_with_all_choices() -> None:
    with pytest.raises(SpecError, match=r"unknown data 'digit' \(did you mean 'digits'\?\); .*npz:PATH") as caught:
        load_data("digit")
    assert all(name in str(caught.value) for name in (*names.DATA, "folder:NAME_OR_PATH"))


def test_known_data_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_data("folder:nowhere", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_data(f"npz:{tmp_path}/nothing.npz")


@pytest.mark.parametrize("name", ["erm1", "a", "mixup-0.2_x", "9", "A" * 100])
def test_usable_names(name: str) -> None:
    assert names.check_name(name, "run") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "a\\b",
        "../a",
        "a..b",
        ".a",
        "-a",
        "_a",
        "a b",
        "ä",
        "a\n",
        "a\0",
        "A" * 101,
        "a*",
        "a:b",
    ],
)
def test_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"^run .* is not a usable name") as caught:
        names.check_name(name, "run")
    assert "\n" not in str(caught.value)


def test_unknown_name_comes_with_the_closest_and_all_choices() -> None:
    assert names.unknown("run", "emr1", ["mixup1", "erm1"]) == (
        "unknown run 'emr1' (did you mean 'erm1'?); choose from erm1, mixup1"
    )
    assert names.unknown("run", "xyz", ["erm1"]) == "unknown run 'xyz'; choose from erm1"
    assert "there is none yet" in names.unknown("run", "erm1", [])


def test_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(SpecError, match=rf"device '{name}' is not available .* choose from cpu"):
            pick_device(name)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    "module", ["spec.names", "spec.recipe", "spec.attack", "spec.suite", "units", "stats", "store.results"]
)
def test_needs_no_torch(module: str) -> None:
    code = f"import sys, robustmix.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
