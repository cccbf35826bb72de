"""A run for other programs: a folder that huggingface_hub loads, and an ONNX file."""

import copy
import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from robustmix.checkpoints import read_model
from robustmix.errors import SpecError, StoreError
from robustmix.interchange.card import model_card
from robustmix.models import Classifier
from robustmix.report.selection import Choice, choose_unbound
from robustmix.store.atomic import write_atomically, write_text
from robustmix.store.cell_files import read_cells
from robustmix.store.choosing import is_of
from robustmix.store.results import Bearer, foreign_bearers
from robustmix.store.runs import WEIGHTS, Run, finished_run, read_run, run_names
from robustmix.store.workspace import Workspace

CONFIG, CARD, ONNX = "config.json", "README.md", "model.onnx"
# The oldest that torch's exporter writes without converting, and that every runtime of these years reads.
OPSET: Final = 18


def export_run(
    name: str, to: str | Path | None = None, *, onnx: bool = False, workspace: str | Path | None = None
) -> Path:
    """Write a finished run as a folder that `robustmix.hub.Pretrained` and huggingface_hub load.

    Args:
        name: of the run.
        to: the folder, whose files of these names are replaced; ``exports/<name>`` in the workspace if not given.
        onnx: also write ``model.onnx``; needs the extra ``onnx``.
        workspace: the folder with ``runs/`` and ``results/``.

    Returns:
        The folder, with ``model.safetensors``, ``config.json`` and the model card ``README.md``.

    Raises:
        CheckpointError: there is no such run, or it has not finished.
        SpecError: the extra is not installed.
        StoreError: the folder cannot be written.
    """
    place = Workspace.find(workspace)
    run = finished_run(place, name)
    path = place.run(name) / WEIGHTS
    model = read_model(path)
    folder = place.root / "exports" / name if to is None else Path(to).expanduser()
    # All that can fail for another reason than the disk comes before the first file.
    graph = to_onnx(model) if onnx else None
    card = model_card(run, model.spec, model_results(place, run), onnx=onnx)
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    write_atomically(folder / WEIGHTS, lambda file: file.write(weights))
    write_text(folder / CONFIG, json.dumps(model.spec.model_dump(mode="json"), indent=1) + "\n")
    if graph is not None:
        write_atomically(folder / ONNX, lambda file: file.write(graph))
    write_text(folder / CARD, card)
    return folder


def model_results(place: Workspace, run: Run) -> Choice | None:
    """The workspace's cells with a run as the target, on the data that it was trained on; None if there are none."""
    every = read_cells(place.cells)
    bearers: list[Bearer] = [read_run(place, name) for name in run_names(place)]
    # Another run with the same weights is the same network under another name.
    bearers = [run, *(one for one in bearers if one.weights != run.weights), *foreign_bearers(every)]
    cells = [cell for cell in every if cell.identity.target == run.weights and is_of(cell, run.recipe.data)]
    known = {bearer.weights for bearer in bearers}
    if not any(cell.identity.source is not None and cell.identity.source in known for cell in cells):
        return None
    return choose_unbound(cells, bearers, run.recipe.data, None)


def to_onnx(model: Classifier) -> bytes:
    """A network as an ONNX file: ``images`` float32 [batch, C, H, W] in [0, 1] in, ``logits`` [batch, K] out.

    The normalisation is inside, and the size of the batch is free.

    Raises:
        SpecError: the extra ``onnx`` is not installed, or torch cannot export the network.
    """
    if missing := [package for package in ("onnx", "onnxscript") if find_spec(package) is None]:
        raise SpecError(f"--onnx needs {' and '.join(missing)}: pip install 'robustmix[onnx]'")
    plain = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = torch.zeros(2, *model.spec.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own inner workings
            program = torch.onnx.export(
                plain,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(f"torch cannot export {model.spec.name} to ONNX: {reason}") from None
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # among them paths on this machine
    return bytes(proto.SerializeToString())
