"""One training sample as data give it, in the rig's units. Knows no file format, and no network."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ki_ros.rig import ActionSpace, CameraRole


@dataclass(frozen=True)
class Sample:
    """An observation and the actions that followed it. H is the action horizon.

    Attributes:
        views: by camera role, (height, width, 3) uint8 RGB of any size; only the cameras that there are.
        state: (8,) float64, joint positions [rad] and gripper closedness [0 open .. 1 closed].
        instruction: what was to be done.
        actions: (H, 8) float64, as they are commanded in the source's action space. Steps past the episode's end hold
            the last one that there is.
        action_mask: (H,) bool, true at steps of the episode; the first is one.
    """

    views: Mapping[CameraRole, np.ndarray]
    state: np.ndarray
    instruction: str
    actions: np.ndarray
    action_mask: np.ndarray


def sample_index(index: int, count: int) -> int:
    """The index of a sample among so many, as an int. Raises IndexError for one that is not in 0 .. count - 1."""
    index = operator.index(index)
    if not 0 <= index < count:
        raise IndexError(f"index is {index}; samples are 0 to {count - 1}")
    return index


class SampleSource(Protocol):
    """Random access to samples. Index i is the same sample in every process and at all times."""

    @property
    def action_space(self) -> ActionSpace:
        """What the first seven values of an action mean."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do: a run must not be resumed on other data."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def describe(self, index: int) -> str:
        """Where a sample is from, for people: its episode and the step in it."""
        ...
