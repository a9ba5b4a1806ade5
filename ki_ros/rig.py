"""The DROID rig in one place: joints, limits, action spaces, the gripper convention, camera roles.

SI units and radians. Everything else in the package asks this module for a fact about the robot.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np

NUM_JOINTS = 7
STATE_DIM = 8
"""Seven joints and the gripper: the length of a state and of an action."""

CONTROL_HZ = 15.0
"""Rate of DROID's observations and actions [Hz]."""

VELOCITY_TO_DELTA = 0.2
"""Joint displacement of one unit of normalised velocity over one step [rad] (droid, `joint_velocity_to_delta`)."""

RESET_JOINT_POSITIONS = (0.0, -math.pi / 5, 0.0, -4 * math.pi / 5, 0.0, 3 * math.pi / 5, 0.0)
"""Where a DROID episode starts [rad]."""

GRIPPER_JOINT = "robotiq_85_left_knuckle_joint"
GRIPPER_CLOSED_ANGLE = 0.8
"""Angle of the Robotiq 2F-85's knuckle when it is closed [rad]; 0 is open."""

GRIPPER_THRESHOLD = 0.5
"""Closedness above which a binarised gripper action means closed."""


class ActionSpace(str, enum.Enum):
    """What the first seven values of an action mean. The eighth is always the gripper's closedness in [0, 1]."""

    JOINT_VELOCITY = "joint_velocity"
    """DROID's normalised joint velocity: one unit is `VELOCITY_TO_DELTA` rad per step from the measured position."""

    JOINT_POSITION = "joint_position"
    """Absolute joint positions [rad]."""

    @classmethod
    def parse(cls, name: str) -> ActionSpace:
        """The action space of that name. Raises ValueError that lists the names there are."""
        try:
            return cls(name)
        except ValueError:
            raise ValueError(
                f"action_space {name!r} is not known; use one of {', '.join(s.value for s in cls)}"
            ) from None


class CameraRole(str, enum.Enum):
    """Where a camera is mounted. The value names the view in messages, parameters and bags."""

    EXTERIOR_1 = "exterior_1"
    EXTERIOR_2 = "exterior_2"
    WRIST = "wrist"


POLICY_VIEWS = (CameraRole.EXTERIOR_1, CameraRole.WRIST)
"""Cameras that DROID policies read unless told otherwise."""

POLICY_SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""Image slots of pi0.5, in the order in which they enter the backbone."""


def gripper_closedness(knuckle_angle: float) -> float:
    """Closedness in [0, 1] of a knuckle angle [rad]; angles a little outside of the range are clipped."""
    return min(max(knuckle_angle / GRIPPER_CLOSED_ANGLE, 0.0), 1.0)


def gripper_angle(closedness: float) -> float:
    """Knuckle angle [rad] of a closedness in [0, 1]."""
    return closedness * GRIPPER_CLOSED_ANGLE


def _array(*values: float) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class VelocityCurve:
    """Velocity limits that shrink towards the ends of the joints: |v| <= sqrt(slope * distance to the stop) - offset.

    Attributes:
        offset: (7,) [rad/s].
        slope: (7,) [rad/s^2].
        lower_stop, upper_stop: (7,) [rad], a little outside of the position limits.
    """

    offset: np.ndarray
    slope: np.ndarray
    lower_stop: np.ndarray
    upper_stop: np.ndarray

    def limits(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest velocity [rad/s] at joint positions (7,) [rad]."""
        highest = np.sqrt(np.maximum(0.0, self.slope * (self.upper_stop - positions))) - self.offset
        lowest = self.offset - np.sqrt(np.maximum(0.0, self.slope * (positions - self.lower_stop)))
        return np.minimum(0.0, lowest), np.maximum(0.0, highest)


@dataclass(frozen=True)
class Robot:
    """An arm: names and limits of its seven joints.

    Arrays have shape (7,), float64: positions [rad], velocity [rad/s], acceleration [rad/s^2], jerk [rad/s^3],
    effort [N m]. `velocity_curve` is there where the velocity limits depend on the position.
    """

    name: str
    joint_names: tuple[str, ...]
    position_lower: np.ndarray
    position_upper: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray
    effort: np.ndarray
    velocity_curve: VelocityCurve | None = None

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the eight entries of a state: the joints, then the gripper's knuckle."""
        return (*self.joint_names, GRIPPER_JOINT)

    def velocity_limits(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest velocity [rad/s], (7,) each, that the arm accepts at these joint positions [rad]."""
        if self.velocity_curve is None:
            return -self.velocity, self.velocity
        lowest, highest = self.velocity_curve.limits(np.asarray(positions, dtype=np.float64))
        return np.maximum(-self.velocity, lowest), np.minimum(self.velocity, highest)


PANDA = Robot(
    name="panda",
    joint_names=tuple(f"panda_joint{i}" for i in range(1, 8)),
    position_lower=_array(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
    position_upper=_array(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    velocity=_array(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
    acceleration=_array(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
    jerk=_array(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
    effort=_array(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
)

FR3 = Robot(
    name="fr3",
    joint_names=tuple(f"fr3_joint{i}" for i in range(1, 8)),
    position_lower=_array(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
    position_upper=_array(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
    velocity=_array(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
    acceleration=_array(*(10.0,) * 7),
    jerk=_array(*(5000.0,) * 7),
    effort=_array(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    # libfranka `rate_limiting.h`, compute{Upper,Lower}LimitsJointVelocity.
    velocity_curve=VelocityCurve(
        offset=_array(0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35),
        slope=_array(12.0, 5.17, 7.0, 8.0, 34.0, 11.0, 34.0),
        lower_stop=_array(-2.750100, -1.791800, -2.906500, -3.048100, -2.810100, 0.54092, -3.019600),
        upper_stop=_array(2.75010, 1.79180, 2.90650, -0.1458, 2.81010, 4.52050, 3.01960),
    ),
)

ROBOTS = {robot.name: robot for robot in (PANDA, FR3)}


def robot(name: str) -> Robot:
    """The robot of that name. Raises ValueError that lists the names there are."""
    if name not in ROBOTS:
        raise ValueError(f"robot {name!r} is not known; use one of {', '.join(ROBOTS)}")
    return ROBOTS[name]
