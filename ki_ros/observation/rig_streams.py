"""What is sampled of a rig, as plain data, and the sampler that goes with it.

The observation node and the readers of recordings build their samplers here, so that one recorded run gives the same
observations, bit for bit, as it gave live.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import yaml

from ki_ros import rig
from ki_ros.images import UnknownEncodingError, decompress, to_rgb
from ki_ros.observation import cdr
from ki_ros.observation.buffer import NANOSECONDS
from ki_ros.observation.joints import JointRouter, gripper_state, joint_positions
from ki_ros.observation.sampler import ObservationSampler, Reason, Sample, StreamSpec
from ki_ros.resize import resize_with_pad
from ki_ros.rig import CameraRole

JOINT_STATES = "joint_states"
GRIPPER = "gripper"
"""Names of the streams that are no cameras; a camera's stream is called by its role."""

TRANSPORTS = {"raw": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}
"""The message type of each transport of images."""

STAMP_SOURCES = ("header", "arrival")

# Messages that wait for a tick. Cameras of 60 Hz send four between two ticks at 15 Hz, robot drivers of 1 kHz 67.
IMAGE_DEPTH = 8
JOINT_DEPTH = 256

Converter = Callable[[bytes, UnknownEncodingError], np.ndarray]
"""Makes (H, W, 3) uint8 RGB of a serialised image whose encoding `to_rgb` does not know, or raises ValueError."""


class RigStreamsError(ValueError):
    """Streams that cannot be sampled. The message names the setting, its value and the fix."""


@dataclass(frozen=True)
class CameraStream:
    """Where a camera's images come from.

    Attributes:
        topic: of its raw images; compressed ones are on this topic with /compressed behind it.
        transport: "raw" or "compressed".
        max_age: its image is at most this old [s].
    """

    topic: str
    transport: str = "raw"
    max_age: float = 0.15

    @property
    def image_topic(self) -> str:
        """The topic that carries the images in this transport."""
        if self.transport == "compressed" and not self.topic.endswith("/compressed"):
            return self.topic + "/compressed"
        return self.topic


_CAMERAS = MappingProxyType(
    {
        CameraRole.EXTERIOR_1: CameraStream("/camera/exterior_1/image_raw"),
        CameraRole.WRIST: CameraStream("/camera/wrist/image_raw"),
    }
)


@dataclass(frozen=True)
class RigStreams:
    """What is sampled. Names and defaults are those of the observation node's parameters.

    Attributes:
        cameras: the cameras that are used, by role.
        robot: whose joint names hold.
        rate: observations a second.
        image_size: side of the square views [pixels].
        joint_states_topic: of the arm's joint states.
        joint_states_max_age: the arm's state is at most this old [s].
        gripper_topic: of the gripper's joint state; it may be the same as the arm's.
        gripper_max_age: the gripper's state is at most this old [s].
        max_spread: the samples of an observation are stamped within this time [s].
        stamp_source: "header", or "arrival" for drivers that do not stamp.

    Raises:
        RigStreamsError: no camera is used, two have the same topic, or a value that cannot be.
    """

    cameras: Mapping[CameraRole, CameraStream] = field(default_factory=lambda: _CAMERAS)
    robot: str = "panda"
    rate: float = rig.CONTROL_HZ
    image_size: int = 224
    joint_states_topic: str = "/joint_states"
    joint_states_max_age: float = 0.1
    gripper_topic: str = "/gripper/joint_states"
    gripper_max_age: float = 0.25
    max_spread: float = 0.15
    stamp_source: str = "header"

    def __post_init__(self) -> None:
        if not self.cameras:
            raise RigStreamsError("no camera is used: set exterior_1.topic, exterior_2.topic or wrist.topic")
        topics: dict[str, CameraRole] = {}
        for role, camera in self.cameras.items():
            _require_choice(f"{role.value}.transport", camera.transport, TRANSPORTS)
            _require_positive(f"{role.value}.max_age", camera.max_age)
            if camera.image_topic in topics:
                raise RigStreamsError(
                    f"{topics[camera.image_topic].value}.topic and {role.value}.topic are both {camera.image_topic}; "
                    "give each its own topic"
                )
            topics[camera.image_topic] = role
        for topic in (self.joint_states_topic, self.gripper_topic):
            if topic in topics:
                raise RigStreamsError(
                    f"{topics[topic].value}.topic and a topic of joint states are both {topic}; give each its own topic"
                )
        _require_choice("robot", self.robot, rig.ROBOTS)
        _require_choice("stamp_source", self.stamp_source, STAMP_SOURCES)
        for name in ("rate", "image_size", "joint_states_max_age", "gripper_max_age", "max_spread"):
            _require_positive(name, getattr(self, name))

    @classmethod
    def from_parameter_file(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> RigStreams:
        """The streams that the observation node samples with a ROS parameter file.

        Args:
            path: parameter file as the launch file takes it.
            overrides: values by parameter name (such as "wrist.topic") that win over the file's.

        Raises:
            RigStreamsError: a file that cannot be read, an unknown parameter, or a value that cannot be.
        """
        return cls.from_parameters({**node_parameters(path, "observation"), **(overrides or {})}, str(path))

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], origin: str = "parameters") -> RigStreams:
        """The streams of the observation node's parameters by dotted name; what is left out has its default.

        Raises:
            RigStreamsError: as `from_parameter_file`; the message begins with `origin`.
        """
        streams = cls()
        cameras = {role: dict(vars(_CAMERAS.get(role, CameraStream("")))) for role in CameraRole}
        known = {f.name for f in fields(cls)} - {"cameras"}
        known |= {f"{role.value}.{f.name}" for role in CameraRole for f in fields(CameraStream)}
        values: dict[str, Any] = {}
        for name, value in parameters.items():
            if name == "use_sim_time" or name.startswith("qos_overrides"):
                continue
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the parameters are {', '.join(sorted(known))}"
                raise RigStreamsError(f"{origin}: observation has no parameter {name!r}; {hint}")
            role, dot, attribute = name.partition(".")
            if dot:
                cameras[CameraRole(role)][attribute] = _like(origin, name, value, getattr(CameraStream(""), attribute))
            else:
                values[name] = _like(origin, name, value, getattr(streams, name))
        used = {role: CameraStream(**camera) for role, camera in cameras.items() if camera["topic"]}
        try:
            return replace(streams, cameras=used, **values)
        except RigStreamsError as error:
            raise RigStreamsError(f"{origin}: {error}") from None


