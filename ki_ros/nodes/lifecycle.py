"""What rclpy's lifecycle nodes lack."""

from __future__ import annotations

from lifecycle_msgs.srv import ChangeState
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode


def refuse_absent_transitions(node: LifecycleNode) -> None:
    """Answers requests for transitions that the node's present state does not have with false.

    rclpy raises for them instead: a manager that activates a node which is active already would end its process.
    """
    service = node._service_change_state
    change = service.callback

    def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        try:
            return change(request, response)
        except rclpy_implementation.RCLError:
            state = node._state_machine.current_state[1]
            asked = request.transition.label or request.transition.id
            node.get_logger().warning(f"transition {asked} is refused: the node is {state}, which does not have it")
            response.success = False
            return response

    service.callback = answer
