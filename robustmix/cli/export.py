"""``robustmix export``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from robustmix.cli.options import Flag, Place

DEFAULTS = Place()


def export(
    name: str,
    /,
    *,
    to: Annotated[Path | None, Parameter(show_default=False)] = None,
    onnx: Flag = False,
    place: Place = DEFAULTS,
) -> None:
    """Write a finished run for other programs: weights, configuration and a model card with its robustness.

    The folder is one that huggingface_hub uploads and robustmix.hub.Pretrained loads.

    Args:
        name: Of the run.
        to: The folder [default: exports/NAME in the workspace].
        onnx: Also write model.onnx: pixels in [0, 1] in, logits out, any size of batch.
    """
    workspace = place.enter()
    from robustmix.interchange.exporting import export_run

    print(export_run(name, to, onnx=onnx, workspace=workspace.root))
