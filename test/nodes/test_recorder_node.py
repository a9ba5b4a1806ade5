"""The recorder node over Fast DDS: what is in a bag, when it begins and ends, what is said of what goes wrong."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from dataclasses import fields
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run scripts/setup")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from recording_graph import ARM_COMMANDS, SENSORS, Graph, marks, metadata, read
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String

from ki_ros import bringup, msg, srv
from ki_ros.nodes import executor, observation, recorder, stamps, topics
from ki_ros.nodes.discovery import LOOK_SECONDS

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
SECOND = 1_000_000_000


@pytest.fixture
def graph(tmp_path):
    graphs = []
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

    def create(**parameters) -> Graph:
        graphs.append(Graph(tmp_path / "recordings", **parameters))
        return graphs[-1]

    yield create
    for created in graphs:
        created.close()


def test_an_episode_holds_every_message(graph):
    g = graph()
    g.drive(5)
    began = time.time_ns()
    started = g.start("  put the marker in the pot ", "first try")
    assert started.success, started.message
    assert started.id
    g.sent.clear()
    g.drive(40)
    stopped = g.stop(srv.StopEpisode.Request.SUCCESS, "neat")
    ended = time.time_ns()
    assert stopped.success, stopped.message
    recorded = read(stopped.bag)
    assert recorded[0].topic == recorded[-1].topic == "/episode"
    for topic, kind in {**SENSORS, ARM_COMMANDS: Float64MultiArray, "/joint_command": JointState}.items():
        sent = [message for name, message in g.sent if name == topic]
        # Compared as messages: a serialised one has bytes of padding that mean nothing.
        assert [deserialize_message(m.raw, kind) for m in recorded if m.topic == topic] == sent, topic
    times = [m.log_time for m in recorded]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= ended, "log times are times of arrival"
    start, stop = marks(recorded)
    assert (start.event, stop.event) == (msg.Episode.START, msg.Episode.STOP)
    assert start.id == stop.id == started.id
    assert start.instruction == stop.instruction == "put the marker in the pot"
    assert (start.outcome, stop.outcome) == (msg.Episode.UNKNOWN, msg.Episode.SUCCESS)
    assert (start.note, stop.note, stop.robot) == ("first try", "first try; neat", "panda")
    assert [mark.event for mark in g.marks] == [msg.Episode.START, msg.Episode.STOP], "published, too"
    info = metadata(stopped.bag)
    assert info["custom_data"]["outcome"] == "success"
    assert info["message_count"] == len(recorded)


def test_log_times_are_times_of_arrival_even_when_a_poll_comes_late(graph):
    g = graph()
    g.drive(3)
    g.start("wait")
    sent = []
    for i in range(5):
        g.publish(ARM_COMMANDS, Float64MultiArray(data=[float(i)] * 7))
        sent.append(time.time_ns())
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            pass  # the node is not spun: nothing takes the message
    g.settle()
    recorded = [m for m in read(g.stop().bag) if m.topic == ARM_COMMANDS]
    assert len(recorded) == 5
    late = [message.log_time - at for message, at in zip(recorded, sent, strict=True)]
    assert max(late) < 20_000_000, f"{max(late) / 1e6:.1f} ms after publication"


def test_one_bag_per_episode_and_failures_are_kept_and_marked(graph):
    g = graph()
    bags = []
    for outcome in (srv.StopEpisode.Request.FAILURE, srv.StopEpisode.Request.SUCCESS):
        g.start("wave")
        g.drive(3)
        bags.append(g.stop(outcome).bag)
    assert [str(path) for path in g.bags()] == sorted(bags)
    assert [marks(read(bag))[-1].outcome for bag in bags] == [msg.Episode.FAILURE, msg.Episode.SUCCESS]
    assert len({marks(read(bag))[0].id for bag in bags}) == 2


def test_what_is_latched_is_in_every_bag(graph):
    g = graph()
    g.epoch(7, "open the drawer")
    g.settle()
    for _ in range(2):
        started = g.start()
        assert "there is no instruction" not in started.message
        g.drive(2)
        recorded = read(g.stop().bag)
        assert [m.topic for m in recorded[:3]] == ["/episode", "/epoch", "/instruction"]
        assert deserialize_message(recorded[1].raw, msg.Epoch).id == 7
        assert deserialize_message(recorded[2].raw, String).data == "open the drawer"
        assert marks(recorded)[0].instruction == "open the drawer", "the instruction in force is the episode's"


def test_start_and_stop_are_refused_when_they_make_no_sense(graph):
    g = graph()
    refused = g.stop()
    assert not refused.success
    assert "start_episode" in refused.message
    first = g.start("wave")
    second = g.start("bow")
    assert not second.success
    assert first.id in second.message
    assert "stop_episode" in second.message
    wrong = g.stop(7)
    assert not wrong.success
    assert "outcome is 7" in wrong.message
    assert "0 (unknown), 1 (success), 2 (failure)" in wrong.message
    assert g.stop(2).success, "a refused stop ends nothing"
    assert len(g.bags()) == 1


def test_a_start_names_what_is_missing(graph):
    g = graph()
    g.silent.add("/camera/wrist/image_raw")
    g.drive(3)
    message = g.start().message
    assert "there is no instruction" in message
    assert "/camera/wrist/image_raw" in message
    assert "/camera/exterior_1" not in message
    g.expect("topics", WARN, "/camera/wrist/image_raw")


def test_messages_that_are_lost_on_the_way_are_counted_and_told(graph):
    g = graph()
    g.drive(3)
    g.start("hurry")
    g.drive(3)
    burst = 800
    for i in range(burst):
        # More than wait for a poll of the node, which is not spun meanwhile.
        g.publishers[ARM_COMMANDS].publish(Float64MultiArray(data=[float(i)] * 7))
    g.settle()
    # The reports say so while the episode goes on.
    status = g.expect("episode", WARN, "lost before they reached the recorder", ARM_COMMANDS)
    lost = int({pair.key: pair.value for pair in status.values}["lost_before"])
    assert lost > 0
    g.drive(3)
    stopped = g.stop()
    recorded = read(stopped.bag)
    counted = Counter(m.topic for m in recorded)[ARM_COMMANDS]
    assert counted + lost == 3 + burst + 3
    assert f"{ARM_COMMANDS} {lost}" in marks(recorded)[-1].note
    assert f"{ARM_COMMANDS} {lost}" in stopped.message


def test_a_disk_that_is_full_refuses_the_start(graph):
    g = graph(stop_free_gb=1e6)
    refused = g.start("wave")
    assert not refused.success
    assert "stop_free_gb" in refused.message
    assert g.bags() == []
    g.expect("disk", ERROR, "stop_free_gb")


def test_a_disk_that_is_nearly_full_is_reported(graph):
    g = graph(warn_free_gb=1e6)
    assert g.start("wave").success
    g.expect("disk", WARN, "make room")
    assert g.stop().success


def test_a_disk_that_fills_up_ends_the_episode_cleanly(graph, monkeypatch):
    g = graph(stop_free_gb=1.0)
    g.start("wave")
    g.drive(3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999_999_999))
    g.until(lambda: len(g.marks) == 2, "the end of the episode")
    g.until(lambda: (g.bags()[0] / "metadata.yaml").is_file(), "a complete bag")
    stop = marks(read(g.bags()[0]))[-1]
    assert (stop.event, stop.outcome) == (msg.Episode.STOP, msg.Episode.UNKNOWN)
    assert "the disk is full" in stop.note
    refused = g.stop()
    assert not refused.success
    assert not g.start("wave").success


def test_instructions_are_episodes_without_services(graph):
    before = time.time_ns()
    g = graph(auto_episodes=True)
    g.drive(3)
    g.epoch(1, "wave")
    g.until(lambda: len(g.marks) == 1, "the first episode")
    looked = stamps.from_message(g.marks[0].stamp) - before
    assert looked >= LOOK_SECONDS * SECOND, "it may hear of the instruction before it does of another recorder"
    g.drive(5)
    g.epoch(2, "bow")
    g.until(lambda: len(g.marks) == 3, "the second episode")
    g.drive(5)
    assert g.stop(srv.StopEpisode.Request.SUCCESS).success
    g.drive(2)
    g.epoch(3, "sit")
    g.until(lambda: len(g.marks) == 5, "the third episode")
    g.stop()
    recorded = {}
    for bag in g.bags():
        messages = read(bag)
        recorded[marks(messages)[0].instruction] = messages
    assert {name: marks(messages)[-1].outcome for name, messages in recorded.items()} == {
        "wave": msg.Episode.UNKNOWN,
        "bow": msg.Episode.SUCCESS,
        "sit": msg.Episode.SUCCESS,
    }
    for name, messages in recorded.items():
        epochs = [deserialize_message(m.raw, msg.Epoch).instruction for m in messages if m.topic == "/epoch"]
        texts = [deserialize_message(m.raw, String).data for m in messages if m.topic == "/instruction"]
        assert (epochs, texts) == ([name], [name]), "an episode has its own instruction and no other"
    assert Counter(m.topic for m in recorded["bow"])[ARM_COMMANDS] == 5


def test_an_instruction_s_episode_waits_for_the_clock(graph):
    g = graph(auto_episodes=True, use_sim_time=True)
    g.epoch(1, "wave")
    g.expect("episode", WARN, "'wave' waits", "/clock")
    g.expect("episode", WARN, "'wave' waits", "/clock")
    assert g.bags() == []
    g.clock(100 * SECOND)
    g.until(lambda: g.marks, "the episode")
    g.publish(ARM_COMMANDS, Float64MultiArray())
    g.settle()
    recorded = read(g.stop().bag)
    start, _ = marks(recorded)
    assert (start.instruction, recorded[0].log_time) == ("wave", 100 * SECOND)
    assert "s after it" in start.note
    assert "/clock" in start.note, "what was missed, and why"
    counts = Counter(m.topic for m in recorded)
    assert (counts["/epoch"], counts["/instruction"], counts[ARM_COMMANDS]) == (1, 1, 1)
    assert len([text for text in g.warnings if "has not begun" in text]) == 1, g.warnings


def test_an_instruction_s_episode_waits_for_room(graph, monkeypatch):
    g = graph(auto_episodes=True, stop_free_gb=1.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999_999_999))
    g.epoch(1, "wave")
    g.expect("episode", WARN, "'wave' waits", "stop_free_gb")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000_000))
    g.until(lambda: g.marks, "the episode")
    assert g.marks[0].instruction == "wave"
    assert g.stop().success


def test_of_what_waits_only_the_newest_begins(graph):
    g = graph(auto_episodes=True, use_sim_time=True)
    g.epoch(1, "wave")
    g.expect("episode", WARN, "'wave' waits", "/clock")
    g.epoch(2, "bow")
    g.expect("episode", WARN, "'bow' waits", "/clock")
    g.clock(100 * SECOND)
    g.until(lambda: g.marks, "the episode")
    recorded = read(g.stop().bag)
    assert marks(recorded)[0].instruction == "bow"
    texts = [deserialize_message(m.raw, String).data for m in recorded if m.topic == "/instruction"]
    assert texts == ["bow"]
    assert len(g.bags()) == 1


def test_what_waits_is_given_up_by_a_stop(graph):
    g = graph(auto_episodes=True, use_sim_time=True)
    g.epoch(1, "wave")
    g.expect("episode", WARN, "'wave' waits", "/clock")
    stopped = g.stop()
    assert not stopped.success
    assert "'wave' is given up" in stopped.message
    g.clock(100 * SECOND)
    g.settle()
    assert g.start("sit").success, "nothing else has begun"
    assert g.stop().success
    assert len(g.bags()) == 1


def test_of_two_recorders_none_begins_an_episode(graph):
    g = graph()
    with g.second_recorder():
        # A node's name may become known later than its services do.
        g.expect("episode", WARN, "another recorder (/recorder)")
        refused = g.start("wave")
        assert not refused.success
        assert "another recorder (/recorder) answers /start_episode" in refused.message
        assert "end all but one" in refused.message
    g.until(lambda: g.recorders() == 1, "the end of the other")
    assert g.start("wave").success
    assert g.stop().success
    assert len(g.bags()) == 1


def test_an_instruction_s_episode_waits_for_the_end_of_another_recorder(graph):
    g = graph(auto_episodes=True)
    with g.second_recorder():
        g.epoch(1, "wave")
        g.expect("episode", WARN, "'wave' waits", "another recorder (/recorder)")
        assert g.bags() == []
    g.until(lambda: g.marks, "the episode")
    assert g.marks[0].instruction == "wave"
    assert g.stop().success


def test_a_second_recorder_leaves_the_instruction_in_force_alone(graph):
    g = graph()
    g.epoch(1, "wave")
    g.settle()
    with g.second_recorder(auto_episodes=True) as second:
        spinner = SingleThreadedExecutor(context=second.context)
        spinner.add_node(second)

        def refused() -> bool:
            spinner.spin_once(timeout_sec=0.01)
            status = g.statuses.get("episode")
            return status is not None and "'wave' waits: another recorder (/recorder)" in status.message

        g.until(refused, "a refusal")
        spinner.shutdown()
        assert g.bags() == []


def test_the_instruction_is_set_where_a_parameter_says_so(graph):
    g = graph(set_instruction=True)
    asked = []

    def answer(request, response):
        asked.append(request.instruction)
        response.success = True
        return response

    assert "nobody was told" in g.start("wave").message
    g.stop()
    service = g.other.create_service(srv.SetInstruction, topics.SET_INSTRUCTION, answer)
    while "nobody was told" in g.start("bow").message:
        # Discovery takes a moment.
        g.stop()
        g.settle()
    g.until(lambda: asked, "the call of set_instruction")
    assert asked == ["bow"]
    assert g.stop().success
    g.other.destroy_service(service)


def test_simulated_time_is_the_time_of_the_log(graph):
    g = graph(use_sim_time=True)
    refused = g.start("wave")
    assert not refused.success
    assert "/clock" in refused.message
    g.clock(100 * SECOND)
    g.settle()
    assert g.start("wave").success
    for i in range(1, 11):
        g.clock(100 * SECOND + i * 50_000_000)
        g.settle()
        g.publish(ARM_COMMANDS, Float64MultiArray(data=[float(i)] * 7))
        g.settle()
    recorded = read(g.stop().bag)
    times = [m.log_time for m in recorded if m.topic == ARM_COMMANDS]
    assert times == [100 * SECOND + i * 50_000_000 for i in range(1, 11)]
    assert recorded[0].log_time == 100 * SECOND
    assert recorded[-1].log_time == 100 * SECOND + 10 * 50_000_000


def test_a_clock_that_is_set_back_ends_the_episode(graph):
    g = graph(use_sim_time=True)
    g.clock(100 * SECOND)
    g.settle()
    g.start("wave")
    g.publish(ARM_COMMANDS, Float64MultiArray())
    g.settle()
    g.clock(50 * SECOND)
    g.settle()
    g.publish(ARM_COMMANDS, Float64MultiArray())
    g.until(lambda: len(g.marks) == 2, "the end of the episode")
    g.until(lambda: (g.bags()[0] / "metadata.yaml").is_file(), "a complete bag")
    recorded = read(g.bags()[0])
    assert "the clock was set back" in marks(recorded)[-1].note
    assert min(m.log_time for m in recorded) == 100 * SECOND


def test_publishers_that_offer_less_are_heard_too(graph):
    g = graph()
    less = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)
    g.publish("/joint_trajectory_controller/joint_trajectory", _trajectory(), less, send=False)
    g.publish("/instruction", String(data="wave"), less, send=False)
    publisher = g.publishers["/joint_trajectory_controller/joint_trajectory"]
    g.start("wave")
    g.until(publisher.get_subscription_count, "a subscription that fits")
    g.until(g.publishers["/instruction"].get_subscription_count, "a subscription that fits")
    g.publish("/joint_trajectory_controller/joint_trajectory", _trajectory())
    g.publish("/instruction", String(data="wave"))
    g.settle()
    topics_found = {m.topic for m in read(g.stop().bag)}
    assert {"/joint_trajectory_controller/joint_trajectory", "/instruction"} <= topics_found


def _trajectory():
    from trajectory_msgs.msg import JointTrajectory

    return JointTrajectory(joint_names=["a"])


def test_extra_topics_are_found_by_their_type_and_recorded(graph):
    g = graph(extra_topics=["/map_name", "/nowhere"])
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    g.publish("/map_name", String(data="lab"), latched)
    g.expect("topics", WARN, "nobody publishes /nowhere")
    g.settle()
    g.start("wave")
    texts = [deserialize_message(m.raw, String).data for m in read(g.stop().bag) if m.topic == "/map_name"]
    assert texts == ["lab"], "what is latched is in every bag"


def test_a_wrong_type_is_reported(graph):
    g = graph()
    # In a participant of its own: one participant has one type per topic.
    with g.stranger() as stranger:
        stranger.create_publisher(String, "/action_chunk", topics.COMMAND_QOS)
        g.expect("topics", WARN, "/action_chunk has messages of type std_msgs/msg/String, not ki_ros/msg/ActionChunk")


def test_the_end_of_the_node_completes_the_bag(tmp_path):
    g = Graph(tmp_path / "recordings")
    g.start("wave")
    g.drive(5)
    g.close()
    recorded = read(g.bags()[0])
    assert Counter(m.topic for m in recorded)[ARM_COMMANDS] == 5
    assert marks(recorded)[-1].event == msg.Episode.STOP
    assert "the recorder was stopped" in marks(recorded)[-1].note


def test_parameters_that_do_not_go_together_are_refused(graph):
    with pytest.raises(ValueError, match=r"auto_episodes and set_instruction"):
        graph(auto_episodes=True, set_instruction=True)
    with pytest.raises(ValueError, match=r"/joint_states.*one of commands"):
        graph(arm_command_topic="/joint_states")


def test_topics_have_the_defaults_of_the_nodes_that_use_them():
    def defaults(cls):
        return {f.name: f.default for f in fields(cls)}

    mine = defaults(recorder.Parameters)
    for other in (observation.Parameters, executor.Parameters):
        theirs = defaults(other)
        shared = {name for name in mine.keys() & theirs.keys() if name.endswith("topic") or name == "robot"}
        assert {name: mine[name] for name in shared} == {name: theirs[name] for name in shared}
    assert {name: mine[name] for name in bringup._EXECUTOR_TOPICS} == bringup._EXECUTOR_TOPICS
    for name in ("Exterior1Parameters", "Exterior2Parameters", "WristParameters"):
        ours, theirs = defaults(getattr(recorder, name)), defaults(getattr(observation, name))
        assert ours == {key: theirs[key] for key in ours}
