"""What residual blocks drop: where, how often, and that the mean of many draws is the plain block."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from networks import images
from torch import Tensor, nn

from robustmix.models.preact_resnet import PreActBlock, PreActBottleneck
from robustmix.models.residual import Residual, over_blocks, residual_stages
from robustmix.models.resnet import BasicBlock
from robustmix.models.resnext import GroupedBlock
from robustmix.models.wide_resnet import WideBlock

BLOCKS = {
    BasicBlock: "conv2",
    PreActBlock: "conv2",
    WideBlock: "conv2",
    PreActBottleneck: "conv3",
    GroupedBlock: "conv3",
}
DRAWS = 40_000
RATE = 0.3
# A branch and a shortcut of two elements.
BRANCH, SHORTCUT = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])


@contextmanager
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def many(values: Tensor) -> Tensor:
    """One example with two pixels, many times."""
    return values.double().view(1, 1, 1, 2).repeat(DRAWS, 1, 1, 1)


def joined(kind: str, *, training: bool = True) -> Tensor:
    """Many draws of a sum [DRAWS, 2]."""
    block = Residual((kind, RATE)).train(training)  # type: ignore[arg-type]
    with seeded():
        return block.joined(many(BRANCH), many(SHORTCUT)).view(DRAWS, 2)


@pytest.mark.parametrize("kind", ["stochastic_depth", "swapout", "dropout"])
def test_mean_of_many_draws_is_the_plain_sum(kind: str) -> None:
    draws = joined(kind)
    error = draws.std(dim=0) / DRAWS**0.5
    assert ((draws.mean(dim=0) - (BRANCH + SHORTCUT)).abs() <= 5 * error).all()
    assert torch.equal(joined(kind, training=False)[0], (BRANCH + SHORTCUT).double())
    assert (draws.std(dim=0) > 0.1).all() == (kind != "dropout")


def test_stochastic_depth_drops_the_branch_of_an_example_as_a_whole() -> None:
    gone = joined("stochastic_depth") == SHORTCUT
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert gone[:, 0].double().mean() == pytest.approx(RATE, abs=5 * (0.3 * 0.7 / DRAWS) ** 0.5)
    kept = joined("stochastic_depth")[~gone[:, 0]]
    torch.testing.assert_close(kept, (SHORTCUT + BRANCH / 0.7).double().expand_as(kept), rtol=1e-6, atol=1e-6)


def test_swapout_drops_elements_of_shortcut_and_branch_independently() -> None:
    draws = joined("swapout")
    shares = {}
    for branch in (0, 1):
        for shortcut in (0, 1):
            wanted = (branch * BRANCH + shortcut * SHORTCUT) / 0.7
            shares[branch, shortcut] = ((draws - wanted).abs() < 1e-6).double()
    assert torch.equal(sum(shares.values()), torch.ones(DRAWS, 2).double())
    for (branch, shortcut), found in shares.items():
        share = (0.7 if branch else 0.3) * (0.7 if shortcut else 0.3)
        assert found.mean(dim=0).tolist() == pytest.approx([share] * 2, abs=5 * (share * (1 - share) / DRAWS) ** 0.5)
        # one element's draw says nothing about the other's
        assert (found[:, 0] * found[:, 1]).mean() == pytest.approx(share**2, abs=0.02)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("make", BLOCKS)
def test_dropout_stands_before_the_last_convolution_and_nowhere_else(make: type, stride: int) -> None:
    plain, dropping = make(4, 4, stride).double(), make(4, 4, stride, ("dropout", 0.4)).double()
    dropping.load_state_dict(plain.state_dict())
    got: dict[str, list[Tensor]] = {}
    for block in (plain, dropping):
        for name, part in block.named_modules():
            if isinstance(part, nn.Conv2d):
                part.register_forward_pre_hook(
                    lambda _, x, name=name: got.setdefault(name, []).append(x[0].detach().clone())
                )
    x = images(4, 4, 8)
    with seeded():
        plain(x)
        dropping(x)
    last = BLOCKS[make]
    for name, (before, after) in got.items():
        if name == last:
            kept = after != 0
            torch.testing.assert_close(after[kept], before[kept] / 0.6)
            assert (after[before != 0] == 0).double().mean() == pytest.approx(0.4, abs=0.1)
        else:
            assert torch.equal(before, after)


@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize("kind", ["stochastic_depth", "swapout"])
def test_every_block_joins_by_what_it_drops(make: type, kind: str) -> None:
    block = make(4, 4, 1, (kind, 0.5)).double()
    calls: list[tuple[Tensor, Tensor]] = []

    def recorded(branch: Tensor, shortcut: Tensor) -> Tensor:
        calls.append((branch, shortcut))
        return branch + shortcut

    block.joined = recorded
    block(images(2, 4, 6))
    assert len(calls) == 1


def test_rates_rise_linearly_to_the_last_block_except_dropouts() -> None:
    assert over_blocks(("stochastic_depth", 0.5), 4) == [
        ("stochastic_depth", rate) for rate in (0.125, 0.25, 0.375, 0.5)
    ]
    assert over_blocks(("swapout", 0.4), 2) == [("swapout", 0.2), ("swapout", 0.4)]
    assert over_blocks(("dropout", 0.4), 2) == [("dropout", 0.4)] * 2
    assert over_blocks(None, 3) == [None] * 3


def test_stages_hand_their_blocks_sizes_strides_and_rates_in_order() -> None:
    made = []

    def block(*given: object) -> nn.Module:
        made.append(given)
        return nn.Identity()

    stages = residual_stages(block, (2, 1, 1), 3, 8, ("swapout", 0.4))
    assert [len(stage) for stage in stages] == [2, 1, 1]  # type: ignore[arg-type]
    assert [given[:3] for given in made] == [(3, 8, 1), (8, 8, 1), (8, 16, 2), (16, 32, 2)]
    assert [given[3][1] for given in made] == pytest.approx([0.1, 0.2, 0.3, 0.4])  # type: ignore[index]
