"""What a signal does to a command that has processes of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that a command's processes end in order and are waited for."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:
        # Only the main thread can handle signals; elsewhere whoever started the thread must.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
