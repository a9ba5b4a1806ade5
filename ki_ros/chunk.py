"""An action chunk: the policy's answer to one observation, with everything needed to execute or refuse it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ki_ros.rig import NUM_JOINTS, STATE_DIM, VELOCITY_TO_DELTA, ActionSpace

MIN_DT, MAX_DT = 1e-3, 1.0
"""Times between two rows [s] that a chunk may have: 1 Hz to 1 kHz. Anything else is a mistake in the units."""


class ChunkError(ValueError):
    """A chunk that must not be executed; the message names the field and the value."""


class NonFiniteChunkError(ChunkError):
    """An action that is NaN or infinite: the policy is broken, not just its message."""


@dataclass(frozen=True)
class ActionChunk:
    """Actions for the next `horizon * dt` seconds, validated on construction.

    Attributes:
        stamp: stamp of the observation that the chunk answers [ns].
        observation_sequence: sequence number of that observation.
        epoch: epoch of its instruction.
        action_space: meaning of the first seven values of a row.
        dt: time between two rows [s].
        actions: (H, 8) float64; the eighth value of a row is the gripper's closedness [0 open .. 1 closed].
        inference_time: wall-clock time from observation to chunk [s].

    Raises:
        NonFiniteChunkError: an action that is NaN or infinite.
        ChunkError: a wrong shape, or a dt out of [MIN_DT, MAX_DT].
    """

    stamp: int
    observation_sequence: int
    epoch: int
    action_space: ActionSpace
    dt: float
    actions: np.ndarray
    inference_time: float = 0.0

    def __post_init__(self) -> None:
        actions = np.array(self.actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[0] == 0 or actions.shape[1] != STATE_DIM:
            raise ChunkError(f"actions has shape {actions.shape}; expected (horizon, {STATE_DIM}) with horizon > 0")
        bad = np.argwhere(~np.isfinite(actions))
        if len(bad):
            row, column = bad[0]
            raise NonFiniteChunkError(
                f"actions[{row}, {column}] is {actions[row, column]} ({len(bad)} of {actions.size} are not finite)"
            )
        if not MIN_DT <= self.dt <= MAX_DT:
            raise ChunkError(f"dt is {self.dt} s; expected {MIN_DT} to {MAX_DT} s")
        actions.setflags(write=False)
        object.__setattr__(self, "actions", actions)

    @property
    def horizon(self) -> int:
        """Number of rows."""
        return len(self.actions)


def rows(values: ArrayLike, horizon: int, action_dim: int) -> np.ndarray:
    """The (horizon, action_dim) float64 array of values that were sent in row-major order.

    Raises ChunkError when their number is another one than the shape says.
    """
    flat = np.asarray(values, dtype=np.float64)
    if flat.ndim != 1 or flat.size != horizon * action_dim:
        raise ChunkError(f"actions has {flat.size} values; expected horizon {horizon} x action_dim {action_dim}")
    return flat.reshape(horizon, action_dim)


def velocity_to_position(velocity: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Joint positions [rad], (7,), that one step of normalised velocity asks for from the measured positions [rad].

    As DROID's controller does: a vector whose largest component exceeds 1 is scaled as a whole, so its direction stays;
    then each unit is `VELOCITY_TO_DELTA` rad.
    """
    velocity = np.asarray(velocity, dtype=np.float64)
    scale = max(1.0, float(np.abs(velocity).max()))
    return np.asarray(measured, dtype=np.float64) + velocity / scale * VELOCITY_TO_DELTA


def target_position(action: np.ndarray, action_space: ActionSpace, measured: np.ndarray) -> np.ndarray:
    """Joint positions [rad], (7,), that one row of a chunk asks for, given the measured joint positions [rad], (7,)."""
    joints = np.asarray(action, dtype=np.float64)[:NUM_JOINTS]
    if action_space is ActionSpace.JOINT_VELOCITY:
        return velocity_to_position(joints, measured)
    return joints.copy()
