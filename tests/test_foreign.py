"""Attacks by torchattacks and foolbox: closed forms on linear models, budgets, seeds, and that no trace is left."""

import logging
import random
from importlib import util
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustmix
from robustmix import attacks
from robustmix.attacks import foreign
from robustmix.attacks.foreign import craft_foreign
from robustmix.attacks.libraries import MAKERS, check_installed
from robustmix.attacks.peers import craft_by_peer
from robustmix.errors import EvaluationError, SpecError
from robustmix.spec.attack import FOREIGN, GRADIENT_FREE, MINIMUM_NORM
from robustmix.spec.names import Norm

pytest.importorskip("torchattacks", reason="pip install robustmix[attacks]")
pytest.importorskip("foolbox", reason="pip install robustmix[attacks]")

EPS: Final = {"linf": 24 / 255, "l2": 0.6}
STEPS: Final = {"deepfool": 50, "cw": 100, "hopskipjump": 12}
EVERY: Final = [(name, norm) for name in FOREIGN for norm in ("linf", "l2") if (name, norm) != ("cw", "linf")]


def craft(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
    classes: int = 5,
    seed: int = 0,
    **more: Any,
) -> Tensor:
    arguments = {
        "eps": None if name in MINIMUM_NORM else EPS[norm],
        "steps": STEPS.get(name, 0),
        "options": {"queries": 200} if name == "square" else {},
        **more,
    }
    return craft_foreign(name, model, x, y, norm=norm, classes=classes, seed=(seed, 3), **arguments)


def lengths(perturbation: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(perturbation.flatten(1), ord=2 if norm == "l2" else torch.inf, dim=1)


def linear(classes: int, examples: int = 12) -> tuple[nn.Module, Tensor, Tensor, dict[Norm, Tensor]]:
    """A linear model on 5x5 pixels, inputs far from 0 and 1, labels, and how far the nearest other class is by norm.

    The model gets the first example wrong.
    """
    source = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, 25, generator=source)
    x = torch.rand(40 * examples, 1, 5, 5, generator=source) * 0.4 + 0.3
    bias = -(weight @ x.flatten(1).mean(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, classes)).eval()
    model[1].load_state_dict({"weight": weight, "bias": bias})
    logits = (x.flatten(1) @ weight.T + bias).double()
    y = logits.argmax(1)
    nearest: dict[Norm, Tensor] = {}
    for norm, dual in (("linf", 1), ("l2", 2)):
        gaps = logits.gather(1, y[:, None]) - logits
        distances = gaps / torch.linalg.vector_norm(weight[y][:, None] - weight, ord=dual, dim=2).double()
        nearest[norm] = distances.scatter(1, y[:, None], torch.inf).amin(1).float()
    # Steps of a hundredth, as of C&W, have no meaning where the boundary is nearer than that.
    far = (nearest["l2"] > 0.06).nonzero().squeeze(1)[:examples]
    x, y, nearest = x[far], y[far], {norm: distance[far] for norm, distance in nearest.items()}
    y[0] = (y[0] + 1) % classes
    return model, x, y, nearest


class Net(nn.Module):
    """Convolution, batch norm and dropout; five classes."""

    def __init__(self) -> None:
        super().__init__()
        flat = nn.Flatten(), nn.Linear(256, 5)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), *flat)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x - 0.5)
        return logits


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Net()


@pytest.fixture(scope="module")
def batch(net: Net) -> tuple[Tensor, Tensor]:
    """Inputs that reach 0 and 1, and the labels that the network predicts, but for the first."""
    x = (torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 1.6 - 0.3).clamp(0, 1)
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    assert len(y.unique()) > 1
    y[0] = (y[0] + 1) % 5
    return x, y


@pytest.fixture
def brief_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fifth of the iterations and with few queries."""
    import torchattacks

    monkeypatch.setattr(foreign, "AUTOATTACK_STEPS", 20)
    square = torchattacks.Square
    monkeypatch.setattr(
        torchattacks.attacks.autoattack, "Square", lambda *args, **kw: square(*args, **kw | {"n_queries": 50})
    )


class Bare(nn.Module):
    """A linear model of five classes without a parameter, by which a library could find its device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(72, 5, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight


class Overflowing(nn.Module):
    """Its logits, or only their gradients, are NaN beside the inputs themselves."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :5]
        return flat / 0 - flat / 0 if self.what == "logits" else flat + (0 * flat).sqrt()


class Detached(nn.Module):
    """A network without a gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.detach())
        return logits


