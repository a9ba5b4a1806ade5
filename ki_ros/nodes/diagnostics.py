"""Diagnostics: one DiagnosticArray a second on /diagnostics, from functions that report one component each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR


@dataclass
class Report:
    """State of one component.

    Attributes:
        level: OK, WARN or ERROR.
        message: one sentence for a person.
        values: figures by name.
    """

    level: bytes = OK
    message: str = "ok"
    values: Mapping[str, Any] = field(default_factory=dict)


class Diagnostics:
    """Publishes the reports of a node's components, once a second of wall-clock time and when asked to.

    The timer runs on the steady clock, so reports keep coming when simulated time stands still.
    """

    def __init__(self, node: Node, components: Mapping[str, Callable[[], Report]], hardware_id: str = "") -> None:
        self._node = node
        self._components = dict(components)
        self._hardware_id = hardware_id
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = node.create_timer(1.0, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Publishes the present state of every component."""
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        for name, report in self._components.items():
            state = report()
            message.status.append(
                DiagnosticStatus(
                    level=state.level,
                    name=f"{self._node.get_name()}: {name}",
                    message=state.message,
                    hardware_id=self._hardware_id,
                    values=[KeyValue(key=key, value=_text(value)) for key, value in state.values.items()],
                )
            )
        self._publisher.publish(message)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
