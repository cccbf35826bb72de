"""Audits are read as they were written; what cannot be read is said and left out."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from robustmix.store.audits import AuditRecord, AuditTest, read_audits, write_audit


def a_test(verdict: str, name: str = "iterated") -> AuditTest:
    return AuditTest.model_validate(
        {
            "name": name,
            "title": "a title",
            "kind": "attack too weak",
            "verdict": verdict,
            "measured": "1 %",
            "meaning": "So.",
            "excess": 0.25,
            "p": 0.5,
        }
    )


def record(*verdicts: str, target: str = "erm1", weights: str = "a" * 64) -> AuditRecord:
    return AuditRecord(
        target=target,
        weights=weights,
        data="digits",
        inputs="b" * 64,
        n=360,
        eps_255=24,
        tests=tuple(a_test(verdict) for verdict in verdicts or ("pass",)),
        robustmix="0",
        torch="2",
        device="cpu",
        command="robustmix audit --target erm1",
    )


def test_read_as_written_sorted_by_name(tmp_path: Path) -> None:
    later, earlier = record("fail", "pass"), record(target="a1", weights="c" * 64)
    paths = [write_audit(tmp_path / "audits", one) for one in (later, earlier)]
    assert [path.name for path in paths] == [f"{letter * 16}-{'b' * 16}-24.0.json" for letter in "ac"]
    assert read_audits(tmp_path / "audits") == [earlier, later]
    assert read_audits(tmp_path / "nothing") == []


def test_new_audit_of_the_same_network_takes_the_place_of_the_old(tmp_path: Path) -> None:
    write_audit(tmp_path, record("fail"))
    write_audit(tmp_path, record("pass"))
    assert [one.verdict for one in read_audits(tmp_path)] == ["pass"]
    write_audit(tmp_path, record("warn").model_copy(update={"eps_255": 8.0}))
    assert {(one.eps_255, one.verdict) for one in read_audits(tmp_path)} == {(24, "pass"), (8, "warn")}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("pass", "finding", "not run"), "pass"),
        (("not run",), "pass"),
        (("warn", "pass", "finding"), "warn"),
        (("warn", "fail", "pass"), "fail"),
    ],
)
def test_verdict_is_the_worst(verdicts: tuple[str, ...], expected: str) -> None:
    assert record(*verdicts).verdict == expected


@pytest.mark.parametrize("text", ["{", "{}", record().model_dump_json().replace('"version":1', '"version":2')])
def test_what_cannot_be_read_is_left_out(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_audit(tmp_path, record())
    (tmp_path / "other.json").write_text(text)
    assert read_audits(tmp_path) == [record()]
    assert "other.json is no audit that can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"), [("name", "No slug"), ("kind", "other"), ("verdict", "good"), ("p", 1.5), ("excess", "nan")]
)
def test_wrong_test_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        AuditTest.model_validate({**a_test("pass").model_dump(), field: value})
