"""What is wrong with other people's models is refused, with the way out; what is right passes without a word."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.audit.direct import look_at_accuracy
from robustmix.checkpoints import load_model
from robustmix.data import TensorSplit, load_data
from robustmix.errors import EvaluationError
from robustmix.judging import Fact
from robustmix.models.classifier import Normalize
from robustmix.outputs import check_gradient, check_outputs, output_faults
from robustmix.participants import find_participants
from robustmix.remedies import AS_IT_IS, above_chance, better_normalization, other_order, predictions, way_out
from robustmix.sanity import check_model, some_images, warn_of_chance
from robustmix.store.workspace import Workspace
from robustmix.zoo import Wrapped

CLASSES = tuple("0123456789")
NAMES = tuple(f"digit {name}" for name in CLASSES)
# Output k of the permuted network is the class ORDER[k].
ORDER = [3, 0, 1, 2, 7, 4, 5, 6, 9, 8]
# Two classes stay: chance is exceeded.
PARTLY = [0, 1, 3, 4, 2, 7, 5, 6, 9, 8]

FACTORIES = """
import torch
import torch.nn.functional as F
from pathlib import Path
from torch import nn
from robustmix.checkpoints import read_model

def whole():
    return read_model(Path({weights!r}))

def network():
    return whole().network

class Behind(nn.Module):
    def __init__(self, change=lambda x: x, model=None):
        super().__init__()
        self.model, self.change = model or whole(), change
    def forward(self, x):
        return self.change(self.model(x))

def probabilities():
    return Behind(lambda z: z.softmax(1))

def percent():
    return Behind(lambda z: 100 * z.softmax(1))

def rounded_percent():
    return Behind(lambda z: (10_000 * z.softmax(1)).round() / 100)

def independent_probabilities():
    return Behind(lambda z: z.sigmoid())

def nine_classes():
    return Behind(lambda z: z[:, :9])

def overflowing():
    return Behind(lambda z: torch.where(z.argmax(1, keepdim=True) == 3, z / 0, z))

def noisy():
    return Behind(lambda z: F.dropout(z, 0.1))

def centred():
    return Behind(lambda z: z - z.mean(0))

def ruled_out(z):
    return torch.where(torch.arange(10) == 3, -1e9, z)

def noisy_but_one():
    return Behind(lambda z: ruled_out(F.dropout(z, 0.1)))

def centred_but_one():
    return Behind(lambda z: ruled_out(z - z.mean(0)))

def noisy_by_place():
    return Behind(lambda z: z + torch.randn(512, 10, generator=torch.Generator().manual_seed(0))[:len(z)])

def permuted():
    return Behind(lambda z: z[:, {order}])

def partly_permuted():
    return Behind(lambda z: z[:, {partly}])

def partly_permuted_network():
    return Behind(lambda z: z[:, {partly}], network())

class BeforeGrey(Behind):
    def forward(self, x):
        return super().forward(x / 255)

def grey_levels():
    return BeforeGrey()

def permuted_grey_levels():
    return BeforeGrey(lambda z: z[:, {order}])

class Stubborn(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)

def in_train_mode():
    return nn.Sequential(Stubborn(1), whole())

def own_statistics():
    return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), network())

def untrained():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def constant():
    return Behind(lambda z: z * 0 + torch.arange(10.0))

def losses():
    return Behind(lambda z: -z.log_softmax(1))

class InRange(Behind):
    def forward(self, x):
        assert float(x.min()) >= 0 and float(x.max()) <= 1
        return super().forward(x)

def asserting():
    return InRange()

def asserting_permuted():
    return InRange(lambda z: z[:, {order}])

class OutOfMemory(Behind):
    def forward(self, x):
        if float(x.min()) < 0:
            raise {kind}
        return super().forward(x)

def exhausting():
    return OutOfMemory()

class Gated(Behind):
    def forward(self, x):
        g = torch.sigmoid(x)
        h = x * g
        g.mul_(0.5)
        return super().forward(h)

def gated():
    return Gated()

class Ungrateful(Behind):
    def forward(self, x):
        if x.requires_grad:
            raise ValueError("no gradients here")
        return super().forward(x)

