"""What of an arm's limits may be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki_ros.rig import Robot


@dataclass(frozen=True)
class GuardOptions:
    """How much of the arm's own limits may be used.

    Attributes:
        velocity_scale, acceleration_scale, jerk_scale: shares of the arm's limits, (0, 1].
        position_margin: distance that is kept from the position limits [rad].
        max_tracking_error: largest distance of what a joint is led to from its measured position [rad].
    """

    velocity_scale: float = 0.9
    acceleration_scale: float = 0.9
    jerk_scale: float = 0.9
    position_margin: float = 0.05
    max_tracking_error: float = 0.3

    def __post_init__(self) -> None:
        for name in ("velocity_scale", "acceleration_scale", "jerk_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0 and at most 1")
        if not 0 <= self.position_margin <= 0.5:
            raise ValueError(f"position_margin is {self.position_margin} rad; expected 0 to 0.5")
        if not self.max_tracking_error > 0:
            raise ValueError(f"max_tracking_error is {self.max_tracking_error} rad; expected more than 0")


class Limits:
    """Limits of seven joints, (7,) float64 each.

    Attributes:
        lower, upper: positions [rad], the margin taken off.
        velocity, acceleration, jerk: scaled [rad/s, rad/s^2, rad/s^3].
    """

    def __init__(self, robot: Robot, options: GuardOptions) -> None:
        self.lower = robot.position_lower + options.position_margin
        self.upper = robot.position_upper - options.position_margin
        self.velocity = options.velocity_scale * robot.velocity
        self.acceleration = options.acceleration_scale * robot.acceleration
        self.jerk = options.jerk_scale * robot.jerk
        self.sides = _sides(robot, options)


@dataclass(frozen=True)
class Sides:
    """The limits as seen by somebody who goes up: of the upper side, and of the lower one with every sign turned round.

    Attributes:
        sign: (2, 1), 1 and -1.
        position: (2, 7) [rad].
        velocity: (2, 7) [rad/s].
        scale, offset, slope, ceiling: of the curve (v / scale + offset)^2 + slope * position <= ceiling, (2, 7) or
            scalars, for upward velocities v; slope None where there is no curve.
    """

    sign: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    scale: float
    offset: np.ndarray
    slope: np.ndarray | None
    ceiling: np.ndarray


def _sides(robot: Robot, options: GuardOptions) -> Sides:
    margin, curve = options.position_margin, robot.velocity_curve
    none = np.zeros_like(robot.velocity)
    return Sides(
        sign=np.array([[1.0], [-1.0]]),
        position=np.stack((robot.position_upper - margin, -(robot.position_lower + margin))),
        velocity=np.stack((options.velocity_scale * robot.velocity,) * 2),
        scale=options.velocity_scale,
        offset=none if curve is None else curve.offset,
        slope=None if curve is None else curve.slope,
        ceiling=none if curve is None else curve.slope * np.stack((curve.upper_stop, -curve.lower_stop)),
    )
