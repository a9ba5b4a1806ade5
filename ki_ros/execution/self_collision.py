"""How far the arm is from touching itself: its links, its gripper and its wrist camera as capsules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ki_ros.execution.capsules import ARM, HAND, Capsule, Capsules
from ki_ros.execution.segments import segment_distance
from ki_ros.kinematics import FLANGE, link_frames

_CAN_MEET = (
    (0, (5, 6, 7, FLANGE)),
    (1, (5, 6, 7, FLANGE)),
    (2, (5, 6, 7, FLANGE)),
    (3, (FLANGE,)),
    (4, (FLANGE,)),
    (5, (FLANGE,)),
)
"""Frames whose parts are compared with which others. Left out are neighbours, whose capsules overlap where the links
only adjoin, and what no joint positions within the limits bring together: base, shoulder, upper arm and elbow with
each other, upper arm and elbow with forearm and wrist, forearm with link 7, link 6 with the hand."""


class SelfCollision:
    """Distances between the parts of an arm. Deterministic and without state.

    Capsules are larger than what they enclose: a clearance is never too large, and may be negative where nothing
    touches.

    Args:
        hand: what is mounted on the flange, as capsules in its frame (or on any other link).
    """

    def __init__(self, hand: Sequence[Capsule] = HAND) -> None:
        self._capsules = Capsules((*ARM, *hand))
        frames = self._capsules.frames
        pairs = [
            (first, second)
            for frame, others in _CAN_MEET
            for first in np.flatnonzero(frames == frame)
            for second in np.flatnonzero(np.isin(frames, others))
        ]
        self._first, self._second = np.array(pairs).T
        self._radii = self._capsules.radii[self._first] + self._capsules.radii[self._second]

    def clearance(self, q: np.ndarray) -> np.ndarray:
        """Smallest distance between parts that could meet.

        Args:
            q: (..., 7) joint positions [rad].

        Returns:
            (...) float64 [m]; negative where capsules overlap. NaN where q is not finite.

        Raises:
            ValueError: q does not end in seven joints.
        """
        return self._distances(q).min(axis=-1)

    def closest(self, q: np.ndarray) -> tuple[str, str]:
        """The two parts that are closest to each other at joint positions q (7,) [rad], by their names."""
        pair = int(self._distances(q).argmin())
        first, second = (self._capsules.capsules[index[pair]] for index in (self._first, self._second))
        return first.part, second.part

    def _distances(self, q: np.ndarray) -> np.ndarray:
        """Between the surfaces of all pairs, (..., P) [m]."""
        placed = self._capsules.place(link_frames(q))
        between_axes = segment_distance(*placed.take(self._first, axis=-1), *placed.take(self._second, axis=-1))
        return between_axes - self._radii
