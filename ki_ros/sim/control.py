"""What turns commands into the arm's desired position: limits as a real arm's motion generator keeps them."""

from __future__ import annotations

import numpy as np

from ki_ros.rig import NUM_JOINTS, Robot
from ki_ros.sim.trajectory import JointTrajectory, TrajectoryFollower

STIFFNESS = np.array([900.0, 900.0, 700.0, 700.0, 300.0, 220.0, 120.0])
"""Joint stiffness [N m/rad]: about that of a Franka under joint impedance control, several times stiffer than
polymetis' default, so that a position command is reached without an outer loop."""

DAMPING = np.array([60.0, 60.0, 45.0, 45.0, 16.0, 12.0, 7.0])
"""Joint damping [N m s/rad]: no joint overshoots in the poses of a tabletop task."""

LIMIT_MARGIN = 0.006
"""How far inside of its position limits the desired position stays [rad], so that the arm itself stays inside."""


class JointSetpoint:
    """The desired position of the arm, moved towards the command once per physics step.

    It starts at `position` (7,) [rad] and stays there until it is commanded. Whatever is commanded, it stays within the
    robot's position limits (less `LIMIT_MARGIN`) and moves no faster than the robot's velocity limits.
    """

    def __init__(self, robot: Robot, position: np.ndarray, timestep: float) -> None:
        self._lower = robot.position_lower + LIMIT_MARGIN
        self._upper = robot.position_upper - LIMIT_MARGIN
        self._braking = 2 * 0.5 * robot.acceleration
        self._robot = robot
        self._timestep = timestep
        self._target = np.clip(position, self._lower, self._upper)
        self._follower: TrajectoryFollower | None = None
        self._drive: np.ndarray | None = None
        self.position = self._target.copy()
        """Desired position (7,) [rad]."""
        self.velocity = np.zeros(NUM_JOINTS)
        """Velocity of the desired position (7,) [rad/s]."""
        self.feedforward = np.zeros(NUM_JOINTS)
        """Velocity that the controller may feed forward (7,) [rad/s]: a bare position has none."""

    @property
    def settled(self) -> bool:
        """Whether the desired position stands still until the next command."""
        still = not self.velocity.any() and np.array_equal(self.position, self._target)
        return still and self._follower is None and self._drive is None

    def set_target(self, position: np.ndarray) -> None:
        """Heads for a position (7,) [rad]; a trajectory or a velocity in force is given up."""
        self._follower = self._drive = None
        self._target = np.clip(position, self._lower, self._upper)

    def set_velocity(self, velocity: np.ndarray) -> None:
        """Goes on at a velocity (7,) [rad/s] until the next command, or to the limits if none comes."""
        self.set_target(self.position)
        self._drive = velocity if velocity.any() else None

    def follow(self, trajectory: JointTrajectory, start: float, now: float) -> None:
        """Follows a trajectory whose zero is at `start`, from the present desired state at `now` [s].

        Raises ValueError when it lies in the past; what was commanded before then stays in force.
        """
        self._follower = TrajectoryFollower(trajectory, start, now, self.position, self.velocity)
        self._drive = None

    def advance(self, now: float) -> None:
        """One physics step, which ends at `now` [s]."""
        wished = np.zeros(NUM_JOINTS)
        if self._drive is not None:
            wished = self._drive
            self._target = np.clip(self.position + wished * self._timestep, self._lower, self._upper)
        elif self._follower is not None:
            position, wished = self._follower.sample(now)
            self._target = np.clip(position, self._lower, self._upper)
            if now >= self._follower.end:
                self._follower = None
        slowest, fastest = self._robot.velocity_limits(self.position)
        # Towards a position limit it slows down as early as the arm can brake: the arm must not overshoot it.
        slowest = np.maximum(slowest, -np.sqrt(self._braking * (self.position - self._lower)))
        fastest = np.minimum(fastest, np.sqrt(self._braking * (self._upper - self.position)))
        step = np.clip(self._target - self.position, slowest * self._timestep, fastest * self._timestep)
        position = self.position + step
        # Arriving must be exact, or `settled` would wait for the last bit.
        position = np.where(np.abs(self._target - position) < 1e-12, self._target, position)
        self.velocity = (position - self.position) / self._timestep
        self.feedforward = np.clip(wished, slowest, fastest)
        self.position = position
