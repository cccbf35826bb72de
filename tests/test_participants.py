"""Anybody's model: loaded by its own library's code, fitted to the pixels, told apart, and refused in one line."""

import json
import os
import pickle
import shutil
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmix import progress
from robustmix.checkpoints import load_model
from robustmix.data import load_data
from robustmix.errors import CheckpointError, EvaluationError, RobustmixError, SpecError
from robustmix.participants import Participant, find_participants
from robustmix.sanity import check_model, some_images
from robustmix.store.runs import finished_run
from robustmix.store.workspace import Workspace
from robustmix.zoo import parse_normalize

DIGITS = (1, 8, 8)
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TIMM = "test_resnet.r160_in1k"

FACTORIES = """
from pathlib import Path
from torch import nn
from robustmix.checkpoints import read_model

def network():
    return read_model(Path({weights!r})).network

class Linear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        nn.init.eye_(self[1].weight), nn.init.zeros_(self[1].bias)

ready = Linear()

def as_linear():
    return Linear()

def unseeded():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def half_precision():
    return Linear().double().half()

def pair():
    return Linear(), None

class Labelled(Linear):
    def forward(self, x):
        return {{"logits": super().forward(x)}}

def talks():
    print("hello")
    return Linear()

def fails():
    raise KeyError("fc.weight\\nand more")

def leaves():
    raise SystemExit("usage: train.py")
"""


@pytest.fixture
def place(tiny: Path) -> Workspace:
    return Workspace(tiny)


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES.format(weights=str(tiny / "runs" / "erm1" / "model.safetensors")))
    return path


def only(place: Workspace, spec: str, **options: Any) -> Participant:
    (one,) = find_participants(place, [spec], **options)
    return one


