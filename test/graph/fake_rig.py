"""Rigs for tests: they publish what drivers would, follow the commands, and let each stream be stopped or frozen."""

from __future__ import annotations

import array
import time
from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool, Trigger

from ki_ros import msg, rig, srv
from ki_ros.nodes import stamps, topics

CAMERAS = {"exterior_1": "/camera/exterior_1/image_raw", "wrist": "/camera/wrist/image_raw"}
STREAMS = frozenset({*CAMERAS, "joint_states", "gripper"})
ARM_COMMANDS = "/forward_position_controller/commands"
CAMERA_PERIOD = 1 / 30
JOINT_PERIOD = 1 / 100
CHUNK_PERIOD = 1 / 15

GRAPH_PARAMETERS = """
observation:
  ros__parameters:
    exterior_1: {topic: /camera/exterior_1/image_raw}
    wrist: {topic: /camera/wrist/image_raw}
policy:
  ros__parameters: {preset: ki_tiny, allow_untrained: true, threads: 1, seed: 0}
executor:
  # Half of the usual rate: what is asserted does not depend on it, and a slow machine keeps up.
  ros__parameters: {enabled_at_start: true, command_rate: 50.0}
"""
"""Of the graph on such a rig, with the small policy."""

SWING = 0.14
"""How far MovingRig's policy swings every joint to either side [rad]: half of the way that motion may begin with."""

SWING_RATE = 6.0
"""How fast it does [rad/s of the sine]: up to 0.84 rad/s and 5 rad/s^2, which no limit changes."""


class FakeRig(Node):
    """Two cameras at 30 Hz and joint states at 100 Hz; the arm follows its commands with a time constant of 30 ms.

    Records every command and its velocities, every status of the executor, and when it came to publish joint states
    itself. `streams` says what is published, `frozen` of which stream the last stamp is repeated, and `clock_offset`
    how far the drivers' clock is from the system's [s].
    """

    def __init__(self, **options) -> None:
        super().__init__("fake_rig", **options)
        self.streams = set(STREAMS)
        self.frozen: set[str] = set()
        self.clock_offset = 0.0
        self.joints = np.array(rig.RESET_JOINT_POSITIONS)
        self.commands: list[tuple[float, np.ndarray]] = []
        self.velocities: list[np.ndarray] = []
        self.statuses: list[tuple[float, msg.ExecutorStatus]] = []
        self.turns: list[float] = []
        self.epoch: msg.Epoch | None = None
        self.chunk: msg.ActionChunk | None = None
        self.controller_commands = 0
        self._target = self.joints.copy()
        self._stamps: dict[str, object] = {}
        self._pixels = array.array("B", np.random.default_rng(0).integers(0, 255, 180 * 320 * 3, np.uint8).tobytes())
        self._images = {role: self.create_publisher(Image, topic, topics.SENSOR_QOS) for role, topic in CAMERAS.items()}
        self._joint_states = self.create_publisher(JointState, "/joint_states", topics.SENSOR_QOS)
        self._gripper = self.create_publisher(JointState, "/gripper/joint_states", topics.SENSOR_QOS)
        self.chunk_publisher = self.create_publisher(msg.ActionChunk, topics.ACTION_CHUNK, topics.NEWEST_QOS)
        self._controller = self._create_controller()
        self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, topics.COMMAND_QOS)
        self.create_subscription(msg.ExecutorStatus, topics.EXECUTOR_STATUS, self._on_status, topics.COMMAND_QOS)
        self.create_subscription(msg.Epoch, topics.EPOCH, self._on_epoch, topics.LATCHED_QOS)
        self.create_subscription(msg.ActionChunk, topics.ACTION_CHUNK, self._on_chunk, topics.NEWEST_QOS)
        self._set_instruction = self.create_client(srv.SetInstruction, topics.SET_INSTRUCTION)
        self._enable = self.create_client(SetBool, topics.ENABLE)
        self._operator = {name: self.create_client(Trigger, name) for name in (topics.STOP, topics.RESET)}
        self.create_timer(CAMERA_PERIOD, self._publish_images)
        self.create_timer(JOINT_PERIOD, self._publish_joints)

    def call_set_instruction(self, instruction: str):
        """The future of a call of the service."""
        return self._set_instruction.call_async(srv.SetInstruction.Request(instruction=instruction))

    def call_enable(self, enable: bool = True):
        return self._enable.call_async(SetBool.Request(data=enable))

    def call_operator(self, service: str):
        """The future of a call of stop or reset."""
        return self._operator[service].call_async(Trigger.Request())

    def service_is_ready(self) -> bool:
        clients = (self._set_instruction, self._enable, *self._operator.values())
        return all(client.service_is_ready() for client in clients)

    def remove_controller(self) -> None:
        """Nobody takes the arm's commands any more, until `restore_controller`."""
        self.destroy_subscription(self._controller)

    def restore_controller(self) -> None:
        self._controller = self._create_controller()

    def _create_controller(self):
        return self.create_subscription(Float64MultiArray, ARM_COMMANDS, self._on_controller, topics.COMMAND_QOS)

    @property
    def status(self) -> msg.ExecutorStatus | None:
        """The newest."""
        return self.statuses[-1][1] if self.statuses else None

    def executing(self) -> bool:
        return self.status is not None and self.status.state == msg.ExecutorStatus.EXECUTING

    def now_ns(self) -> int:
        """The time of the drivers' stamps."""
        return self.get_clock().now().nanoseconds + round(self.clock_offset * stamps.NANOSECONDS)

    def _now(self):
        return stamps.to_message(self.now_ns())

    def _stamp(self, stream: str):
        if stream not in self.frozen or stream not in self._stamps:
            self._stamps[stream] = self._now()
        return self._stamps[stream]

    def _publish_images(self) -> None:
        for role, publisher in self._images.items():
            if role in self.streams:
                image = Image(height=180, width=320, encoding="rgb8", step=960, data=self._pixels)
                image.header.stamp = self._stamp(role)
                publisher.publish(image)

    def _publish_joints(self) -> None:
        self.turns.append(time.time())
        self.joints += (self._target - self.joints) * (1 - np.exp(-JOINT_PERIOD / 0.03))
        if "joint_states" in self.streams:
            state = JointState(name=list(rig.PANDA.joint_names), position=self.joints.tolist(), velocity=[0.0] * 7)
            state.header.stamp = self._stamp("joint_states")
            self._joint_states.publish(state)
        if "gripper" in self.streams:
            state = JointState(name=[rig.GRIPPER_JOINT], position=[0.0])
            state.header.stamp = self._stamp("gripper")
            self._gripper.publish(state)

    def _on_controller(self, message: Float64MultiArray) -> None:
        self.controller_commands += 1
        self._target = np.array(message.data)

    def _on_command(self, message: JointState) -> None:
        self.velocities.append(np.array(message.velocity[: rig.NUM_JOINTS]))
        self.commands.append((stamps.from_message(message.header.stamp) * 1e-9, np.array(message.position)))

    def _on_status(self, message: msg.ExecutorStatus) -> None:
        self.statuses.append((time.time(), message))

    def _on_epoch(self, message: msg.Epoch) -> None:
        self.epoch = message

    def _on_chunk(self, message: msg.ActionChunk) -> None:
        self.chunk = message