class Source(NamedTuple):
    """A topic that is sampled.

    Attributes:
        name: of its stream, or of the first of its streams.
        topic: its name.
        setting: the parameter that holds it.
        type_name: of its messages, such as "sensor_msgs/msg/Image".
        streams: names of the streams that it carries.
    """

    name: str
    topic: str
    setting: str
    type_name: str
    streams: tuple[str, ...]


class ImageKind(NamedTuple):
    """What a camera's last decoded image was like: encoding or format, and size [pixels]."""

    encoding: str
    width: int
    height: int


class RigSampler:
    """The streams of a rig: takes in serialised messages topic by topic, and samples them. Not thread-safe.

    Args:
        streams: what is sampled.
        convert: for images in encodings that `to_rgb` does not know; without it they are refused.
        decode_image: makes the value of a camera's sample in place of `view`, of what was taken in for it.
        image_depth: images of a camera that are held.
        joint_depth: joint states of a stream that are held.

    Attributes:
        streams: what is sampled.
        sources: the topics, by name.
        sampler: samples, and counts what it refused.
        images: by stream, what its last decoded image was like.
    """

    def __init__(
        self,
        streams: RigStreams,
        *,
        convert: Converter | None = None,
        decode_image: Callable[[CameraRole, Any], Any] | None = None,
        image_depth: int = IMAGE_DEPTH,
        joint_depth: int = JOINT_DEPTH,
    ) -> None:
        self.streams = streams
        self.images: dict[str, ImageKind] = {}
        self._convert = convert
        decode = decode_image or self.view
        cameras = [
            StreamSpec(
                role.value,
                nanoseconds(camera.max_age),
                lambda raw, role=role: decode(role, raw),
                capacity=image_depth,
                topic=camera.image_topic,
                age_setting=f"{role.value}.max_age",
            )
            for role, camera in streams.cameras.items()
        ]
        joints = rig.robot(streams.robot).joint_names
        arm = StreamSpec(
            JOINT_STATES,
            nanoseconds(streams.joint_states_max_age),
            lambda raw: joint_positions(raw, joints),
            capacity=joint_depth,
            topic=streams.joint_states_topic,
            age_setting="joint_states_max_age",
        )
        gripper = StreamSpec(
            GRIPPER,
            nanoseconds(streams.gripper_max_age),
            gripper_state,
            capacity=joint_depth,
            topic=streams.gripper_topic,
            age_setting="gripper_max_age",
        )
        self.sampler = ObservationSampler([*cameras, arm, gripper], nanoseconds(streams.max_spread))
        needs: dict[str, dict[str, tuple[str, ...]]] = {}
        needs.setdefault(streams.joint_states_topic, {})[JOINT_STATES] = joints
        needs.setdefault(streams.gripper_topic, {})[GRIPPER] = (rig.GRIPPER_JOINT,)
        self._routers = {topic: JointRouter(needed) for topic, needed in needs.items()}
        self.sources = sources(streams)

    def accept(self, topic: str, raw: bytes, arrival_ns: int, image: Any = None) -> int | None:
        """Takes in a serialised message.

        Args:
            topic: one of `sources`.
            raw: the message.
            arrival_ns: when it arrived [ns]; it counts where the stamp source says so.
            image: held in place of the bytes of a camera's message, for a reader that holds no pictures.

        Returns:
            The stamp in the message's header [ns], 0 where the driver left it out; None of a message of no use.
        """
        source = self.sources[topic]
        try:
            stamp = cdr.stamp_ns(raw)
            when = stamp if self.streams.stamp_source == "header" else arrival_ns
            router = self._routers.get(topic)
            if router is None:
                self.sampler.add(source.name, when, raw if image is None else image)
                return stamp
            for stream, reason, detail in router.route(raw):
                if reason is None:
                    self.sampler.add(stream, when, raw)
                else:
                    self.sampler.reject(stream, reason, detail)
            return stamp
        except cdr.CdrError as error:
            for stream in source.streams:
                self.sampler.reject(stream, Reason.UNDECODABLE, str(error))
            return None

    def view(self, role: CameraRole, raw: bytes) -> np.ndarray:
        """The view that a serialised message of a camera shows, (image_size, image_size, 3) uint8 RGB.

        Raises:
            ValueError: CdrError or ImageError, for a message that holds no image that is known.
        """
        pixels, encoding = self._pixels(role, raw)
        height, width, _ = pixels.shape
        self.images[role.value] = ImageKind(encoding, width, height)
        return resize_with_pad(pixels, self.streams.image_size)

    def _pixels(self, role: CameraRole, raw: bytes) -> tuple[np.ndarray, str]:
        if self.streams.cameras[role].transport == "compressed":
            compressed = cdr.read_compressed_image(raw)
            return decompress(compressed.data, compressed.format), compressed.format
        image = cdr.read_image(raw)
        try:
            pixels = to_rgb(
                encoding=image.encoding, height=image.height, width=image.width, step=image.step, data=image.data
            )
        except UnknownEncodingError as error:
            if self._convert is None:
                raise
            pixels = self._convert(raw, error)
        return pixels, image.encoding


