"""`ki-ros sweep`: trainings over a grid of settings, and a table and a picture of what came of them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from ki_ros.commands.locks import in_use, is_in_use
from ki_ros.commands.signals import terminated_as_interrupted
from ki_ros.files import write_atomically, write_json
from ki_ros.training.assets import open_sources
from ki_ros.training.metrics import METRICS_FILE
from ki_ros.training.sweep import (
    CONFIG_FILE,
    RESULT_FILE,
    Run,
    Sweep,
    SweepError,
    config_text,
    finished,
    load,
    measure,
    require_same,
)
from ki_ros.training.sweep_report import draw, markdown, revisions, summarise, summary, table
from ki_ros.variables import DIE_WITH_PARENT

LOG_FILE = "log.txt"
"""What a run's process wrote, in its directory."""

TAIL_LINES = 15
"""Lines of the log that are shown of a run that failed."""

POLL_SECONDS = 0.2

console = Console()


def sweep(*, config: Path, set: tuple[str, ...], output: Path | None, jobs: int, json: Path | None) -> int:
    """Runs what is not finished, then reports on everything. Arguments as in `ki_ros.cli.Sweep`.

    In the sweep's output: a directory for each run, `sweep.json`, `sweep.md` and `sweep.png`.

    Returns:
        0 when all runs are finished, 1 when some failed, 130 when Ctrl-C ended it: the same command goes on.

    Raises:
        ValueError: a sweep that cannot be run; before anything is started or written.
        OSError: a file that cannot be written.
    """
    if jobs < 1:
        raise SweepError(f"jobs is {jobs}; give at least 1")
    plan = load(config, set, output)
    require_same(plan)
    _require_data(plan)
    with in_use(plan.output, "sweep"):
        states = _Runner(plan, jobs).run()
        command = ["ki-ros", "sweep", str(config)]
        command += ["--set", *set] if set else []
        command += ["--output", str(output)] if output is not None else []
        _report(plan, states, shlex.join(command), json)
    failed = [name for name, state in states.items() if state == "failed"]
    if "interrupted" in states.values() or "waiting" in states.values():
        console.print("interrupted: the same command goes on with the sweep", highlight=False)
        return 130
    if failed:
        console.print(f"failed: {', '.join(failed)}; the same command tries them again", markup=False, highlight=False)
    return 1 if failed else 0


def _require_data(plan: Sweep) -> None:
    """Opens the data of runs that are to be made, each once: a wrong directory is not found out run by run."""
    opened = []
    for run in plan.runs:
        key = (run.config.data, run.model.action_horizon, run.model.action_space)
        if key in opened or finished(run) is not None:
            continue
        try:
            open_sources(run.config, run.model)
        except (ValueError, OSError) as error:
            raise SweepError(f"run {run.name}: {error}") from None
        opened.append(key)


@dataclass(frozen=True)
class _Child:
    run: Run
    popen: subprocess.Popen
    task: TaskID


