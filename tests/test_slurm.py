import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm-run"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the scripts are in the checkout only")

# Stands for robustmix, srun and scontrol: writes down its call, and as srun does what the test asks for.
STUB = """#!/usr/bin/env bash
printf '%s ' "${0##*/}" "$@" >>"$LOG"
if [[ $0 == *srun ]]; then printf 'threads=%s,%s ' "$OMP_NUM_THREADS" "$SRUN_CPUS_PER_TASK" >>"$LOG"; fi
echo >>"$LOG"
if [[ $0 == *srun ]]; then eval "$SRUN_DOES"; fi
if [[ $1 == show ]]; then echo "$SCONTROL_SAYS"; fi
"""
WAITS = """trap 'kill $!; echo ended >>"$LOG"; exit 143' TERM; sleep 600 & echo waits >>"$LOG"; wait"""


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.bin = folder / "bin"
        for name in ("robustmix", "srun", "scontrol"):
            self.stub(self.bin / name)

    def stub(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB)
        path.chmod(0o755)

    def submit(self, *arguments: str, srun_does: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=self.folder,
            env={
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "LOG": str(self.log),
                "SRUN_DOES": srun_does,
                "SLURM_JOB_ID": "42",
                **variables,
            },
            text=True,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def calls(self) -> list[str]:
        return [line.strip() for line in self.log.read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("code", [0, 2])
def test_a_job_that_ends_by_itself_ends_as_robustmix_does(cluster: Cluster, code: int) -> None:
    job = cluster.submit("attack", "--suite", "my suite", srun_does=f"exit {code}", SLURM_CPUS_PER_TASK="8")
    assert job.communicate(timeout=60) == (None, "")
    assert job.returncode == code
    assert cluster.calls() == [f"srun --kill-on-bad-exit=1 {cluster.bin}/robustmix attack --suite my suite threads=8,8"]


def waiting(cluster: Cluster) -> "subprocess.Popen[str]":
    job = cluster.submit("run", "demo", srun_does=WAITS)
    while not (cluster.log.exists() and "waits" in cluster.calls()):
        assert job.poll() is None
        time.sleep(0.01)
    return job


def test_a_job_whose_time_ends_ends_its_tasks_and_goes_back_to_the_queue(cluster: Cluster) -> None:
    job = waiting(cluster)
    job.send_signal(signal.SIGUSR1)
    err = job.communicate(timeout=60)[1]
    assert err == "Stopped by SLURM: job 42 goes back to the queue.\n"
    assert job.returncode == 0
    assert cluster.calls() == [
        f"srun --kill-on-bad-exit=1 {cluster.bin}/robustmix run demo threads=1,1",
        "waits",
        "ended",
        "scontrol requeue 42",
    ]


PREEMPTED = "   PreemptEligibleTime=2026-01-02T03:04:05 PreemptTime=2026-01-02T03:04:06"
LEFT_ALONE = "   PreemptEligibleTime=2026-01-02T03:04:05 PreemptTime=None"


def test_a_job_whose_tasks_are_terminated_before_a_preemption_goes_back_to_the_queue(cluster: Cluster) -> None:
    job = cluster.submit("run", "demo", srun_does="exit 143", SCONTROL_SAYS=PREEMPTED)
    assert job.communicate(timeout=60)[1] == "Stopped by SLURM: job 42 goes back to the queue.\n"
    assert job.returncode == 0
    assert cluster.calls()[-2:] == ["scontrol show job 42", "scontrol requeue 42"]


def test_a_job_of_which_one_task_failed_and_the_others_were_terminated_does_not_come_back(cluster: Cluster) -> None:
    job = cluster.submit("run", "demo", srun_does="exit 143", SCONTROL_SAYS=LEFT_ALONE)
    job.communicate(timeout=60)
    assert job.returncode == 143
    assert cluster.calls()[-1] == "scontrol show job 42"


def test_a_job_that_is_cancelled_does_not_come_back(cluster: Cluster) -> None:
    """SLURM terminates the tasks and the script."""
    job = waiting(cluster)
    os.killpg(job.pid, signal.SIGTERM)
    job.communicate(timeout=60)
    assert job.returncode == -signal.SIGTERM
    assert not any("requeue" in line for line in cluster.calls())


def test_a_job_that_cannot_go_back_to_the_queue_fails(cluster: Cluster) -> None:
    (cluster.bin / "scontrol").write_text("#!/bin/sh\nexit 5\n")
    job = cluster.submit("run", "demo", srun_does="kill -USR1 $PPID; exec sleep 60")
    job.communicate(timeout=60)
    assert job.returncode == 5


def test_robustmix_is_found_in_the_checkout_or_missed_in_one_line(cluster: Cluster) -> None:
    (cluster.bin / "robustmix").unlink()
    place = {"SLURM_SUBMIT_DIR": str(cluster.folder)}
    job = cluster.submit("ls", srun_does="", **place)
    assert "neither a robustmix in PATH nor" in job.communicate(timeout=60)[1]
    assert job.returncode == 1
    cluster.stub(cluster.folder / ".venv/bin/robustmix")
    job = cluster.submit("ls", srun_does="", **place)
    assert job.communicate(timeout=60) == (None, "")
    assert job.returncode == 0
    assert f"{cluster.folder}/.venv/bin/robustmix ls" in cluster.calls()[0]


def test_the_script_can_be_executed() -> None:
    assert os.access(SCRIPT, os.X_OK)
