"""What an episode must offer to be cached, wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ki_ros.rig import CameraRole

OUTCOMES = ("success", "failure", "unknown")
"""How an episode may have ended."""


class SourceEpisode(Protocol):
    """T steps at a constant rate. `ki_ros.data.episodes.Episode` is one.

    Attributes:
        bag: where it was recorded.
        id: its name; episodes of equal ids are never split between training and evaluation.
        instruction: what was to be done.
        outcome: one of `OUTCOMES`.
        robot: the arm, as `ki_ros.rig.robot` knows it.
        rate: steps per second [Hz].
        action_source: what the targets were taken from.
        stamps_ns: (T,) int64, reference times [ns], increasing.
        states: (T, 8) float64, joint positions [rad] and gripper closedness [0 open .. 1 closed].
        targets: (T, 8) float64, positions [rad] and closedness that were commanded for the end of each step.
        segment: (T,) int, not decreasing; no chunk crosses from one segment into another.
        idle: (T,) bool, whether nothing happens at a step.
        ended: whether its last step is known to be its end; what follows is no part of what was to be done.
        damage: what is wrong with the recording; each says it as a string.
    """

    bag: Path
    id: str
    instruction: str
    outcome: str
    robot: str
    rate: float
    action_source: str
    stamps_ns: np.ndarray
    states: np.ndarray
    targets: np.ndarray
    segment: np.ndarray
    idle: np.ndarray
    ended: bool
    damage: Sequence[object]

    def views(self, step: int) -> Mapping[CameraRole, np.ndarray]:
        """The pictures of a step, (H, W, 3) uint8 RGB, of the same cameras and sizes at every step.

        The builder asks for step 0, 1, ... T - 1 in this order, each once.
        """
        ...
