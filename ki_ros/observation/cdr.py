"""Fields of serialised ROS messages (XCDR version 1, both byte orders), read in place.

A 1280x720 image is read without copying its pixels, and the stamp of any message with a header costs under a
microsecond, so that messages which are never sampled are never decoded.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

_HEADER = 4  # representation identifier and options; alignment counts from behind them
_ORDERS = {b"\x00\x00": ">", b"\x00\x01": "<"}
_STAMPS = {order: struct.Struct(order + "iI") for order in "<>"}
_NANOSECONDS = 1_000_000_000


class CdrError(ValueError):
    """Bytes that are not the serialised message they should be; the message says where and why."""


class ImageFields(NamedTuple):
    """A sensor_msgs/Image. `data` is a view into the serialised message; the other fields are as in the message."""

    stamp_ns: int
    frame_id: str
    height: int
    width: int
    encoding: str
    is_bigendian: bool
    step: int
    data: memoryview


class CompressedImageFields(NamedTuple):
    """A sensor_msgs/CompressedImage. `data` is a view into the serialised message."""

    stamp_ns: int
    frame_id: str
    format: str
    data: memoryview


class JointStateFields(NamedTuple):
    """Names and positions of a sensor_msgs/JointState. `positions` is float64 and may be shorter than `names`."""

    stamp_ns: int
    frame_id: str
    names: tuple[str, ...]
    positions: np.ndarray


class TrajectoryPoint(NamedTuple):
    """Positions, and when they are to be reached, of a point of a trajectory_msgs/JointTrajectory."""

    positions: np.ndarray
    time_from_start_ns: int


class JointTrajectoryFields(NamedTuple):
    """A trajectory_msgs/JointTrajectory without the points' velocities, accelerations and efforts."""

    stamp_ns: int
    frame_id: str
    names: tuple[str, ...]
    points: tuple[TrajectoryPoint, ...]


class EpochFields(NamedTuple):
    """A ki_ros/Epoch."""

    stamp_ns: int
    id: int
    instruction: str


class EpisodeFields(NamedTuple):
    """A ki_ros/Episode; `event` and `outcome` are the message's numbers."""

    stamp_ns: int
    id: str
    instruction: str
    event: int
    outcome: int
    robot: str
    note: str


class ObservationStatusFields(NamedTuple):
    """A ki_ros/ObservationStatus. `streams` and `ages` [s] are empty where nothing was observed."""

    stamp_ns: int
    complete: bool
    reason: str
    stream: str
    message: str
    streams: tuple[str, ...]
    ages: np.ndarray


def byte_order(raw: bytes) -> str:
    """The byte order of a serialised message, '<' or '>' as in `struct`.

    Raises:
        CdrError: no XCDR version 1 header.
    """
    order = _ORDERS.get(bytes(raw[:2]))
    if order is None:
        raise CdrError(
            f"the message begins with {bytes(raw[:4]).hex() or 'nothing'}; expected a CDR header 0000 or 0001"
        )
    return order


def stamp_ns(raw: bytes) -> int:
    """The stamp [ns] of a serialised message whose first field is a std_msgs/Header.

    Raises:
        CdrError: the bytes are no such message.
    """
    order = byte_order(raw)
    if len(raw) < _HEADER + 8:
        raise CdrError(f"the message has {len(raw)} bytes; a header with a stamp needs {_HEADER + 8}")
    sec, nanosec = _STAMPS[order].unpack_from(raw, _HEADER)
    if nanosec >= _NANOSECONDS:
        raise CdrError(f"the stamp has {nanosec} nanoseconds, which is a second or more")
    return sec * _NANOSECONDS + nanosec


def encoded_string(text: str, order: str) -> bytes:
    """The bytes that a string takes in a message of this byte order: its length, its characters and a zero."""
    data = text.encode() + b"\0"
    return struct.pack(order + "I", len(data)) + data


def read_image(raw: bytes) -> ImageFields:
    """The fields of a serialised sensor_msgs/Image. Raises CdrError."""
    reader = _Reader(raw)
    stamp, frame_id = reader.header()
    height, width = reader.uint32("height"), reader.uint32("width")
    encoding = reader.string("encoding")
    is_bigendian = bool(reader.take("is_bigendian", 1)[0])
    step = reader.uint32("step")
    return ImageFields(stamp, frame_id, height, width, encoding, is_bigendian, step, reader.octets("data"))


def read_compressed_image(raw: bytes) -> CompressedImageFields:
    """The fields of a serialised sensor_msgs/CompressedImage. Raises CdrError."""
    reader = _Reader(raw)
    stamp, frame_id = reader.header()
    return CompressedImageFields(stamp, frame_id, reader.string("format"), reader.octets("data"))


def read_joint_state(raw: bytes) -> JointStateFields:
    """Names and positions of a serialised sensor_msgs/JointState. Raises CdrError."""
    reader = _Reader(raw)
    stamp, frame_id = reader.header()
    return JointStateFields(stamp, frame_id, reader.strings("name"), reader.doubles("position"))