def ungrateful():
    return Ungrateful()

class Detached(Behind):
    def forward(self, x):
        return super().forward(x.detach())

def detached():
    return Detached()

def without_gradients():
    whole_ = whole()
    whole_.forward = torch.no_grad()(whole_.forward)
    return whole_

class OfNumpy(Behind):
    def forward(self, x):
        return super().forward(torch.from_numpy(x.numpy()))

def of_numpy():
    return OfNumpy()
"""

Check = Callable[..., None]


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    split = load_data("digits").test
    return split.gather(torch.arange(len(split)), torch.device("cpu"))


@pytest.fixture
def check(tiny: Path, tmp_path: Path, images: tuple[Tensor, Tensor]) -> Check:
    """Check a run, or a factory of the above; some of the images may be chosen by their indices."""
    path = tmp_path / "nets.py"
    weights = str(tiny / "runs" / "erm1" / "model.safetensors")

    def check(
        name: str,
        normalize: str | None = None,
        some: Tensor | slice = slice(None),
        *,
        differentiate: bool = False,
        kind: str = "MemoryError",
    ) -> None:
        path.write_text(FACTORIES.format(weights=weights, order=ORDER, partly=PARTLY, kind=kind))
        spec = f"{path}:{name}" if name in FACTORIES else name
        (one,) = find_participants(Workspace(tiny), [spec], normalize=normalize, shape=(1, 8, 8), classes=10)
        x, y = images
        check_model(one, one.load(), x[some], y[some], NAMES, differentiate=differentiate)

    return check


def refused(check: Check, *arguments: object, **options: object) -> str:
    with pytest.raises(EvaluationError) as caught:
        check(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def halves(count: int) -> tuple[Tensor, Tensor]:
    """The images that an order of the classes is fitted to, and those that it is judged by."""
    drawn = torch.from_numpy(np.random.default_rng(0).permutation(count))
    return drawn[: (count + 1) // 2], drawn[(count + 1) // 2 :]


def accuracy(tiny: Path, images: tuple[Tensor, Tensor], some: slice | Tensor = slice(None)) -> str:
    x, y = (part[some] for part in images)
    return f"{float((load_model('erm1', tiny)(x).argmax(1) == y).float().mean()) * 100:.1f} %"


# ---- right -----------------------------------------------------------------------------------------------


def test_what_is_right_passes_without_a_word(check: Check, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statistics = load_model("erm1", tiny).normalize
    check("mixup1")
    check("whole")
    check("network", f"{float(statistics.mean)}/{float(statistics.std)}")
    said = [line for line in capsys.readouterr().err.splitlines() if "running your code" not in line]
    assert said == []


# ---- wrong outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nine_classes", "gives 9 logits, but there are 10 classes"),
        ("probabilities", "gives probabilities (nothing outside [0, 1]), which spoil gradients: return logits,"),
        (
            "percent",
            "gives probabilities (nothing below 0, and the same sum, 100, for every image), which spoil gradients",
        ),
        ("rounded_percent", "gives probabilities (nothing below 0, and the same sum, 100, for every image)"),
        ("independent_probabilities", "drop the softmax or sigmoid"),
        ("noisy", "other logits for the same images at every call"),
        ("centred", "gives an image other logits in another batch"),
        # A class that is ruled out is no measure of the others.
        ("noisy_but_one", "other logits for the same images at every call"),
        ("centred_but_one", "gives an image other logits in another batch"),
        ("noisy_by_place", "or at another place of it"),
        ("own_statistics", "its batch norm must keep running statistics"),
        (
            "in_train_mode",
            "network.0 (Stubborn) is in train mode even after .eval(): a train() of its own must",
        ),
    ],
)
def test_wrong_outputs_are_refused_with_the_way_out(check: Check, name: str, expected: str) -> None:
    assert expected in refused(check, name)


def test_logits_that_are_not_finite_are_counted(check: Check, tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    bad = int((load_model("erm1", tiny)(images[0]).argmax(1) == 3).sum())
    assert f"the logits of {bad} of 360 images are NaN or infinite" in refused(check, "overflowing")


def test_network_in_train_mode_is_refused_before_a_pass_changes_it(tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    class Stubborn(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> "Stubborn":
            self.training = True
            return self

    model = nn.Sequential(Stubborn(1), nn.Flatten(), nn.Linear(64, 10))
    (run,) = find_participants(Workspace(tiny), ["erm1"])
    with pytest.raises(EvaluationError, match=r"0 \(Stubborn\)"):
        check_model(run, model, *images, CLASSES)
    assert int(model[0].num_batches_tracked) == 0


def test_outputs_are_checked_without_labels(tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    """A model of one's own in train mode, which it is left in, and whose accuracy nobody asks for."""
    x, _ = images
    model = load_model("erm1", tiny).train()
    model.network.eval()
    modes = [part.training for part in model.modules()]
    model.network.register_forward_hook(lambda _module, _inputs, logits: logits.roll(1, dims=1))
    logits = check_outputs("mine", model, x, 10)
    assert [part.training for part in model.modules()] == modes
    torch.testing.assert_close(logits, load_model("erm1", tiny)(x).roll(1, dims=1))
    with pytest.raises(EvaluationError, match="mine gives 10 logits, but there are 9 classes"):
        check_outputs("mine", model, x, 9)
    with pytest.raises(EvaluationError, match="mine gives probabilities"):
        check_outputs("mine", nn.Sequential(model, nn.Softmax(dim=1)), x, 10)


