"""Commands in the messages of ROS itself, and defaults that must be those of the nodes."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from made_bags import START, MadeBag, S

pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg")

from builtin_interfaces.msg import Duration
from rclpy.serialization import serialize_message
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ki_ros.data.actions import CommandTopics
from ki_ros.data.episodes import read_episodes
from ki_ros.nodes.executor import Parameters as ExecutorParameters
from ki_ros.rig import PANDA

TOPIC = "/joint_trajectory_controller/joint_trajectory"


def trajectory(points: list[tuple[float, float]], names=PANDA.joint_names) -> bytes:
    """A trajectory of all joints to a position at a time [s]; the first joint is one more than the others."""
    message = JointTrajectory(joint_names=list(names))
    for time, position in points:
        values = [position + (name == PANDA.joint_names[0]) for name in names]
        end = Duration(sec=int(time), nanosec=round(time % 1 * S))
        message.points.append(JointTrajectoryPoint(positions=values, time_from_start=end))
    return bytes(serialize_message(message))


def test_trajectories_are_in_force_point_by_point(tmp_path):
    made = MadeBag().rig(2.0)
    made.instruction(0.0, "go")
    made.put(TOPIC, "trajectory", 0.5, trajectory([(0.2, 0.0), (0.6, 0.4)], PANDA.joint_names[::-1]))
    made.put(TOPIC, "trajectory", 1.5, trajectory([(0.1, 2.0)]))
    made.put(TOPIC, "trajectory", 1.6, trajectory([(0.1, 3.0)], PANDA.joint_names[:6]))
    made.put(TOPIC, "trajectory", 1.7, trajectory([(0.2, 3.0), (0.1, 3.0)]))
    (episode,) = read_episodes(made.write(tmp_path / "bag"))
    assert episode.action_source == TOPIC
    assert episode.refusals == {(TOPIC, "joint_missing"): 1, (TOPIC, "undecodable"): 1}
    for i, end in enumerate((episode.stamps_ns + round(S / 15) - START) / S):
        if end < 0.5:
            assert not episode.commanded[i]
            continue
        # Before its first point a trajectory asks for that; after its last, for that.
        want = 2.0 if end >= 1.5 else min(max(end - 0.5 - 0.2, 0.0), 0.4)
        np.testing.assert_allclose(episode.targets[i, :7], [want + 1] + [want] * 6, atol=1e-6)


def test_default_topics_are_those_of_the_executor():
    executor = {f.name: f.default for f in fields(ExecutorParameters)}
    for f in fields(CommandTopics):
        if f.name != "joint_command":
            assert f.default == executor[f.name]


def test_topics_of_a_parameter_file(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("executor:\n  ros__parameters: {arm_command_topic: /arm/commands, command_rate: 50.0}\n")
    assert CommandTopics.from_parameter_file(file) == CommandTopics(arm_command_topic="/arm/commands")