def read_joint_trajectory(raw: bytes) -> JointTrajectoryFields:
    """Names and positions over time of a serialised trajectory_msgs/JointTrajectory. Raises CdrError."""
    reader = _Reader(raw)
    stamp, frame_id = reader.header()
    names = reader.strings("joint_names")
    return JointTrajectoryFields(stamp, frame_id, names, reader.trajectory_points("points"))


def read_float64_multi_array(raw: bytes) -> np.ndarray:
    """The data of a serialised std_msgs/Float64MultiArray, float64; its layout is passed over. Raises CdrError."""
    reader = _Reader(raw)
    for _ in range(reader.count("layout.dim", 12)):
        reader.string("layout.dim.label")
        reader.uint32("layout.dim.size")
        reader.uint32("layout.dim.stride")
    reader.uint32("layout.data_offset")
    return reader.doubles("data")


def read_string(raw: bytes) -> str:
    """The text of a serialised std_msgs/String. Raises CdrError."""
    return _Reader(raw).string("data")


def read_epoch(raw: bytes) -> EpochFields:
    """The fields of a serialised ki_ros/Epoch. Raises CdrError."""
    reader = _Reader(raw)
    return EpochFields(reader.stamp("stamp"), reader.uint64("id"), reader.string("instruction"))


def read_episode(raw: bytes) -> EpisodeFields:
    """The fields of a serialised ki_ros/Episode. Raises CdrError."""
    reader = _Reader(raw)
    return EpisodeFields(
        reader.stamp("stamp"),
        reader.string("id"),
        reader.string("instruction"),
        reader.uint8("event"),
        reader.uint8("outcome"),
        reader.string("robot"),
        reader.string("note"),
    )


def read_observation_status(raw: bytes) -> ObservationStatusFields:
    """The fields of a serialised ki_ros/ObservationStatus.

    The first form of the message ended before `streams`: recordings of it have no streams.

    Raises:
        CdrError: the bytes are no such message.
    """
    reader = _Reader(raw)
    stamp, _ = reader.header()
    complete = bool(reader.uint8("complete"))
    reason, stream, message = reader.string("reason"), reader.string("stream"), reader.string("message")
    # A serialiser pads a message to four bytes, so what is shorter holds no further field.
    if reader.left < 4:
        return ObservationStatusFields(stamp, complete, reason, stream, message, (), np.zeros(0))
    streams = reader.strings("streams")
    return ObservationStatusFields(stamp, complete, reason, stream, message, streams, reader.doubles("ages"))


class _Reader:
    """Reads one field after the other."""

    def __init__(self, raw: bytes) -> None:
        self._order = byte_order(raw)
        self._raw = memoryview(raw)
        self._at = _HEADER

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return len(self._raw) - self._at

    def take(self, field: str, size: int, alignment: int = 1) -> memoryview:
        self._at += -(self._at - _HEADER) % alignment
        end = self._at + size
        if end > len(self._raw):
            raise CdrError(
                f"the message ends inside field {field!r}: it has {len(self._raw)} bytes, the field reaches to {end}"
            )
        data, self._at = self._raw[self._at : end], end
        return data

    def uint32(self, field: str) -> int:
        return struct.unpack(self._order + "I", self.take(field, 4, 4))[0]

    def uint64(self, field: str) -> int:
        return struct.unpack(self._order + "Q", self.take(field, 8, 8))[0]

    def uint8(self, field: str) -> int:
        return self.take(field, 1)[0]

    def octets(self, field: str) -> memoryview:
        return self.take(field, self.uint32(field))

    def string(self, field: str) -> str:
        data = bytes(self.octets(field))
        try:
            return data.removesuffix(b"\0").decode()
        except UnicodeDecodeError as error:
            raise CdrError(f"field {field!r} is no UTF-8 text: {data[:40]!r}") from error

    def strings(self, field: str) -> tuple[str, ...]:
        return tuple(self.string(field) for _ in range(self.count(field, 4)))

    def doubles(self, field: str) -> np.ndarray:
        count = self.count(field, 8)
        data = self.take(field, 8 * count, 8) if count else b""
        return np.frombuffer(data, dtype=self._order + "f8").astype(np.float64)

    def trajectory_points(self, field: str) -> tuple[TrajectoryPoint, ...]:
        points = []
        for _ in range(self.count(field, 24)):
            positions = self.doubles(f"{field}.positions")
            for other in ("velocities", "accelerations", "effort"):
                self.doubles(f"{field}.{other}")
            sec, nanosec = _STAMPS[self._order].unpack(self.take(f"{field}.time_from_start", 8, 4))
            points.append(TrajectoryPoint(positions, sec * _NANOSECONDS + nanosec))
        return tuple(points)

    def stamp(self, field: str) -> int:
        """The stamp [ns] that a message begins with."""
        stamp = stamp_ns(self._raw)
        self.take(field, 8, 4)
        return stamp

    def header(self) -> tuple[int, str]:
        return self.stamp("header.stamp"), self.string("header.frame_id")

    def count(self, field: str, size: int) -> int:
        count = self.uint32(field)
        if count * size > len(self._raw) - self._at:
            raise CdrError(
                f"field {field!r} should have {count} entries, but only {len(self._raw) - self._at} bytes follow"
            )
        return count
