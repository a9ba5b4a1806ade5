"""Keeps the guard where the arm is, if its controller goes on by itself until the next command comes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ki_ros.execution.guard import Guard, Guarded

AHEAD = 0.75
"""Share of a period by which the controller is told what follows a command before it is there: time for a late tick,
the tick's work, and the message's way."""

_LEAST = 0.2
"""The least of that which must be left when a tick comes. A period more is the most."""

_LATEST = -0.25
"""What must be left when the command is sent: below 0 the controller has begun to brake, but hardly in so short a
time."""


@dataclass(frozen=True)
class Waypoint:
    """Where the arm is led.

    Attributes:
        time: when, from now [s].
        positions, velocities: (7,) float64 [rad, rad/s].
    """

    time: float
    positions: np.ndarray
    velocities: np.ndarray


class Beat:
    """Commands in time for a controller that is sent the way to rest behind each of them, and goes along it.

    The controller is sent each command before it is at the one ahead. A tick that comes a little beside the beat
    changes nothing: commands stay a period apart, and the controller just knows of this one earlier or later. When a
    tick comes too late for that, the controller begins to brake, and the guard is led along the same way: otherwise the
    next command would lie behind the arm. When one comes too early, nothing is decided.

    All in whole periods, at whose ends the pieces of the guard's spline meet. So if the controller is told of all of
    these that are still ahead, it goes along the same cubics.

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
        self._ahead: tuple[Waypoint, ...] = ()
        self._before = self._end, self._ahead
        self._begin = 0.0

    def turn(self, dt: float) -> float:
        """A tick that comes `dt` seconds after the last one; leads the guard to where its motion begins.

        Returns for how long the tick is to lead it [s]: a period, or not at all.
        """
        h = self._h
        self._end = AHEAD * h if self._end is None else self._end - dt
        self._ahead = tuple(replace(each, time=each.time - dt) for each in self._ahead if each.time > dt)
        self._before = self._end, self._ahead
        for _ in range(math.ceil(_LEAST - self._end / h)):
            self.led(h, self._guard.stop(h))
        self._begin = self._end
        return h if self._end < (1 + _LEAST) * h else 0.0

    def led(self, step: float, guarded: Guarded) -> None:
        """The guard has been led there, for so long [s]."""
        self._end += step
        if step > 0:
            self._ahead = *self._ahead, Waypoint(self._end, guarded.positions, guarded.velocities)

    @property
    def decided(self) -> bool:
        """Whether the last tick has led the guard any further."""
        return self._end > self._before[0]

    @property
    def end(self) -> float:
        """When the arm is to be where the guard is, from the last tick [s]."""
        return self._end

    def waypoints(self, late: float) -> tuple[Waypoint, ...] | None:
        """What of the motion up to the command is ahead, so many seconds after the last tick, the command last.

        None where the command comes too late.
        """
        if self._begin - late < _LATEST * self._h:
            return None
        last = self._ahead[-1]
        return (
            *(replace(each, time=each.time - late) for each in self._ahead[:-1] if each.time > late),
            replace(last, time=last.time - late),
        )

    def not_sent(self) -> None:
        """The command of the last tick is not sent: the controller is still about the one before."""
        self._end, self._ahead = self._before
