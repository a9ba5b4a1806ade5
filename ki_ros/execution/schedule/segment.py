"""The path to a step's target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """A straight path in joint space: `start` (7,) [rad] at `start_ns`, `target` (7,) [rad] at `end_ns`."""

    start: np.ndarray
    target: np.ndarray
    start_ns: int
    end_ns: int

    def position(self, now_ns: int) -> np.ndarray:
        """Joint positions (7,) [rad] at a time; before and after the segment its ends."""
        share = (now_ns - self.start_ns) / (self.end_ns - self.start_ns)
        if share >= 1:
            return self.target.copy()
        return self.start + max(share, 0.0) * (self.target - self.start)
