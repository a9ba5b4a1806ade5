"""Who else is on the topic of the arm's commands: a controller there must be, and nobody else who sends any."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from ki_ros.execution import executor as execution
from ki_ros.execution.state import Reason
from ki_ros.nodes import topics
from ki_ros.nodes.discovery import LOOK_SECONDS, full_name

PERIOD = 0.1
"""Time between two looks at the graph while commands are sent [s]."""

LISTENERS = re.compile(r"recorder|rosbag2_recorder|_ros2cli.*|foxglove_bridge|rqt.*|rviz.*|plotjuggler.*")
"""Names of nodes that take the arm's commands and do nothing to it: recorders, and who looks."""


class SoleExecutor(execution.Executor):
    """An executor that is not enabled while there is an objection.

    Attributes:
        objection: why commands must not be sent, with the remedy; None where they may.
    """

    objection: Callable[[], str | None] = staticmethod(lambda: None)

    def enable(self, now_ns: int) -> str | None:
        """As of every executor; refused for the objection too."""
        problem = None if self.enabled else self.measured.problem(now_ns) or self.objection()
        return super().enable(now_ns) if problem is None else problem


class Company:
    """Looks for others who send commands to the arm, and for somebody who takes them.

    Two streams on one topic are a motion that neither of them has limited: the arm is torn between them. And a
    controller that is started while commands are under way finds one that leads the arm, and steps to it. So with
    company, or without a controller, the executor is not enabled; and if it is when that happens, the arm is brought to
    rest as by the operator's stop, and then nothing is sent any more.

    What counts is that there is another publisher, not that it sends: the first message would come too late. Of those
    who take commands, `LISTENERS` are no controllers; whoever else is there counts as one. And as two
    nodes may not know of each other at first, nothing is enabled by hand in the first `LOOK_SECONDS` of a node.

    Args:
        node: the executor's; it has one publisher of the topic and one of the executor's status.
        executor: to be objected to.
        topic: of the arm's commands.
        now: the executor's clock [ns].
        look: seconds from now for which there is an objection in any case.
    """

    def __init__(
        self, node: Node, executor: SoleExecutor, topic: str, now: Callable[[], int], look: float = LOOK_SECONDS
    ) -> None:
        self._node, self._executor, self._now = node, executor, now
        self._topic = node.resolve_topic_name(topic)
        self._status_topic = node.resolve_topic_name(topics.EXECUTOR_STATUS)
        self._looked = time.monotonic() + look
        self._leaving = False
        self._objected = ""
        executor.objection = self.objection
        # The graph changes in the system's time, whatever the simulated one does.
        self._timer = node.create_timer(PERIOD, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def objected(self) -> str:
        """What the arm was stopped for, until that is reset; else empty."""
        return self._objected if self._executor.operator.stopped is not None else ""

    def others(self) -> list[str]:
        """Full names of the nodes that might move the arm too: a name twice where it has two publishers."""
        me = (self._node.get_namespace(), self._node.get_name())
        found: Counter[tuple[str, str]] = Counter()
        for topic in (self._topic, self._status_topic):
            if self._node.count_publishers(topic) > 1:
                here = Counter(
                    (info.node_namespace, info.node_name) for info in self._node.get_publishers_info_by_topic(topic)
                )
                # One of these is this node's own; of those that are left another may have its name.
                found |= here - Counter([me])
        return sorted(full_name(name, space) for space, name in found.elements())

    def leaders(self, topic: str) -> list[str]:
        """Full names of the nodes that publish what the arm follows, where there are several: one per publisher."""
        topic = self._node.resolve_topic_name(topic)
        if self._node.count_publishers(topic) < 2:
            return []
        found = self._node.get_publishers_info_by_topic(topic)
        return sorted(full_name(info.node_name, info.node_namespace) for info in found)

    def problem(self) -> str | None:
        """What is wrong on the topic of the arm's commands, and the remedy; None where all is well."""
        found = self._found()
        return None if found is None else found[1]

    def _found(self) -> tuple[Reason, str] | None:
        others = self.others()
        if others:
            return Reason.NOT_ALONE, (
                f"{', '.join(others)} would move the arm too (on {self._topic}, or as another executor); "
                "end all but one, and let that one have the arm"
            )
        takers = self.takers()
        if not takers:
            listening = self._node.count_subscribers(self._topic)
            but = f" but {listening} that only listen" if listening else ""
            return Reason.NO_CONTROLLER, f"nobody takes the arm's commands on {self._topic}{but}; start its controller"
        return None

    def takers(self) -> list[str]:
        """Names of the nodes that take the arm's commands, but for those that only listen."""
        if self._node.count_subscribers(self._topic) == 0:
            return []
        found = self._node.get_subscriptions_info_by_topic(self._topic)
        return [info.node_name for info in found if LISTENERS.fullmatch(info.node_name) is None]

    def objection(self) -> str | None:
        """Why it must not be enabled now, and the remedy; None where it may."""
        left = self._looked - time.monotonic()
        looking = f"it is still looking whether it is alone; enable it in {left:.1f} s" if left > 0 else None
        return self.problem() or looking

    def after(self, tick: execution.Tick) -> None:
        """Ends commands where the arm has come to rest in spite of company; to be called after every tick."""
        if self._leaving and (tick.velocities is None or not tick.velocities.any()):
            self._leaving = False
            self._executor.disable(self._now())

    def _look(self) -> None:
        if self._executor.operator.stopped is None:
            self._objected = ""
        if not self._executor.enabled or self._leaving:
            return
        found = self._found()
        if found is None:
            return
        reason, problem = found
        self._objected, self._leaving = problem, True
        self._executor.stop(self._now(), reason)
        self._node.get_logger().error(
            f"stopped: {problem}; then call {topics.RESET} and {topics.ENABLE}", throttle_duration_sec=1.0
        )
