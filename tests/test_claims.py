import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from robustmix.errors import StoreError
from robustmix.store import claims
from robustmix.store.claims import claim, forsaken, holder, untouched

# Claims every key, says which it got, and keeps them until it is told to stop.
CONTENDER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from robustmix.store.claims import claim

with ExitStack() as stack:
    print("ready", flush=True)
    sys.stdin.readline()
    print(*[key for key in sys.argv[2:] if stack.enter_context(claim(Path(sys.argv[1]), key))], flush=True)
    sys.stdin.readline()
"""


knows_processes = pytest.mark.skipif(claims._realm() is None, reason="the system has no /proc")


def contender(folder: Path, *keys: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", CONTENDER, str(folder), *keys],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> None:
    process.stdin.write("go\n")


def abandon(folder: Path, *keys: str) -> None:
    """Leave the claims of a job that was killed long ago."""
    process = contender(folder, *keys)
    go(process)
    assert process.stdout.readline().split() == [*keys]
    process.kill()
    process.communicate()
    for key in keys:
        os.utime(folder / f"{key}.claim", (0, 0))


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process is on another machine."""
    monkeypatch.setattr(claims, "_realm", lambda: "another boot pid:[1]")


def won(folder: Path, key: str = "unit") -> bool:
    with claim(folder, key) as ours:
        return ours


def test_a_claim_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "claims"
    with claim(folder, "unit") as ours:
        assert ours
        assert not won(folder)
        assert won(folder, "another")
        assert holder(folder, "unit").endswith(f", process {os.getpid()}")
    assert holder(folder, "unit") is None
    assert won(folder)
    assert list(folder.iterdir()) == []


def test_work_that_fails_releases_its_claim(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), claim(tmp_path, "unit"):
        raise ZeroDivisionError
    assert won(tmp_path)


def test_of_several_jobs_exactly_one_gets_each_claim_new_or_abandoned(tmp_path: Path) -> None:
    abandoned, new = [f"abandoned{i}" for i in range(30)], [f"new{i}" for i in range(30)]
    abandon(tmp_path, *abandoned)
    jobs = [contender(tmp_path, *abandoned, *new) for _ in range(3)]
    for job in jobs:
        go(job)
    got = [job.stdout.readline().split() for job in jobs]
    tried_again = [key for key in [*abandoned, *new] if won(tmp_path, key)]
    for job in jobs:
        job.communicate("stop\n")
    assert sorted(key for keys in got for key in keys) == sorted([*abandoned, *new])
    assert tried_again == []
    assert list(tmp_path.iterdir()) == []


@knows_processes
@pytest.mark.parametrize("awaited", [True, False])
def test_the_claim_of_a_killed_job_is_free_at_once_on_its_machine(tmp_path: Path, awaited: bool) -> None:
    job = contender(tmp_path, "unit")
    go(job)
    assert job.stdout.readline() == "unit\n"
    assert not won(tmp_path)
    job.kill()
    os.waitid(os.P_PID, job.pid, os.WEXITED | (0 if awaited else os.WNOWAIT))
    assert won(tmp_path)
    job.communicate()


@knows_processes
def test_a_process_that_only_bears_the_number_of_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    mine = claims._self()
    (tmp_path / "unit.claim").write_text(json.dumps({**mine, "started": mine["started"] - 1}))
    assert won(tmp_path)


@knows_processes
def test_a_job_that_is_only_suspended_keeps_its_claim_on_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = contender(tmp_path, "unit")
    go(job)
    assert job.stdout.readline() == "unit\n"
    job.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, job.pid, os.WSTOPPED)
    os.utime(tmp_path / "unit.claim", (0, 0))
    assert not won(tmp_path)
    assert forsaken(tmp_path) == []
    assert holder(tmp_path, "unit").endswith(f", process {job.pid}")
    with monkeypatch.context() as patch:
        elsewhere(patch)
        assert forsaken(tmp_path) == ["unit"], "nobody else sees that it lives"
    job.kill()
    job.communicate()
    assert won(tmp_path)


@knows_processes
@pytest.mark.parametrize(("seconds", "free"), [(claims.STALE - 10, False), (claims.STALE + 1, True)])
def test_what_another_user_hides_is_judged_by_its_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, free: bool
) -> None:
    def refused(pid: int, number: int) -> None:
        raise PermissionError

    path = tmp_path / "unit.claim"
    path.write_text(json.dumps(claims._self()))
    touched = path.stat().st_mtime
    os.utime(path, (touched, touched - seconds))
    monkeypatch.setattr(claims, "_started", lambda pid: None)
    monkeypatch.setattr(os, "kill", refused)
    assert won(tmp_path) == free


