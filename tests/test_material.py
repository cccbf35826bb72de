"""What a page is rendered from: what several of its parts rest on is worked out once."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from families import TWO, study

from robustmix.report import checks, comparison, effects, robustness
from robustmix.report.answer import answer
from robustmix.report.checklist import checklist
from robustmix.report.claims import claims
from robustmix.report.material import Material, once
from robustmix.report.methods_text import paragraphs
from robustmix.report.words import answers, warnings

DESIGN = {
    "experiments": ["ali-cifar10", "zhang-table3"],
    "white": ["erm1", "mixup1"],
    "source": "erm1",
    "targets": ["erm2", "mixup1"],
}
PARTS = (answer, answers, warnings, claims, checklist, paragraphs, effects.effects, comparison.comparison_tables)


def made() -> Material:
    return study(TWO, 2, lambda role, name, source, target: 100, published=DESIGN)


def test_every_material_has_its_own() -> None:
    calls: list[Material] = []

    @once
    def names(material: Material) -> tuple[str, ...]:
        """Of its networks."""
        calls.append(material)
        return tuple(material.names)

    first, second = made(), made()
    assert names(first) is names(first)
    assert names(second) == names(first)
    assert [calls[0] is first, calls[1] is second, len(calls)] == [True, True, 2]
    changed = replace(first, runs={"erm1": first.runs["erm1"]})
    assert names(changed) == ("erm1",), "what was worked out of another one does not stick"
    assert names.__doc__ == "Of its networks."


def test_a_function_that_raises_is_asked_again() -> None:
    @once
    def refuses(material: Material) -> None:
        raise ValueError(len(material.derived))

    material = made()
    for _ in range(2):
        with pytest.raises(ValueError, match="0"):
            refuses(material)


def test_two_functions_do_not_share_a_result() -> None:
    first, second = (once(lambda material, word=word: word) for word in ("first", "second"))
    material = made()
    assert (first(material), second(material)) == ("first", "second")


def test_the_parts_of_a_page_share_what_they_rest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[str] = Counter()

    def counting(home: Any, name: str) -> None:
        right: Callable[..., Any] = getattr(home, name)

        def call(*arguments: Any, **named: Any) -> Any:
            counted[name] += 1
            return right(*arguments, **named)

        monkeypatch.setattr(home, name, call)

    # Each is called once, and nowhere else, by what is to be worked out once.
    for home, name in ((effects, "_corrected"), (comparison, "_of_figures"), (robustness, "_levels")):
        counting(home, name)
    material = made()
    for part in PARTS:
        part(material)
    assert counted == {"_corrected": 1, "_of_figures": 1, "_levels": 1}
    assert checks._with_states(material) is checks._with_states(material)
