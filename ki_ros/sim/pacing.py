"""How fast simulated time passes: in real time where the machine can, else smoothly slower, with nothing left out.

Pure arithmetic on times that the caller supplies; no clock is read here.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Period:
    """Something that happens `rate` times a simulated second, first at `offset` [s], on whole physics steps.

    Raises ValueError unless 0 < rate <= steps_per_second and 0 <= offset.
    """

    name: str
    rate: float
    offset: float
    steps_per_second: int

    def __post_init__(self) -> None:
        if not 0 < self.rate <= self.steps_per_second:
            raise ValueError(f"rate of {self.name} must be in (0, {self.steps_per_second}] Hz, got {self.rate!r}")
        if not (math.isfinite(self.offset) and self.offset >= 0):
            raise ValueError(f"offset of {self.name} must be 0 s or later, got {self.offset!r}")

    def step_of(self, index: int) -> int:
        """Physics step of occurrence number `index`; no error adds up over the occurrences."""
        return round((self.offset + index / self.rate) * self.steps_per_second)

    def next_after(self, step: int) -> int:
        """Index of the first occurrence at a later step than `step`."""
        index = max(math.floor((step / self.steps_per_second - self.offset) * self.rate) - 1, 0)
        while self.step_of(index) <= step:
            index += 1
        return index


class Schedule:
    """When each of several periods is due next, in physics steps after `start`."""

    def __init__(self, periods: list[Period], start: int = 0) -> None:
        self._periods = {period.name: period for period in periods}
        self._next = {name: period.next_after(start) for name, period in self._periods.items()}

    def next_step(self) -> int:
        """The step at which something is due next."""
        return min(period.step_of(self._next[name]) for name, period in self._periods.items())

    def take_due(self, step: int) -> list[str]:
        """Names of what is due at `step` or before, each of which moves on to its next occurrence."""
        due = []
        for name, period in self._periods.items():
            if period.step_of(self._next[name]) <= step:
                due.append(name)
                self._next[name] += 1
        return due


@dataclass(frozen=True)
class PacingOptions:
    """Limits and time constants of `Pacer`.

    Attributes:
        max_factor: highest real-time factor, 1 for real time.
        min_factor: lowest; above 0, for simulated time slows down but never stops.
        headroom: share of the wall-clock time that rendering (or stepping) may take up.
        slow_down: time constant of a falling factor [s].
        speed_up: time constant of a rising factor [s].
        busy_idle: share of the processors' time below which the machine counts as overloaded.
        free_idle: share above which it can carry more; between the two the factor stays as it is.
        busy_floor: factor below which busy processors do not push it: what keeps them busy may be no concern of ours.
        busy_start: factor to begin with, until it is known how busy the processors are.
        slack: lateness that is caught up [s]; what is beyond it is given up.
        window: time over which the achieved factor is measured [s].
    """

    max_factor: float = 1.0
    min_factor: float = 0.005
    headroom: float = 0.9
    slow_down: float = 0.3
    speed_up: float = 1.5
    busy_idle: float = 0.12
    free_idle: float = 0.22
    busy_floor: float = 0.25
    busy_start: float = 0.6
    slack: float = 0.05
    window: float = 3.0


class Pacer:
    """Chooses the real-time factor, and says when (in wall-clock time) a simulated time is due.

    The caller tells it what rendering and stepping cost and how far rendering is behind; `advance` follows each piece
    of simulated time. A load that the machine cannot carry lowers the factor until it can: the factor changes
    continuously, and no pending picture is ever dropped.
    """

    def __init__(self, now: float, options: PacingOptions | None = None) -> None:
        self.options = options or PacingOptions()
        self.factor = self.options.max_factor
        """Real-time factor that is aimed at now."""
        self.limited_by = ""
        """What keeps the factor below its maximum: "rendering", "physics", "the processors", or nothing."""
        self._render_cost: dict[str, tuple[float, float]] = {}
        self._step_load = 0.0
        self._backlog = 0.0
        self._by_processors = math.inf
        self._due = now
        self._now = now
        self._history: deque[tuple[float, float]] = deque([(now, 0.0)])
        self._simulated = 0.0

    def rendered(self, camera: str, seconds: float, rate: float) -> None:
        """A picture of `camera`, of which there are `rate` a simulated second, took `seconds` of wall-clock time."""
        old = self._render_cost.get(camera, (seconds, rate))[0]
        self._render_cost[camera] = (old + 0.2 * (seconds - old), rate)

    def stepped(self, seconds: float, simulated: float) -> None:
        """Stepping (and publishing) `simulated` seconds took `seconds` of wall-clock time."""
        if simulated > 0:
            weight = min(simulated / 0.5, 1.0)
            self._step_load += weight * (seconds / simulated - self._step_load)

    def set_backlog(self, periods: float) -> None:
        """The oldest picture that is not drawn yet is `periods` camera periods of simulated time old."""
        self._backlog = periods

    def begin_busy(self) -> None:
        """Takes the processors for busy until `set_idle` says otherwise, so that a graph can start beside this."""
        self._by_processors = self.factor = min(self.options.busy_start, self.factor)

    def set_idle(self, share: float) -> None:
        """The processors, whoever used them, were idle for this share of the last moments.

        What runs beside the simulation on the same machine and on its clock (the policy, say) must keep up as well. It
        cannot be asked, but without idle time it surely does not. To be called about twice a second.
        """
        options = self.options
        if share < options.busy_idle:
            self._by_processors = max(0.92 * min(self._by_processors, self.factor), options.busy_floor)
        elif share > options.free_idle and self._by_processors < math.inf:
            self._by_processors *= 1.02 + 0.5 * (share - options.free_idle)
            if self._by_processors > options.max_factor:
                self._by_processors = math.inf

    def settle(self) -> None:
        """Takes the factor that the known costs allow at once, for a start that is neither too fast nor too slow."""
        self._adapt(math.inf)

    def advance(self, now: float, simulated: float) -> float:
        """`simulated` more seconds are to be over; returns the wall-clock time at which they should be."""
        elapsed = max(now - self._now, 0.0)
        self._now = now
        self._simulated += simulated
        self._adapt(elapsed)
        self._due = max(self._due, now - self.options.slack) + simulated / self.factor
        self._history.append((now, self._simulated))
        while len(self._history) > 2 and now - self._history[1][0] >= self.options.window:
            self._history.popleft()
        return self._due

    def _adapt(self, elapsed: float) -> None:
        options = self.options
        render_load = sum(seconds * rate for seconds, rate in self._render_cost.values())
        by_rendering = options.headroom / render_load if render_load > 0 else math.inf
        if self._backlog > 1:
            # The estimate was too low; the longer the queue, the slower, until it is short again.
            by_rendering = min(by_rendering, options.max_factor) / self._backlog
        by_stepping = options.headroom / self._step_load if self._step_load > 0 else math.inf
        limits = {"rendering": by_rendering, "physics": by_stepping, "the processors": self._by_processors}
        limit = min(limits, key=limits.__getitem__)
        target = min(limits[limit], options.max_factor)
        self.limited_by = limit if target < options.max_factor else ""
        constant = options.slow_down if target < self.factor else options.speed_up
        self.factor += (target - self.factor) * -math.expm1(-elapsed / constant)
        self.factor = min(max(self.factor, options.min_factor), options.max_factor)

    @property
    def measured(self) -> float | None:
        """Real-time factor that was achieved over the last seconds, None until it is known."""
        (t0, s0), (t1, s1) = self._history[0], self._history[-1]
        if t1 - t0 < 0.9 * self.options.window:
            return None
        return (s1 - s0) / (t1 - t0)


REAL_TIME = 0.97
"""Measured factor from which on it is called real time."""


class PaceReport:
    """Says how simulated time passes when it is first known and whenever that changes materially."""

    def __init__(self, tolerance: float = 0.1) -> None:
        self._tolerance = tolerance
        self._said: float | None = None

    def update(self, measured: float | None, limited_by: str) -> str | None:
        """A sentence for the log, or None when there is nothing new to say."""
        if measured is None or (self._said is not None and not self._differs(measured, self._said)):
            return None
        self._said = measured
        return describe(measured, limited_by)

    def _differs(self, measured: float, said: float) -> bool:
        # Arriving at real time is news however small the step; a flicker about the threshold is not.
        arrived = said < REAL_TIME and measured >= (1 + REAL_TIME) / 2
        return arrived or abs(measured - said) > self._tolerance * said


def describe(measured: float | None, limited_by: str) -> str:
    """For a person: "real time", or "0.43 of real time, limited by rendering"."""
    if measured is None:
        return "the real-time factor is not known yet"
    if REAL_TIME <= measured < 1.05:
        return "real time"
    return f"{measured:.2f} of real time" + (f", limited by {limited_by}" if limited_by else "")
