"""Who takes the gripper's commands. Each is called with every tick: a knuckle angle [rad], or None to say nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rclpy.action import ActionClient
from std_msgs.msg import Float64MultiArray

from ki_ros import rig
from ki_ros.execution.adapter import OnChange
from ki_ros.nodes import topics
from ki_ros.nodes.run import pacing_clock
from ki_ros.nodes.stamps import NANOSECONDS

if TYPE_CHECKING:
    from ki_ros.nodes.executor import ExecutorNode

REFUSED_PAUSE = 1.0
"""Time after a refused goal in which no other is sent [s]; then the newest angle is asked for again."""


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
            raise ImportError(
                f"gripper_controller {p.gripper_controller!r} needs the action {name}, which this control_msgs lacks; "
                f"set it to {'gripper_command' if parallel else 'parallel_gripper_command'} if the driver takes that"
            )
        self._action = getattr(action, name)
        self._goal = self._parallel_goal if parallel else self._single_goal
        self._effort = p.gripper_max_effort
        self._logger = node.get_logger()
        self._clock = pacing_clock(node)
        self._pause_until = -math.inf
        self._name = p.gripper_action
        self._client = ActionClient(node, self._action, p.gripper_action)
        self._on_change = OnChange()

    def __call__(self, angle: float | None) -> None:
        if angle is not None and self._now() < self._pause_until:
            return
        if angle is not None and not self._client.server_is_ready():
            # A goal that finds no server is lost; it must not count as sent. Nor does one from before: whoever serves
            # the action next may have begun by moving the gripper.
            self._on_change.passes(None)
            self._logger.warning(
                f"the gripper is not commanded: nobody serves the action {self._name} of type {self._action.__name__}; "
                f"set gripper_action and gripper_controller to what the driver has",
                throttle_duration_sec=10.0,
            )
            return
        if self._on_change.passes(angle):
            self._client.send_goal_async(self._goal(angle)).add_done_callback(self._on_answer)

    def _now(self) -> float:
        return self._clock.now().nanoseconds / NANOSECONDS

    def _on_answer(self, future) -> None:
        """Whether the goal was taken. One that was not counts as never sent."""
        if future.cancelled() or future.exception() is not None or not future.result().accepted:
            self._pause_until = self._now() + REFUSED_PAUSE
            self._on_change.passes(None)
            self._logger.warning(
                f"the gripper's action {self._name} refused a goal and is asked again; is its controller active?",
                throttle_duration_sec=10.0,
            )

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
