"""A joint trajectory: points in time, interpolated as `joint_trajectory_controller` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ki_ros.rig import NUM_JOINTS


@dataclass(frozen=True)
class JointTrajectory:
    """Points of a trajectory, in the order of the rig's joints.

    times: (N,) seconds after the trajectory's start, increasing. positions: (N, 7) [rad].
    velocities: (N, 7) [rad/s], or None: segments are then straight lines instead of cubics.

    Raises ValueError, which names the field, for a wrong shape, a value that is not finite or times out of order.
    """

    times: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray | None = None

    def __post_init__(self) -> None:
        times = _finite("time_from_start", self.times)
        if times.ndim != 1 or len(times) == 0:
            raise ValueError(f"joint trajectory: it needs at least one point, got times of shape {times.shape}")
        if times[0] < 0 or np.any(np.diff(times) <= 0):
            raise ValueError(f"joint trajectory: time_from_start must start at 0 or later and increase, got {times}")
        object.__setattr__(self, "times", times)
        for name in ("positions", "velocities"):
            value = getattr(self, name)
            if value is None and name == "velocities":
                continue
            array = _finite(name, value)
            if array.shape != (len(times), NUM_JOINTS):
                raise ValueError(
                    f"joint trajectory: {name} must have shape ({len(times)}, {NUM_JOINTS}), got {array.shape}"
                )
            object.__setattr__(self, name, array)

    @classmethod
    def from_named(
        cls,
        joint_names: Sequence[str],
        rig_names: Sequence[str],
        times: Sequence[float],
        positions: Sequence[Sequence[float]],
        velocities: Sequence[Sequence[float]] | None = None,
    ) -> JointTrajectory:
        """A trajectory whose columns are in the order of `joint_names`, brought into that of `rig_names`.

        Raises ValueError when the joints are not exactly the rig's, or as the class does.
        """
        if sorted(joint_names) != sorted(rig_names):
            raise ValueError(
                f"joint trajectory: joint_names must be {', '.join(rig_names)} in any order, "
                f"got {', '.join(joint_names) or 'none'}"
            )
        order = [list(joint_names).index(name) for name in rig_names]

        def arranged(name: str, rows: Sequence[Sequence[float]]) -> np.ndarray:
            for number, row in enumerate(rows):
                if len(row) != len(order):
                    raise ValueError(
                        f"joint trajectory: {name} of point {number} must have {len(order)} values, got {len(row)}"
                    )
            return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(order))[:, order]

        return cls(
            np.asarray(times, dtype=np.float64),
            arranged("positions", positions),
            None if velocities is None else arranged("velocities", velocities),
        )


class TrajectoryFollower:
    """The desired state of a trajectory that begins where the arm's desired state is now.

    start: time of the trajectory's zero [s]. now: the present time [s], of the same clock. position, velocity: (7,)
    desired state at `now`; the first segment leads from there to the first point that is still ahead.

    Raises ValueError when the whole trajectory lies in the past.
    """

    def __init__(
        self, trajectory: JointTrajectory, start: float, now: float, position: np.ndarray, velocity: np.ndarray
    ) -> None:
        ahead = np.flatnonzero(start + trajectory.times > now)
        if len(ahead) == 0:
            late = now - (start + trajectory.times[-1])
            if late > 0:
                raise ValueError(f"joint trajectory: its last point was {late:.3f} s ago")
            ahead = np.array([len(trajectory.times) - 1])
        first = int(ahead[0])
        self._times = np.concatenate([[now], start + trajectory.times[first:]])
        self._positions = np.concatenate([position[None], trajectory.positions[first:]])
        self._velocities = (
            None if trajectory.velocities is None else np.concatenate([velocity[None], trajectory.velocities[first:]])
        )

    @property
    def end(self) -> float:
        """Time of the last point [s]."""
        return float(self._times[-1])

    def sample(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Desired position [rad] and velocity [rad/s] at `time` [s], (7,) each; after the last point it stands."""
        if time >= self._times[-1]:
            return self._positions[-1], np.zeros(NUM_JOINTS)
        segment = max(int(np.searchsorted(self._times, time, side="right")) - 1, 0)
        duration = self._times[segment + 1] - self._times[segment]
        s = min(max((time - self._times[segment]) / duration, 0.0), 1.0)
        p0, p1 = self._positions[segment], self._positions[segment + 1]
        if self._velocities is None:
            return p0 + s * (p1 - p0), (p1 - p0) / duration
        m0, m1 = self._velocities[segment] * duration, self._velocities[segment + 1] * duration
        position = (
            (2 * s**3 - 3 * s**2 + 1) * p0
            + (s**3 - 2 * s**2 + s) * m0
            + (-2 * s**3 + 3 * s**2) * p1
            + (s**3 - s**2) * m1
        )
        slope = (
            (6 * s**2 - 6 * s) * p0 + (3 * s**2 - 4 * s + 1) * m0 + (-6 * s**2 + 6 * s) * p1 + (3 * s**2 - 2 * s) * m1
        )
        return position, slope / duration


def _finite(name: str, value: object) -> np.ndarray:
    array = np.array(value, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"joint trajectory: {name} has a value that is not finite")
    array.setflags(write=False)
    return array