def state_of(model: nn.Module) -> list[Any]:
    """Everything about a model that an attack could leave changed."""
    parameters = [
        (p.requires_grad, p.tolist(), None if p.grad is None else p.grad.tolist()) for p in model.parameters()
    ]
    return [parameters, [b.tolist() for b in model.buffers()], [m.training for m in model.modules()]]


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


@pytest.mark.usefixtures("brief_autoattack")
@pytest.mark.parametrize(("classes", "norm"), [(4, "linf"), (5, "l2"), (12, "linf")])
def test_autoattack_breaks_exactly_what_a_linear_model_loses(classes: int, norm: Norm) -> None:
    model, x, y, nearest = linear(classes)
    eps = float(nearest[norm][1:].median()) * 1.01
    lost = nearest[norm] < eps
    lost[0] = True
    assert 5 < int(lost.sum()) < 9
    wrong = model(craft("autoattack", model, x, y, norm=norm, classes=classes, eps=eps)).argmax(1) != y
    assert torch.equal(wrong, lost)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_breaks_only_what_a_linear_model_loses(norm: Norm) -> None:
    model, x, y, nearest = linear(5)
    eps = float(nearest[norm].median()) * 3
    lost = nearest[norm] < eps
    lost[0] = True
    wrong = model(craft("square", model, x, y, norm=norm, eps=eps)).argmax(1) != y
    assert not (wrong & ~lost).any()
    assert int(wrong.sum()) >= 0.9 * int(lost.sum())


def test_cw_that_finds_nothing_leaves_an_image_as_it_is() -> None:
    """foolbox would give back a black one, which may well be of another class."""
    model, x, y, _ = linear(5)
    black = model(torch.zeros_like(x)).argmax(1)
    x_adv = craft("cw", model, x, y, norm="l2", steps=1)
    left = model(x_adv).argmax(1) == y
    assert (left & (black != y)).any(), "the test needs an image for which black is another class"
    assert torch.equal(x_adv[left], x[left])


@pytest.mark.parametrize(
    ("name", "norm", "classes", "above"),
    [
        ("deepfool", "l2", 2, 0.025),
        ("deepfool", "l2", 5, 0.025),
        ("deepfool", "linf", 5, 0.03),
        ("cw", "l2", 2, 0.02),
        ("cw", "l2", 5, 0.02),
        # Of several classes it follows the boundary to the one that it started from.
        ("hopskipjump", "l2", 2, 0.25),
        ("hopskipjump", "linf", 2, 0.25),
    ],
)
def test_the_smallest_perturbation_of_a_linear_model(name: str, norm: Norm, classes: int, above: float) -> None:
    model, x, y, nearest = linear(classes)
    x_adv = craft(name, model, x, y, norm=norm, classes=classes)
    assert (model(x_adv).argmax(1) != y).all()
    assert torch.equal(x_adv[0], x[0])
    excess = lengths(x_adv - x, norm)[1:] / nearest[norm][1:] - 1
    assert float(excess.min()) > -1e-3
    assert float(excess.max()) < above


