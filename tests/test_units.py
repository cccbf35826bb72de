"""Budgets as people write them, and lengths as the Python API takes them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from robustmix.errors import SpecError
from robustmix.units import IMAGES, Budget, check_length, echo_budget, format_budget, parse_budget, to_pixels


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("4", 4),
        (4, 4),
        (4.0, 4),
        ("4.5", 4.5),
        (" 4 ", 4),
        ("4/255", 4),
        ("4 / 255", 4),
        ("0.5/255", 0.5),
        (".5/255", 0.5),
        ("1", 1),
        ("1e1", 10),
        ("255", 255),
        ("255/255", 255),
        ("256/255", 256),
        (1000, 1000),
        ("0.0157/255", 0.0157),
    ],
)
def test_budget_is_read_in_units_of_1_255(text: object, budget: float) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.0157", r"'0.0157' is ambiguous: .* pixel range write 4.003, .* one grey level write 0.0157/255"),
        (0.5, r"ambiguous: .* write 127.5, .* write 0.5/255"),
        ("0.999", "ambiguous"),
        ("0", "must be a positive finite number"),
        (0, "must be a positive"),
        ("-4", "must be a positive"),
        ("-4/255", "must be a positive"),
        ("-0.5", "must be a positive"),
        ("nan", "must be a positive finite"),
        (math.nan, "finite"),
        ("inf", "finite"),
        ("nan/255", "finite"),
        ("1e999", "finite"),
        ("four", "'four' is not a number; write 4 or 0.5/255"),
        ("", "not a number"),
        ("/255", "not a number"),
        ("4,5", "not a number"),
        ("4/256", "the only denominator is 255"),
        ("4/", "the only denominator is 255"),
        ("4/255/255", "denominator"),
        ("8/510", "denominator"),
        (None, "not a number"),
        (True, "True is not a number"),
        ([4], "not a number"),
    ],
)
def test_budget_that_is_none_is_refused_in_one_line(text: object, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_budget(text)
    assert "\n" not in str(caught.value)


@given(st.floats(1, 1e6))
def test_budget_survives_being_written_in_full(budget: float) -> None:
    assert parse_budget(budget) == parse_budget(repr(budget)) == parse_budget(f"{budget!r}/255") == budget


@given(st.floats(1e-3, 255))
def test_echoed_budget_is_read_back_to_four_digits(budget: float) -> None:
    left, _, right = echo_budget(budget).partition(" = ")
    assert parse_budget(left) == pytest.approx(budget, rel=1e-3)
    assert float(right) == pytest.approx(to_pixels(budget), rel=1e-3)


@given(st.floats(1e-3, 1, exclude_max=True))
def test_bare_decimal_is_always_refused_and_both_ways_out_are_accepted(value: float) -> None:
    with pytest.raises(SpecError, match="ambiguous") as caught:
        parse_budget(value)
    words = re.search(r"pixel range write (\S+), .* grey level write (\S+)$", str(caught.value))
    assert words is not None
    share, levels = words.groups()
    assert parse_budget(levels) == value
    if value * 255 >= 1:
        assert to_pixels(parse_budget(share)) == pytest.approx(value, rel=1e-3)


def test_budgets_are_written_briefly() -> None:
    assert [format_budget(value) for value in (4.0, 0.5, 4.0036, 255.0)] == ["4", "0.5", "4.004", "255"]
    assert echo_budget(4) == "4/255 = 0.01569"


def test_pixel_units() -> None:
    assert to_pixels(255) == 1
    assert to_pixels(4) == 4 / 255
    assert (IMAGES.low, IMAGES.high, IMAGES.unit_name) == (0, 1, "1/255")
    assert IMAGES.unit == to_pixels(1)


@pytest.mark.parametrize("value", [0, 0.0, 4 / 255, 1])
def test_length_in_pixel_units_is_accepted(value: float) -> None:
    assert check_length(value, "eps") == value


@pytest.mark.parametrize("value", [4, 1.0000001, -1e-9, math.nan, math.inf, -math.inf])
def test_length_that_is_none_is_refused_by_name(value: float) -> None:
    with pytest.raises(SpecError, match=r"^step_size="):
        check_length(value, "step_size")


@pytest.mark.parametrize("value", [None, True, "0.1", [0.1], 1j])
def test_length_that_is_no_number_is_refused_by_name(value: object) -> None:
    shown = repr(value) if value is None or isinstance(value, str | bool) else type(value).__name__
    with pytest.raises(SpecError) as caught:
        check_length(value, "step_size")
    assert str(caught.value) == f"step_size must be a number, a length in pixel units; got {shown}"


def test_longest_length_depends_on_the_norm() -> None:
    assert check_length(8.0, "eps", longest=8) == 8
    with pytest.raises(
        SpecError, match=r"^eps=16 is longer than any .* \(8\): .* write eps=16/255 for 16 grey levels$"
    ):
        check_length(16, "eps", longest=8)


@given(st.floats(1e-6, 1e6))
def test_budget_in_a_file_is_the_same_budget(budget: float) -> None:
    class Holder(BaseModel):
        eps: Budget

    held = Holder.model_validate({"eps": f"{budget!r}/255"})
    assert held.eps == budget
    assert Holder.model_validate(held.model_dump()) == Holder.model_validate_json(held.model_dump_json()) == held
