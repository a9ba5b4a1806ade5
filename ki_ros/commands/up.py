"""`ki-ros up`: the graph of the launch file, on a machine without the launch package."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ki_ros import bringup
from ki_ros.commands.processes import Graph, GraphError

console = Console(stderr=True)


def up(settings: bringup.Settings) -> int:
    """Runs the graph until Ctrl-C, or until one of its processes ends. Returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="ki_ros-") as directory:
        graph = Graph(settings, Path(directory), echo=True)
        console.print(
            f"starting {', '.join(graph.names)} on ROS domain {os.environ.get('ROS_DOMAIN_ID', '0')}; Ctrl-C ends them"
        )
        try:
            with graph:
                graph.wait()
        except GraphError as error:
            console.print(f"[red]{escape(str(error))}[/]; everything has been stopped")
            return 1
        except KeyboardInterrupt:
            console.print("stopped")
    return 0
