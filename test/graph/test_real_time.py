"""Real-time chunking in the running graph: what the policy sends agrees with what the arm does meanwhile."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from fake_rig import FakeRig
from waiting import wait

from ki_ros import bringup, msg
from ki_ros.commands.processes import Graph
from ki_ros.nodes import stamps

pytestmark = pytest.mark.graph

PARAMETERS = """
observation:
  ros__parameters:
    exterior_1: {{topic: /camera/exterior_1/image_raw}}
    wrist: {{topic: /camera/wrist/image_raw}}
policy:
  ros__parameters: {{checkpoint: "package://ki_ros/models/ki_tiny", threads: 1, seed: 0}}
executor:
  ros__parameters: {{enabled_at_start: true, command_rate: 50.0, schedule: {schedule}}}
"""


class Listening(FakeRig):
    """Keeps every chunk."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.sent: list[msg.ActionChunk] = []

    def _on_chunk(self, message: msg.ActionChunk) -> None:
        super()._on_chunk(message)
        self.sent.append(message)


def disagreement(before: msg.ActionChunk, after: msg.ActionChunk) -> float:
    """Of two chunks about the first moment that both have a row for, the arm's first joint and the others [rad]."""
    apart = (stamps.from_message(after.header.stamp) - stamps.from_message(before.header.stamp)) / 1e9
    rows = [np.reshape(chunk.actions, (chunk.horizon, chunk.action_dim))[:, :7] for chunk in (before, after)]
    return float(np.abs(rows[0][round(apart / before.dt)] - rows[1][0]).max())


@pytest.mark.parametrize("schedule", ["latency_compensated", "rtc", "rtc_trained"])
def test_chunks_agree_where_the_schedule_asks_for_it(tmp_path, spinner, schedule):
    file = tmp_path / "params.yaml"
    file.write_text(PARAMETERS.format(schedule=schedule))
    rig = Listening(context=spinner.context)
    spinner.start(rig)
    with Graph(bringup.Settings(params_file=str(file)), tmp_path / "logs") as graph:
        wait(rig.service_is_ready, "service set_instruction", check=graph.check)
        future = rig.call_set_instruction("reach the red block")
        wait(future.done, "answer of set_instruction")
        wait(rig.executing, "execution", check=graph.check)
        assert rig.status.schedule == schedule
        # The first ones cannot agree: how long an answer takes is not known yet.
        first = len(rig.sent) + 5
        wait(lambda: len(rig.sent) >= first + 30, "chunks", check=graph.check)
        chunks = list(rig.sent[first:])
    values = [
        disagreement(before, after)
        for before, after in pairwise(chunks)
        if after.observation_sequence - before.observation_sequence < before.horizon
    ]
    assert len(values) >= 20
    if schedule == "rtc_trained":
        # Messages carry float32.
        assert np.median(values) < 1e-5
    elif schedule == "rtc":
        assert np.median(values) < 0.01
    else:
        assert np.median(values) > 0.01
