"""What a joint_trajectory_controller is led along, whenever ticks come and however long sending takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline
from stream_checker import TABLE

from ki_ros.execution.adapter import TrajectoryAdapter
from ki_ros.execution.executor import Executor, ExecutorOptions
from ki_ros.execution.state import Reason
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS

START = np.array(RESET_JOINT_POSITIONS)


class Controller:
    """Interpolates by cubics as joint_trajectory_controller does: from where it is led in the cycle in which a
    trajectory has come, to those of its points that are still ahead.

    Args:
        cycle: of its updates [s].
    """

    def __init__(self, cycle: float) -> None:
        self.cycle = cycle
        self.position, self.velocity, self.now = START.copy(), np.zeros(7), 0.0
        self.path: CubicHermiteSpline | None = None
        self.coming: list[tuple[float, float, tuple]] = []
        self.fastest, self.strongest = np.zeros(7), np.zeros(7)

    def take(self, sent: float, arrives: float, points) -> None:
        self.coming.append((np.ceil(arrives / self.cycle) * self.cycle, sent, points))

    def go_to(self, now: float) -> None:
        while self.coming and self.coming[0][0] <= now:
            begins, stamp, points = self.coming.pop(0)
            self._follow(begins)
            points = [point for point in points if stamp + point.time > begins + 1e-9]
            times = [begins, *(stamp + point.time for point in points)]
            positions = [self.position, *(point.positions for point in points)]
            velocities = [self.velocity, *(point.velocities for point in points)]
            self.path = CubicHermiteSpline(times, positions, velocities)
        self._follow(now)

    def _follow(self, now: float) -> None:
        if self.path is not None and now > self.now:
            end = self.path.x[-1]
            pieces = self.path.x[(self.path.x > self.now) & (self.path.x < now)]
            for begin, until in zip((self.now, *pieces), (*pieces, now), strict=True):
                if begin >= end:
                    break
                # A cubic's acceleration is greatest at an end of it.
                at = np.array([begin + 1e-9, min(until, end) - 1e-9])
                self.strongest = np.maximum(self.strongest, np.abs(self.path(at, 2)).max(0))
                self.fastest = np.maximum(self.fastest, np.abs(self.path(np.linspace(*at, 5), 1)).max(0))
            self.position = self.path(min(now, end))
            self.velocity = self.path(now, 1) if now < end else np.zeros(7)
        self.now = now


class Run:
    """A leader that swings all joints, at whose ticks and sending something may be late.

    Args:
        rate: of the commands [Hz].
        late: how late each tick comes, of a clock that goes on evenly [periods].
        held_up: how long after each tick its command is sent [periods].
        way: how long after that it arrives [periods].
    """

    def __init__(self, rate: float, late, held_up, way=None) -> None:
        self.executor = Executor(PANDA, ExecutorOptions(source="teleoperation", command_rate=rate, looks_ahead=True))
        self.controller, self.sent, self.reasons = Controller(min(0.001, 0.1 / rate)), 0, []
        adapter = TrajectoryAdapter(self.executor.guard, stamped=True)
        ns = lambda seconds: round(seconds * 1e9)  # noqa: E731
        self.executor.receive_joint_state(0, 0, START)
        assert self.executor.enable(0) is None
        period, busy_until = 1 / rate, 0.0
        for tick in range(1, len(late)):
            now = round(max((tick + late[tick]) * period, busy_until), 9)
            if late[tick] >= 1 and now >= (tick + 1) * period:
                continue  # A timer whose time has passed twice calls once.
            self.controller.go_to(now)
            swing = 0.4 * np.sin(3 * now) * np.array([1, 0.5, -1, 0.6, 1, -0.5, 1])
            self.executor.receive_command(ns(now), 0, START + swing, None)
            self.executor.receive_joint_state(ns(now), 0, self.controller.position)
            decided = self.executor.tick(ns(now))
            self.reasons.append(decided.reason)
            busy_until = round(now + held_up[tick] * period, 9)
            if decided.positions is None:
                continue
            ahead = self.executor.to_send(ns(busy_until))
            if ahead is not None:
                arrives = busy_until + (0.0 if way is None else way[tick] * period)
                self.controller.take(busy_until, arrives, adapter.points(ahead))
                self.sent += 1


@settings(max_examples=30)
@given(rate=st.sampled_from([50.0, 100.0, 250.0, 1000.0]), seed=st.integers(0, 10**6))
def test_no_lateness_makes_the_controller_exceed_what_the_guard_keeps(rate, seed):
    random = np.random.default_rng(seed)
    late = random.choice([0.0, 0.4, 3.5], 150) * random.random(150)
    run = Run(rate, late, random.uniform(0.01, 0.06, 150), random.uniform(0.01, 0.04, 150))
    assert run.controller.fastest.max() > 0.1
    most = 0.9 * np.array(TABLE["panda"]) * 1.001
    assert np.all(run.controller.strongest <= most[:, 3])
    assert np.all(run.controller.fastest <= most[:, 2])


@pytest.mark.parametrize("rate", [50.0, 100.0, 250.0])
def test_ticks_that_come_a_little_late_change_nothing_of_the_motion(rate):
    random = np.random.default_rng(0)
    ticks = round(3 * rate)
    even = Run(rate, np.zeros(ticks), np.full(ticks, 0.05))
    uneven = Run(rate, random.uniform(0, 0.35, ticks), np.full(ticks, 0.05))
    assert even.sent == uneven.sent == ticks - 1
    np.testing.assert_allclose(uneven.controller.position, even.controller.position, atol=0.01)
    # As much of the acceleration is used as the motion needs, and no more.
    assert np.all(uneven.controller.strongest <= even.controller.strongest * 1.2 + 0.5)


@pytest.mark.parametrize("held_up", [1.1, 2.0, 3.5])
def test_a_command_that_is_held_up_for_long_is_not_sent_and_does_not_count(held_up):
    delays = np.full(300, 0.05)
    delays[[150, 200]] = held_up
    run = Run(100.0, np.zeros(300), delays)
    assert run.sent < 299
    assert np.all(run.controller.strongest <= 0.9 * np.array(TABLE["panda"])[:, 3] * 1.25)
    assert set(run.reasons) == {Reason.NONE}


def test_a_pause_between_a_tick_and_its_command_is_one():
    delays = np.full(300, 0.05)
    delays[150] = 8.0
    run = Run(100.0, np.zeros(300), delays)
    assert Reason.AWAITING_REST in run.reasons
    assert run.reasons[-1] is Reason.NONE
    assert np.all(run.controller.strongest <= 0.9 * np.array(TABLE["panda"])[:, 3] * (1 + 1e-3))
