"""The rig's three cameras: where they are, what they see, how large their pictures are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ki_ros.rig import CameraRole

EXTERIOR_FOVY = 36.0
"""Vertical field of view of exterior_1 [degrees]. Narrow, so that the place where the blocks lie fills the picture: in
a view of 224 pixels a block is nearly as large as a patch of 32."""

OVERVIEW_FOVY = 50.0
"""Vertical field of view of exterior_2 [degrees]."""

WRIST_FOVY = 60.0
"""Vertical field of view [degrees]."""


@dataclass(frozen=True)
class Mount:
    """How a camera is fixed: `position` (3,) [m] in the frame of `body`, looking at `target` (3,) of the same frame.

    `up` (3,) is the direction of that frame which is upwards in the picture.
    """

    body: str
    position: tuple[float, float, float]
    target: tuple[float, float, float]
    up: tuple[float, float, float]
    fovy: float

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Directions of the picture's right and up, (3,) unit vectors each, in the frame of `body`."""
        backwards = np.subtract(self.position, self.target)
        backwards /= np.linalg.norm(backwards)
        right = np.cross(self.up, backwards)
        right /= np.linalg.norm(right)
        return right, np.cross(backwards, right)


MOUNTS: Mapping[CameraRole, Mount] = MappingProxyType(
    {
        # Over the robot's left shoulder, on a stand beside the base, aimed at the place where the blocks lie.
        CameraRole.EXTERIOR_1: Mount("world", (0.28, 0.50, 0.48), (0.48, 0.07, 0.02), (0.0, 0.0, 1.0), EXTERIOR_FOVY),
        # Facing the robot from its right: the whole arm and the whole table, for people and for policies that want it.
        CameraRole.EXTERIOR_2: Mount("world", (1.05, -0.75, 0.62), (0.32, 0.0, 0.25), (0.0, 0.0, 1.0), OVERVIEW_FOVY),
        # On the gripper's base, 75 mm in front of its axis, the left eye of a stereo pair, pitched towards the fingers.
        CameraRole.WRIST: Mount("base", (0.074, -0.031, 0.011), (-0.239, -0.031, 0.961), (1.0, 0.0, 0.0), WRIST_FOVY),
    }
)


@dataclass(frozen=True)
class CameraSize:
    """Size of a picture [pixels]. Raises ValueError unless both are whole and in 1..4096."""

    width: int = 256
    height: int = 192

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if not isinstance(value, int) or not 1 <= value <= 4096:
                raise ValueError(f"camera {name} must be a whole number in 1..4096, got {value!r}")
