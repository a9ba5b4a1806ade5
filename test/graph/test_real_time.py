"""Real-time chunking in the running graph: what the policy sends agrees with what the arm does meanwhile."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_rig import FakeRig
from waiting import wait

from ki_ros import bringup, msg
from ki_ros.commands.processes import Graph
from ki_ros.model.checkpoint import save_checkpoint
from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel
from ki_ros.nodes import stamps
from ki_ros.policy import model_directory

pytestmark = pytest.mark.graph

PARAMETERS = """
observation:
  ros__parameters:
    exterior_1: {{topic: /camera/exterior_1/image_raw}}
    wrist: {{topic: /camera/wrist/image_raw}}
policy:
  ros__parameters: {{checkpoint: {checkpoint}, threads: 1, seed: 0}}
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
    """Of two chunks about the first moment that both have a row for: of the joints, the largest."""
    apart = (stamps.from_message(after.header.stamp) - stamps.from_message(before.header.stamp)) / 1e9
    rows = [np.reshape(chunk.actions, (chunk.horizon, chunk.action_dim))[:, :7] for chunk in (before, after)]
    return float(np.abs(rows[0][round(apart / before.dt)] - rows[1][0]).max())


@pytest.fixture(scope="module")
def rig(spinner) -> Listening:
    rig = Listening(context=spinner.context)
    spinner.start(rig)
    return rig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A policy whose expert's weights are all random: each chunk is another one. It may be told of six rows."""
    directory = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = KIModel(replace(KIConfig.from_preset("ki_tiny"), committed_rows=6))
    for parameter in model.expert_parameters().values():
        torch.nn.init.normal_(parameter, std=0.05)
    save_checkpoint(model, directory)
    shipped = model_directory("ki_tiny")
    for file in (shipped / "tokenizer.model", shipped / "untrained" / "norm_stats.json"):
        shutil.copy(file, directory)
    return directory


@pytest.mark.parametrize("schedule", ["latency_compensated", "rtc", "rtc_trained"])
def test_chunks_agree_where_the_schedule_asks_for_it(tmp_path, rig, checkpoint, schedule):
    file = tmp_path / "params.yaml"
    file.write_text(PARAMETERS.format(schedule=schedule, checkpoint=checkpoint))
    with Graph(bringup.Settings(params_file=str(file)), tmp_path / "logs") as graph:
        wait(rig.service_is_ready, "service set_instruction", check=graph.check)
        future = rig.call_set_instruction("reach the red block")
        wait(future.done, "answer of set_instruction")
        epoch = int(future.result().message.removeprefix("epoch "))
        wait(lambda: rig.executing() and rig.status.epoch == epoch, "execution", check=graph.check)
        assert rig.status.schedule == schedule

        def chunks() -> list[msg.ActionChunk]:
            # The first ones cannot agree: how long an answer takes is not known yet.
            return [chunk for chunk in list(rig.sent) if chunk.epoch == epoch][5:]

        wait(lambda: len(chunks()) >= 30, "chunks", check=graph.check)
    values = [
        disagreement(before, after)
        for before, after in pairwise(chunks())
        if after.observation_sequence - before.observation_sequence < before.horizon
    ]
    assert len(values) >= 20
    if schedule == "rtc_trained":
        # Messages carry float32.
        assert np.median(values) < 1e-5
    elif schedule == "rtc":
        assert np.median(values) < 0.02
    else:
        assert np.median(values) > 0.1
