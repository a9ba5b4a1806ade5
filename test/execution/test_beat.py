"""What a joint_trajectory_controller is led along, whenever ticks come and however long sending takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_checker import TABLE

from ki_ros.execution.adapter import TrajectoryAdapter
from ki_ros.execution.executor import Executor, ExecutorOptions
from ki_ros.execution.state import Reason
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS

START = np.array(RESET_JOINT_POSITIONS)


class Controller:
    """What joint_trajectory_controller does on Jazzy, cycle by cycle.

    It takes the newest trajectory that has come, and commands where that leads a cycle from now. Where all of a
    trajectory's points are ahead, it goes to the first by a cubic from the state that it commanded last, which it takes
    for that of its last cycle: a cycle too early.

    Args:
        cycle: of its updates [s].
        ahead: how far its clock is ahead of the executor's [s].
    """

    def __init__(self, cycle: float, ahead: float = 0.0) -> None:
        self.cycle, self.ahead = cycle, ahead
        self.coming: list[tuple[float, float, tuple]] = []
        self.commanded = [START]
        self._cycles = 0
        self._last: tuple[float, np.ndarray, np.ndarray] = (ahead, START, np.zeros(7))
        self._way: list[tuple[float, np.ndarray, np.ndarray]] = []

    @property
    def position(self) -> np.ndarray:
        return self.commanded[-1]

    @property
    def fastest(self) -> np.ndarray:
        return np.abs(np.diff(self.commanded, axis=0)).max(0) / self.cycle

    @property
    def strongest(self) -> np.ndarray:
        return np.abs(np.diff(self.commanded, 2, axis=0)).max(0) / self.cycle**2

    def take(self, sent: float, arrives: float, points) -> None:
        self.coming.append((arrives, sent, points))

    def go_to(self, now: float) -> None:
        while (self._cycles + 1) * self.cycle <= now + 1e-9:
            self._cycles += 1
            self._update(self._cycles * self.cycle)

    def _update(self, now: float) -> None:
        while self.coming and self.coming[0][0] <= now:
            _, sent, points = self.coming.pop(0)
            self._way = [(sent + point.time, point.positions, point.velocities) for point in points]
            if self._way[0][0] > now + self.ahead:
                self._way.insert(0, self._last)
        if self._way:
            self._last = (now + self.ahead, *self._sample(now + self.ahead + self.cycle))
            self.commanded.append(self._last[1])

    def _sample(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        after = sum(point[0] <= time for point in self._way)
        if after == len(self._way):
            return self._way[-1][1], np.zeros(7)
        (begin, p0, v0), (end, p1, v1) = self._way[after - 1 : after + 1]
        h, u = end - begin, (time - begin) / (end - begin)
        rise, bend = p1 - p0, h * (v0 + v1)
        c2, c3 = 3 * rise - bend - h * v0, bend - 2 * rise
        return p0 + u * (h * v0 + u * (c2 + u * c3)), v0 + u * (2 * c2 + 3 * u * c3) / h


class Run:
    """A leader that swings all joints, at whose ticks and sending something may be late.

    Args:
        rate: of the commands [Hz].
        late: how late each tick comes, of a clock that goes on evenly [periods].
        held_up: how long after each tick its command is sent [periods].
        way: how long after that it arrives [periods].
        ahead: how far the controller's clock is ahead [periods].
    """

    def __init__(self, rate: float, late, held_up, way=None, ahead: float = 0.0) -> None:
        self.executor = Executor(PANDA, ExecutorOptions(source="teleoperation", command_rate=rate, looks_ahead=True))
        self.controller, self.sent, self.reasons = Controller(min(0.001, 0.1 / rate), ahead / rate), 0, []
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
    ticks = 150 + round(0.1 * rate)
    late = random.choice([0.0, 0.4, 3.5], ticks) * random.random(ticks)
    run = Run(rate, late, random.uniform(0.01, 0.06, ticks), random.uniform(0.01, 0.04, ticks))
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
    # One that leads the arm to where it stands, and as many as there are ticks once that is over.
    assert even.sent == uneven.sent
    assert even.sent >= ticks - 1 - 0.1 * rate
    np.testing.assert_allclose(uneven.controller.position, even.controller.position, atol=0.01)
    # As much of the acceleration is used as the motion needs, and no more.
    assert np.all(uneven.controller.strongest <= even.controller.strongest * 1.2 + 0.5)


@pytest.mark.parametrize("ahead", [-1.0, -0.3, 0.0, 0.3, 0.6])
@pytest.mark.parametrize("rate", [50.0, 100.0, 250.0])
def test_a_controller_whose_clock_is_a_little_off_makes_no_step(rate, ahead):
    ticks = round(2 * rate)
    run = Run(rate, np.zeros(ticks), np.full(ticks, 0.05), np.full(ticks, 0.03), ahead)
    assert run.controller.fastest.max() > 0.1
    assert np.all(run.controller.strongest <= 0.9 * np.array(TABLE["panda"])[:, 3] * 1.001)


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