class _Runner:
    """The processes of a sweep: `jobs` at a time, until all have ended."""

    def __init__(self, plan: Sweep, jobs: int) -> None:
        self._jobs = jobs
        self._states = {run.name: "finished" if finished(run) is not None else "waiting" for run in plan.runs}
        self._waiting = [run for run in plan.runs if self._states[run.name] == "waiting"]
        self._children: list[_Child] = []
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        # Set by the user, it is obeyed: the machine may be shared.
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}
        # A run ends, after saving, when this process does, however it does.
        self._environment[DIE_WITH_PARENT] = str(os.getpid())
        # Refreshed by the loop: a thread of its own would be forked in the middle of anything.
        name = TextColumn("{task.description}", markup=False)
        columns = (name, MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal)
        self._overall = self._progress.add_task("runs", total=len(plan.runs))

    def run(self) -> dict[str, str]:
        """State of each run by name: finished, failed, interrupted or waiting."""
        done = len(self._states) - len(self._waiting)
        self._say(f"{len(self._states)} runs, {done} of them finished, {self._jobs} at a time")
        with self._progress, terminated_as_interrupted():
            try:
                self._loop()
            except KeyboardInterrupt:
                self._interrupt()
            except BaseException:
                self._kill()
                raise
        return self._states

    def _loop(self) -> None:
        while self._waiting or self._children:
            self._start()
            self._collect()
            self._show()
            time.sleep(POLL_SECONDS)
        self._show()

    def _start(self) -> None:
        for run in tuple(self._waiting):
            if len(self._children) >= self._jobs:
                return
            # A process of a sweep that was killed may still be saving there. One of them that has not taken the
            # directory yet never will: it looks for its parent first.
            if is_in_use(run.directory):
                continue
            write_atomically(run.directory / CONFIG_FILE, lambda file, r=run: file.write_text(config_text(r)))
            with open(run.directory / LOG_FILE, "ab") as log:
                popen = subprocess.Popen(
                    [sys.executable, "-m", "ki_ros.cli", "train", str(run.directory / CONFIG_FILE), "--resume"],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C reaches this process alone, which then has each child save.
                    start_new_session=True,
                )
            self._waiting.remove(run)
            task = self._progress.add_task(run.name, total=run.config.steps)
            self._children.append(_Child(run, popen, task))
            self._states[run.name] = "interrupted"
            self._say(f"begun: {run.name}")

    def _collect(self) -> None:
        for child in tuple(self._children):
            status = child.popen.poll()
            if status is None:
                continue
            self._children.remove(child)
            self._progress.remove_task(child.task)
            self._end(child.run, status)

    def _end(self, run: Run, status: int) -> None:
        log = run.directory / LOG_FILE
        how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        if status == 0:
            try:
                result = measure(run)
                write_json(run.directory / RESULT_FILE, result)
            except (ValueError, OSError) as error:
                how = str(error)
            else:
                self._states[run.name] = "finished"
                self._say(f"finished: {run.name}, {result['seconds'] / 60:.1f} min")
                return
        self._states[run.name] = "failed"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        self._say("\n  ".join([f"failed: {run.name} {how}; the end of {log}:", *lines]))

    def _interrupt(self) -> None:
        """Has the children save and end; a second Ctrl-C kills them."""
        self._say("stopping: the runs save first; Ctrl-C once more does not wait for that")
        try:
            for child in self._children:
                child.popen.send_signal(signal.SIGTERM)
            for child in self._children:
                if child.popen.wait() == 0:
                    # It was at its end already.
                    self._end(child.run, 0)
        except KeyboardInterrupt:
            self._kill()

    def _kill(self) -> None:
        for child in self._children:
            child.popen.kill()
        for child in self._children:
            child.popen.wait()

    def _show(self) -> None:
        ended = sum(state in ("finished", "failed") for state in self._states.values())
        self._progress.update(self._overall, completed=ended)
        if not self._progress.disable:
            for child in self._children:
                self._progress.update(child.task, completed=_last_step(child.run.directory / METRICS_FILE))
        self._progress.refresh()

    def _say(self, text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _report(plan: Sweep, states: dict[str, str], command: str, json: Path | None) -> None:
    results: dict[str, Any] = {run.name: finished(run) for run in plan.runs if states[run.name] == "finished"}
    values = {"command": command, **summary(plan, results, states)}
    for file in (plan.output / "sweep.json", *([json] if json is not None else [])):
        write_json(file, values)
    points = summarise(plan, results)
    if not points:
        return
    text = markdown(plan, results, command)
    write_atomically(plan.output / "sweep.md", lambda file: file.write_text(text, encoding="utf-8"))
    write_atomically(plan.output / "sweep.png", lambda file: draw(plan, points, file))
    header, rows = table(plan, points)
    # On a narrow terminal words are broken rather than cut.
    shown = Table(*(Column(escape(name), overflow="fold") for name in header), box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        shown.add_row(*map(escape, row))
    console.print(shown)
    if len(found := revisions(results)) > 1:
        said = f"the runs were made by different code: {', '.join(found)}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{plan.output}: sweep.md, sweep.png, sweep.json", markup=False, highlight=False, soft_wrap=True)


def _last_step(metrics: Path) -> int:
    """The step of the last whole line, of a file that is being written; 0 without one."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            whole = file.read().rpartition(b"\n")[0]
    except FileNotFoundError:
        return 0
    _, found, after = whole.rpartition(b'{"step": ')
    number = after.partition(b",")[0]
    return int(number) if found and number.isdigit() else 0
