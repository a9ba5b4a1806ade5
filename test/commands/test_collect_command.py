"""`ki-ros collect`, as a person types it at a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("mujoco", reason="needs mujoco: run scripts/setup")

PATIENCE = 120.0


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def collect(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """More demonstrations than anybody waits for, into `bags`; what is said is in `said`."""
    command = [sys.executable, "-m", "ki_ros.cli", "collect", str(tmp_path / "bags"), "--workers", "2"]
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_one_into_the_same_directory_is_refused_until_the_first_is_gone(
    collect: subprocess.Popen, tmp_path: Path
) -> None:
    bags = tmp_path / "bags"
    command = [*collect.args, "--episodes", "1", "--tasks", "reach"]
    wait(lambda: len(list(bags.glob(".*_*/*"))) == 2)
    begun = set(bags.glob(".*_*/*"))
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert second.stderr == (
        f"ki-ros: output {bags} is in use by another ki-ros collect; wait for it, or give another output\n"
    )
    # What was in progress is, or has been completed.
    assert all(path.exists() or (bags / path.name).exists() for path in begun)
    assert collect.poll() is None

    collect.kill()
    collect.wait()
    assert subprocess.run(command, check=False).returncode == 0
    assert (bags / "reach_000000").is_dir()


def test_two_interrupts_end_it_and_leave_whole_bags_alone(collect: subprocess.Popen, tmp_path: Path) -> None:
    bags, said = tmp_path / "bags", tmp_path / "said"
    wait(lambda: len(list(bags.glob(".*_*/*"))) == 2)
    os.killpg(collect.pid, signal.SIGINT)
    wait(lambda: "stopping" in said.read_text())
    os.killpg(collect.pid, signal.SIGINT)
    assert collect.wait(PATIENCE) == 130
    assert "Traceback" not in said.read_text()
    assert not list(bags.glob(".*_*"))
