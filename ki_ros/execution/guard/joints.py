"""Seven joints that follow wanted positions within their limits of position, velocity, acceleration and jerk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki_ros.execution.guard.limits import Limits
from ki_ros.execution.guard.stop import Stopping, Ways

_ROUNDING = 1e-9
"""Share of a limit that differences of positions are rounded by."""

_KEEPS_UP = 1e-6
"""Share of an acceleration limit below which a joint is as fast as what it follows."""

_CHOICES = np.linspace(0.0, 1.0, 17)[:, None]
"""Shares of the range of accelerations that are tried at once, twice: the second time between two neighbours."""


@dataclass(frozen=True)
class Move:
    """A step that may be taken; arrays (7,) float64.

    Attributes:
        position, velocity, acceleration: after it [rad, rad/s, rad/s^2].
        way: to rest from there, of the joints that do not keep on.
        keeps_on: bool, joints that take the next step of the way to rest that they are on.
        rest: where the joints stand when nothing more is wanted [rad].
        exact: bool, joints that have come to the position that was wanted.
    """

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    way: Ways
    keeps_on: np.ndarray
    rest: np.ndarray
    exact: np.ndarray


class Joints:
    """Positions at the ends of equal periods, whose backward differences keep the limits. Deterministic.

    Invariant: from the present state there is a way to rest that keeps every limit, and it is at hand. A move is
    offered only if there is such a way from behind it too; otherwise the joint takes the next step of the way that it
    has. So the limits hold for ever, whatever is wanted, and a stop is always possible.

    A wanted position that can be reached within the limits, and left again with the velocity at which the wanted
    positions move, is reached exactly and without delay. Otherwise the joint goes so that it comes to the wanted
    position and velocity together, as soon as the limits allow.

    Args:
        limits: of the arm.
        period: time from a position to the next [s].
    """

    def __init__(self, limits: Limits, period: float) -> None:
        self._limits, self._h = limits, period
        self._bounds = limits.sides.position
        self._most = limits.acceleration * (1 + _ROUNDING)
        self._change = limits.jerk * period * (1 + _ROUNDING)
        self._stopping = Stopping(limits, period)
        self.reset(np.zeros_like(limits.velocity))

    def reset(self, position: np.ndarray) -> None:
        """At rest at a position (7,) [rad], which may lie outside of the limits."""
        self.position = np.array(position, dtype=np.float64)
        self.velocity = np.zeros_like(self.position)
        self.acceleration = np.zeros_like(self.position)
        self.rest = self.position
        self._wanted: np.ndarray | None = None
        self._way = self._stopping.ways(self.velocity, self.acceleration)
        self._steps = np.zeros_like(self.position)

    def take(self, move: Move) -> None:
        """Makes a move that was offered since the last one."""
        on = move.keeps_on
        self._way = _merged_ways(on, self._way, move.way) if on.any() else move.way
        self._steps = np.where(on, self._steps + 1, 0.0)
        self.position, self.velocity, self.acceleration = move.position, move.velocity, move.acceleration
        self.rest = move.rest

    def braked(self) -> Move:
        """The next step on the way to rest; at rest, none."""
        acceleration, moving = self._on_the_way(self._steps + 1)
        velocity = np.where(moving, self.velocity + self._h * acceleration, 0.0)
        every = np.ones(len(velocity), dtype=bool)
        return Move(self.position + self._h * velocity, velocity, acceleration, self._way, every, self.rest, ~every)

    def forget(self) -> None:
        """The next wanted position follows no other."""
        self._wanted = None

    def to_rest(self) -> np.ndarray:
        """Positions (n, 7) [rad] of the steps from here to rest, all of them; n is 0 at rest."""
        left = int((self._way.hold + self._stopping.turn + self._stopping.end - self._steps).max())
        acceleration, moving = self._on_the_way(self._steps + np.arange(1, left + 1)[:, None])
        velocity = np.where(moving, self.velocity + self._h * acceleration.cumsum(0), 0.0)
        return self.position + self._h * velocity.cumsum(0)

    def _on_the_way(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Acceleration of steps of the way to rest, and whether the joint still moves behind them; (..., 7)."""
        way, turn, end = self._way, self._stopping.turn, self._stopping.end
        behind = number - turn - way.hold
        acceleration = np.where(
            number <= turn,
            way.acceleration - (way.brake + way.acceleration) / turn * number,
            np.where(behind <= 0, -way.brake, -way.brake * (1 - behind / end)),
        )
        moving = behind < end
        return np.where(moving, acceleration, 0.0), moving

    def towards(
        self, wanted: np.ndarray, lower: np.ndarray, upper: np.ndarray, standing: np.ndarray | None = None
    ) -> Move:
        """The best move towards wanted positions (7,) [rad], finite.

        They count as moving as fast as they did from the last, but for joints that are `standing`, (7,) bool: what is
        wanted of these stays where it is.

        No move is begun that leads beyond `lower` or `upper`, (7,) [rad], which may change from call to call; a joint
        that already is or cannot stop in time does not go further than it must.
        """
        self._bounds = np.stack((upper, -lower))
        pace = self._pace(wanted)
        if standing is not None:
            pace = np.where(standing, 0.0, pace)
        self._wanted = wanted
        h, most, change = self._h, self._most, self._change
        velocity = (wanted - self.position) / h
        acceleration = (velocity - self.velocity) / h
        # The brake that the joint needs behind it, to be as fast as what it follows; none where it keeps up with it.
        landing = (velocity - pace) / h
        lands = (np.abs(landing) <= most) & (np.abs(landing + acceleration) <= change)
        exact = (np.abs(acceleration) <= most) & (np.abs(acceleration - self.acceleration) <= change)
        exact &= lands | (np.abs(landing) <= _KEEPS_UP * most)
        acceleration = np.minimum(np.maximum(acceleration, -most), most)
        way = self._stopping.ways(velocity, acceleration)
        exact &= self._stopping.keeps(self.position, wanted, velocity, way, self._bounds)
        if exact.all():
            return Move(wanted, velocity, acceleration, way, ~exact, wanted + way.distance, exact)
        best = self._best(wanted, pace)
        if not exact.any():
            return best
        return self._merged(exact, self._move(wanted, velocity, acceleration, way, exact), best)

    def between(self, move: Move, shares: np.ndarray) -> list[Move]:
        """Moves between the step on the way to rest and a move that was offered; a share of 1 is the latter."""
        braked = self.braked()
        change = shares[:, None] * (move.acceleration - braked.acceleration)
        accelerations, velocities, positions, ways, good = self._tried(braked.acceleration + change)
        return [
            self._merged(
                good[i],
                self._move(positions[i], velocities[i], accelerations[i], _row(ways, i), np.zeros_like(good[i])),
                braked,
            )
            for i in range(len(shares))
        ]

    def _pace(self, wanted: np.ndarray) -> np.ndarray:
        """Velocity of the wanted positions; 0 for a jump, which is no motion."""
        if self._wanted is None:
            return np.zeros_like(wanted)
        pace = (wanted - self._wanted) / self._h
        return np.where(np.abs(pace) <= self._limits.velocity, pace, 0.0)

    def _best(self, wanted: np.ndarray, pace: np.ndarray) -> Move:
        """Of all accelerations, that by which the joint meets the wanted position with its velocity, or the next."""
        limits, change = self._limits, self._limits.jerk * self._h
        low = np.maximum(-limits.acceleration, self.acceleration - change)
        high = np.minimum(limits.acceleration, self.acceleration + change)
        for last in (False, True):
            tried, velocities, positions, ways, good = self._tried(low + (high - low) * _CHOICES)
            miss = positions - wanted + self._stopping.ways(velocities - pace, tried).distance
            below = good & (miss <= 0)
            # The highest that does not overshoot; where all do, the lowest.
            any_below = below.any(0)
            index = np.where(any_below, len(tried) - 1 - below[::-1].argmax(0), good.argmax(0))
            joints = np.arange(tried.shape[1])
            if not last:
                other = np.minimum(np.maximum(np.where(any_below, index + 1, index - 1), 0), len(tried) - 1)
                ends = tried[index, joints], tried[other, joints]
                low, high = np.minimum(*ends), np.maximum(*ends)
        chosen = self._move(
            positions[index, joints],
            velocities[index, joints],
            tried[index, joints],
            Ways(*(part[index, joints] for part in (tried, ways.brake, ways.hold, ways.distance))),
            np.zeros(len(joints), dtype=bool),
        )
        keeps = good[index, joints]
        return chosen if keeps.all() else self._merged(keeps, chosen, self.braked())

    def _tried(self, accelerations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Ways, np.ndarray]:
        """Of accelerations (n, 7): themselves, velocities, positions, ways to rest, whether these keep the limits."""
        velocities = self.velocity + self._h * accelerations
        positions = self.position + self._h * velocities
        ways = self._stopping.ways(velocities, accelerations)
        return (
            accelerations,
            velocities,
            positions,
            ways,
            self._stopping.keeps(self.position, positions, velocities, ways, self._bounds),
        )

    def _move(
        self, position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray, way: Ways, exact: np.ndarray
    ) -> Move:
        none = np.zeros(len(position), dtype=bool)
        return Move(position, velocity, acceleration, way, none, position + way.distance, exact)

    def _merged(self, first: np.ndarray, one: Move, other: Move) -> Move:
        """`one` of the joints `first`, `other` of the rest."""
        return Move(
            np.where(first, one.position, other.position),
            np.where(first, one.velocity, other.velocity),
            np.where(first, one.acceleration, other.acceleration),
            _merged_ways(first, one.way, other.way),
            np.where(first, one.keeps_on, other.keeps_on),
            np.where(first, one.rest, other.rest),
            np.where(first, one.exact, other.exact),
        )


def _merged_ways(first: np.ndarray, one: Ways, other: Ways) -> Ways:
    return Ways(
        np.where(first, one.acceleration, other.acceleration),
        np.where(first, one.brake, other.brake),
        np.where(first, one.hold, other.hold),
        np.where(first, one.distance, other.distance),
    )


def _row(ways: Ways, i: int) -> Ways:
    return Ways(ways.acceleration[i], ways.brake[i], ways.hold[i], ways.distance[i])
