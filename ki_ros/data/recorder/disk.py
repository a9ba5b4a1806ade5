"""When a disk is too full to go on recording: a warning early, a stop late."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

GIGABYTE = 1_000_000_000


class DiskLevel(IntEnum):
    """How much room there is."""

    OK = 0
    WARN = 1
    STOP = 2


@dataclass(frozen=True)
class DiskState:
    """What is known of the disk.

    Attributes:
        level: whether recording may go on.
        free: bytes that this user may still write.
        seconds_left: until the stop at the present rate [s]; infinite while nothing is written.
        message: the same for a person, with what to do unless all is well.
    """

    level: DiskLevel
    free: int
    seconds_left: float
    message: str


class DiskWatch:
    """Judges the room on the disk of a directory.

    Args:
        directory: where recordings go; it need not exist yet.
        warn_bytes, warn_seconds: warn below either.
        stop_bytes: stop below.
        free_bytes: the bytes that are free for a path; shutil's answer unless a test has its own.
    """

    def __init__(
        self,
        directory: Path,
        *,
        warn_bytes: float,
        warn_seconds: float,
        stop_bytes: float,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        self._directory = directory
        self._warn_bytes = warn_bytes
        self._warn_seconds = warn_seconds
        self._stop_bytes = stop_bytes
        self._free_bytes = free_bytes or (lambda path: shutil.disk_usage(path).free)

    def state(self, bytes_per_second: float) -> DiskState:
        """The state at a rate of writing.

        Raises:
            OSError: the disk cannot be asked.
        """
        place = self._directory.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        free = self._free_bytes(place)
        seconds = max(free - self._stop_bytes, 0) / bytes_per_second if bytes_per_second > 0 else float("inf")
        text = f"{free / GIGABYTE:.1f} GB free on the disk of {self._directory}"
        if free < self._stop_bytes:
            limit = f"recording needs {self._stop_bytes / GIGABYTE:g} GB (stop_free_gb)"
            return DiskState(DiskLevel.STOP, free, 0.0, f"{text}; {limit}: make room, or choose another output")
        if seconds < self._warn_seconds:
            text += f", {seconds / 60:.0f} minutes at {bytes_per_second / 1e6:.0f} MB/s"
        elif free >= self._warn_bytes:
            return DiskState(DiskLevel.OK, free, seconds, text)
        return DiskState(
            DiskLevel.WARN,
            free,
            seconds,
            f"{text}; recording stops at {self._stop_bytes / GIGABYTE:g} GB: make room soon",
        )
