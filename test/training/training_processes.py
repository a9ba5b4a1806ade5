"""What a run's processes are doing, from /proc, and one that loads data made to keep its run waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 240.0) -> None:
    """Looks until it is so; not longer than the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def loaders(run: int) -> list[int]:
    """The processes that load a run's data: they are forked by a child of it."""
    return [pid for parent in _children(run) for pid in _children(parent)]


def has_torch(pid: int) -> bool:
    """Whether a process has begun to import torch, which takes seconds."""
    return "libtorch" in _read(pid, "maps")


def keep_waiting(run: subprocess.Popen) -> None:
    """Freezes what loads a run's data, and returns when the run waits for it."""
    for pid in loaders(run.pid):
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: _sleeps(run.pid), run)


def signal_all(run: subprocess.Popen, number: signal.Signals) -> None:
    """A signal to the group of a run that has its own, as a terminal and torchrun send it, and no longer frozen."""
    os.killpg(run.pid, number)
    os.killpg(run.pid, signal.SIGCONT)


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in _read(parent, f"task/{parent}/children").split()]


def _sleeps(pid: int) -> bool:
    """Whether it has done nothing at all between two looks."""
    looks = []
    for _ in range(2):
        state, *figures = _read(pid, "stat").rpartition(") ")[2].split()
        looks.append((state, *figures[10:12]))
        time.sleep(0.05)
    return looks[0] == looks[1] and looks[0][0] == "S"


def _read(pid: int, name: str) -> str:
    """A file of a process; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
