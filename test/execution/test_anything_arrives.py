"""Whatever arrives, in whatever order, at whatever time: what leaves is checked by a checker of its own."""

from __future__ import annotations

import itertools
import os
from collections import Counter

import numpy as np
import pytest
from execution_bench import DT, MS
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stream_checker import Stream

from ki_ros.chunk import ActionChunk, ChunkError
from ki_ros.execution.executor import Executor, ExecutorOptions
from ki_ros.execution.schedule import SCHEDULES
from ki_ros.execution.state import Reason, State
from ki_ros.rig import FR3, PANDA, RESET_JOINT_POSITIONS, ActionSpace

# The longest that the arm may be moved after the last good chunk: the watchdog's cap and two ticks.
LONGEST_MOTION = 0.25
LONGEST_BLINDNESS = 0.1
# The longest way to rest: from the greatest velocity, at nine tenths of the acceleration limit, and four ticks.
LONGEST_STOP = 5.26 / 10

normal = st.floats(-1.5, 1.5, width=32)
wild = st.floats(allow_nan=True, allow_infinity=True, width=32)


SEARCHED = Counter[str]()
"""What was tried in all examples; shown at the end of a run."""


class AnythingArrives(RuleBasedStateMachine):
    """The test holds the clock, an arm that follows perfectly, and everything that may go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 10**12
        self.epochs = itertools.count(1)
        self.epoch = 0
        self.sequences = itertools.count(1)
        self.epoch_of: dict[int, int] = {}
        self.last_good_chunk = -(10**18)
        self.last_joint_state = -(10**18)
        self.end_of_pause = -(10**19)
        self.waiting = self.moving = False
        self.stream = None
        self.held_for = 0.0
        self.last_tick = None
        self.joints_on = True
        self.steady = True
        self.row = np.array([0.3, -0.2, 0.1, 0.5, 0.9, -1.2, 0.0, 1.0])
        self.space = ActionSpace.JOINT_VELOCITY

    @initialize(
        robot=st.sampled_from([PANDA, FR3]),
        schedule=st.sampled_from(SCHEDULES),
        rate=st.sampled_from([100.0, 250.0]),
    )
    def start(self, robot, schedule, rate):
        self.robot = robot
        self.period = round(1e9 / rate)
        self.executor = Executor(robot, ExecutorOptions(schedule=schedule, command_rate=rate))
        self.q = np.clip(np.array(RESET_JOINT_POSITIONS), robot.position_lower + 0.1, robot.position_upper - 0.1)
        self.joint_state()
        assert self.executor.enable(self.now) is None
        self.new_epoch()

    # What the world does

    def joint_state(self, age=0):
        if self.executor.receive_joint_state(self.now, age, self.q) is None:
            self.last_joint_state = max(self.last_joint_state, self.now - age)

    def send(self, actions, age_ns, epoch, space, dt):
        sequence = next(self.sequences)
        SEARCHED["chunks"] += 1
        self.epoch_of[sequence] = epoch
        try:
            chunk = ActionChunk(self.now - age_ns, sequence, epoch, space, dt, actions)
        except ChunkError as error:
            self.executor.receive_invalid_chunk(self.now, epoch, error)
            return
        if self.executor.receive_chunk(self.now, age_ns, chunk) is None:
            assert epoch == self.epoch
            assert -50 * MS <= age_ns <= 500 * MS
            self.last_good_chunk = self.now

    @rule(ticks=st.integers(1, 80), jitter=st.sampled_from([0, 0, 0.1, -0.4]))
    def time_passes(self, ticks, jitter):
        for i in range(ticks):
            if self.steady and i % 7 == 0:
                self.send(np.tile(self.row, (15, 1)), 50 * MS, self.epoch, self.space, DT)
            self.now += round(self.period * (1 + (jitter if i % 2 else -jitter)))
            if self.joints_on:
                self.joint_state()
            self.tick()

    @rule(row=st.lists(normal, min_size=8, max_size=8), space=st.sampled_from(ActionSpace), around=st.booleans())
    def the_policy_works(self, row, space, around):
        self.steady = True
        self.space = space
        self.row = np.array(row)
        if space is ActionSpace.JOINT_POSITION and around:
            self.row[:7] = self.q + 0.2 * self.row[:7]

    @rule(ticks=st.integers(1, 60))
    def the_policy_stops_for_a_while(self, ticks):
        self.steady = False
        self.time_passes(ticks, 0)
        self.steady = True

    @rule(ticks=st.integers(1, 60))
    def the_joint_states_stop_for_a_while(self, ticks):
        self.joints_on = False
        self.time_passes(ticks, 0)
        self.joints_on = True

    @rule(
        values=st.lists(st.one_of(normal, wild), min_size=0, max_size=40),
        width=st.sampled_from([8, 8, 8, 7, 1]),
        age=st.one_of(st.integers(0, 600 * MS), st.integers(-(10**12), 10**12)),
        epoch=st.integers(-2, 1),
        space=st.sampled_from(ActionSpace),
        dt=st.one_of(st.just(DT), st.floats(allow_nan=True, allow_infinity=True)),
    )
    def a_chunk_comes(self, values, width, age, epoch, space, dt):
        usable = len(values) // width * width
        self.send(np.array(values[:usable]).reshape(-1, width), age, max(0, self.epoch + epoch), space, dt)

    @rule(values=st.lists(wild, min_size=0, max_size=9), age=st.integers(-(10**12), 10**12))
    def a_wild_joint_state_comes(self, values, age):
        positions = np.array(values)
        if self.executor.receive_joint_state(self.now, age, positions) is None:
            self.last_joint_state = max(self.last_joint_state, self.now - age)

    @rule()
    def new_epoch(self):
        self.epoch = next(self.epochs)
        self.executor.set_epoch(self.now, self.epoch)

    @rule(on=st.booleans())
    def the_operator(self, on):
        if on:
            if not self.executor.enabled and self.executor.enable(self.now) is None:
                self.new_stream()
        else:
            self.executor.disable(self.now)
            assert self.executor.tick(self.now).positions is None
            self.new_stream()

    @rule()
    def the_operator_stops(self):
        self.executor.stop(self.now)
        for _ in range(3):
            self.send(np.tile(self.row, (15, 1)), 50 * MS, self.epoch, self.space, DT)
            self.now += self.period
            self.joint_state()
            assert self.tick().reason in (Reason.STOPPED, Reason.TRACKING_LOST)
        assert self.executor.enabled or self.executor.enable(self.now) is not None

    @rule()
    def the_operator_resets(self):
        stopped, enabled = self.executor.operator.stopped is not None, self.executor.enabled
        if self.executor.reset(self.now) is None:
            assert not stopped or not self.executor.enabled
            assert not (stopped and enabled and self.moving), "commands end in motion"
        else:
            assert stopped
            assert self.executor.enabled
            assert self.executor.operator.stopped is not None

    @rule(speed=st.floats(0, 1))
    def the_operator_sets_the_speed(self, speed):
        self.executor.operator.speed = speed

    @rule(by=st.integers(-(10**10), 10**10))
    def the_clock_jumps(self, by):
        self.now += by
        if by < 0:
            # What came before cannot be told from what comes from the future any more.
            self.last_joint_state = self.last_good_chunk = -(10**18)
            self.end_of_pause = self.now if self.waiting else -(10**19)
        self.tick()

    @rule(by=st.lists(st.floats(-0.5, 0.5), min_size=7, max_size=7))
    def somebody_pushes_the_arm(self, by):
        self.q = np.clip(self.q + by, self.robot.position_lower, self.robot.position_upper)

    # What must be true of everything that leaves

    def new_stream(self):
        """What was sent so far is checked; what comes now begins at rest."""
        if self.stream is not None:
            found = self.stream.violations()
            SEARCHED["streams"] += 1
            assert found == [], found[:3]
        self.stream = None
        self.held_for = 0.0

    def tick(self):
        elapsed = 0 if self.last_tick is None else self.now - self.last_tick
        self.last_tick = self.now
        if elapsed > 5 * self.period and self.executor.enabled:
            self.end_of_pause = self.now
        tick = self.executor.tick(self.now)
        self.moving = tick.velocities is not None and tick.velocities.any()
        SEARCHED["ticks"] += 1
        if elapsed > 5 * self.period:
            # The controller has come to rest meanwhile, and what is sent begins there.
            self.new_stream()
        self.waiting = tick.positions is None and tick.state is State.HOLDING
        if tick.positions is None:
            if self.waiting:
                assert tick.reason in (Reason.STALE_JOINT_STATE, Reason.AWAITING_REST, Reason.STOPPED)
            else:
                assert tick.state is State.DISABLED
                assert tick.reason is not Reason.NONE
            self.new_stream()
            return tick
        # Nothing but a joint state from after a pause tells where the arm is.
        assert self.last_joint_state > self.end_of_pause
        assert tick.positions.shape == (7,)
        assert np.all(np.isfinite(tick.positions))
        assert np.all(np.isfinite(tick.velocities))
        assert tick.gripper is None or 0.0 <= tick.gripper <= 0.8
        if self.stream is None:
            assert not tick.velocities.any() or tick.state is State.EXECUTING
            self.stream = Stream(self.robot.name, self.period / 1e9)
        self.stream.add(elapsed / 1e9, tick.positions, tick.velocities)
        if tick.state is State.EXECUTING:
            grace = 2 * self.period / 1e9
            assert self.now - self.last_good_chunk <= (LONGEST_MOTION + grace) * 1e9
            assert self.now - self.last_joint_state <= (LONGEST_BLINDNESS + grace) * 1e9
            assert self.executor.operator.stopped is None
            assert self.epoch_of[tick.observation_sequence] == self.epoch == tick.epoch
            assert tick.step >= 0
            self.held_for = 0.0
        else:
            assert tick.reason is not Reason.NONE
            self.held_for += min(max(elapsed, 0), self.period) / 1e9
            if self.held_for > LONGEST_STOP / 0.9 + 4 * self.period / 1e9:
                assert not tick.velocities.any()
        self.q = tick.positions.copy()
        return tick

    def teardown(self):
        self.new_stream()

    @invariant()
    def counts_add_up(self):
        if hasattr(self, "executor"):
            assert sum(self.executor.chunks.values()) <= next(self.sequences)


# How many examples, the profile in test/conftest.py says; where everything is to be tried, eight times as many.
_FULL = os.environ.get("KI_ROS_TEST_FULL", "") not in ("", "0")
AnythingArrives.TestCase.settings = settings(
    max_examples=settings.default.max_examples * (8 if _FULL else 1),
    # What fails fails by its own message; making it short takes longer than reading it.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
TestAnythingArrives = pytest.mark.timeout(0 if _FULL else 600)(AnythingArrives.TestCase)
