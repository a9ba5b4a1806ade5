"""Joint positions that put the fingertips somewhere, and where the fingertips are at given joint positions."""

from __future__ import annotations

import numpy as np

from ki_ros.rig import NUM_JOINTS, RESET_JOINT_POSITIONS
from ki_ros.sim import scene
from ki_ros.sim.simulated_rig import SimulatedRig

_ITERATIONS = 100
_ENOUGH = 1e-5
_DAMPING = 0.05
_POSTURE_GAIN = 0.3
_MARGIN = 0.02


class UnreachableError(ValueError):
    """No joint positions within the limits put the fingertips there."""


class Kinematics:
    """The arm of a `SimulatedRig` without its dynamics: data of its own, so nothing here moves the rig.

    The gripper always points straight down. Of the arm's seven joints one is left over: it is kept near DROID's reset
    pose, so that a place and a yaw have one answer, whatever the arm's way there.

    Args:
        model: mujoco.MjModel of the scene; only read.
        lower, upper: (7,) position limits [rad].
    """

    def __init__(self, model, lower: np.ndarray, upper: np.ndarray) -> None:
        import mujoco

        self._mujoco = mujoco
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site("pinch").id
        self._qpos = np.array([model.joint(name).qposadr[0] for name in scene.ARM_JOINTS])
        self._dof = np.array([model.joint(name).dofadr[0] for name in scene.ARM_JOINTS])
        self._lower, self._upper = lower + _MARGIN, upper - _MARGIN
        self._posture = np.array(RESET_JOINT_POSITIONS)

    @classmethod
    def of(cls, rig: SimulatedRig) -> Kinematics:
        """That of a rig's arm, within its limits."""
        return cls(rig.model, rig.robot.position_lower, rig.robot.position_upper)

    def pinch(self, q: np.ndarray) -> tuple[np.ndarray, float]:
        """Where the fingertips meet (3,) [m] and the gripper's yaw [rad] at joint positions q (7,) [rad]."""
        self._place(q)
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        return self._data.site_xpos[self._site].copy(), float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def solve(self, position: np.ndarray, yaw: float = 0.0, *, start: np.ndarray | None = None) -> np.ndarray:
        """Joint positions (7,) [rad] that put the fingertips at `position` (3,) [m], the gripper straight down.

        Damped least squares (Nakamura and Hanafusa, 1986), with the posture in the null space.

        Args:
            position: in the base frame.
            yaw: of the gripper about the vertical [rad], 0 at the reset pose.
            start: (7,) joint positions to begin with; the reset pose when None.

        Raises:
            UnreachableError: no answer within 1 mm and 0.01 rad.
        """
        q = np.array(self._posture if start is None else start, dtype=np.float64)
        wanted = np.array([[np.cos(yaw), np.sin(yaw), 0], [np.sin(yaw), -np.cos(yaw), 0], [0, 0, -1.0]])
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(_ITERATIONS):
            self._place(q)
            error = self._error(position, wanted)
            self._mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
            j = jacobian[:, self._dof]
            square = j @ j.T
            inverse = j.T @ np.linalg.inv(square + _DAMPING**2 * np.eye(6))
            null = np.eye(NUM_JOINTS) - j.T @ np.linalg.solve(square + 1e-9 * np.eye(6), j)
            step = inverse @ error + _POSTURE_GAIN * null @ (self._posture - q)
            q = np.clip(q + step, self._lower, self._upper)
            if np.abs(step).max() < _ENOUGH:
                break
        self._place(q)
        error = self._error(position, wanted)
        if np.linalg.norm(error[:3]) > 1e-3 or np.linalg.norm(error[3:]) > 1e-2:
            raise UnreachableError(
                f"position {np.round(position, 3)} m with yaw {yaw:.2f} rad is out of reach by "
                f"{1e3 * np.linalg.norm(error[:3]):.0f} mm and {np.linalg.norm(error[3:]):.2f} rad"
            )
        return q

    def _place(self, q: np.ndarray) -> None:
        self._data.qpos[self._qpos] = q
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_comPos(self._model, self._data)

    def _error(self, position: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(6,): what is missing to the place [m], and to the orientation as a rotation vector [rad]."""
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        quaternion = np.empty(4)
        self._mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(wanted @ rotation.T).reshape(9))
        turn = np.empty(3)
        self._mujoco.mju_quat2Vel(turn, quaternion, 1.0)
        return np.concatenate([position - self._data.site_xpos[self._site], turn])
