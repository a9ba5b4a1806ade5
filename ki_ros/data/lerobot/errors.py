"""What goes wrong with a LeRobot dataset."""

from __future__ import annotations


class LeRobotError(ValueError):
    """A dataset that cannot be written or read; the message names what is wrong, the value and the fix."""
