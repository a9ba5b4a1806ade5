#!/usr/bin/env python3
"""What the observation node costs: three 1280x720 cameras at 30 Hz and joint states at 1 kHz, over real Fast DDS.

    benchmarks/ros_overhead.py [--seconds 20] [--rounds 3] [--json FILE]

Two nodes do the same work under the same load: the observation node, and a plain node that deserialises, converts and
resizes every frame in its callback, as it arrives, and publishes the newest at 15 Hz. They run in alternating rounds,
each alone with the publishers, so that neither takes processor time from the other. Publishers, node and listener are
processes of their own. Medians of the rounds are shown.

- delivered: images that reached the node's Python code, of those that were published;
- latency: stamp of a view in an observation to the arrival of that observation at the listener;
- CPU: user and system time of the node's process, all of its threads, in percent of one core, while images flow.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from arguments import output_file
from processes import REPOSITORY, cpu_seconds, start

CAMERAS = ("exterior_1", "exterior_2", "wrist")
WIDTH, HEIGHT = 1280, 720
IMAGE_HZ, JOINT_HZ, GRIPPER_EVERY = 30.0, 1000.0, 10
START_SECONDS = 60.0


# Set for the processes of a run, so that no other graph on this machine has its topics.
NAMESPACE = os.environ.get("KI_ROS_OVERHEAD_NAMESPACE", "")


def topic(camera: str) -> str:
    return f"{NAMESPACE}/camera/{camera}/image_raw"


# Publishers


def publish(hertz: float, count: int, publisher: Any, messages: list[bytes], extra: Any = None) -> dict[str, float]:
    """Publishes serialised messages, stamped as they leave, on schedule; returns the rate that was reached."""
    import struct

    buffers = [bytearray(message) for message in messages]
    stamp = struct.Struct("<iI")
    began = time.perf_counter()
    cpu = time.process_time()
    for i in range(count):
        wait = began + i / hertz - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        buffer = buffers[i % len(buffers)]
        stamp.pack_into(buffer, 4, *divmod(time.time_ns(), 1_000_000_000))
        publisher.publish(bytes(buffer))
        if extra is not None and i % GRIPPER_EVERY == 0:
            extra()
    seconds = time.perf_counter() - began
    return {"count": count, "hz": count / seconds, "cpu_percent": 100 * (time.process_time() - cpu) / seconds}


def publisher_main(name: str, seconds: float) -> None:
    """A camera, or `joints`: the arm at 1 kHz and the gripper beside it."""
    import numpy as np
    import rclpy
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import Image, JointState

    from ki_ros import rig
    from ki_ros.nodes.stamps import to_message
    from ki_ros.nodes.topics import SENSOR_QOS

    rclpy.init()
    node = rclpy.create_node(f"publisher_{name}")
    extra = None
    if name == "joints":
        publisher = node.create_publisher(JointState, f"{NAMESPACE}/joint_states", SENSOR_QOS)
        gripper = node.create_publisher(JointState, f"{NAMESPACE}/gripper/joint_states", SENSOR_QOS)
        names = list(rig.PANDA.joint_names)
        messages = [serialize_message(JointState(name=names, position=[0.1] * 7, velocity=[0.0] * 7, effort=[0.0] * 7))]
        closed = JointState(name=[rig.GRIPPER_JOINT], position=[0.4])

        def extra() -> None:
            closed.header.stamp = to_message(time.time_ns())
            gripper.publish(closed)

        hertz, waiting = JOINT_HZ, (publisher, gripper)
    else:
        publisher = node.create_publisher(Image, topic(name), SENSOR_QOS)
        random_state = np.random.default_rng(0)
        messages = []
        for _ in range(3):
            pixels = random_state.integers(0, 256, HEIGHT * WIDTH * 4, dtype=np.uint8)
            image = Image(height=HEIGHT, width=WIDTH, encoding="bgra8", step=4 * WIDTH)
            image.header.frame_id = name
            image.data = array.array("B", pixels.tobytes())
            messages.append(serialize_message(image))
        hertz, waiting = IMAGE_HZ, (publisher,)
    deadline = time.monotonic() + START_SECONDS
    while any(p.get_subscription_count() == 0 for p in waiting):
        if time.monotonic() > deadline:
            raise SystemExit(f"{name}: nobody subscribed within {START_SECONDS:g} s")
        time.sleep(0.02)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(publish(hertz, round(hertz * seconds), publisher, messages, extra)), flush=True)
    sys.stdin.readline()
    rclpy.shutdown()


# The plain node


def plain_main() -> None:
    """Decodes every frame as it arrives; publishes the newest views at 15 Hz."""
    import cv2
    import numpy as np
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import Image, JointState

    from ki_ros import rig
    from ki_ros.msg import Observation
    from ki_ros.nodes.topics import NEWEST_QOS, OBSERVATION, SENSOR_QOS
    from ki_ros.resize import resize_with_pad

    rclpy.init()
    node = rclpy.create_node("plain", namespace=NAMESPACE)
    received = dict.fromkeys(CAMERAS, 0)
    newest: dict[str, tuple[Any, np.ndarray]] = {}
    state = np.zeros(8)
    publisher = node.create_publisher(Observation, OBSERVATION, NEWEST_QOS)

    def on_image(camera: str, message: Image) -> None:
        received[camera] += 1
        pixels = np.frombuffer(message.data, dtype=np.uint8).reshape(message.height, message.step)
        pixels = pixels[:, : 4 * message.width].reshape(message.height, message.width, 4)
        newest[camera] = (message.header, resize_with_pad(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB), 224))

    def on_joints(message: JointState) -> None:
        index = {name: i for i, name in enumerate(message.name)}
        state[:7] = [message.position[index[name]] for name in rig.PANDA.joint_names]

    def on_gripper(message: JointState) -> None:
        state[7] = rig.gripper_closedness(message.position[0])

    def tick() -> None:
        if len(newest) < len(CAMERAS):
            return
        message = Observation(state=state, state_names=list(rig.PANDA.state_names))
        message.header.stamp = node.get_clock().now().to_msg()
        for camera, (header, pixels) in newest.items():
            view = Image(height=224, width=224, encoding="rgb8", step=3 * 224)
            view.header.stamp, view.header.frame_id = header.stamp, camera
            view.data = array.array("B", pixels.tobytes())
            message.views.append(view)
        publisher.publish(message)

    for camera in CAMERAS:
        node.create_subscription(
            Image, topic(camera), lambda message, camera=camera: on_image(camera, message), SENSOR_QOS
        )
    node.create_subscription(JointState, f"{NAMESPACE}/joint_states", on_joints, SENSOR_QOS)
    node.create_subscription(JointState, f"{NAMESPACE}/gripper/joint_states", on_gripper, SENSOR_QOS)
    node.create_timer(1 / 15, tick)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        print(json.dumps(received), flush=True)


# The listener


def listener_main() -> None:
    """Notes when each observation arrived, and what the observation node's diagnostics count."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.executors import ExternalShutdownException

    from ki_ros.msg import Observation
    from ki_ros.nodes.stamps import from_message
    from ki_ros.nodes.topics import NEWEST_QOS, OBSERVATION

    rclpy.init()
    node = rclpy.create_node("listener", namespace=NAMESPACE)
    latencies: list[list[float]] = []
    arrivals: list[float] = []
    counts: dict[str, int] = {}
    refused = {"refused": 0}

    def on_observation(message: Observation) -> None:
        now = time.time_ns()
        arrivals.append(now / 1e9)
        latencies.append([(now - from_message(view.header.stamp)) / 1e6 for view in message.views])

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            name = status.name.removeprefix("observation: ")
            if name in CAMERAS:
                counts[name] = int(values["received"])
            if name == "observation":
                refused["refused"] = int(values["refused"])

    node.create_subscription(Observation, OBSERVATION, on_observation, NEWEST_QOS)
    node.create_subscription(DiagnosticArray, f"{NAMESPACE}/diagnostics", on_diagnostics, 10)
    print("ready", flush=True)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        print(json.dumps({"arrivals": arrivals, "latencies": latencies, "received": counts, **refused}), flush=True)


