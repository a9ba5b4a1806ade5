"""The room that the hand must stay in, and the table that the arm must stay above."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ki_ros.execution.capsules import ARM, ROBOTIQ_2F85, WRIST_CAMERA, Capsules
from ki_ros.kinematics import TOOL_OFFSET, along_flange, link_frames

_LONGEST_TOOL = 0.5
_FIRST_LOW_LINK = 3

_ABOVE_TABLE = Capsules([*(c for c in ARM if c.frame >= _FIRST_LOW_LINK), ROBOTIQ_2F85[0], *WRIST_CAMERA])
"""What could touch a table and should not: elbow, forearm, wrist, the gripper's palm, the camera. The fingers may."""


@dataclass(frozen=True, eq=False)
class WorkspaceBox:
    """A box along the axes of the base frame for the hand, and a height for the rest of the arm.

    The tool point and the flange must both be inside; a box is convex, so all of the line between them is then. They
    are points: the gripper reaches 75 mm to either side of that line when it is open, and its fingers end 5 to 18 mm
    behind the tool point. A box that is to keep them off something is smaller by that, or has a longer `tool_offset`.
    The elbow is not kept in the box, which it has to leave for most of the places that a hand reaches.

    Attributes:
        lower, upper: corners, (3,) float64 [m]. NaN or infinity for a side without a limit.
        tool_offset: distance of the tool point in front of the flange, along its z [m], 0 to 0.5.
        table: height that elbow, forearm, wrist, palm and wrist camera stay above, with their whole thickness [m];
            NaN or -infinity for no table.

    Raises:
        ValueError: a corner of another shape, a lower side that is not below the upper one, or an offset out of range.
    """

    lower: np.ndarray
    upper: np.ndarray
    tool_offset: float = TOOL_OFFSET
    table: float = -math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", _corner("lower", self.lower, -math.inf))
        object.__setattr__(self, "upper", _corner("upper", self.upper, math.inf))
        for axis, low, high in zip("xyz", self.lower, self.upper, strict=True):
            if not low < high:
                raise ValueError(f"lower {axis} is {low} m and upper {axis} is {high} m; lower must be less than upper")
        if not 0 <= self.tool_offset <= _LONGEST_TOOL:
            raise ValueError(f"tool_offset is {self.tool_offset} m; expected 0 to {_LONGEST_TOOL}")
        if self.table == math.inf:
            raise ValueError("table is inf m; give the height of the table, or -inf where there is none")

    def outside(self, q: np.ndarray) -> np.ndarray:
        """How far the arm is from where it may be.

        Args:
            q: (..., 7) joint positions [rad].

        Returns:
            (...) float64 [m]: the largest of the distances of the tool point and the flange from the box, and of what
            is below the table; 0 inside. NaN where q is not finite.

        Raises:
            ValueError: q does not end in seven joints.
        """
        frames = link_frames(q)
        points = np.stack([along_flange(frames, 0.0), along_flange(frames, self.tool_offset)], axis=-2)
        beyond = np.maximum(np.maximum(self.lower - points, points - self.upper), 0.0)
        outside = np.sqrt(np.einsum("...i,...i", beyond, beyond)).max(axis=-1)
        if self.table > -math.inf:
            outside = np.maximum(outside, self.table - _lowest(frames))
        return outside


def _corner(name: str, values: np.ndarray, unlimited: float) -> np.ndarray:
    corner = np.array(values, dtype=np.float64)
    if corner.shape != (3,):
        raise ValueError(f"{name} has shape {corner.shape}; expected (3,): x, y and z [m]")
    corner[np.isnan(corner)] = unlimited
    corner.setflags(write=False)
    return corner


def _lowest(frames: np.ndarray) -> np.ndarray:
    """Height of the lowest point of what is to stay above the table, (...) [m]; frames (..., 9, 4, 4)."""
    starts, axes = _ABOVE_TABLE.place(frames)
    heights = starts[2] + np.minimum(axes[2], 0.0) - _ABOVE_TABLE.radii
    return heights.min(axis=-1)