@pytest.mark.usefixtures("brief_autoattack")
@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_budget_range_and_that_nothing_else_changes(
    name: str,
    norm: Norm,
    net: Net,
    batch: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    x, y = (part.clone() for part in batch)
    net.train()
    net.layers[3].eval()
    net.layers[0].bias.requires_grad_(False)
    net.layers[5].bias.grad = torch.ones(5)
    monkeypatch.setattr(logging.root, "handlers", [])
    more = {"steps": 4} if name == "hopskipjump" else {}
    np.random.seed(7)
    random.seed(7)
    before = state_of(net), random_states()
    first = craft(name, net, x, y, norm=norm, **more)
    assert (state_of(net), random_states()) == before
    assert logging.root.handlers == []
    assert torch.equal(x, batch[0])
    assert torch.equal(y, batch[1])
    torch.manual_seed(99)
    assert torch.equal(craft(name, net, x, y, norm=norm, **more), first)
    assert capfd.readouterr() == ("", "")

    assert (first.shape, first.dtype, first.requires_grad) == (x.shape, x.dtype, False)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    found = lengths(first - x, norm)
    wrong = net.eval()(first).argmax(1) != y
    if name in MINIMUM_NORM:
        assert found[0] == 0
        assert (found[1:] > 0).all()
        assert wrong.all()
    else:
        assert float(found.max()) <= EPS[norm] + 1e-6
        assert int(wrong.sum()) > 1


@pytest.mark.usefixtures("brief_autoattack")
@pytest.mark.parametrize("name", ["autoattack", "square", "hopskipjump"])
def test_another_seed_is_another_result(name: str, net: Net, batch: tuple[Tensor, Tensor]) -> None:
    more = {"steps": 3} if name == "hopskipjump" else {}
    one, other = (craft(name, net, *batch, norm="l2", seed=seed, **more) for seed in (1, 2))
    assert not torch.equal(one, other)


@pytest.mark.usefixtures("brief_autoattack")
def test_autoattack_finds_no_fewer_errors_than_ifgsm(tiny: Path) -> None:
    model = robustmix.load_model("mixup1", workspace=tiny)
    x, y = robustmix.load_data("digits").test.in_memory().gather(torch.arange(24), torch.device("cpu"))
    by_ours = model(attacks.ifgsm(model, x, y, EPS["linf"], steps=20, step_size=EPS["linf"] / 8)).argmax(1) != y
    wrong = model(craft("autoattack", model, x, y, classes=10)).argmax(1) != y
    assert len(y) > int(wrong.sum()) >= int(by_ours.sum()) > int((model(x).argmax(1) != y).sum())


def test_autoattack_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchattacks

    made: list[Any] = []
    monkeypatch.setattr(torchattacks.AutoAttack, "forward", lambda self, x, y: made.append(self) or x)
    model, x, y, _ = linear(12)
    craft("autoattack", model, x, y, classes=12)
    apgd, apgd_t, fab_t, square = made[0]._autoattack.attacks
    assert [part.steps for part in (apgd, apgd_t, fab_t)] == [100, 100, 100]
    assert [part.n_target_classes for part in (apgd_t, fab_t)] == [9, 9]
    assert (apgd.loss, fab_t.multi_targeted, square.n_queries) == ("ce", True, 5000)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("deepfool", {"classes": 4}, "4 classes apart, but the model has 5"),
        ("square", {"labels": 5}, "labels run from .* to 5"),
        ("autoattack", {"of": 3}, "autoattack needs at least 4 classes"),
        ("square", {"shape": (-1, 25)}, r"images \[B, C, H, W\].*got \[12, 25\]"),
        ("square", {"shape": (-1, 1, 1, 25), "norm": "l2"}, "at least 5x5"),
        ("hopskipjump", {"bias": 1e3}, "for 3 of 3 examples there is none in the batch, nor is noise one"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(name: str, changes: dict[str, Any], says: str) -> None:
    classes = changes.get("of", 5)
    model, x, y, _ = linear(classes)
    x = x.reshape(changes.get("shape", x.shape))
    if "labels" in changes:
        y[1] = changes["labels"]
    if "bias" in changes:
        model.get_parameter("1.bias").data[y[1]] = changes["bias"]
        x, y = x[1:2].repeat(3, 1, 1, 1), y[1:2].repeat(3)
    with pytest.raises(EvaluationError, match=says) as caught:
        craft(name, model, x, y, classes=changes.get("classes", classes), norm=changes.get("norm", "l2"))
    assert "\n" not in str(caught.value)


def test_hopskipjump_starts_from_noise_where_the_batch_has_no_other_class() -> None:
    model, x, y, nearest = linear(5)
    alone = craft("hopskipjump", model, x[1:2], y[1:2], norm="l2", steps=20)
    assert int(model(alone).argmax(1)) != int(y[1])
    assert float(nearest["l2"][1]) <= float(lengths(alone - x[1:2], "l2")) < 1.5 * float(nearest["l2"][1])


def test_hopskipjump_in_l2_is_as_strong_in_a_large_batch() -> None:
    """foolbox divides each direction by the length of all of the batch's together: with 64 examples, an eighth."""
    model, x, y, _ = linear(5, examples=64)
    together = lengths(craft("hopskipjump", model, x, y, norm="l2", steps=12) - x, "l2")
    parts = [
        craft("hopskipjump", model, a, b, norm="l2", steps=12) for a, b in zip(x.split(8), y.split(8), strict=True)
    ]
    apart = lengths(torch.cat(parts) - x, "l2")
    assert float(together.median()) < 1.1 * float(apart.median())


def test_a_model_that_seeds_itself_does_not_seed_the_attack(net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """Square would propose the same square again and again."""

    class Seeding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(0)
            logits: Tensor = self.net(x)
            return logits

    x, y = batch
    for name in ("square", "hopskipjump"):
        assert torch.equal(craft(name, Seeding(), x, y, norm="l2"), craft(name, net, x, y, norm="l2"))


def test_square_does_not_write_into_what_the_model_owns() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.arange(5.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), 5)

    model, x = Own(), torch.rand(4, 1, 5, 5)
    craft("square", model, x, torch.full((4,), 4))
    assert model.logits.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "what"), [("square", "logits"), ("deepfool", "gradient")])