def sources(streams: RigStreams) -> dict[str, Source]:
    """The topics that are sampled, by name: the cameras', then the joint states'."""
    found = {
        camera.image_topic: Source(
            role.value, camera.image_topic, f"{role.value}.topic", TRANSPORTS[camera.transport], (role.value,)
        )
        for role, camera in streams.cameras.items()
    }
    for topic, setting, stream in (
        (streams.joint_states_topic, "joint_states_topic", JOINT_STATES),
        (streams.gripper_topic, "gripper_topic", GRIPPER),
    ):
        if topic in found:
            found[topic] = found[topic]._replace(streams=(*found[topic].streams, stream))
        else:
            found[topic] = Source(stream, topic, setting, "sensor_msgs/msg/JointState", (stream,))
    return found


def state_of(sample: Sample) -> np.ndarray:
    """The state in an observation, (8,) float64: joint positions [rad] and gripper closedness [0 open .. 1 closed]."""
    return np.append(sample.streams[JOINT_STATES].value, sample.streams[GRIPPER].value)


def node_parameters(path: str | Path, node: str) -> dict[str, Any]:
    """A node's parameters in a ROS parameter file, by dotted name; those of `/**` are everybody's.

    Raises:
        RigStreamsError: a file that cannot be read or that holds no parameters.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RigStreamsError(f"parameter file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RigStreamsError(f"parameter file {path} holds no mapping of node names to ros__parameters")
    found: dict[str, Any] = {}
    for name in ("/**", "**", node, f"/{node}"):
        section = content.get(name)
        parameters = section.get("ros__parameters", {}) if isinstance(section, dict) else {}
        if not isinstance(parameters, dict):
            raise RigStreamsError(f"parameter file {path}: {name!r} has no mapping of parameters")
        found |= _flat(parameters)
    return found


def nanoseconds(seconds: float) -> int:
    """A time [s] in whole nanoseconds."""
    return round(seconds * NANOSECONDS)


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _like(origin: str, name: str, value: Any, default: Any) -> Any:
    """A parameter's value, of the type of its default. YAML writes 15.0 as 15."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise RigStreamsError(f"{origin}: {name} is {value!r}, which is no {type(default).__name__}")
    return value


def _require_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise RigStreamsError(f"{name} is {value!r}; use one of {', '.join(choices)}")


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise RigStreamsError(f"{name} is {value!r}; give a positive number")
