"""``robustmix audit`` and the audit of ``robustmix run``, as they are typed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import run

from robustmix.cli.audit import print_audits
from robustmix.errors import EvaluationError
from robustmix.store.audits import AuditRecord, AuditTest, read_audits

if TYPE_CHECKING:
    from tiny import Call


@pytest.fixture
def place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs").symlink_to(tiny / "runs")
    monkeypatch.setattr("robustmix.audit.workspace.why_no_square", lambda _inputs: "Left out.")
    return tmp_path


def a_test(name: str, verdict: str, meaning: str = "So.") -> AuditTest:
    fields = {"kind": "attack too weak", "title": f"the title of {name}", "measured": f"{name} measured"}
    return AuditTest.model_validate({"name": name, "verdict": verdict, "meaning": meaning, **fields})


def record(target: str, *tests: AuditTest) -> AuditRecord:
    return AuditRecord(
        target=target,
        weights="a" * 64,
        data="digits",
        inputs="b" * 64,
        n=10,
        eps_255=24,
        tests=tests,
        robustmix="0",
        torch="2",
        device="cpu",
        command="robustmix audit",
    )


def test_table_record_and_last_line(place: Path, call: "Call") -> None:
    done = call("audit", "--target", "erm1", "--limit", "12", "--eps", "24", "--device", "cpu")
    (written,) = read_audits(place / "results" / "audits")
    assert done.code == (1 if written.verdict == "fail" else 0)
    assert done.out.startswith(f"audit of erm1: 12 examples of digits, eps 24/255 = 0.09412: {written.verdict}\n")
    for test in written.tests:
        assert test.title in done.out
        assert test.measured in done.out
    assert "- not run: square: Left out." in done.out
    assert "- not run: transfer, not run: fgsm-transfer: There is no other network" in done.out
    assert done.out.splitlines()[-1].startswith("audit: ")
    assert written.command == "robustmix audit --target erm1 --limit 12 --eps 24"


def test_failing_test_is_exit_code_1(place: Path, call: "Call", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustmix.audit.direct.OTHER_ACCURACY", -1)
    monkeypatch.setattr("robustmix.audit.direct.SAME_ACCURACY", -1)
    done = call("audit", "--target", "erm1", "mixup1", "--limit", "4", "--device", "cpu")
    assert done.code == 1
    assert done.out.splitlines()[-1] == "audit: fail: erm1 (accuracy); mixup1 (accuracy)"


def test_meanings_of_all_that_is_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    print_audits(
        [
            record("one", a_test("a", "pass", "Good."), a_test("b", "warn", "Hm."), a_test("c", "finding", "Look.")),
            record("two", a_test("a", "pass", "Good.")),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "- warn: b: Hm." in lines
    assert "- finding: c: Look." in lines
    assert not [line for line in lines if "Good." in line]
    assert lines[-1] == "audit: warn: one"


@pytest.mark.parametrize(
    ("tests", "line"),
    [
        ({"a": "pass", "b": "finding"}, "audit: pass"),
        ({"square": "not run", "a": "pass"}, "audit: pass, 1 test not run (square)"),
        (
            {"square": "not run", "transfer": "not run", "a": "finding"},
            "audit: pass, 2 tests not run (square, transfer)",
        ),
        ({"square": "not run", "a": "warn"}, "audit: warn: one"),
    ],
)
def test_last_line_tells_a_pass_from_what_was_not_run(
    tests: dict[str, str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    several = [a_test(name, verdict) for name, verdict in tests.items()]
    print_audits([record("one", *several), record("two", *(one for one in several if one.verdict != "warn"))])
    assert capsys.readouterr().out.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--target"),
        (("--target", "erm9"), "unknown run 'erm9'"),
        (("--target", "erm1", "--eps", "0.1"), "--eps: budget '0.1' is ambiguous"),
        (("--target", "erm1", "--eps", "200"), "eps 200/255 is no budget to audit at"),
        (("--target", "erm1", "--limit", "0"), "limit"),
        (("--target", "erm1", "--batch-size", "0"), "batch size 0 must be at least 1"),
    ],
)
def test_wrong_options_are_one_line(place: Path, call: "Call", arguments: tuple[str, ...], message: str) -> None:
    done = call("audit", *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (place / "results").exists()


SUITE = """
version = 1
title = "audited"
data = "digits"
sources = ["erm1"]
limit = 12
headline_eps = 24
audit = {audit}

