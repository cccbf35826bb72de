import pytest
import torch

from robustmix.device import memory_hint, pick_device
from robustmix.errors import EvaluationError, SpecError


def test_float32_means_float32() -> None:
    switches = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = True
        pick_device("cpu")
        assert [switch.allow_tf32 for switch in switches] == [False, False]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def test_a_device_that_is_not_there_is_named_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"'cuda' is not available .*cpu"):
        pick_device("cuda")


def test_exhausted_memory_is_one_line_with_a_way_out() -> None:
    with pytest.raises(EvaluationError, match="memory ran out; try half"), memory_hint("half"):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="something else"), memory_hint("half"):
        raise RuntimeError("something else")
