"""Signals to the processes of a graph, and a node of this process with a DDS participant of its own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ki_ros.commands.processes import Graph


def send(name: str, number: signal.Signals) -> float:
    """Sends a signal to the node of that name that this process has started; the time at which it did [s].

    SIGKILL: the node's last moment is that of the call, however long it takes to clear away what is left of it.
    """
    process = _process(f"ki_ros.nodes.{name}")
    now = time.time()
    os.kill(process, number)
    return now


def revive(graph: Graph, name: str) -> None:
    """Starts a node of the graph that was killed."""
    graph.kill(name)
    graph.start(name)


def _process(module: str) -> int:
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if module.encode() in arguments:
                return int(child)
    raise ProcessLookupError(module)


class Participant:
    """A node in this process with a context, and so a DDS participant, of its own; and a thread that spins it."""

    def __init__(self, domain: int, create: Callable[..., Node]) -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.node = create(context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def destroy(self) -> None:
        """Destroys the node, with it the participant, and the context."""
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        self._context.shutdown()
        self._context.destroy()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except (ExternalShutdownException, ShutdownException):
            return
