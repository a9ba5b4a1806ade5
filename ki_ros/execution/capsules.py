"""The arm, its gripper and its wrist camera as capsules: all points within a radius of a line segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ki_ros.kinematics import FLANGE, FRAMES

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Capsule:
    """A capsule that is fixed to one of the arm's frames.

    Attributes:
        part: what it encloses, for people.
        frame: index of its frame as in `kinematics.link_frames`: 0 the base, 1 to 7 the links, 8 the flange.
        start, end: ends of its axis in that frame [m]; they may be the same point.
        radius: [m], more than 0.
    """

    part: str
    frame: int
    start: Point
    end: Point
    radius: float

    def __post_init__(self) -> None:
        if not (isinstance(self.frame, int) and 0 <= self.frame < FRAMES):
            raise ValueError(
                f"frame of capsule {self.part!r} is {self.frame!r}; expected 0 (base) to {FLANGE} (flange)"
            )
        for name in ("start", "end"):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != (3,) or not np.isfinite(value).all():
                raise ValueError(f"{name} of capsule {self.part!r} is {getattr(self, name)!r}; expected x, y, z [m]")
        if not 0 < self.radius < np.inf:
            raise ValueError(f"radius of capsule {self.part!r} is {self.radius} m; expected more than 0")


ARM = (
    Capsule("base", 0, (-0.060, 0.0, 0.0), (-0.026, 0.0, 0.020), 0.1015),
    Capsule("base", 0, (0.0, 0.0, 0.030), (0.0, 0.0, 0.100), 0.0685),
    Capsule("link 1", 1, (0.0, 0.0, -0.163), (0.0, -0.038, -0.011), 0.0630),
    Capsule("link 1", 1, (0.0, -0.073, -0.003), (0.0, -0.025, 0.0), 0.0605),
    Capsule("link 2", 2, (0.0, 0.0, 0.065), (0.0, -0.161, 0.0), 0.0655),
    Capsule("link 2", 2, (0.0, 0.0, 0.030), (0.0, 0.0, 0.041), 0.0630),
    Capsule("link 3", 3, (0.0, 0.0, -0.083), (0.083, 0.042, 0.0), 0.0705),
    Capsule("link 4", 4, (0.0, 0.0, 0.042), (-0.0825, 0.085, 0.0), 0.0700),
    Capsule("link 5", 5, (0.0, 0.0, -0.238), (0.0, 0.063, -0.146), 0.0600),
    Capsule("link 5", 5, (0.0, 0.078, -0.048), (0.0, 0.064, 0.0), 0.0690),
    Capsule("link 6", 6, (0.022, 0.0025, 0.010), (0.084, 0.037, 0.0), 0.0540),
    Capsule("link 6", 6, (0.0025, 0.0005, 0.007), (0.0875, -0.020, 0.0), 0.0555),
    Capsule("link 7", 7, (-0.0095, -0.0095, 0.071), (0.0315, 0.0315, 0.085), 0.0510),
)
"""Base and links of a Panda or an FR3.

Each link's capsules enclose the link's mesh (not its convex hull, which fills the inner corners). They are the smallest
that were found for the meshes of the simulated rig, radii rounded up by at most 1 mm. The arm's tubes have a radius of
55 mm; what a capsule has more is for corners and flat ends. The capsules with which the arm checks itself
(`franka_arm.xacro` of franka_description: radii of 60 mm, at the wrist 50 and 40 mm) leave parts of each link's mesh
outside, some of them to a neighbour's capsule.
"""

ROBOTIQ_2F85 = (
    Capsule("gripper palm", FLANGE, (0.0, 0.0, 0.010), (0.0, 0.0, 0.030), 0.0420),
    Capsule("gripper knuckles", FLANGE, (0.0, -0.046, 0.082), (0.0, 0.046, 0.082), 0.0400),
    Capsule("gripper fingers", FLANGE, (0.0, -0.0415, 0.141), (0.0, 0.0415, 0.141), 0.0280),
)
"""A Robotiq 2F-85 on its coupling, square with the flange as on a DROID rig. They enclose the meshes of the simulated
rig at every opening."""

WRIST_CAMERA = (Capsule("wrist camera", FLANGE, (0.078, -0.050, 0.002), (0.078, 0.050, 0.002), 0.0215),)
"""DROID's wrist camera, a ZED Mini (124.5 x 30.5 x 26.5 mm) where the simulated rig has it. Its bracket and its cable
are not included."""

HAND = ROBOTIQ_2F85 + WRIST_CAMERA


class Capsules:
    """Some capsules, and where they are.

    Args:
        capsules: at least one.

    Attributes:
        radii: (N,) float64 [m].
        frames: (N,) int, index of each capsule's frame.
    """

    def __init__(self, capsules: Sequence[Capsule]) -> None:
        self.capsules = tuple(capsules)
        self.radii = np.array([capsule.radius for capsule in self.capsules])
        self.frames = np.array([capsule.frame for capsule in self.capsules])
        start = np.array([capsule.start for capsule in self.capsules])
        end = np.array([capsule.end for capsule in self.capsules])
        # Columns: a point, and a direction, which a frame's origin does not move.
        self._axes = np.zeros((len(self.capsules), 4, 2))
        self._axes[:, :3, 0], self._axes[:, 3, 0] = start, 1.0
        self._axes[:, :3, 1] = end - start

    def place(self, frames: np.ndarray) -> np.ndarray:
        """Starts of the axes, and the vectors from there to their ends: (2, 3, ..., N) float64 [m], in the base frame.

        frames: (..., 9, 4, 4), of `kinematics.link_frames`.
        """
        placed = frames.take(self.frames, axis=-3)[..., :3, :] @ self._axes
        return np.ascontiguousarray(np.moveaxis(placed, (-1, -2), (0, 1)))
