#!/usr/bin/env python3
"""How evenly the executor node commands while the policy infers beside it, and what its guard costs.

    benchmarks/executor.py [--seconds 20] [--rounds 3] [--rates 100 250] [--threads 1] [--json FILE]

Two nodes publish the same message, /joint_command, at the same rate: the executor node, which executes the policy's
chunks, and a plain rclpy node that does nothing else in the callback of its timer. They run in alternating rounds, each
alone with the policy node (models/ki_tiny, on synthetic observations at 15 Hz) and a node that plays the rig: joint
states at 100 Hz, from an arm that follows its commands. All are processes of their own. Medians of the rounds count.

- jitter: distance of the time between two commands from the period. The time of a command is its stamp, the wall clock
  in the process of the node that publishes it, read just before it is published;
- overruns: commands that came later than a period and a half after the one before, in percent;
- CPU: user and system time of the node's process, all of its threads, in percent of one core;
- guard: processor time of one call, in this process: a motion within the limits passes it, a motion of jumps is at the
  limits all the time; without barriers, and with a workspace, a table and the arm itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from arguments import output_file
from processes import REPOSITORY, cpu_seconds, start

START_SECONDS = 120.0
SETTLE_SECONDS = 2.0
OBSERVATION_HZ, JOINT_HZ = 15.0, 100.0
KINDS = ("plain", "executor")

# The rig


def rig_main() -> None:
    """Publishes observations and joint states; notes the commands between a line on standard input and the next."""
    import array

    import numpy as np
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.qos import QoSProfile
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import Float64MultiArray

    from ki_ros import rig
    from ki_ros.msg import ActionChunk, Epoch, ExecutorStatus, Observation
    from ki_ros.nodes import stamps, topics
    from ki_ros.nodes.polling import subscribe_polled, take_waiting

    rclpy.init()
    node = rclpy.create_node("rig")
    noted: dict[str, list[bytes]] = {"commands": [], "statuses": [], "chunks": []}
    epoch = Epoch()
    observations = node.create_publisher(Observation, topics.OBSERVATION, topics.NEWEST_QOS)
    joint_states = node.create_publisher(JointState, "/joint_states", topics.SENSOR_QOS)
    random_state = np.random.default_rng(0)
    message = Observation(state_names=list(rig.PANDA.state_names))
    for camera in (rig.CameraRole.EXTERIOR_1, rig.CameraRole.WRIST):
        view = Image(height=224, width=224, encoding="rgb8", step=3 * 224)
        view.header.frame_id = camera.value
        view.data = array.array("B", random_state.integers(0, 256, 3 * 224 * 224, dtype=np.uint8).tobytes())
        message.views.append(view)
    positions = list(rig.RESET_JOINT_POSITIONS)
    # Taken when the arm moves, not as they come: what listens must not take the processor from what is measured.
    heard = {
        "commands": (JointState, topics.JOINT_COMMAND),
        "statuses": (ExecutorStatus, topics.EXECUTOR_STATUS),
        "chunks": (ActionChunk, topics.ACTION_CHUNK),
        "controller": (Float64MultiArray, "/forward_position_controller/commands"),
    }
    heard = {
        name: (kind, subscribe_polled(node, kind, topic, QoSProfile(depth=1000)))
        for name, (kind, topic) in heard.items()
    }

    def on_epoch(received: Epoch) -> None:
        epoch.id, epoch.instruction = received.id, received.instruction

    def observe() -> None:
        message.sequence += 1
        message.epoch, message.instruction = epoch.id, epoch.instruction
        message.state = np.array([*positions, 0.0])
        message.header.stamp = stamps.to_message(time.time_ns())
        observations.publish(message)

    def move() -> None:
        for name, messages in noted.items():
            kind, subscription = heard[name]
            taken = [raw for raw, _ in take_waiting(subscription, kind)]
            messages += taken
            if name == "commands" and taken:
                positions[:] = deserialize_message(taken[-1], JointState).position[: rig.NUM_JOINTS]
        state = JointState(name=list(rig.PANDA.joint_names), position=positions)
        state.header.stamp = stamps.to_message(time.time_ns())
        joint_states.publish(state)

    node.create_subscription(Epoch, topics.EPOCH, on_epoch, topics.LATCHED_QOS)
    node.create_timer(1 / OBSERVATION_HZ, observe)
    node.create_timer(1 / JOINT_HZ, move)

    def answer() -> None:
        for line in sys.stdin:
            for messages in noted.values() if line.strip() != "end" else ():
                messages.clear()
            if line.strip() == "wait":
                deadline = time.monotonic() + START_SECONDS
                while not (noted["commands"] and noted["chunks"]) and time.monotonic() < deadline:
                    time.sleep(0.05)
                print("ready" if noted["commands"] and noted["chunks"] else "nothing came", flush=True)
            elif line.strip() == "end":
                found = {name: list(messages) for name, messages in noted.items()}
                commands = [deserialize_message(raw, JointState) for raw in found["commands"]]
                statuses = [deserialize_message(raw, ExecutorStatus) for raw in found["statuses"]]
                reasons = Counter(status.reason or "executing" for status in statuses)
                figures = {
                    "stamps": [stamps.from_message(command.header.stamp) for command in commands],
                    "chunks": len(found["chunks"]),
                    "reasons": dict(reasons.most_common()),
                }
                print(json.dumps(figures), flush=True)

    threading.Thread(target=answer, daemon=True).start()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        return


# The plain node


def plain_main(rate: float) -> None:
    """Publishes a command with every tick of its timer, and an epoch for the policy."""
    import array

    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import JointState

    from ki_ros import rig
    from ki_ros.msg import Epoch
    from ki_ros.nodes import topics

    rclpy.init()
    node = rclpy.create_node("plain")
    epochs = node.create_publisher(Epoch, topics.EPOCH, topics.LATCHED_QOS)
    epochs.publish(Epoch(id=time.time_ns(), instruction="wave"))
    publisher = node.create_publisher(JointState, topics.JOINT_COMMAND, topics.COMMAND_QOS)
    positions = array.array("d", [*rig.RESET_JOINT_POSITIONS, 0.0])
    velocities = array.array("d", [0.0] * 8)
    names = list(rig.PANDA.state_names)

    def tick() -> None:
        message = JointState(name=names, position=positions, velocity=velocities)
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)

    node.create_timer(1 / rate, tick)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        return


# Rounds


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdin.close()
    process.stdout.close()


def ask(rig: subprocess.Popen, question: str) -> str:
    rig.stdin.write(f"{question}\n")
    rig.stdin.flush()
    return "" if question == "begin" else rig.stdout.readline().strip()


def executor_arguments(rate: float, extra: list[str]) -> list[str]:
    settings = {
        "command_rate": float(rate),
        "enabled_at_start": "true",
        "instruction": "wave",
        # Nothing must let the executor rest: no policy that is slow on a busy machine, nor what it makes of noise.
        "max_target_distance": 7.0,
        "max_start_distance": 7.0,
        "max_chunk_age": 2.0,
        "max_chunk_gap": 2.0,
        "chunk_gap_intervals": 0.0,
        "max_joint_state_age": 1.0,
    }
    given = [item for key, value in settings.items() for item in ("-p", f"{key}:={value}")]
    return ["-m", "ki_ros.nodes.executor", "--ros-args", "--log-level", "WARN", *given, *extra]


def run_round(kind: str, rate: float, rig: subprocess.Popen, environment: dict[str, str], options) -> dict[str, Any]:
    """One node beside the policy; the figures of that round."""
    import numpy as np

    if kind == "plain":
        arguments = [str(Path(__file__).resolve()), "--role", "plain", "--rate", str(rate)]
    else:
        arguments = executor_arguments(rate, [item for pair in options.parameter for item in ("-p", pair)])
    load = os.getloadavg()[0]
    node = start(arguments, environment)
    try:
        if (answer := ask(rig, "wait")) != "ready":
            raise SystemExit(f"the {kind} node and the policy did not start within {START_SECONDS:g} s: {answer}")
        time.sleep(SETTLE_SECONDS)
        before, began = cpu_seconds(node.pid), time.monotonic()
        ask(rig, "begin")
        time.sleep(options.seconds)
        used, lasted = cpu_seconds(node.pid) - before, time.monotonic() - began
        heard = json.loads(ask(rig, "end"))
    finally:
        stop(node)
    periods, reasons = np.diff(heard["stamps"]) / 1e9, heard["reasons"]
    jitter = 1e3 * np.abs(periods - 1 / rate)
    p50, p99, p999 = np.percentile(jitter, (50, 99, 99.9))
    return {
        "jitter_ms_p50": float(p50),
        "jitter_ms_p99": float(p99),
        "jitter_ms_p999": float(p999),
        "jitter_ms_max": float(jitter.max()),
        "overruns_percent": 100 * float((periods > 1.5 / rate).mean()),
        "command_hz": len(periods) / float(np.sum(periods)),
        "cpu_percent": 100 * used / lasted,
        "chunk_hz": heard["chunks"] / lasted,
        "executing_percent": 100 * reasons.get("executing", 0) / sum(reasons.values()) if reasons else float("nan"),
        "reasons": reasons,
        "load_before": load,
    }


def measure_rates(options, console) -> dict[float, dict[str, list[dict[str, Any]]]]:
    """All rounds: figures by rate and kind."""
    environment = dict(os.environ)
    environment["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")])
    policy_settings = {
        "checkpoint": str(REPOSITORY / "models" / "ki_tiny"),
        "threads": options.threads,
        "seed": 0,
        "autostart": "true",
    }
    given = [item for key, value in policy_settings.items() for item in ("-p", f"{key}:={value}")]
    rounds = {rate: {kind: [] for kind in KINDS} for rate in options.rates}
    processes = []
    try:
        rig = start([str(Path(__file__).resolve()), "--role", "rig"], environment)
        processes.append(rig)
        arguments = ["-m", "ki_ros.nodes.policy", "--ros-args", "--log-level", "WARN", *given]
        processes.append(start(arguments, environment))
        for i in range(options.rounds):
            for rate in options.rates:
                # Which goes first alternates too, so that a drift of the machine hits both alike.
                for kind in KINDS if i % 2 == 0 else reversed(KINDS):
                    figures = run_round(kind, rate, rig, environment, options)
                    rounds[rate][kind].append(figures)
                    shown = ", ".join(
                        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in figures.items()
                    )
                    console.print(f"round {i + 1} of {options.rounds}, {rate:g} Hz, {kind}: {shown}", style="dim")
    finally:
        for process in processes:
            stop(process)
    return rounds


# The guard


def measure_guard(calls: int) -> list[dict[str, Any]]:
    """Processor time of `Guard.follow`, and of the guard with everything that can be switched on."""
    import numpy as np

    from ki_ros.execution.barriers import SelfCollisionBarrier, WorkspaceBarrier
    from ki_ros.execution.guard import Guard, GuardOptions
    from ki_ros.execution.workspace import WorkspaceBox
    from ki_ros.rig import RESET_JOINT_POSITIONS, ROBOTS

    period = 0.01
    rows = []
    for name, robot in ROBOTS.items():
        start_at = np.clip(RESET_JOINT_POSITIONS, robot.position_lower + 0.3, robot.position_upper - 0.3)
        angle = np.arange(calls)[:, None] * period * np.linspace(1.0, 2.0, 7)
        motions = {
            "within": start_at + 0.1 * (1 - np.cos(angle)),
            "at the limits": start_at
            + np.repeat(np.random.default_rng(0).uniform(-0.5, 0.5, (calls // 20 + 1, 7)), 20, 0)[:calls],
        }
        for barred in (False, True):
            barriers = []
            if barred:
                box = WorkspaceBox([-1.0, -1.0, -0.1], [1.0, 1.0, 1.5], table=-0.1)
                barriers = [WorkspaceBarrier(box), SelfCollisionBarrier(0.01)]
            for motion, wanted in motions.items():
                guard = Guard(robot, GuardOptions(max_tracking_error=3.0), period, barriers)
                guard.reset(start_at)
                times, limited = [], 0
                for target in wanted:
                    began = time.thread_time_ns()
                    done = guard.follow(target, guard.decided, period)
                    times.append(time.thread_time_ns() - began)
                    limited += bool(done.interventions)
                median, p99 = np.percentile(np.array(times) / 1e6, (50, 99))
                rows.append(
                    {
                        "robot": name,
                        "motion": motion,
                        "barriers": barred,
                        "ms_median": float(median),
                        "ms_p99": float(p99),
                        "limited_percent": 100 * limited / calls,
                    }
                )
    return rows


# What is shown

_ROWS = (
    ("jitter_ms_p50", "jitter, median [ms]", "{:.3f}", True),
    ("jitter_ms_p99", "jitter, p99 [ms]", "{:.2f}", True),
    ("jitter_ms_p999", "jitter, p99.9 [ms]", "{:.2f}", True),
    ("jitter_ms_max", "jitter, largest [ms]", "{:.1f}", True),
    ("overruns_percent", "overruns [%]", "{:.2f}", False),
    ("command_hz", "commands [Hz]", "{:.1f}", False),
    ("cpu_percent", "CPU of the node [% of a core]", "{:.1f}", True),
    ("chunk_hz", "chunks of the policy [Hz]", "{:.1f}", False),
    ("executing_percent", "executing [%]", "{:.0f}", False),
    ("load_before", "load of the machine before a round", "{:.1f}", False),
)


def show_rate(console, rate: float, median: dict[str, dict[str, float]]) -> None:
    from rich.table import Table

    table = Table(title=f"/joint_command at {rate:g} Hz while the policy infers")
    table.add_column("")
    for column in ("plain node", "executor node", "executor / plain"):
        table.add_column(column, justify="right")
    for key, label, form, compared in _ROWS:
        plain, ours = median["plain"][key], median["executor"][key]
        shown = f"{ours / plain:.2f}" if compared and plain else ""
        cells = ["" if value != value else form.format(value) for value in (plain, ours)]
        table.add_row(label, *cells, shown)
    console.print(table)


def show_guard(console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="the guard: processor time of a command, and its share of a period at 250 Hz")
    for column in ("arm", "motion", "barriers"):
        table.add_column(column)
    for column in ("median [ms]", "p99 [ms]", "limited [%]", "at 250 Hz [%]"):
        table.add_column(column, justify="right")
    for row in rows:
        shown = [f"{row[key]:.3f}" for key in ("ms_median", "ms_p99")]
        shown += [f"{row['limited_percent']:.0f}", f"{100 * row['ms_median'] / 4:.0f}"]
        table.add_row(row["robot"], row["motion"], "yes" if row["barriers"] else "no", *shown)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each node at each rate; 0: the guard alone")
    parser.add_argument("--rates", type=float, nargs="+", default=[100.0, 250.0], help="commands a second")
    parser.add_argument("--threads", type=int, default=1, help="of the policy; 0: as many as torch takes")
    parser.add_argument("--guard-calls", type=int, default=4000, help="for each figure of the guard")
    parser.add_argument("--parameter", action="append", default=[], help="of the executor, NAME:=VALUE; repeatable")
    parser.add_argument("--json", type=output_file, help="write the figures to this file")
    parser.add_argument("--role", choices=("rig", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "rig":
        return rig_main()
    if options.role == "plain":
        return plain_main(options.rate)

    from rich.console import Console

    console = Console()
    rounds = measure_rates(options, console) if options.rounds else {}
    medians = {
        rate: {
            kind: {key: statistics.median(figures[key] for figures in every) for key, *_ in _ROWS}
            for kind, every in kinds.items()
        }
        for rate, kinds in rounds.items()
    }
    for rate, median in medians.items():
        show_rate(console, rate, median)
    guard = measure_guard(options.guard_calls)
    show_guard(console, guard)
    ratios = {
        rate: median["executor"]["jitter_ms_p99"] / median["plain"]["jitter_ms_p99"] for rate, median in medians.items()
    }
    words = "".join(f"; p99 jitter ratio {ratio:.2f} at {rate:g} Hz" for rate, ratio in ratios.items())
    console.print(f"{os.cpu_count()} cores; alternating rounds, {options.rounds} of each, medians{words}")
    if options.json:
        figures = {"median": medians, "rounds": rounds, "p99_jitter_ratio": ratios, "guard": guard}
        figures |= {"cores": os.cpu_count(), "seconds": options.seconds, "policy_threads": options.threads}
        figures |= {"parameters": options.parameter, "design": "alternating rounds"}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
