"""Fields read from messages that rclpy serialised, and from bytes that nothing serialised."""

import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg")
from builtin_interfaces.msg import Duration
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ki_ros.msg import Episode, Epoch, ObservationStatus
from ki_ros.observation import CdrError, JointError, JointRouter, Reason, cdr, gripper_state, joint_positions
from ki_ros.rig import FR3, GRIPPER_JOINT, PANDA

names = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=12)
seconds, nanoseconds = st.integers(0, 2**31 - 1), st.integers(0, 999_999_999)


def stamped(message, sec=12, nanosec=345, frame_id="camera"):
    message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id = sec, nanosec, frame_id
    return message


def joint_state(joint_names, positions, **header) -> bytes:
    return serialize_message(stamped(JointState(name=list(joint_names), position=list(positions)), **header))


def big_endian_joint_state(joint_names, positions, sec, nanosec) -> bytes:
    """The same message as a big-endian machine would send it; written by hand, as no such machine is here."""
    body = bytearray()

    def put(data: bytes, alignment: int) -> None:
        body.extend(bytes(-len(body) % alignment))
        body.extend(data)

    def string(text: str) -> None:
        put((len(text) + 1).to_bytes(4, "big"), 4)
        put(text.encode() + b"\0", 1)

    put(sec.to_bytes(4, "big"), 4)
    put(nanosec.to_bytes(4, "big"), 4)
    string("frame")
    put(len(joint_names).to_bytes(4, "big"), 4)
    for name in joint_names:
        string(name)
    put(len(positions).to_bytes(4, "big"), 4)
    if len(positions):
        put(np.asarray(positions, ">f8").tobytes(), 8)
    for _ in range(2):
        put(bytes(4), 4)
    return b"\x00\x00\x00\x00" + bytes(body)


@given(seconds, nanoseconds, names)
def test_stamp_of_any_message_with_a_header(sec, nanosec, frame_id):
    for message in (Image(), CompressedImage(), JointState()):
        raw = serialize_message(stamped(message, sec, nanosec, frame_id))
        assert cdr.stamp_ns(raw) == sec * 10**9 + nanosec


@given(seconds, nanoseconds, names, names, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=50))
def test_image_fields(sec, nanosec, frame_id, encoding, height, step, data):
    message = stamped(
        Image(height=height, width=7, encoding=encoding, step=step, is_bigendian=1), sec, nanosec, frame_id
    )
    message.data = array.array("B", data)
    image = cdr.read_image(serialize_message(message))
    assert image[:-1] == (sec * 10**9 + nanosec, frame_id, height, 7, encoding, True, step)
    assert bytes(image.data) == data


@given(names, names, st.binary(max_size=50))
def test_compressed_image_fields(frame_id, format, data):
    message = stamped(CompressedImage(format=format), frame_id=frame_id)
    message.data = array.array("B", data)
    image = cdr.read_compressed_image(serialize_message(message))
    assert (image.frame_id, image.format, bytes(image.data)) == (frame_id, format, data)


@given(names, st.dictionaries(names, st.floats(), max_size=12), seconds, nanoseconds)
def test_joint_state_fields_in_both_byte_orders(frame_id, joints, sec, nanosec):
    little = joint_state(joints, joints.values(), sec=sec, nanosec=nanosec, frame_id=frame_id)
    big = big_endian_joint_state(list(joints), list(joints.values()), sec, nanosec)
    for raw in (little, big):
        state = cdr.read_joint_state(raw)
        assert (state.stamp_ns, state.names) == (sec * 10**9 + nanosec, tuple(joints))
        np.testing.assert_array_equal(state.positions, np.array(list(joints.values()), dtype=np.float64))


@given(names)
def test_text(text):
    assert cdr.read_string(serialize_message(String(data=text))) == text


