"""Pacing on a clock of the test's own: no time passes here but the one that the test lets pass."""

import itertools
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ki_ros.sim.pacing import Pacer, PaceReport, PacingOptions, Period, Schedule, describe

TICK = 0.005
FRAME_PERIOD = 1 / 15


@dataclass
class Machine:
    """A rendering thread that takes `cost` seconds a frame, and a physics thread that takes `step_cost` a tick."""

    cost: float
    step_cost: float = 0.0
    options: PacingOptions = field(default_factory=PacingOptions)

    def __post_init__(self):
        self.wall = 0.0
        self.sim = 0.0
        self.frames = 0
        self.drawn = 0
        self.free_at = 0.0
        self.queue = []
        self.running = None
        self.pacer = Pacer(0.0, self.options)
        self.pacer.rendered("camera", self.cost, 1 / FRAME_PERIOD)
        self.pacer.settle()
        self.largest_backlog = 0
        self.waits = []

    def run(self, wall_seconds):
        end = self.wall + wall_seconds
        while self.wall < end:
            self.wall += self.step_cost
            self.sim += TICK
            if self.sim >= (self.frames + 1) * FRAME_PERIOD:
                self.frames += 1
                self.queue.append(self.sim)
            self._draw()
            self.largest_backlog = max(self.largest_backlog, len(self.queue))
            oldest = (self.sim - self.queue[0]) / FRAME_PERIOD if self.queue else 0.0
            self.pacer.set_backlog(oldest)
            self.pacer.stepped(self.step_cost, TICK)
            due = self.pacer.advance(self.wall, TICK)
            self.waits.append(max(due - self.wall, 0.0))
            self.wall = max(due, self.wall)

    def _draw(self):
        while self.queue:
            if self.running is None:
                self.running = max(self.free_at, self.wall) + self.cost
            if self.running > self.wall:
                return
            self.pacer.rendered("camera", self.cost, 1 / FRAME_PERIOD)
            self.free_at = self.running
            self.running = None
            self.queue.pop(0)
            self.drawn += 1


@given(cost=st.floats(0.001, 0.05))
@settings(max_examples=30, deadline=None)
def test_a_machine_that_keeps_up_runs_in_real_time(cost):
    machine = Machine(cost)
    machine.run(6.0)
    assert machine.sim == pytest.approx(machine.wall, rel=0.02)
    assert machine.pacer.measured == pytest.approx(1.0, abs=0.02)
    assert machine.pacer.limited_by == ""


@given(cost=st.floats(0.08, 2.0))
@settings(max_examples=30, deadline=None)
def test_slow_rendering_lowers_the_factor_to_what_it_can_carry(cost):
    machine = Machine(cost)
    machine.run(60 * cost + 10)
    possible = FRAME_PERIOD / cost
    assert 0.75 * possible <= machine.pacer.measured <= 1.02 * possible
    assert machine.pacer.limited_by == "rendering"
    assert machine.largest_backlog <= 3


@given(costs=st.lists(st.floats(0.001, 0.6), min_size=2, max_size=6))
@example(costs=[0.001, 0.6])
@settings(max_examples=30, deadline=None)
def test_every_frame_is_drawn_and_the_backlog_stays_small_when_the_cost_changes(costs):
    machine = Machine(costs[0])
    for cost in costs:
        machine.cost = cost
        machine.run(20.0)
        assert len(machine.queue) <= 5
    assert machine.drawn + len(machine.queue) == machine.frames
    # A sudden slowness fills the queue only until the factor has followed it.
    assert machine.largest_backlog <= 20


