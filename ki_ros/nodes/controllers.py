"""Who takes the arm's commands: adapters that turn a tick into a controller's message (docs/controllers.md).

Each is called with every tick that has a command which may be sent, and its `stop` when commands end: a controller that
would go on moving the arm by what it was sent last is told otherwise there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rclpy.duration import Duration
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ki_ros import rig
from ki_ros.execution import executor as execution
from ki_ros.execution.adapter import TrajectoryAdapter
from ki_ros.execution.beat import Waypoint
from ki_ros.execution.velocity import VelocityAdapter
from ki_ros.nodes import stamps, topics
from ki_ros.nodes.arrays import doubles
from ki_ros.nodes.grippers import GRIPPERS

if TYPE_CHECKING:
    from ki_ros.nodes.executor import ExecutorNode

__all__ = ["ARMS", "GRIPPERS"]

_FLUSH_SECONDS = 0.2


class Arm:
    """A publisher of one kind of message on one topic."""

    looks_ahead = False
    """Whether the controller is sent the way to rest behind each command, and goes along it by itself."""

    def __init__(self, node: ExecutorNode, kind: type, topic: str) -> None:
        self.topic = topic
        self._publisher = node.create_publisher(kind, topic, topics.COMMAND_QOS)

    def __call__(self, tick: execution.Tick, way: Sequence[Waypoint] = (), now_ns: int = 0) -> None:
        """Sends the tick's command. Where the controller looks ahead, `way` leads to it, from `now_ns` by the node's
        clock."""
        raise NotImplementedError

    def stop(self) -> None:
        """Commands end here; again and again is as good as once.

        Nothing needs to be said to a controller that comes to rest by itself.
        """

    def flush(self) -> None:
        """Returns when the controller has what was sent, or after `_FLUSH_SECONDS`."""
        self._publisher.wait_for_all_acked(Duration(seconds=_FLUSH_SECONDS))


class ForwardArm(Arm):
    """Joint positions for a forward_command_controller."""

    def __init__(self, node: ExecutorNode, _executor: execution.Executor) -> None:
        super().__init__(node, Float64MultiArray, node.parameters.arm_command_topic)

    def __call__(self, tick: execution.Tick, _way: Sequence[Waypoint] = (), _now_ns: int = 0) -> None:
        self._publisher.publish(Float64MultiArray(data=doubles(tick.positions)))


class TrajectoryArm(Arm):
    """Short trajectories for a joint_trajectory_controller."""

    looks_ahead = True

    def __init__(self, node: ExecutorNode, executor: execution.Executor) -> None:
        super().__init__(node, JointTrajectory, node.parameters.trajectory_topic)
        self._names = list(executor.robot.joint_names)
        self._stamped = node.parameters.trajectory_stamps
        self._adapter = TrajectoryAdapter(executor.guard, stamped=self._stamped)

    def __call__(self, _tick: execution.Tick, way: Sequence[Waypoint], now_ns: int) -> None:
        points = self._adapter.points(way)
        message = JointTrajectory(joint_names=self._names)
        begins = 0.0
        # With a stamp of zero the trajectory begins on reception.
        if self._stamped:
            begins = min(points[0].time, 0.0)
            message.header.stamp = stamps.to_message(now_ns + round(begins * stamps.NANOSECONDS))
        message.points = [
            JointTrajectoryPoint(
                positions=doubles(point.positions),
                velocities=doubles(point.velocities),
                time_from_start=Duration(seconds=point.time - begins).to_msg(),
            )
            for point in points
        ]
        self._publisher.publish(message)


class VelocityArm(Arm):
    """Joint velocities for a controller of velocities, which goes on at the last one it was sent, whatever happens.

    So zeros are sent for as long as the arm is held, and one more when commands end: after that the controller may
    belong to somebody else. A process that is killed sends none.
    """

    def __init__(self, node: ExecutorNode, executor: execution.Executor) -> None:
        super().__init__(node, Float64MultiArray, node.parameters.velocity_command_topic)
        self._measured = executor.measured
        self._adapter = VelocityAdapter(executor.robot, executor.guard.period)
        self._sending = False

    def __call__(self, tick: execution.Tick, _way: Sequence[Waypoint] = (), _now_ns: int = 0) -> None:
        velocities = self._adapter.velocities(tick.positions, tick.velocities, self._measured.positions)
        self._sending = True
        self._publisher.publish(Float64MultiArray(data=doubles(velocities)))

    def stop(self) -> None:
        if self._sending:
            self._sending = False
            self._publisher.publish(Float64MultiArray(data=[0.0] * rig.NUM_JOINTS))


class ImpedanceArm(Arm):
    """Joint targets for the joint impedance of CRISP, which goes by the order of the values and not by their names.

    It keeps both parts of a target. A velocity that stayed in force after the last message would pull the arm beyond
    the position, so the last target is sent once more without one when commands end.
    """

    def __init__(self, node: ExecutorNode, executor: execution.Executor) -> None:
        super().__init__(node, JointState, node.parameters.target_joint_topic)
        self._names = list(executor.robot.joint_names)
        self._clock = node.get_clock()
        self._last: JointState | None = None

    def __call__(self, tick: execution.Tick, _way: Sequence[Waypoint] = (), _now_ns: int = 0) -> None:
        message = JointState(name=self._names, position=doubles(tick.positions), velocity=doubles(tick.velocities))
        message.header.stamp = self._clock.now().to_msg()
        self._publisher.publish(message)
        self._last = message

    def stop(self) -> None:
        if self._last is None:
            return
        self._last.velocity = [0.0] * rig.NUM_JOINTS
        self._last.header.stamp = self._clock.now().to_msg()
        self._publisher.publish(self._last)
        self._last = None


ARMS = {
    "forward_command": ForwardArm,
    "joint_trajectory": TrajectoryArm,
    "joint_impedance": ImpedanceArm,
    "forward_velocity": VelocityArm,
}
"""Adapters of the arm by the value of the parameter `controller`."""
