"""`ki-ros record`: the recorder on a graph that runs already, with episodes begun and ended from the keyboard."""

from __future__ import annotations

import dataclasses
import os
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import rclpy
from rclpy.client import Client
from rclpy.node import Node
from rich.console import Console
from rich.markup import escape

from ki_ros import bringup, srv
from ki_ros.commands.processes import Graph
from ki_ros.nodes import topics
from ki_ros.nodes.discovery import LOOK_SECONDS, UNNAMED
from ki_ros.nodes.recorders import company

console = Console()

START_SECONDS = 30.0
"""Longest wait for the recorder's services [s]."""

ANSWER_SECONDS = 90.0
"""Longest wait for an answer: completing a bag waits for the disk [s]."""

_NAME_SECONDS = 3.0
"""How much longer to wait for the name of another recorder [s]."""

_RECORDER = "/recorder"
"""Full name of the recorder that is started here."""

_OUTCOMES = {
    "s": srv.StopEpisode.Request.SUCCESS,
    "f": srv.StopEpisode.Request.FAILURE,
    "u": srv.StopEpisode.Request.UNKNOWN,
}

_IDLE = "[bold]Enter[/] begins an episode, a text and Enter one with that instruction, [bold]q[/] ends"
_RECORDING = "[bold]s[/] success, [bold]f[/] failure, [bold]u[/] unknown (each with Enter) end the episode"


class RecordError(RuntimeError):
    """Recording did not come about; the message says why and what to do."""


def record(
    *,
    output: Path,
    params_file: str,
    instruction: str,
    robot: str,
    sim: bool,
    auto_episodes: bool,
    plain: bool,
    print_plain: bool,
) -> int:
    """Records until q, Ctrl-C or SIGTERM; returns the exit status. Arguments as in `ki_ros.cli.Record`.

    Raises:
        BringupError: settings that cannot be started.
        GraphError: the recorder ended.
        RecordError: rosbag2 is asked for and not installed, the recorder does not answer, or there is another one.
    """
    settings = bringup.Settings(
        sim=sim,
        nodes="recorder",
        robot=robot,
        params_file=params_file,
        record=str(output),
        auto_episodes=auto_episodes,
    )
    if plain or print_plain:
        if output == Path(bringup.RECORDINGS):
            # Nobody chose it, and rosbag2 refuses a directory that exists; it makes up a name of its own.
            settings = dataclasses.replace(settings, record="true")
        command = bringup.plain_record_command(settings)
        if print_plain:
            console.print(shlex.join(command), markup=False, highlight=False, soft_wrap=True)
            return 0
        _become(command)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.update(bringup.environment(sim=sim))
    with tempfile.TemporaryDirectory(prefix="ki_ros-") as directory:
        graph = Graph(settings, Path(directory), echo=True)
        try:
            with graph:
                _Conversation(graph, instruction).run()
        except KeyboardInterrupt:
            console.print("stopped; an episode in progress has been completed, its outcome is unknown")
    return 0


def _become(command: list[str]) -> NoReturn:
    if shutil.which("ros2") is None:
        raise RecordError(
            "plain needs `ros2 bag`, which is not installed: sudo apt install ros-$ROS_DISTRO-rosbag2 "
            "ros-$ROS_DISTRO-rosbag2-storage-mcap, or leave plain out: the recorder writes the same format"
        )
    os.execvp(command[0], command)


