"""The observation node over Fast DDS: what it publishes, what it refuses, and what it survives."""

import os
import random
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg")

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from observation_graph import POSITIONS, Graph, compressed, image, joint_state, pixels
from sensor_msgs.msg import JointState

from ki_ros.msg import Epoch
from ki_ros.nodes.observation import ObservationNode
from ki_ros.nodes.parameters import ParameterError
from ki_ros.nodes.stamps import from_message
from ki_ros.resize import resize_with_pad
from ki_ros.rig import FR3, GRIPPER_JOINT, PANDA

pytestmark = pytest.mark.graph

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@pytest.fixture
def make_graph(monkeypatch) -> Iterator[Callable[..., Graph]]:
    """Starts a node with these parameters (`__` for a dot in a name)."""
    monkeypatch.setitem(os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    graphs: list[Graph] = []

    def make(**parameters) -> Graph:
        graphs.append(Graph(**parameters))
        return graphs[-1]

    yield make
    for graph in graphs:
        graph.close()


@pytest.fixture
def graph(make_graph) -> Graph:
    """A node with default parameters, and drivers for all that it needs."""
    graph = make_graph()
    graph.add_rig()
    return graph


def view(observation, role: str) -> np.ndarray:
    (message,) = (v for v in observation.views if v.header.frame_id == role)
    assert (message.encoding, message.step) == ("rgb8", 3 * message.width)
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


def test_an_observation_has_every_stream(graph):
    def shuffled():
        joints = [*POSITIONS.items(), ("panda_finger_joint1", 0.04)]
        random.shuffle(joints)
        return joint_state(dict(joints))

    graph.drivers["arm"].message = shuffled
    first = graph.observe()
    assert [v.header.frame_id for v in first.views] == ["exterior_1", "wrist"]
    np.testing.assert_array_equal(view(first, "exterior_1"), resize_with_pad(pixels(1), 224))
    np.testing.assert_array_equal(view(first, "wrist"), resize_with_pad(pixels(2), 224))
    np.testing.assert_allclose(first.state, [*POSITIONS.values(), 0.25])
    assert tuple(first.state_names) == PANDA.state_names
    assert list(first.streams) == ["exterior_1", "wrist", "joint_states", "gripper"]
    reference = from_message(first.header.stamp)
    for v, age in zip(first.views, first.ages, strict=False):
        assert age == pytest.approx((reference - from_message(v.header.stamp)) / 1e9)
    assert all(0 <= age <= 0.25 for age in first.ages)
    assert (first.epoch, first.instruction) == (0, "")

    graph.epochs.publish(Epoch(id=7, instruction="put the marker in the pot"))
    later = graph.observe(lambda o: o.epoch == 7, "an observation of the epoch")
    assert later.instruction == "put the marker in the pot"
    assert later.sequence > first.sequence
    graph.expect("observation", OK)
    for stream in ("exterior_1", "wrist", "joint_states", "gripper"):
        graph.expect(stream, OK)
    assert graph.values("wrist")["resolution"] == "64x36"
    assert graph.values("wrist")["encoding"] == "rgb8"


def test_a_camera_that_stops_is_refused_by_name_and_comes_back(graph):
    graph.observe()
    graph.drivers["wrist"].enabled = False
    graph.expect("observation", ERROR, "wrist", "limit is 0.150 s", "wrist.max_age")
    graph.expect("wrist", ERROR)
    assert int(graph.values("observation")["refused_stale_wrist"]) > 0
    published = graph.values("observation")["published"]
    graph.expect("observation", ERROR)
    assert graph.values("observation")["published"] == published
    graph.drivers["wrist"].enabled = True
    graph.observe()
    graph.expect("observation", OK)


def test_a_camera_changes_resolution(graph):
    graph.observe()
    graph.drivers["wrist"].message = lambda: image(pixels(3, 90, 120))
    want = resize_with_pad(pixels(3, 90, 120), 224)
    graph.observe(lambda o: np.array_equal(view(o, "wrist"), want), "a view of the new resolution")


def test_an_unknown_encoding_is_named(graph):
    graph.observe()
    graph.drivers["wrist"].message = lambda: image(pixels(2), "yuv444")
    graph.expect("observation", ERROR, "wrist", "yuv444", "bgra8")
    graph.drivers["wrist"].message = lambda: image(pixels(2), "bgr8")
    want = resize_with_pad(pixels(2)[..., ::-1], 224)
    graph.observe(lambda o: np.array_equal(view(o, "wrist"), want), "a view in the new encoding")


def test_a_missing_joint_is_named(graph):
    graph.observe()
    graph.drivers["arm"].message = lambda: joint_state({k: v for k, v in POSITIONS.items() if k != "panda_joint4"})
    graph.expect("observation", ERROR, "joint_states", "lacks panda_joint4")
    graph.drivers["arm"].message = lambda: joint_state(POSITIONS | {"panda_joint2": float("nan")})
    graph.expect("observation", ERROR, "panda_joint2 = nan")


@pytest.mark.parametrize("angle", [45.0, -3.0])
def test_a_gripper_at_an_angle_that_it_cannot_have_is_refused(graph, angle):
    """In degrees it would count as closed, whatever it does."""
    graph.observe()
    graph.drivers["gripper"].message = lambda: joint_state({GRIPPER_JOINT: angle})
    graph.expect("observation", ERROR, f"is at {angle:g}", "0.8 rad", "unit")
    graph.drivers["gripper"].message = lambda: joint_state({GRIPPER_JOINT: -0.01})
    graph.observe(lambda o: o.state[7] == 0.0, "an observation of an open gripper")


def test_a_foreign_publisher_is_counted_and_never_sampled(graph):
    foreign = graph.add("foreign", "/joint_states", lambda: joint_state(dict.fromkeys(FR3.joint_names, 9.0)))
    graph.observe()
    graph.expect("joint_states", WARN, "fr3_joint1", "panda_joint1")
    assert int(graph.values("joint_states")["rejected_foreign_joints"]) > 0
    assert max(max(o.state) for o in graph.observations) < 1.0
    graph.drivers["arm"].enabled = False
    graph.expect("observation", ERROR, "joint_states", "fr3_joint1", "parameter robot")
    foreign.stop()


def test_arm_and_gripper_on_one_topic(make_graph):
    graph = make_graph(gripper_topic="/joint_states")
    graph.add_rig()
    graph.drivers["gripper"].enabled = False
    graph.drivers["arm"].message = lambda: joint_state({GRIPPER_JOINT: 0.8} | POSITIONS)
    np.testing.assert_allclose(graph.observe().state, [*POSITIONS.values(), 1.0])


def test_a_publisher_restarts(graph):
    graph.observe()
    graph.drivers["wrist"].stop()
    graph.expect("wrist", ERROR, "nobody publishes /camera/wrist/image_raw", "wrist.topic")
    graph.drivers["wrist"].start()
    graph.observe()


def test_compressed_images(make_graph):
    graph = make_graph(wrist__transport="compressed")
    graph.add_rig()
    del graph.drivers["wrist"]
    _, png = cv2.imencode(".png", pixels(5)[..., ::-1])
    camera = graph.add(
        "compressed",
        "/camera/wrist/image_raw/compressed",
        lambda: compressed(png.tobytes(), "rgb8; png compressed bgr8"),
    )
    np.testing.assert_array_equal(view(graph.observe(), "wrist"), resize_with_pad(pixels(5), 224))
    camera.message = lambda: compressed(png.tobytes()[:-20], "rgb8; png compressed bgr8")
    graph.expect("observation", ERROR, "wrist", "cut off")


def test_simulated_time_jumps_back(make_graph):
    graph = make_graph(use_sim_time=True)
    graph.add_rig()
    graph.expect("observation", ERROR, "/clock")
    graph.simulated_ns = 100 * 10**9
    graph.observe(lambda o: o.header.stamp.sec >= 100)
    graph.simulated_ns = 10**9
    again = graph.observe(lambda o: o.header.stamp.sec < 50, "an observation after the jump")
    assert all(v.header.stamp.sec < 50 for v in again.views)
    graph.expect("observation", OK)


def test_a_topic_that_nobody_publishes_is_said_at_once(make_graph):
    graph = make_graph(wrist__topic="/camera/wirst/image_raw")
    graph.add_rig()

    def said() -> bool:
        return "wrist" in graph.statuses and "nobody publishes" in graph.statuses["wrist"].message

    graph.drive(said, "the diagnostics say that there is no publisher", seconds=2.5)
    graph.expect("wrist", ERROR, "/camera/wirst/image_raw", "wrist.topic", "/camera/wrist/image_raw")


def test_a_topic_of_another_type_is_said(make_graph):
    graph = make_graph(wrist__topic="/joint_states_of_the_wrist")
    graph.add_rig()
    # One participant cannot have a topic in two types, so this driver is one of its own.
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=graph.domain)
    driver = rclpy.create_node("other_driver", context=context)
    driver.create_publisher(JointState, "/joint_states_of_the_wrist", 10)
    try:
        graph.expect("wrist", ERROR, "sensor_msgs/msg/JointState", "expected sensor_msgs/msg/Image")
    finally:
        driver.destroy_node()
        rclpy.shutdown(context=context)


