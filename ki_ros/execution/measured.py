"""The newest joint state, and whether it may be believed."""

from __future__ import annotations

import math

import numpy as np

from ki_ros.rig import NUM_JOINTS, Robot

MAX_OUTSIDE = 0.1
"""How far beyond its position limits an arm may be measured and still be enabled [rad]. A real arm stands at its limit
at worst; more than this is another robot, another unit or another zero."""

_STILL = 0.001
"""How far apart positions of an arm that stands still may be measured [rad]: noise, and the last of its settling."""

_NANOSECONDS = 1_000_000_000


class Measured:
    """Joint positions as they were measured last. Times are nanoseconds of the caller's clock.

    Args:
        robot: whose they are.
        max_age_ns: age with which they are still believed.
        max_future_ns: how far in the future a stamp may lie.

    Attributes:
        positions: (7,) float64 [rad]; None before the first and after `forget`.
        refused: how many were refused.
        refusal: why the newest was refused; empty where it was not.
        most_future_ns: how far in the future of the caller's clock the stamp of one lay, at most; may be set back.
    """

    def __init__(self, robot: Robot, max_age_ns: int, max_future_ns: int) -> None:
        self._robot, self._max_age_ns, self._max_future_ns = robot, max_age_ns, max_future_ns
        self.positions: np.ndarray | None = None
        self.refused = 0
        self.refusal = ""
        self.most_future_ns = 0
        self._measured_ns: float = -math.inf
        self._still = np.zeros(NUM_JOINTS)
        self._still_since_ns: float = -math.inf
        self._moved_ns: float = -math.inf

    def forget(self, until_ns: float = -math.inf) -> None:
        """Nothing is known any more, and what was measured until then is ignored where it comes yet."""
        self.positions = None
        self._measured_ns = until_ns
        self._moved_ns = -math.inf

    def receive(self, now_ns: int, age_ns: int, positions: np.ndarray) -> str | None:
        """Takes positions (7,) [rad] in the robot's order. Returns None, or why they are refused.

        Positions older than those that are here already are ignored.
        """
        positions = np.asarray(positions, dtype=np.float64)
        problem = None
        if positions.shape != (NUM_JOINTS,):
            problem = f"joint state: {positions.size} positions; expected {NUM_JOINTS}"
        elif not np.all(np.isfinite(positions)):
            joint = int(np.argmin(np.isfinite(positions)))
            problem = f"joint state: {self._robot.joint_names[joint]} is {positions[joint]}"
        elif age_ns < -self._max_future_ns:
            problem = f"joint state: stamped {-age_ns / 1e9:.3f} s in the future"
        if problem is not None:
            return self.refuse(problem)
        self.refusal = ""
        self.most_future_ns = max(self.most_future_ns, -age_ns)
        if now_ns - age_ns > self._measured_ns:
            if self.positions is None or np.abs(positions - self._still).max() > _STILL:
                self._still, self._still_since_ns = positions.copy(), now_ns - age_ns
                # The first positions are no motion.
                self._moved_ns = -math.inf if self.positions is None else self._still_since_ns
            self.positions = positions.copy()
            self._measured_ns = now_ns - age_ns
        return None

    def refuse(self, problem: str) -> str:
        """Takes notice of a joint state that is of no use, and why."""
        self.refused += 1
        self.refusal = problem
        return problem

    def still(self, duration_ns: int) -> bool:
        """Whether no joint has moved for so long, by the stamps of what is known."""
        return self.positions is not None and self._measured_ns - self._still_since_ns >= duration_ns

    def moves(self, duration_ns: int) -> bool:
        """Whether some joint has been seen to move within so long before the newest of what is known. Unlike not being
        `still`, this takes more than one joint state."""
        return self._measured_ns - self._moved_ns < duration_ns

    def problem(self, now_ns: int) -> str | None:
        """Why nothing may be done by the positions now; None where they are good."""
        if self.positions is None:
            if self.refusal:
                return f"no joint state of the {self._robot.name} can be used: {self.refusal}"
            return f"no joint state of the {self._robot.name} has come ({self._robot.joint_names[0]}, ...)"
        age_ns = now_ns - self._measured_ns
        if age_ns > self._max_age_ns:
            return (
                f"the newest joint state is {age_ns / _NANOSECONDS:.3f} s old; "
                f"{self._max_age_ns / _NANOSECONDS:g} s are allowed"
            )
        return None

    def far_outside(self) -> str | None:
        """Why these cannot be the positions of this robot; None where they can. Not before there are any."""
        robot = self._robot
        outside = np.maximum(robot.position_lower - self.positions, self.positions - robot.position_upper)
        worst = int(np.argmax(outside))
        if outside[worst] <= MAX_OUTSIDE:
            return None
        return (
            f"{robot.joint_names[worst]} is measured at {self.positions[worst]:.4f} rad, outside of the "
            f"{robot.name}'s limits [{robot.position_lower[worst]}, {robot.position_upper[worst]}]: "
            f"is the parameter robot right?"
        )
