import base64
import hashlib
from pathlib import Path

import pytest

from robustmix.report.markup import Script, sort_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12.3\N{NO-BREAK SPACE}%", None),
        ("-3.4", None),
        ("1,234", None),
        ("\N{MINUS SIGN}3.4", None),
        ("–", ""),
        ("", ""),
        ("4/255", "4"),
        ("0.5/255", "0.5"),
        ("7 + 2.5", "9.5"),
        ("2 to 4", "3"),
        ("-1 to +3", "1"),
        ("[27.6,\N{NO-BREAK SPACE}37.2]", "27.6"),
        ("-3.7 [-6.1, -1.3]", "-3.7"),
        ("< 0.001", "0"),
        ("above 8", "1e999"),
        ("none long enough", "1e999"),
        ("preact_resnet", None),
        ("anything to +4", "+4"),
    ],
)
def test_what_a_cell_sorts_by(text: str, value: str | None) -> None:
    assert sort_value(text) == value


def test_script_is_named_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "page.js"
    path.write_text('const x = "ü" < 3;\n', encoding="utf-8")
    script = Script.read(path)
    assert script.source == f"'sha256-{base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()}'"
    assert script.text == path.read_text(encoding="utf-8")
    assert f"{script.text}" == script.text.__html__(), "not escaped again"


@pytest.mark.parametrize("text", ["'</script>'", "<!-- x"])
def test_script_that_would_end_its_element(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.js").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="cannot stand inside"):
        Script.read(tmp_path / "page.js")
