"""Networks of torchvision and timm with fresh weights."""

from torch import nn

from robustmix.errors import SpecError
from robustmix.packages import one_line, timm_models, torchvision_models


def check_packaged(spec: str, channels: int) -> None:
    """Check that a package has a network.

    Args:
        spec: ``torchvision:NAME`` or ``timm:NAME``.
        channels: of the images.

    Raises:
        SpecError: the package cannot be imported, has no such network, or has it for another number of channels only.
    """
    package, _, name = spec.partition(":")
    if package == "timm":
        timm_models(spec, name)
    else:
        torchvision_models(spec, name)
        if channels != 3:
            raise SpecError(
                f"{spec} takes images of 3 channels, these have {channels}: choose timm:NAME, or a network of ours"
            )


def packaged_network(spec: str, channels: int, classes: int) -> nn.Module:
    """A network of another package: normalised images [B, C, H, W] in, logits [B, K] out.

    Args:
        spec: ``torchvision:NAME`` or ``timm:NAME``.
        channels: of the images.
        classes: outputs.

    Raises:
        SpecError: see `check_packaged`, or the package cannot build it so.
    """
    check_packaged(spec, channels)
    package, _, name = spec.partition(":")
    with one_line(f"{spec} cannot be built for {classes} classes", SpecError):
        if package == "timm":
            network = timm_models(spec, name).create_model(name, num_classes=classes, in_chans=channels)
        else:
            network = torchvision_models(spec, name).get_model(name, num_classes=classes)
    module: nn.Module = network
    return module
