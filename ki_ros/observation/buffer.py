"""The messages of one stream, in order of their stamps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

NANOSECONDS = 1_000_000_000


class Entry(NamedTuple):
    """A message and the time it is stamped with [ns]."""

    stamp_ns: int
    payload: object


class StreamBuffer(Generic[T]):
    """The newest messages of a stream; bounded, and sorted by stamp whatever the order of arrival.

    Of messages with the same stamp the last to arrive is kept. A stamp that lies more than `step_back_ns` before the
    newest one means that the source's clock was set back (a simulator that was reset, a driver that was restarted):
    what is stamped later than it belongs to a time that has not come, and is dropped. Not thread-safe.

    Args:
        capacity: entries kept; when there are more, the oldest goes.
        step_back_ns: disorder up to this is taken for messages that overtook each other [ns].

    Attributes:
        steps_back: how often the source's clock was set back.
    """

    def __init__(self, capacity: int = 16, step_back_ns: int = NANOSECONDS) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; give 1 or more")
        self.capacity = capacity
        self.step_back_ns = step_back_ns
        self.steps_back = 0
        # Two parallel lists, so that bisection compares integers only.
        self._stamps: list[int] = []
        self._payloads: list[T] = []

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def oldest_ns(self) -> int | None:
        """The earliest stamp [ns], None when empty."""
        return self._stamps[0] if self._stamps else None

    @property
    def newest_ns(self) -> int | None:
        """The latest stamp [ns], None when empty."""
        return self._stamps[-1] if self._stamps else None

    def add(self, stamp_ns: int, payload: T) -> None:
        """Takes a message in."""
        if self._stamps and stamp_ns < self._stamps[-1] - self.step_back_ns:
            self.steps_back += 1
            self.drop_after(stamp_ns)
        at = bisect_left(self._stamps, stamp_ns)
        if at < len(self._stamps) and self._stamps[at] == stamp_ns:
            self._payloads[at] = payload
            return
        self._stamps.insert(at, stamp_ns)
        self._payloads.insert(at, payload)
        if len(self._stamps) > self.capacity:
            del self._stamps[0], self._payloads[0]

    def at(self, reference_ns: int) -> Entry | None:
        """The newest entry stamped at or before a time [ns]; None when there is none."""
        i = bisect_right(self._stamps, reference_ns) - 1
        return Entry(self._stamps[i], self._payloads[i]) if i >= 0 else None

    def drop_before(self, stamp_ns: int) -> None:
        """Drops what is stamped before a time [ns]."""
        i = bisect_left(self._stamps, stamp_ns)
        del self._stamps[:i], self._payloads[:i]

    def drop_after(self, stamp_ns: int) -> None:
        """Drops what is stamped after a time [ns]."""
        i = bisect_right(self._stamps, stamp_ns)
        del self._stamps[i:], self._payloads[i:]
