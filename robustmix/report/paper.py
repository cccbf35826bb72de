"""All figures of a report, and the same as PDF files for a paper."""

import re
from pathlib import Path
from typing import Final

from robustmix.errors import StoreError
from robustmix.report.distributions import distributions
from robustmix.report.drawing import Drawing
from robustmix.report.figures import eps_curves, transfer_matrices
from robustmix.report.histories import training_curves
from robustmix.report.material import Material
from robustmix.store.atomic import write_atomically

FIGURES: Final = "figures"
# What a figure's file may be called: others that stand there are somebody's own.
NAMES: Final = re.compile(r"(curve|matrix|distribution|history)-[a-z0-9-]+\.pdf")
# In the order of the page.
KINDS: Final = (eps_curves, transfer_matrices, distributions, training_curves)


def figures(material: Material) -> dict[str, Drawing]:
    """Every figure of the page by the name of its file, which says what it shows and not where it stands."""
    found: dict[str, Drawing] = {}
    for drawing in (drawing for kind in KINDS for drawing in kind(material)):
        slug, number = drawing.slug, 1
        while slug in found:
            number += 1
            slug = f"{drawing.slug}-{number}"
        found[slug] = drawing
    return found


def write_figures(folder: Path) -> list[Path]:
    """Write every figure of a report as PDF into its ``figures/``, and remove there those that it no longer has.

    Args:
        folder: of the report, as `robustmix.report.collect` makes it.

    Returns:
        The files, in the order of the page; the same report gives the same bytes.

    Raises:
        StoreError: a file is missing, damaged or cannot be written.
        SpecError: a field of ``evidence.json`` is wrong.
    """
    found = {folder / FIGURES / f"{slug}.pdf": drawing for slug, drawing in figures(Material.read(folder)).items()}
    for path, drawing in found.items():
        content = drawing.pdf
        write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
    try:
        for path in (folder / FIGURES).glob("*.pdf"):
            if path not in found and NAMES.fullmatch(path.name):
                path.unlink()
    except OSError as error:
        raise StoreError(f"{path} cannot be removed: {error.strerror or error}") from None
    return list(found)
