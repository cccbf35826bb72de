"""Claims: which job computes what in a folder that several share, so that none repeats what another does.

A claim is a file that its job touches again and again. Results never depend on claims: whatever two jobs compute
twice, they compute and write alike, each in files of its own until these are whole (`robustmix.store.parts`).
"""

import json
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from robustmix.errors import StoreError

HEARTBEAT = 10.0
STALE = 60.0
GONE = 86_400.0
# No system numbers its processes so high, and `os.kill` takes no larger one.
PIDS = 2**31


@contextmanager
def claim(folder: Path, key: str) -> Iterator[bool]:
    """Claim a piece of work until the end of the ``with`` block, unless a live job has it.

    A job that was killed leaves its claim behind. Others of the same machine, since the same boot and in the same
    namespace of processes, see in ``/proc`` whether it lives: they take a dead one's claim over at once, and never a
    live one's, however long it has been suspended. All others, and all on a system without ``/proc``, take a claim over
    that nobody has touched for `STALE` seconds: there a job that is suspended for longer loses it.

    Whether the work is still to be done is to be asked inside the block: another job may have finished it a moment
    before.

    Args:
        folder: that the jobs share; made if it is missing.
        key: of the work, fit to be a file's name.

    Yields:
        True if it is claimed now, False if another job has it.

    Raises:
        StoreError: the folder cannot be written, or a folder stands where the claim belongs.
    """
    path = _path(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _create(path)
        if handle is None and _abandoned(path, STALE):
            handle = _take_over(path)
    except IsADirectoryError as error:
        raise StoreError(
            f"{error.filename} is a folder in a claim's place, which keeps all from it: remove it"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from None
    if handle is None:
        yield False
        return
    released = threading.Event()
    heart = threading.Thread(target=_beat, args=(handle, released), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        released.set()
        _withdraw(path, handle)
        # Last, since a file system that stalls may keep the heart for long, and Ctrl-C end the wait for it.
        heart.join()
        os.close(handle)


def forsaken(folder: Path) -> list[str]:
    """The keys that are claimed by jobs which have died, or, where that cannot be seen, are silent for `GONE` seconds.

    `claim` takes over after `STALE` seconds already, for somebody who waits. Where nobody does, a job elsewhere that is
    only suspended has longer.
    """
    with suppress(OSError):  # a folder that cannot be written tells no time
        return [path.stem for path in sorted(folder.glob("*.claim")) if path.is_file() and _abandoned(path, GONE)]
    return []


def untouched(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that nobody has touched for `GONE` seconds, by the clock of its file system."""
    with suppress(OSError):  # another job may remove one in this moment: the next one looks again
        if found := sorted(folder.glob(pattern)):
            now = _now(folder)
            return [path for path in found if now - path.stat().st_mtime > GONE]
    return []


def holder(folder: Path, key: str) -> str | None:
    """Who has claimed a piece of work, as ``HOST, process 123``; None if nobody has."""
    with suppress(OSError):  # none
        if claimed := _read(_path(folder, key).read_bytes()):
            return f"{claimed['host']}, process {claimed['pid']}"
    return None


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.claim"


def _create(path: Path) -> int | None:
    """Make a claim that was not there, and keep it open; None if it was. Of several jobs that try, one succeeds."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    try:
        os.write(handle, json.dumps(_self()).encode())
        os.utime(handle)
    except BaseException:
        _withdraw(path, handle)
        os.close(handle)
        raise
    return handle


def _withdraw(path: Path, handle: int) -> None:
    """Remove a claim of this job, unless its name is another job's by now."""
    with suppress(OSError):
        os.ftruncate(handle, 0)  # if it cannot be removed, it grows stale, although this process lives
    with suppress(OSError):
        if os.path.samestat(os.fstat(handle), path.stat()):
            path.unlink()


def _beat(handle: int, released: threading.Event) -> None:
    """Touch a claim until it is released; by its handle, since the name may be another job's by now."""
    while not released.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(handle)


def _abandoned(path: Path, patience: float) -> bool:
    """Whether the job that made a claim has died or, where that cannot be seen, is silent for so many seconds.

    Raises:
        IsADirectoryError: it is a folder, which nobody ever releases.
    """
    try:
        with path.open("rb") as file:  # opening makes NFS ask the server
            claimed, touched = _read(file.read()), os.fstat(file.fileno()).st_mtime
    except IsADirectoryError:
        raise
    except OSError:  # released in this moment
        return False
    lives = _lives(claimed) if claimed else None
    if lives is not None:
        return not lives
    # Touched in the future it was by a clock that has been set back: within `HEARTBEAT` a live job touches it again.
    return abs(_now(path.parent) - touched) > patience


def _read(content: bytes) -> dict[str, Any] | None:
    """What a claim says, as `_self` has it; None if it is not written yet, or says something else."""
    with suppress(ValueError, RecursionError):
        claimed: dict[str, Any] = json.loads(content)
        match claimed:
            case {"host": str(), "pid": int(pid), "started": int() | None, "realm": str() | None} if 0 < pid < PIDS:
                return claimed
    return None


def _take_over(path: Path) -> int | None:
    """Replace an abandoned claim; None if another job was faster.

    Only one job at a time may, so that none removes the claim that another has just made.
    """
    turn = path.with_suffix(".takeover")
    handle = _create(turn)
    if handle is None:
        if _abandoned(turn, STALE):
            turn.unlink(missing_ok=True)
        return None
    try:
        if not _abandoned(path, STALE):
            return None
        path.unlink(missing_ok=True)
        return _create(path)
    finally:
        os.close(handle)
        turn.unlink(missing_ok=True)


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file system, which need not be that of this machine."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        os.utime(probe.fileno())
        return os.fstat(probe.fileno()).st_mtime


def _self() -> dict[str, Any]:
    """What tells this process from all others of all machines."""
    return {"host": platform.node(), "pid": os.getpid(), "started": _started(os.getpid()), "realm": _realm()}


def _realm() -> str | None:
    """The processes among which a process id means something: a boot of a machine and a namespace; None if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None if it has ended or cannot be seen."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else int(fields[18])
    return None


def _lives(claimed: dict[str, Any]) -> bool | None:
    """Whether a claim's process runs or is suspended, and none that bears its number by now; None if it is not seen."""
    if claimed["realm"] is None or claimed["realm"] != _realm():
        return None
    started = _started(claimed["pid"])
    if started is not None:
        return bool(started == claimed["started"])
    try:
        os.kill(claimed["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, which may be hidden
        return None
    return False
