"""Messages made without ROS are those that rclpy makes, and those that their definitions demand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ki_ros.data.bag import encode
from ki_ros.share import find_share

STAMP = 1_699_345_836_270_074_454
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=13)
doubles = st.lists(st.floats(allow_nan=False), max_size=9)
stamps = st.integers(0, (2**31 - 1) * 10**9)


def ros(package: str):
    """A package of rclpy's message classes."""
    pytest.importorskip("rclpy")
    return pytest.importorskip(f"{package}.msg")


def assert_same(raw: bytes, message) -> None:
    """`raw` is what rclpy makes of `message`, but for padding, whose bytes rclpy leaves as they were in memory.

    rclpy also hands over unused bytes at the end of its buffer where sequences are empty.
    """
    from rclpy.serialization import deserialize_message, serialize_message

    theirs = serialize_message(message)
    assert 0 <= len(theirs) - len(raw) <= 32
    assert deserialize_message(raw, type(message)) == message
    padding = [at for at in range(len(raw)) if raw[at] != theirs[at]]
    assert all(raw[at] == 0 for at in padding)
    tampered = bytearray(raw)
    for at in padding:
        tampered[at] = 0xFF
    assert deserialize_message(bytes(tampered), type(message)) == message


def set_stamp(time, stamp_ns: int) -> None:
    time.sec, time.nanosec = divmod(stamp_ns, 10**9)


@given(stamps, texts, st.integers(1, 7), st.integers(1, 7))
@settings(deadline=None)
def test_image(stamp_ns, frame_id, height, width):
    msg = ros("sensor_msgs")
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    message = msg.Image(height=height, width=width, encoding="rgb8", step=3 * width, data=pixels.tobytes())
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = frame_id
    assert_same(encode.image(stamp_ns, frame_id, pixels), message)
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    assert encode.image(stamp_ns, frame_id, pixels[:, ::-1]) == encode.image(stamp_ns, frame_id, mirrored)


@given(stamps, texts, texts, st.binary(max_size=20))
@settings(deadline=None)
def test_compressed_image(stamp_ns, frame_id, form, data):
    msg = ros("sensor_msgs")
    message = msg.CompressedImage(format=form, data=data)
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = frame_id
    assert_same(encode.compressed_image(stamp_ns, frame_id, form, data), message)


@given(stamps, st.lists(texts, max_size=8), doubles, doubles, doubles)
@settings(deadline=None)
def test_joint_state(stamp_ns, names, positions, velocities, efforts):
    msg = ros("sensor_msgs")
    message = msg.JointState(name=names, position=positions, velocity=velocities, effort=efforts)
    set_stamp(message.header.stamp, stamp_ns)
    assert_same(encode.joint_state(stamp_ns, names, positions, velocities, np.asarray(efforts)), message)


@given(texts, doubles)
@settings(deadline=None)
def test_string_and_array(text, values):
    msg = ros("std_msgs")
    assert_same(encode.string(text), msg.String(data=text))
    assert_same(encode.float64_multi_array(np.asarray(values, np.float64)), msg.Float64MultiArray(data=values))


@given(stamps)
@settings(deadline=None)
def test_clock(time_ns):
    msg = ros("rosgraph_msgs")
    message = msg.Clock()
    set_stamp(message.clock, time_ns)
    assert_same(encode.clock(time_ns), message)


@given(stamps, st.integers(0, 2**64 - 1), texts)
@settings(deadline=None)
def test_epoch(stamp_ns, number, instruction):
    msg = ros("ki_ros")
    message = msg.Epoch(id=number, instruction=instruction)
    set_stamp(message.stamp, stamp_ns)
    assert_same(encode.epoch(stamp_ns, number, instruction), message)


def definitions():
    """A type store that knows the package's own messages from their files."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types = {}
    for path in find_share("msg").glob("*.msg"):
        types.update(get_types_from_msg(path.read_text(encoding="utf-8"), f"ki_ros/msg/{path.stem}"))
    store.register(types)
    return store


def test_package_messages_follow_their_definitions():
    store = definitions()
    types = store.types
    time = types["builtin_interfaces/msg/Time"](*divmod(STAMP, 10**9))
    header = types["std_msgs/msg/Header"](time, "")
    ages = np.array([0.01, 0.02])
    status = types["ki_ros/msg/ObservationStatus"](header, True, "", "", "", ["wrist", "gripper"], ages)
    raw = encode.observation_status(STAMP, True, streams=["wrist", "gripper"], ages=ages)
    assert raw == store.serialize_cdr(status, "ki_ros/msg/ObservationStatus")
    refusal = types["ki_ros/msg/ObservationStatus"](header, False, "stale", "wrist", "too old", [], np.empty(0))
    raw = encode.observation_status(STAMP, False, "stale", "wrist", "too old")
    assert raw == store.serialize_cdr(refusal, "ki_ros/msg/ObservationStatus")
    episode = types["ki_ros/msg/Episode"](time, "e1", "pick the cube", 1, 2, "panda", "slipped")
    raw = encode.episode(STAMP, "e1", "pick the cube", 1, 2, "panda", "slipped")
    assert raw == store.serialize_cdr(episode, "ki_ros/msg/Episode")


def test_bad_input_names_the_value():
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        encode.image(0, "", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        encode.image(0, "", np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="nanoseconds"):
        encode.clock(2**31 * 10**9)
