"""Starting the graph's processes without a launch package, watching them, and stopping them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ki_ros import bringup

STOP_SECONDS = 5.0
"""A process that has not ended this long after SIGTERM is killed."""


class GraphError(RuntimeError):
    """A process of the graph ended; the message names it and shows the end of its output."""


@dataclass(frozen=True)
class _Process:
    name: str
    popen: subprocess.Popen
    log: Path


class Graph:
    """The processes of a graph. A context manager: leaving it stops every process that it started.

    Args:
        settings: what to start.
        directory: where parameter files and logs go; made if it is missing.
        echo: write the nodes' output to this process's own instead of log files.

    Raises:
        BringupError: settings that cannot be started; no process has been started then.
    """

    def __init__(self, settings: bringup.Settings, directory: Path, *, echo: bool = False) -> None:
        self._directory = directory
        self._echo = echo
        self._descriptions = bringup.describe(settings)
        variables = bringup.environment(sim=settings.sim, nodes=settings.nodes)
        self._environment = {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
        self._processes: dict[str, _Process] = {}
        self._logged: set[str] = set()

    def __enter__(self) -> Graph:
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            for description in self._descriptions:
                self.start(description.name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def names(self) -> list[str]:
        """Names of the graph's nodes."""
        return [description.name for description in self._descriptions]

    def start(self, name: str) -> None:
        """Starts one node of the graph, again if it has ended."""
        (description,) = (d for d in self._descriptions if d.name == name)
        command = [sys.executable, "-m", description.module, "--ros-args"]
        for index, source in enumerate(description.parameters):
            if isinstance(source, dict):
                path = self._directory / f"{name}.{index}.yaml"
                path.write_text(yaml.safe_dump({name: {"ros__parameters": source}}), encoding="utf-8")
                source = path
            command += ["--params-file", str(source)]
        self.run(name, command)

    def run(self, name: str, command: Sequence[str]) -> None:
        """Starts another process under the graph's care. Its log replaces one of an earlier graph."""
        log = self._directory / f"{name}.log"
        with open(log, "ab" if name in self._logged else "wb") as output:
            self._logged.add(name)
            popen = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=None if self._echo else output,
                stderr=None if self._echo else subprocess.STDOUT,
                # Ctrl-C reaches this process alone, which then stops the others in order.
                start_new_session=True,
            )
        self._processes[name] = _Process(name, popen, log)

    def check(self) -> None:
        """Raises GraphError if a process has ended."""
        for process in self._processes.values():
            status = process.popen.poll()
            if status is not None:
                raise GraphError(f"{process.name} ended with status {status}{self._tail(process)}")

    def wait(self) -> None:
        """Returns only by an exception: GraphError when a process ends, KeyboardInterrupt."""
        while True:
            self.check()
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """Ends a process at once, as a crash would (SIGKILL), and returns when it is gone."""
        process = self._processes.pop(name)
        process.popen.kill()
        process.popen.wait()

    def stop(self) -> None:
        """Stops every process: first all but the executor, which holds the arm until the last."""
        order = sorted(self._processes.values(), key=lambda process: process.name == "executor")
        for process in order:
            if process.popen.poll() is None:
                process.popen.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in order:
            try:
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self._processes.clear()

    def _tail(self, process: _Process) -> str:
        if self._echo or not process.log.is_file():
            return ""
        lines = process.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return ":\n  " + "\n  ".join(lines)
