"""What the executor is doing, for a node that must not change something while the arm may move by it."""

from __future__ import annotations

import threading
import time

from rclpy.node import Node
from rclpy.serialization import deserialize_message

from ki_ros import msg
from ki_ros.nodes import stamps, topics
from ki_ros.nodes.polling import subscribe_polled, take_waiting
from ki_ros.nodes.run import uses_sim_time

FRESH_SECONDS = 1.0
"""An executor that has said nothing for so long may be doing anything."""


class ExecutorWatch:
    """Reads `executor_status` when it is asked, so that a hundred messages a second wake nobody."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._statuses = subscribe_polled(node, msg.ExecutorStatus, topics.EXECUTOR_STATUS, topics.COMMAND_QOS)
        self._newest: msg.ExecutorStatus | None = None
        self._received_ns = 0
        # The inference thread asks too.
        self._lock = threading.Lock()

    def newest(self) -> msg.ExecutorStatus | None:
        """The newest status; None where none has come for `FRESH_SECONDS`."""
        self._poll()
        return self._newest if time.time_ns() - self._received_ns <= FRESH_SECONDS * 1e9 else None

    def now(self) -> int | None:
        """Time on the executor's clock [ns], whatever this machine's says; None as `newest`.

        It is the newest status's and what has passed since that came: behind by what a status takes to get here.
        """
        status = self.newest()
        if status is None:
            return None
        if uses_sim_time(self._node):
            return self._node.get_clock().now().nanoseconds
        return stamps.from_message(status.header.stamp) + time.time_ns() - self._received_ns

    def _poll(self) -> None:
        with self._lock:
            waiting = list(take_waiting(self._statuses, msg.ExecutorStatus))
            if waiting:
                raw, information = waiting[-1]
                self._newest = deserialize_message(raw, msg.ExecutorStatus)
                self._received_ns = information["received_timestamp"]

    def objection(self) -> str | None:
        """Why the arm may be moving, and the remedy; None where the executor is disabled, or there is none."""
        self._poll()
        topic = self._statuses.topic_name
        if self._node.count_publishers(topic) == 0:
            return None
        age = (time.time_ns() - self._received_ns) / 1e9
        if self._newest is None or age > FRESH_SECONDS:
            heard = "nothing" if self._newest is None else f"nothing for {age:.1f} s"
            return f"there is an executor, but {heard} has come on {topic}; end it, or see why it stands still"
        if self._newest.state == msg.ExecutorStatus.DISABLED:
            return None
        return (
            "the executor is enabled; disable it first: "
            f'ros2 service call /{topics.ENABLE} std_srvs/srv/SetBool "{{data: false}}"'
        )
