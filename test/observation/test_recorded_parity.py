"""A recorded run gives, step for step, what the live node published, and a policy acts alike on both."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg")

import cv2
from diagnostic_msgs.msg import DiagnosticStatus
from observation_graph import Graph, compressed, image, joint_state, pixels
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState

from ki_ros.data.bag import BagWriter
from ki_ros.data.episodes import Episode, read_episodes
from ki_ros.msg import Epoch, Observation, ObservationStatus
from ki_ros.nodes.stamps import from_message
from ki_ros.observation.rig_streams import RigStreams
from ki_ros.policy import Policy
from ki_ros.rig import GRIPPER_JOINT, PANDA, CameraRole

pytestmark = pytest.mark.graph

WRIST = "/camera/wrist/image_raw/compressed"
RECORDED = {
    "/camera/exterior_1/image_raw": Image,
    WRIST: CompressedImage,
    "/joint_states": JointState,
    "/gripper/joint_states": JointState,
    "/joint_command": JointState,
    "/observation_status": ObservationStatus,
    "/epoch": Epoch,
}


class Recorder:
    """Writes what arrives as it is, each message at the time of its arrival."""

    def __init__(self, graph: Graph, directory: Path) -> None:
        self._graph, self._lock = graph, threading.Lock()
        self._writer: BagWriter | None = BagWriter(directory)
        for topic, kind in RECORDED.items():
            self._writer.add_topic(topic, f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}")
            latched = kind is Epoch
            qos = QoSProfile(
                depth=200,
                reliability=ReliabilityPolicy.RELIABLE if latched else ReliabilityPolicy.BEST_EFFORT,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
            )
            graph.node.create_subscription(
                kind, topic, lambda raw, topic=topic: self._write(topic, bytes(raw)), qos, raw=True
            )

    def _write(self, topic: str, raw: bytes) -> None:
        with self._lock:
            if self._writer is not None:
                self._writer.write(topic, self._graph.now_ns(), raw)

    def close(self) -> None:
        with self._lock:
            writer, self._writer = self._writer, None
        writer.close()


def view(observation: Observation, role: CameraRole) -> np.ndarray:
    (message,) = (v for v in observation.views if v.header.frame_id == role.value)
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[list[Observation], Episode]:
    """What was observed live in some seconds in which a camera stops and comes back, and the episode recorded of it."""
    directory = tmp_path_factory.mktemp("parity") / "bag"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        graph = Graph(wrist__transport="compressed")
        try:
            recorder = Recorder(graph, directory)
            _drive(graph)
        finally:
            graph.close()
        recorder.close()
    (episode,) = read_episodes(directory)
    return graph.observations, episode


def _drive(graph: Graph) -> None:
    random = np.random.default_rng(0)

    def jpeg() -> CompressedImage:
        _, data = cv2.imencode(".jpg", pixels(int(random.integers(1 << 30)), 90, 120))
        return compressed(data.tobytes(), "bgr8; jpeg compressed bgr8")

    def arm() -> JointState:
        return joint_state(dict(zip(PANDA.joint_names, random.normal(size=7).tolist(), strict=True)))

    def sent() -> JointState:
        return joint_state(dict(zip(PANDA.state_names, random.normal(size=8).tolist(), strict=True)))

    exterior = graph.add(
        "exterior_1", "/camera/exterior_1/image_raw", lambda: image(pixels(int(random.integers(1 << 30))), "bgr8")
    )
    graph.add("wrist", WRIST, jpeg)
    graph.add("arm", "/joint_states", arm)
    graph.add("gripper", "/gripper/joint_states", lambda: joint_state({GRIPPER_JOINT: float(random.uniform(0, 0.8))}))
    graph.add("command", "/joint_command", sent)
    graph.epochs.publish(Epoch(id=7, instruction="put the marker in the pot"))
    # The exterior camera's pictures arrive after they are stamped, and out of step with the others.
    exterior.offset_ns = -35_000_000
    graph.drive(lambda: len(graph.observations) >= 20, "20 observations")
    exterior.enabled = False
    graph.expect("observation", DiagnosticStatus.ERROR, "exterior_1")
    exterior.enabled = True
    seen = len(graph.observations)
    graph.drive(lambda: len(graph.observations) >= seen + 20, "20 more observations")


def test_every_observation_is_a_step(run):
    observations, episode = run
    assert episode.exact
    assert not episode.substituted
    live = [from_message(o.header.stamp) for o in observations]
    # What was published before the recorder had been discovered is in no recording.
    live = [stamp for stamp in live if stamp >= episode.stamps_ns[0]]
    assert len(live) >= 30
    assert set(live) <= set(episode.stamps_ns.tolist())
    assert len(episode) - len(live) <= 1, "steps that were never published"
    assert len(np.unique(episode.segment)) >= 2
    assert episode.refusals["exterior_1", "stale"] + episode.refusals["exterior_1", "spread"] >= 1
    assert episode.instruction == "put the marker in the pot"
    assert episode.action_source == "joint_command"


def test_states_views_and_stamps_are_equal_byte_for_byte(run):
    observations, episode = run
    by_stamp = {from_message(o.header.stamp): o for o in observations}
    compared = 0
    for step, stamp in enumerate(episode.stamps_ns.tolist()):
        if stamp not in by_stamp:
            continue
        observation = by_stamp[stamp]
        compared += 1
        assert episode.states[step].tobytes() == np.asarray(observation.state).tobytes()
        views = episode.views(step)
        assert [role.value for role in views] == [v.header.frame_id for v in observation.views]
        for message, (role, pixels_) in zip(observation.views, views.items(), strict=True):
            assert pixels_.tobytes() == bytes(message.data)
            assert int(episode.samples_ns[role.value][step]) == from_message(message.header.stamp)
    assert compared >= 30


def test_a_policy_acts_alike(run):
    observations, episode = run
    live, recorded = (Policy.load(preset="ki_tiny", seed=3, threads=1) for _ in range(2))
    steps = {stamp: step for step, stamp in enumerate(episode.stamps_ns.tolist())}
    chosen = [o for o in observations if from_message(o.header.stamp) in steps][::8]
    assert len(chosen) >= 4
    for observation in chosen:
        step = steps[from_message(observation.header.stamp)]
        views = {role: view(observation, role) for role in (CameraRole.EXTERIOR_1, CameraRole.WRIST)}
        np.testing.assert_array_equal(
            live.infer(views, np.asarray(observation.state), observation.instruction or episode.instruction),
            recorded.infer(episode.views(step), episode.states[step], episode.instruction),
        )


def test_without_the_status_the_grid_is_close(run):
    """The same recording as if the observation node had not run: the rate is the same, no step is invented."""
    _, episode = run
    (grid,) = read_episodes(episode.bag, RigStreams(cameras=episode.streams.cameras, stamp_source="arrival"))
    assert not grid.exact
    assert len(grid) == pytest.approx(len(episode), abs=6)
    assert np.diff(grid.stamps_ns)[np.diff(grid.segment) == 0] == pytest.approx(1e9 / 15, abs=1)
