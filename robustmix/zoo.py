"""Models of anybody else, fitted to the pixels and told apart: torchvision's, timm's, the hub's, the user's own code.

The user's own code is executed, and that is said; of everything else only weights are read, and nothing is unpickled.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from robustmix.attacks.arguments import check_logits
from robustmix.checkpoints import digest_model
from robustmix.errors import CheckpointError, EvaluationError, SpecError
from robustmix.factories import code_path, find_factory, running
from robustmix.models.classifier import Normalize
from robustmix.models.layout import evaluating, laid_out
from robustmix.models.resize import Resize
from robustmix.packages import one_line, timm_models, torchvision_models
from robustmix.progress import say

CHOICES: Final = "a run, torchvision:NAME, timm:NAME, hf-hub:REPO, FILE.py:FACTORY"

Shape = tuple[int, int, int]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# Mean and standard deviation per channel in [0, 1] pixel units; one value stands for all channels.
NORMALIZATIONS: Final[dict[str, Statistics]] = {
    "none": ((0.0,), (1.0,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Wrapped(nn.Module):
    """Somebody else's network behind its resizing and normalisation: pixels in [0, 1] in, logits out.

    Attributes:
        spec: as given, for messages.
        resize: to the size that the network was made for, if images have another.
        normalize: the pixels, as in training.
        network: the rest.
    """

    def __init__(self, spec: str, resize: nn.Module, normalize: Normalize, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.resize = resize
        self.normalize = normalize
        self.network = network
        self._path = code_path(spec) if is_factory(spec) else None

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] in [0, 1] to logits [B, K].

        Raises:
            EvaluationError: the network returns anything else, or a single logit, or is the user's own and fails.
        """
        # What is compiled has been looked over; a change of the output would break it into pieces.
        if torch.compiler.is_compiling() or self._path is None:
            return self.logits(x)
        slope = ", with a gradient," if x.requires_grad else ""
        with running(f"{self.spec} failed on {len(x)} images {list(x.shape[1:])}{slope}", self._path):
            return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """What `forward` gives, with the network's own errors."""
        return check_logits(self.network(self.normalize(self.resize(x))), self.spec, len(x))

    def normalized(self, statistics: Statistics) -> "Wrapped":
        """The same network behind another normalisation."""
        mean = self.normalize.mean
        return Wrapped(self.spec, self.resize, _normalize(statistics, mean.shape[1]).to(mean.device), self.network)


@dataclass(frozen=True)
class Foreign:
    """A model of somebody else's.

    Attributes:
        digest: SHA-256 that tells apart what it computes.
        classes: their names in the order of the logits, or only their number where it has no names for them.
        shape: [C, H, W] of the images that it takes; None for any.
        load: makes the model: eval mode, images [B, C, H, W] in [0, 1] in any layout in, logits [B, K] out.
    """

    digest: str
    classes: tuple[str, ...] | int
    shape: Shape | None
    load: Callable[[], Wrapped]


@dataclass(frozen=True)
class _Made:
    """A network with its weights and what is known about it.

    Attributes:
        network: takes normalised pixels.
        statistics: to normalise with.
        identity: what tells its code apart.
        classes: their names, their number, or None if only a forward pass tells.
        shape: [C, H, W] that it was made for; None for any.
        alone: a context in which importing what only its maker can import is an error in one line.
    """

    network: nn.Module
    statistics: Statistics
    identity: tuple[str, ...]
    classes: tuple[str, ...] | int | None = None
    shape: Shape | None = None
    alone: Callable[[], AbstractContextManager[None]] = nullcontext