def test_where_processes_cannot_be_seen_silence_is_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_realm", lambda: None)
    with claim(tmp_path, "unit"):
        assert not won(tmp_path)
        os.utime(tmp_path / "unit.claim", (0, 0))
        assert won(tmp_path)


def test_a_claim_that_cannot_be_removed_grows_stale_although_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError

    with monkeypatch.context() as patch, claim(tmp_path, "unit"):
        patch.setattr(Path, "unlink", refused)
    assert not won(tmp_path), "nobody has it, but it was touched a moment ago"
    os.utime(tmp_path / "unit.claim", (0, 0))
    assert won(tmp_path)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("content", [None, b"", b'{"host": "a'])
def test_a_job_elsewhere_is_dead_when_its_claim_is_untouched_for_long(
    tmp_path: Path, content: bytes | None, ahead: bool
) -> None:
    path = tmp_path / "unit.claim"
    foreign = json.dumps({"host": "node7", "pid": 2**22 + 1, "started": 5, "realm": "another boot pid:[1]"}).encode()
    path.write_bytes(foreign if content is None else content)
    assert not won(tmp_path)
    assert holder(tmp_path, "unit") == ("node7, process 4194305" if content is None else None)
    touched = path.stat().st_mtime
    os.utime(path, (touched, touched - claims.STALE + 10))
    assert not won(tmp_path)
    # A clock that has been set back leaves it in the future.
    far = claims.STALE + 60 if ahead else -claims.STALE - 1
    os.utime(path, (touched, touched + far))
    assert won(tmp_path)


def test_the_heartbeat_keeps_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.05)
    with claim(tmp_path, "unit"):
        path = tmp_path / "unit.claim"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while not path.stat().st_mtime:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        elsewhere(monkeypatch)
        assert not won(tmp_path)


def test_a_job_whose_claim_was_taken_over_does_not_release_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(tmp_path, "unit"):
        os.utime(tmp_path / "unit.claim", (0, 0))
        elsewhere(monkeypatch)
        successor = claim(tmp_path, "unit")
        assert successor.__enter__()
    assert holder(tmp_path, "unit")
    assert not won(tmp_path)
    successor.__exit__(None, None, None)
    assert holder(tmp_path, "unit") is None


def test_a_claim_that_another_job_took_over_a_moment_ago_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandon(tmp_path, "unit")
    create, rival = claims._create, claim(tmp_path, "unit")

    def overtaken(path: Path) -> int | None:
        if path.suffix == ".takeover":
            monkeypatch.setattr(claims, "_create", create)
            assert rival.__enter__()
        return create(path)

    monkeypatch.setattr(claims, "_create", overtaken)
    assert not won(tmp_path)
    assert holder(tmp_path, "unit")
    rival.__exit__(None, None, None)


def test_a_take_over_that_was_interrupted_blocks_nobody(tmp_path: Path) -> None:
    abandon(tmp_path, "unit")
    os.link(tmp_path / "unit.claim", tmp_path / "unit.takeover")
    assert not won(tmp_path)
    assert won(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.unit\.claim cannot be written"), claim(tmp_path / "file", "unit"):
        pass


@knows_processes
def test_forsaken_are_the_claims_of_dead_jobs_alone(tmp_path: Path) -> None:
    assert forsaken(tmp_path / "nowhere") == []
    abandon(tmp_path, "b", "a")
    now = time.time()
    for key in ("b", "a"):
        os.utime(tmp_path / f"{key}.claim", (now, now))
    with claim(tmp_path, "alive"):
        os.utime(tmp_path / "alive.claim", (now, now - claims.STALE - 1))
        assert forsaken(tmp_path) == ["a", "b"]
    assert forsaken(tmp_path) == ["a", "b"], "looking takes nothing over"


def test_a_job_elsewhere_is_given_longer_where_nobody_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "unit.claim"
    path.write_text(json.dumps({"host": "node7", "pid": 2**22 + 1, "started": 5, "realm": "another boot pid:[1]"}))
    touched = path.stat().st_mtime
    os.utime(path, (touched, touched - claims.GONE + 10))
    assert forsaken(tmp_path) == []
    os.utime(path, (touched, touched - claims.GONE - 1))
    assert forsaken(tmp_path) == ["unit"]


def test_untouched_is_what_was_written_long_ago(tmp_path: Path) -> None:
    assert untouched(tmp_path / "nowhere", "*") == []
    for name, age in (("old.a", claims.GONE + 60), ("young.a", claims.GONE - 60), ("old.b", claims.GONE + 60)):
        path = tmp_path / name
        path.touch()
        os.utime(path, (0, path.stat().st_mtime - age))
    assert untouched(tmp_path, "*.a") == [tmp_path / "old.a"]