class MovingRig(FakeRig):
    """A rig with a policy of its own, whose chunks swing every joint about where it stood first.

    The policy answers whatever epoch is in force; `sequence` is the number of its last chunk.
    """

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self._middle = self.joints.copy()
        self.sequence = 0
        self._start_policy()

    def _start_policy(self) -> None:
        self.create_timer(CHUNK_PERIOD, self._publish_chunk)

    def _publish_chunk(self) -> None:
        if self.epoch is None:
            return
        self.sequence += 1
        now_ns = self.now_ns()
        times = now_ns / stamps.NANOSECONDS + CHUNK_PERIOD * np.arange(15)
        rows = np.zeros((15, rig.NUM_JOINTS + 1))
        # A row is where the arm is to be at its end.
        rows[:, : rig.NUM_JOINTS] = self._middle + SWING * np.sin(SWING_RATE * (times[:, None] + CHUNK_PERIOD))
        chunk = msg.ActionChunk(action_space="joint_position", dt=CHUNK_PERIOD, horizon=15, action_dim=8)
        chunk.observation_sequence, chunk.epoch = self.sequence, self.epoch.id
        chunk.actions = array.array("f", rows.astype(np.float32).ravel().tobytes())
        chunk.header.stamp = stamps.to_message(now_ns)
        self.chunk_publisher.publish(chunk)


class SteppedRig(MovingRig):
    """A moving rig that publishes /clock, a step at a time: the next when the executor has told what it did in this.

    So the stamps of the commands are exactly the times that the executor reckoned with, however busy the machine is.

    Args:
        period: of the executor's ticks, and a step of the clock [s].
        pace: simulated seconds in a second, at most.
        steps: how many periods the next step is.
    """

    def __init__(self, *, period: float, pace: float, steps: Callable[[], int] = lambda: 1, **options) -> None:
        self.period_ns = round(period * stamps.NANOSECONDS)
        self.sim_ns = 1000 * stamps.NANOSECONDS
        self._steps = steps
        self._stepped = self._asked_at = 0.0
        self._chunk_ns = 0
        super().__init__(**options)
        self._clock_publisher = self.create_publisher(Clock, "/clock", topics.COMMAND_QOS)
        self._pace = period / pace
        self.create_timer(min(0.002, self._pace / 2), self._step)

    def now_ns(self) -> int:
        return self.sim_ns

    def jump(self, seconds: float) -> None:
        """Sets the clock."""
        self.sim_ns += round(seconds * stamps.NANOSECONDS)
        self._chunk_ns = min(self._chunk_ns, self.sim_ns)

    def _start_policy(self) -> None:
        """Its time is the clock's."""

    def _step(self) -> None:
        now = time.monotonic()
        told = self.status is not None and stamps.from_message(self.status.header.stamp) == self.sim_ns
        # An executor that is not there, or was just set back, has nothing to tell.
        if now - self._stepped < (self._pace if told else 0.1):
            return
        self._stepped = now
        self.sim_ns += self._steps() * self.period_ns
        self._publish_joints()
        if self.sim_ns - self._chunk_ns >= CHUNK_PERIOD * stamps.NANOSECONDS:
            self._chunk_ns = self.sim_ns
            self._publish_chunk()
        self._clock_publisher.publish(Clock(clock=stamps.to_message(self.sim_ns)))