def test_a_nan_is_an_error_and_leaves_no_trace_either(name: str, what: str) -> None:
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    before = random_states()
    with pytest.raises(EvaluationError, match=f"{name}: a logit or a gradient is NaN"):
        craft(name, Overflowing(what), x, x.flatten(1)[:, :5].argmax(1))
    assert random_states() == before


@pytest.mark.usefixtures("brief_autoattack")
@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_without_a_gradient_is_not_taken_for_robust(name: str, net: Net, batch: tuple[Tensor, Tensor]) -> None:
    """foolbox's C&W goes on without one, finds nothing, and says so of a network that has a gradient."""

    x, y = batch
    if name in GRADIENT_FREE:
        assert not torch.equal(craft(name, Detached(net), x, y), x)
    else:
        with pytest.raises(EvaluationError, match="no gradient with respect to its input"):
            craft(name, Detached(net), x, y, norm="l2")


@pytest.mark.usefixtures("brief_autoattack")
@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_models_without_parameters_and_any_layout_or_mode(
    name: str, norm: Norm, capfd: pytest.CaptureFixture[str]
) -> None:
    x = torch.rand(6, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    model = Bare()
    y = model(x).argmax(1)
    more = {"steps": 2} if name == "hopskipjump" else {}
    plain = craft(name, model, x, y, norm=norm, **more)
    assert not torch.equal(plain, x)
    with torch.inference_mode():
        nhwc = x.contiguous(memory_format=torch.channels_last)
        again = craft(name, model, nhwc, y.clone(), norm=norm, **more)
    assert torch.equal(again, plain)
    assert again.stride() == nhwc.stride()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("impl", ["torchattacks", "foolbox"])
def test_a_peer_s_nan_is_an_error(impl: Any) -> None:
    """The sign of NaN is 0, so that such an attack does nothing and nobody notices."""
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    with pytest.raises(EvaluationError, match="fgsm: a logit or a gradient is NaN"):
        craft_by_peer(impl, "fgsm", Overflowing("gradient"), x, torch.arange(4), 0.1, steps=1, length=0.1, seed=(0,))


@pytest.mark.parametrize("impl", ["torchattacks", "foolbox"])
def test_peers_are_bit_for_bit_ours(impl: Any, net: Net, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    net.train()
    before = state_of(net), random_states()
    at = {"eps": 8 / 255, "steps": 5, "length": 3 / 255, "seed": (0,)}
    fgsm, ifgsm, pgd = (craft_by_peer(impl, name, net, x, y, **at) for name in ("fgsm", "ifgsm", "pgd"))
    assert torch.equal(fgsm, attacks.fgsm(net, x, y, 8 / 255))
    assert torch.equal(ifgsm, attacks.ifgsm(net, x, y, 8 / 255, 5, 3 / 255))
    assert (state_of(net), random_states()) == before

    assert torch.equal(pgd, craft_by_peer(impl, "pgd", net, x, y, **at))
    assert not torch.equal(pgd, craft_by_peer(impl, "pgd", net, x, y, **at | {"seed": (1,)}))
    assert not torch.equal(pgd, ifgsm)
    assert float((pgd - x).abs().max()) <= 8 / 255 + 1e-6
    assert 0 <= float(pgd.min()) <= float(pgd.max()) <= 1


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(MAKERS) == FOREIGN
    check_installed(["fgsm", *FOREIGN], ["robustmix", "torchattacks", "foolbox"])
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    check_installed(["fgsm", "ifgsm"], ["robustmix"])
    with pytest.raises(SpecError, match=r"^attack 'cw' needs foolbox, .* pip install 'robustmix\[attacks\]'$"):
        check_installed(["fgsm", "cw"])
    with pytest.raises(SpecError, match=r"^impl = 'torchattacks' needs torchattacks, .*robustmix\[attacks\]'$"):
        check_installed(["fgsm"], ["torchattacks"])
