"""A scripted operator that knows where the blocks are and does what the instruction says.

What it does next depends on the present state, hardly ever on the past: a policy that learns from it sees everything
that decided an action.
"""

from __future__ import annotations

import numpy as np

from ki_ros.rig import CONTROL_HZ, GRIPPER_CLOSED_ANGLE, NUM_JOINTS, STATE_DIM
from ki_ros.sim import scene
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.simulated_rig import SimulatedRig
from ki_ros.sim.tasks import HOVER, Layout, Task

_SPEED, _SLOW = 0.32, 0.12
_GAIN = 4.0
_TURN = 1.2
_TRAVEL, _PUSH_HEIGHT, _GRASP_HEIGHT, _LIFT = 0.16, 0.03, 0.02, 0.16
_BEHIND, _CONTACT = 0.085, 0.036
_ALIGNED, _AT_DEPTH = 0.012, 0.008
_OPEN, _CLOSED = 0.0, 1.0
_GRIPPED = 0.25 * GRIPPER_CLOSED_ANGLE


class Expert:
    """Demonstrates one episode: `act` at each observation gives a chunk of joint positions.

    Args:
        rig: whose state it reads; it commands nothing.
        layout: of the episode.
        kinematics: of the rig.
        horizon: rows of a chunk.
    """

    def __init__(self, rig: SimulatedRig, layout: Layout, kinematics: Kinematics, horizon: int = 8) -> None:
        self._rig, self._layout, self._kinematics = rig, layout, kinematics
        self._horizon = horizon
        self._closing = False
        self._pushed = False

    def act(self, command: np.ndarray) -> np.ndarray:
        """Actions (horizon, 8) in joint_position space that go on from the last command (7,) [rad]."""
        rows = np.empty((self._horizon, STATE_DIM))
        q = np.array(command, dtype=np.float64)
        position, yaw = self._kinematics.pinch(q)
        for row in rows:
            goal, goal_yaw, speed, closedness = self._wish(position)
            step = _GAIN * (goal - position) / CONTROL_HZ
            longest = speed / CONTROL_HZ
            if (length := np.linalg.norm(step)) > longest:
                step *= longest / length
            position = position + step
            yaw = yaw + np.clip(_GAIN * _turn(goal_yaw - yaw) / CONTROL_HZ, -_TURN / CONTROL_HZ, _TURN / CONTROL_HZ)
            q = self._kinematics.solve(position, yaw, start=q)
            row[:NUM_JOINTS], row[NUM_JOINTS] = q, closedness
        return rows

    def _wish(self, position: np.ndarray) -> tuple[np.ndarray, float, float, float]:
        """Where the fingertips at `position` should go: place (3,) [m], yaw [rad], speed [m/s], closedness."""
        block, quaternion = self._rig.block_pose(self._layout.target)
        if self._layout.task is Task.REACH:
            return np.array([block[0], block[1], HOVER]), 0.0, _SPEED, _OPEN
        if self._layout.task is Task.PUSH:
            return self._push(position, block)
        return self._pick(position, block, _yaw(quaternion))

    def _push(self, position: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, float, float, float]:
        way = self._layout.area - block[:2]
        distance = float(np.linalg.norm(way))
        self._pushed = self._pushed or distance < 0.012
        if self._pushed:
            return np.array([position[0], position[1], _TRAVEL]), 0.0, _SLOW, _CLOSED
        direction = way / distance
        offset = position[:2] - block[:2]
        along = float(offset @ direction)
        across = float(np.linalg.norm(offset - along * direction))
        behind = block[:2] - _BEHIND * direction
        if position[2] < 0.06 and along < -0.015 and across < 0.03:
            # A little of what is across is taken out on the way, so that the block does not slip off sideways.
            ahead = position[:2] + direction * 0.05 - 1.5 * (offset - along * direction)
            goal = self._layout.area - _CONTACT * direction if distance < 0.03 else ahead
            return np.array([*goal, _PUSH_HEIGHT]), 0.0, _SLOW, _CLOSED
        if np.linalg.norm(position[:2] - behind) < _ALIGNED:
            return np.array([*behind, _PUSH_HEIGHT]), 0.0, _SPEED, _CLOSED
        if position[2] < 0.10:
            return np.array([position[0], position[1], _TRAVEL]), 0.0, _SPEED, _CLOSED
        return np.array([*behind, max(0.12, _TRAVEL - 0.04)]), 0.0, _SPEED, _CLOSED

    def _pick(self, position: np.ndarray, block: np.ndarray, yaw: float) -> tuple[np.ndarray, float, float, float]:
        if block[2] < scene.BLOCK_HALF_SIZE + 0.01 and np.linalg.norm(position[:2] - block[:2]) > 0.04:
            self._closing = False
        gripped = self._closing and self._rig.gripper_angle > _GRIPPED and abs(self._rig.gripper_velocity) < 0.05
        if gripped or block[2] > scene.BLOCK_HALF_SIZE + 0.02:
            return np.array([block[0], block[1], _LIFT]), yaw, _SLOW + 0.06, _CLOSED
        across = float(np.linalg.norm(position[:2] - block[:2]))
        if across < _ALIGNED and position[2] < _GRASP_HEIGHT + _AT_DEPTH:
            self._closing = True
        if self._closing:
            return np.array([block[0], block[1], _GRASP_HEIGHT]), yaw, _SLOW, _CLOSED
        height = _GRASP_HEIGHT if across < _ALIGNED else 0.09
        return np.array([block[0], block[1], height]), yaw, _SPEED if across > 0.05 else 0.2, _OPEN


def _turn(angle: float) -> float:
    """The angle within -pi to pi."""
    return float(np.arctan2(np.sin(angle), np.cos(angle)))


def _yaw(quaternion: np.ndarray) -> float:
    """Yaw of a block [rad], within -pi/4 to pi/4: its four sides are alike."""
    w, x, y, z = quaternion
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return float((yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4)
