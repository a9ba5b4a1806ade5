"""What the tests of the execution share: a rig whose clock the test is."""

from __future__ import annotations

import numpy as np

from ki_ros.chunk import ActionChunk
from ki_ros.execution.executor import Executor, ExecutorOptions, Tick
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS, ActionSpace, Robot

DT = 1 / 15
MS = 1_000_000
EPOCH = 7


class Bench:
    """An executor at 100 Hz, with joint states, a perfect arm and a policy that a test can switch off."""

    def __init__(self, robot: Robot = PANDA, options: ExecutorOptions | None = None) -> None:
        self.executor = Executor(robot, options)
        self.period_ns = round(1e9 / self.executor.options.command_rate)
        self.now = 1_000_000_000_000
        self.q = np.clip(np.array(RESET_JOINT_POSITIONS), robot.position_lower + 0.2, robot.position_upper - 0.2)
        self.joints_on = True
        self.ticks: list[tuple[int, Tick]] = []

    def start(self, epoch: int = EPOCH) -> Bench:
        self.joint_state()
        assert self.executor.enable(self.now) is None
        self.executor.set_epoch(self.now, epoch)
        # So that a test may begin with a chunk of a given age: what was observed before enabling is refused.
        self.now += 1_000_000_000
        return self

    def joint_state(self, age_ns: int = 0) -> str | None:
        return self.executor.receive_joint_state(self.now, age_ns, self.q)

    def chunk(self, row=None, *, age=0.05, epoch=EPOCH, space=ActionSpace.JOINT_VELOCITY, rows=15, dt=DT, sequence=1):
        """A chunk of equal rows, or of the rows given, from an observation `age` seconds old. Returns the refusal."""
        actions = np.asarray([0.1] * 7 + [0.0] if row is None else row, dtype=float)
        if actions.ndim == 1:
            actions = np.tile(actions, (rows, 1))
        age_ns = round(age * 1e9)
        made = ActionChunk(self.now - age_ns, sequence, epoch, space, dt, actions)
        return self.executor.receive_chunk(self.now, age_ns, made)

    def tick(self) -> Tick:
        self.now += self.period_ns
        if self.joints_on:
            self.joint_state()
        tick = self.executor.tick(self.now)
        if tick.positions is not None:
            self.q = tick.positions.copy()
        self.ticks.append((self.now, tick))
        return tick

    def run(self, seconds: float, policy=None, interval: float = DT) -> list[tuple[int, Tick]]:
        """Ticks for a while; `policy(bench)` is called every `interval` seconds. Returns the ticks."""
        first, end = len(self.ticks), self.now + round(seconds * 1e9)
        due = self.now
        while self.now < end:
            if policy is not None and self.now >= due:
                policy(self)
                due += round(interval * 1e9)
            self.tick()
        return self.ticks[first:]
