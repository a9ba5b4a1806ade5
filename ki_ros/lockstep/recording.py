"""A lockstep episode as a recording: the messages that the running graph would have published, on the same topics."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ki_ros.data.bag import BagWriter, encode
from ki_ros.execution.executor import Tick
from ki_ros.rig import GRIPPER_JOINT, NUM_JOINTS, CameraRole
from ki_ros.sim.simulated_rig import SimulatedRig

START, STOP = 0, 1
SUCCESS, FAILURE = 1, 2

_IMAGE_TOPIC = "/camera/{role}/image_raw"
_TYPES = {
    "/joint_states": "sensor_msgs/msg/JointState",
    "/gripper/joint_states": "sensor_msgs/msg/JointState",
    "/joint_command": "sensor_msgs/msg/JointState",
    "/epoch": "ki_ros/msg/Epoch",
    "/instruction": "std_msgs/msg/String",
    "/episode": "ki_ros/msg/Episode",
    "/observation_status": "ki_ros/msg/ObservationStatus",
}


class EpisodeRecording:
    """Listens to a `Lockstep` and writes a bag, with the topics of config/droid_sim.yaml. A context manager.

    Args:
        directory: of the new bag.
        id: of the episode.
        instruction: of the episode.
        rig: that is recorded.
        views: cameras.
        quality: of the JPEG images; None for raw ones.

    Raises:
        BagWriteError: the bag cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        id: str,
        instruction: str,
        rig: SimulatedRig,
        views: tuple[CameraRole, ...],
        quality: int | None = 95,
    ) -> None:
        self._id, self._instruction, self._rig, self._views, self._quality = id, instruction, rig, views, quality
        self._joints = list(rig.robot.joint_names)
        self._state_ns = 0
        self._writer = BagWriter(directory, custom_data={"episode_id": id})
        for topic, kind in _TYPES.items():
            self._writer.add_topic(topic, kind)
        self._topics = {}
        for role in views:
            topic = _IMAGE_TOPIC.format(role=role.value)
            self._topics[role] = topic if quality is None else f"{topic}/compressed"
            self._writer.add_topic(
                self._topics[role], f"sensor_msgs/msg/{'Image' if quality is None else 'CompressedImage'}"
            )
        now = rig.time_ns
        self._write("/episode", now, encode.episode(now, id, instruction, START, 0, rig.robot.name, "lockstep"))
        self._write("/epoch", now, encode.epoch(now, 1, instruction))
        self._write("/instruction", now, encode.string(instruction))

    def __enter__(self) -> EpisodeRecording:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def finish(self, *, success: bool) -> None:
        """Writes the episode's end."""
        now, outcome = self._rig.time_ns, SUCCESS if success else FAILURE
        message = encode.episode(now, self._id, self._instruction, STOP, outcome, self._rig.robot.name, "lockstep")
        self._write("/episode", now, message)

    def on_state(self, time_ns: int, rig: SimulatedRig) -> None:
        """Writes the joint states of arm and gripper."""
        self._state_ns = time_ns
        arm = encode.joint_state(time_ns, self._joints, rig.joint_positions, rig.joint_velocities)
        gripper = encode.joint_state(time_ns, [GRIPPER_JOINT], [rig.gripper_angle], [rig.gripper_velocity])
        self._write("/joint_states", time_ns, arm)
        self._write("/gripper/joint_states", time_ns, gripper)

    def on_image(self, time_ns: int, role: CameraRole, pixels: np.ndarray) -> None:
        """Writes a picture."""
        if self._quality is None:
            message = encode.image(time_ns, role.value, pixels)
        else:
            _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self._quality])
            message = encode.compressed_image(time_ns, role.value, "rgb8; jpeg compressed bgr8", data.tobytes())
        self._write(self._topics[role], time_ns, message)

    def on_observation(self, time_ns: int, exposed_ns: int) -> None:
        """Writes the reference time and how old the samples were."""
        ages = [(time_ns - stamp) / 1e9 for stamp in (*(exposed_ns for _ in self._views), *(self._state_ns,) * 2)]
        streams = [*(role.value for role in self._views), "joint_states", "gripper"]
        status = encode.observation_status(time_ns, True, "", "", "", streams, ages)
        self._write("/observation_status", time_ns, status)

    def on_tick(self, time_ns: int, tick: Tick) -> None:
        """Writes the command that was sent."""
        if tick.positions is None:
            return
        gripper = () if tick.gripper is None else (tick.gripper,)
        names = [*self._joints, GRIPPER_JOINT][: NUM_JOINTS + len(gripper)]
        velocities = (*tick.velocities, *(0.0 for _ in gripper))
        self._write(
            "/joint_command", time_ns, encode.joint_state(time_ns, names, (*tick.positions, *gripper), velocities)
        )

    def _write(self, topic: str, time_ns: int, raw: bytes) -> None:
        self._writer.write(topic, time_ns, raw)
