"""What the executor node says of its own pace, and its priority where the operating system refuses it."""

from __future__ import annotations

import os
import random
import time

import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from ki_ros.nodes.executor import ExecutorNode  # noqa: E402

PATIENCE = 15.0


@pytest.fixture
def context(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=random.SystemRandom().randint(1, 100))
    yield context
    rclpy.shutdown(context=context)


def refuse(*_):
    raise PermissionError(1, "Operation not permitted")


def test_overruns_and_work_are_counted_and_a_refused_priority_stops_nothing(context, monkeypatch, capfd):
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    node = ExecutorNode(context=context, parameter_overrides=[Parameter("realtime_priority", value=20)])
    listener = Node("listener", context=context)
    spinner = SingleThreadedExecutor(context=context)
    spinner.add_node(node)
    spinner.add_node(listener)
    reports: list[dict[str, str]] = []

    def hear(message: DiagnosticArray) -> None:
        reports.extend(
            {pair.key: pair.value for pair in status.values}
            for status in message.status
            if status.name == "executor: commands"
        )

    listener.create_subscription(DiagnosticArray, "/diagnostics", hear, 10)
    deadline = time.monotonic() + PATIENCE

    def until(condition) -> None:
        while not condition():
            assert time.monotonic() < deadline
            spinner.spin_once(timeout_sec=0.1)

    try:
        until(lambda: reports and "overruns" in reports[-1])
        before = int(reports[-1]["overruns"])
        # Something keeps the thread for ten periods.
        time.sleep(0.1)
        until(lambda: int(reports[-1]["overruns"]) > before)
        assert 0 < float(reports[-1]["work_ms_p50"]) <= float(reports[-1]["work_ms_p99"])
        assert reports[-1]["real_time"] == "False"
    finally:
        spinner.shutdown()
        node.destroy_node()
        listener.destroy_node()
    assert "realtime_priority 20 is refused" in "".join(capfd.readouterr())
