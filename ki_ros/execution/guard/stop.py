"""The way to rest: a closed form of it for each joint, and what it touches on the way.

Time goes in periods h. The state of a joint is a position c with its backward differences, the velocity
v = (c - c_before) / h and the acceleration a = (v - v_before) / h; one period later a' = a + h * jerk, v' = v + h a',
c' = c + h v'. A way to rest is a sequence of accelerations: in `turn` equal steps from a to -P, for `hold` periods -P,
in `end` equal steps to 0. `turn` and `end` are fixed, as many as the jerk limit asks for at worst; `hold` is the
smallest number with |P| <= the acceleration limit, and P is such that the velocity ends at 0. So there is one for every
velocity and every acceleration within the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki_ros.execution.guard.limits import Limits, Sides

_ROUNDING = 1e-9
"""Share of a jerk limit that a division may round to."""


@dataclass(frozen=True)
class Ways:
    """Ways to rest from states of the seven joints; arrays of shape (..., 7).

    Attributes:
        acceleration: in the state that they begin in [rad/s^2].
        brake: P, positive against a positive velocity [rad/s^2].
        hold: periods, a whole number as float64.
        distance: from the position at the beginning to that at rest [rad].
    """

    acceleration: np.ndarray
    brake: np.ndarray
    hold: np.ndarray
    distance: np.ndarray


class Stopping:
    """Makes ways to rest, and says whether they keep the limits.

    Args:
        limits: of the arm.
        period: h [s].
    """

    def __init__(self, limits: Limits, period: float) -> None:
        self._sides: Sides = limits.sides
        self._limit = limits.acceleration
        self._h = h = period
        change = limits.jerk * h * (1 + _ROUNDING)
        self.turn = turn = np.maximum(1.0, np.ceil(2 * limits.acceleration / change))
        self.end = end = np.maximum(1.0, np.ceil(limits.acceleration / change))
        # Sums over the steps of the turn: of 1, of their numbers, of their squares.
        self._ones, self._numbers = turn, turn * (turn + 1) / 2
        self._squares = turn * (turn + 1) * (2 * turn + 1) / 6
        self._half = (turn + end) / 2
        self._single = bool((turn == 1).all())
        self._end_weight = (end**2 - 1) / 3
        if self._sides.slope is not None:
            # A parabola through the hold's positions may pass them by this much between two of them.
            between = h * h * limits.acceleration / 8
            self._near_ceiling = self._sides.ceiling - self._sides.slope * between - _ROUNDING

    def ways(self, velocity: np.ndarray, acceleration: np.ndarray) -> Ways:
        """From velocities and accelerations (..., 7); the accelerations are within the limit."""
        if self._single:
            return self._short_ways(velocity, acceleration)
        h, turn = self._h, self.turn
        total = velocity / h + acceleration * ((turn - 1) / 2)
        hold = np.ceil(np.maximum(np.abs(total) / self._limit - self._half, 0.0))
        brake = total / (hold + self._half)
        periods = turn + hold + self.end
        step = -(brake + acceleration) / turn
        weighted = (periods + 1) * (acceleration * self._ones + step * self._numbers)
        weighted -= acceleration * self._numbers + step * self._squares
        weighted -= brake * (hold * (periods + 1 - turn) - hold * (hold + 1) / 2 + self._end_weight)
        return Ways(acceleration, brake, hold, h * periods * velocity + h * h * weighted)

    def _short_ways(self, velocity: np.ndarray, acceleration: np.ndarray) -> Ways:
        """The same with a turn and an end of one step each, as it is up to 250 Hz; to the bit, in half the steps."""
        h = self._h
        total = velocity / h
        hold = np.ceil(np.maximum(np.abs(total) / self._limit - 1.0, 0.0))
        more = hold + 1.0
        brake = total / more
        periods = hold + 2.0
        turned = acceleration - (brake + acceleration)
        weighted = (periods + 1.0) * turned
        weighted -= turned
        weighted -= brake * (hold * periods - hold * more / 2)
        return Ways(acceleration, brake, hold, h * periods * velocity + h * h * weighted)

    def keeps(
        self, before: np.ndarray, position: np.ndarray, velocity: np.ndarray, ways: Ways, bounds: np.ndarray
    ) -> np.ndarray:
        """Whether a step and the way to rest behind it keep every limit of position and velocity, (..., 7) bool.

        Never true where one is exceeded; at the worst false a few periods' motion too early. A joint that is outside
        of its position limits may go inwards.

        Args:
            before: position before the step, (7,) [rad].
            position, velocity: after it, (..., 7). Its acceleration is that of the ways.
            ways: from there.
            bounds: positions not to be passed, (2, 7): the highest, and the lowest with its sign turned round.
        """
        h, sides = self._h, self._sides
        # Axis -2 is the side: on the lower one everything is turned round.
        p, v, a = (_turned(x, sides.sign) for x in (position, velocity, ways.acceleration))
        brake, distance = (_turned(x, sides.sign) for x in (ways.brake, ways.distance))
        # The turn may still raise the velocity; by less where it ends in braking. One of a single step does not.
        peak = v if self._single else v + h * np.maximum(a, 0.0) * ((self.turn - 1) / 2)
        rising = np.maximum(peak, 0.0)
        furthest = np.where(brake >= 0, distance, h * self.turn * rising)
        room = np.maximum(np.minimum(sides.position, bounds), sides.sign * before)
        good = (p + furthest <= room + 1e-12) & (peak <= sides.velocity)
        if sides.slope is not None and not self._far_from_curve(p + furthest, rising):
            good &= (rising == 0) | self._keeps_curve(p, v, a, brake, ways.hold[..., None, :], rising)
        return good.all(-2)

    def _far_from_curve(self, furthest: np.ndarray, rising: np.ndarray) -> bool:
        """Whether all of them keep the limit that depends on the position for sure: even with the highest velocity of
        the way at its furthest position. Most motions do, and then nothing more needs to be looked at."""
        sides = self._sides
        if not self._single:
            return False
        height = (rising / sides.scale + sides.offset) ** 2 + sides.slope * furthest
        return bool(((height <= self._near_ceiling) | (rising == 0)).all())

    def _keeps_curve(
        self, p: np.ndarray, v: np.ndarray, a: np.ndarray, brake: np.ndarray, hold: np.ndarray, rising: np.ndarray
    ) -> np.ndarray:
        """The limit that depends on the position, as `(v / scale + offset)^2 + slope * p <= ceiling` at every step.

        The step to p itself, the turn (as if all of it went at its highest velocity), and the hold, whose steps lie on
        a parabola in their number: the ends and the vertex. The end goes slower than the hold's last step.
        """
        h, sides = self._h, self._sides
        scale, offset, slope = sides.scale, sides.offset, sides.slope

        def height(velocity: np.ndarray, position: np.ndarray) -> np.ndarray:
            return (np.maximum(velocity, 0.0) / scale + offset) ** 2 + slope * position

        highest = height(v, p)
        if self._single:
            change = a - (brake + a)
            v_turn = v + h * change
            p_turn = p + h * v + h * h * (2.0 * change) - h * h * change
            # One step: its end is the hold's begin, and it cannot rise and brake at once.
            highest = np.maximum(highest, height(v_turn, p_turn))
        else:
            turned = -(brake + a) / self.turn
            v_turn = v + h * (a * self._ones + turned * self._numbers)
            p_turn = p + h * self.turn * v
            p_turn = p_turn + h * h * ((self.turn + 1) * (a * self._ones + turned * self._numbers))
            p_turn = p_turn - h * h * (a * self._numbers + turned * self._squares)
            highest = np.maximum(highest, height(rising, p + h * self.turn * rising))
        drop = np.maximum(brake, 0.0) * h
        fast = v_turn / scale + offset
        square = (drop / scale) ** 2 - slope * drop * h / 2
        linear = -2 * fast * drop / scale + slope * h * (v_turn - drop / 2)
        constant = fast**2 + slope * p_turn
        bent = square < 0
        vertex = np.where(bent, -linear / np.where(bent, 2 * square, 1.0), 0.0)
        vertex = np.minimum(np.maximum(vertex, 0.0), hold)
        held = np.maximum(*(constant + number * (linear + number * square) for number in (vertex, hold)))
        highest = np.maximum(highest, np.where(brake > 0, held, highest))
        if not self._single:
            highest = highest + slope * h * (self.end - 1) * np.maximum(v_turn - drop * hold, 0.0)
        return highest <= sides.ceiling


def _turned(values: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return sign * values[..., None, :]
