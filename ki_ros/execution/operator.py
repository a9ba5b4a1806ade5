"""What the operator has said, beside the instruction: stop, hold to run, how fast."""

from __future__ import annotations

from ki_ros.execution.state import Reason


class Operator:
    """Remembers it. Times are nanoseconds of a clock that does not go back without a `forget_time`.

    Stop is latched: nothing but `reset` ends it, and after that somebody has to enable the executor.

    Args:
        hold_to_run_ns: longest time between two confirmations that the operator holds the button; None where motion
            needs no such button.
    """

    def __init__(self, hold_to_run_ns: int | None = None) -> None:
        self._hold_to_run_ns = hold_to_run_ns
        self._held_ns: int | None = None
        self._stopped: Reason | None = None
        self._speed = 1.0

    @property
    def stopped(self) -> Reason | None:
        """Why the arm was stopped and is to be kept at rest; None where it was not, or has been reset."""
        return self._stopped

    def stop(self, reason: Reason) -> None:
        """Latches a stop. The first reason is kept."""
        self._stopped = self._stopped or reason

    def reset(self) -> None:
        """Ends a stop."""
        self._stopped = None

    @property
    def speed(self) -> float:
        """Share of the distance to each target that is gone in its time, 0 to 1."""
        return self._speed

    @speed.setter
    def speed(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"speed is {share}; expected 0 to 1")
        self._speed = share

    def confirm(self, now_ns: int, held: bool) -> None:
        """The button is held, or it is not."""
        self._held_ns = now_ns if held else None

    def forget_time(self) -> None:
        """The clock went back: no confirmation from before counts."""
        self._held_ns = None

    def permits(self, now_ns: int) -> bool:
        """Whether motion needs no button, or it is held."""
        if self._hold_to_run_ns is None:
            return True
        return self._held_ns is not None and now_ns - self._held_ns <= self._hold_to_run_ns
