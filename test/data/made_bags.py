"""Recordings made message by message, with answers that are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ki_ros.data.bag import BagWriter, encode
from ki_ros.observation import cdr
from ki_ros.rig import GRIPPER_JOINT, PANDA

S = 1_000_000_000
START = 1_700_000_000 * S
"""Where the clock of a made recording begins [ns]."""

CAMERAS = {"exterior_1": "/camera/exterior_1/image_raw", "wrist": "/camera/wrist/image_raw"}

TYPES = {
    "image": "sensor_msgs/msg/Image",
    "compressed": "sensor_msgs/msg/CompressedImage",
    "joints": "sensor_msgs/msg/JointState",
    "numbers": "std_msgs/msg/Float64MultiArray",
    "string": "std_msgs/msg/String",
    "epoch": "ki_ros/msg/Epoch",
    "episode": "ki_ros/msg/Episode",
    "status": "ki_ros/msg/ObservationStatus",
    "trajectory": "trajectory_msgs/msg/JointTrajectory",
}


def ns(seconds: float) -> int:
    return START + round(seconds * S)


def picture(number: int, height: int = 20, width: int = 32) -> np.ndarray:
    """A picture that shows its number: (height, width, 3) uint8."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def joints_at(seconds: float) -> np.ndarray:
    """A slow movement of seven joints within the Panda's limits [rad]."""
    return np.array([0.0, -0.6, 0.0, -2.4, 0.0, 1.9, 0.0]) + 0.2 * np.sin(seconds + np.arange(7))


def stamped(raw: bytes, kind: str, later: int) -> bytes:
    """A message whose stamp is so much later [ns]; texts and numbers have none."""
    if kind in ("string", "numbers"):
        return raw
    stamp = cdr.stamp_ns(raw) + later
    return raw[:4] + np.array([stamp // S, stamp % S], "<u4").tobytes() + raw[12:]


@dataclass
class MadeBag:
    """Messages as (topic, kind, log time [ns], bytes), in any order."""

    messages: list[tuple[str, str, int, bytes]] = field(default_factory=list)

    def put(self, topic: str, kind: str, seconds: float, raw: bytes) -> None:
        """A message that is logged at this time of the recording [s]."""
        self.messages.append((topic, kind, ns(seconds), raw))

    def camera(self, role: str, times, *, late: float = 0.004, first: int = 0) -> None:
        """Pictures stamped at these times [s] that arrive `late` [s]."""
        for i, t in enumerate(times):
            self.put(CAMERAS[role], "image", t + late, encode.image(ns(t), role, picture(first + i)))

    def arm(self, times, positions: Callable[[float], np.ndarray] = joints_at, topic: str = "/joint_states") -> None:
        for t in times:
            self.put(topic, "joints", t + 0.001, encode.joint_state(ns(t), PANDA.joint_names, positions(t)))

    def gripper(self, times, angle: Callable[[float], float] = lambda t: 0.1 + 0.01 * t) -> None:
        for t in times:
            raw = encode.joint_state(ns(t), (GRIPPER_JOINT,), (angle(t),))
            self.put("/gripper/joint_states", "joints", t + 0.001, raw)

    def command(self, t: float, positions, angle: float | None = None) -> None:
        """What the executor says that it sent."""
        names = PANDA.joint_names if angle is None else PANDA.state_names
        values = positions if angle is None else [*positions, angle]
        self.put("/joint_command", "joints", t + 0.0005, encode.joint_state(ns(t), names, values))

    def instruction(self, t: float, text: str) -> None:
        self.put("/instruction", "string", t, encode.string(text))

    def epoch(self, t: float, text: str, set_at: float | None = None) -> None:
        stamp = ns(t if set_at is None else set_at)
        self.put("/epoch", "epoch", t, encode.epoch(stamp, stamp, text))

    def start(self, t: float, id: str, instruction: str = "") -> None:
        self.put("/episode", "episode", t, encode.episode(ns(t), id, instruction, 0, 0, "panda", ""))

    def stop(self, t: float, id: str, outcome: int = 1) -> None:
        self.put("/episode", "episode", t, encode.episode(ns(t), id, "", 1, outcome, "panda", "well done"))

    def rig(self, seconds: float, *, camera_hz: float = 30.0, joint_hz: float = 200.0) -> MadeBag:
        """Two cameras, arm and gripper for so long; the wrist camera is 11 ms behind the other."""
        self.camera("exterior_1", np.arange(0.0, seconds, 1 / camera_hz))
        self.camera("wrist", np.arange(0.011, seconds, 1 / camera_hz), first=100_000)
        self.arm(np.arange(0.0, seconds, 1 / joint_hz))
        self.gripper(np.arange(0.002, seconds, 1 / 50))
        return self

    def set_clock(self, t: float, seconds: float) -> None:
        """What arrives from this time of the recording on [s] is logged and stamped so much later, or earlier [s].

        From then on the messages are in the order of arrival.
        """
        shift = round(seconds * S)
        self.messages = self.ordered()
        for i, (topic, kind, log, raw) in enumerate(self.messages):
            if log >= ns(t):
                self.messages[i] = (topic, kind, log + shift, stamped(raw, kind, shift))

    def ordered(self) -> list[tuple[str, str, int, bytes]]:
        return sorted(self.messages, key=lambda message: message[2])

    def write(self, directory: Path, *, by_log_time: bool = True) -> Path:
        with BagWriter(directory) as writer:
            for topic, kind, time, raw in self.ordered() if by_log_time else self.messages:
                writer.add_topic(topic, TYPES[kind])
                writer.write(topic, time, raw)
        return directory