@given(names, seconds, nanoseconds, st.integers(0, 2**64 - 1))
def test_epoch_fields(instruction, sec, nanosec, id):
    message = Epoch(id=id, instruction=instruction)
    message.stamp.sec, message.stamp.nanosec = sec, nanosec
    assert cdr.read_epoch(serialize_message(message)) == (sec * 10**9 + nanosec, id, instruction)


@given(names, names, names, names, st.integers(0, 255), st.integers(0, 255))
def test_episode_fields(id, instruction, robot, note, event, outcome):
    message = Episode(id=id, instruction=instruction, robot=robot, note=note, event=event, outcome=outcome)
    message.stamp.sec = 5
    fields = cdr.read_episode(serialize_message(message))
    assert fields == (5 * 10**9, id, instruction, event, outcome, robot, note)


@given(st.booleans(), names, names, names, st.dictionaries(names, st.floats(allow_nan=False), max_size=8))
def test_observation_status_fields(complete, reason, stream, text, ages):
    message = stamped(ObservationStatus(complete=complete, reason=reason, stream=stream, message=text))
    message.streams, message.ages = list(ages), list(ages.values())
    fields = cdr.read_observation_status(serialize_message(message))
    assert fields[:-1] == (12 * 10**9 + 345, complete, reason, stream, text, tuple(ages))
    assert fields.ages.tolist() == list(ages.values())


@pytest.mark.parametrize("text", ["", "a", "ab", "abc", "abcd"])
def test_an_observation_status_of_before_the_ages(text):
    raw = serialize_message(stamped(ObservationStatus(complete=True, message=text)))
    # Header with the frame "camera" to 19, complete to 20, two empty strings to 25 and, aligned, to 33; then the text.
    end = 4 + 36 + 4 + len(text) + 1
    for padding in range(-end % 4 + 1):
        _is_old_status(raw[:end] + bytes(padding), text)


def _is_old_status(old: bytes, text: str) -> None:
    fields = cdr.read_observation_status(old)
    assert (fields.complete, fields.message, fields.streams, fields.ages.tolist()) == (True, text, (), [])


@given(st.lists(st.floats(allow_nan=False), max_size=9), st.lists(names, max_size=3))
def test_numbers_with_any_layout(values, labels):
    message = Float64MultiArray(data=values)
    message.layout.dim = [MultiArrayDimension(label=label, size=3, stride=7) for label in labels]
    assert cdr.read_float64_multi_array(serialize_message(message)).tolist() == values


point = st.tuples(st.lists(st.floats(allow_nan=False), max_size=4), st.booleans(), seconds, nanoseconds)


@given(st.lists(names, max_size=4), st.lists(point, max_size=4))
def test_trajectory_fields(joint_names, points):
    message = stamped(JointTrajectory(joint_names=joint_names))
    for positions, moving, sec, nanosec in points:
        velocities = [0.5] * len(positions) if moving else []
        message.points.append(
            JointTrajectoryPoint(
                positions=positions, velocities=velocities, time_from_start=Duration(sec=sec, nanosec=nanosec)
            )
        )
    fields = cdr.read_joint_trajectory(serialize_message(message))
    assert fields.names == tuple(joint_names)
    assert [(p.positions.tolist(), p.time_from_start_ns) for p in fields.points] == [
        (positions, sec * 10**9 + nanosec) for positions, _, sec, nanosec in points
    ]


READERS = [getattr(cdr, name) for name in dir(cdr) if name.startswith("read_")]


@given(st.sampled_from([*READERS, cdr.stamp_ns]), st.binary())
def test_any_bytes_are_read_or_refused(read, data):
    for raw in (data, b"\x00\x01\x00\x00" + data, b"\x00\x00\x00\x00" + data):
        try:
            read(raw)
        except CdrError:
            continue