@given(costs=st.lists(st.floats(0.001, 0.6), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_time_slows_down_but_never_stops(costs):
    machine = Machine(costs[0])
    for cost in costs:
        machine.cost = cost
        machine.run(15.0)
    # The longest pause is that of a few ticks at the lowest factor that these costs ask for, not a frame's cost.
    lowest = 0.9 * FRAME_PERIOD / max(costs)
    assert max(machine.waits) <= 8 * TICK / min(lowest, 1.0)


def test_slow_stepping_is_named_as_the_limit():
    machine = Machine(0.01, step_cost=2 * TICK)
    machine.run(10.0)
    assert machine.pacer.measured == pytest.approx(0.45, abs=0.06)
    assert machine.pacer.limited_by == "physics"


def test_it_returns_to_real_time_when_the_load_goes():
    machine = Machine(0.2)
    machine.run(10.0)
    assert machine.pacer.measured < 0.4
    machine.cost = 0.02
    machine.run(15.0)
    assert machine.pacer.measured == pytest.approx(1.0, abs=0.02)


def test_a_pause_of_the_whole_machine_is_not_caught_up_in_a_burst():
    pacer = Pacer(0.0)
    due = 0.0
    for _ in range(100):
        due = pacer.advance(due, TICK)
    late = due + 5.0
    dues = []
    for _ in range(100):
        late = max(pacer.advance(late, TICK), late)
        dues.append(late)
    # It may catch up its slack, then each tick takes its time again.
    assert dues[-1] - dues[0] >= 99 * TICK - PacingOptions().slack - TICK


def test_the_factor_changes_continuously():
    pacer = Pacer(0.0)
    pacer.rendered("camera", 1.0, 15.0)
    factors, now = [pacer.factor], 0.0
    for _ in range(400):
        now = max(pacer.advance(now, TICK), now)
        factors.append(pacer.factor)
    steps = [a / b for a, b in itertools.pairwise(factors)]
    assert max(steps) < 1.8
    assert factors[-1] == pytest.approx(0.9 / 15, rel=0.1)


@given(
    rate=st.floats(0.5, 1000.0),
    offset=st.floats(0.0, 0.5),
    start=st.integers(0, 5000),
)
def test_a_period_comes_on_time_for_ever(rate, offset, start):
    period = Period("camera", rate, offset, 1000)
    first = period.next_after(start)
    assert period.step_of(first) > start
    assert first == 0 or period.step_of(first - 1) <= start
    for index in (first, first + 1, first + 1000):
        assert abs(period.step_of(index) / 1000 - (offset + index / rate)) <= 0.0005 + 1e-9


def test_a_schedule_meets_every_occurrence_of_each_period_once():
    schedule = Schedule([Period("clock", 200, 0, 1000), Period("camera", 15, 0, 1000), Period("late", 15, 0.03, 1000)])
    counts, step = dict.fromkeys(("clock", "camera", "late"), 0), 0
    while step < 10_000:
        assert schedule.next_step() > step
        step = schedule.next_step()
        for name in schedule.take_due(step):
            counts[name] += 1
    assert counts == {"clock": 2000, "camera": 150, "late": 150}


def test_cameras_without_an_offset_expose_at_the_same_step():
    schedule = Schedule([Period(name, 15, 0, 1000) for name in ("a", "b", "c")])
    for _ in range(100):
        assert schedule.take_due(schedule.next_step()) == ["a", "b", "c"]


@pytest.mark.parametrize("rate", [0.0, -1.0, 1001.0, math.nan])
def test_an_impossible_rate_is_refused_by_name(rate):
    with pytest.raises(ValueError, match="rate of camera must be"):
        Period("camera", rate, 0.0, 1000)


@pytest.mark.parametrize("offset", [-0.1, math.nan, math.inf])
def test_an_impossible_offset_is_refused_by_name(offset):
    with pytest.raises(ValueError, match="offset of camera must be"):
        Period("camera", 15, offset, 1000)


def test_the_pace_is_said_once_and_again_when_it_changes():
    report = PaceReport()
    assert report.update(None, "") is None
    assert report.update(0.43, "rendering") == "0.43 of real time, limited by rendering"
    assert report.update(0.45, "rendering") is None
    assert report.update(0.93, "rendering") == "0.93 of real time, limited by rendering"
    assert report.update(0.999, "") == "real time"
    assert report.update(0.96, "") is None
    assert describe(None, "") == "the real-time factor is not known yet"


def paced(pacer: Pacer, start: float, seconds: float, idle) -> float:
    """Advances a pacer in ticks, looking at the idle share twice a second; returns the time."""
    now, looked = start, start
    while now < start + seconds:
        if now - looked >= 0.5:
            looked = now
            pacer.set_idle(idle(pacer.factor))
        now = max(now, pacer.advance(now, TICK))
    return now


@given(load=st.floats(1.1, 3.0))
@settings(max_examples=20, deadline=None)
def test_simulated_time_slows_down_until_everything_on_the_machine_keeps_up(load):
    """At a factor f the graph needs `load * f` of what the processors have."""
    pacer = Pacer(0.0)
    now = paced(pacer, 0.0, 30.0, lambda factor: max(0.0, 1 - load * factor))
    assert pacer.factor * load <= 1.0
    assert pacer.factor * load >= 0.75, "and no slower than that takes"
    assert pacer.limited_by == "the processors"
    paced(pacer, now, 60.0, lambda _: 0.5)
    assert pacer.factor == pytest.approx(1.0, abs=0.02)
    assert pacer.limited_by == ""


def test_work_that_has_nothing_to_do_with_us_does_not_stop_time():
    pacer = Pacer(0.0)
    paced(pacer, 0.0, 60.0, lambda _: 0.0)
    assert pacer.factor == pytest.approx(pacer.options.busy_floor, rel=0.05)
