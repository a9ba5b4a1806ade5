"""The path to a step's target, which goes on smoothly into the next one's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NANOSECONDS = 1_000_000_000
_STEEPEST = 3.0
"""An end as steep as this times the mean slope still leaves a cubic monotone (Fritsch & Carlson 1980)."""


@dataclass(frozen=True)
class Path:
    """A cubic in joint space from `start` at `start_ns` to `target` at `end_ns`, (7,) [rad].

    Attributes:
        start_velocity, end_velocity: there, (7,) [rad/s].
    """

    start: np.ndarray
    target: np.ndarray
    start_velocity: np.ndarray
    end_velocity: np.ndarray
    start_ns: int
    end_ns: int

    def position(self, time_ns: int) -> np.ndarray:
        """Joint positions (7,) [rad] at a time; before and after the path its ends."""
        return self._at(time_ns)[0]

    def velocity(self, time_ns: int) -> np.ndarray:
        """Joint velocities (7,) [rad/s] at a time; before and after the path those at its ends."""
        return self._at(time_ns)[1]

    @property
    def acceleration(self) -> np.ndarray:
        """The greatest one on the path, (7,) [rad/s^2], absolute: at one of its ends."""
        duration = (self.end_ns - self.start_ns) / _NANOSECONDS
        way, first, last = self.target - self.start, self.start_velocity * duration, self.end_velocity * duration
        begin, end = 6 * way - 4 * first - 2 * last, 2 * first + 4 * last - 6 * way
        return np.maximum(np.abs(begin), np.abs(end)) / duration**2

    def _at(self, time_ns: int) -> tuple[np.ndarray, np.ndarray]:
        share = min(max((time_ns - self.start_ns) / (self.end_ns - self.start_ns), 0.0), 1.0)
        duration = (self.end_ns - self.start_ns) / _NANOSECONDS
        way = self.target - self.start
        first, last = self.start_velocity * duration, self.end_velocity * duration
        square, cubic = 3 * way - 2 * first - last, first + last - 2 * way
        position = self.start + share * (first + share * (square + share * cubic))
        if share == 1.0:
            position = self.target.copy()
        return position, (first + share * (2 * square + 3 * share * cubic)) / duration


def joining_velocity(slope: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Velocity where two steps meet, (7,) [rad/s], of their mean velocities: the mean, but 0 where they turn round, and
    never so much that one of them would overshoot its ends."""
    mean = (slope + following) / 2
    most = _STEEPEST * np.minimum(np.abs(slope), np.abs(following))
    return np.where(slope * following > 0, np.clip(mean, -most, most), 0.0)
