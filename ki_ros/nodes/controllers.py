"""Who takes the commands: adapters that turn a tick into a controller's message. Each is called with every tick."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rclpy.action import ActionClient
from rclpy.duration import Duration
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ki_ros import rig
from ki_ros.execution import executor as execution
from ki_ros.execution.adapter import OnChange, TrajectoryAdapter
from ki_ros.nodes import topics
from ki_ros.nodes.arrays import doubles

if TYPE_CHECKING:
    from ki_ros.nodes.executor import ExecutorNode


class ForwardArm:
    """Joint positions for a forward_command_controller."""

    def __init__(self, node: ExecutorNode, _executor: execution.Executor) -> None:
        self.topic = node.parameters.arm_command_topic
        self._publisher = node.create_publisher(Float64MultiArray, self.topic, topics.COMMAND_QOS)

    @property
    def subscribers(self) -> int:
        return self._publisher.get_subscription_count()

    def __call__(self, tick: execution.Tick) -> None:
        self._publisher.publish(Float64MultiArray(data=doubles(tick.positions)))


class TrajectoryArm:
    """Short trajectories for a joint_trajectory_controller."""

    def __init__(self, node: ExecutorNode, executor: execution.Executor) -> None:
        p = node.parameters
        self.topic = p.trajectory_topic
        self._names = list(executor.robot.joint_names)
        self._adapter = TrajectoryAdapter(executor.guard, 1.0 / p.command_rate, p.trajectory_stop_time)
        self._publisher = node.create_publisher(JointTrajectory, self.topic, topics.COMMAND_QOS)

    @property
    def subscribers(self) -> int:
        return self._publisher.get_subscription_count()

    def __call__(self, tick: execution.Tick) -> None:
        # The stamp stays zero: the trajectory begins on reception, whatever the controller's clock shows.
        message = JointTrajectory(joint_names=self._names)
        message.points = [
            JointTrajectoryPoint(
                positions=doubles(point.positions),
                velocities=doubles(point.velocities),
                time_from_start=Duration(seconds=point.time_from_start).to_msg(),
            )
            for point in self._adapter.points(tick.positions, tick.velocities)
        ]
        self._publisher.publish(message)


ARMS = {"forward_command": ForwardArm, "joint_trajectory": TrajectoryArm}
"""Adapters of the arm by the value of the parameter `controller`."""


class ForwardGripper:
    """The knuckle's angle for a forward_command_controller."""

    def __init__(self, node: ExecutorNode) -> None:
        topic = node.parameters.gripper_command_topic
        self._publisher = node.create_publisher(Float64MultiArray, topic, topics.COMMAND_QOS)

    def __call__(self, angle: float | None) -> None:
        if angle is not None:
            self._publisher.publish(Float64MultiArray(data=[angle]))


class NoGripper:
    """The gripper is somebody else's."""

    def __init__(self, _node: ExecutorNode) -> None:
        pass

    def __call__(self, angle: float | None) -> None:
        pass


class ActionGripper:
    """Goals for a gripper action, one for each change of the angle. control_msgs is needed only here."""

    def __init__(self, node: ExecutorNode) -> None:
        p = node.parameters
        try:
            from control_msgs import action
        except ImportError as error:
            raise ImportError(
                f"gripper_controller {p.gripper_controller!r} needs the package control_msgs ({error}); install "
                f"ros-<distribution>-control-msgs, or set gripper_controller to forward_command or none"
            ) from error
        parallel = p.gripper_controller == "parallel_gripper_command"
        name = "ParallelGripperCommand" if parallel else "GripperCommand"
        if not hasattr(action, name):
            raise ImportError(f"this control_msgs has no action {name}; set gripper_controller to another one")
        self._action = getattr(action, name)
        self._goal = self._parallel_goal if parallel else self._single_goal
        self._effort = p.gripper_max_effort
        self._client = ActionClient(node, self._action, p.gripper_action)
        self._on_change = OnChange()

    def __call__(self, angle: float | None) -> None:
        # A goal that finds no server is lost; it must not count as sent.
        if angle is not None and not self._client.server_is_ready():
            return
        if self._on_change.passes(angle):
            self._client.send_goal_async(self._goal(angle))

    def _single_goal(self, angle: float):
        goal = self._action.Goal()
        goal.command.position = angle
        goal.command.max_effort = self._effort
        return goal

    def _parallel_goal(self, angle: float):
        goal = self._action.Goal()
        goal.command.name = [rig.GRIPPER_JOINT]
        goal.command.position = [angle]
        goal.command.effort = [self._effort]
        return goal


GRIPPERS: dict[str, Callable[[ExecutorNode], Callable[[float | None], None]]] = {
    "forward_command": ForwardGripper,
    "gripper_command": ActionGripper,
    "parallel_gripper_command": ActionGripper,
    "none": NoGripper,
}
"""Adapters of the gripper by the value of the parameter `gripper_controller`."""
