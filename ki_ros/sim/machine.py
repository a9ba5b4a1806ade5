"""How busy the machine is, all processes together."""

from __future__ import annotations

from pathlib import Path

_STAT = Path("/proc/stat")

_ENOUGH_TICKS = 20
"""Fewer of the kernel's ticks (10 ms each, per core) than this say nothing about a share."""


class IdleShare:
    """Share of the processors' time in which they had nothing to do, between two calls of `sample`.

    Args:
        stat: the kernel's file, in the format of /proc/stat.
    """

    def __init__(self, stat: Path = _STAT) -> None:
        self._stat = stat
        self._last = self._read()

    def sample(self) -> float | None:
        """The share since the last call that gave one; None where it is not known: too soon, or not Linux."""
        now = self._read()
        if now is None or self._last is None:
            self._last = now
            return None
        idle, total = (new - old for new, old in zip(now, self._last, strict=True))
        if total < _ENOUGH_TICKS:
            return None
        self._last = now
        return min(max(idle / total, 0.0), 1.0)

    def _read(self) -> tuple[int, int] | None:
        """Idle and total ticks since the machine started."""
        try:
            first = self._stat.read_text(encoding="ascii").split("\n", 1)[0].split()
        except OSError:
            return None
        # user nice system idle iowait irq softirq steal; guest time is counted in user time already.
        ticks = [int(field) for field in first[1:9]]
        return ticks[3] + ticks[4], sum(ticks)
