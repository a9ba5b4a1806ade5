"""The last thing before a controller: what of a wanted command the arm may be given."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ki_ros.execution.guard.joints import Joints, Move
from ki_ros.execution.guard.limits import GuardOptions, Limits
from ki_ros.execution.guard.spline import CommandSpline
from ki_ros.execution.state import Intervention
from ki_ros.rig import Robot

_ROUNDING = 1e-9
"""Difference of a position [rad] or a distance [m] below which a change is arithmetic and not an intervention."""

_EARLY = 0.98
"""Share of a period after which a tick may begin a motion."""

_SHARES = np.array([0.75, 0.5, 0.25])
"""Shares of a move that are tried where the whole of it leads behind a barrier."""


class Barrier(Protocol):
    """A region of poses that the arm must not enter."""

    intervention: Intervention

    def depth(self, positions: np.ndarray) -> np.ndarray:
        """How far behind the barrier joint positions (..., 7) [rad] are, (...) [m]; 0 or less in front of it."""


@dataclass(frozen=True)
class Guarded:
    """What may be sent, and what was changed to get there.

    Attributes:
        positions, velocities, accelerations: (7,) float64 [rad, rad/s, rad/s^2].
        interventions: what of the wanted positions was not granted in this tick.
    """

    positions: np.ndarray
    velocities: np.ndarray
    accelerations: np.ndarray
    interventions: tuple[Intervention, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether nothing of what was wanted is left."""
        return Intervention.NON_FINITE in self.interventions


