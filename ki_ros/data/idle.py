"""Idle steps: those at which nothing is commanded for a while. A set full of them teaches a policy to wait."""

from __future__ import annotations

import numpy as np

from ki_ros.rig import NUM_JOINTS

HORIZON_SECONDS = 1.0
"""How far ahead a step's targets count [s]."""

JOINT_TOLERANCE = 0.01
"""Distance of a target from the measured position that counts as none [rad]."""

GRIPPER_TOLERANCE = 0.05
"""Change of the gripper's target that counts as none [closedness]."""


def idle_steps(states: np.ndarray, targets: np.ndarray, segment: np.ndarray, rate: float) -> np.ndarray:
    """Which steps are idle.

    A step is idle when, over the steps of its segment within the next second, itself included, no joint's target is
    more than `JOINT_TOLERANCE` away from the position measured at the step, and the gripper's target is at most
    `GRIPPER_TOLERANCE` away from the step's own.

    Args:
        states: (T, 8) joint positions [rad] and gripper closedness.
        targets: (T, 8), as commanded for the end of each step.
        segment: (T,), equal within a segment.
        rate: steps a second.

    Returns:
        (T,) bool.
    """
    count = len(states)
    idle = np.ones(count, dtype=bool)
    for ahead in range(min(max(round(rate * HORIZON_SECONDS), 1), count)):
        now, then = slice(0, count - ahead), slice(ahead, count)
        joints = np.abs(targets[then, :NUM_JOINTS] - states[now, :NUM_JOINTS]).max(axis=1)
        gripper = np.abs(targets[then, NUM_JOINTS] - targets[now, NUM_JOINTS])
        moves = (joints > JOINT_TOLERANCE) | (gripper > GRIPPER_TOLERANCE)
        idle[now] &= ~(moves & (segment[then] == segment[now]))
    return idle