# Rounds


def stop(process: subprocess.Popen) -> str:
    """Interrupts a process and returns what it wrote last."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=15)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def run_round(kind: str, seconds: float, profile: str) -> dict[str, float]:
    """One node under the load; the figures of that round."""
    import numpy as np

    environment = dict(os.environ)
    namespace = f"/overhead_{os.getpid()}_{random.getrandbits(32):08x}"
    environment["KI_ROS_OVERHEAD_NAMESPACE"] = namespace
    environment["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")])
    environment.pop("FASTRTPS_DEFAULT_PROFILES_FILE", None)
    if profile != "none":
        environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = profile
    this = str(Path(__file__).resolve())
    load = os.getloadavg()[0]
    processes: list[subprocess.Popen] = []
    try:
        listener = start([this, "--role", "listener"], environment)
        processes.append(listener)
        if kind == "plain":
            node = start([this, "--role", "plain"], environment)
        else:
            settings = [item for c in CAMERAS for item in ("-p", f"{c}.topic:={namespace}{topic(c)}")]
            settings += ["-p", f"joint_states_topic:={namespace}/joint_states"]
            settings += ["-p", f"gripper_topic:={namespace}/gripper/joint_states"]
            settings += ["-r", f"__ns:={namespace}", "-r", f"/diagnostics:={namespace}/diagnostics"]
            node = start(["-m", "ki_ros.nodes.observation", "--ros-args", *settings], environment)
        processes.append(node)
        publishers = {
            name: start([this, "--role", "publisher", "--name", name, "--seconds", str(seconds)], environment)
            for name in (*CAMERAS, "joints")
        }
        processes.extend(publishers.values())
        for process in (listener, *publishers.values()):
            if process.stdout.readline().strip() != "ready":
                raise SystemExit("a process of the benchmark did not start; see its error above")
        time.sleep(1.0)
        before, began = cpu_seconds(node.pid), time.time()
        for process in publishers.values():
            process.stdin.write("go\n")
            process.stdin.flush()
        published = {name: json.loads(process.stdout.readline()) for name, process in publishers.items()}
        used, lasted = cpu_seconds(node.pid) - before, time.time() - began
        # The counts are in the diagnostics of the next seconds.
        time.sleep(2.5)
        heard = json.loads(stop(listener))
        written = stop(node)
        received = json.loads(written) if kind == "plain" else heard["received"]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    sent = sum(published[camera]["count"] for camera in CAMERAS)
    # Only while images flow: afterwards a node that does not look at ages goes on publishing the last ones.
    counted = [i for i, arrival in enumerate(heard["arrivals"]) if began < arrival < began + lasted]
    latencies = [latency for i in counted for latency in heard["latencies"][i]]
    p50, p99 = np.percentile(latencies, (50, 99)) if latencies else (float("nan"),) * 2
    return {
        "delivered_percent": 100 * sum(received[camera] for camera in CAMERAS) / sent,
        "latency_ms_p50": float(p50),
        "latency_ms_p99": float(p99),
        "observation_hz": len(counted) / lasted,
        "refused": heard["refused"],
        "cpu_percent": 100 * used / lasted,
        "camera_hz": min(published[camera]["hz"] for camera in CAMERAS),
        "joint_hz": published["joints"]["hz"],
        "publishers_cpu_percent": sum(figures["cpu_percent"] for figures in published.values()),
        "load_before": load,
    }


def is_valid(figures: dict[str, float]) -> bool:
    """Whether the publishers held their rates; otherwise something else took the processors."""
    return figures["camera_hz"] > 0.98 * IMAGE_HZ and figures["joint_hz"] > 0.98 * JOINT_HZ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each node")
    parser.add_argument("--json", type=output_file, help="write the figures to this file")
    parser.add_argument(
        "--profile", default=str(REPOSITORY / "config" / "fastdds.xml"), help="Fast DDS profile; none: its defaults"
    )
    parser.add_argument("--role", choices=("publisher", "plain", "listener"), help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "publisher":
        return publisher_main(arguments.name, arguments.seconds)
    if arguments.role:
        return {"plain": plain_main, "listener": listener_main}[arguments.role]()

    from rich.console import Console
    from rich.table import Table

    console = Console()
    rounds: dict[str, list[dict[str, float]]] = {"plain": [], "observation": []}
    for i in range(arguments.rounds):
        # Which goes first alternates too, so that a drift of the machine hits both alike.
        for kind in ("plain", "observation") if i % 2 == 0 else ("observation", "plain"):
            console.print(f"round {i + 1} of {arguments.rounds}: {kind} node, {arguments.seconds:g} s", style="dim")
            figures = run_round(kind, arguments.seconds, arguments.profile)
            rounds[kind].append(figures)
            console.print(", ".join(f"{key} {value:.1f}" for key, value in figures.items()), style="dim")
    invalid = sum(not is_valid(figures) for every in rounds.values() for figures in every)
    valid = {kind: [figures for figures in every if is_valid(figures)] for kind, every in rounds.items()}
    if not all(valid.values()):
        raise SystemExit(
            "in no round of a node did the publishers hold their rates: this machine is too busy to measure"
        )
    median = {
        kind: {key: statistics.median(figures[key] for figures in every) for key in every[0]}
        for kind, every in valid.items()
    }
    ratio = median["plain"]["cpu_percent"] / median["observation"]["cpu_percent"]
    table = Table(
        title=f"{len(CAMERAS)} cameras {WIDTH}x{HEIGHT} bgra8 at {IMAGE_HZ:g} Hz, joint states at {JOINT_HZ:g} Hz"
    )
    table.add_column("")
    for column in ("plain node", "observation node", "plain / observation"):
        table.add_column(column, justify="right")
    for key, label in (
        ("delivered_percent", "images delivered [%]"),
        ("latency_ms_p50", "stamp to observation, median [ms]"),
        ("latency_ms_p99", "stamp to observation, p99 [ms]"),
        ("observation_hz", "observations [Hz]"),
        ("refused", "refused, while no images flow too"),
        ("cpu_percent", "CPU of the node [% of a core]"),
        ("camera_hz", "slowest camera published [Hz]"),
        ("joint_hz", "joint states published [Hz]"),
        ("publishers_cpu_percent", "CPU of the publishers [% of a core]"),
        ("load_before", "load of the machine before a round"),
    ):
        plain, ours = median["plain"][key], median["observation"][key]
        shown = f"{plain / ours:.2f}" if key.startswith(("cpu", "latency")) and ours else ""
        table.add_row(label, f"{plain:.1f}" if key != "refused" else "", f"{ours:.1f}", shown)
    console.print(table)
    if invalid:
        console.print(f"{invalid} rounds left out: in them the publishers did not hold their rates", style="yellow")
    console.print(
        f"{os.cpu_count()} cores; alternating rounds, {arguments.rounds} each, medians; CPU ratio {ratio:.2f}"
    )
    if arguments.json:
        figures = {"median": median, "rounds": rounds, "cpu_ratio": ratio, "cores": os.cpu_count()}
        figures |= {"seconds": arguments.seconds, "design": "alternating rounds"}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
