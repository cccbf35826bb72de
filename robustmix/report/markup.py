"""What is more than text on the page: scripts with their digests, and what cells of a table sort by."""

import base64
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup

from robustmix.report.text import NONE

# Sorted behind every number.
LARGEST: Final = "1e999"
_NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d+)?")
_ALONE: Final = re.compile(r"[+-]?\d+(?:\.\d+)?%?")
_SUM: Final = re.compile(r"(\S+) \+ (\S+)")
_SPAN: Final = re.compile(r"(\S+) to (\S+)")


@dataclass(frozen=True)
class Script:
    """A script that stands in the page itself.

    Attributes:
        text: of the element, exactly.
        source: what the page's policy has to name for it to run: its SHA-256.
    """

    text: Markup
    source: str

    @classmethod
    def read(cls, path: Path) -> "Script":
        """A script from a file of ours.

        Raises:
            ValueError: it would end the element that it stands in.
        """
        text = path.read_text(encoding="utf-8")
        if "</script" in text or "<!--" in text:
            raise ValueError(f"{path} cannot stand inside a script element")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return cls(Markup(text), f"'sha256-{digest}'")


def sort_value(text: object) -> str | None:
    """The number that a cell sorts by where its text is not simply one; None where it is, or has none at all.

    Args:
        text: as the page writes numbers: ``12.3 %``, ``1,234``, ``4/255``, ``7 + 2.5``, ``2 to 4``, ``[1.0, 2.0]``.

    Returns:
        A number for JavaScript's ``Number``; an empty text for what is missing, which stands last whatever the order.
    """
    plain = " ".join(str(text).split()).replace(",", "").replace("\N{MINUS SIGN}", "-")
    if plain in (NONE, ""):
        return ""
    if plain.startswith(("none long enough", "above")):
        return LARGEST
    if plain.startswith("<"):
        return "0"
    if _ALONE.fullmatch(plain.replace(" ", "")):
        return None
    for pattern, share in ((_SUM, 1.0), (_SPAN, 0.5)):
        if (found := pattern.fullmatch(plain)) and all(_NUMBER.fullmatch(part) for part in found.groups()):
            return f"{share * math.fsum(map(float, found.groups())):g}"
    number = _NUMBER.search(plain)
    return number[0] if number else None
