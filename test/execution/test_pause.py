"""A pause of the executor: nothing is sent until the arm is known to rest, and then no joint makes a step.

The arm is a model of its own: where it is at every moment follows from what it was sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from execution_bench import DT, EPOCH, MS
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.chunk import ActionChunk
from ki_ros.execution.adapter import TrajectoryAdapter
from ki_ros.execution.executor import Executor, ExecutorOptions, Tick
from ki_ros.execution.state import Reason, State
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS, ActionSpace

PERIOD = 10 * MS
LAG = 0.03
"""Time constant of the arm behind its controller [s]."""

STILL = 0.001
"""How far an arm may move in its last 50 ms and be at rest [rad]."""


@dataclass
class Arm:
    """An arm behind a controller of positions, or of trajectories, which it follows with a lag; a step a millisecond.

    Attributes:
        q: where it is (7,) [rad].
        trajectory: whether its controller goes on to the end of the last trajectory.
        past: where it was, by the time [ns].
        end: where its controller leads it if nothing more is sent (7,) [rad].
    """

    q: np.ndarray
    trajectory: bool
    past: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.desired = self.end = self.q.copy()
        self.times, self.points, self.began = np.zeros(1), self.q[None], 0

    def command(self, now: int, executor: Executor, tick: Tick) -> None:
        if not self.trajectory:
            self.desired = self.end = tick.positions
            return
        way = executor.to_send(now)
        if way is None:
            return
        points = [point for point in TrajectoryAdapter(executor.guard, stamped=True).points(way) if point.time > 0]
        self.times = np.array([0.0, *(point.time for point in points)])
        self.points = np.stack([self.desired, *(point.positions for point in points)])
        self.began, self.end = now, points[-1].positions

    def live(self, now: int) -> None:
        """The millisecond that ends now."""
        if self.trajectory:
            time = (now - self.began) / 1e9
            after = int(np.searchsorted(self.times, time))
            if after < len(self.times):
                share = (time - self.times[after - 1]) / (self.times[after] - self.times[after - 1])
                self.desired = self.points[after - 1] + share * (self.points[after] - self.points[after - 1])
            else:
                self.desired = self.end
        self.q = self.q + (self.desired - self.q) * (1 - np.exp(-1e-3 / LAG))
        self.past[now] = self.q


class Cell:
    """An executor at 100 Hz, an arm, a driver, and a policy that swings each joint in its own way.

    Args:
        trajectory: what the arm's controller takes.
        amplitude, phase: of the joints' swing (7,) [rad].
        ahead: how far the driver's clock is ahead of the executor's [ns].
        late: how long a joint state is under way [ns].
    """

    def __init__(self, trajectory=False, amplitude=0.1, phase=0.0, rate=6.0, ahead=0, late=0) -> None:
        self.executor = Executor(PANDA, ExecutorOptions(looks_ahead=trajectory))
        self.now = self.paused = 10**12
        self.middle = np.array(RESET_JOINT_POSITIONS)
        self.amplitude, self.phase, self.rate = amplitude * np.ones(7), phase * np.ones(7), rate
        self.ahead, self.late = ahead, late
        self.arm = Arm(self.middle + self.swing(self.now), trajectory)
        self.arm.past[self.now] = self.arm.q
        self.newest = 0
        """When the newest joint state that has come was measured, by the executor's clock [ns]."""
        self.sequence = 0
        self.ticks: list[Tick] = []
        assert self.deliver(self.now) is None
        assert self.executor.enable(self.now) is None
        self.executor.set_epoch(self.now, EPOCH)

    def swing(self, ns: int) -> np.ndarray:
        return self.amplitude * np.sin(self.rate * ns / 1e9 + self.phase)

    def deliver(self, measured: int) -> str | None:
        self.newest = max(self.newest, measured)
        return self.executor.receive_joint_state(self.now, self.now - measured - self.ahead, self.arm.past[measured])

    def chunk(self) -> None:
        self.sequence += 1
        rows = [self.middle + self.swing(self.now + round((i + 1) * DT * 1e9)) for i in range(15)]
        actions = np.concatenate((np.stack(rows), np.zeros((15, 1))), axis=1)
        chunk = ActionChunk(self.now, self.sequence, EPOCH, ActionSpace.JOINT_POSITION, DT, actions)
        self.executor.receive_chunk(self.now, 0, chunk)

    def live(self, milliseconds: int) -> None:
        for _ in range(milliseconds):
            self.now += MS
            self.arm.live(self.now)

    def tick(self, *, states: bool = True) -> Tick:
        self.live(PERIOD // MS)
        if states and self.now - self.late in self.arm.past:
            self.deliver(self.now - self.late)
        tick = self.executor.tick(self.now)
        if tick.positions is not None:
            self.arm.command(self.now, self.executor, tick)
        self.ticks.append(tick)
        return tick

    def run(self, number: int) -> list[Tick]:
        for i in range(number):
            if i % 7 == 0:
                self.chunk()
            self.tick()
        return self.ticks[-number:]

    def pause(self, milliseconds: int) -> None:
        """Neither ticks nor joint states; the arm lives on."""
        self.live(milliseconds)
        # The tick that notices it is one period later.
        self.paused = self.now + PERIOD

    def resume(self) -> tuple[np.ndarray, list[Tick]]:
        """Ticks until something is sent; where the arm's controller leads it meanwhile, and the ticks.

        Sees that the executor knows then that the arm rests, and says before what it is waiting for.
        """
        first, end = len(self.ticks), self.arm.end
        self.chunk()
        while (tick := self.tick()).positions is None:
            self.chunk()
            assert tick.state is State.HOLDING
            assert tick.reason in (Reason.STALE_JOINT_STATE, Reason.AWAITING_REST)
            assert len(self.ticks) - first < 100
        assert self.newest > self.paused
        last = np.stack([q for ns, q in self.arm.past.items() if 0 <= self.newest - ns <= 50 * MS])
        assert np.ptp(last, axis=0).max() <= 2 * STILL
        return end, self.ticks[first:]


def goes_on(cell: Cell) -> None:
    """Sees that the arm is not moved by going on, and that it then swings again as gently as from any rest."""
    rest, ticks = cell.resume()
    first = ticks[-1]
    assert first.state is State.HOLDING
    assert not first.velocities.any()
    np.testing.assert_allclose(first.positions, rest, rtol=0, atol=1e-9)
    after = [first, *cell.run(30)]
    assert after[-1].state is State.EXECUTING
    positions = np.stack([tick.positions for tick in after])
    jumps = np.abs(np.diff(positions, 2, axis=0, prepend=positions[:1], append=positions[-1:]))[1:-1]
    assert np.all(jumps <= PANDA.acceleration * 0.9 * (PERIOD / 1e9) ** 2 + 1e-9)


CONTROLLERS = pytest.mark.parametrize("trajectory", [False, True], ids=["positions", "trajectories"])


@CONTROLLERS
@pytest.mark.parametrize("milliseconds", [41, 60, 150, 600])
@pytest.mark.parametrize("begin", range(0, 60, 15))
def test_it_goes_on_where_the_arm_has_come_to_rest(trajectory, milliseconds, begin):
    """Begun at different moments of a swing whose joints turn round one after another."""
    cell = Cell(trajectory, amplitude=0.12, phase=np.linspace(0, np.pi, 7))
    cell.run(50 + begin)
    assert cell.ticks[-1].state is State.EXECUTING
    cell.pause(milliseconds)
    goes_on(cell)


@CONTROLLERS
def test_one_joint_turns_round_when_the_pause_begins(trajectory):
    """The joint that turns was measured nearer to where a trajectory would have ended than to its last command."""
    cell = Cell(trajectory, amplitude=0.12, phase=[0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    for _ in range(400):
        cell.run(1)
        sent, rest = cell.ticks[-1].positions, cell.executor.guard.to_rest()[1][-1]
        nearer = np.abs(cell.arm.q - rest) < np.abs(cell.arm.q - sent)
        if 0 < nearer.sum() < 7 and np.abs(rest - sent)[nearer].max() > 0.002 and len(cell.ticks) > 60:
            break
    else:
        raise AssertionError("there is no such moment")
    cell.pause(600)
    # What was on its way when the process was suspended comes first.
    cell.late = 600 * MS + 2 * PERIOD
    for _ in range(3):
        assert cell.tick().positions is None
    cell.late = 0
    goes_on(cell)


@CONTROLLERS
def test_joint_states_from_within_the_pause_tell_nothing(trajectory):
    """They are young enough to be believed, and yet from before the pause was over."""
    cell = Cell(trajectory)
    cell.run(70)
    cell.pause(200)
    until = cell.now
    for age in (90, 80, 60, 40, 20):
        cell.deliver(until - age * MS)
        tick = cell.tick(states=False)
        assert (tick.state, tick.positions, tick.velocities) == (State.HOLDING, None, None)
        assert tick.reason is Reason.STALE_JOINT_STATE
    goes_on(cell)


def test_without_joint_states_nothing_is_ever_sent():
    cell = Cell()
    cell.run(70)
    cell.pause(100)
    for _ in range(300):
        cell.chunk()
        tick = cell.tick(states=False)
        assert (tick.state, tick.reason, tick.positions) == (State.HOLDING, Reason.STALE_JOINT_STATE, None)
    goes_on(cell)


def test_joint_states_that_stop_while_the_arm_is_awaited():
    cell = Cell()
    cell.run(70)
    cell.pause(100)
    cell.tick()
    assert cell.tick().reason is Reason.AWAITING_REST
    ticks = [cell.tick(states=False) for _ in range(15)]
    assert {tick.positions is None for tick in ticks} == {True}
    assert ticks[-1].reason is Reason.STALE_JOINT_STATE
    goes_on(cell)


def test_an_arm_that_moves_on_is_sent_nothing():
    """As one does that is driven by velocities until it is told that commands have ended, or that somebody guides."""
    cell = Cell()
    cell.run(70)
    cell.pause(100)
    for _ in range(40):
        cell.arm.desired = cell.arm.end = cell.arm.desired + 0.001
        cell.chunk()
        tick = cell.tick()
        assert tick.positions is None
    assert tick.reason is Reason.AWAITING_REST
    ticks = [cell.tick() for _ in range(40)]
    first = next(tick for tick in ticks if tick.positions is not None)
    assert not first.velocities.any()


def test_an_arm_far_from_both_disables():
    cell = Cell()
    cell.run(70)
    cell.pause(100)
    cell.arm.desired = cell.arm.end = cell.arm.q + 0.7
    ticks = [cell.tick() for _ in range(60)]
    assert {tick.positions is None for tick in ticks} == {True}
    assert (ticks[-1].state, ticks[-1].reason) == (State.DISABLED, Reason.TRACKING_LOST)


def test_a_pause_within_the_wait_begins_it_anew():
    cell = Cell()
    cell.run(70)
    cell.pause(100)
    for _ in range(5):
        assert cell.tick().positions is None
    cell.pause(60)
    assert cell.tick().reason is Reason.STALE_JOINT_STATE
    goes_on(cell)


def test_the_clock_goes_back_within_the_wait():
    cell = Cell()
    cell.run(70)
    cell.pause(100)
    assert cell.tick().positions is None
    cell.now -= 10_000 * MS
    cell.arm.began -= 10_000 * MS
    cell.arm.past.clear()
    cell.newest, cell.paused = 0, cell.now + PERIOD
    assert cell.tick().reason is Reason.STALE_JOINT_STATE
    goes_on(cell)


def test_the_operator_within_the_wait():
    cell = Cell()
    cell.run(70)
    cell.pause(100)
    cell.tick()
    cell.executor.stop(cell.now)
    ticks = [cell.tick() for _ in range(40)]
    assert {tick.reason for tick in ticks} == {Reason.STOPPED}
    assert ticks[0].positions is None
    assert not ticks[-1].velocities.any()
    cell.executor.reset(cell.now)
    assert cell.tick().reason is Reason.DISABLED


def test_enabling_within_the_wait_takes_a_joint_state_from_after_the_pause():
    cell = Cell()
    cell.run(70)
    cell.pause(60)
    measured = cell.now
    cell.tick(states=False)
    cell.executor.disable(cell.now)
    cell.deliver(measured)
    assert cell.executor.enable(cell.now) is not None
    cell.tick()
    assert cell.executor.enable(cell.now) is None
    assert np.array_equal(cell.tick(states=False).positions, cell.arm.past[cell.newest])


def test_an_arm_that_was_held_is_not_waited_for_long():
    """The wait is as short as stamps allow that may lie in the future."""
    cell = Cell()
    held = [cell.tick() for _ in range(20)][-1].positions
    cell.pause(100)
    rest, ticks = cell.resume()
    assert np.array_equal(ticks[-1].positions, held)
    assert np.array_equal(rest, held)
    assert len(ticks) * PERIOD <= 80 * MS


@given(
    trajectory=st.booleans(),
    amplitude=st.lists(st.floats(0, 0.12), min_size=7, max_size=7),
    phase=st.lists(st.floats(-np.pi, np.pi), min_size=7, max_size=7),
    rate=st.floats(2, 7),
    begin=st.integers(0, 100),
    milliseconds=st.integers(42, 1000),
    ahead=st.integers(-50, 50),
    late=st.integers(0, 40),
)
def test_whatever_moves_and_however_late_it_is_told(
    trajectory, amplitude, phase, rate, begin, milliseconds, ahead, late
):
    """Clocks differ by as much as is allowed, and joint states are under way for a while."""
    cell = Cell(trajectory, np.array(amplitude), np.array(phase), rate, ahead * MS, late * MS)
    cell.run(50 + begin)
    cell.pause(milliseconds)
    goes_on(cell)
