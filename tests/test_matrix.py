"""`robustmix.transfer_matrix`: models and tensors in memory, with the numbers of a whole evaluation."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robustmix
from robustmix import AttackSpec, Suite, evaluate, transfer_matrix
from robustmix.errors import DataError, EvaluationError, RobustmixError, SpecError
from robustmix.store.results import COLUMNS

MEASURED = [
    "source",
    "target",
    "role",
    "attack",
    "norm",
    "loss",
    "steps",
    "eps_255",
    "n",
    "errors",
    "initially_correct",
]


@pytest.fixture(scope="module")
def models(tiny: Path) -> dict[str, nn.Module]:
    return {name: robustmix.load_model(name, workspace=tiny) for name in ("erm1", "mixup1", "erm2")}


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """60 digits, uint8, and their labels."""
    test = robustmix.load_data("digits").test
    return test.images[:60], test.labels[:60]  # type: ignore[attr-defined]


def figures(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table[MEASURED].to_dict("records")


@pytest.fixture(scope="module")
def table(models: dict[str, nn.Module], images: tuple[Tensor, Tensor]) -> pd.DataFrame:
    chosen = {name: models[name] for name in ("erm1", "mixup1")}
    attacks = ("fgsm", "bim", "mifgsm", "pgd", "signs")
    return transfer_matrix(chosen, *images, attacks=attacks, eps=(8 / 255, 32 / 255), steps=3, loss="logodds")


# ---- the same numbers ------------------------------------------------------------------------------------


def test_its_errors_are_those_of_a_whole_evaluation(table: pd.DataFrame, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    attacks = [AttackSpec(name=name, eps=(8, 32), loss="logodds") for name in ("fgsm",)]
    attacks += [AttackSpec(name=name, eps=(8, 32), loss="logodds", steps=3) for name in ("ifgsm", "mifgsm", "pgd")]
    attacks += [AttackSpec(name="signs", eps=(8, 32))]
    suite = Suite(version=1, title="t", sources=("erm1", "mixup1"), attack=tuple(attacks), limit=60)
    whole = evaluate(suite, workspace=tmp_path)
    assert tuple(table.columns) == COLUMNS
    assert figures(table) == figures(whole)
    same = ["error", "error_low", "error_high", "top5_error", "clean_error", "success", "delta_max"]
    pd.testing.assert_frame_equal(table[same], whole[same])
    assert len(table) == 2 + 2 * 5 * 2 * 2
    assert table["error"].nunique() > 10


def test_float_and_uint8_inputs_of_any_kind_agree(models: dict[str, nn.Module], images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    expected = figures(transfer_matrix(models, x, y, ("fgsm",), (32 / 255,)))
    for inputs, labels in (
        (x.float() / 255, y),
        (x.double() / 255, y.int()),
        (x.numpy(), y.numpy().astype(np.uint8)),
        ((x.float() / 255).requires_grad_(), y),
    ):
        assert figures(transfer_matrix(models, inputs, labels, ("fgsm",), (32 / 255,))) == expected


def test_numbers_and_budgets_may_be_numpy_s(models: dict[str, nn.Module], images: tuple[Tensor, Tensor]) -> None:
    chosen, eps = {"erm1": models["erm1"]}, np.array([8 / 255, 32 / 255])
    found = transfer_matrix(
        chosen,
        *images,
        ("ifgsm",),
        eps,
        steps=np.int64(3),
        batch_size=np.int64(32),  # type: ignore[arg-type]
    )
    assert figures(found) == figures(transfer_matrix(chosen, *images, ("ifgsm",), tuple(eps), 3, batch_size=32))


def test_arguments_stand_in_the_order_of_their_promise(
    models: dict[str, nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    """By position and by name, with each default written out; what is beyond them goes by name alone."""
    mine, (inputs, labels) = {"erm1": models["erm1"]}, images
    eps = (8 / 255, 32 / 255)
    found = transfer_matrix(mine, inputs, labels, ("fgsm", "ifgsm"), eps, 10, None, "ce", None, None)
    named = transfer_matrix(
        models=mine,
        inputs=inputs,
        labels=labels,
        attacks=("fgsm", "ifgsm"),
        eps=eps,
        steps=10,
        step_size=None,
        loss="ce",
        batch_size=None,
        targets=None,
    )
    pd.testing.assert_frame_equal(found, named)
    pd.testing.assert_frame_equal(found, transfer_matrix(mine, inputs, labels, eps=eps))
    assert set(found["batch_size"]) == {256}
    targets = {"mixup1": models["mixup1"]}
    other = transfer_matrix(mine, inputs, labels, ("ifgsm",), eps, 4, 0.1, "margin", 25, targets)
    assert set(other["batch_size"]) == {25}
    assert set(other["target"]) == {"mixup1"}
    attacked = other[other["role"] == "transfer"]
    assert [set(attacked[what]) for what in ("steps", "step_255", "loss")] == [{4}, {25.5}, {"margin"}]
    with pytest.raises(TypeError, match="positional arguments"):
        transfer_matrix(mine, inputs, labels, ("fgsm",), eps, 10, None, "ce", None, None, "l2")  # type: ignore[misc]


def test_targets_are_scored_and_do_not_craft(models: dict[str, nn.Module], images: tuple[Tensor, Tensor]) -> None:
    mine, targets = {"erm1": models["erm1"]}, {"mixup1": models["mixup1"], "erm1": models["erm1"]}
    found = transfer_matrix(mine, *images, attacks=("fgsm",), eps=(32 / 255,), targets=targets)
    assert found[["source", "target", "role"]].values.tolist() == [
        [None, "erm1", "clean"],
        [None, "mixup1", "clean"],
        ["erm1", "erm1", "white"],
        ["erm1", "mixup1", "transfer"],
    ]
    everything = transfer_matrix(models, *images, attacks=("fgsm",), eps=(32 / 255,))
    both = everything.merge(found, on=["source", "target", "attack"], suffixes=("", "_found"))
    assert len(both) == 4
    assert (both["errors"] == both["errors_found"]).all()


class Linear(nn.Module):
    """Two classes, told apart by the sign of w x + b."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.mark.parametrize(("norm", "dual", "largest"), [("linf", 1, 0.2), ("l2", 2, 0.7)])
