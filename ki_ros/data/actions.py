"""What was commanded during a recording, and from it the targets of its steps.

The target of a step is the command in force at the end of the step, at its reference time plus 1 / rate: the newest one
sent until then. Where none was recorded, it is what was measured there, that is, at the next step.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ki_ros.observation import cdr
from ki_ros.observation.buffer import NANOSECONDS
from ki_ros.observation.joints import JointError, joint_positions
from ki_ros.observation.rig_streams import node_parameters
from ki_ros.rig import GRIPPER_JOINT, NUM_JOINTS, Robot, gripper_closedness

MEASURED = "measured"
"""The source of targets where no command was recorded."""

_JOINT_STATE = "sensor_msgs/msg/JointState"
_NUMBERS = "std_msgs/msg/Float64MultiArray"
_TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


@dataclass(frozen=True)
class CommandTopics:
    """Topics of commands; defaults are those of the executor node.

    Attributes:
        joint_command: sensor_msgs/JointState, all that was sent: joints [rad] and the gripper's knuckle angle [rad].
        arm_command_topic: std_msgs/Float64MultiArray, seven joint positions [rad].
        trajectory_topic: trajectory_msgs/JointTrajectory of the seven joints.
        gripper_command_topic: std_msgs/Float64MultiArray, the knuckle's angle [rad].
    """

    joint_command: str = "/joint_command"
    arm_command_topic: str = "/forward_position_controller/commands"
    trajectory_topic: str = "/joint_trajectory_controller/joint_trajectory"
    gripper_command_topic: str = "/gripper_position_controller/commands"

    @classmethod
    def from_parameter_file(cls, path: str | Path) -> CommandTopics:
        """The topics that the executor node has with a ROS parameter file. Raises RigStreamsError."""
        parameters = node_parameters(path, "executor")
        names = {f.name for f in fields(cls)} - {"joint_command"}
        return cls(**{name: str(value) for name, value in parameters.items() if name in names})

    @property
    def types(self) -> dict[str, str]:
        """The message type of each topic."""
        return {
            self.joint_command: _JOINT_STATE,
            self.arm_command_topic: _NUMBERS,
            self.trajectory_topic: _TRAJECTORY,
            self.gripper_command_topic: _NUMBERS,
        }


class Targets(NamedTuple):
    """Targets of T steps.

    Attributes:
        values: (T, 8) float64, joint positions [rad] and gripper closedness; not a number where there is none.
        source: the topic that they come from, `joint_command` of the graph's own, or `MEASURED`.
        commanded: (T,) bool, whether the joints' target is a command.
    """

    values: np.ndarray
    source: str
    commanded: np.ndarray


class _Series:
    """Values over time, in the order in which they came."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._times, self._values = array("q"), array("d")

    def add(self, time_ns: int, values: np.ndarray) -> None:
        self._times.append(time_ns)
        self._values.extend(values.tolist())

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) times [ns], sorted, and (N, width) values."""
        times = np.array(self._times, dtype=np.int64)
        order = np.argsort(times, kind="stable")
        return times[order], np.array(self._values, dtype=np.float64).reshape(-1, self._width)[order]


class _Trajectories:
    """Trajectories over time. Between the points of one, positions are interpolated linearly."""

    def __init__(self) -> None:
        self._sent: list[tuple[int, np.ndarray, np.ndarray]] = []

    def add(self, time_ns: int, ends_ns: np.ndarray, positions: np.ndarray) -> None:
        self._sent.append((time_ns, ends_ns, positions))

    def times(self) -> np.ndarray:
        return np.array(sorted(sent[0] for sent in self._sent), dtype=np.int64)

    def at(self, moments_ns: np.ndarray) -> np.ndarray:
        """(T, 7) positions at (T,) moments; not a number before the first trajectory."""
        sent = sorted(self._sent, key=lambda each: each[0])
        begins = [each[0] for each in sent]
        found = np.full((len(moments_ns), NUM_JOINTS), np.nan)
        for row, moment in enumerate(moments_ns.tolist()):
            which = bisect_right(begins, moment) - 1
            if which >= 0:
                begin, ends, positions = sent[which]
                found[row] = [np.interp(moment - begin, ends, column) for column in positions.T]
        return found


class CommandLog:
    """The commands of a recording. Messages are given in the order in which they arrived.

    Args:
        topics: where commands are.
        robot: whose joints they move.

    Attributes:
        refused: commands of no use by (topic, reason).
    """

    def __init__(self, topics: CommandTopics, robot: Robot) -> None:
        self.topics = topics
        self.refused: Counter[tuple[str, str]] = Counter()
        self._robot = robot
        self._arm = {topics.joint_command: _Series(NUM_JOINTS), topics.arm_command_topic: _Series(NUM_JOINTS)}
        self._gripper = {topics.joint_command: _Series(1), topics.gripper_command_topic: _Series(1)}
        self._trajectories = _Trajectories()

    def add(self, topic: str, raw: bytes, arrival_ns: int) -> None:
        """Takes in a message of one of the topics; one that is no command is counted in `refused`."""
        try:
            if topic == self.topics.joint_command:
                self._add_joint_command(raw, arrival_ns)
            elif topic == self.topics.trajectory_topic:
                self._add_trajectory(raw, arrival_ns)
            else:
                self._add_numbers(topic, raw, arrival_ns)
        except JointError as error:
            self.refused[topic, error.reason.value] += 1
        except cdr.CdrError:
            self.refused[topic, "undecodable"] += 1

    def targets(self, stamps_ns: np.ndarray, states: np.ndarray, segment: np.ndarray, rate: float) -> Targets:
        """The targets of the steps of an episode.

        The joints' commands are those of the first topic that has any between the first step and the end of the last:
        joint_command, then that of positions, then that of trajectories. The gripper's are in joint_command, else on
        its own topic; before the first of them its target is what was measured.

        Args:
            stamps_ns: (T,) reference times, increasing.
            states: (T, 8) measured.
            segment: (T,), equal within a segment.
            rate: steps a second.
        """
        step = round(NANOSECONDS / rate)
        ends = stamps_ns + step
        values = np.full_like(states, np.nan)
        follows = segment[1:] == segment[:-1]
        values[:-1][follows] = states[1:][follows]
        # Closedness changes by command alone: at the end of a segment it is what it was a step before.
        values[:, NUM_JOINTS] = np.where(np.isnan(values[:, NUM_JOINTS]), states[:, NUM_JOINTS], values[:, NUM_JOINTS])
        commanded = np.zeros(len(states), dtype=bool)
        source = self._source(stamps_ns[0], ends[-1]) if len(states) else MEASURED
        if source != MEASURED:
            if source == self.topics.trajectory_topic:
                joints = self._trajectories.at(ends)
            else:
                joints = _in_force(*self._arm[source].arrays(), ends)
            commanded = np.isfinite(joints).all(axis=1)
            values[commanded, :NUM_JOINTS] = joints[commanded]
        gripper = self._gripper_in_force(source, ends)
        known = np.isfinite(gripper)
        values[known, NUM_JOINTS] = gripper[known]
        name = "joint_command" if source == self.topics.joint_command else source
        return Targets(values, name, commanded)

    def _source(self, first_ns: int, last_ns: int) -> str:
        candidates = {topic: series.arrays()[0] for topic, series in self._arm.items()}
        candidates[self.topics.trajectory_topic] = self._trajectories.times()
        for topic, times in candidates.items():
            if np.searchsorted(times, last_ns, side="right") > np.searchsorted(times, first_ns, side="left"):
                return topic
        return MEASURED

    def _gripper_in_force(self, source: str, ends: np.ndarray) -> np.ndarray:
        for topic in (self.topics.joint_command, self.topics.gripper_command_topic):
            times, angles = self._gripper[topic].arrays()
            if len(times) and (topic != self.topics.joint_command or source == topic):
                return np.array([gripper_closedness(angle) for angle in _in_force(times, angles, ends)[:, 0]])
        return np.full(len(ends), np.nan)

    def _add_joint_command(self, raw: bytes, arrival_ns: int) -> None:
        topic = self.topics.joint_command
        time = _when(cdr.stamp_ns(raw), arrival_ns)
        names = cdr.read_joint_state(raw).names
        if set(names) == {GRIPPER_JOINT}:
            self._gripper[topic].add(time, joint_positions(raw, (GRIPPER_JOINT,)))
            return
        joints = joint_positions(raw, self._robot.joint_names)
        if GRIPPER_JOINT in names:
            self._gripper[topic].add(time, joint_positions(raw, (GRIPPER_JOINT,)))
        self._arm[topic].add(time, joints)

    def _add_trajectory(self, raw: bytes, arrival_ns: int) -> None:
        topic = self.topics.trajectory_topic
        trajectory = cdr.read_joint_trajectory(raw)
        index = {name: i for i, name in enumerate(trajectory.names)}
        if not all(joint in index for joint in self._robot.joint_names):
            self.refused[topic, "joint_missing"] += 1
            return
        points = [point for point in trajectory.points if len(point.positions) == len(trajectory.names)]
        ends = np.array([point.time_from_start_ns for point in points])
        if not points or len(points) < len(trajectory.points) or (np.diff(ends) <= 0).any():
            self.refused[topic, "undecodable"] += 1
            return
        order = [index[joint] for joint in self._robot.joint_names]
        positions = np.stack([point.positions[order] for point in points])
        if not np.isfinite(positions).all():
            self.refused[topic, "non_finite"] += 1
            return
        self._trajectories.add(_when(trajectory.stamp_ns, arrival_ns), ends, positions)

    def _add_numbers(self, topic: str, raw: bytes, arrival_ns: int) -> None:
        series = self._arm[topic] if topic in self._arm else self._gripper[topic]
        values = cdr.read_float64_multi_array(raw)
        if len(values) != (NUM_JOINTS if topic in self._arm else 1):
            self.refused[topic, "undecodable"] += 1
        elif not np.isfinite(values).all():
            self.refused[topic, "non_finite"] += 1
        else:
            series.add(arrival_ns, values)


def _when(stamp_ns: int, arrival_ns: int) -> int:
    """When a command was sent: its stamp, unless it has none or one of another clock."""
    return stamp_ns if abs(arrival_ns - stamp_ns) < NANOSECONDS else arrival_ns


def _in_force(times: np.ndarray, values: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """(T, width): the newest value until each moment; not a number before the first."""
    which = np.searchsorted(times, moments, side="right") - 1
    found = np.full((len(moments), values.shape[1]), np.nan)
    found[which >= 0] = values[which[which >= 0]]
    return found