@pytest.mark.parametrize("source", ["header", "arrival"])
def test_drivers_without_stamps(make_graph, source):
    graph = make_graph(stamp_source=source)
    graph.add_rig()
    for driver in graph.drivers.values():
        driver.stamped = False
    if source == "arrival":
        graph.observe()
    else:
        graph.expect("observation", ERROR, "header.stamp", "stamp_source")


def test_a_camera_whose_clock_is_a_little_ahead(graph):
    """There are observations, with pictures that are older than their stamps say."""
    graph.observe()
    graph.drivers["wrist"].offset_ns = 100_000_000
    graph.expect("wrist", WARN, "after they arrive", "clocks")
    graph.expect("observation", OK)
    graph.expect("exterior_1", OK)


def test_a_camera_whose_clock_is_ahead(graph):
    graph.drivers["wrist"].offset_ns = 3 * 10**9
    graph.expect("observation", ERROR, "wrist", "in the future", "clocks")
    graph.drivers["wrist"].offset_ns = 0
    graph.observe()


@pytest.mark.parametrize(
    ("parameters", "error", "named"),
    [
        ({"exterior_1__topic": "", "wrist__topic": ""}, ValueError, "no camera"),
        ({"exterior_1__topic": "/a", "wrist__topic": "/a"}, ValueError, "wrist.topic are both /a"),
        ({"wirst__topic": "/a"}, ParameterError, "wrist.topic"),
        ({"robot": "ur5"}, ParameterError, "panda, fr3"),
        ({"wrist__transport": "h264"}, ParameterError, "raw, compressed"),
    ],
)
def test_parameters_that_cannot_be(make_graph, parameters, error, named):
    with pytest.raises(error, match=named):
        make_graph(**parameters)


def test_the_node_is_an_observation_node(graph):
    assert isinstance(graph.under_test, ObservationNode)
    assert graph.under_test.get_name() == "observation"