@pytest.mark.parametrize("attack", ["fgsm", "ifgsm", "mifgsm"])
def test_errors_of_a_linear_model_are_those_of_the_closed_form(
    attack: str, norm: Any, dual: int, largest: float
) -> None:
    """No perturbation lowers the margin by more than eps times the dual norm of w, and these attacks do so."""
    rng = torch.Generator().manual_seed(0)
    x = 0.35 + 0.3 * torch.rand(500, 40, generator=rng)
    w = torch.randn(40, generator=rng)
    y = (x @ w + 0.1 * torch.randn(500, generator=rng) > (x @ w).median()).long()
    model = Linear(w, 0.003 - float((x @ w).median()))
    budgets = [largest * share for share in (0.01, 0.05, 0.1, 0.2, 0.4, 1)]
    found = transfer_matrix({"linear": model}, x, y, attacks=(attack,), eps=budgets, steps=4, norm=norm)
    margins = (2 * y - 1).double() * (x.double() @ w.double() + model.b)
    for eps, errors in zip([0.0, *budgets], found["errors"], strict=True):
        left = margins - eps * w.double().norm(dual)
        assert left.abs().min() > 1e-5, "no example so close that rounding decides"
        assert errors == int((left < 0).sum())
    assert found["errors"].iloc[0] < 40
    assert found["errors"].iloc[-1] == 500


def test_inputs_need_not_be_images(images: tuple[Tensor, Tensor]) -> None:
    """Rows of features in [0, 1], and a network that has never heard of channels."""
    torch.manual_seed(0)
    train = robustmix.load_data("digits").train
    x, y = train.images.flatten(1).float() / 255, train.labels  # type: ignore[attr-defined]
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    rows, labels = images[0].flatten(1).float() / 255, images[1]
    found = transfer_matrix({"mlp": network}, rows, labels, attacks=("fgsm", "pgd"), eps=(16 / 255, 64 / 255))
    assert found["error"].iloc[0] < 0.3, "dropout is off"
    white = found[found["role"] == "white"]
    assert white.groupby("attack")["error"].max().min() > 0.6
    assert (white["delta_max"] <= 1 + 1e-5).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_networks_may_flatten_by_view(channels: int, images: tuple[Tensor, Tensor]) -> None:
    class Viewing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen = self[1](self[0](x))
            logits: Tensor = self[2](seen.view(len(x), -1))
            return logits

    class Flattening(Viewing):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self[2](self[1](self[0](x)).flatten(1))
            return logits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Linear(144, 10)
    x, y = images[0].expand(-1, channels, -1, -1), images[1]
    turned = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as images read from files lie in memory
    tables = [
        transfer_matrix({"net": kind(*parts)}, inputs, y, ("fgsm", "ifgsm"), (0.1,))
        for kind in (Viewing, Flattening)
        for inputs in (x, turned)
    ]
    assert len({tuple(table["error"]) for table in tables}) == 1
    assert tables[0]["error"].nunique() > 1
    assert parts[0].weight.is_contiguous()


