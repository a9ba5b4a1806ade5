"""Keeps the guard where the arm is, if its controller goes on by itself until the next command comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ki_ros.execution.guard import Guard, Guarded

_LEAST = 0.003, 0.2
"""The least of that which must be left when a tick comes, the greater of seconds and a share of a period: time for the
tick's work and the message's way. A period more is the most."""

_LATE = 0.55
"""Share of a period by which a tick may come late besides."""

_START = 0.1
"""How long the controller has to lead the arm to where it stands [s], before motion may begin: what it holds may be a
little beside where the arm is measured."""

_PASSED = 2
"""How many waypoints that the arm has passed the controller is told too. The last one would do for a controller whose
clock is not behind."""


@dataclass(frozen=True)
class Waypoint:
    """Where the arm is led.

    Attributes:
        time: when, from now [s]; below 0 where it was led.
        positions, velocities: (7,) float64 [rad, rad/s].
    """

    time: float
    positions: np.ndarray
    velocities: np.ndarray


def ahead(period: float) -> float:
    """How long before the arm is at a command the controller is told what follows, for commands a period apart [s]."""
    return _least(period) + _LATE * period


def _least(period: float) -> float:
    return max(_LEAST[0], _LEAST[1] * period)


class Beat:
    """Commands in time for a controller that is sent the way to rest behind each of them, and goes along it.

    The controller is sent each command before it is at the one ahead. A tick that comes a little beside the beat
    changes nothing: commands stay a period apart, and the controller just knows of this one earlier or later. When a
    tick comes too late for that, the controller begins to brake, and the guard is led along the same way: otherwise the
    next command would lie behind the arm. When one comes too early, nothing is decided.

    All in whole periods, at whose ends the pieces of the guard's spline meet. So if the controller is told of all of
    these that are still ahead, it goes along the same cubics. It is told of the last ones behind as well: the piece
    that the arm is in is then known from its beginning, and the controller finds its place there by the time alone.
    joint_trajectory_controller finds it in no other way: where a trajectory begins ahead of it, it takes the state that
    it commanded last for a cycle older than it is (from version 4.16 on), and goes two cycles' way in one.

    Args:
        guard: that the commands come from.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard, self._h = guard, guard.period
        self.restart()

    def restart(self) -> None:
        """The arm stands."""
        # When the last of the waypoints is passed, from the last tick [s]; these themselves, and both before that tick.
        self._end: float | None = None
        self._way: tuple[Waypoint, ...] = ()
        self._before = self._end, self._way
        self._begin = 0.0

    def turn(self, dt: float) -> float:
        """A tick that comes `dt` seconds after the last one; leads the guard to where its motion begins.

        Returns for how long the tick is to lead it [s]: a period, or not at all.
        """
        h, least = self._h, _least(self._h)
        starts = self._end is None
        self._end = ahead(h) + h * max(math.ceil((_START - ahead(h)) / h) - 1, 0) if starts else self._end - dt
        self._way = _later(self._way, dt)
        self._before = self._end, self._way
        # A motion begins at a waypoint that the controller has been led to before.
        for _ in range(1 if starts else math.ceil((least - self._end) / h)):
            self.led(h, self._guard.stop(h))
        self._begin = self._end
        return h if self._end < least + h else 0.0

    def led(self, step: float, guarded: Guarded) -> None:
        """The guard has been led there, for so long [s]."""
        self._end += step
        if step > 0:
            self._way = *self._way, Waypoint(self._end, guarded.positions, guarded.velocities)

    @property
    def decided(self) -> bool:
        """Whether the last tick has led the guard any further."""
        return self._end > self._before[0]

    @property
    def end(self) -> float:
        """When the arm is to be where the guard is, from the last tick [s]."""
        return self._end

    def waypoints(self, late: float) -> tuple[Waypoint, ...] | None:
        """The motion up to the command, so many seconds after the last tick: the last waypoints behind, all ahead.

        None where the command comes too late: the controller has begun to brake.
        """
        if self._begin < late:
            return None
        *before, command = self._way
        return *_later(before, late), replace(command, time=command.time - late)

    def not_sent(self) -> None:
        """The command of the last tick is not sent: the controller is still about the one before."""
        self._end, self._way = self._before


def _later(way: Sequence[Waypoint], seconds: float) -> tuple[Waypoint, ...]:
    """The way so many seconds later, without those waypoints that were passed long ago."""
    passed = sum(each.time <= seconds for each in way)
    return tuple(replace(each, time=each.time - seconds) for each in way[max(passed - _PASSED, 0) :])
