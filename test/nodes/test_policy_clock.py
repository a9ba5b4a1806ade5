"""The policy node on a machine whose clock is not the robot's."""

from __future__ import annotations

import pytest
from training_graph import Graph

from ki_ros.msg import ExecutorStatus

SECOND = 1_000_000_000


@pytest.mark.parametrize("ahead", [-10 * SECOND, 0, 10 * SECOND], ids=["behind", "the same", "ahead"])
def test_how_long_an_answer_takes_is_measured_on_the_robots_clock(ahead: int) -> None:
    graph = Graph()
    graph.ahead = ahead
    try:
        with graph.executor(ExecutorStatus.EXECUTING, "rtc"):
            for _ in range(4):
                graph.answer()
            graph.until(lambda: graph.figure("policy", "chunks") == "4", "diagnostics after the last chunk")
        # The first answer is no measure, and the second has none to go by.
        assert graph.figure("policy", "agreeing") == "2"
        assert float(graph.figure("policy", "inference_ms_p50")) < float(graph.figure("policy", "delay_ms")) < 5000
    finally:
        graph.close()
