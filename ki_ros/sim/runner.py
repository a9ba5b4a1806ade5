"""Runs the simulated rig against the wall clock: one thread for physics and state, one for pictures.

The physics thread steps to the next event (a clock tick, a joint state, a camera's exposure), tells the listener, and
waits until that simulated time is due. At an exposure it hands a snapshot of the state to the rendering thread, which
draws it with data and a graphics context of its own; MuJoCo lets other threads run while it steps and draws.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ki_ros.rig import CameraRole
from ki_ros.sim.machine import IdleShare
from ki_ros.sim.pacing import Pacer, PacingOptions, Period, Schedule
from ki_ros.sim.simulated_rig import NANOSECONDS_PER_STEP, STEPS_PER_SECOND, SimulatedRig

_CLOCK = "clock"

_IDLE_SECONDS = 0.5
"""Wall-clock time between two looks at how busy the machine is [s]."""

_STATE = "joint states"
_WARM_UP = 3
_STOP_SECONDS = 5.0


class Listener(Protocol):
    """Who is told of what the rig does. An exception from a listener ends the run and is reported by `on_failure`."""

    def on_clock(self, time_ns: int) -> None:
        """Simulated time has come to `time_ns`. Called in the physics thread."""

    def on_state(self, rig: SimulatedRig) -> None:
        """A joint state is due; the rig may be read until this returns. Called in the physics thread."""

    def on_image(self, role: CameraRole, time_ns: int, pixels: np.ndarray) -> None:
        """A picture, (H, W, 3) uint8 RGB, of the state at `time_ns`. Called in the rendering thread."""

    def on_failure(self, error: Exception) -> None:
        """The run has ended because of `error`. Called in the thread that failed."""


@dataclass(frozen=True)
class RunnerOptions:
    """Rates [Hz of simulated time] and offsets [s].

    Attributes:
        clock_rate: ticks of the clock.
        state_rate: joint states.
        camera_rate: pictures of each camera.
        camera_offsets: by role, how much later than the others a camera exposes; 0 for a role that is not given.
        pacing: limits of the real-time factor.
    """

    clock_rate: float = 200.0
    state_rate: float = 200.0
    camera_rate: float = 15.0
    camera_offsets: Mapping[CameraRole, float] = field(default_factory=dict)
    pacing: PacingOptions = field(default_factory=PacingOptions)


@dataclass(frozen=True)
class RunnerStatus:
    """How the run is going.

    Attributes:
        time_ns: simulated time [ns].
        factor: real-time factor that is aimed at.
        measured: real-time factor achieved over the last seconds; None when not known yet.
        limited_by: "rendering", "physics", or nothing.
        render_ms: mean wall-clock time of a picture by role [ms].
        images: pictures so far, by role.
        states: joint states so far.
        pending: pictures that are exposed but not drawn yet.
    """

    time_ns: int
    factor: float
    measured: float | None
    limited_by: str
    render_ms: Mapping[str, float]
    images: Mapping[str, int]
    states: int
    pending: int


@dataclass(frozen=True)
class _Exposure:
    step: int
    roles: tuple[CameraRole, ...]
    snapshot: np.ndarray


class Runner:
    """The two threads of a running rig. While it runs nobody else may touch the rig: `submit` reaches it.

    Raises ValueError for a rate or offset that cannot be.
    """

    def __init__(self, rig: SimulatedRig, listener: Listener, options: RunnerOptions | None = None) -> None:
        self._rig = rig
        self._listener = listener
        self._options = options or RunnerOptions()
        self._periods = [
            Period(_CLOCK, self._options.clock_rate, 0.0, STEPS_PER_SECOND),
            Period(_STATE, self._options.state_rate, 0.0, STEPS_PER_SECOND),
            *(
                Period(
                    role.value,
                    self._options.camera_rate,
                    self._options.camera_offsets.get(role, 0.0),
                    STEPS_PER_SECOND,
                )
                for role in CameraRole
            ),
        ]
        self._stop = threading.Event()
        self._ready: Future[None] = Future()
        self._lock = threading.Condition()
        # What follows is guarded by the lock.
        self._exposures: deque[_Exposure] = deque()
        self._requests: deque[tuple[Callable[[SimulatedRig], None], Future[None]]] = deque()
        self._costs: list[tuple[CameraRole, float]] = []
        self._images = {role.value: 0 for role in CameraRole}
        self._render_ms: dict[str, float] = {}
        self._pending = 0
        self._pacer: Pacer | None = None
        self._states = 0
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._render,), name="rendering", daemon=True),
            threading.Thread(target=self._guarded, args=(self._simulate,), name="physics", daemon=True),
        ]

    def start(self, timeout: float = 60.0) -> None:
        """Starts both threads; returns when time has begun to pass, which is once the first pictures have been drawn.

        Raises what the rendering thread raised, for example SimulationUnavailableError, or TimeoutError.
        """
        for thread in self._threads:
            thread.start()
        try:
            self._ready.result(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends both threads and frees the graphics context. It may be called more than once."""
        self._stop.set()
        with self._lock:
            self._lock.notify_all()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(_STOP_SECONDS)
        with self._lock:
            for _, future in self._requests:
                future.cancel()
            self._requests.clear()

    def submit(self, action: Callable[[SimulatedRig], None]) -> Future[None]:
        """Has `action` done to the rig by the physics thread at the next event.

        The future has its exception, if it raised one; an action that comes after the end is cancelled.
        """
        future: Future[None] = Future()
        with self._lock:
            if self._stop.is_set():
                future.cancel()
            else:
                self._requests.append((action, future))
        return future

    def status(self) -> RunnerStatus:
        """How the run is going, from any thread."""
        with self._lock:
            pacer = self._pacer
            return RunnerStatus(
                time_ns=self._rig.time_ns,
                factor=pacer.factor if pacer else 0.0,
                measured=pacer.measured if pacer else None,
                limited_by=pacer.limited_by if pacer else "",
                render_ms=dict(self._render_ms),
                images=dict(self._images),
                states=self._states,
                pending=self._pending,
            )

    # Both threads

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:
            stopping = self._stop.is_set()
            self._stop.set()
            with self._lock:
                self._lock.notify_all()
            if not self._ready.done():
                self._ready.set_exception(error)
            elif not stopping:
                self._listener.on_failure(error)

    # The rendering thread

    def _render(self) -> None:
        renderer = self._rig.make_renderer()
        try:
            self._warm_up(renderer)
            self._ready.set_result(None)
            while (exposure := self._next_exposure()) is not None:
                for role in exposure.roles:
                    if self._stop.is_set():
                        return
                    begin = time.perf_counter()
                    pixels = renderer.render(role, exposure.snapshot)
                    self._listener.on_image(role, exposure.step * NANOSECONDS_PER_STEP, pixels)
                    self._drawn(role, time.perf_counter() - begin)
                with self._lock:
                    # It counts as pending until its last picture is out.
                    self._exposures.popleft()
        finally:
            renderer.close()

    def _warm_up(self, renderer) -> None:
        # The first pictures take many times longer: the driver compiles its programs then.
        snapshot = self._rig.snapshot()
        for _ in range(_WARM_UP):
            for role in CameraRole:
                begin = time.perf_counter()
                renderer.render(role, snapshot)
                cost = time.perf_counter() - begin
                if self._stop.is_set():
                    return
                self._render_ms[role.value] = 1e3 * cost
        self._costs = [(role, self._render_ms[role.value] / 1e3) for role in CameraRole]

    def _next_exposure(self) -> _Exposure | None:
        with self._lock:
            while not self._exposures and not self._stop.is_set():
                self._lock.wait()
            return None if self._stop.is_set() else self._exposures[0]

    def _drawn(self, role: CameraRole, cost: float) -> None:
        with self._lock:
            self._costs.append((role, cost))
            self._render_ms[role.value] += 0.1 * (1e3 * cost - self._render_ms[role.value])
            self._images[role.value] += 1
            self._pending -= 1

    # The physics thread

    def _simulate(self) -> None:
        while not self._ready.done():
            if self._stop.wait(0.005):
                return
        pacer = Pacer(time.perf_counter(), self._options.pacing)
        with self._lock:
            self._take_costs(pacer)
            pacer.settle()
            self._pacer = pacer
        schedule = Schedule(self._periods, self._rig.steps)
        idle = IdleShare()
        pacer.begin_busy()
        idle_due = time.perf_counter() + _IDLE_SECONDS
        busy_since = time.perf_counter()
        while not self._stop.is_set():
            count = schedule.next_step() - self._rig.steps
            self._rig.step_count(count)
            self._tell(schedule.take_due(self._rig.steps))
            self._do_requests()
            simulated = count / STEPS_PER_SECOND
            now = time.perf_counter()
            if now >= idle_due:
                idle_due = now + _IDLE_SECONDS
                if (share := idle.sample()) is not None:
                    pacer.set_idle(share)
            due = self._pace(pacer, now, now - busy_since, simulated)
            # A pause is cut short only by the end, so its length is that of the schedule.
            if due > now:
                self._stop.wait(due - now)
            busy_since = time.perf_counter()

    def _tell(self, due: list[str]) -> None:
        step = self._rig.steps
        roles = tuple(role for role in CameraRole if role.value in due)
        if roles:
            exposure = _Exposure(step, roles, self._rig.snapshot())
            with self._lock:
                self._exposures.append(exposure)
                self._pending += len(roles)
                self._lock.notify_all()
        if _CLOCK in due:
            self._listener.on_clock(self._rig.time_ns)
        if _STATE in due:
            self._listener.on_state(self._rig)
            self._states += 1

    def _do_requests(self) -> None:
        with self._lock:
            requests = list(self._requests)
            self._requests.clear()
        for action, future in requests:
            try:
                action(self._rig)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(None)

    def _take_costs(self, pacer: Pacer) -> None:
        for role, cost in self._costs:
            pacer.rendered(role.value, cost, self._options.camera_rate)
        self._costs.clear()

    def _pace(self, pacer: Pacer, now: float, busy: float, simulated: float) -> float:
        with self._lock:
            self._take_costs(pacer)
            if self._exposures:
                waiting = (self._rig.steps - self._exposures[0].step) / STEPS_PER_SECOND
                pacer.set_backlog(waiting * self._options.camera_rate)
            else:
                pacer.set_backlog(0.0)
            pacer.stepped(busy, simulated)
            return pacer.advance(now, simulated)