def open_model(spec: str, statistics: Statistics, shape: Shape | None, classes: int | None) -> Foreign:
    """A model of somebody else's.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``hf-hub:REPO`` or ``FILE.py:FACTORY``, whose code is executed.
        statistics: what a ``FILE.py:FACTORY`` is normalised with; the others bring their own.
        shape: [C, H, W] of the images, to which the models of torchvision and timm are fitted; None for their own.
        classes: number of logits of a ``FILE.py:FACTORY``; a forward pass finds it if not given.

    Raises:
        SpecError: there is no such model, or a factory fails or makes a model that cannot take the images.
        CheckpointError: weights cannot be downloaded or read.
        EvaluationError: the model takes another number of channels, or returns no logits.
    """
    make = _maker(spec, statistics)
    made = make()
    if made.shape and shape and made.shape[1:] != shape[1:]:
        old, new = (f"{height}x{width}" for _, height, width in (shape, made.shape))
        say(f"{spec}: images are resized inside the model, from {old} to {new} (bilinear, antialiased)")
    model = _wrap(spec, made, shape)
    weights = _digest(made, model)
    if made.classes:
        known, digest = made.classes, weights
    else:
        known, shown = _first_look(spec, made, model, shape, classes)
        digest = hashlib.sha256(f"{weights} {shown}".encode()).hexdigest()

    def load() -> Wrapped:
        again = make()
        model = _wrap(spec, again, shape)
        if _digest(again, model) != weights:
            raise CheckpointError(
                f"{spec} has other weights than a moment ago: it must give the same model every time, so read its "
                "weights from a file, or seed it"
            )
        if shape and is_factory(spec):
            with _taking(spec, shape):
                model = _lay_out(model, shape)
        return model

    return Foreign(digest, known, shape or made.shape, load)


