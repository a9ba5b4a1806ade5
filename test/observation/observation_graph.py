"""A running observation node over Fast DDS, with drivers that the tests play themselves."""

from __future__ import annotations

import array
import random
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState

from ki_ros.msg import Epoch, Observation
from ki_ros.nodes.observation import ObservationNode
from ki_ros.nodes.stamps import to_message
from ki_ros.nodes.topics import EPOCH, LATCHED_QOS, NEWEST_QOS, OBSERVATION, SENSOR_QOS
from ki_ros.rig import GRIPPER_JOINT, PANDA

DEADLINE = 10.0
POSITIONS = {name: 0.1 * i for i, name in enumerate(PANDA.joint_names, 1)}


class Driver:
    """Publishes one stream; `message` makes the next message, a fresh one for each publication."""

    def __init__(self, graph: Graph, topic: str, message: Callable[[], object], stamped: bool = True) -> None:
        self.graph, self.topic, self.message, self.stamped = graph, topic, message, stamped
        self.offset_ns = 0
        self.enabled = True
        self.published = 0
        self._publisher = None
        self.start()

    def start(self) -> None:
        self._publisher = self.graph.node.create_publisher(type(self.message()), self.topic, SENSOR_QOS)

    def stop(self) -> None:
        self.graph.node.destroy_publisher(self._publisher)
        self._publisher = None

    def publish(self) -> None:
        if self._publisher is None or not self.enabled:
            return
        message = self.message()
        if self.stamped:
            message.header.stamp = to_message(self.graph.now_ns() + self.offset_ns)
        self._publisher.publish(message)
        self.published += 1


class Graph:
    """The node under test, a node with the drivers and a listener, spun in one thread."""

    def __init__(self, **parameters) -> None:
        self.domain = free_domain()
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.simulated_ns: int | None = None
        self.node = rclpy.create_node("drivers", context=self.context)
        self.drivers: dict[str, Driver] = {}
        self.observations: list[Observation] = []
        self.statuses: dict[str, DiagnosticStatus] = {}
        self.node.create_subscription(Observation, OBSERVATION, self.observations.append, NEWEST_QOS)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.epochs = self.node.create_publisher(Epoch, EPOCH, LATCHED_QOS)
        self.clock = self.node.create_publisher(Clock, "/clock", 10)
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in parameters.items()]
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self._spin)
        self.under_test: ObservationNode | None = None
        self.thread.start()
        try:
            self.under_test = ObservationNode(context=self.context, parameter_overrides=overrides)
        except Exception:
            self.close()
            raise
        self.executor.add_node(self.under_test)

    def _spin(self) -> None:
        while self.context.ok():
            try:
                self.executor.spin_once(timeout_sec=0.1)
            except rclpy.executors.ExternalShutdownException:
                return

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.statuses = {status.name.removeprefix("observation: "): status for status in message.status}

    def close(self) -> None:
        rclpy.shutdown(context=self.context)
        self.thread.join()
        self.executor.shutdown()
        for node in (self.under_test, self.node):
            if node is not None:
                node.destroy_node()

    def now_ns(self) -> int:
        return time.time_ns() if self.simulated_ns is None else self.simulated_ns

    def drive(self, until: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
        """Lets every driver publish at 50 Hz until a condition holds; fails at the deadline."""
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                levels = {name: status.message for name, status in self.statuses.items()}
                pytest.fail(f"not within {seconds:g} s: {what}; diagnostics: {levels}")
            if self.simulated_ns is not None:
                self.simulated_ns += 20_000_000
                self.clock.publish(Clock(clock=to_message(self.simulated_ns)))
            for driver in self.drivers.values():
                driver.publish()
            time.sleep(0.02)

    def observe(self, until: Callable[[Observation], object] = lambda _: True, what: str = "an observation"):
        """Drives until an observation that is published from now on fulfils a condition, and returns it."""
        seen = len(self.observations)

        def found() -> Observation | None:
            return next((o for o in self.observations[seen:] if until(o)), None)

        self.drive(found, what)
        return found()

    def expect(self, component: str, level: bytes, *words: str) -> DiagnosticStatus:
        """Drives until a component reports a level with these words in its message, and returns the report."""

        def holds() -> bool:
            status = self.statuses.get(component)
            return status is not None and status.level == level and all(word in status.message for word in words)

        self.drive(holds, f"{component} reports {level!r} with {words}")
        return self.statuses[component]

    def values(self, component: str) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.statuses[component].values}

    # Drivers

    def add(self, name: str, topic: str, message: Callable[[], object], **options) -> Driver:
        self.drivers[name] = Driver(self, topic, message, **options)
        return self.drivers[name]

    def add_rig(self) -> None:
        """One exterior camera, the wrist's, the arm and the gripper, as the defaults of the node have them."""
        self.add("exterior_1", "/camera/exterior_1/image_raw", lambda: image(pixels(1)))
        self.add("wrist", "/camera/wrist/image_raw", lambda: image(pixels(2)))
        self.add("arm", "/joint_states", lambda: joint_state(POSITIONS))
        self.add("gripper", "/gripper/joint_states", lambda: joint_state({GRIPPER_JOINT: 0.2}))


def free_domain() -> int:
    """A domain in which no other participant of this machine is: DDS would bind the port that belongs to it."""
    while True:
        domain = random.randint(1, 100)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7410 + 250 * domain))
            except OSError:
                continue
        return domain


def pixels(seed: int, height: int = 36, width: int = 64) -> np.ndarray:
    """A picture of that number: (height, width, 3) uint8, RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image(rgb: np.ndarray, encoding: str = "rgb8") -> Image:
    height, width, channels = rgb.shape
    message = Image(height=height, width=width, encoding=encoding, step=width * channels)
    message.data = array.array("B", rgb.tobytes())
    return message


def compressed(data: bytes, format: str) -> CompressedImage:
    message = CompressedImage(format=format)
    message.data = array.array("B", data)
    return message


def joint_state(positions: dict[str, float]) -> JointState:
    return JointState(name=list(positions), position=list(positions.values()))
