"""A rollout as arrays, and the figures of its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ki_ros.commands.reaching import Reaching
from ki_ros.rig import NUM_JOINTS, Robot

VELOCITY_TOLERANCE = 1e-3
"""Rounding allowed when a velocity is computed from two stamps and two positions [rad/s]."""

POSITION_TOLERANCE = 1e-6
"""Rounding allowed when a position is compared with a limit [rad]."""


@dataclass(frozen=True)
class Rollout:
    """What a run of the graph sent and measured. Times are stamps [s] on the graph's clock.

    Attributes:
        robot: the arm.
        instruction: what it was asked to do.
        reaching: how near it came to the blocks; None where there is no scene of a task.
        wall_seconds: wall-clock time that the run took [s].
        clock_seconds: time that the run took on the graph's clock [s].
        observation_times: (N,) stamps of the observations.
        camera_times: (M,) stamps of one camera's images.
        frames: the time and the views by camera role, (H, W, 3) uint8, of some observations.
        chunk_times: (C,) stamps of the chunks: those of their observations.
        inference_ms: (C,) wall-clock time of each inference [ms].
        command_times, commands: (K,) and (K, 8): joints [rad] and knuckle angle [rad] that were sent.
        joint_times, joints: (J,) and (J, 7): measured positions [rad].
        joint_velocities: (J, 7) measured velocities [rad/s].
        status_times: (S,) stamps of the executor's ticks.
        executing: (S,) bool, whether a chunk was being executed.
        steps: (S,) row of the chunk, -1 while holding.
        reasons: why the arm held, by the number of ticks.
        interventions: interventions of the guard, by the number of ticks.
        command_rate: rate at which commands should be sent [Hz].
        refused: observations that were refused, by reason.
    """

    robot: Robot
    instruction: str
    reaching: Reaching | None
    wall_seconds: float
    clock_seconds: float
    observation_times: np.ndarray
    camera_times: np.ndarray
    frames: list[tuple[float, dict[str, np.ndarray]]]
    chunk_times: np.ndarray
    inference_ms: np.ndarray
    command_times: np.ndarray
    commands: np.ndarray
    joint_times: np.ndarray
    joints: np.ndarray
    joint_velocities: np.ndarray
    status_times: np.ndarray
    executing: np.ndarray
    steps: np.ndarray
    reasons: dict[str, int]
    interventions: dict[str, int]
    command_rate: float
    refused: dict[str, int]


def figures(rollout: Rollout) -> dict[str, Any]:
    """The figures of `report.json`. Rates are counted on the graph's clock; NaN where nothing arrived."""
    r = rollout
    intervals = np.diff(r.command_times)
    p50, p99 = np.percentile(r.inference_ms, (50, 99)) if len(r.inference_ms) else (np.nan, np.nan)
    jitter = np.percentile(np.abs(intervals - 1.0 / r.command_rate), 99) * 1e3 if len(intervals) else np.nan
    return {
        "observation_hz": rate(r.observation_times),
        "camera_hz": rate(r.camera_times),
        "refused": sum(r.refused.values()),
        "refused_by_reason": r.refused,
        "chunk_hz": rate(r.chunk_times),
        "infer_ms_p50": float(p50),
        "infer_ms_p99": float(p99),
        "command_hz": rate(r.command_times),
        "command_jitter_ms_p99": float(jitter),
        "guard_interventions": sum(r.interventions.values()),
        "guard_interventions_by_kind": r.interventions,
        "limit_violations": limit_violations(r),
        "executing_share": float(np.mean(r.executing)) if len(r.executing) else float("nan"),
        "held_by_reason": r.reasons,
        "joint_travel_rad": float(np.abs(np.diff(r.joints, axis=0)).sum()) if len(r.joints) > 1 else 0.0,
        "real_time_factor": r.clock_seconds / r.wall_seconds,
        "clock_seconds": r.clock_seconds,
        "wall_seconds": r.wall_seconds,
        "instruction": r.instruction,
        "instructions": [] if r.reaching is None else r.reaching.outcomes(),
        "robot": r.robot.name,
    }


def rate(times: np.ndarray) -> float:
    """Mean rate of stamps [Hz]; NaN of fewer than two."""
    if len(times) < 2:
        return float("nan")
    return float((len(times) - 1) / (times[-1] - times[0]))


def limit_violations(rollout: Rollout) -> int:
    """Samples beyond a limit of the arm: measured and commanded positions, measured and commanded velocities.

    Counted from what was sent and measured alone, without asking the guard.
    """
    robot = rollout.robot
    count = 0
    for positions in (rollout.joints, rollout.commands[:, :NUM_JOINTS]):
        low = positions < robot.position_lower - POSITION_TOLERANCE
        high = positions > robot.position_upper + POSITION_TOLERANCE
        count += int((low | high).any(axis=1).sum())
    moved = np.diff(rollout.commands[:, :NUM_JOINTS], axis=0)
    elapsed = np.diff(rollout.command_times)[:, None]
    count += int((np.abs(moved) > (robot.velocity + VELOCITY_TOLERANCE) * elapsed).any(axis=1).sum())
    count += int((np.abs(rollout.joint_velocities) > robot.velocity + VELOCITY_TOLERANCE).any(axis=1).sum())
    return count