@pytest.mark.parametrize("few", [1, 2, 4, 360])
@pytest.mark.parametrize(
    "change",
    [
        lambda z: z.relu() + 0.5,
        lambda z: z - z.amin(1, keepdim=True),
        lambda z: z + 1000,
        lambda z: 0.01 * z + 5,
        lambda z: F.softplus(z) + 1,
        lambda z: z.log_softmax(1),
        lambda z: 0 * z + torch.arange(10.0),
        lambda z: 0 * z + 3,
        lambda z: 0 * z + 0.1,
    ],
    ids=[
        "relu",
        "above the least",
        "shifted",
        "hardly trained",
        "softplus",
        "log-softmax",
        "constant",
        "all the same",
        "all a tenth",
    ],
)
def test_logits_above_zero_are_no_probabilities(
    change: Callable[[Tensor], Tensor], few: int, tiny: Path, images: tuple[Tensor, Tensor]
) -> None:
    class Changed(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return change(z)

    faults, _ = output_faults("mine", nn.Sequential(load_model("erm1", tiny), Changed()), images[0][:few], 10)
    assert faults == {}


@pytest.mark.parametrize("few", [2, 4, 360])
@pytest.mark.parametrize("sum_to", [2.0, 100.0, 1e-3])
def test_shares_of_anything_are_probabilities(
    sum_to: float, few: int, tiny: Path, images: tuple[Tensor, Tensor]
) -> None:
    class Shares(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return sum_to * z.softmax(1)

    faults, _ = output_faults("mine", nn.Sequential(load_model("erm1", tiny), Shares()), images[0][:few], 10)
    assert list(faults) == ["probabilities"]


def test_faults_are_had_without_an_error(tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    x, _ = images
    model = load_model("erm1", tiny)
    faults, logits = output_faults("mine", model, x, 10)
    assert faults == {}
    assert logits is not None
    torch.testing.assert_close(logits, model(x))

    class Odd(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return (z - z.mean(0)).softmax(1)

    faults, logits = output_faults("mine", nn.Sequential(model, Odd()), x, 10)
    assert list(faults) == ["batch", "probabilities"]
    assert logits is not None
    faults, logits = output_faults("mine", nn.Sequential(model, nn.Softmax(dim=1)), x, 9)
    assert (list(faults), logits) == (["classes"], None)


def test_images_looked_at_are_spread_over_the_test_set() -> None:
    images = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    x, y = some_images(TensorSplit(images, torch.arange(2000)), torch.device("cpu"))
    assert len(x) == len(y) == 512
    assert (int(y[0]), int(y[-1])) == (0, 1999)
    assert set(y.diff().tolist()) <= {3, 4}
    assert some_images(TensorSplit(images[:7], torch.arange(7)), torch.device("cpu"))[1].tolist() == list(range(7))


# ---- accuracy near chance --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("count", [1, 5, 19, 100])
def test_chance_is_the_exact_binomial_test(classes: int, count: int) -> None:
    p = 1 / classes
    for hits in range(count + 1):
        tail = sum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(hits, count + 1))
        assert above_chance(torch.arange(count) < hits, classes) == (tail < 0.01)


@pytest.mark.parametrize(
    ("right", "count", "classes", "warned"),
    [
        (0, 1, 10, False),
        (1, 1, 10, False),
        (0, 5, 10, False),
        (0, 6, 10, True),
        (2, 6, 2, False),
        (6, 6, 2, False),
        (6, 60, 10, True),
        (13, 60, 10, False),
        (200, 400, 2, True),
        (230, 400, 2, False),
        (0, 4, 1000, False),
        (0, 60, 1000, True),
    ],
)
def test_chance_is_warned_of_where_the_examples_can_tell(
    right: int, count: int, classes: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_chance("mine", torch.arange(count) < right, classes)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: mine: accuracy {100 * right / count:.1f} % on {count} ex") if warned else not said


def test_missing_normalisation_is_found(check: Check, tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    text = refused(check, "grey_levels")
    assert "on 360 images is chance (10 classes); with --normalize 0/0.00392157 it is" in text
    assert text.endswith(accuracy(tiny, images))


def test_normalisation_twice_is_found(check: Check, tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    text = refused(check, "whole", "0.9/0.1")
    assert "is chance" in text
    assert text.endswith(f"with --normalize none it is {accuracy(tiny, images)}")


def test_other_order_of_the_classes_is_found(check: Check, tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    text = refused(check, "permuted")
    assert "--normalize" not in text
    assert "in another order than the data's: its outputs are 0 'digit 3', 1 'digit 0', 2 'digit 1', ..." in text
    back = [ORDER.index(label) for label in range(10)]
    assert text.endswith(
        f"with its outputs reordered it is {accuracy(tiny, images, halves(360)[1])}: return logits[:, {back}]"
    )


def test_other_order_and_missing_normalisation_are_found_together(check: Check) -> None:
    text = refused(check, "permuted_grey_levels")
    assert "its outputs are 0 'digit 3', 1 'digit 0', 2 'digit 1'" in text
    assert "with --normalize 0/0.00392157 and its outputs reordered it is" in text


@pytest.mark.parametrize("name", ["untrained", "constant"])
def test_what_nothing_restores_is_said_so(check: Check, name: str) -> None:
    text = refused(check, name)
    assert "no usual normalisation and no other order of its classes restores it: is it trained" in text


def test_a_single_class_is_no_evidence_of_another_order(check: Check, images: tuple[Tensor, Tensor]) -> None:
    ones = (images[1] == 1).nonzero().flatten()
    assert "no other order of its classes restores it" in refused(check, "constant", None, ones)


def test_few_images_leave_it_to_the_test(check: Check, tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    right = load_model("erm1", tiny)(images[0]).argmax(1) == images[1]
    hits = right.nonzero().flatten()
    # The first of its class each, so that none is the most frequent.
    each = torch.stack([hits[images[1][hits] == label][0] for label in range(4)])
    check("whole", None, each)
    assert "accuracy 100.0 % on 3 images is chance" in refused(check, "whole", None, each[:3])
    assert "accuracy 100.0 % on 1 images is chance" in refused(check, "whole", None, hits[:1])


@pytest.mark.parametrize("frequent", [0.5, 0.9])
def test_always_the_most_frequent_class_is_chance(frequent: float, judge: Check) -> None:
    """However far it is above 1/K."""
    draws = np.random.default_rng(0)
    y = torch.from_numpy(np.where(draws.random(512) < frequent, 3, draws.integers(10, size=512)))
    share = f"{100 * float((y == 3).float().mean()):.1f} %"
    text = refused(judge, torch.full((512,), 3), y, numbered(10))
    assert text.startswith(f"timm:looked: accuracy {share} on 512 images is chance ({share} of them are '3'); ")
    assert above_chance(torch.arange(100) < 40, 10)
    assert not above_chance(torch.arange(100) < 40, 10, torch.arange(100).clamp(max=3))


def test_better_than_always_the_most_frequent_class_passes(judge: Check, capsys: pytest.CaptureFixture[str]) -> None:
    y = torch.from_numpy(np.where(np.arange(512) % 2, 3, np.arange(512) % 10))
    judge(torch.where(torch.arange(512) < 300, y, 3), y, numbered(10))
    assert capsys.readouterr().err == ""


def test_losses_are_told_from_another_order(check: Check, tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    text = refused(check, "losses")
    assert "order" not in text
    assert text.endswith(
        f"is chance (10 classes); with the class of the smallest output it is {accuracy(tiny, images)}: does it return "
        "losses or distances? Return their negative"
    )


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_what_restores_more_is_told_of_sign_and_order(classes: int, images: tuple[Tensor, Tensor]) -> None:
    y = torch.from_numpy(np.random.default_rng(0).integers(classes, size=400))
    shifted, wrong = (y + 1) % classes, (torch.arange(400) % 20) == 0
    for least, order in ((y, shifted), (torch.where(wrong, shifted, y), torch.where(wrong, y, shifted)), (y, y * 0)):
        said = way_out("mine", {AS_IT_IS: order}, y, numbered(classes), least)
        assert ("Return their negative" in said) == (classes > 2), said
    worse = torch.where(wrong, shifted, y)
    assert "return logits[:" in way_out("mine", {AS_IT_IS: shifted}, y, numbered(classes), worse)


@pytest.mark.parametrize("name", ["asserting", "asserting_permuted"])
def test_normalisation_that_a_network_refuses_is_no_remedy(
    name: str, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "asserting":
        check(name)
        assert "warning" not in capsys.readouterr().err
    else:
        assert "with its outputs reordered it is" in refused(check, name)


@pytest.mark.parametrize(
    "kind", ["MemoryError", "torch.OutOfMemoryError('x')", 'RuntimeError("can\'t allocate memory")']
)
def test_memory_that_runs_out_behind_a_normalisation_is_not_passed_over(kind: str, check: Check) -> None:
    with pytest.raises((MemoryError, RuntimeError)):
        check("exhausting", kind=kind)


def test_run_near_chance_may_be_undertrained(
    tiny: Path, images: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = find_participants(Workspace(tiny), ["erm1"])
    model = load_model("erm1", tiny)
    model.network.register_forward_hook(lambda _module, _inputs, logits: logits.roll(1, dims=1))
    check_model(run, model, *images, CLASSES)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: erm1: accuracy ")
    assert line.endswith(" on 360 images is chance (10 classes): has it been trained for long enough?")


# ---- another order of the classes, above chance ----------------------------------------------------------


class Looked(nn.Module):
    """Logits by number: the image of number k holds the pixel k / 1024."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.get_buffer("logits")[(x[:, 0, 0, 0] * 1024).round().long()]
        return logits


@pytest.fixture
def judge(tiny: Path) -> Check:
    """Check a model of another library's that predicts some classes of as many images as there are labels."""
    (run,) = find_participants(Workspace(tiny), ["erm1"])
    one = replace(run, name="timm:looked", run=None)

    def judge(predicted: Tensor, y: Tensor, names: tuple[str, ...]) -> None:
        logits = torch.randn(len(y), len(names), generator=torch.Generator().manual_seed(0))
        logits[torch.arange(len(y)), predicted] += 20
        check_model(one, Looked(logits), torch.arange(len(y)).view(-1, 1, 1, 1) / 1024, y, names)

    return judge


def numbered(classes: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(classes))


def test_order_with_two_classes_in_place_is_refused_above_chance(
    check: Check, tiny: Path, images: tuple[Tensor, Tensor]
) -> None:
    text = refused(check, "partly_permuted")
    assert "chance" not in text
    back = [PARTLY.index(label) for label in range(10)]
    assert (
        "on 360 images; its classes are in another order than the data's: its outputs are 0 'digit 0', 1 'digit 1', "
        f"2 'digit 3', ...; with its outputs reordered it is {accuracy(tiny, images, halves(360)[1])}: return "
        f"logits[:, {back}]"
    ) in text


def test_order_and_normalisation_are_found_together_above_chance(check: Check, images: tuple[Tensor, Tensor]) -> None:
    x = images[0]
    text = refused(check, "partly_permuted_network", "0.2/0.6")
    assert "chance" not in text
    assert f"with --normalize {float(x.mean()):.4f}/{float(x.std()):.4f} and its outputs reordered it is" in text


def test_runs_classes_are_in_the_order_that_it_was_trained_in(
    tiny: Path, images: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = find_participants(Workspace(tiny), ["erm1"])
    model = load_model("erm1", tiny)
    model.network.register_forward_hook(lambda _module, _inputs, logits: logits[:, PARTLY])
    check_model(run, model, *images, CLASSES)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("classes", [30, 100])
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_order_of_the_folders_names_is_refused(classes: int, share: float, judge: Check) -> None:
    names = numbered(classes)
    folders = torch.tensor([sorted(names).index(name) for name in names])
    for seed in range(10):
        draws = np.random.default_rng(seed)
        y = torch.from_numpy(draws.integers(classes, size=512))
        known = np.where(draws.random(512) < share, y, draws.integers(classes, size=512))
        text = refused(judge, folders[torch.from_numpy(known)], y, names)
        assert text.startswith("timm:looked: accuracy ")
        # Of few images a class, some wrong, not each output's class is found.
        outputs = "0 '0', 1 '1', 2 '10', ...;" if share == 1 else ""
        assert f"its classes are in another order than the data's: its outputs are {outputs}" in text
        assert "return logits" not in text
        assert text.endswith("reordered it is 100.0 %") == (share == 1)


def test_outputs_of_classes_that_do_not_occur_stay_in_place(judge: Check) -> None:
    for seed in range(10):
        draws = np.random.default_rng(seed)
        occurring = draws.permutation(20)[:8]
        behind = np.arange(20)
        behind[occurring] = np.roll(occurring, 1)
        y = torch.from_numpy(draws.choice(occurring, size=300))
        text = refused(judge, torch.from_numpy(behind)[y], y, numbered(20))
        assert text.endswith(f"return logits[:, {behind.tolist()}]")


def test_labels_in_a_cycle_show_another_order(judge: Check) -> None:
    for classes in (2, 4, 10):
        y = torch.arange(360) % classes
        swapped = refused(judge, (y + 1) % classes, y, numbered(classes))
        assert f"return logits[:, {[*range(1, classes), 0]}]" in swapped
        assert "reordered it is 100.0 %" in swapped


@pytest.mark.parametrize(
    ("gained", "lost", "normalisations", "told"),
    [(7, 0, 1, True), (6, 0, 1, False), (12, 2, 1, True), (11, 2, 1, False), (7, 0, 2, False), (8, 0, 2, True)],
)
def test_order_must_be_significantly_better(gained: int, lost: int, normalisations: int, told: bool) -> None:
    """Exactly: 2^-7 < 1 % < 2^-6, and (1 + 14 + 91) / 2^14 < 1 % < (1 + 13 + 78) / 2^13, shared by what is tried."""
    fit, held = halves(200)
    y, predicted = torch.full((200,), 2), torch.full((200,), 2)
    y[fit[:80]] = torch.tensor([0, 1]).repeat(40)
    predicted[fit[:80]] = 1 - y[fit[:80]]
    y[held[: gained + lost]] = 0
    predicted[held[: gained + lost]] = (torch.arange(gained + lost) < gained).long()
    assert len(fit) == len(held) == 100
    y[held[50:]] = predicted[held[50:]] = 3
    y[fit[90:]] = predicted[fit[90:]] = 3
    tried = {"0.5/0.5" if place else AS_IT_IS: predicted for place in range(normalisations)}
    text = other_order("mine", tried, y, numbered(4))
    assert ("in another order" in text) == told
    assert bool(text) == told


def test_order_that_restores_too_little_is_not_told(judge: Check, capsys: pytest.CaptureFixture[str]) -> None:
    """A third of the images right in another order, significantly more than as it is, may be chance confusion."""
    order = torch.tensor([0, 1, 2, 3, 4, 5, 7, 6, 9, 8])
    for seed in range(20):
        draws = np.random.default_rng(seed)
        y = torch.from_numpy(draws.integers(10, size=512))
        known = torch.from_numpy(np.where(draws.random(512) < 0.25, y, draws.integers(10, size=512)))
        judge(order[known], y, numbered(10))
    assert capsys.readouterr().err == ""


def test_order_that_mends_few_of_the_errors_is_not_told(judge: Check, capsys: pytest.CaptureFixture[str]) -> None:
    """As of flipped digits: two classes look like each other, and most errors are of other kinds."""
    order = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    for seed in range(20):
        draws = np.random.default_rng(seed)
        y = torch.from_numpy(draws.integers(10, size=512))
        alike = (y < 2) & torch.from_numpy(draws.random(512) < 0.75)
        known = torch.from_numpy(np.where(draws.random(512) < 0.4, y, draws.integers(10, size=512)))
        judge(torch.where(alike, order[y], torch.where(y < 2, y, known)), y, numbered(10))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("preferred", [None, 1, 3])
@pytest.mark.parametrize("balanced", [True, False])
def test_honest_models_pass_without_a_word(
    classes: int, share: float, preferred: int | None, balanced: bool, judge: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors scattered over all classes, or drawn towards a few that the model always prefers."""
    often = np.full(classes, 1 / classes) if balanced else np.linspace(1, 5, classes) / np.linspace(1, 5, classes).sum()
    for seed in range(40):
        draws = np.random.default_rng(seed)
        y = draws.choice(classes, size=512, p=often)
        wrong = draws.integers(preferred or classes, size=512)
        predicted = np.where(draws.random(512) < share, y, wrong)
        judge(torch.from_numpy(predicted), torch.from_numpy(y), numbered(classes))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["whole", "permuted", "partly_permuted", "grey_levels"])
def test_images_are_looked_at_once_behind_each_normalisation(
    name: str, check: Check, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(self: Wrapped, x: Tensor) -> Tensor:
        seen.append(len(x))
        return logits(self, x)

    logits = Wrapped.logits
    monkeypatch.setattr(Wrapped, "logits", counted)
    with suppress(EvaluationError):
        check(name)
    first = 2  # as the factory is opened
    outputs = 64 + 64 + 2 + 360
    assert sum(seen) == first + outputs + 360 * len(("0.5/0.5", "0/0.00392157", "their own"))


def test_audit_fails_what_is_refused_and_passes_what_is_right(tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    model = load_model("erm1", tiny)
    found = {
        order: look_at_accuracy("mine", nn.Sequential(model, Chosen(list(order))), *images, NAMES)
        for order in (tuple(range(10)), tuple(PARTLY), tuple(ORDER))
    }
    right, partly, wrong = found.values()
    assert (right.outcome, partly.outcome, wrong.outcome) == (Fact("pass"), Fact("fail"), Fact("fail"))
    assert "on 360 images; its classes are in another order" in partly.measured
    assert "on 360 images, chance; its classes are in another order" in wrong.measured
    x, y = (part[(images[1] == 3) | (torch.arange(360) % 4 == 0)] for part in images)
    always = look_at_accuracy("mine", Always(3), x, y, NAMES)
    assert always.outcome == Fact("fail")
    assert float((y == 3).float().mean()) > 0.25, "more than one in ten"


class Always(nn.Module):
    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(10)[self.label].expand(len(x), 10)


class Chosen(nn.Module):
    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, z: Tensor) -> Tensor:
        return z[:, self.order]


# ---- gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "gated",
            "cannot be attacked: the model changes its input, or what a gradient needs, in place: let it work",
        ),
        ("ungrateful", "failed on 2 images [1, 8, 8], with a gradient, in line 129: ValueError: no gradients here"),
        ("detached", "the model's output has no gradient with respect to its input: it runs under no_grad, detaches"),
        ("without_gradients", "the model's output has no gradient with respect to its input: it runs under no_grad,"),
        ("of_numpy", "RuntimeError: Can't call numpy() on Tensor that requires grad."),
    ],
)
def test_network_without_a_gradient_is_refused_where_one_is_followed(check: Check, name: str, expected: str) -> None:
    text = refused(check, name, differentiate=True)
    assert f":{name} cannot be attacked: " in text
    assert expected in text
    check(name)


def test_gradient_is_looked_at_on_two_images_and_leaves_nothing(
    check: Check, tiny: Path, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(self: Wrapped, x: Tensor) -> Tensor:
        seen.extend([len(x)] * x.requires_grad)
        return forward(self, x)

    forward = Wrapped.forward
    monkeypatch.setattr(Wrapped, "forward", counted)
    check("whole", differentiate=True)
    assert seen == [2]
    model = load_model("erm1", tiny)
    check_gradient("mine", model, images[0][:2], images[1][:2])
    assert all(one.grad is None for one in model.parameters())
    assert images[0].grad is None


# ---- a better normalisation ------------------------------------------------------------------------------


def test_better_normalisation_is_a_warning(
    check: Check, tiny: Path, images: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = images
    check("network", "0.5/0.5")
    line = capsys.readouterr().err.splitlines()[-1]
    network = load_model("erm1", tiny).network
    before = float((network((x - 0.5) / 0.5).argmax(1) == y).float().mean())
    statistics = f"{float(x.mean()):.4f}/{float(x.std()):.4f}"
    assert f"accuracy {before * 100:.1f} % on 360 images; with --normalize {statistics} it would be" in line
    assert F.cross_entropy(network((x - x.mean()) / x.std()), y) < F.cross_entropy(network((x - 0.5) / 0.5), y)


def predicted_by(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {AS_IT_IS: model(x).argmax(dim=1)} | predictions(model, x)


def test_predictions_are_those_behind_each_other_normalisation(tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    x, _ = images
    network = load_model("erm1", tiny).network
    own = f"{float(x.mean()):.4f}/{float(x.std()):.4f}"
    found = predictions(Wrapped("mine", nn.Identity(), Normalize(1), network), x)
    assert list(found) == ["0.5/0.5", "0/0.00392157", own]
    mean, std = map(float, own.split("/"))
    assert torch.equal(found[own], network((x - mean) / std).argmax(1))
    assert predictions(network, x) == {}


def test_what_nothing_is_known_of_has_no_other_normalisation(tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    predicted = {AS_IT_IS: torch.zeros(360, dtype=torch.int64)}
    assert better_normalization("mine", predicted, images[1]) == ""
    assert way_out("mine", predicted, images[1], NAMES).startswith("no other order of its classes restores it")


def test_model_of_ones_own_is_told_the_normalisation_alone(tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    model = Wrapped("mine", nn.Identity(), Normalize(1), load_model("erm1", tiny))
    x, y = images
    assert better_normalization("mine", predicted_by(model, x), y) == ""
    text = better_normalization("mine", predicted_by(model.normalized(((0.5,), (0.5,))), x), y)
    assert text == f"behind the normalisation none it would be {accuracy(tiny, images)}"


def test_another_librarys_model_is_told_to_become_a_factory(
    tiny: Path, images: tuple[Tensor, Tensor], check: Check
) -> None:
    """Its own metadata say how to normalise, so that only code can say otherwise."""
    (run,) = find_participants(Workspace(tiny), ["erm1"])
    foreign = replace(run, name="timm:digits", run=None)
    network = nn.Sequential(load_model("erm1", tiny))
    model = Wrapped(foreign.name, nn.Identity(), Normalize(1), network).normalized(((0.9,), (0.1,)))
    with pytest.raises(EvaluationError, match=r"put into a FILE\.py:FACTORY with --normalize none it is"):
        check_model(foreign, model, *images, CLASSES)


def test_another_librarys_model_above_chance_is_trusted_in_its_normalisation(
    tiny: Path, images: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = find_participants(Workspace(tiny), ["erm1"])
    network = load_model("erm1", tiny).network
    model = Wrapped("timm:digits", nn.Identity(), Normalize(1), network).normalized(((0.5,), (0.5,)))
    check_model(replace(run, name="timm:digits", run=None), model, *images, CLASSES)
    assert capsys.readouterr().err == ""
