"""Serialised ROS messages, made without ROS.

The bytes are those that `rclpy.serialization.serialize_message` gives on a little-endian machine: XCDR version 1,
fields in the order of the message definition, each aligned to its size, counted from behind the header's four bytes.
Padding is zero here; rclpy leaves it as it was in memory, and may leave some at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

_HEADER = b"\x00\x01\x00\x00"  # little endian, no options
_NANOSECONDS = 1_000_000_000
_SECONDS = 2**31  # builtin_interfaces/Time holds seconds as int32


def image(stamp_ns: int, frame_id: str, pixels: np.ndarray) -> bytes:
    """A sensor_msgs/Image with encoding rgb8.

    Args:
        stamp_ns: header.stamp [ns].
        frame_id: header.frame_id.
        pixels: (H, W, 3) uint8, RGB.

    Raises:
        ValueError: another shape or dtype, or a stamp that the message cannot hold.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"pixels have shape {pixels.shape} and dtype {pixels.dtype}; an rgb8 image needs (H, W, 3) of uint8"
        )
    height, width = pixels.shape[:2]
    message = _Message().header(stamp_ns, frame_id).uint32(height).uint32(width).string("rgb8")
    return message.boolean(False).uint32(3 * width).octets(pixels.tobytes()).raw()


def compressed_image(stamp_ns: int, frame_id: str, format: str, data: bytes) -> bytes:
    """A sensor_msgs/CompressedImage: `data` is the picture, compressed as `format` says. ValueError: a bad stamp."""
    return _Message().header(stamp_ns, frame_id).string(format).octets(data).raw()


def joint_state(
    stamp_ns: int,
    names: Sequence[str],
    positions: Sequence[float] | np.ndarray,
    velocities: Sequence[float] | np.ndarray = (),
    efforts: Sequence[float] | np.ndarray = (),
) -> bytes:
    """A sensor_msgs/JointState in SI units (rad, rad/s, Nm) with an empty frame_id. ValueError: a bad stamp."""
    message = _Message().header(stamp_ns, "").strings(names)
    return message.doubles(positions).doubles(velocities).doubles(efforts).raw()


def string(text: str) -> bytes:
    """A std_msgs/String."""
    return _Message().string(text).raw()


def clock(time_ns: int) -> bytes:
    """A rosgraph_msgs/Clock. ValueError: a time that the message cannot hold."""
    return _Message().time(time_ns).raw()


def float64_multi_array(values: Sequence[float] | np.ndarray) -> bytes:
    """A std_msgs/Float64MultiArray of one row without a layout, as forward command controllers take it."""
    return _Message().uint32(0).uint32(0).doubles(values).raw()


def epoch(stamp_ns: int, id: int, instruction: str) -> bytes:
    """A ki_ros/Epoch. ValueError: a bad stamp."""
    return _Message().time(stamp_ns).uint64(id).string(instruction).raw()


def episode(
    stamp_ns: int, id: str, instruction: str, event: int, outcome: int, robot: str = "", note: str = ""
) -> bytes:
    """A ki_ros/Episode; `event` and `outcome` are constants of the message. ValueError: a bad stamp."""
    message = _Message().time(stamp_ns).string(id).string(instruction).uint8(event).uint8(outcome)
    return message.string(robot).string(note).raw()


def observation_status(
    stamp_ns: int,
    complete: bool,
    reason: str = "",
    stream: str = "",
    message: str = "",
    streams: Sequence[str] = (),
    ages: Sequence[float] | np.ndarray = (),
) -> bytes:
    """A ki_ros/ObservationStatus with an empty frame_id; `ages` [s] belong to `streams`. ValueError: a bad stamp."""
    status = _Message().header(stamp_ns, "").boolean(complete).string(reason).string(stream).string(message)
    return status.strings(streams).doubles(ages).raw()


class _Message:
    """Appends one field after the other."""

    def __init__(self) -> None:
        self._body = bytearray()

    def raw(self) -> bytes:
        return _HEADER + self._body

    def header(self, stamp_ns: int, frame_id: str) -> _Message:
        return self.time(stamp_ns).string(frame_id)

    def time(self, time_ns: int) -> _Message:
        seconds, nanoseconds = divmod(int(time_ns), _NANOSECONDS)
        if not -_SECONDS <= seconds < _SECONDS:
            raise ValueError(
                f"the time {time_ns} ns is {seconds} s, more than builtin_interfaces/Time holds; give nanoseconds"
            )
        return self._put("iI", 4, seconds, nanoseconds)

    def boolean(self, value: bool) -> _Message:
        return self._put("B", 1, bool(value))

    def uint8(self, value: int) -> _Message:
        return self._put("B", 1, value)

    def uint32(self, value: int) -> _Message:
        return self._put("I", 4, value)

    def uint64(self, value: int) -> _Message:
        return self._put("Q", 8, value)

    def string(self, text: str) -> _Message:
        data = text.encode() + b"\0"
        self.uint32(len(data))
        self._body += data
        return self

    def strings(self, texts: Sequence[str]) -> _Message:
        self.uint32(len(texts))
        for text in texts:
            self.string(text)
        return self

    def octets(self, data: bytes) -> _Message:
        self.uint32(len(data))
        self._body += data
        return self

    def doubles(self, values: Sequence[float] | np.ndarray) -> _Message:
        array = np.asarray(values, dtype="<f8").ravel()
        self.uint32(len(array))
        if len(array):
            # An empty sequence ends with its length: there is no first element to align.
            self._align(8)
            self._body += array.tobytes()
        return self

    def _put(self, layout: str, alignment: int, *values: int) -> _Message:
        self._align(alignment)
        self._body += struct.pack("<" + layout, *values)
        return self

    def _align(self, alignment: int) -> None:
        self._body += bytes(-len(self._body) % alignment)
