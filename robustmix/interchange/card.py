"""The model card of an exported run, in Markdown with the front matter that model hubs read."""

import html
import json
import math
import re
from collections.abc import Sequence

from robustmix._version import __version__
from robustmix.models import ModelSpec
from robustmix.report.selection import Choice
from robustmix.spec.titles import attack_label
from robustmix.store.results import results_table
from robustmix.store.runs import Run
from robustmix.units import format_budget

FRONT_MATTER = """---
library_name: robustmix
pipeline_tag: image-classification
tags:
- robustmix
- adversarial-robustness
model_name: "{name}"
---
"""


def model_card(run: Run, spec: ModelSpec, results: Choice | None, *, onnx: bool) -> str:
    """The model card of a run.

    Args:
        run: a finished one.
        spec: of its network.
        results: the cells in which it is the target; None if there are none.
        onnx: whether ``model.onnx`` lies beside it.
    """
    parts = [
        FRONT_MATTER.format(name=run.name),
        f"# {run.name}\n",
        _what(run, spec),
        "## How to load it\n",
        _loading(run, spec, onnx),
        "## How it was trained\n",
        _training(run),
        "## Clean error\n",
        _clean(run),
        "## Robustness\n",
        _robustness(run, results),
        f"Written by robustmix {__version__}.\n",
    ]
    return "\n".join(parts)


def _what(run: Run, spec: ModelSpec) -> str:
    facts = run.facts
    channels, height, width = spec.shape
    data = escaped(facts.data if facts else run.recipe.data)
    size = f" of width {spec.width}" if spec.width is not None else ""
    said = "imported, and said to be " if facts and facts.imported_from else ""
    lines = [
        f"An image classifier: `{spec.name}`{size}"
        + (f", {facts.parameters:,} parameters" if facts else "")
        + f", {said}trained on {data} with the method `{run.recipe.training}`.",
    ]
    if facts and facts.data_note:
        lines.append(f"The data: {escaped(facts.data_note)}.")
    lines.append(
        f"It maps images [B, {channels}, {height}, {width}] with values in [0, 1] to logits [B, {len(spec.classes)}]; "
        "the normalisation is its first layer. The classes, in the order of the logits: "
        + ", ".join(map(escaped, spec.classes))
        + "."
    )
    return "\n".join(lines) + "\n"


def _loading(run: Run, spec: ModelSpec, onnx: bool) -> str:
    channels, height, width = spec.shape
    text = fenced(
        "# pip install 'robustmix[zoo]'\n"
        "import torch\n"
        "from robustmix.hub import Pretrained\n"
        "\n"
        'model = Pretrained.from_pretrained("PATH_OR_REPO")  # this folder, or where it was uploaded to\n'
        f"logits = model(torch.rand(1, {channels}, {height}, {width}))",
        "python",
    )
    text += '\nWithout huggingface_hub: `robustmix.load_model("PATH/model.safetensors")`.\n'
    if onnx:
        text += "\n`model.onnx` has the input `images` and the output `logits`; the size of the batch is free.\n"
    return text


def _training(run: Run) -> str:
    facts = run.facts
    if facts and facts.imported_from:
        said = json.dumps(run.recipe.model_dump(exclude_unset=True), indent=1)
        head = (
            f"By another program; robustmix imported the weights from {escaped(facts.imported_from)}. This is "
            "what was said of the training at the import; nobody has checked it.\n"
        )
        return "\n".join([head, fenced(run.command), fenced(said, "json")])
    recipe = json.dumps(run.recipe.model_dump(), indent=1)
    versions = f" (robustmix {facts.robustmix}, torch {facts.torch}, {escaped(facts.device)})" if facts else ""
    return "\n".join(
        [f"By this command{versions}:\n", fenced(run.command), "The whole recipe:\n", fenced(recipe, "json")]
    )


def _clean(run: Run) -> str:
    error = run.final("test_error")
    when = "measured at the import" if run.facts and run.facts.imported_from else "of the last epoch, not of the best"
    return f"{error:.2%} of the test images without an attack ({when}).\n"


def _robustness(run: Run, results: Choice | None) -> str:
    if results is None:
        return (
            "Not measured. It can be, with:\n\n"
            + fenced(f"robustmix attack --source {run.name}")
            + "\nNo audit has been made either.\n"
        )
    found = results_table(results.cells, results.bearers)
    found = found[(found["target"] == run.name) & found["source"].notna()]
    rows = []
    for record in found.to_dict("records"):
        row = {str(key): value for key, value in record.items()}
        budget = "smallest" if math.isnan(row["eps_255"]) else f"{format_budget(row['eps_255'])}/255"
        interval = f"{100 * row['error_low']:.1f} - {100 * row['error_high']:.1f}"
        rows.append(
            [
                "itself (white box)" if row["role"] == "white" else row["source"],
                attack_label(row),
                budget,
                f"{row['error']:.1%}",
                interval,
                f"{row['clean_error']:.1%}",
                str(row["n"]),
            ]
        )
    header = ["crafted on", "attack", "budget", "error", "95 % interval", "clean error", "images"]
    return "\n".join(
        [
            f"Error on adversarial examples from the test images of {escaped(results.data)}:\n",
            table(header, rows),
            "Computed by:\n",
            fenced("\n".join(results.commands)),
            "**No audit stands behind these figures.** An attack gives a lower bound of the error that the worst "
            "perturbation causes: that nothing stronger was tried, or that the gradients of this network mislead, is "
            "not excluded. Do not read a low error here as robustness.\n",
        ]
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of texts that may hold anything."""
    lines = [list(header), ["---"] * len(header), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def escaped(text: str) -> str:
    """A text that Markdown and HTML show as it is, on one line."""
    line = "".join(character if character.isprintable() else " " for character in text)
    line = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", " ".join(line.split()))
    return html.escape(line, quote=False)


def fenced(text: str, language: str = "") -> str:
    """A block of code that no text within can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"
