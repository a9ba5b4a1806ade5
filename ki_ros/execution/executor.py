"""The executor: a state machine that turns chunks and joint states into commands, or holds the arm and says why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ki_ros.chunk import ActionChunk, ChunkError, NonFiniteChunkError, target_position
from ki_ros.execution.guard import Guard, GuardOptions
from ki_ros.execution.schedule import NANOSECONDS, Schedule, Segment, Step, make_schedule
from ki_ros.execution.state import ChunkRefusal, Intervention, Reason, State
from ki_ros.execution.watchdog import ChunkWatchdog
from ki_ros.rig import GRIPPER_THRESHOLD, NUM_JOINTS, Robot, gripper_angle

MAX_FUTURE = 0.05
"""How far in the future a stamp may lie [s]: clocks of two machines differ, and a simulated clock comes in ticks."""

MAX_OUTSIDE = 0.1
"""How far beyond its position limits an arm may be measured and still be enabled [rad]. A real arm stands at its limit
at worst; more than this is another robot, another unit or another zero."""

_SAME_STAMP = 0.001
"""Two chunks whose observations are closer than this [s] answer the same observation, or come in the wrong order."""


@dataclass(frozen=True)
class ExecutorOptions:
    """How chunks are executed, and when the arm is held. Times in seconds.

    Attributes:
        command_rate: rate at which `tick` is called [Hz]; a tick never moves the arm further than one period allows.
        schedule: which action is in force when, one of `ki_ros.execution.schedule.SCHEDULES`.
        open_loop_horizon: rows of a chunk to execute before the next one, of synchronous and latency_compensated.
        ensemble_decay: how much less the newer chunks count in temporal_ensemble.
        max_chunk_age: age of its observation with which a chunk may still begin.
        max_chunk_gap: longest time without a new chunk before the arm is held.
        chunk_gap_intervals: the same in usual intervals between chunks, for policies faster than that; 0 for off.
        max_joint_state_age: age with which a joint state is still believed.
        max_target_distance: a row that asks for a joint position further than this from the measured one [rad] is
            refused as not meant.
        binarize_gripper: command the gripper open or closed and nothing between.
        guard: limits of the commands.
    """

    command_rate: float = 100.0
    schedule: str = "latency_compensated"
    open_loop_horizon: int = 8
    ensemble_decay: float = 0.01
    max_chunk_age: float = 0.5
    max_chunk_gap: float = 0.25
    chunk_gap_intervals: float = 2.5
    max_joint_state_age: float = 0.1
    max_target_distance: float = 0.6
    binarize_gripper: bool = True
    guard: GuardOptions = field(default_factory=GuardOptions)

    def __post_init__(self) -> None:
        for name in ("command_rate", "max_chunk_age", "max_chunk_gap", "max_joint_state_age", "max_target_distance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")


@dataclass(frozen=True)
class Tick:
    """What the executor decided at one moment.

    Attributes:
        state: and `reason`, why it is not executing.
        epoch: the epoch in force, 0 while there is none.
        positions: joint positions to send (7,) float64 [rad]; None while disabled, when nothing may be sent.
        velocities: velocities of the command (7,) float64 [rad/s], zero while holding; None while disabled.
        gripper: knuckle angle to send [rad]; None until a chunk has said one since enabling: the gripper then keeps
            doing what it does, so that nothing is dropped by enabling.
        observation_sequence: of the chunk that is executed; 0 otherwise.
        step: the chunk's row; -1 otherwise.
        interventions: what the guard changed.
    """

    state: State
    reason: Reason
    epoch: int
    positions: np.ndarray | None = None
    velocities: np.ndarray | None = None
    gripper: float | None = None
    observation_sequence: int = 0
    step: int = -1
    interventions: tuple[Intervention, ...] = ()


class Executor:
    """See the module's docstring.

    Times are nanoseconds of one clock of the caller's that is meant not to jump. An age is how much older than now a
    stamp is [ns], measured by the caller in the clock that the stamp was made with; a jump of that clock thus makes
    what comes next look old or future, but not what is already here. If the caller's own clock goes back, everything
    that was received is forgotten and the arm is held.

    After any fault nothing of the chunks from before it is executed: motion begins again with a chunk that comes after.

    One thread. No method blocks, and none raises for anything that arrives in a message.

    Args:
        robot: the arm.
        options: see ExecutorOptions.
        schedule: what to execute when; the one of the options by default.
    """

    def __init__(self, robot: Robot, options: ExecutorOptions | None = None, schedule: Schedule | None = None) -> None:
        self.robot = robot
        self.options = o = options or ExecutorOptions()
        self.guard = Guard(robot, o.guard)
        self.watchdog = ChunkWatchdog(_ns(o.max_chunk_gap), o.chunk_gap_intervals)
        self.chunks: Counter[str] = Counter()
        """Chunks by what became of them: "accepted", or the value of a ChunkRefusal."""
        self.interventions: Counter[str] = Counter()
        """Ticks with an intervention, by its value."""
        self.holds: Counter[str] = Counter()
        """How often the arm came to be held or disabled, by the reason's value."""
        self.clock_jumps = 0
        self.refused_joint_states = 0
        self._schedule = schedule or make_schedule(
            o.schedule,
            open_loop_horizon=o.open_loop_horizon,
            max_age_ns=_ns(o.max_chunk_age),
            ensemble_decay=o.ensemble_decay,
        )
        self._period_ns = round(NANOSECONDS / o.command_rate)
        self._now_ns: int | None = None
        self._tick_ns: int | None = None
        self._epoch = 0
        self._enabled = False
        self._enable_pending = False
        self._disabled_because = Reason.DISABLED
        self._fault: Reason | None = None
        self._last_reason = Reason.NONE
        self._measured: np.ndarray | None = None
        self._measured_ns = 0
        self._observed_ns: int | None = None
        self._blind_ns: int | None = None
        self._previous = np.zeros(NUM_JOINTS)
        self._velocity = np.zeros(NUM_JOINTS)
        self._gripper: float | None = None
        self._step: Step | None = None
        self._segment: Segment | None = None
        self._wanted = np.zeros(NUM_JOINTS)

    # The operator

    @property
    def enabled(self) -> bool:
        """Whether commands are sent."""
        return self._enabled

    @property
    def epoch(self) -> int:
        """The epoch in force, 0 while there is none."""
        return self._epoch

    def enable(self, now_ns: int) -> str | None:
        """Begins to send commands, the first of which is where the arm is measured to be: enabling moves nothing.

        An arm outside of its limits less the guard's margin is held exactly there, and can only be moved inwards.
        Enabling what is enabled changes nothing.

        Returns None, or why it is refused; nothing has changed then.
        """
        self._enter(now_ns)
        if self._enabled:
            return None
        problem = self._joint_state_problem(now_ns)
        if problem is not None:
            return problem
        outside = np.maximum(self.robot.position_lower - self._measured, self._measured - self.robot.position_upper)
        worst = int(np.argmax(outside))
        if outside[worst] > MAX_OUTSIDE:
            return (
                f"{self.robot.joint_names[worst]} is measured at {self._measured[worst]:.4f} rad, outside of the "
                f"{self.robot.name}'s limits [{self.robot.position_lower[worst]}, {self.robot.position_upper[worst]}]: "
                f"is the parameter robot right?"
            )
        self._enabled = True
        self._enable_pending = False
        self._previous = self._measured.copy()
        self._velocity = np.zeros(NUM_JOINTS)
        self._gripper = None
        self._fault = None
        self._forget_chunks()
        return None

    def enable_when_possible(self, now_ns: int) -> None:
        """Enables at the first tick at which that is not refused, unless it is disabled before."""
        self._enter(now_ns)
        if not self._enabled:
            self._enable_pending = True
            self._disabled_because = Reason.AWAITING_JOINT_STATE

    def disable(self, now_ns: int) -> None:
        """Sends nothing any more, from this call on."""
        self._enter(now_ns)
        self._disable(Reason.DISABLED)

    def set_epoch(self, now_ns: int, epoch: int) -> None:
        """Starts an epoch: from this call on no command comes from a chunk of another one.

        Raises ValueError unless `epoch` is greater than the one before.
        """
        self._enter(now_ns)
        if epoch <= self._epoch:
            raise ValueError(f"epoch {epoch} does not come after {self._epoch}")
        self._epoch = epoch
        self._fault = None
        self._observed_ns = None
        self._forget_chunks()

    # Inputs

    def receive_joint_state(self, now_ns: int, age_ns: int, positions: np.ndarray) -> str | None:
        """Takes measured joint positions (7,) [rad] in the robot's order.

        Returns None, or why they are refused. Positions older than those that are here already are ignored.
        """
        self._enter(now_ns)
        positions = np.asarray(positions, dtype=np.float64)
        problem = None
        if positions.shape != (NUM_JOINTS,):
            problem = f"joint state: {positions.size} positions; expected {NUM_JOINTS}"
        elif not np.all(np.isfinite(positions)):
            joint = int(np.argmin(np.isfinite(positions)))
            problem = f"joint state: {self.robot.joint_names[joint]} is {positions[joint]}"
        elif age_ns < -_ns(MAX_FUTURE):
            problem = f"joint state: stamped {-age_ns / 1e9:.3f} s in the future"
        if problem is not None:
            self.refused_joint_states += 1
            return problem
        if self._measured is None or now_ns - age_ns > self._measured_ns:
            self._measured = positions.copy()
            self._measured_ns = now_ns - age_ns
        return None

    def receive_chunk(self, now_ns: int, age_ns: int, chunk: ActionChunk) -> ChunkRefusal | None:
        """Takes a chunk whose observation is `age_ns` old. Returns None, or why it is refused."""
        self._enter(now_ns)
        refusal = self._chunk_refusal(now_ns, age_ns, chunk)
        self.chunks["accepted" if refusal is None else refusal.value] += 1
        if refusal is None:
            self._observed_ns = now_ns - age_ns
            self._fault = None
            self.watchdog.feed(now_ns)
            self._schedule.offer(chunk, now_ns - age_ns)
        return refusal

    def receive_invalid_chunk(self, now_ns: int, epoch: int, error: ChunkError) -> ChunkRefusal:
        """Takes notice of a message that could not be made into a chunk: the policy is broken, and the arm is held.

        One of another epoch is only counted.
        """
        self._enter(now_ns)
        if epoch != self._epoch or epoch == 0:
            refusal = ChunkRefusal.WRONG_EPOCH
        elif isinstance(error, NonFiniteChunkError):
            refusal = ChunkRefusal.NON_FINITE
            self._fail(Reason.NON_FINITE)
        else:
            refusal = ChunkRefusal.INVALID
            self._fail(Reason.INVALID_CHUNK)
        self.chunks[refusal.value] += 1
        return refusal

    def receive_observation_status(self, now_ns: int, age_ns: int, complete: bool) -> None:
        """Takes notice of whether there was an observation `age_ns` ago. Without one the policy is blind: it holds.

        Chunks keep coming for as long as an inference takes; those from before the refusal do not end the hold.
        """
        self._enter(now_ns)
        if complete or age_ns > _ns(self.options.max_chunk_age):
            return
        self._blind_ns = now_ns - age_ns
        if self.watchdog.fed:
            self._fail(Reason.OBSERVATION_REFUSED)

    # The command

    def tick(self, now_ns: int) -> Tick:
        """Decides what to send now. To be called at the command rate."""
        self._enter(now_ns)
        elapsed_ns = 0 if self._tick_ns is None else now_ns - self._tick_ns
        self._tick_ns = now_ns
        # A late tick does not catch up, as the step that the arm sees would be as large as the delay is long; an early
        # one may move by what its time allows.
        dt = min(elapsed_ns, self._period_ns) / NANOSECONDS
        if self._enable_pending:
            self.enable(now_ns)
        if not self._enabled:
            return self._decided(Tick(State.DISABLED, self._disabled_because, self._epoch))
        reason = self._reason_to_hold(now_ns)
        if not self._enabled:
            return self._decided(Tick(State.DISABLED, self._disabled_because, self._epoch))
        if reason is not Reason.NONE:
            return self._decided(self._hold(reason))
        return self._decided(self._execute(now_ns, dt))

    def _reason_to_hold(self, now_ns: int) -> Reason:
        if self._joint_state_problem(now_ns) is not None:
            self._forget_chunks()
            return Reason.STALE_JOINT_STATE
        # The guard keeps a command from leading the arm by more than its limit; twice that, the arm has left by itself.
        if np.abs(self._measured - self._previous).max() > 2 * self.options.guard.max_tracking_error:
            self._disable(Reason.TRACKING_LOST)
            return Reason.TRACKING_LOST
        if self._epoch == 0:
            return Reason.NO_INSTRUCTION
        if self._fault is not None:
            return self._fault
        if not self.watchdog.fed:
            return Reason.WAITING_FOR_CHUNK
        if not self.watchdog.alive(now_ns):
            self._fail(Reason.STALE_CHUNK)
            return Reason.STALE_CHUNK
        step = self._schedule.advance(now_ns)
        if step is None:
            self._segment = self._step = None
            return Reason.STALE_CHUNK if self._schedule.expired else Reason.CHUNK_EXHAUSTED
        if step != self._step:
            return self._begin(step)
        return Reason.NONE

    def _begin(self, step: Step) -> Reason:
        target = target_position(step.action, step.action_space, self._measured)
        # Written so that a target that is not finite is refused too.
        if not np.abs(target - self._measured).max() <= self.options.max_target_distance:
            self._fail(Reason.GUARD_REFUSAL)
            return Reason.GUARD_REFUSAL
        start = self._previous
        if self._segment is not None:
            # The step before ended a little after the last tick: without that rest every step would fall short of its
            # target by up to a tick's motion.
            start = start + (self._segment.position(step.start_ns) - self._wanted)
        self._step = step
        self._segment = Segment(start, target, step.start_ns, step.end_ns)
        closedness = min(max(float(step.action[NUM_JOINTS]), 0.0), 1.0)
        if self.options.binarize_gripper:
            closedness = float(closedness > GRIPPER_THRESHOLD)
        self._gripper = gripper_angle(closedness)
        return Reason.NONE

    def _execute(self, now_ns: int, dt: float) -> Tick:
        wanted = self._segment.position(now_ns)
        guarded = self.guard.limit(self._previous, self._velocity, wanted, self._measured, dt)
        if guarded.refused:
            self._fail(Reason.GUARD_REFUSAL)
            return self._hold(Reason.GUARD_REFUSAL, guarded.interventions)
        if dt > 0:
            self._velocity = (guarded.positions - self._previous) / dt
        self._wanted = wanted
        self._previous = guarded.positions
        return Tick(
            State.EXECUTING,
            Reason.NONE,
            self._epoch,
            self._previous.copy(),
            self._velocity.copy(),
            self._gripper,
            self._step.observation_sequence,
            self._step.row,
            guarded.interventions,
        )

    def _hold(self, reason: Reason, interventions: tuple[Intervention, ...] = ()) -> Tick:
        # The last command has passed the guard, or is the measured position at enabling. Repeating it is the one motion
        # that every limit of the guard allows, whatever the arm's state is, or if that is not known any more.
        self._velocity = np.zeros(NUM_JOINTS)
        return Tick(
            State.HOLDING,
            reason,
            self._epoch,
            self._previous.copy(),
            self._velocity.copy(),
            self._gripper,
            interventions=interventions,
        )

    # What several of them need

    def _enter(self, now_ns: int) -> None:
        if self._now_ns is not None and now_ns < self._now_ns:
            self.clock_jumps += 1
            self._measured = None
            self._observed_ns = None
            self._blind_ns = None
            self._tick_ns = None
            self._forget_chunks()
        self._now_ns = now_ns

    def _forget_chunks(self) -> None:
        self._schedule.clear()
        self.watchdog.restart()
        self._step = None
        self._segment = None

    def _fail(self, reason: Reason) -> None:
        self._forget_chunks()
        self._fault = reason

    def _disable(self, reason: Reason) -> None:
        self._enabled = False
        self._enable_pending = False
        self._disabled_because = reason
        self._forget_chunks()

    def _joint_state_problem(self, now_ns: int) -> str | None:
        if self._measured is None:
            return f"no joint state of the {self.robot.name} has come ({self.robot.joint_names[0]}, ...)"
        age = (now_ns - self._measured_ns) / NANOSECONDS
        if age > self.options.max_joint_state_age:
            return f"the newest joint state is {age:.3f} s old; {self.options.max_joint_state_age:g} s are allowed"
        return None

    def _chunk_refusal(self, now_ns: int, age_ns: int, chunk: ActionChunk) -> ChunkRefusal | None:
        if chunk.epoch != self._epoch or chunk.epoch == 0:
            return ChunkRefusal.WRONG_EPOCH
        if age_ns < -_ns(MAX_FUTURE):
            return ChunkRefusal.FUTURE
        if age_ns > _ns(self.options.max_chunk_age):
            return ChunkRefusal.STALE
        if self._blind_ns is not None and now_ns - age_ns <= self._blind_ns:
            return ChunkRefusal.STALE
        if self._observed_ns is not None and now_ns - age_ns <= self._observed_ns + _ns(_SAME_STAMP):
            return ChunkRefusal.OUT_OF_ORDER
        return None

    def _decided(self, tick: Tick) -> Tick:
        if tick.reason is not self._last_reason and tick.reason is not Reason.NONE:
            self.holds[tick.reason.value] += 1
        self._last_reason = tick.reason
        for intervention in tick.interventions:
            self.interventions[intervention.value] += 1
        return tick


def _ns(seconds: float) -> int:
    return round(seconds * NANOSECONDS)
