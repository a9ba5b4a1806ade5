"""Work that is spread over processes: what is said where it fails, and that it ends with the process that spread it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from ki_ros.commands.workers import spread

SCRIPT = """
import os, sys, time
from pathlib import Path
from rich.console import Console
from ki_ros.commands.workers import spread

def make():
    return None

def work(_state, directory):
    Path(directory, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    for _ in spread(make, work, [sys.argv[1]] * 2, workers=2, title="waiting", console=Console(stderr=True)):
        pass
"""
PATIENCE = 60.0


def wait(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    """A process that has ended and is not waited for by anybody counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_of_a_process_that_is_killed_end(tmp_path: Path) -> None:
    script, started = tmp_path / "script.py", tmp_path / "started"
    script.write_text(SCRIPT)
    started.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(started)], stderr=subprocess.DEVNULL)
    try:
        wait(lambda: len(os.listdir(started)) == 2)
        workers = [int(name) for name in os.listdir(started)]
        assert all(running(pid) for pid in workers)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait(lambda: not any(running(pid) for pid in workers))
    finally:
        parent.kill()


def refuse() -> None:
    raise ValueError("colour is 'mauve'; use red")


def nothing(_state: None, item: int) -> int:
    return item


def test_what_is_wrong_with_a_process_is_said(capfd) -> None:
    with pytest.raises(ValueError, match=r"^colour is 'mauve'; use red$"):
        list(spread(refuse, nothing, range(5), workers=2, title="", console=Console(quiet=True)))
    assert "Traceback" not in capfd.readouterr().err


def test_a_number_of_processes_that_there_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="workers is -1; give at least 1"):
        list(spread(int, nothing, range(5), workers=-1, title="", console=Console(quiet=True)))