def parse_normalize(text: str) -> Statistics:
    """Mean and standard deviation per channel from ``none``, ``cifar10``, ``imagenet`` or ``MEAN/STD``.

    Args:
        text: MEAN and STD are comma lists in [0, 1] pixel units with a value per channel, or one for all channels.

    Raises:
        SpecError: it is none of these.
    """
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    try:
        mean, std = (tuple(float(value) for value in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean = std = ()
    if not mean or not std or not all(0 <= value <= 1 for value in mean) or not all(0 < v < math.inf for v in std):
        raise SpecError(
            f"--normalize {text}: choose from {', '.join(NORMALIZATIONS)}, or write MEAN/STD in units of [0, 1] pixels "
            "with STD above 0, such as 0.5,0.5,0.5/0.25,0.25,0.25"
        )
    return mean, std


def is_factory(pattern: str) -> bool:
    """Whether a pattern names code of the user's, ``FILE.py:FACTORY``."""
    return pattern.rpartition(":")[0].endswith(".py")


def _wrap(spec: str, made: _Made, shape: Shape | None) -> Wrapped:
    """The network behind its resizing to the size and its normalisation; ready to be attacked."""
    shape = shape or made.shape
    if shape and made.shape and shape[0] != made.shape[0]:
        raise EvaluationError(
            f"{spec} takes images of {made.shape[0]} channels, these have {shape[0]}: choose a model for such images"
        )
    channels = shape[0] if shape else max(map(len, made.statistics))
    resize: nn.Module = nn.Identity()
    if shape and made.shape and shape[1:] != made.shape[1:]:
        resize = Resize(shape[1:], made.shape[1:])
    # Half or double precision would not go with the float32 of pixels.
    network = made.network.to("cpu", torch.float32)
    model = Wrapped(spec, resize, _normalize(made.statistics, channels), network).eval()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _normalize(statistics: Statistics, channels: int) -> Normalize:
    """The layer for some channel statistics.

    Raises:
        SpecError: they are for another number of channels.
    """
    layer = Normalize(channels)
    for buffer, values in zip((layer.mean, layer.std), statistics, strict=True):
        if len(values) not in (1, channels):
            raise SpecError(
                f"a normalisation with {len(values)} values does not fit images [C, H, W] with C = {channels}: give "
                "one value per channel, or one for all"
            )
        buffer.copy_(torch.tensor(values).view(1, -1, 1, 1))
    return layer


def _first_look(spec: str, made: _Made, model: Wrapped, shape: Shape | None, given: int | None) -> tuple[int, str]:
    """The number of logits, and what they are: by a pass that also shows whether the network works without its maker.

    What the user's code reads beside its weights, such as a frozen module of TorchScript, a setting or a variable of
    the environment, no hash of weights and sources tells apart.
    """
    if shape is None:
        if given is None:
            raise SpecError(
                f"how many classes {spec} tells apart is unknown without the shape of an image or their number"
            )
        return given, ""
    # That modules stay in train mode is said where the model is looked over: this pass must not change them before.
    with _taking(spec, shape), made.alone(), evaluating(model), torch.no_grad():
        found = _lay_out(model, shape).logits(_ramps(shape))
        classes = int(found.shape[1])
    # By few digits, since machines round differently.
    shown = [f"{float(size):.3g}" for size in found.float().abs().mean(dim=1)]
    return given or classes, f"{shown} {found.argmax(dim=1).tolist()}"


def _lay_out(model: Wrapped, shape: Shape) -> Wrapped:
    """The same model for images in channels-last layout, which the user's own code may not expect."""
    model.network = laid_out(model.network, _black(shape))
    return model


def _taking(spec: str, shape: Shape) -> AbstractContextManager[None]:
    return one_line(f"{spec} cannot take images {list(shape)}", SpecError)


def _black(shape: Shape) -> Tensor:
    # Two: of one image with a single pixel, batch norm without running statistics has no variance.
    return torch.zeros(2, *shape)


def _ramps(shape: Shape) -> Tensor:
    """From black to white, and back."""
    ramp = torch.linspace(0, 1, math.prod(shape)).view(shape)
    return torch.stack([ramp, 1 - ramp])


def _digest(made: _Made, model: Wrapped) -> str:
    return digest_model(json.dumps([*made.identity, made.shape]), model)


def _maker(spec: str, statistics: Statistics) -> Callable[[], _Made]:
    """What makes somebody else's network, with the same weights every time.

    Raises:
        SpecError: no such kind of model.
    """
    if is_factory(spec):
        return _own(spec, statistics)
    kind, _, name = spec.partition(":")
    makers = {"torchvision": _torchvision, "timm": _timm, "hf-hub": _timm}
    if kind not in makers or not name:
        raise SpecError(f"unknown model {spec!r}; choose from {CHOICES}")
    return partial(makers[kind], spec, name)


def _torchvision(spec: str, name: str) -> _Made:
    """A classifier of torchvision's with its default weights."""
    models = torchvision_models(spec, name)
    weights = models.get_model_weights(name).DEFAULT
    with _weights_only(spec):
        network = models.get_model(name, weights=weights)
    transforms = weights.transforms()
    (size,) = transforms.crop_size
    return _Made(
        network,
        (tuple(transforms.mean), tuple(transforms.std)),
        ("torchvision", name),
        tuple(weights.meta["categories"]),
        (len(transforms.mean), size, size),
    )


def _timm(spec: str, name: str) -> _Made:
    """A classifier of timm's by name, or in timm's format by its repository on the hub."""
    on_hub = spec.startswith("hf-hub:")
    timm = timm_models(spec, None if on_hub else name)
    # The file of a name that carries a hash must have it.
    timm.models.set_pretrained_check_hash(True)
    with _weights_only(spec):
        network = timm.create_model(spec if on_hub else name, pretrained=True)
    known = network.pretrained_cfg
    labels = tuple(known.get("label_names") or ())
    return _Made(
        network,
        (tuple(known["mean"]), tuple(known["std"])),
        ("timm", known["architecture"]),
        labels if len(labels) == network.num_classes else network.num_classes,
        tuple(known["input_size"]),
    )


@contextmanager
def _weights_only(spec: str) -> Iterator[None]:
    """Let torch load tensors only, whatever a library asks it for; fail in one line."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        with one_line(f"{spec} cannot be loaded", CheckpointError, "; what is not in the cache yet needs a connection"):
            yield
    finally:
        os.environ.pop(switch)
        if before is not None:
            os.environ[switch] = before


def _own(spec: str, statistics: Statistics) -> Callable[[], _Made]:
    """What makes a network by the user's code."""
    call = find_factory(spec)

    def make() -> _Made:
        own = call()
        return _Made(own.network, statistics, own.identity, alone=own.alone)

    return make
