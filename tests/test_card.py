"""The model card: what it says is so, and no name can break out of where it stands."""

import dataclasses

import pandas as pd
import pytest

from robustmix.interchange.card import escaped, fenced, model_card, table
from robustmix.models import ModelSpec
from robustmix.spec.recipe import Recipe
from robustmix.store.runs import Run, RunFacts

FACTS = RunFacts("digits", "digits", "8x8 digits", "0" * 64, 1437, 3, 11300, "a CPU", 2, "0.1.0", "2.6.0")
HISTORY = pd.DataFrame([{"epoch": 1, "test_error": 0.5}, {"epoch": 2, "test_error": 0.0417}])
RUN = Run("mixup1", Recipe(method="mixup", seed=1, epochs=2), FACTS, HISTORY, "ab" * 32)
SPEC = ModelSpec(name="preact_resnet18", width=16, classes=("cat", "dog", "eel"), shape=(1, 8, 8))


def test_front_matter_comes_first() -> None:
    head, matter, rest = model_card(RUN, SPEC, None, onnx=False).split("---\n", 2)
    assert head == ""
    assert dict(line.split(": ", 1) for line in matter.splitlines() if ": " in line) == {
        "library_name": "robustmix",
        "pipeline_tag": "image-classification",
        "model_name": '"mixup1"',
    }
    assert rest.startswith("\n# mixup1\n")


def test_card_says_what_it_is_how_it_was_trained_and_how_it_errs() -> None:
    card = model_card(RUN, SPEC, None, onnx=False)
    for part in (
        "`preact_resnet18` of width 16, 11,300 parameters, trained on digits with the method `mixup`",
        "images [B, 1, 8, 8] with values in [0, 1] to logits [B, 3]",
        "cat, dog, eel.",
        "```\nrobustmix train --data digits",
        '"method": "mixup"',
        "4.17% of the test images without an attack (of the last epoch, not of the best)",
        "Not measured.",
        "No audit has been made either",
        "from robustmix.hub import Pretrained",
    ):
        assert part in card
    assert "model.onnx" not in card
    assert "`model.onnx` has the input `images`" in model_card(RUN, SPEC, None, onnx=True)


def test_card_of_imported_weights_says_so_and_claims_nothing() -> None:
    facts = dataclasses.replace(
        FACTS, imported_from="ckpt.t7, SHA-256 abc", imported_by="robustmix import ckpt.t7 --name x"
    )
    run = dataclasses.replace(RUN, facts=facts, recipe=Recipe(data="digits", method="mixup"))
    card = model_card(run, SPEC, None, onnx=False)
    assert "By another program; robustmix imported the weights from ckpt.t7, SHA-256 abc." in card
    assert "```\nrobustmix import ckpt.t7 --name x\n```" in card
    assert "measured at the import" in card
    assert '"lr"' not in card
    assert "robustmix train" not in card


NASTY = "a|b`c`\n# head\n<script>alert(1)</script> [x](javascript:y) *z* _u_ \\ & ~~s~~ \x1b[31m\u2028$m$"


def test_nothing_in_a_class_name_is_markup() -> None:
    spec = ModelSpec(name="preact_resnet18", width=16, classes=(NASTY, "dog", "eel"), shape=(1, 8, 8))
    card = model_card(RUN, spec, None, onnx=False)
    assert "<script>" not in card
    assert "\n# head" not in card
    assert "\x1b" not in card
    (line,) = [line for line in card.splitlines() if "alert(1)" in line]
    assert line.endswith("dog, eel.")


@pytest.mark.parametrize("mark", "`*_[]|~$\\")
def test_marks_are_escaped(mark: str) -> None:
    assert escaped(f"a{mark}b") == f"a\\{mark}b"


def test_plain_text_is_left_alone() -> None:
    for text in ("itself (white box)", "I-FGSM, 10 steps", "81.2 - 96.8", "zwölf", "8/255", "50.0%"):
        assert escaped(text) == text
    assert escaped("a < b & c") == "a &lt; b &amp; c"
    assert escaped("  a \n\t b ") == "a b"


def test_every_row_of_a_table_has_its_columns() -> None:
    lines = table(["a", "b"], [["x|y", "p\nq"], ["1", "2"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| x\\|y | p q |", "| 1 | 2 |"]


def test_no_text_ends_its_own_block() -> None:
    for text in ("plain", "a\n```\n# out", "````"):
        first, *_, last = fenced(text).rstrip("\n").split("\n")
        assert first == last
        assert set(first) == {"`"}
        assert len(first) >= 3
        assert first not in text
