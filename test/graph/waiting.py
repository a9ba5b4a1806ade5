"""Waiting for a condition, and what is measured and printed at the end of the run."""

from __future__ import annotations

import time
from collections.abc import Callable

FAULTS: list[dict] = []
"""Rows of the fault table, printed at the end of the run."""

FIGURES: list[str] = []
"""Other lines that are printed there."""


PATIENCE = 180.0
"""How long a thing may take that takes seconds on a machine with nothing else to do [s]: starting, a hold, a motion."""


def wait(
    condition: Callable[[], object], what: str, timeout: float = PATIENCE, check: Callable[[], None] = lambda: None
):
    """Waits for a condition; fails with `what` when it does not come about in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        check()
        assert time.monotonic() < deadline, f"no {what} within {timeout:g} s"
        time.sleep(0.01)
    return value
