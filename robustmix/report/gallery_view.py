"""Adversarial examples to look at: the first test images, not chosen, beside what an attack made of them."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from robustmix.errors import StoreError
from robustmix.progress import say
from robustmix.report.evidence import EXAMPLES
from robustmix.report.material import Material
from robustmix.report.text import budget, percent
from robustmix.store.cells import Cell, CellIdentity
from robustmix.store.gallery import Examples, read_examples
from robustmix.units import GREY_LEVELS

# The attacks of which there is a strip for each family, the publications' own.
SHOWN_ATTACKS: Final = ("fgsm", "ifgsm")
# As many characters as all images of a page may take.
MOST_CHARACTERS: Final = 1_000_000
# Larger images are shown reduced by a whole number.
MOST_PIXELS: Final = 96
# How wide an image is drawn at least, in CSS pixels.
DRAWN: Final = 72


@dataclass(frozen=True)
class Picture:
    """One image on the page.

    Attributes:
        uri: PNG as a data URI.
        alt: what it shows, in words.
        width: in CSS pixels.
        height: in CSS pixels.
    """

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """One test image before and after an attack.

    Attributes:
        index: within the test set.
        label: its class.
        before: the network's class without an attack, and how sure it is.
        after: under it.
        turned: whether the network was right before and is wrong now.
        clean: the image.
        change: the perturbation, amplified.
        adversarial: the image after the attack.
    """

    index: int
    label: str
    before: tuple[str, str]
    after: tuple[str, str]
    turned: bool
    clean: Picture
    change: Picture
    adversarial: Picture


@dataclass(frozen=True)
class Strip:
    """The examples of one network under one attack.

    Attributes:
        title: network, attack and budget.
        amplified: by how much the perturbation is.
        reduced: by how much the images are; 1 if not at all.
        images: from left to right.
    """

    title: str
    amplified: str
    reduced: int
    images: tuple[Shown, ...]


@dataclass(frozen=True)
class Gallery:
    """What a page shows of the examples that were kept.

    Attributes:
        strips: as many as it has room for.
        left_out: how many it has no room for.
    """

    strips: tuple[Strip, ...]
    left_out: int


def gallery(material: Material, folder: Path) -> Gallery:
    """White-box examples at the headline budget, for the first network of each family of which some were kept.

    Of the attacks that publications mean by FGSM and I-FGSM; where none were kept of these, of all others. The strips
    are cut to as many images as together stay below `MOST_CHARACTERS`, and where one of each is too many the last ones
    are left out. A damaged file counts as if nothing had been kept, with a message.
    """
    plain = {r.label for r in material.results if r.plain and r.attack in SHOWN_ATTACKS}
    usual = [label for label in material.attacks if label in plain]
    others = [label for label in material.attacks if label not in plain]
    found = list(_strips(material, folder / EXAMPLES, usual)) or list(_strips(material, folder / EXAMPLES, others))
    for count in range(max((len(strip.images) for strip in found), default=0), 0, -1):
        cut = [Strip(s.title, s.amplified, s.reduced, s.images[:count]) for s in found]
        if sum(map(_characters, cut)) <= MOST_CHARACTERS:
            return Gallery(tuple(cut), 0)
    single = [Strip(s.title, s.amplified, s.reduced, s.images[:1]) for s in found]
    room = [sum(map(_characters, single[: number + 1])) <= MOST_CHARACTERS for number in range(len(single))].count(True)
    return Gallery(tuple(single[:room]), len(single) - room)


def _characters(strip: Strip) -> int:
    return sum(len(part.uri) for one in strip.images for part in (one.clean, one.change, one.adversarial))


def _strips(material: Material, folder: Path, labels: Sequence[str]) -> Iterator[Strip]:
    for label in labels:
        eps = material.headline(label)
        if eps is None:
            continue
        for names in material.families.values():
            for name in names:
                cells = [c for c in material.swept(name).get(label, []) if math.isclose(c.identity.eps_255 or 0, eps)]
                examples = _readable(folder, cells[0].identity) if cells else None
                if examples is not None and len(examples.index):
                    yield _strip(f"{name} under white-box {label} at {budget(eps)}", cells[0], examples, material)
                    break


def _readable(folder: Path, identity: CellIdentity) -> Examples | None:
    try:
        return read_examples(folder, identity)
    except StoreError as damage:
        say(f"warning: {damage}; they are left out of the page")
        return None


def _strip(title: str, cell: Cell, examples: Examples, material: Material) -> Strip:
    eps = cell.identity.eps_255 or 1
    rows = _by_index(cell)
    clean_rows = _by_index(material.clean(cell))
    classes = cell.facts.classes
    # A change by the whole budget goes from the middle grey to black or white.
    gain = GREY_LEVELS / 2 / eps
    reduced = math.ceil(max(examples.clean.shape[2:]) / MOST_PIXELS)

    def name(number: int) -> str:
        return classes[number] if number < len(classes) else str(number)

    images = []
    for index, clean, adversarial in zip(examples.index, examples.clean, examples.adversarial, strict=True):
        if int(index) not in rows or int(index) not in clean_rows:
            continue
        label, now, sure = rows[int(index)]
        _, before, sure_before = clean_rows[int(index)]
        change = np.clip(GREY_LEVELS / 2 + gain * (adversarial.astype(float) - clean.astype(float)), 0, GREY_LEVELS)
        what = f"test image {index}, {name(label)}"
        images.append(
            Shown(
                index=int(index),
                label=name(label),
                before=(name(before), percent(sure_before)),
                after=(name(now), percent(sure)),
                turned=before == label != now,
                clean=_picture(clean, reduced, f"{what}, without an attack"),
                change=_picture(np.rint(change).astype(np.uint8), reduced, f"the amplified perturbation of {what}"),
                adversarial=_picture(adversarial, reduced, f"{what}, attacked"),
            )
        )
    return Strip(title, f"{gain:.3g}", reduced, tuple(images))


def _by_index(cell: Cell) -> dict[int, tuple[int, int, float]]:
    """Label, prediction and its confidence by the index of the example."""
    columns = (cell.rows[name].to_pylist() for name in ("index", "label", "prediction", "confidence"))
    return {
        index: (label, prediction, confidence) for index, label, prediction, confidence in zip(*columns, strict=True)
    }


def _picture(image: np.ndarray, reduced: int, alt: str) -> Picture:
    """A PNG of an image, uint8 [C, H, W] of 1 or 3 channels."""
    channels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    picture = Image.fromarray(np.ascontiguousarray(channels)).reduce(reduced)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    # Whole multiples, so that pixels stay squares.
    zoom = max(1, round(DRAWN / max(picture.size)))
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(uri, alt, zoom * picture.width, zoom * picture.height)
