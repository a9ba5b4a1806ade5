"""Nodes and their load as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors, its threads together [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts this Python with arguments; its input and output are pipes of text."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
