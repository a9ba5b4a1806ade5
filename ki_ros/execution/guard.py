"""The last thing before a controller: what of a wanted command the arm may be given.

Every limit is expressed per joint as an interval of the displacement that the command may make in one tick, and each of
these intervals contains zero. So they always have a common point, staying where the last command was is always allowed,
and a stop is never refused or slowed down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki_ros.execution.state import Intervention
from ki_ros.rig import Robot

_SMALLEST_UNIT = 1e-12
"""Keeps a division finite [rad]; a displacement of this size is nobody's motion."""

_ROUNDING = 1e-9
"""Displacement [rad] below which a change is arithmetic and not an intervention."""


@dataclass(frozen=True)
class GuardOptions:
    """How much of the arm's own limits may be used.

    Attributes:
        velocity_scale: share of the velocity limits, (0, 1].
        acceleration_scale: share of the acceleration limits, (0, 1].
        position_margin: distance that is kept from the position limits [rad].
        max_tracking_error: largest distance of a joint's command from its measured position [rad].
    """

    velocity_scale: float = 0.9
    acceleration_scale: float = 1.0
    position_margin: float = 0.05
    max_tracking_error: float = 0.3

    def __post_init__(self) -> None:
        for name in ("velocity_scale", "acceleration_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0 and at most 1")
        if not 0 <= self.position_margin <= 0.5:
            raise ValueError(f"position_margin is {self.position_margin} rad; expected 0 to 0.5")
        if not self.max_tracking_error > 0:
            raise ValueError(f"max_tracking_error is {self.max_tracking_error} rad; expected more than 0")


@dataclass(frozen=True)
class Guarded:
    """What may be sent: `positions` (7,) float64 [rad], and what was changed to get there."""

    positions: np.ndarray
    interventions: tuple[Intervention, ...]

    @property
    def refused(self) -> bool:
        """Whether nothing of what was wanted is left, and it is the previous command."""
        return Intervention.NON_FINITE in self.interventions


class Guard:
    """Limits commands. Deterministic and without state: the same arguments give the same result, in any thread.

    Position: a command stays inside the position limits less the margin, and comes near them no faster than the arm can
    brake. An arm that is outside may stay where it is and go inwards, never further out. Each joint by itself, so a
    joint at its limit does not hold up the others.

    Tracking: a command leads the measured position by at most `max_tracking_error`. An arm that is blocked is not
    pushed ever harder. Each joint by itself.

    Velocity: the displacement as a whole is scaled until no joint exceeds its limit (the FR3's depend on the position),
    so the direction in joint space stays the one that the policy asked for.

    Acceleration: speed may grow by at most acceleration * dt, each joint by itself, and may shrink at any rate: whoever
    wants to stop can stop. Reversing counts as a stop and a growth from zero.
    """

    def __init__(self, robot: Robot, options: GuardOptions | None = None) -> None:
        self._robot = robot
        self.options = options or GuardOptions()
        self.lower = robot.position_lower + self.options.position_margin
        self.upper = robot.position_upper - self.options.position_margin
        self._acceleration = self.options.acceleration_scale * robot.acceleration

    def limit(
        self,
        previous: np.ndarray,
        velocity: np.ndarray,
        wanted: np.ndarray,
        measured: np.ndarray,
        dt: float,
    ) -> Guarded:
        """What may be sent `dt` seconds after `previous` was.

        Args:
            previous: the last command (7,) [rad], finite.
            velocity: the velocity with which it was reached (7,) [rad/s], finite.
            wanted: joint positions (7,) [rad]; anything at all.
            measured: joint positions (7,) [rad], finite.
            dt: time that the displacement may use [s], 0 or more. With 0 nothing moves.
        """
        if not (np.all(np.isfinite(wanted)) and np.shape(wanted) == previous.shape and dt >= 0):
            return Guarded(previous.copy(), (Intervention.NON_FINITE,))
        interventions = []
        displacement = wanted - previous

        below = np.maximum(previous - self.lower, 0.0)
        above = np.maximum(self.upper - previous, 0.0)
        limited = np.clip(displacement, -below, above)
        if _differ(displacement, limited):
            interventions.append(Intervention.POSITION_LIMITED)
        displacement = limited

        lead = self.options.max_tracking_error
        limited = np.clip(
            displacement,
            np.minimum(measured - lead - previous, 0.0),
            np.maximum(measured + lead - previous, 0.0),
        )
        if _differ(displacement, limited):
            interventions.append(Intervention.TRACKING_LIMITED)
        displacement = limited

        limited = self._scaled(displacement, previous, dt)
        if _differ(displacement, limited):
            interventions.append(Intervention.VELOCITY_LIMITED)
        displacement = limited

        limited = np.clip(displacement, -self._braked(below, dt), self._braked(above, dt))
        if _differ(displacement, limited) and Intervention.POSITION_LIMITED not in interventions:
            interventions.append(Intervention.POSITION_LIMITED)
        displacement = limited

        growth = self._acceleration * dt
        limited = np.clip(
            displacement,
            (np.minimum(velocity, 0.0) - growth) * dt,
            (np.maximum(velocity, 0.0) + growth) * dt,
        )
        if _differ(displacement, limited):
            interventions.append(Intervention.ACCELERATION_LIMITED)

        # The sum is rounded, and must not land beyond a limit by that.
        positions = np.clip(previous + limited, np.minimum(self.lower, previous), np.maximum(self.upper, previous))
        return Guarded(positions, tuple(interventions))

    def _braked(self, distance: np.ndarray, dt: float) -> np.ndarray:
        """The largest displacement after which the arm, slowing down by one `unit` a tick, stops within `distance`.

        n units, n - 1, ... 1 cover n(n + 1)/2 of them; between two whole numbers the covered distance is linear in n.
        """
        unit = np.maximum(self._acceleration * dt**2, _SMALLEST_UNIT)
        units = distance / unit
        whole = np.floor((np.sqrt(8 * units + 1) - 1) / 2)
        return (whole + (units - whole * (whole + 1) / 2) / (whole + 1)) * unit

    def _scaled(self, displacement: np.ndarray, previous: np.ndarray, dt: float) -> np.ndarray:
        slowest, fastest = self._robot.velocity_limits(previous)
        step = self.options.velocity_scale * dt
        # A joint that may not move at all in this direction is stopped by itself: scaling would stop them all.
        displacement = np.clip(displacement, np.where(slowest < 0, -np.inf, 0.0), np.where(fastest > 0, np.inf, 0.0))
        room = step * np.where(displacement < 0, -slowest, fastest)
        size = np.abs(displacement)
        share = np.divide(room, size, out=np.ones_like(size), where=size > room)
        return displacement * share.min()


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.any(np.abs(a - b) > _ROUNDING))