class Lazy(nn.Module):
    """Makes a constant where it is first called, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[int, ...], Tensor] = {}
        self.classify = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.kept.setdefault(tuple(x.shape), torch.full_like(x, 0.5))
        logits: Tensor = self.classify(((x - mean) * mean).flatten(1))
        return logits


def test_what_a_network_keeps_from_its_scoring_may_take_part_in_a_gradient(
    models: dict[str, nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    first, then = (
        {name: {**models, "lazy": Lazy()}[name] for name in names} for names in (("erm1", "lazy"), ("lazy",))
    )
    assert len(transfer_matrix(first, *images, ("fgsm",), (32 / 255,), batch_size=32)) == 2 + 4
    assert len(transfer_matrix(then, *images, ("fgsm",), (32 / 255,))) == 2


def test_the_caller_s_default_type_changes_nothing(images: tuple[Tensor, Tensor], models: dict[str, nn.Module]) -> None:
    before = transfer_matrix(models, *images, ("fgsm",), (32 / 255,))
    try:
        torch.set_default_dtype(torch.float64)
        again = transfer_matrix(models, *images, ("fgsm",), (32 / 255,))
    finally:
        torch.set_default_dtype(torch.float32)
    pd.testing.assert_frame_equal(again, before)


def test_rows_are_of_the_models_as_sources_and_of_the_targets_as_targets(
    models: dict[str, nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    """Also where one network bears another name as a source than as a target."""
    one, other = models["erm1"], models["mixup1"]
    table = transfer_matrix({"source": one}, *images, ("fgsm",), (32 / 255,), targets={"deployed": one, "other": other})
    rows = [(None if pd.isna(row.source) else row.source, row.target, row.role) for row in table.itertuples()]
    assert rows == [
        (None, "deployed", "clean"),
        (None, "other", "clean"),
        ("source", "deployed", "white"),
        ("source", "other", "transfer"),
    ]
    assert list(table.index) == [0, 1, 2, 3]


def test_saturation_does_not_pass_for_robustness(
    models: dict[str, nn.Module], images: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """One network with its logits a hundred times as large: cross-entropy finds no way."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 100 * models["erm1"](x)  # type: ignore[no-any-return]

    both = {"honest": models["erm1"], "scaled": Scaled()}
    error = {
        (loss, row.source): row.error
        for loss in ("ce", "margin")
        for row in transfer_matrix(both, *images, ("fgsm",), (32 / 255,), loss=loss).itertuples()
        if row.role == "white"
    }
    assert error["ce", "scaled"] < error["ce", "honest"] - 0.1
    assert error["margin", "scaled"] == error["margin", "honest"]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 2
    assert said[0].startswith("warning: scaled gives ")
    assert "a probability of exactly 1, where cross-entropy has lost its true-class term" in said[0]
    assert said[1].startswith("warning: scaled has a gradient of exactly zero on ")