class _Conversation:
    """Reads lines from standard input and calls the recorder's services. At the input's end only the services are left.

    rclpy lives as long as `run`.
    """

    def __init__(self, graph: Graph, instruction: str) -> None:
        self._graph = graph
        self._instruction = instruction
        self._lines = _Lines()
        self._recording = False

    def run(self) -> None:
        """Returns when the person has had enough."""
        rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        try:
            node = Node("record_keyboard")
            self._start = node.create_client(srv.StartEpisode, topics.START_EPISODE)
            self._stop = node.create_client(srv.StopEpisode, topics.STOP_EPISODE)
            self._node = node
            self._wait_for_services()
            self._looked = time.monotonic() + LOOK_SECONDS
            self._look()
            console.print(_IDLE)
            while (line := self._lines.next(0.2)) is not None or not self._lines.over:
                self._look()
                if line is not None and not self._take(line.strip()):
                    return
            console.print("no more input; the services go on, Ctrl-C ends")
            while time.monotonic() < self._looked:
                self._look()
                time.sleep(0.2)
            self._graph.wait()
        finally:
            rclpy.try_shutdown()

    def _take(self, line: str) -> bool:
        """Does what a line asks for. False: it asks for the end."""
        if line == "q":
            if self._recording:
                self._end("u")
            return False
        if not self._recording:
            self._begin(line)
        elif line in _OUTCOMES:
            self._end(line)
        else:
            console.print(_RECORDING)
        return True

    def _look(self) -> None:
        """Raises GraphError if the recorder has ended, RecordError if another was there before it.

        Another may become known some time after the services are there. One that comes later is refused itself.
        """
        self._graph.check()
        if time.monotonic() > self._looked:
            return
        deadline = time.monotonic() + _NAME_SECONDS
        while (problem := self._company()) is not None:
            if UNNAMED not in problem or time.monotonic() > deadline:
                raise RecordError(problem)
            time.sleep(0.1)

    def _company(self) -> str | None:
        return company(self._node, self._node.resolve_service_name(topics.START_EPISODE), _RECORDER)

    def _begin(self, line: str) -> None:
        if (problem := self._company()) is not None:
            # Both would be asked.
            console.print(f"[red]{problem}[/]", highlight=False)
            console.print(_IDLE)
            return
        self._instruction = line or self._instruction
        answer = self._call(self._start, srv.StartEpisode.Request(instruction=self._instruction))
        self._recording = answer.success
        self._say(answer, _RECORDING)

    def _end(self, key: str) -> None:
        answer = self._call(self._stop, srv.StopEpisode.Request(outcome=_OUTCOMES[key]))
        # Whatever it answers, the episode is over: the recorder may have ended it itself.
        self._recording = False
        self._say(answer, _IDLE)

    def _say(self, answer: srv.StartEpisode.Response | srv.StopEpisode.Response, then: str) -> None:
        said = escape(answer.message)
        console.print(said if answer.success else f"[red]{said}[/]", highlight=False)
        console.print(then)

    def _wait_for_services(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (self._start.service_is_ready() and self._stop.service_is_ready()):
            self._graph.check()
            if time.monotonic() > deadline:
                raise RecordError(f"the recorder has no services after {START_SECONDS:g} s; see its output")
            rclpy.spin_once(self._node, timeout_sec=0.1)

    def _call(self, client: Client, request: srv.StartEpisode.Request | srv.StopEpisode.Request):
        future = client.call_async(request)
        deadline = time.monotonic() + ANSWER_SECONDS
        while not future.done():
            self._graph.check()
            if time.monotonic() > deadline:
                raise RecordError(f"{client.srv_name} did not answer within {ANSWER_SECONDS:g} s; see its output")
            rclpy.spin_once(self._node, timeout_sec=0.1)
        return future.result()


class _Lines:
    """Lines of standard input, without waiting for ever for one."""

    def __init__(self) -> None:
        self._rest = b""
        self.over = False

    def next(self, timeout: float) -> str | None:
        """The next line, or None if there is none within `timeout` [s] or no more at all (`over`)."""
        if b"\n" not in self._rest and not self.over:
            ready, _, _ = select.select([sys.stdin.fileno()], [], [], timeout)
            data = os.read(sys.stdin.fileno(), 4096) if ready else None
            self.over = data == b""
            self._rest += data or b""
        line, newline, rest = self._rest.partition(b"\n")
        if not newline:
            return None
        self._rest = rest
        return line.decode(errors="replace")
