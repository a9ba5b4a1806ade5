"""Spinning nodes of the test's own process until something has come about."""

from __future__ import annotations

import time
from collections.abc import Callable

from rclpy.executors import Executor


def spin_until(spinner: Executor, condition: Callable[[], object], what: str, patience: float) -> None:
    """Spins until a condition holds; fails with `what` when it does not within `patience` [s]."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        spinner.spin_once(timeout_sec=0.05)
