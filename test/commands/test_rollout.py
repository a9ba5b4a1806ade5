"""Figures of a rollout, on rollouts made so that the right answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ki_ros.commands.reaching import Reaching, Spoken
from ki_ros.commands.report import draw
from ki_ros.commands.rollout import Rollout, figures, limit_violations
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS


@pytest.fixture
def rollout() -> Rollout:
    """Two seconds at rest: 100 Hz commands, 15 Hz observations, a chunk each, half real time."""
    times = np.arange(201) / 100.0
    rest = np.tile([*RESET_JOINT_POSITIONS, 0.0], (201, 1))
    frame = np.zeros((8, 8, 3), np.uint8)
    return Rollout(
        robot=PANDA,
        instruction="rest",
        reaching=Reaching(times, {"red": np.linspace(0.3, 0.0, 201)}, [Spoken(0.0, "reach the red block", "red")]),
        wall_seconds=4.0,
        clock_seconds=2.0,
        observation_times=np.arange(31) / 15.0,
        camera_times=np.arange(31) / 15.0,
        frames=[(t, {"wrist": frame}) for t in (0.0, 1.0)],
        chunk_times=np.arange(31) / 15.0,
        inference_ms=np.arange(1.0, 101.0),
        command_times=times,
        commands=rest,
        joint_times=times,
        joints=rest[:, :7],
        joint_velocities=np.zeros((201, 7)),
        status_times=times,
        executing=np.arange(201) % 2 == 0,
        steps=np.zeros(201),
        reasons={"waiting_for_chunk": 100},
        interventions={"velocity_limited": 3},
        command_rate=100.0,
        refused={"stale": 2},
    )


def test_figures(rollout):
    values = figures(rollout)
    assert values["observation_hz"] == pytest.approx(15.0)
    assert values["command_hz"] == pytest.approx(100.0)
    assert values["command_jitter_ms_p99"] == pytest.approx(0.0, abs=1e-9)
    assert values["infer_ms_p50"] == 50.5
    assert values["real_time_factor"] == 0.5
    assert values["refused"] == 2
    assert values["guard_interventions"] == 3
    assert values["limit_violations"] == 0


def test_a_block_is_reached_when_the_fingertips_stay_near_it_while_it_is_named():
    times = np.arange(401) / 100.0
    red = np.full(401, 0.3)
    red[50:90] = 0.01  # for too short
    red[150:260] = 0.04  # for long, half of it while green is named
    green = np.full(401, 0.01)
    spoken = [
        Spoken(0.0, "reach the red block", "red"),
        Spoken(2.0, "reach the green block", "green"),
        Spoken(3.0, "reach the red block", "red"),
        Spoken(3.8, "wave", None),
    ]
    outcomes = Reaching(times, {"red": red, "green": green}, spoken).outcomes()
    assert [outcome["instruction"] for outcome in outcomes] == [one.text for one in spoken]
    assert [outcome["reached"] for outcome in outcomes] == [False, True, False, False]
    assert outcomes[1]["seconds"] == pytest.approx(0.5, abs=0.02)
    assert [outcome["closest"] for outcome in outcomes] == [0.01, 0.01, 0.3, None]


@pytest.mark.parametrize("field", ["joints", "commands"])
def test_a_position_beyond_its_limit_is_counted(rollout, field):
    values = getattr(rollout, field).copy()
    # At rest beyond the limit, so that no velocity is too high as well.
    values[:, 3] = PANDA.position_upper[3] + 0.001
    assert limit_violations(dataclasses.replace(rollout, **{field: values})) == len(values)


def test_a_command_that_jumps_is_counted(rollout):
    commands = rollout.commands.copy()
    commands[100:, 0] += 0.03  # 3 rad/s over one period of 10 ms
    assert limit_violations(dataclasses.replace(rollout, commands=commands)) == 1


def test_a_measured_velocity_beyond_its_limit_is_counted(rollout):
    velocities = rollout.joint_velocities.copy()
    velocities[7, 6] = -2.7
    assert limit_violations(dataclasses.replace(rollout, joint_velocities=velocities)) == 1


def test_a_picture_is_drawn_even_of_nothing(rollout, tmp_path):
    draw(rollout, tmp_path / "full.png")
    empty = dataclasses.replace(
        rollout,
        frames=[],
        chunk_times=np.zeros(0),
        inference_ms=np.zeros(0),
        observation_times=np.zeros(1),
        command_times=np.zeros(0),
        commands=np.zeros((0, 8)),
    )
    draw(empty, tmp_path / "empty.png")
    draw(dataclasses.replace(rollout, reaching=None), tmp_path / "without.png")
    for name in ("full.png", "empty.png", "without.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
