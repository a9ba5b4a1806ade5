"""What a signal does to a command that has processes of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that a command's processes end in order and are waited for."""
    with _handled(signal.SIGTERM, signal.default_int_handler):
        yield


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C takes effect when the context ends, and processes that are started in it never hear of it."""
    held: list[int] = []
    with _handled(signal.SIGINT, lambda number, _: held.append(number)):
        # A process inherits what its parent blocks, and not what its parent does about the rest.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if held:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupted_again(act: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C is a KeyboardInterrupt as ever; each one after it calls `act` and interrupts nothing."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    first = True

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first:
            first = False
            signal.default_int_handler(number, frame)
        act()

    with _handled(signal.SIGINT, handle):
        yield


@contextmanager
def _handled(number: int, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    try:
        before = signal.signal(number, handler)
    except ValueError:
        # Only the main thread can handle signals; elsewhere whoever started the thread must.
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
