"""Checks a stream of commands as the arm's own controller would: sampled at 1 kHz, by differences of the positions.

It knows the manufacturer's numbers and the stream; of the guard it knows nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicHermiteSpline

# Joint: (lower, upper, velocity, acceleration, jerk).
TABLE = {
    "panda": [
        (-2.8973, 2.8973, 2.175, 15.0, 7500.0),
        (-1.7628, 1.7628, 2.175, 7.5, 3750.0),
        (-2.8973, 2.8973, 2.175, 10.0, 5000.0),
        (-3.0718, -0.0698, 2.175, 12.5, 6250.0),
        (-2.8973, 2.8973, 2.61, 15.0, 7500.0),
        (-0.0175, 3.7525, 2.61, 20.0, 10000.0),
        (-2.8973, 2.8973, 2.61, 20.0, 10000.0),
    ],
    "fr3": [
        (-2.7437, 2.7437, 2.62, 10.0, 5000.0),
        (-1.7837, 1.7837, 2.62, 10.0, 5000.0),
        (-2.9007, 2.9007, 2.62, 10.0, 5000.0),
        (-3.0421, -0.1518, 2.62, 10.0, 5000.0),
        (-2.8065, 2.8065, 5.26, 10.0, 5000.0),
        (0.5445, 4.5169, 4.18, 10.0, 5000.0),
        (-3.0159, 3.0159, 5.26, 10.0, 5000.0),
    ],
}
# The FR3's velocity limits by position, joint by joint (offset, slope, lower stop, upper stop).
FR3_CURVES = [
    (0.30, 12.0, -2.750100, 2.75010),
    (0.20, 5.17, -1.791800, 1.79180),
    (0.20, 7.0, -2.906500, 2.90650),
    (0.30, 8.0, -3.048100, -0.1458),
    (0.35, 34.0, -2.810100, 2.81010),
    (0.35, 11.0, 0.54092, 4.52050),
    (0.35, 34.0, -3.019600, 3.01960),
]
KINDS = ("position", "velocity", "acceleration", "jerk")
# Of a limit.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Violation:
    """A joint beyond a limit: which, when [s], and by how much of the limit (of position: by how many rad)."""

    kind: str
    joint: int
    seconds: float
    excess: float


def velocity_interval(name: str, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest velocity at positions (n, 7)."""
    top = np.array([row[2] for row in TABLE[name]])
    if name == "panda":
        return np.broadcast_to(-top, q.shape), np.broadcast_to(top, q.shape)
    offset, slope, lower, upper = np.array(FR3_CURVES).T
    highest = -offset + np.sqrt(np.maximum(slope * (upper - q), 0))
    lowest = offset - np.sqrt(np.maximum(slope * (q - lower), 0))
    return np.clip(lowest, -top, 0), np.clip(highest, 0, top)


def at_one_kilohertz(times: np.ndarray, positions: np.ndarray, velocities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stream as joint_trajectory_controller would interpolate it: the cubic through positions and velocities."""
    grid = np.arange(times[0], times[-1] + 1e-9, 1e-3)
    return grid, CubicHermiteSpline(times, positions, velocities)(grid)


def violations(
    name: str, times: np.ndarray, positions: np.ndarray, share: float = 1.0, jerk_share: float = 1.0
) -> list[Violation]:
    """What of a sampled motion (n,) [s], (n, 7) [rad] exceeds the arm's limits; the times need not be even.

    Of velocity and acceleration only a share may be used, and of the jerk another.

    Divided differences are means of the derivatives over the samples that they are made of. So one that exceeds a limit
    is an excess that happened, whatever the motion was between the samples.
    """
    lower, upper, _, acceleration, jerk = np.array(TABLE[name]).T
    found = _exceeding("position", times, np.maximum(lower - positions, positions - upper), 1e-9)
    step = np.diff(times)
    velocity = np.diff(positions, axis=0) / step[:, None]
    # The fastest that is allowed anywhere between the two samples.
    lowest = velocity_interval(name, np.maximum(positions[1:], positions[:-1]))[0]
    highest = velocity_interval(name, np.minimum(positions[1:], positions[:-1]))[1]
    top = np.array([row[2] for row in TABLE[name]])
    excess = np.maximum(velocity - share * highest, share * lowest - velocity) / top
    found += _exceeding("velocity", times[1:], excess, TOLERANCE)
    spans = (times[2:] - times[:-2])[:, None]
    second = 2 * np.diff(velocity, axis=0) / spans
    excess = (np.abs(second) - rounding(times, positions, 2)) / (share * acceleration) - 1
    found += _exceeding("acceleration", times[2:], excess, TOLERANCE)
    third = 3 * np.diff(second, axis=0) / (times[3:] - times[:-3])[:, None]
    excess = (np.abs(third) - rounding(times, positions, 3)) / (jerk_share * jerk) - 1
    return found + _exceeding("jerk", times[3:], excess, TOLERANCE)


def rounding(times: np.ndarray, positions: np.ndarray, order: int) -> np.ndarray:
    """What a unit in the last place of every position makes of their divided differences of an order, (n - order, 7).

    Over 0.1 ms that is 1e-3 rad/s^3, which is not nothing where only a fiftieth of the jerk may be used.
    """
    windows = np.lib.stride_tricks.sliding_window_view(times, order + 1)
    apart = np.abs(windows[:, :, None] - windows[:, None, :]) + np.eye(order + 1)
    weights = math.factorial(order) / apart.prod(-1)
    last_places = np.lib.stride_tricks.sliding_window_view(np.spacing(np.abs(positions)), order + 1, axis=0)
    return np.einsum("nk,njk->nj", weights, last_places)


def _exceeding(kind: str, times: np.ndarray, excess: np.ndarray, tolerance: float) -> list[Violation]:
    return [
        Violation(kind, int(joint), float(times[i]), float(excess[i, joint]))
        for i, joint in np.argwhere(~(excess <= tolerance))
    ]


class Stream:
    """Commands as they leave, each with the time that it had for its motion."""

    def __init__(self, name: str, period: float) -> None:
        self._name, self._period = name, period
        self._even = True
        self._passed = 0.0
        self._times: list[float] = []
        self._positions: list[np.ndarray] = []
        self._velocities: list[np.ndarray] = []

    def add(self, elapsed: float, positions: np.ndarray, velocities: np.ndarray) -> None:
        """A command that came `elapsed` seconds after the last one; more than a period gave it no more time."""
        used = self._passed + min(max(elapsed, 0.0), self._period)
        if self._times and used < 1e-4:
            # Too near to the last one for differences; whether it is right shows at the next.
            self._passed = used
            return
        self._passed = 0.0
        self._even &= not self._times or abs(used - self._period) < 1e-9
        self._times.append(self._times[-1] + used if self._times else 0.0)
        self._positions.append(positions)
        self._velocities.append(velocities)

    def violations(self, share: float = 1.0, jerk_share: float = 1.0) -> list[Violation]:
        """Of the commands; and of the motion between them where they came at even times."""
        if len(self._times) < 4:
            return []
        times, positions = np.array(self._times), np.array(self._positions)
        found = violations(self._name, times, positions, share, jerk_share)
        if self._even:
            finely = at_one_kilohertz(times, positions, np.array(self._velocities))
            found += violations(self._name, *finely, share, jerk_share)
        return found
