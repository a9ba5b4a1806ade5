"""Waiting for a condition, and the rows of the fault table."""

from __future__ import annotations

import time
from collections.abc import Callable

FAULTS: list[dict] = []
"""Rows of the fault table, printed at the end of the run."""


def wait(condition: Callable[[], object], what: str, timeout: float = 60.0, check: Callable[[], None] = lambda: None):
    """Waits for a condition; fails with `what` when it does not come about in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        check()
        assert time.monotonic() < deadline, f"no {what} within {timeout:g} s"
        time.sleep(0.005)
    return value
