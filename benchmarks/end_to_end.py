#!/usr/bin/env python3
"""From a camera's stamp to the action chunk, in the running graph: where the time goes.

    benchmarks/end_to_end.py [--checkpoint models/ki_tiny] [--engine auto] [--device cpu] [--threads 1] [--seconds 30]
                             [--camera-hz 30] [--policy-by COMMAND] [--json FILE]

Two cameras (640x480 rgb8) and the joints are published by a process of their own; the observation node and the policy
node are those of a real rig, over DDS; a listener notes when observations and chunks arrive. No executor: it would only
take processor time.

- waiting: age of the oldest view when an observation is taken, which happens 15 times a second: the cameras' rate
  decides it, and what the observation node keeps back for streams that come later;
- observation: from the time of that sample to the observation's arrival at the listener (decoding, resizing, DDS);
- engine and node: of the policy, from its own figures: the engine's inference, and everything else that the node does
  from taking the observation to sending the chunk;
- to the chunk: from the camera's stamp to the chunk's arrival at the listener, all in all.

`--policy-by` puts a command before the policy node's, such as `ip netns exec gpu`, where the namespace `gpu` stands
for another machine: what "policy and DDS" then has more than engine and node is the way there and back.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from arguments import output_file

REPOSITORY = Path(__file__).resolve().parents[1]
CAMERAS = ("exterior_1", "wrist")
WIDTH, HEIGHT = 640, 480
JOINT_HZ = 200.0
SETTLE_CHUNKS = 15
START_SECONDS = 120.0


def rig_main(camera_hz: float) -> None:
    """Publishes cameras, joints and an epoch."""
    import numpy as np
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import Image, JointState

    from ki_ros import rig
    from ki_ros.msg import Epoch
    from ki_ros.nodes import stamps, topics

    rclpy.init()
    node = rclpy.create_node("rig")
    pixels = np.random.default_rng(0).integers(0, 256, 3 * WIDTH * HEIGHT, dtype=np.uint8)
    image = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
    image.data = array.array("B", pixels.tobytes())
    cameras = [node.create_publisher(Image, f"/camera/{name}/image_raw", topics.SENSOR_QOS) for name in CAMERAS]
    arm = node.create_publisher(JointState, "/joint_states", topics.SENSOR_QOS)
    gripper = node.create_publisher(JointState, "/gripper/joint_states", topics.SENSOR_QOS)
    epochs = node.create_publisher(Epoch, topics.EPOCH, topics.LATCHED_QOS)
    epochs.publish(Epoch(id=time.time_ns(), instruction="reach the red block"))
    joints = JointState(name=list(rig.PANDA.joint_names), position=list(rig.RESET_JOINT_POSITIONS))
    finger = JointState(name=[rig.GRIPPER_JOINT], position=[0.0])

    def look() -> None:
        for publisher in cameras:
            image.header.stamp = stamps.to_message(time.time_ns())
            publisher.publish(image)

    def move() -> None:
        for message, publisher in ((joints, arm), (finger, gripper)):
            message.header.stamp = stamps.to_message(time.time_ns())
            publisher.publish(message)

    node.create_timer(1 / camera_hz, look)
    node.create_timer(1 / JOINT_HZ, move)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        return


class Listener:
    """Arrivals of observations and chunks, and the policy's own figures; spins in a thread."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor

        from ki_ros.msg import ActionChunk, Observation
        from ki_ros.nodes import topics

        rclpy.init()
        self._node = rclpy.create_node("listener")
        self.observations: dict[int, tuple[float, float, float]] = {}
        self.chunks: dict[int, float] = {}
        self.policy: dict[str, str] = {}
        self._node.create_subscription(Observation, topics.OBSERVATION, self._on_observation, topics.NEWEST_QOS)
        self._node.create_subscription(ActionChunk, topics.ACTION_CHUNK, self._on_chunk, topics.NEWEST_QOS)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _on_observation(self, message: Any) -> None:
        from ki_ros.nodes.stamps import from_message

        now = time.time_ns()
        sampled = from_message(message.header.stamp)
        oldest = min(from_message(view.header.stamp) for view in message.views)
        self.observations[message.sequence] = (oldest / 1e9, sampled / 1e9, now / 1e9)

    def _on_chunk(self, message: Any) -> None:
        self.chunks[message.observation_sequence] = time.time_ns() / 1e9

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name == "policy: policy":
                self.policy = {pair.key: pair.value for pair in status.values}

    def close(self) -> None:
        """Ends the thread."""
        import rclpy

        self._executor.shutdown()
        rclpy.shutdown()
        self._thread.join(5)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the graph; the figures."""
    import numpy as np

    os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SUBNET" if options.policy_by else "LOCALHOST"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(REPOSITORY / "config" / "fastdds.xml")
    # Drivers of cameras keep the profile of one machine: their images stay there.
    profile = REPOSITORY / "config" / ("fastdds_network.xml" if options.policy_by else "fastdds.xml")
    graph = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(profile)}
    policy = {
        "checkpoint": str(Path(options.checkpoint).resolve()),
        "engine": options.engine,
        "device": options.device,
        "dtype": options.dtype,
        "threads": options.threads,
        "seed": 0,
        "autostart": "true",
    }
    observed = {f"{name}.topic": f"/camera/{name}/image_raw" for name in CAMERAS}
    observed |= {"joint_states_topic": "/joint_states", "gripper_topic": "/gripper/joint_states"}
    python = sys.executable
    commands = [
        ([python, str(Path(__file__).resolve()), "--role", "rig", "--camera-hz", str(options.camera_hz)], {}),
        ([python, "-m", "ki_ros.nodes.observation", *_parameters(observed)], graph),
        ([*shlex.split(options.policy_by), python, "-m", "ki_ros.nodes.policy", *_parameters(policy)], graph),
    ]
    listener = Listener()
    processes = [subprocess.Popen(command, env=os.environ | own, cwd=REPOSITORY) for command, own in commands]
    try:
        deadline = time.monotonic() + START_SECONDS
        while len(listener.chunks) < SETTLE_CHUNKS:
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                raise SystemExit(f"no chunks within {START_SECONDS:g} s; see the errors above")
            time.sleep(0.1)
        began = time.time()
        time.sleep(options.seconds)
        # The policy's own figures are of the last 300 chunks.
        observations, chunks, own = dict(listener.observations), dict(listener.chunks), dict(listener.policy)
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        listener.close()
    answered = [
        (*observations[number], arrived)
        for number, arrived in chunks.items()
        if number in observations and observations[number][1] > began
    ]
    oldest, sampled, observed, arrived = np.array(answered).T * 1e3
    spans = {
        "waiting": sampled - oldest,
        "observation": observed - sampled,
        "policy and DDS": arrived - observed,
        "to the chunk": arrived - oldest,
    }
    figures: dict[str, Any] = {
        name: dict(zip(("p50_ms", "p99_ms"), map(float, np.percentile(span, (50, 99))), strict=True))
        for name, span in spans.items()
    }
    for name in ("engine", "node"):
        figures[name] = {f"{p}_ms": float(own[f"{name}_ms_{p}"]) for p in ("p50", "p99")}
    taken = [number for number in observations if observations[number][1] > began]
    return {"spans": figures, "chunks": len(answered), "observations": len(taken), "policy": own["policy"]}


def _parameters(values: dict[str, Any]) -> list[str]:
    return ["--ros-args", "--log-level", "WARN", *(x for k, v in values.items() for x in ("-p", f"{k}:={v}"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="models/ki_tiny")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1, help="of the policy on the CPU; 0: as many as torch takes")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--camera-hz", type=float, default=30.0)
    parser.add_argument("--policy-by", default="", metavar="COMMAND", help="what runs the policy node elsewhere")
    parser.add_argument("--json", type=output_file, help="write the figures to this file")
    parser.add_argument("--role", choices=("rig",), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "rig":
        return rig_main(options.camera_hz)

    from rich.console import Console
    from rich.table import Table

    figures = measure(options)
    table = Table(title="camera to chunk, in the running graph")
    for column in ("", "p50 [ms]", "p99 [ms]"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("waiting", "observation", "engine", "node", "policy and DDS", "to the chunk"):
        table.add_row(name, *(f"{figures['spans'][name][key]:.2f}" for key in ("p50_ms", "p99_ms")))
    console = Console()
    console.print(table)
    console.print(
        f"{figures['chunks']} chunks of {figures['observations']} observations; {figures['policy']}; "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    if options.json:
        options.json.write_text(json.dumps(figures | {"cores": os.cpu_count()}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
