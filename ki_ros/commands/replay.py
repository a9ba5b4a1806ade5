"""`ki-ros replay`: a real episode through the running graph."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ki_ros import bringup, rig, srv
from ki_ros.data.droid import Episode
from ki_ros.files import write_json
from ki_ros.nodes.discovery import LOOK_SECONDS
from ki_ros.nodes.replay import ReplayNode

console = Console()

WAIT_SECONDS = 30.0
"""Longest wait for the graph: its service, its first observation [s]."""

DRAIN_SECONDS = 1.0
"""How long chunks may still come after the last step [s]."""


class ReplayError(RuntimeError):
    """The episode could not be replayed; the message says why and what to do."""


def replay(*, path: Path, episode: int, set_instruction: bool, json: Path | None, robot: str) -> int:
    """Replays an episode and prints what became of it; returns the exit status. Arguments as in `ki_ros.cli.Replay`.

    Raises:
        EpisodeError: an episode that is missing or incomplete.
        ReplayError: the graph is not running, its executor is enabled, or a rig publishes on the same topics.
    """
    recording = Episode.load(path, episode)
    if not recording.image_files:
        raise ReplayError(f"{recording.name} has no images below {path / 'images'}; nothing is made up for them")
    os.environ.update(bringup.environment(sim=False))
    rclpy.init()
    try:
        node = ReplayNode(recording, rig.robot(robot))
        try:
            values = _replay(node, recording, set_instruction)
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    table = Table(title=escape(f"replay of {recording.name}: “{recording.instruction}”"), show_header=False)
    for name, value in values.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    if json is not None:
        write_json(json, values)
    return 0


def _replay(node: ReplayNode, recording: Episode, set_instruction: bool) -> dict:
    if set_instruction:
        _spin_until(
            node,
            node.set_instruction.service_is_ready,
            WAIT_SECONDS,
            "no service set_instruction: is the graph running?",
        )
    _look(node)
    node.lead_in()
    if set_instruction:
        _set_instruction(node, recording.instruction)
    _spin_until(
        node,
        lambda: node.observing,
        WAIT_SECONDS,
        "no observation: is the graph running, and does it use these topics?",
    )
    if set_instruction:
        _spin_until(node, lambda: node.answered, WAIT_SECONDS, "no action chunk: has the policy node been activated?")
    _require(node.objection())
    node.begin()
    started = time.monotonic()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(escape(recording.name), total=len(recording))
        while not node.over:
            rclpy.spin_once(node, timeout_sec=0.1)
            _require(node.interruption())
            progress.update(task, completed=node.step)
    seconds = time.monotonic() - started
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
    latencies = node.inference_ms or [float("nan")]
    return {
        "steps": len(recording),
        "seconds": seconds,
        "observed_steps": len(node.observed),
        "observed_share": len(node.observed) / len(recording),
        "chunks": node.chunks,
        "finite_chunks": node.finite_chunks,
        "infer_ms_p50": float(np.percentile(latencies, 50)),
        "infer_ms_p99": float(np.percentile(latencies, 99)),
    }


def _look(node: ReplayNode) -> None:
    """Waits for as long as discovery may take, and requires that there is nobody whom a recording would disturb."""
    deadline = time.monotonic() + LOOK_SECONDS
    while time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.05)
    _require(node.objection())


def _require(objection: str | None) -> None:
    if objection is not None:
        raise ReplayError(objection)


def _set_instruction(node: ReplayNode, instruction: str) -> None:
    future = node.set_instruction.call_async(srv.SetInstruction.Request(instruction=instruction))
    _spin_until(node, future.done, WAIT_SECONDS, "set_instruction did not answer")
    if not future.result().success:
        raise ReplayError(f"the instruction {instruction!r} was refused: {future.result().message}")


def _spin_until(node: ReplayNode, condition: Callable[[], bool], timeout: float, failure: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ReplayError(f"{failure} (waited {timeout:g} s)")
        rclpy.spin_once(node, timeout_sec=0.05)
        _require(node.interruption())