@pytest.mark.parametrize("name", ["fgsm", "deepfool", "cw", "autoattack"])
def test_a_gradient_that_is_not_that_of_the_inputs_is_none(
    name: str, models: dict[str, nn.Module], images: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Outputs that can be differentiated with respect to something else."""
    pytest.importorskip("foolbox", reason="needs the extra 'attacks'")

    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(1, requires_grad=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * models["erm1"](x.detach())  # type: ignore[no-any-return]

    x, y = images[0][:8], images[1][:8]
    if name == "cw":  # has the gradient of the perturbation's length as well, which is zero at first
        transfer_matrix({"net": Elsewhere()}, x, y, (name,))
        said = capsys.readouterr().err
        assert "warning: net has a gradient of exactly zero on" in said
        assert "warning: cw broke 0.0% of the examples that net gets right" in said
        return
    expected = r"no gradient with respect to its input|(foolbox|torchattacks) [\d.]+ failed on this model: "
    with pytest.raises(EvaluationError, match=expected) as caught:
        transfer_matrix({"net": Elsewhere()}, x, y, (name,), (16 / 255,))
    assert "\n" not in str(caught.value)


def test_other_libraries_attacks_have_their_own_steps_and_norm(
    models: dict[str, nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    pytest.importorskip("foolbox", reason="needs the extra 'attacks'")
    x, y = images[0][:8], images[1][:8]
    found = transfer_matrix({"erm1": models["erm1"]}, x, y, ("fgsm", "deepfool"), (16 / 255,), steps=7, norm="linf")
    row = found[found["attack"] == "deepfool"].iloc[0]
    assert (row["norm"], row["steps"], math.isnan(row["eps_255"])) == ("l2", 50, True)


# ---- models are left as they were ------------------------------------------------------------------------


def test_models_are_left_as_found(images: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10), nn.Dropout())
    network[3].eval()
    network[2].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    transfer_matrix({"a": network, "b": network}, *images, attacks=("fgsm", "pgd"), eps=(16 / 255,), steps=2)
    assert [part.training for part in network] == [True, True, True, False]
    assert network.training
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, False, True]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_models_are_left_as_found_when_an_attack_fails(images: tuple[Tensor, Tensor]) -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x.flatten(1)[:, 20:30].sqrt() - 1

    network = Breaks()
    with pytest.raises(
        EvaluationError, match=r"fgsm from net: in batch 0 the gradient or a logit of \d+ of \d+ examples is NaN"
    ):
        transfer_matrix({"net": network}, *images, attacks=("fgsm",), eps=(16 / 255,))
    assert network.training


# ---- passes that can be saved ----------------------------------------------------------------------------


@pytest.mark.parametrize("attacks", [("fgsm",), ("pgd", "ifgsm", "fgsm"), ("mifgsm",)])
def test_clean_predictions_come_with_the_first_gradient(
    attacks: tuple[str, ...], models: dict[str, nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    """To the bit those of a pass of their own; sources that are no targets, and random starts, bring none."""
    x = torch.as_tensor(images[0]).float() / 255
    sources, targets = {name: models[name] for name in ("erm1", "mixup1")}, {name: models[name] for name in models}
    seen: dict[str, list[Tensor]] = {name: [] for name in models}
    handles = [
        models[name].register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0])) for name in models
    ]
    found = transfer_matrix(sources, *images, attacks=attacks, eps=(8 / 255,), steps=2, targets=targets, batch_size=40)
    for handle in handles:
        handle.remove()
    for name, points in seen.items():
        at_inputs = [point for point in points for part in x.split(40) if torch.equal(point, part)]
        differentiated = [point.requires_grad for point in at_inputs]
        # FGSM's gradient is the first of I-FGSM's.
        gradients = sum(attack != "pgd" for attack in attacks) - ({"fgsm", "ifgsm"} <= set(attacks))
        assert sorted(differentiated) == sorted([True, True] * gradients if name in sources else [False, False])
    apart = transfer_matrix(sources, *images, attacks=("signs",), eps=(8 / 255,), targets=targets, batch_size=40)
    clean, expected = (table[table["role"] == "clean"].reset_index(drop=True) for table in (found, apart))
    assert dict(zip(clean["target"], clean["forward"], strict=True)) == {"erm1": 0, "mixup1": 0, "erm2": 1}
    columns = [name for name in COLUMNS if name != "forward"]
    pd.testing.assert_frame_equal(clean[columns], expected[columns])
    assert clean["errors"].nunique() > 1


@pytest.mark.parametrize(("steps", "step_size", "gradients"), [(10, 1 / 255, 30), (10, None, 1 + 4 * 9), (1, None, 1)])
def test_fgsm_shares_the_first_gradient_of_ifgsm(
    steps: int, step_size: float | None, gradients: int, models: dict[str, nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    """And gives the errors that it gives alone."""
    chosen = {name: models[name] for name in ("erm1", "mixup1")}
    eps = tuple(length / 255 for length in (1, 2, 4, 8))
    both, fgsm, ifgsm = (
        transfer_matrix(chosen, *images, attacks, eps, steps, step_size)
        for attacks in (("ifgsm", "fgsm"), ("fgsm",), ("ifgsm",))
    )
    attacked = both[both["role"] != "clean"]
    assert set(attacked["backward"]) == {gradients}
    assert set(attacked["forward"]) == {gradients + 2 * 2 * 4}
    for alone, attack in ((fgsm, "fgsm"), (ifgsm, "ifgsm")):
        expected = alone[alone["role"] != "clean"].reset_index(drop=True)
        found = attacked[attacked["attack"] == attack].reset_index(drop=True)
        assert figures(found) == figures(expected)
        assert len(found) == 2 * 2 * 4


def test_clean_predictions_come_along_for_a_target_of_another_name(
    models: dict[str, nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    found = transfer_matrix({"a": models["erm1"]}, *images, ("fgsm",), (8 / 255,), targets={"b": models["erm1"]})
    clean = found[found["role"] == "clean"]
    assert dict(zip(clean["target"], clean["forward"], strict=True)) == {"b": 0}


# ---- what is refused -------------------------------------------------------------------------------------


class Flat(nn.Module):
    """Logits: some of the pixels, spread."""

    def __init__(self, count: int = 10) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x.flatten(1)[:, 20 : 20 + self.count] - 1


class Rounding(Flat):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward((255 * x).round() / 255)


class InPlace(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2).round_().div_(2))


class Hungry(Flat):
    """Runs out of memory above 20 examples."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 20:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(x)


class Mean(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(0, keepdim=True)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
GOOD: dict[str, Any] = {"models": {"net": Flat()}, "inputs": X, "labels": Y, "attacks": ("fgsm",), "eps": (4 / 255,)}

REFUSED: dict[str, tuple[dict[str, Any], type[RobustmixError], str]] = {
    "labels out of range": ({"labels": Y + 5}, EvaluationError, r"labels run from 5 to 10, but model 'net' gives 10"),
    "negative labels": ({"labels": Y - 1}, EvaluationError, r"labels run from -1 to 4"),
    "labels that are no classes": ({"labels": Y / 2}, EvaluationError, r"whole numbers \[N\].* torch.float32 \[6\]"),
    "one label too few": ({"labels": Y[:5]}, DataError, r"\[6, 1, 8, 8\] and torch.int64 \[5\]"),
    "nothing": ({"inputs": X[:0], "labels": Y[:0]}, EvaluationError, r"at least one; got torch.int64 \[0\]"),
    "a name for two": ({"targets": {"net": Flat()}}, SpecError, r"'net' names one model among the models and another"),
    "no model": ({"models": {}}, SpecError, r"there is no model to attack"),
    "no target": ({"targets": {}}, SpecError, r"there is no target to score"),
    "eps in grey levels": ({"eps": (4,)}, SpecError, r"eps=4 .*write eps=4/255 for 4 grey levels"),
    "a negative budget": ({"eps": (-0.1,)}, SpecError, r"eps=-0.1 must be"),
    "no budget": ({"eps": ()}, SpecError, r"eps is empty: name at least one"),
    "a budget of nothing": ({"eps": (4 / 255, 0)}, SpecError, r"eps=0 is no attack: the rows of role 'clean' say"),
    "no attack": ({"attacks": ()}, SpecError, r"attacks is empty: name at least one"),
    "one logit": (
        {"models": {"net": Flat(1)}, "labels": Y * 0},
        EvaluationError,
        r"model 'net' gives a single logit z: return one for each class, \[0, z\] for two",
    ),
    "a logit for the batch": (
        {"models": {"net": Mean()}},
        EvaluationError,
        r"'net' returns \[1, 10\], not logits \[B, K\] of 2 inputs",
    ),
    "a step in grey levels": ({"attacks": ("ifgsm",), "step_size": 1.5}, SpecError, r"step_size=1.5 .*write"),
    "steps too short": (
        {"attacks": ("ifgsm",), "steps": 2, "step_size": 1 / 255},
        SpecError,
        r"2 steps of 1/255 reach only 2/255, not the budget 4/255",
    ),
    "an unknown attack": ({"attacks": ("fgsn",)}, SpecError, r"unknown attack 'fgsn' \(did you mean 'fgsm'\?\)"),
    "an unknown loss": ({"loss": "cross"}, SpecError, "unknown loss 'cross'; choose from ce, dlr, logodds"),
    "an unknown norm": ({"norm": "l1"}, SpecError, r"'l1'.*'l2'"),
    "normalised inputs": (
        {"inputs": (X - 0.5) / 0.5},
        DataError,
        r"\[0, 1\].*from -\d.* normalisation inside the model",
    ),
    "inputs of 0 to 255": ({"inputs": X * 255}, DataError, r"divide pixels by 255"),
    "inputs with NaN": ({"inputs": X.masked_fill(X > 0.9, math.nan)}, DataError, r"without NaN"),
    "whole numbers": ({"inputs": (X * 255).long()}, DataError, r"got torch.int64"),
    "no logits": ({"models": {"net": Pair()}}, EvaluationError, r"'net' returns tuple, not logits \[B, K\]"),
    "features": ({"models": {"net": nn.Identity()}}, EvaluationError, r"returns \[2, 1, 8, 8\], not logits"),
    "a step by a rule": (
        {"step_size": "kurakin"},
        SpecError,
        "step_size must be a number, a length in pixel units; got 'kurakin'",
    ),
    "a budget in words": ({"eps": ("4/255",)}, SpecError, "eps must be a number, .* got '4/255'"),
    "budgets in two dimensions": ({"eps": np.ones((2, 2)) / 9}, SpecError, "eps must be a number, .* got list"),
    "true steps": ({"steps": True}, SpecError, "steps=True must be a whole number of at least 1"),
    "steps in words": ({"steps": "3"}, SpecError, "steps='3' must be a whole number"),
    "an attack that is none": ({"attacks": (None,)}, SpecError, "an attack must be a name, such as 'fgsm'; got None"),
    "a loss that is none": ({"loss": None}, SpecError, "loss must be a name, such as 'ce'; got None"),
    "a norm that is none": ({"norm": None}, SpecError, "norm must be a name, such as 'linf'; got None"),
    "a number for a name": (
        {"models": {1: Flat()}},
        SpecError,
        "models must be a dictionary of models by name, a text each; got 1",
    ),
    "a number for a target's name": (
        {"targets": {1: Flat()}},
        SpecError,
        "targets must be a dictionary of models by name, a text each; got 1",
    ),
    "inputs in words": ({"inputs": "x"}, EvaluationError, "inputs must be a torch.Tensor or a numpy array .*; got str"),
    "no labels": ({"labels": None}, EvaluationError, "labels must be a torch.Tensor or a numpy array .*; got NoneType"),
    "labels in words": ({"labels": np.array(["a"])}, EvaluationError, "labels must be a .* array of numbers; got <U1"),
    "a batch beyond all": ({"batch_size": 2**31}, SpecError, "batch_size=2147483648 must be at most 2147483647"),
    "no batch": ({"batch_size": 0}, SpecError, "batch_size=0 must be a whole number of at least 1"),
    "half a batch": ({"batch_size": 2.5}, SpecError, "batch_size=2.5 must be a whole number"),
    "changed images": (
        {"targets": {"here": InPlace(), "net": GOOD["models"]["net"]}},
        EvaluationError,
        r"'here' changes the images that it is given, .* without operations in place",
    ),
    "one budget": ({"eps": 4 / 255}, SpecError, r"eps must be a sequence, such as a tuple; got 0.0156"),
    "one attack": ({"attacks": "fgsm"}, SpecError, r"attacks must be a sequence, such as a tuple; got 'fgsm'"),
    "a bare model": ({"models": Flat()}, SpecError, r"models must be a dictionary of models by name; got Flat"),
    "a function": ({"targets": {"f": torch.relu}}, SpecError, r"targets\['f'\] must be a torch.nn.Module"),
    "l2 in grey levels": ({"eps": (16,), "norm": "l2"}, SpecError, r"eps=16 is longer .*\(8\).*write eps=16/255"),
    "a loss that no attack has": ({"attacks": ("signs",), "loss": "cross"}, SpecError, "unknown loss 'cross'"),
    "probabilities": ({"models": {"net": nn.Sequential(Flat(), nn.Sigmoid())}}, EvaluationError, "gives probabilities"),
    "no gradient": ({"models": {"net": Rounding()}}, EvaluationError, "no gradient with respect to its input"),
    "dlr of two classes": (
        {"models": {"net": Flat(2)}, "labels": Y % 2, "loss": "dlr"},
        EvaluationError,
        r"'dlr' needs three classes, the model tells 2 apart",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(case: str) -> None:
    changes, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as caught:
        transfer_matrix(**{**GOOD, **changes})
    assert "\n" not in str(caught.value)


def test_models_of_another_type_are_one_line(images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(
        EvaluationError, match=r"has torch.float64 weights, the inputs are torch.float32: .*model.float"
    ):
        transfer_matrix({"double": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()}, *images)


def test_names_are_looked_at_before_anything_is_computed() -> None:
    network = Flat()
    network.register_forward_hook(lambda *_: pytest.fail("a pass was made"))
    with pytest.raises(SpecError, match="targets must be"):
        transfer_matrix(**{**GOOD, "models": {"net": network}, "targets": {"net": network, 2: network}})


def test_inputs_may_be_any_view_of_numpy_s() -> None:
    found = transfer_matrix(**{**GOOD, "inputs": X.numpy()[::-1], "labels": Y.numpy()[::-1]})
    assert figures(found) == figures(transfer_matrix(**GOOD))


def test_what_the_refusals_change_is_accepted() -> None:
    assert len(transfer_matrix(**GOOD)) == 2


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_precision_is_that_of_crafting(
    precision: Any, models: dict[str, nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    found = transfer_matrix({"erm1": models["erm1"]}, *images, ("fgsm",), (32 / 255,), precision=precision)
    assert set(found["precision"]) == {"32", precision}
    assert found.loc[found["role"] == "clean", "precision"].tolist() == ["32"]


def test_batches_are_as_large_as_asked(images: tuple[Tensor, Tensor]) -> None:
    seen: list[int] = []

    class Watched(Flat):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    found = transfer_matrix({"net": Watched()}, *images, attacks=("signs",), eps=(8 / 255,), batch_size=25)
    assert seen[-6:] == [25, 25, 10] * 2, "clean predictions, the attack"
    assert max(seen[:-6]) < 25, "looks at a few, whether the outputs are logits"
    assert set(found["batch_size"]) == {25}


def test_where_memory_runs_out_batches_are_halved(images: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    hungry = Hungry(10)
    found = transfer_matrix({"net": hungry}, *images, ("fgsm",), (16 / 255,))
    assert set(found["batch_size"]) == {16}
    many = transfer_matrix({"net": Flat(10), "hungry": hungry}, *images, ("fgsm",), (16 / 255,), batch_size=8)
    assert set(many["batch_size"]) == {8}


def test_one_model_under_two_names_is_attacked_in_the_white_box(images: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    net = Flat(10)
    found = transfer_matrix({"a": net, "b": net}, *images, ("fgsm",), (16 / 255,))
    assert set(found["role"]) == {"clean", "white"}
    assert set(zip(found["source"].dropna(), found.loc[found["source"].notna(), "target"], strict=True)) == {
        ("a", "a"),
        ("a", "b"),
        ("b", "a"),
        ("b", "b"),
    }


# ---- what is said ----------------------------------------------------------------------------------------


class Behind(nn.Module):
    """A network whose inputs and logits are changed."""

    def __init__(self, network: nn.Module, scale: float = 1, order: slice | list[int] = slice(None)) -> None:
        super().__init__()
        self.network, self.scale, self.order = network, scale, order

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.scale * x)
        return logits[:, self.order]


def test_models_whose_accuracy_is_chance_are_named(
    models: dict[str, nn.Module], images: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the clean predictions that are made anyway: those of targets, and of one under two names once."""
    good = models["erm1"]
    grey = Behind(good, 1 / 255)
    targets = {"good": good, "grey": grey, "reversed": Behind(good, order=list(range(9, -1, -1))), "again": grey}
    found = transfer_matrix({"good": good, "shifted": Behind(good, 0.01)}, *images, ("fgsm",), (0.1,), targets=targets)
    said = capsys.readouterr().err.splitlines()
    clean = found[found["role"] == "clean"].set_index("target")["error"]
    assert clean["good"] < 0.4 < 0.8 < clean[["grey", "reversed"]].min()
    warning = (
        "warning: model {!r}: accuracy {:.1f} % on 60 examples is chance (10 classes): does it take pixels in [0, 1], "
        "and are its classes those of the labels, in their order?"
    )
    assert said == [warning.format(name, 100 * (1 - clean[name])) for name in ("grey", "reversed")]


def test_few_examples_are_no_reason_to_warn(capsys: pytest.CaptureFixture[str]) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] - torch.tensor([0.0] + [5] * 9)

    for labels, warned in ((torch.tensor([1]), 0), (torch.ones(3).long(), 0), (torch.ones(6).long(), 1)):
        transfer_matrix({"net": Constant()}, X[: len(labels)], labels, ("fgsm",), (4 / 255,))
        assert capsys.readouterr().err.count("is chance") == warned