@pytest.mark.parametrize("read", [cdr.read_image, cdr.read_joint_state])
def test_a_message_that_is_cut_off_is_refused_at_every_length(read):
    image = stamped(Image(height=1, width=2, encoding="mono8", step=2, data=array.array("B", [1, 2])))
    raw = serialize_message(image) if read is cdr.read_image else joint_state(["a", "b"], [1.0, 2.0])
    end = len(raw) if read is cdr.read_image else raw.index(np.float64(2.0).tobytes()) + 8
    for length in range(end):
        # Serialisers pad a message to a multiple of four bytes; without padding it is as complete.
        if read is cdr.read_image and raw[length:].strip(b"\0") == b"":
            continue
        with pytest.raises(CdrError):
            read(raw[:length])


def test_other_representations_are_named():
    with pytest.raises(CdrError, match="0007"):
        cdr.stamp_ns(b"\x00\x07" + bytes(20))


# Joints


@given(st.permutations([*PANDA.joint_names, "panda_finger_joint1", "panda_joint10"]))
def test_joints_are_matched_by_name(order):
    values = {name: float(i) for i, name in enumerate([*PANDA.joint_names, "panda_finger_joint1", "panda_joint10"])}
    for raw in (
        joint_state(order, [values[name] for name in order]),
        big_endian_joint_state(order, [values[name] for name in order], 1, 2),
    ):
        np.testing.assert_array_equal(joint_positions(raw, PANDA.joint_names), np.arange(7.0))
        assert [route[:2] for route in JointRouter({"arm": PANDA.joint_names}).route(raw)] == [("arm", None)]


def test_a_joint_whose_name_begins_alike_is_not_mistaken():
    raw = joint_state([*PANDA.joint_names[1:], "panda_joint10"], [0.0] * 7)
    (route,) = JointRouter({"arm": PANDA.joint_names}).route(raw)
    assert route.reason is Reason.JOINT_MISSING
    assert "panda_joint1" in route.detail


def test_another_robots_joints_are_foreign():
    (route,) = JointRouter({"arm": PANDA.joint_names}).route(joint_state(FR3.joint_names, [0.0] * 7))
    assert route.reason is Reason.FOREIGN_JOINTS
    assert "fr3_joint1" in route.detail
    assert "panda_joint1" in route.detail


def test_arm_and_gripper_share_a_topic():
    router = JointRouter({"arm": PANDA.joint_names, "gripper": (GRIPPER_JOINT,)})
    arm, gripper = joint_state(PANDA.joint_names, [0.0] * 7), joint_state([GRIPPER_JOINT], [0.4])
    both = joint_state([GRIPPER_JOINT, *PANDA.joint_names], [0.8] + [0.0] * 7)
    assert [route[:2] for route in router.route(arm)] == [("arm", None)]
    assert [route[:2] for route in router.route(gripper)] == [("gripper", None)]
    assert [route[:2] for route in router.route(both)] == [("arm", None), ("gripper", None)]
    assert [route.reason for route in router.route(joint_state(["x"], [0.0]))] == [Reason.FOREIGN_JOINTS] * 2
    assert (gripper_state(gripper), gripper_state(both)) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("joint_names", "positions", "reason", "named"),
    [
        (["a"], [0.0], Reason.JOINT_MISSING, "lacks b"),
        (["a", "b"], [0.0, float("nan")], Reason.NON_FINITE, "b = nan"),
        (["a", "b"], [float("inf"), 0.0], Reason.NON_FINITE, "a = inf"),
        (["a", "b"], [], Reason.UNDECODABLE, "2 names, but 0 positions"),
        (["a", "b", "a"], [0.0, 0.0, 0.0], Reason.UNDECODABLE, "a more than once"),
    ],
)
def test_joint_states_that_cannot_be_used(joint_names, positions, reason, named):
    with pytest.raises(JointError, match=named) as caught:
        joint_positions(joint_state(joint_names, positions), ["a", "b"])
    assert caught.value.reason is reason


def test_other_joints_need_not_be_finite():
    raw = joint_state(["a", "broken"], [1.0, float("nan")])
    np.testing.assert_array_equal(joint_positions(raw, ["a"]), [1.0])
