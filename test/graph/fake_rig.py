"""A rig for tests: publishes what the drivers would, follows the commands, and lets each stream be stopped."""

from __future__ import annotations

import array
import time

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray

from ki_ros import msg, rig, srv
from ki_ros.nodes import stamps, topics

CAMERAS = {"exterior_1": "/camera/exterior_1/image_raw", "wrist": "/camera/wrist/image_raw"}
STREAMS = frozenset({*CAMERAS, "joint_states", "gripper"})
CAMERA_PERIOD = 1 / 30
JOINT_PERIOD = 1 / 100


class FakeRig(Node):
    """Two cameras at 30 Hz and joint states at 100 Hz; the arm follows its commands with a time constant of 30 ms.

    Records every command, every status of the executor, and when it came to publish joint states itself. `streams` says
    what is published.
    """

    def __init__(self, **options) -> None:
        super().__init__("fake_rig", **options)
        self.streams = set(STREAMS)
        self.joints = np.array(rig.RESET_JOINT_POSITIONS)
        self.commands: list[tuple[float, np.ndarray]] = []
        self.statuses: list[tuple[float, msg.ExecutorStatus]] = []
        self.turns: list[float] = []
        self.epoch: msg.Epoch | None = None
        self.chunk: msg.ActionChunk | None = None
        self.controller_commands = 0
        self._target = self.joints.copy()
        self._pixels = array.array("B", np.random.default_rng(0).integers(0, 255, 180 * 320 * 3, np.uint8).tobytes())
        self._images = {role: self.create_publisher(Image, topic, topics.SENSOR_QOS) for role, topic in CAMERAS.items()}
        self._joint_states = self.create_publisher(JointState, "/joint_states", topics.SENSOR_QOS)
        self._gripper = self.create_publisher(JointState, "/gripper/joint_states", topics.SENSOR_QOS)
        self.chunk_publisher = self.create_publisher(msg.ActionChunk, topics.ACTION_CHUNK, topics.NEWEST_QOS)
        self.create_subscription(
            Float64MultiArray, "/forward_position_controller/commands", self._on_controller, topics.COMMAND_QOS
        )
        self.create_subscription(JointState, topics.JOINT_COMMAND, self._on_command, topics.COMMAND_QOS)
        self.create_subscription(msg.ExecutorStatus, topics.EXECUTOR_STATUS, self._on_status, topics.COMMAND_QOS)
        self.create_subscription(msg.Epoch, topics.EPOCH, self._on_epoch, topics.LATCHED_QOS)
        self.create_subscription(msg.ActionChunk, topics.ACTION_CHUNK, self._on_chunk, topics.NEWEST_QOS)
        self._set_instruction = self.create_client(srv.SetInstruction, topics.SET_INSTRUCTION)
        self.create_timer(CAMERA_PERIOD, self._publish_images)
        self.create_timer(JOINT_PERIOD, self._publish_joints)

    def call_set_instruction(self, instruction: str):
        """The future of a call of the service."""
        return self._set_instruction.call_async(srv.SetInstruction.Request(instruction=instruction))

    def service_is_ready(self) -> bool:
        return self._set_instruction.service_is_ready()

    @property
    def status(self) -> msg.ExecutorStatus | None:
        """The newest."""
        return self.statuses[-1][1] if self.statuses else None

    def executing(self) -> bool:
        return self.status is not None and self.status.state == msg.ExecutorStatus.EXECUTING

    def _now(self):
        return self.get_clock().now().to_msg()

    def _publish_images(self) -> None:
        for role, publisher in self._images.items():
            if role in self.streams:
                image = Image(height=180, width=320, encoding="rgb8", step=960, data=self._pixels)
                image.header.stamp = self._now()
                publisher.publish(image)

    def _publish_joints(self) -> None:
        self.turns.append(time.time())
        self.joints += (self._target - self.joints) * (1 - np.exp(-JOINT_PERIOD / 0.03))
        if "joint_states" in self.streams:
            state = JointState(name=list(rig.PANDA.joint_names), position=self.joints.tolist(), velocity=[0.0] * 7)
            state.header.stamp = self._now()
            self._joint_states.publish(state)
        if "gripper" in self.streams:
            state = JointState(name=[rig.GRIPPER_JOINT], position=[0.0])
            state.header.stamp = self._now()
            self._gripper.publish(state)

    def _on_controller(self, message: Float64MultiArray) -> None:
        self.controller_commands += 1
        self._target = np.array(message.data)

    def _on_command(self, message: JointState) -> None:
        self.commands.append((stamps.from_message(message.header.stamp) * 1e-9, np.array(message.position)))

    def _on_status(self, message: msg.ExecutorStatus) -> None:
        self.statuses.append((time.time(), message))

    def _on_epoch(self, message: msg.Epoch) -> None:
        self.epoch = message

    def _on_chunk(self, message: msg.ActionChunk) -> None:
        self.chunk = message
