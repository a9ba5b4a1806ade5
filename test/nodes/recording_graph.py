"""A running recorder node over Fast DDS, with the publishers that the tests play, and the bags that it wrote."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import Log
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import LoggingSeverity
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String

from ki_ros import msg, rig, srv
from ki_ros.nodes import stamps, topics
from ki_ros.nodes.recorder import RecorderNode

DEADLINE = 15.0
SENSORS = {
    "/camera/exterior_1/image_raw": Image,
    "/camera/wrist/image_raw": Image,
    "/joint_states": JointState,
    "/gripper/joint_states": JointState,
}
ARM_COMMANDS = "/forward_position_controller/commands"


class Recorded(NamedTuple):
    """A message of a bag, as the rosbags library reads it."""

    topic: str
    log_time: int
    raw: bytes


class Graph:
    """The node under test, and a node that plays everything around it, spun by the test itself."""

    def __init__(self, output: Path, **parameters) -> None:
        self.output = output
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=free_domain())
        room = {"warn_free_gb": 0.0, "warn_free_minutes": 0.0, "stop_free_gb": 0.0}
        parameters = {"output": str(output), **room, **parameters}
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in parameters.items()]
        self.other = Node("other", context=self.context)
        try:
            self.node = RecorderNode(context=self.context, parameter_overrides=overrides)
        except Exception:
            rclpy.shutdown(context=self.context)
            raise
        self.spinner = SingleThreadedExecutor(context=self.context)
        self.spinner.add_node(self.node)
        self.spinner.add_node(self.other)
        self.statuses: dict[str, DiagnosticStatus] = {}
        self.marks: list[msg.Episode] = []
        self.sent: list[tuple[str, object]] = []
        self.silent: set[str] = set()
        self.warnings: list[str] = []
        self.publishers = {
            topic: self.other.create_publisher(kind, topic, topics.SENSOR_QOS) for topic, kind in SENSORS.items()
        }
        self.publish(ARM_COMMANDS, Float64MultiArray(), topics.COMMAND_QOS, send=False)
        self.publish("/joint_command", JointState(), topics.COMMAND_QOS, send=False)
        self.other.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.other.create_subscription(Log, "/rosout", self._on_log, 100)
        self.other.create_subscription(msg.Episode, topics.EPISODE, self.marks.append, topics.EPISODE_QOS)
        self.start_client = self.other.create_client(srv.StartEpisode, topics.START_EPISODE)
        self.stop_client = self.other.create_client(srv.StopEpisode, topics.STOP_EPISODE)
        self.until(
            lambda: (
                self.start_client.service_is_ready()
                and self.stop_client.service_is_ready()
                and all(publisher.get_subscription_count() for publisher in self.publishers.values())
            ),
            "discovery",
        )

    def close(self) -> None:
        self.spinner.shutdown()
        self.node.destroy_node()
        self.other.destroy_node()
        rclpy.shutdown(context=self.context)

    @contextlib.contextmanager
    def stranger(self) -> Iterator[Node]:
        """A node in a participant of its own."""
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=self.context.get_domain_id())
        node = Node("stranger", context=context)
        try:
            yield node
        finally:
            node.destroy_node()
            rclpy.shutdown(context=context)

    @contextlib.contextmanager
    def second_recorder(self, **parameters) -> Iterator[RecorderNode]:
        """Another recorder, in a participant of its own, that both know of and that answers nothing unless spun."""
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=self.context.get_domain_id())
        parameters = {"output": str(self.output), **parameters}
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        node = RecorderNode(context=context, parameter_overrides=overrides)
        try:
            self.until(lambda: self.recorders() == node.count_services(topics.START_EPISODE) == 2, "discovery")
            yield node
        finally:
            node.destroy_node()
            rclpy.shutdown(context=context)

    def recorders(self) -> int:
        """How many the node under test knows of."""
        return self.node.count_services(topics.START_EPISODE)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Spins until a condition holds; fails at the deadline."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                levels = {name: status.message for name, status in self.statuses.items()}
                pytest.fail(f"not within {DEADLINE:g} s: {what}; diagnostics: {levels}")
            self.spinner.spin_once(timeout_sec=0.02)

    def publish(self, topic: str, message, qos=topics.SENSOR_QOS, *, send: bool = True) -> None:
        """Publishes a message and notes it."""
        if topic not in self.publishers:
            self.publishers[topic] = self.other.create_publisher(type(message), topic, qos)
        if send:
            self.sent.append((topic, message))
            self.publishers[topic].publish(message)

    def drive(self, ticks: int) -> None:
        """Lets sensors and commands publish so many times, and the node take all of it."""
        for i in range(ticks):
            stamp = stamps.to_message(time.time_ns())
            for topic in SENSORS.keys() - self.silent:
                message = picture(i) if SENSORS[topic] is Image else joints(i)
                message.header.stamp = stamp
                self.publish(topic, message)
            self.publish(ARM_COMMANDS, Float64MultiArray(data=[0.01 * i] * 7))
            command = joints(i)
            command.header.stamp = stamp
            self.publish("/joint_command", command)
            self.spinner.spin_once(timeout_sec=0.01)
        self.settle()

    def settle(self) -> None:
        """Lets the node take what was published until now."""
        end = time.monotonic() + 0.15
        self.until(lambda: time.monotonic() > end, "some time")

    def start(self, instruction: str = "", note: str = "") -> srv.StartEpisode.Response:
        return self._call(self.start_client, srv.StartEpisode.Request(instruction=instruction, note=note))

    def stop(self, outcome: int = 1, note: str = "") -> srv.StopEpisode.Response:
        return self._call(self.stop_client, srv.StopEpisode.Request(outcome=outcome, note=note))

    def epoch(self, id: int, instruction: str) -> None:
        self.publish("/epoch", msg.Epoch(id=id, instruction=instruction), topics.LATCHED_QOS)
        self.publish("/instruction", String(data=instruction), topics.LATCHED_QOS)

    def clock(self, time_ns: int) -> None:
        self.publish("/clock", Clock(clock=stamps.to_message(time_ns)), topics.SENSOR_QOS)

    def expect(self, component: str, level: bytes, *words: str) -> DiagnosticStatus:
        """Waits for a report of a level with these words in its message."""

        def holds() -> bool:
            status = self.statuses.get(component)
            return status is not None and status.level == level and all(word in status.message for word in words)

        self.until(holds, f"{component} reports {level!r} with {words}")
        return self.statuses[component]

    def bags(self) -> list[Path]:
        return sorted(path for path in self.output.iterdir() if path.is_dir()) if self.output.is_dir() else []

    def _call(self, client, request):
        future = client.call_async(request)
        self.until(future.done, f"answer of {client.srv_name}")
        return future.result()

    def _on_log(self, message: Log) -> None:
        if message.level >= LoggingSeverity.WARN:
            self.warnings.append(message.msg)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.statuses |= {status.name.removeprefix("recorder: "): status for status in message.status}


def read(bag: Path | str) -> list[Recorded]:
    """What is in a bag, as the rosbags library reads it."""
    with AnyReader([Path(bag)]) as reader:
        return [Recorded(connection.topic, time, bytes(raw)) for connection, time, raw in reader.messages()]


def marks(recorded: list[Recorded]) -> list[msg.Episode]:
    """The Episode messages among them."""
    return [deserialize_message(message.raw, msg.Episode) for message in recorded if message.topic == "/episode"]


def metadata(bag: Path | str) -> dict:
    return yaml.safe_load((Path(bag) / "metadata.yaml").read_text())["rosbag2_bagfile_information"]


def free_domain() -> int:
    """A domain in which no other participant of this machine is: DDS would bind the port that belongs to it."""
    while True:
        domain = random.SystemRandom().randint(1, 100)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7410 + 250 * domain))
            except OSError:
                continue
        return domain


def picture(i: int) -> Image:
    pixels = np.random.default_rng(i).integers(0, 256, 24 * 32 * 3, dtype=np.uint8)
    message = Image(height=24, width=32, encoding="rgb8", step=96)
    message.data.frombytes(pixels.tobytes())
    return message


def joints(i: int) -> JointState:
    return JointState(name=list(rig.PANDA.joint_names), position=[0.001 * i] * 7)