[[attack]]
name = "fgsm"
eps = [24]
"""


def test_run_audits_what_its_suite_names(place: Path, call: "Call") -> None:
    (place / "s.toml").write_text(SUITE.format(audit='"erm*"'))
    done = call("run", "s.toml", "--device", "cpu")
    assert done.code == 0, done.err
    records = read_audits(place / "results" / "audits")
    assert [(one.target, one.n, one.eps_255) for one in records] == [("erm1", 12, 24), ("erm2", 12, 24)]
    assert records[0].command == "robustmix audit --target 'erm*' --data digits --limit 12 --eps 24"
    assert "audit of erm2: 12 examples" in done.out
    assert "report: " in done.out


WITHOUT_TORCHATTACKS = """
from importlib import util
find_spec = util.find_spec
util.find_spec = lambda name, *package: None if name == "torchattacks" else find_spec(name, *package)
"""


@pytest.mark.slow
def test_processes_audit_as_one_does_also_where_an_optional_library_is_missing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCHATTACKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    records = {}
    for devices in (1, 2):
        folder = tmp_path / f"{devices}"
        folder.mkdir()
        (folder / "runs").symlink_to(tiny / "runs")
        (folder / "s.toml").write_text(SUITE.format(audit='"erm1"'))
        done = run("run", "s.toml", "--device", "cpu", "--devices", str(devices), cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("audit of erm1: 12 examples") == 1, "the first process speaks for all"
        (records[devices],) = read_audits(folder / "results" / "audits")
    assert records[1] == records[2]
    (square,) = [test for test in records[1].tests if test.name == "square"]
    assert square.verdict == "not run"
    assert "pip install 'robustmix[attacks]'" in square.measured + square.meaning


def test_page_is_there_before_the_audit_which_may_be_stopped(
    place: Path, call: "Call", monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_args: object, **_kwargs: object) -> None:
        raise EvaluationError("the gradient is NaN")

    monkeypatch.setattr("robustmix.audit.audit", stopped)
    (place / "s.toml").write_text(SUITE.format(audit='"erm*"'))
    done = call("run", "s.toml", "--device", "cpu")
    assert (done.code, "the gradient is NaN" in done.err) == (2, True)
    assert "not audited" in (place / "reports" / "s" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("norm", "head", "message"), [("linf", 192, "192/255 is no budget to audit at"), ("l2", 192, None)]
)
def test_only_a_headline_in_linf_is_a_budget_to_audit_at_and_one_too_large_is_said_at_once(
    place: Path, call: "Call", monkeypatch: pytest.MonkeyPatch, norm: str, head: int, message: str | None
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("robustmix.audit.audit", lambda *_args, eps, **_kwargs: asked.append(eps) or [])
    text = SUITE.format(audit='"erm*"').replace("24", str(head)) + f'norm = "{norm}"\n'
    (place / "s.toml").write_text(text)
    done = call("run", "s.toml", "--device", "cpu")
    if message:
        assert (done.code, message in done.err, asked) == (2, True, [])
        assert not (place / "results").exists()
    else:
        assert (done.code, asked) == (0, [None]), done.err


def test_suite_may_say_at_which_budget_it_audits(place: Path, call: "Call", monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("robustmix.audit.audit", lambda *_args, eps, **_kwargs: asked.append(eps) or [])
    (place / "s.toml").write_text(SUITE.format(audit='"erm*"\naudit_eps = 8'))
    assert call("run", "s.toml", "--device", "cpu").code == 0
    assert asked == [8]


def test_unknown_run_to_audit_is_said_before_anything_is_computed(place: Path, call: "Call") -> None:
    (place / "s.toml").write_text(SUITE.format(audit='["erm1", "erm7"]'))
    done = call("run", "s.toml", "--device", "cpu")
    assert done.code == 2
    assert "unknown run to audit 'erm7'" in done.err
    assert not (place / "results").exists()
