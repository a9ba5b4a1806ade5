"""The motion through the guard's positions, for a moment that is not the end of a period."""

from __future__ import annotations

import numpy as np

_BASIS = np.array([[1.0, 4.0, 1.0, 0.0], [-3.0, 0.0, 3.0, 0.0], [3.0, -6.0, 3.0, 0.0], [-1.0, 3.0, -3.0, 1.0]]) / 6

_ROUNDING = 1e-6


class CommandSpline:
    """A uniform cubic B-spline of positions that are a period apart, read one period behind the newest of them.

    It is the polygon through the positions, averaged over a window of two periods (weight: a triangle). Velocity and
    acceleration are means of the polygon's differences in the same way, the jerk is one of them. So whatever convex
    limit the differences keep, at the polygon's positions, the motion keeps at every moment, and it has no step in its
    acceleration.

    Args:
        period: between two positions [s].
    """

    def __init__(self, period: float) -> None:
        self._h = period
        self._points = np.zeros((4, 1))
        self.phase = 1.0

    def reset(self, position: np.ndarray) -> None:
        """Stands still at a position."""
        self._points = np.stack((position,) * 4)
        self.phase = 1.0

    @property
    def standing(self) -> bool:
        """Whether it stands still, and has no motion decided."""
        return bool((self._points == self._points[-1]).all())

    def append(self, position: np.ndarray) -> None:
        """The next position: the present is moved by one period."""
        self._points = np.concatenate((self._points[1:], position[None]))

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position, velocity and acceleration where the phase, (0, 1], lies between the middle two positions."""
        # Of differences, so that what stands still is exact.
        base = self._points[1]
        u, (c0, c1, c2, c3) = self.phase, _BASIS @ (self._points - base)
        position = base + (c0 + u * (c1 + u * (c2 + u * c3)))
        velocity = (c1 + u * (2 * c2 + u * 3 * c3)) / self._h
        return position, velocity, (2 * c2 + 6 * u * c3) / self._h**2

    def onward(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What follows if these positions (n, D) do: times from now [s], 0 first, positions and velocities there."""
        last = positions[-1:] if len(positions) else self._points[-1:]
        points = np.concatenate((self._points, positions, last, last))
        before, at, after = points[1:-2], points[2:-1], points[3:]
        times = (np.arange(len(at)) + 1 - self.phase) * self._h
        middle, slope = at + ((before - at) + (after - at)) / 6, (after - before) / (2 * self._h)
        position, velocity, _ = self.read()
        # At the end of a period the first of them is the present.
        rest = slice(1 if times[0] < _ROUNDING * self._h else 0, None)
        return (
            np.concatenate(([0.0], times[rest])),
            np.concatenate((position[None], middle[rest])),
            np.concatenate((velocity[None], slope[rest])),
        )