def refused(kind: type[RobustmixError], place: Workspace, *specs: str, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        find_participants(place, specs, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- runs ------------------------------------------------------------------------------------------------


def test_run_takes_part_as_it_is(place: Workspace) -> None:
    run, one = finished_run(place, "mixup2"), only(place, "mixup2")
    assert (one.name, one.digest, one.weights) == ("mixup2", run.weights, run.weights)
    assert (one.method, one.group, one.seed) == ("mixup", "mixup", 2)
    assert (one.classes, one.shape) == (tuple("0123456789"), DIGITS)
    assert one.run is not None
    x = torch.rand(4, *DIGITS)
    assert torch.equal(one.load()(x), load_model("mixup2", place.root)(x))


def test_patterns_select_each_once_in_their_order(place: Workspace, file: Path) -> None:
    spec = f"{file}:ready"
    found = find_participants(place, ["mixup*", spec, "erm2", "mixup1", spec, "*"], shape=DIGITS)
    assert [one.name for one in found] == ["mixup1", "mixup2", spec, "erm2", "erm1"]
    assert len(set(found)) == 5


def test_unknown_run_and_kind_name_the_choices(place: Workspace) -> None:
    assert "did you mean 'erm1'" in refused(SpecError, place, "erm11")
    for spec in ("torchhub:resnet18", "timm:", "nets.txt:build"):
        text = refused(SpecError, place, spec)
        assert repr(spec) in text
        assert "torchvision:NAME, timm:NAME, hf-hub:REPO, FILE.py:FACTORY" in text


# ---- the user's own code ---------------------------------------------------------------------------------


def test_factory_with_its_normalisation_is_the_run_it_was_taken_from(place: Workspace, file: Path) -> None:
    model = load_model("erm1", place.root)
    mean, std = float(model.normalize.mean), float(model.normalize.std)
    one = only(place, f"{file}:network", normalize=f"{mean!r}/{std!r}", shape=DIGITS)
    x = torch.rand(16, *DIGITS)
    made = one.load()
    assert torch.equal(made(x), model(x))
    assert not torch.allclose(only(place, f"{file}:network", shape=DIGITS).load()(x), model(x))
    assert not any(part.training for part in made.modules())
    weight = next(weight for weight in made.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert (one.name, one.classes, one.shape, one.run) == (f"{file}:network", 10, DIGITS, None)
    assert (one.method, one.group, one.seed) == (None, one.name, None)


def test_that_code_runs_is_said_and_what_it_prints_stays_out_of_the_output(
    place: Workspace, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(place, f"{file}:talks", shape=DIGITS)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"running your code in {file}" in printed.err
    assert "hello" in printed.err


# Their features have one value per channel and image, which torch refuses to normalise by a single image.
BATCH_NORMS = """
import torch
from torch import nn

class Stubborn(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)

class Stubborn2d(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)

torch.manual_seed(0)

def linear():
    return nn.Linear(64, 10)

one = nn.Sequential(nn.Flatten(), linear(), Stubborn(10))
pooled = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), Stubborn2d(10), nn.Flatten())
own = nn.Sequential(nn.Flatten(), linear(), nn.BatchNorm1d(10, track_running_stats=False))
own_pooled = nn.Sequential(
    nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(10, track_running_stats=False), nn.Flatten()
)
"""


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one", "network.2 (Stubborn) is in train mode even after .eval(): a train() of its own must call super()"),
        (
            "pooled",
            "network.2 (Stubborn2d) is in train mode even after .eval(): a train() of its own must call super()",
        ),
        ("own", "its batch norm must keep running statistics and use them in eval mode"),
        ("own_pooled", "its batch norm must keep running statistics and use them in eval mode"),
    ],
)
def test_batch_norm_that_needs_a_batch_is_left_to_the_look_at_the_model(
    place: Workspace, tmp_path: Path, name: str, classes: int | None, expected: str
) -> None:
    """Not even counting its outputs changes it: these networks are the same object every time."""
    path = tmp_path / "nets.py"
    path.write_text(BATCH_NORMS)
    one = only(place, f"{path}:{name}", shape=DIGITS, classes=classes)
    assert one.classes == 10
    x, y = some_images(load_data("digits").test, torch.device("cpu"))
    with pytest.raises(EvaluationError) as caught:
        check_model(one, one.load(), x, y, tuple("0123456789"))
    assert expected in str(caught.value)


@pytest.mark.usefixtures("_interpreter")
def test_import_inside_a_network_in_train_mode_is_one_line(place: Workspace, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("factor = 3\n")
    late = """
class Late(nn.Sequential):
    def forward(self, x):
        import beside
        return super().forward(x)

late = Late(*one)
"""
    (tmp_path / "nets.py").write_text(BATCH_NORMS + late)
    text = refused(SpecError, place, f"{tmp_path / 'nets.py'}:late", shape=DIGITS, classes=10)
    assert "imports beside when it is called: import it at the top of the file" in text


def test_number_of_classes_is_given_or_found_with_black_images(place: Workspace, file: Path) -> None:
    assert only(place, f"{file}:ready", classes=7).classes == 7
    assert only(place, f"{file}:ready", shape=(4, 4, 4)).classes == 10
    assert "classes" in refused(SpecError, place, f"{file}:ready")
    assert "[3, 8, 8]: RuntimeError: mat1" in refused(SpecError, place, f"{file}:ready", shape=(3, 8, 8))


def test_class_function_and_module_are_factories(place: Workspace, file: Path) -> None:
    x = torch.rand(2, *DIGITS)
    for name in ("ready", "Linear", "as_linear", "half_precision"):
        model = only(place, f"{file}:{name}", shape=DIGITS).load()
        assert torch.equal(model(x), x.flatten(1)[:, :10])


# Multiplies by what `beside`, which lies beside it, says.
SCALED = """
from torch import nn
{top}
class Scaled(nn.Flatten):
    def forward(self, x):
        {called}
        return super().forward(x) * beside.factor
def net():
    {made}
    return Scaled()
"""
EMPTY = {"top": "pass", "made": "pass", "called": "pass"}
IMPORTS = [
    "import beside",
    "from pack import deep as beside",
    "import sys, os; sys.path.insert(0, os.path.dirname(__file__) + '/src'); import below as beside",
]


@pytest.fixture
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: modules are cached as bytecode; what their code does to the path ends with the test."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def scaled(folder: Path, factor: int, **where: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "beside.py").write_text(f"factor = {factor}\n")
    (folder / "src").mkdir(exist_ok=True)
    (folder / "src" / "below.py").write_text(f"factor = {factor}\n")
    (folder / "pack").mkdir(exist_ok=True)
    (folder / "pack" / "deep.py").write_text(f"factor = {factor}\n")
    (folder / "net.py").write_text(SCALED.format(**{**EMPTY, **(where or {"top": "import beside"})}))
    return f"{folder / 'net.py'}:net"


@pytest.mark.usefixtures("_interpreter")
@pytest.mark.parametrize("where", [{"top": "import beside"}, {"made": "global beside; import beside"}])
def test_code_may_import_what_lies_beside_it(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: dict[str, str]
) -> None:
    scaled(tmp_path, 3, **where)
    monkeypatch.chdir(tmp_path)
    path, modules, files = list(sys.path), set(sys.modules), set(os.listdir())
    one = only(place, "net.py:net", shape=DIGITS)
    x = torch.rand(2, *DIGITS)
    assert torch.equal(one.load()(x), x.flatten(1) * 3)
    assert (sys.path, set(os.listdir()), sys.dont_write_bytecode) == (path, files, False)
    assert all(name.startswith("_robustmix_") for name in sys.modules.keys() - modules)


@pytest.mark.usefixtures("_interpreter")
@pytest.mark.parametrize("top", IMPORTS)
def test_modules_of_the_same_name_are_each_folders_own(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: str
) -> None:
    mine = ModuleType("beside")
    mine.__file__ = str(tmp_path / "elsewhere" / "beside.py")
    monkeypatch.setitem(sys.modules, "beside", mine)
    specs = [scaled(tmp_path / "a", 3, top=top), scaled(tmp_path / "b", 5, top=top)]
    found = find_participants(place, specs, shape=DIGITS)
    x = torch.rand(2, *DIGITS)
    for one, factor in zip(found, (3, 5), strict=True):
        assert torch.equal(one.load()(x), x.flatten(1) * factor)
    assert sys.modules["beside"] is mine


@pytest.mark.usefixtures("_interpreter")
@pytest.mark.parametrize("top", IMPORTS)
def test_changed_neighbour_is_another_model(place: Workspace, tmp_path: Path, top: str) -> None:
    folder = tmp_path / "a"
    digests = [only(place, scaled(folder, factor, top=top), shape=DIGITS).digest for factor in (3, 5, 3)]
    assert digests[0] == digests[2] != digests[1]
    assert only(place, scaled(tmp_path / "moved", 3, top=top), shape=DIGITS).digest == digests[0]
    (folder / "unused.py").write_text("factor = 7\n")
    assert only(place, scaled(folder, 3, top=top), shape=DIGITS).digest == digests[0]


def test_neighbours_stay_the_same_modules_until_the_model_is_loaded(place: Workspace, tmp_path: Path) -> None:
    top = "import beside as first"
    made = "global beside; import beside; assert beside is first"
    one = only(place, scaled(tmp_path, 3, top=top, made=made), shape=DIGITS)
    (tmp_path / "beside.py").write_text("factor = 5\n")
    x = torch.rand(2, *DIGITS)
    assert torch.equal(one.load()(x), x.flatten(1) * 3)


@pytest.mark.usefixtures("_interpreter")
@pytest.mark.parametrize(("top", "called"), [("pass", IMPORTS[0]), (IMPORTS[0], IMPORTS[0]), (IMPORTS[1], IMPORTS[1])])
def test_import_inside_forward_is_one_line(place: Workspace, tmp_path: Path, top: str, called: str) -> None:
    """Whether the folder's module has been imported before, or another folder offers one of that name."""
    scaled(tmp_path / "other", 5)
    spec = scaled(tmp_path / "a", 3, top=top, called=called)
    for _ in range(2):
        text = refused(SpecError, place, spec, shape=DIGITS)
        assert text.startswith(
            f"{spec} imports {called.split()[1]} when it is called: import it at the top of the file"
        )
        sys.path.insert(0, str(tmp_path / "other"))


def test_installed_packages_in_the_folder_are_not_the_users_code(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "env" / "lib" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.syspath_prepend(installed)
    spec = scaled(tmp_path, 1, top="import installed_somewhere as beside")
    digests = []
    for version in (3, 5):
        (installed / "installed_somewhere.py").write_text(f"factor = 1\nversion = {version}\n")
        digests.append(only(place, spec, shape=DIGITS).digest)
        module = sys.modules.pop("installed_somewhere")
        assert module.version == version
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fails", "failed in line 37: KeyError: 'fc.weight\\nand more'"),
        ("leaves", "failed in line 40: SystemExit: usage: train.py"),
        ("pair", "returns tuple, not a torch.nn.Module"),
        ("Labelled", "returns dict, not logits [B, K]"),
        ("networks", "unknown factory 'networks' (did you mean 'network'?); choose from Labelled, Linear, as_linear"),
        ("__name__", "unknown factory '__name__'"),
    ],
)
def test_factory_that_makes_no_model_is_one_line(place: Workspace, file: Path, name: str, expected: str) -> None:
    assert expected in refused(RobustmixError, place, f"{file}:{name}", shape=DIGITS)


FAILING = """
import torch
from torch import nn

class Linear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        nn.init.eye_(self[1].weight), nn.init.zeros_(self[1].bias)

class Buffered(Linear):
    def forward(self, x):
        buffer = torch.zeros(128, 10)
        return super().forward(x) + buffer[:len(x)]

class Ungrateful(Linear):
    def forward(self, x):
        assert not x.requires_grad, "no gradients here\\nat all"
        return super().forward(x)

class Leaving(Linear):
    def forward(self, x):
        if len(x) > 128:
            raise SystemExit("too many")
        return super().forward(x)

class Greedy(Linear):
    def forward(self, x):
        if len(x) > 128:
            raise torch.OutOfMemoryError("as on a GPU")
        return super().forward(x)

class Talking(Linear):
    def forward(self, x):
        print("hello")
        return super().forward(x)
"""


@pytest.mark.parametrize(
    ("name", "count", "slope", "expected"),
    [
        (
            "Buffered",
            129,
            False,
            "129 images [1, 8, 8] in line 13: RuntimeError: The size of tensor a (129)",
        ),
        (
            "Ungrateful",
            2,
            True,
            "2 images [1, 8, 8], with a gradient, in line 17: AssertionError: no gradients here",
        ),
        ("Leaving", 200, False, "200 images [1, 8, 8] in line 23: SystemExit: too many"),
    ],
)
def test_forward_pass_that_fails_later_is_one_line(
    place: Workspace, file: Path, name: str, count: int, slope: bool, expected: str
) -> None:
    file.write_text(FAILING)
    spec = f"{file}:{name}"
    model = only(place, spec, shape=DIGITS).load()
    x = torch.rand(2, *DIGITS)
    assert torch.equal(model(x), x.flatten(1)[:, :10])
    with pytest.raises(EvaluationError) as caught:
        model(torch.rand(count, *DIGITS).requires_grad_(slope))
    text = str(caught.value)
    assert text.startswith(f"{spec} failed on {expected}")
    assert "\n" not in text


def test_memory_that_a_forward_pass_exhausts_is_no_failure_of_it(place: Workspace, file: Path) -> None:
    file.write_text(FAILING)
    model = only(place, f"{file}:Greedy", shape=DIGITS).load()
    with pytest.raises(torch.OutOfMemoryError, match="as on a GPU"):
        model(torch.rand(129, *DIGITS))


def test_what_a_forward_pass_prints_stays_out_of_the_output(
    place: Workspace, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FAILING)
    one = only(place, f"{file}:Talking", shape=DIGITS)
    for step in (one.load, lambda: one.load()(torch.rand(2, *DIGITS))):
        capsys.readouterr()
        step()
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "hello" in printed.err


def test_file_without_its_factory_says_how_code_is_named(place: Workspace, file: Path) -> None:
    assert f"named FILE.py:FACTORY, as {file}:FACTORY" in refused(SpecError, place, str(file))
    file.write_text("raise KeyError")
    assert refused(SpecError, place, f"{file}:") == f"'{file}:' names no factory: write {file}:FACTORY"


def test_file_that_cannot_be_run_is_one_line(place: Workspace, file: Path) -> None:
    file.write_text("import torch\ndef net(:\n")
    assert "SyntaxError" in refused(SpecError, place, f"{file}:net")
    file.write_text("import torch\n\nimport nowhere_to_be_found\n")
    assert "failed in line 3: ModuleNotFoundError" in refused(SpecError, place, f"{file}:net")
    assert "No such file" in refused(SpecError, place, f"{file.parent}/other.py:net")


def test_factory_that_makes_another_model_each_time_is_refused(place: Workspace, file: Path) -> None:
    one = only(place, f"{file}:unseeded", shape=DIGITS)
    with pytest.raises(CheckpointError, match=r"other weights .* read its weights from a file, or seed it"):
        one.load()


def test_digest_tells_models_apart_and_only_models(place: Workspace, file: Path, tiny: Path, tmp_path: Path) -> None:
    def digest(path: Path = file, name: str = "network", **options: Any) -> str:
        return only(place, f"{path}:{name}", shape=DIGITS, **options).digest

    first = digest()
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.copy(file, tmp_path / "moved" / "renamed.py"))
    assert first == digest() == digest(moved) == digest(normalize="none") == digest(normalize="0/1")
    others = [
        digest(normalize="0.5/0.5"),
        digest(normalize="0/0.5"),
        digest(name="ready"),
        digest(name="as_linear"),
    ]
    weights = tmp_path / "model.safetensors"
    for run in ("erm1", "erm2"):
        shutil.copy(tiny / "runs" / run / "model.safetensors", weights)
        moved.write_text(
            f"from pathlib import Path\nfrom robustmix.checkpoints import read_model\n"
            f"def network():\n    return read_model(Path({str(weights)!r})).network\n"
        )
        others.append(digest(moved))
    moved.write_text(moved.read_text() + "# another source\n")
    others.append(digest(moved))
    assert len({first, *others}) == 8


def test_digest_tells_apart_what_lies_in_no_weights_and_no_source(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen module of TorchScript has no state, and a setting or the environment is in no hash of the source."""
    file = tmp_path / "scaled.py"
    file.write_text(
        "import os\nimport torch\nfrom torch import nn\n"
        "class Scaled(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.linear = nn.Linear(64, 10)\n"
        "        self.scale = float(os.environ['SCALE'])\n"
        "    def forward(self, x):\n"
        "        return self.scale * self.linear(x.flatten(1))\n"
    )
    found = []
    for scale in ("1", "1.01", "1000", "1"):
        monkeypatch.setenv("SCALE", scale)
        found.append(only(place, f"{file}:Scaled", shape=DIGITS).digest)
    assert found[0] == found[3]
    assert len(set(found)) == 3


# ---- normalisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("none", (0,), (1,)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.5,0.5,0.5/0.25, 0.5,1", (0.5, 0.5, 0.5), (0.25, 0.5, 1)),
        ("0/0.00392157", (0,), (0.00392157,)),
    ],
)
def test_normalisations(text: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    assert parse_normalize(text) == (mean, std)


@pytest.mark.parametrize("text", ["cifar", "", "0.5", "/", "0.5/0", "0.5/-1", "123.7/58.4", "nan/1", "0/inf", "0/1/2"])
def test_what_is_no_normalisation_names_the_choices(text: str) -> None:
    with pytest.raises(SpecError, match=r"choose from none, cifar10, imagenet, or write MEAN/STD"):
        parse_normalize(text)


def test_normalisation_fits_the_channels_and_has_a_use(place: Workspace, file: Path) -> None:
    model = only(place, f"{file}:ready", normalize="imagenet", classes=10).load()
    x = torch.rand(2, 3, 4, 5)
    with pytest.raises(EvaluationError, match=r"ready failed on 2 images \[3, 4, 5\]: RuntimeError: mat1"):
        model(x)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in parse_normalize("imagenet"))
    assert torch.equal(model.normalize(x), (x - mean) / std)
    text = refused(SpecError, place, f"{file}:ready", normalize="cifar10", shape=DIGITS)
    assert "3 values does not fit images [C, H, W] with C = 1" in text
    assert "only FILE.py:FACTORY takes it" in refused(SpecError, place, "erm1", normalize="cifar10")


# ---- torchvision -----------------------------------------------------------------------------------------


@pytest.fixture
def downloads(tmp_path: Path, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a download from the address with the key in it would bring; the rest of the loading is real."""
    contents: dict[str, Any] = {}

    def download(url: str, destination: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        assert hash_prefix
        (content,) = (content for key, content in contents.items() if key in url)
        if isinstance(content, Exception):
            raise content
        torch.save(content, destination)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return contents


@pytest.fixture
def squeezenet(downloads: dict[str, Any]) -> nn.Module:
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = squeezenet1_1(weights=None)
    downloads["squeezenet1_1"] = network.state_dict()
    return network.eval()


def test_torchvision_model_brings_its_classes_size_and_normalisation(
    place: Workspace, squeezenet: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.models import SqueezeNet1_1_Weights
    from torchvision.transforms.functional import normalize

    one = only(place, "torchvision:squeezenet1_1", shape=(3, 32, 32))
    printed = capsys.readouterr()
    assert "torchvision:squeezenet1_1: images are resized inside the model, from 32x32 to 224x224" in printed.err
    assert printed.out == ""
    assert one.classes == tuple(SqueezeNet1_1_Weights.DEFAULT.meta["categories"])
    assert (one.shape, one.group, one.run) == ((3, 32, 32), "torchvision:squeezenet1_1", None)
    x = F.interpolate(IMAGES, (224, 224), mode="bilinear", antialias=True)
    expected = squeezenet(normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(one.load()(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_images_of_the_right_size_are_not_resized(
    place: Workspace, squeezenet: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    fitting, any_shape = (only(place, "torchvision:squeezenet1_1", shape=shape) for shape in ((3, 224, 224), None))
    assert "resized" not in capsys.readouterr().err
    assert fitting.shape == any_shape.shape == (3, 224, 224)
    assert isinstance(fitting.load().resize, nn.Identity)
    resized = only(place, "torchvision:squeezenet1_1", shape=(3, 32, 32))
    assert fitting.digest == any_shape.digest == resized.digest


def test_digest_follows_the_weights_and_the_architecture(
    place: Workspace, squeezenet: nn.Module, downloads: dict[str, Any], tmp_path: Path
) -> None:
    first = only(place, "torchvision:squeezenet1_1")
    shutil.rmtree(tmp_path / "torch")
    downloads["squeezenet1_1"] = {key: value + 1 for key, value in squeezenet.state_dict().items()}
    other = only(place, "torchvision:squeezenet1_1")
    assert first.digest != other.digest
    with pytest.raises(CheckpointError, match="other weights"):
        first.load()


def test_other_number_of_channels_is_refused(place: Workspace, squeezenet: nn.Module) -> None:
    text = refused(EvaluationError, place, "torchvision:squeezenet1_1", shape=DIGITS)
    assert "takes images of 3 channels, these have 1" in text


class Harmful:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(
    place: Workspace, downloads: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "executed"
    downloads["squeezenet1_0"] = {"features.0.weight": Harmful(trap)}
    for before in (None, "0"):
        if before:
            monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", before)
        text = refused(CheckpointError, place, "torchvision:squeezenet1_0")
        assert "torchvision:squeezenet1_0 cannot be loaded: UnpicklingError: Weights only load failed" in text
        assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == before
    assert not trap.exists()
    pickle.loads(pickle.dumps(Harmful(trap)))
    assert trap.exists()


def test_missing_network_and_foreign_weights_are_one_line(
    place: Workspace, downloads: dict[str, Any], squeezenet: nn.Module
) -> None:
    downloads["squeezenet1_0"] = urllib.error.URLError("no route to host")
    text = refused(CheckpointError, place, "torchvision:squeezenet1_0")
    assert "URLError: <urlopen error no route to host>; what is not in the cache yet needs a connection" in text
    downloads["squeezenet1_0"] = squeezenet.state_dict()
    assert "RuntimeError: Error(s) in loading state_dict" in refused(
        CheckpointError, place, "torchvision:squeezenet1_0"
    )


def test_torchvision_offers_classifiers_only(place: Workspace) -> None:
    assert "did you mean 'resnet18'" in refused(SpecError, place, "torchvision:resnet8")
    assert "unknown torchvision classifier" in refused(SpecError, place, "torchvision:fasterrcnn_resnet50_fpn")


# ---- timm and the hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: a repository's files lie in OWNER/NAME; the rest of the loading is real."""
    timm = pytest.importorskip("timm")
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def download(repo_id: str, filename: str, **_: Any) -> str:
        path = tmp_path / "hub" / repo_id / filename
        if not path.parent.is_dir():
            raise LocalEntryNotFoundError("cannot find the file in the local cache\nand no connection")
        if not path.is_file():
            raise EntryNotFoundError(f"no {filename}")
        return str(path)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(TIMM)
    timm.models.save_for_hf(network, tmp_path / "hub" / "timm" / TIMM, safe_serialization=True)
    return tmp_path / "hub"


def normalised_by_hand(x: Tensor, network: nn.Module) -> Tensor:
    x = F.interpolate(x, (160, 160), mode="bilinear", antialias=True)
    logits: Tensor = network((x - 0.5) / 0.5)
    return logits


def test_timm_model_brings_its_size_and_normalisation(
    place: Workspace, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm
    from safetensors.torch import load_file

    one = only(place, f"timm:{TIMM}", shape=(3, 32, 32))
    assert "from 32x32 to 160x160" in capsys.readouterr().err
    assert (one.classes, one.shape) == (1000, (3, 32, 32))
    network = timm.create_model(TIMM).eval()
    network.load_state_dict(load_file(hub / "timm" / TIMM / "model.safetensors"))
    expected = normalised_by_hand(IMAGES, network)
    torch.testing.assert_close(one.load()(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_hub_repository_is_the_same_model_by_another_name(place: Workspace, hub: Path) -> None:
    by_name, by_repository = find_participants(place, [f"timm:{TIMM}", f"hf-hub:timm/{TIMM}"])
    assert by_name.digest == by_repository.digest
    assert by_name.name != by_repository.name


def test_hub_repository_may_name_its_classes_and_its_own_normalisation(place: Workspace, hub: Path) -> None:
    config = hub / "timm" / TIMM / "config.json"
    first = only(place, f"hf-hub:timm/{TIMM}")
    facts = json.loads(config.read_text())
    facts["label_names"] = [f"class {number}" for number in range(1000)]
    facts["pretrained_cfg"]["mean"] = [0.25, 0.25, 0.25]
    config.write_text(json.dumps(facts))
    other = only(place, f"hf-hub:timm/{TIMM}")
    assert other.classes == tuple(facts["label_names"])
    assert first.classes == 1000
    assert first.digest != other.digest


def test_hub_without_connection_or_with_pickled_weights_is_one_line(
    place: Workspace, hub: Path, tmp_path: Path
) -> None:
    text = refused(CheckpointError, place, "hf-hub:somebody/net")
    assert "hf-hub:somebody/net cannot be loaded: LocalEntryNotFoundError: cannot find the file" in text
    folder, trap = hub / "timm" / TIMM, tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    torch.save({"conv1.weight": Harmful(trap)}, folder / "pytorch_model.bin")
    assert "weights_only=True blocked" in refused(CheckpointError, place, f"hf-hub:timm/{TIMM}")
    assert not trap.exists()


def test_unknown_timm_model_names_the_closest(place: Workspace, hub: Path) -> None:
    assert "did you mean 'resnet18" in refused(SpecError, place, "timm:resnet_18")


@pytest.mark.parametrize(("missing", "spec"), [("timm", "timm:resnet18"), ("timm", "hf-hub:timm/resnet18.a1_in1k")])
def test_missing_library_is_one_line(
    place: Workspace, missing: str, spec: str, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert "pip install 'robustmix[zoo]'" in refused(SpecError, place, spec)


def test_quiet_is_quiet(
    place: Workspace, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "quiet", True)
    only(place, f"{file}:ready", shape=DIGITS)
    assert capsys.readouterr() == ("", "")
