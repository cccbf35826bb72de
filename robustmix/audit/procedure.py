"""An audit from its parts, whether the networks lie in a workspace or in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from robustmix._version import __version__
from robustmix.attacks.libraries import check_installed
from robustmix.audit.battery import COSTLY, Battery
from robustmix.audit.binarisation import EXAMPLES, Binarised, binarise
from robustmix.audit.direct import FirstGradient, blocked, look_at_accuracy, look_at_gradient, look_at_outputs
from robustmix.audit.reading import Evidence, read
from robustmix.data import Split
from robustmix.device import describe_device
from robustmix.errors import SpecError
from robustmix.judging import TESTS, NotRun, Observation, Share, judge
from robustmix.participants import Participant
from robustmix.sanity import some_images
from robustmix.spec.attack import Course
from robustmix.store.audits import AuditRecord, AuditTest
from robustmix.units import to_pixels
from robustmix.work import CLEAN, Unit, make_unit

# What else is missed by a sound attack: of the planted examples.
MOST_MISSED = 0.05


@dataclass(frozen=True)
class Look:
    """What was seen on one network itself.

    Attributes:
        observations: of the tests that were made.
        gradient: what the first gradient showed; None if it was not taken.
        obstacle: why the network cannot be attacked; None if it can.
    """

    observations: tuple[Observation, ...]
    gradient: FirstGradient | None
    obstacle: str | None


def look(
    one: Participant,
    model: nn.Module,
    inputs: Split,
    test: Split,
    classes: tuple[str, ...],
    batch_size: int,
    device: torch.device,
    accuracy: Observation | None = None,
) -> Look:
    """Look at a network before it is attacked.

    Args:
        one: whose it is.
        model: on the device.
        inputs: the examples that are attacked.
        test: all test examples.
        classes: names of the labels.
        batch_size: examples per batch.
        device: to compute on.
        accuracy: what is known of the clean accuracy; looked at on some hundred images if not given.

    Raises:
        EvaluationError: it gives another number of logits than there are classes.
    """
    x, y = some_images(test, device)
    found = look_at_outputs(one.name, model, x, len(classes))
    if blocked(found) is None:
        found.append(accuracy or look_at_accuracy(one.name, model, x, y, classes))
    gradient = None
    if blocked(found) is None:
        seen, gradient = look_at_gradient(one.name, model, inputs, batch_size, device)
        found.append(seen)
    # Zero gradients are counted; only where there is none at all an attack cannot be made.
    return Look(tuple(found), gradient, blocked(found))


def audit_units(battery: Battery, crowd: Sequence[Participant], inputs: str, batch_size: int) -> list[Unit]:
    """What is computed on all examples: every attack in the white box, the two that transfer on every other network.

    Args:
        battery: the attacks.
        crowd: the networks.
        inputs: SHA-256 of the examples.
        batch_size: examples per batch.
    """
    units = [make_unit(None, None, [CLEAN], crowd, inputs, batch_size)] if crowd else []
    for source in crowd:
        for part, spec in battery.parts.items():
            if part not in COSTLY:
                transferred = part in ("fgsm", "ifgsm")
                targets = crowd if transferred else [source]
                units.append(make_unit(source, spec, spec.courses(None), targets, inputs, batch_size))
    return units


def costly_units(
    battery: Battery, crowd: Sequence[Participant], inputs: str, batch_size: int, *, square: bool
) -> list[Unit]:
    """What is computed on the first examples only; arguments as of `audit_units`, and whether Square can be made."""
    units = [make_unit(None, None, [CLEAN], crowd, inputs, batch_size)] if crowd else []
    parts = [part for part in COSTLY if square or part != "square"]
    return units + [
        make_unit(source, spec, spec.courses(None), [source], inputs, batch_size)
        for source in crowd
        for spec in (battery.parts[part] for part in parts)
    ]


def why_no_square(inputs: Split) -> str | None:
    """Why the gradient-free attack cannot be made on these examples; None if it can."""
    if len(inputs.shape) != 3:
        return "Square takes images [B, C, H, W], and these examples are none."
    try:
        check_installed(["square"])
    except SpecError as error:
        return f"{str(error)[0].upper()}{str(error)[1:]}."
    return None


def plant(model: nn.Module, inputs: Split, battery: Battery, device: torch.device) -> Binarised:
    """The binarisation test on the first images, with I-FGSM of as many steps as it takes to converge."""
    at = battery.parts["long"].course(battery.eps)
    x, _ = next(iter(inputs.first(EXAMPLES).batches([torch.arange(min(EXAMPLES, len(inputs)))], device)))
    return binarise(model, x, Course(to_pixels(battery.eps), at.steps, to_pixels(at.step)))


def conclude(
    look: Look,
    one: Participant,
    crowd: Sequence[Participant],
    evidence: tuple[Evidence, Evidence],
    no_square: str | None,
    planted: Binarised | None,
) -> tuple[AuditTest, ...]:
    """The verdicts on one network.

    Args:
        look: what was seen on the network itself.
        one: the network.
        crowd: the networks that were attacked.
        evidence: the attacks on all and on the first examples.
        no_square: why the gradient-free attack was not made; None if it was.
        planted: what the binarisation test counted; None where the network could not be attacked.
    """
    observations = list(look.observations)
    if planted is not None and look.gradient is not None:
        others = {other.digest: other.name for other in crowd if other != one}
        observations += [*read(*evidence, one.digest, others, look.gradient, no_square), _binarisation(planted)]
    else:
        made = {seen.name for seen in observations}
        reason = NotRun(look.obstacle or "Not attacked.")
        observations += [Observation(name, "-", reason) for name in TESTS if name not in made]
    return judge(observations)


def make_record(
    target: str,
    weights: str,
    tests: tuple[AuditTest, ...],
    *,
    data: str,
    inputs: Split,
    battery: Battery,
    device: torch.device,
    command: str,
) -> AuditRecord:
    """The record of one network's audit.

    Args:
        target: the network's name.
        weights: its SHA-256.
        tests: the verdicts on it.
        data: name of the data set.
        inputs: the examples that were attacked.
        battery: the attacks.
        device: that they were made on.
        command: that makes the same audit.
    """
    return AuditRecord(
        target=target,
        weights=weights,
        data=data,
        inputs=inputs.digest(),
        n=len(inputs),
        eps_255=battery.eps,
        tests=tests,
        robustmix=__version__,
        torch=torch.__version__,
        device=describe_device(device),
        command=command,
    )


def _binarisation(planted: Binarised) -> Observation:
    n = planted.judged
    measured = (
        f"{planted.found} of {n} planted examples found; random points found {planted.easy} of {planted.separable}, "
        f"which are left out, and {planted.examples - planted.separable} of {planted.examples} could not be planted"
    )
    if n == 0:
        return Observation(
            "binarisation", measured, NotRun("No planted example was hidden well enough to say anything.")
        )
    return Observation("binarisation", measured, Share(n - planted.found, n, MOST_MISSED))
