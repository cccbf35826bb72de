"""The steps of an epoch: every example once, by any number of processes, and nothing but what the recipe says."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.data import Dataset, load_data
from robustmix.mixing import apply
from robustmix.spec.recipe import Recipe
from robustmix.steps import Step, disturbed, mixed_logits, planned_steps, seeded
from robustmix.team import Team
from robustmix.units import to_pixels

CPU = torch.device("cpu")
ALONE = Team(CPU)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_data("digits").with_limit(100)


def recipe(**fields: object) -> Recipe:
    return Recipe(**{"method": "mixup", "batch_size": 32, **fields}).resolved("digits")


def rows_of(steps: list[Step]) -> list[int]:
    return torch.cat([step.share.rows for step in steps]).tolist()


def test_an_epoch_takes_every_example_once_in_an_order_of_its_own(data: Dataset) -> None:
    first, again, other = (list(planned_steps(recipe(method="erm"), data, epoch, 0, ALONE)) for epoch in (0, 0, 1))
    assert [step.size for step in first] == [32, 32, 32, 4]
    assert [(step.epoch, step.number, step.rank, step.mix) for step in other] == [(1, n, 0, None) for n in range(4)]
    assert sorted(rows_of(first)) == sorted(rows_of(other)) == list(range(100))
    assert rows_of(first) == rows_of(again) != rows_of(other)


def test_what_is_left_of_an_epoch_is_as_it_would_have_been(data: Dataset) -> None:
    whole, rest = (list(planned_steps(recipe(), data, 3, first, ALONE)) for first in (0, 2))
    assert [step.number for step in rest] == [2, 3]
    assert rows_of(rest) == rows_of(whole[2:])
    for ours, theirs in zip(rest, whole[2:], strict=True):
        assert ours.mix is not None
        assert theirs.mix is not None
        assert torch.equal(ours.mix.partner, theirs.mix.partner)
        assert torch.equal(ours.mix.lam_x, theirs.mix.lam_x)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_mix_what_one_process_mixes(data: Dataset, size: int) -> None:
    def mixed(team: Team) -> list[Tensor]:
        found = []
        for step in planned_steps(recipe(), data, 1, 0, team):
            x, _ = data.train.gather(step.share.rows, CPU)
            assert step.rank == team.rank
            found.append(apply(step.mix, x))
        return found

    whole = mixed(ALONE)
    parts = zip(*(mixed(Team(CPU, rank, size)) for rank in range(size)), strict=True)
    assert all(torch.equal(torch.cat(part), batch) for part, batch in zip(parts, whole, strict=True))


class Linear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor, layer: int = 0, change: object = None) -> Tensor:
        hidden = x if change is None else change(x)  # type: ignore[operator]
        logits: Tensor = super().forward(hidden)
        return logits + layer


def test_inputs_are_mixed_before_the_network_or_behind_a_stage(data: Dataset) -> None:
    (step,) = planned_steps(recipe(batch_size=100), data, 0, 0, ALONE)
    assert step.mix is not None
    x, _ = data.train.gather(step.share.rows, CPU)
    model = Linear()
    expected = model(apply(step.mix, x))
    assert torch.equal(mixed_logits(model, x, step.mix), expected)
    assert torch.equal(mixed_logits(model, x, replace(step.mix, layer=2)), expected + 2)
    assert torch.equal(mixed_logits(model, x, None), model(x))
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("fields", "radius"), [({"adversarial_eps": 8, "adversarial_steps": 3}, to_pixels(8)), ({"noise": 0.1}, 1.0)]
)
@pytest.mark.parametrize("scale", [0, 1])
def test_inputs_are_disturbed_as_the_recipe_says_and_alike_in_all_processes(
    data: Dataset, fields: dict[str, float], radius: float, scale: int
) -> None:
    """Where the weights are 0 there is no gradient, and PGD stays where it starts."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Linear()
        model[1].weight.mul_(scale)  # type: ignore[operator]
    own = recipe(method="erm", **fields)

    def batch(team: Team) -> tuple[Tensor, Tensor, Tensor]:
        step = next(planned_steps(own, data, 0, 0, team))
        x, y = data.train.gather(step.share.rows, CPU)
        return x, disturbed(own, model, x, y, step), y

    x, changed, y = batch(ALONE)
    assert 0 < (changed - x).abs().max() <= radius + 1e-6
    halves = [batch(Team(CPU, rank, 2))[1] for rank in range(2)]
    torch.testing.assert_close(torch.cat(halves), changed, rtol=0, atol=1e-6)
    if "adversarial_eps" in fields and scale:
        assert F.cross_entropy(model(changed), y) > F.cross_entropy(model(x), y)


def test_adversarial_inputs_are_crafted_in_eval_mode_and_leave_no_trace_in_the_network(data: Dataset) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10))
        model[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    before = deepcopy(model.state_dict())
    own = recipe(method="erm", adversarial_eps=8, adversarial_steps=3)
    step = next(planned_steps(own, data, 0, 0, ALONE))
    x, y = data.train.gather(step.share.rows, CPU)
    found = disturbed(own, model.train(), x, y, step)
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(disturbed(own, model.eval(), x, y, step), found)


def test_inputs_of_a_plain_recipe_are_left_alone(data: Dataset) -> None:
    own = recipe(method="erm")
    step = next(planned_steps(own, data, 0, 0, ALONE))
    x, y = data.train.gather(step.share.rows, CPU)
    assert disturbed(own, Linear(), x, y, step) is x


def test_what_is_dropped_follows_seed_epoch_step_and_rank(data: Dataset) -> None:
    step = next(planned_steps(recipe(), data, 0, 0, ALONE))

    def drawn(own: Recipe, at: Step) -> float:
        with seeded(own, at, CPU):
            return float(torch.rand(()))

    dropping = recipe(drop="dropout:0.2")
    before = torch.get_rng_state()
    found = [
        drawn(dropping, at) for at in (step, step, *(replace(step, **{key: 1}) for key in ("epoch", "number", "rank")))
    ]
    found.append(drawn(recipe(drop="dropout:0.2", seed=7), step))
    assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]
    assert len(set(found)) == 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = float(torch.rand(()))
        torch.manual_seed(1)
        assert drawn(recipe(), step) == expected
