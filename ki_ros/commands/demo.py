"""`ki-ros demo`: the graph on the simulated rig for a while, and a report of what it did."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.serialization import deserialize_message
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sensor_msgs.msg import JointState

from ki_ros import bringup, msg, rig
from ki_ros.commands.processes import Graph
from ki_ros.commands.reaching import Scene, Spoken
from ki_ros.commands.rollout import Rollout, figures
from ki_ros.files import write_atomically, write_json
from ki_ros.nodes.monitor import Arrival, Monitor
from ki_ros.sim.tasks import Task

console = Console()

START_SECONDS = 120.0
"""Longest time from the start of the processes to the first command of a chunk [s]."""

DEFAULTS = {
    "robot": "panda",
    "scene": "",
    "seed": 0,
    "command_rate": 100.0,
    "joint_states_topic": "/joint_states",
    "exterior_1.topic": "/camera/exterior_1/image_raw",
}
"""The nodes' own defaults of what the report depends on, for parameter files that leave them out."""


class DemoError(RuntimeError):
    """The demonstration did not come about; the message says at which step and where to look."""


def demo(
    *,
    seconds: float,
    output: Path,
    instruction: str,
    preset: str,
    checkpoint: str,
    params_file: str,
    json: Path | None,
) -> int:
    """Runs the demonstration; returns the exit status, 1 if a limit was violated. Arguments as in `ki_ros.cli.Demo`.

    Raises:
        DemoError, GraphError, BringupError: the graph did not start or did not go on to the end.
    """
    if seconds <= 0:
        raise DemoError(f"seconds is {seconds:g}; give a positive time")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _isolate()
    output.mkdir(parents=True, exist_ok=True)
    settings = bringup.Settings(sim=True, preset=preset, checkpoint=checkpoint, params_file=params_file)
    rollout = _run(settings, seconds, output, instruction)
    values = figures(rollout)
    # matplotlib takes seconds to import, and nobody waits for it while the graph runs.
    from ki_ros.commands.report import draw

    write_json(output / "report.json", values)
    write_atomically(output / "report.png", lambda path: draw(rollout, path))
    if json is not None:
        write_json(json, values)
    _print(values)
    console.print(f"wrote {output / 'report.json'} and {output / 'report.png'}", markup=False)
    if values["limit_violations"]:
        console.print(f"[red]{values['limit_violations']} samples lie beyond a limit of the arm[/]")
        return 1
    return 0


@dataclass(frozen=True)
class _Plan:
    """Instructions, each for an equal share of the time, the colours that they name, and the scene that has them."""

    asks: Sequence[tuple[str, str | None]]
    scene: Scene | None


def _plan(settings: bringup.Settings, instruction: str) -> _Plan:
    simulator = DEFAULTS | bringup.chosen_parameters(settings, "simulator")
    scene = None
    if simulator["scene"]:
        scene = Scene(Task(simulator["scene"]), simulator["seed"], rig.robot(simulator["robot"]))
    if instruction:
        colours = [colour for colour in (scene.layout.blocks if scene else ()) if colour in instruction.split()]
        return _Plan([(instruction, colours[0] if len(colours) == 1 else None)], scene)
    if scene is None:
        raise DemoError("instruction is empty, and the simulator has no scene that names one; give an instruction")
    return _Plan(scene.instructions(), scene)


