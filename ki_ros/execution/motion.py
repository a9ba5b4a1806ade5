"""How the arm goes to a step's target, and on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki_ros.chunk import target_position
from ki_ros.execution.guard import Limits
from ki_ros.execution.path import Path, joining_velocity
from ki_ros.execution.schedule import NANOSECONDS, Step
from ki_ros.rig import NUM_JOINTS, Robot


@dataclass(frozen=True)
class Motion:
    """A path, and the joints, (7,) bool, that cannot keep to it.

    To hurry after it would carry these beyond the target. So they are to go to the target and no further, as fast as
    they may.
    """

    path: Path
    standing: np.ndarray

    def wanted(self, time_ns: int) -> np.ndarray:
        """Joint positions (7,) [rad] to be at."""
        return np.where(self.standing, self.path.target, self.path.position(time_ns))


class Planner:
    """Makes motions of steps.

    Args:
        robot: the arm.
        limits: that it may use.
        velocity_scale: share of its velocity limits.
    """

    def __init__(self, robot: Robot, limits: Limits, velocity_scale: float) -> None:
        self._robot, self._limits, self._velocity_scale = robot, limits, velocity_scale

    def motion(self, step: Step, start: np.ndarray, velocity: np.ndarray, measured: np.ndarray, speed: float) -> Motion:
        """The motion of a step; all arrays (7,).

        Args:
            step: what is to be done.
            start, velocity: of the command when the step begins [rad], [rad/s].
            measured: where the arm will be measured then [rad].
            speed: share of the way to go, 0 to 1.
        """
        target = target_position(step.action, step.action_space, measured)
        duration = (step.end_ns - step.start_ns) / NANOSECONDS
        way = self._slowed(target - start, start, duration, speed)
        end_velocity = np.zeros(NUM_JOINTS)
        if step.following is not None:
            # A relative action counts from where the arm is then: at this step's target, as far as is known.
            onward = target_position(step.following, step.action_space, target) - target
            onward = self._slowed(onward, start, duration, speed)
            end_velocity = joining_velocity(way / duration, onward / duration)
        path = Path(start, start + way, velocity, end_velocity, step.start_ns, step.end_ns)
        return Motion(path, path.acceleration > self._limits.acceleration)

    def _slowed(self, way: np.ndarray, start: np.ndarray, duration: float, speed: float) -> np.ndarray:
        """As much of a way (7,) [rad] as the speed and the arm's velocity limits allow, in its direction."""
        slowest, fastest = self._robot.velocity_limits(start)
        scale = self._velocity_scale * duration
        room, size = scale * np.where(way < 0, -slowest, fastest), np.abs(way)
        # A joint that may not move at all in this direction is stopped by the guard: scaling would stop them all.
        share = np.divide(room, size, out=np.ones_like(size), where=(size > room) & (room > 0))
        return min(speed, float(share.min())) * way