class Guard:
    """Limits a stream of commands. Deterministic: equal calls give equal commands.

    What leaves it is a motion with continuous acceleration that keeps, at every moment and for ever, the limits of
    position, velocity, acceleration and jerk, whatever is wanted: see `Joints` for why, and `CommandSpline` for why
    this holds between the ticks. The command follows one period behind what is decided (`ahead` says when that is due,
    so a caller who knows what it wants then loses no time). What keeps the limits by itself passes unchanged, but for
    the spline's mean of three neighbours.

    A tick that comes late moves the arm by one period's motion, and one that comes early by the time that has passed.
    Motion begins with a tick that is not early. So ticks that come evenly are where the spline's pieces meet, and who
    draws a cubic through two commands, of position and velocity, draws the spline. In the midst of its pieces it could
    exceed an acceleration of the spline by up to 29 %.

    Tracking: no joint is led further from its measured position than `max_tracking_error`, and an arm that is blocked
    is not pushed ever harder. Each joint by itself.

    Barriers: a move after which the arm would be behind one, or come to rest there, or be there half-way between, is
    shortened or refused; one that leads out from behind is not. They are looked at for all joints together.

    Args:
        robot: the arm.
        options: what of its limits may be used.
        period: of the ticks [s].
        barriers: see above.
    """

    def __init__(
        self,
        robot: Robot,
        options: GuardOptions | None = None,
        period: float = 0.01,
        barriers: Sequence[Barrier] = (),
    ) -> None:
        if not 0 < period <= 0.1:
            raise ValueError(f"period is {period} s; expected more than 0 and at most 0.1")
        self.options = options or GuardOptions()
        self.period = period
        self.limits = Limits(robot, self.options)
        self._robot = robot
        self._barriers = tuple(barriers)
        self._joints = Joints(self.limits, period)
        self._spline = CommandSpline(period)
        # So that it can be asked for its way to rest before anybody has said where the arm is.
        self._spline.reset(self._joints.position)

    @property
    def decided(self) -> np.ndarray:
        """The newest position that was decided, (7,) [rad]; the command passes it a period later."""
        return self._joints.position

    @property
    def velocity(self) -> np.ndarray:
        """With which that is passed, (7,) [rad/s]: from the position before."""
        return self._joints.velocity

    def reset(self, positions: np.ndarray) -> None:
        """The arm stands still at positions (7,) [rad], finite. They may lie outside of the limits."""
        self._joints.reset(positions)
        self._spline.reset(self._joints.position)

    def ahead(self, dt: float) -> float:
        """How long after the next tick, which comes `dt` after the last one, that is due what it decides [s]."""
        return (2 - self._phase_after(dt)[0]) * self.period

    def follow(
        self, wanted: np.ndarray, measured: np.ndarray, dt: float, standing: np.ndarray | None = None
    ) -> Guarded:
        """The command of a tick that is to bring the arm to a position.

        Args:
            wanted: joint positions (7,) [rad] at `ahead`; anything at all.
            measured: joint positions (7,) [rad], finite.
            dt: time since the last tick [s].
            standing: joints, (7,) bool, that are to come to rest there; the others are to pass as what is wanted does.
        """
        if np.shape(wanted) != measured.shape or not np.all(np.isfinite(wanted)):
            return self._stopped(dt, (Intervention.NON_FINITE,))
        phase, due = self._phase_after(dt)
        interventions: list[Intervention] = []
        if due:
            within = self._within(wanted, measured, interventions)
            lead = self.options.max_tracking_error
            move = self._joints.towards(within, measured - lead, measured + lead, standing)
            self._name_limits(move, within, interventions)
            self._joints.take(self._in_front(move, interventions))
            self._spline.append(self._joints.position)
        self._spline.phase = phase
        return Guarded(*self._spline.read(), tuple(interventions))

    def stop(self, dt: float) -> Guarded:
        """The command of a tick that is to bring the arm to rest as soon as the limits allow, and keep it there."""
        return self._stopped(dt, ())

    def saved(self) -> tuple[Joints, CommandSpline]:
        """Its state, for `restore`."""
        return copy.copy(self._joints), copy.copy(self._spline)

    def restore(self, saved: tuple[Joints, CommandSpline]) -> None:
        """Everything since that state was saved has not happened."""
        self._joints, self._spline = saved

    def to_rest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What follows if every later tick is a stop: times from the last tick (n,) [s], positions, velocities."""
        return self._spline.onward(self._joints.to_rest())

    def _stopped(self, dt: float, interventions: tuple[Intervention, ...]) -> Guarded:
        phase, due = self._phase_after(dt)
        self._joints.forget()
        if due:
            self._joints.take(self._joints.braked())
            self._spline.append(self._joints.position)
        self._spline.phase = phase
        return Guarded(*self._spline.read(), interventions)

    def _phase_after(self, dt: float) -> tuple[float, bool]:
        """The spline's phase after a tick, and whether that needs a position more."""
        passed = min(max(dt, 0.0) / self.period, 1.0)
        if self._spline.standing:
            return (passed, True) if passed >= _EARLY else (1.0, False)
        phase = self._spline.phase + passed
        return (phase - 1, True) if phase > 1 + _ROUNDING else (phase, False)

    def _within(self, wanted: np.ndarray, measured: np.ndarray, interventions: list[Intervention]) -> np.ndarray:
        here, limits, lead = self._joints.position, self.limits, self.options.max_tracking_error
        within = _between(wanted, np.minimum(limits.lower, here), np.maximum(limits.upper, here))
        if _differ(within, wanted):
            interventions.append(Intervention.POSITION_LIMITED)
        # Where the arm has left by itself, the command does not go after it.
        led = _between(within, np.minimum(measured - lead, here), np.maximum(measured + lead, here))
        if _differ(led, within):
            interventions.append(Intervention.TRACKING_LIMITED)
        return led

    def _name_limits(self, move: Move, wanted: np.ndarray, interventions: list[Intervention]) -> None:
        late = np.abs(move.position - wanted) > _ROUNDING
        if not late.any():
            return
        velocity = (wanted - self._joints.position) / self.period
        slowest, fastest = self._robot.velocity_limits(wanted)
        scale = self.options.velocity_scale
        fast = (velocity > scale * fastest) | (velocity < scale * slowest)
        if (late & fast).any():
            interventions.append(Intervention.VELOCITY_LIMITED)
        if (late & ~fast).any():
            interventions.append(Intervention.ACCELERATION_LIMITED)

    def _in_front(self, move: Move, interventions: list[Intervention]) -> Move:
        """The move, or as much of it as no barrier forbids."""
        crossed = [barrier for barrier in self._barriers if self._crosses(barrier, [move])[0]]
        if not crossed:
            return move
        interventions += [barrier.intervention for barrier in crossed]
        shorter = self._joints.between(move, _SHARES)
        crossing = np.any([self._crosses(barrier, shorter) for barrier in self._barriers], axis=0)
        return next((m for m, c in zip(shorter, crossing, strict=True) if not c), self._joints.braked())

    def _crosses(self, barrier: Barrier, moves: Sequence[Move]) -> np.ndarray:
        points = [self._joints.position]
        for move in moves:
            points += [move.position, (move.position + move.rest) / 2, move.rest]
        depth = barrier.depth(np.stack(points))
        return (depth[1:].reshape(-1, 3) > max(depth[0], 0.0) + _ROUNDING).any(1)


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((np.abs(a - b) > _ROUNDING).any())


def _between(values: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """np.clip, which takes three times as long for seven values."""
    return np.minimum(np.maximum(values, lower), upper)