def _isolate() -> None:
    """Keeps the demonstration off other people's graphs: this machine only, and a domain of its own."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randrange(1, 102)))
    os.environ.update(bringup.environment(sim=True))


def _run(settings: bringup.Settings, seconds: float, output: Path, instruction: str) -> Rollout:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console)
    console.print(f"ROS domain {os.environ['ROS_DOMAIN_ID']}")
    # Checks the settings, before anything reads the parameter file that they name.
    graph = Graph(settings, output / "logs")
    plan = _plan(settings, instruction)
    with _monitor(settings, seconds) as monitor, graph, progress:
        step = progress.add_task("starting simulator, observation, policy and executor", total=None)

        def wait(condition: Callable[[], bool], what: str, timeout: float) -> None:
            progress.update(step, description=f"waiting for {what}")
            deadline = time.monotonic() + timeout
            while not condition():
                graph.check()
                if time.monotonic() > deadline:
                    raise DemoError(f"no {what} within {timeout:g} s{_troubles(monitor)}; see {output / 'logs'}")
                time.sleep(0.02)

        def over(end: float) -> bool:
            elapsed = _elapsed(monitor.clock)
            progress.update(step, completed=elapsed, total=seconds)
            return elapsed >= end

        wait(monitor.first_observation.is_set, "observation", START_SECONDS)
        spoken: list[Spoken] = []
        started = time.monotonic()
        for number, (text, colour) in enumerate(plan.asks):
            answer = monitor.set_instruction(text, timeout=10.0)
            if not answer.success:
                raise DemoError(f"the instruction {text!r} was refused: {answer.message}")
            if number == 0:
                wait(monitor.executing.is_set, "action chunk that the arm executes", START_SECONDS)
                started = time.monotonic()
                monitor.recording.set()
                wait(lambda: bool(monitor.clock), "simulated time", START_SECONDS)
            spoken.append(Spoken(monitor.clock[-1].stamp, text, colour))
            end = seconds * (number + 1) / len(plan.asks)
            wait(partial(over, end), f"{end:.0f} s of simulated time: {text}", 30.0 + 30.0 * seconds)
        monitor.recording.clear()
        wall_seconds = time.monotonic() - started
        progress.update(step, description="stopping")
    return _rollout(monitor, settings, plan.scene, spoken, wall_seconds)


@contextlib.contextmanager
def _monitor(settings: bringup.Settings, seconds: float) -> Iterator[Monitor]:
    """A monitor that a thread spins; the thread has ended before ROS is shut down."""
    simulator = DEFAULTS | bringup.chosen_parameters(settings, "simulator")
    rclpy.init()
    spinner = SingleThreadedExecutor()
    try:
        monitor = Monitor(
            joint_states_topic=simulator["joint_states_topic"],
            camera_topic=simulator["exterior_1.topic"],
            frame_period=seconds / 30,
        )
        spinner.add_node(monitor)
        thread = threading.Thread(target=_spin, args=(spinner,), name="monitor")
        thread.start()
        try:
            yield monitor
        finally:
            spinner.shutdown()
            thread.join()
            monitor.destroy_node()
    finally:
        rclpy.try_shutdown()


def _spin(spinner: SingleThreadedExecutor) -> None:
    with contextlib.suppress(ExternalShutdownException, ShutdownException):
        spinner.spin()


def _elapsed(clock: list[Arrival]) -> float:
    return clock[-1].stamp - clock[0].stamp if len(clock) > 1 else 0.0


def _troubles(monitor: Monitor) -> str:
    """What the nodes themselves say is wrong."""
    said = [f"{name}: {values['message']}" for name, values in monitor.diagnostics.items() if values["message"] != "ok"]
    return " (" + "; ".join(said) + ")" if said else ""


def _rollout(
    monitor: Monitor, settings: bringup.Settings, scene: Scene | None, spoken: list[Spoken], wall_seconds: float
) -> Rollout:
    executor = DEFAULTS | bringup.chosen_parameters(settings, "executor")
    robot = rig.robot(executor["robot"])
    chunks = [deserialize_message(a.data, msg.ActionChunk) for a in monitor.chunks]
    commands = [deserialize_message(a.data, JointState) for a in monitor.commands]
    states = [deserialize_message(a.data, JointState) for a in monitor.joint_states]
    statuses = [deserialize_message(a.data, msg.ExecutorStatus) for a in monitor.statuses]
    joint_times = _stamps(monitor.joint_states)
    joints = _rows([_by_name(state, robot.joint_names, state.position) for state in states], rig.NUM_JOINTS)
    executing = np.array([status.state == msg.ExecutorStatus.EXECUTING for status in statuses], dtype=bool)
    return Rollout(
        robot=robot,
        instruction="; ".join(one.text for one in spoken),
        reaching=None if scene is None else scene.reaching(joint_times, joints, spoken),
        wall_seconds=wall_seconds,
        clock_seconds=_elapsed(monitor.clock),
        observation_times=_stamps(monitor.observations),
        camera_times=_stamps(monitor.camera),
        frames=[_frame(arrival) for arrival in monitor.frames],
        chunk_times=_stamps(monitor.chunks),
        inference_ms=np.array([chunk.inference_time * 1e3 for chunk in chunks]),
        command_times=_stamps(monitor.commands),
        commands=_rows([command.position for command in commands], rig.STATE_DIM),
        joint_times=joint_times,
        joints=joints,
        joint_velocities=_rows(
            [_by_name(state, robot.joint_names, state.velocity) for state in states], rig.NUM_JOINTS
        ),
        status_times=_stamps(monitor.statuses),
        executing=executing,
        steps=np.array([status.step for status in statuses], dtype=float),
        reasons=dict(Counter(status.reason for status in statuses if status.reason)),
        interventions=dict(Counter(name for status in statuses for name in status.interventions)),
        command_rate=executor["command_rate"],
        refused=_refused(monitor),
    )


def _stamps(arrivals: list[Arrival]) -> np.ndarray:
    return np.array([arrival.stamp for arrival in arrivals])


def _rows(rows: list, width: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, width)


def _by_name(state: JointState, names: tuple[str, ...], values) -> list[float]:
    by_name = dict(zip(state.name, values, strict=True))
    return [by_name[name] for name in names]


def _frame(arrival: Arrival) -> tuple[float, dict[str, np.ndarray]]:
    message = deserialize_message(arrival.data, msg.Observation)
    views = {
        view.header.frame_id: np.frombuffer(view.data, np.uint8).reshape(view.height, view.width, 3)
        for view in message.views
    }
    return arrival.stamp, views


def _refused(monitor: Monitor) -> dict[str, int]:
    """Refusals since the observation node started, from its diagnostics."""
    values = monitor.diagnostics.get("observation: observation", {})
    prefix = "refused_"
    return {key.removeprefix(prefix): int(value) for key, value in values.items() if key.startswith(prefix)}


def _print(values: dict) -> None:
    table = Table(title="ki_ros demo", show_header=False)
    for name, value in values.items():
        if name == "instructions":
            value = "\n".join(map(_describe, value))
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
    console.print(table)


def _describe(outcome: dict) -> str:
    if outcome["closest"] is None:
        return outcome["instruction"]
    reached = f"reached after {outcome['seconds']:.1f} s" if outcome["reached"] else "not reached"
    return f"{outcome['instruction']}: {reached}, closest {100 * outcome['closest']:.1f} cm"
