"""Regions that the guard keeps the arm out of."""

from __future__ import annotations

import numpy as np

from ki_ros.execution.self_collision import SelfCollision
from ki_ros.execution.state import Intervention
from ki_ros.execution.workspace import WorkspaceBox


class WorkspaceBarrier:
    """What is outside of a box."""

    intervention = Intervention.WORKSPACE_LIMITED

    def __init__(self, box: WorkspaceBox) -> None:
        self._box = box

    def depth(self, positions: np.ndarray) -> np.ndarray:
        """See `Barrier`."""
        return self._box.outside(positions)


class SelfCollisionBarrier:
    """Poses in which parts of the arm are closer than a margin [m]."""

    intervention = Intervention.SELF_COLLISION_LIMITED

    def __init__(self, margin: float) -> None:
        if not 0 <= margin <= 0.2:
            raise ValueError(f"margin is {margin} m; expected 0 to 0.2")
        self._margin = margin
        self._collision = SelfCollision()

    def depth(self, positions: np.ndarray) -> np.ndarray:
        """See `Barrier`."""
        return self._margin - self._collision.clearance(positions)
