"""What of a wanted command the arm may be given: limits of position, velocity, acceleration and jerk, and barriers."""

from ki_ros.execution.guard.guard import Barrier, Guard, Guarded
from ki_ros.execution.guard.limits import GuardOptions, Limits

__all__ = ["Barrier", "Guard", "Guarded", "GuardOptions", "Limits"]
