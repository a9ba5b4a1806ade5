"""The rig and the executor in lockstep: simulated time passes only when everything due has been done.

The same executor, guard included, stands between the policy (or the scripted operator) and the arm as in the running
graph. Thinking takes no simulated time unless a latency is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ki_ros.chunk import ActionChunk
from ki_ros.commitment import Commitment, commit
from ki_ros.execution.executor import Executor, ExecutorOptions, Tick
from ki_ros.execution.state import State
from ki_ros.rig import CONTROL_HZ, POLICY_VIEWS, STATE_DIM, ActionSpace, CameraRole, gripper_closedness
from ki_ros.sim.simulated_rig import SimulatedRig

COMMAND_MS, STATE_MS = 10, 5
_NS_PER_MS = 1_000_000


class LockstepError(RuntimeError):
    """An episode that cannot begin; the message says why."""


@dataclass(frozen=True)
class Observed:
    """What there is at an observation's reference time.

    Attributes:
        time_ns: the reference time.
        views: pictures by role, (H, W, 3) uint8 RGB, as exposed last.
        state: (8,) measured joint positions [rad] and the gripper's closedness.
        command: (7,) the last joint positions that were sent [rad]; the measured ones before that.
        commitment: what the arm does until the answer comes, from the chunk before; None for nothing.
    """

    time_ns: int
    views: Mapping[CameraRole, np.ndarray]
    state: np.ndarray
    command: np.ndarray
    commitment: Commitment | None = None


class Listener(Protocol):
    """Who is told what happens; times in nanoseconds of simulated time."""

    def on_state(self, time_ns: int, rig: SimulatedRig) -> None:
        """A joint state is due."""

    def on_image(self, time_ns: int, role: CameraRole, pixels: np.ndarray) -> None:
        """A picture was taken."""

    def on_observation(self, time_ns: int, exposed_ns: int) -> None:
        """An observation is made, of the present joint state and of the pictures that were exposed then."""

    def on_tick(self, time_ns: int, tick: Tick) -> None:
        """The executor has decided."""


class Lockstep:
    """Runs episodes on a rig.

    Args:
        rig: its own thread's.
        replan: rows of a chunk to execute before the next one, and observations between two chunks, or more of them
            where the latency is longer: there is one policy, and it thinks about one observation at a time.
        latency: between an observation and the arrival of the chunk that answers it [s].
        phase: how old a picture is at an observation's reference time [s], less than an observation's period.
        schedule: one of `ki_ros.execution.schedule.SCHEDULES`. With "synchronous" the policy is asked when the arm has
            come to the end of a chunk.
    """

    def __init__(
        self,
        rig: SimulatedRig,
        *,
        replan: int = 5,
        latency: float = 0.0,
        phase: float = 0.02,
        schedule: str = "latency_compensated",
    ) -> None:
        if replan < 1:
            raise ValueError(f"replan is {replan}; give 1 or more")
        if not 0.0 <= latency < 0.5:
            raise ValueError(f"latency is {latency} s; give 0 to 0.5 s")
        if not 0.0 <= phase < 1.0 / CONTROL_HZ:
            raise ValueError(f"phase is {phase} s; give 0 up to an observation's period of {1 / CONTROL_HZ:.4f} s")
        self.rig = rig
        self._replan, self._latency_ms, self._phase_ms = replan, round(latency * 1e3), round(phase * 1e3)
        self._schedule = schedule
        self._epoch = 0

    def run(
        self,
        act: Callable[[Observed], np.ndarray | None],
        action_space: ActionSpace,
        seconds: float,
        *,
        watch: Callable[[], bool] = lambda: False,
        listener: Listener | None = None,
    ) -> Executor:
        """Runs for at most that many seconds from the rig's present state.

        Args:
            act: from an observation to actions (horizon, 8); None for no chunk, and the arm is held when the last one
                is exhausted.
            action_space: of those actions.
            seconds: simulated time [s].
            watch: called at every observation; ends the run when it is true.
            listener: told of states, pictures and commands.

        Returns:
            The executor, with what it counted.

        Raises:
            LockstepError: the arm is where no command may come from.
        """
        rig = self.rig
        # Between two chunks lie `replan` observations and not one, or the latency, and the watchdog must know.
        gap = (self._replan + 2.5) / CONTROL_HZ + self._latency_ms / 1e3
        options = ExecutorOptions(
            schedule=self._schedule, open_loop_horizon=self._replan, max_chunk_gap=gap, chunk_gap_intervals=0.0
        )
        executor = Executor(rig.robot, options)
        start_ms = rig.time_ns // _NS_PER_MS
        self._epoch += 1
        executor.receive_joint_state(rig.time_ns, 0, rig.joint_positions)
        # Before the first chunk, which enabling would forget.
        if (problem := executor.enable(rig.time_ns)) is not None:
            raise LockstepError(f"the executor cannot be enabled: {problem}")
        executor.set_epoch(rig.time_ns, self._epoch)
        views: dict[CameraRole, np.ndarray] = {}
        command = rig.joint_positions.copy()
        waiting: tuple[int, ActionChunk] | None = None
        latest: ActionChunk | None = None
        tick: Tick | None = None
        exposures = observations = exposed_ns = asked = 0
        # The pictures of the first observation are taken before it.
        end_ms = round(seconds * 1e3) + self._phase_ms
        for ms in range(end_ms + 1):
            now_ns = (start_ms + ms) * _NS_PER_MS
            if ms % STATE_MS == 0 and listener is not None:
                listener.on_state(now_ns, rig)
            if ms >= round(exposures * 1e3 / CONTROL_HZ):
                exposures, exposed_ns = exposures + 1, now_ns
                for role in POLICY_VIEWS:
                    views[role] = rig.render(role)
                    if listener is not None:
                        listener.on_image(now_ns, role, views[role])
            if ms >= round(observations * 1e3 / CONTROL_HZ) + self._phase_ms:
                if watch():
                    break
                if listener is not None:
                    # The joint state that an observation has is the newest that was published.
                    listener.on_observation(now_ns, exposed_ns)
                moving = tick is not None and tick.state is State.EXECUTING
                due = not moving if self._schedule == "synchronous" else observations >= asked
                if due and waiting is None:
                    asked = observations + self._replan
                    commitment = self._commitment(latest, now_ns, tick)
                    actions = act(Observed(now_ns, dict(views), _state(rig), command, commitment))
                    if actions is not None:
                        step = 1.0 / CONTROL_HZ
                        chunk = ActionChunk(now_ns, observations + 1, self._epoch, action_space, step, actions)
                        waiting = (ms + self._latency_ms, chunk)
                observations += 1
            if waiting is not None and waiting[0] <= ms:
                latest, waiting = waiting[1], None
                executor.receive_joint_state(now_ns, 0, rig.joint_positions)
                executor.receive_chunk(now_ns, now_ns - latest.stamp, latest)
            if ms % COMMAND_MS == 0:
                executor.receive_joint_state(now_ns, 0, rig.joint_positions)
                tick = executor.tick(now_ns)
                if tick.positions is not None:
                    command = tick.positions
                    rig.command(tick.positions, tick.gripper)
                if listener is not None:
                    listener.on_tick(now_ns, tick)
            rig.step_count(1)
        return executor

    def _commitment(self, latest: ActionChunk | None, now_ns: int, tick: Tick | None) -> Commitment | None:
        """What the arm will do from now on, by the chunk that came last; None at rest."""
        if latest is None or tick is None or tick.state is not State.EXECUTING:
            return None
        begun = tick.observation_sequence == latest.observation_sequence
        return commit(latest, now_ns, self._latency_ms / 1e3, tick.shift if begun else 0.0)


def _state(rig: SimulatedRig) -> np.ndarray:
    state = np.empty(STATE_DIM)
    state[:-1], state[-1] = rig.joint_positions, gripper_closedness(rig.gripper_angle)
    return state
