"""What the operator says to the executor: enable, stop, reset, the button that is held, and the speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from ki_ros.execution.executor import Executor
from ki_ros.nodes import topics

SPEED = "speed_scale"

NO_SPEED = "a teleoperator's commands are followed as they are: leave it at 1, and slow the arm by velocity_scale"
"""Why a leader has no speed: an arm that went a share of its way would be ever further behind."""


class OperatorInputs:
    """Services, the button's topic, and the speed as a parameter that may be set while the node runs.

    Args:
        node: that has them.
        executor: that obeys.
        now: the executor's clock [ns].
        refresh: gives the newest joint state to the executor.
        ended: called when commands end at once.
    """

    def __init__(
        self,
        node: Node,
        executor: Executor,
        now: Callable[[], int],
        refresh: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._node, self._executor, self._now = node, executor, now
        self._refresh, self._ended = refresh, ended
        self._inputs = [
            node.create_service(SetBool, topics.ENABLE, self._on_enable),
            node.create_service(Trigger, topics.STOP, self._on_stop),
            node.create_service(Trigger, topics.RESET, self._on_reset),
            node.create_subscription(Bool, topics.HOLD_TO_RUN, self._on_button, topics.NEWEST_QOS),
        ]
        node.add_on_set_parameters_callback(self._objection)
        node.add_post_set_parameters_callback(self._on_parameters)

    def report(self) -> dict[str, Any]:
        """What the operator has said, for the diagnostics."""
        operator = self._executor.operator
        stopped = operator.stopped
        return {
            "stopped": "" if stopped is None else stopped.value,
            "button_held": operator.permits(self._now()),
            SPEED: operator.speed,
        }

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if not request.data:
            self._executor.disable(self._now())
            self._ended()
            response.success, response.message = True, "disabled: no command is sent"
            self._node.get_logger().info(response.message)
            return response
        self._refresh()
        problem = self._executor.enable(self._now())
        response.success = problem is None
        response.message = "enabled: the arm is held where it is" if problem is None else f"not enabled: {problem}"
        # Two calls: rclpy knows a call by its line, and a line has one severity.
        if response.success:
            self._node.get_logger().info(response.message)
        else:
            self._node.get_logger().error(response.message)
        return response

    def _on_stop(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._executor.stop(self._now())
        response.success = True
        response.message = f"stopped: the arm is brought to rest and kept there until {topics.RESET} is called"
        self._node.get_logger().warning(response.message)
        return response

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._executor.operator.stopped is None:
            response.message = "it is not stopped"
            return response
        if (problem := self._executor.reset(self._now())) is not None:
            response.message = f"not reset: {problem}"
            return response
        self._ended()
        response.success = True
        response.message = f"reset: disabled until {topics.ENABLE} is called"
        self._node.get_logger().warning(response.message)
        return response

    def _on_button(self, message: Bool) -> None:
        self._executor.operator.confirm(self._now(), message.data)

    def _objection(self, parameters: list[Parameter]) -> SetParametersResult:
        """Changes nothing: whether all of them will be set is not known yet."""
        teleoperated = self._executor.options.source == "teleoperation"
        if teleoperated and any(each.name == SPEED and each.value != 1.0 for each in parameters):
            return SetParametersResult(successful=False, reason=NO_SPEED)
        return SetParametersResult(successful=True)

    def _on_parameters(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            if parameter.name == SPEED:
                # rclpy takes what is out of a range by no more than rounding.
                self._executor.operator.speed = min(max(parameter.value, 0.0), 1.0)
                self._node.get_logger().info(f"speed is {100 * self._executor.operator.speed:g} %")
