"""What is wrong with other people's models is refused, with the way out; what is right passes without a word."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix.checkpoints import load_model
from robustmix.data import TensorSplit, load_data
from robustmix.errors import EvaluationError
from robustmix.models.classifier import Normalize
from robustmix.outputs import check_outputs, output_faults
from robustmix.participants import find_participants
from robustmix.sanity import above_chance, better_normalization, check_model, some_images, warn_of_chance
from robustmix.store.workspace import Workspace
from robustmix.zoo import Wrapped

CLASSES = tuple("0123456789")
NAMES = tuple(f"digit {name}" for name in CLASSES)
# Output k of the permuted network is the class ORDER[k].
ORDER = [3, 0, 1, 2, 7, 4, 5, 6, 9, 8]

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

def permuted():
    return Behind(lambda z: z[:, {order}])

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
    path.write_text(FACTORIES.format(weights=str(tiny / "runs" / "erm1" / "model.safetensors"), order=ORDER))

    def check(name: str, normalize: str | None = None, some: Tensor | slice = slice(None)) -> None:
        spec = f"{path}:{name}" if name in FACTORIES else name
        (one,) = find_participants(Workspace(tiny), [spec], normalize=normalize, shape=(1, 8, 8), classes=10)
        x, y = images
        check_model(one, one.load(), x[some], y[some], NAMES)

    return check


def refused(check: Check, *arguments: object) -> str:
    with pytest.raises(EvaluationError) as caught:
        check(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def accuracy(tiny: Path, images: tuple[Tensor, Tensor], some: slice = slice(None)) -> str:
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
        ("own_statistics", "its batch norm must keep running statistics"),
        (
            "in_train_mode",
            "network.0 (Stubborn) is in train mode even after .eval(): its train() must",
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
    ],
    ids=["relu", "above the least", "shifted", "hardly trained", "softplus", "log-softmax", "constant", "all the same"],
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
        f"with its outputs reordered it is {accuracy(tiny, images, slice(1, None, 2))}: return logits[:, {back}]"
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
    check("whole", None, hits[:3])
    assert "accuracy 100.0 % on 1 images is chance" in refused(check, "whole", None, hits[:1])


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


def test_model_of_ones_own_is_told_the_normalisation_alone(tiny: Path, images: tuple[Tensor, Tensor]) -> None:
    model = Wrapped("mine", nn.Identity(), Normalize(1), load_model("erm1", tiny))
    assert better_normalization("mine", model, *images) == ""
    text = better_normalization("mine", model.normalized(((0.5,), (0.5,))), *images)
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
