"""The executor: a state machine that turns chunks and joint states into commands, or holds the arm and says why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ki_ros.chunk import ActionChunk, ChunkError, NonFiniteChunkError, target_position
from ki_ros.execution.beat import Beat, Waypoint
from ki_ros.execution.guard import Barrier, Guard, Guarded, GuardOptions
from ki_ros.execution.measured import Measured
from ki_ros.execution.motion import Motion, Planner
from ki_ros.execution.operator import Operator
from ki_ros.execution.schedule import NANOSECONDS, Schedule, Step, make_schedule
from ki_ros.execution.state import ChunkRefusal, Intervention, Reason, State
from ki_ros.execution.teleoperation import Teleoperation
from ki_ros.execution.watchdog import ChunkWatchdog
from ki_ros.rig import GRIPPER_THRESHOLD, NUM_JOINTS, Robot, gripper_angle

MAX_FUTURE = 0.05
"""How far in the future a stamp may lie [s]: clocks of two machines differ, and a simulated clock comes in ticks."""

SOURCES = ("policy", "teleoperation")

_PAUSE_PERIODS = 5
"""A tick that comes later than so many periods finds an arm that comes to rest by itself: its controller has nothing to
follow."""

_REST = MAX_FUTURE
"""An arm that has stood still for so long [s], after a pause, is at rest. Not less, as a stamp may lie that far in the
future: the newest of these joint states is then from after the pause in any case."""

_EXACTLY = 1e-9
"""Difference of two positions [rad] that is arithmetic."""

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
        max_target_distance: a row, or a teleoperator's command, that asks for a joint position further than this from
            the measured one [rad] is refused as not meant.
        max_start_distance: the same for that with which motion begins.
        max_effort: largest measured effort of a joint, as a share of what it can exert; more stops the arm, and joint
            states without efforts are refused. 0 for off.
        source: whose commands are executed, "policy" or "teleoperation".
        max_command_age: age of a teleoperator's command with which the arm still follows.
        hold_to_run: longest time between two confirmations that the operator holds the button; 0 for no button.
        binarize_gripper: command the gripper open or closed and nothing between.
        looks_ahead: whether the controller is sent the way to rest behind each command, and goes along it by itself.
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
    max_start_distance: float = 0.3
    max_effort: float = 0.0
    hold_to_run: float = 0.0
    source: str = "policy"
    max_command_age: float = 0.2
    binarize_gripper: bool = True
    looks_ahead: bool = False
    guard: GuardOptions = field(default_factory=GuardOptions)

    def __post_init__(self) -> None:
        distances = ("max_target_distance", "max_start_distance")
        ages = ("max_chunk_age", "max_chunk_gap", "max_joint_state_age", "max_command_age")
        for name in ("command_rate", *ages, *distances):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if self.source not in SOURCES:
            raise ValueError(f"source is {self.source!r}; use one of {', '.join(SOURCES)}")
        for name in ("max_effort", "hold_to_run"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")


@dataclass(frozen=True)
class Tick:
    """What the executor decided at one moment.

    Attributes:
        state: and `reason`, why it is not executing.
        epoch: the epoch in force, 0 while there is none.
        positions: joint positions to send (7,) float64 [rad]; None while nothing may be sent: disabled, or after a
            pause, until the arm is known to rest.
        velocities: velocities of the command (7,) float64 [rad/s], zero once the arm is held; None with the positions.
        gripper: knuckle angle to send [rad]; None until a chunk has said one since enabling: the gripper then keeps
            doing what it does, so that nothing is dropped by enabling.
        observation_sequence: of the chunk that is executed; 0 otherwise.
        step: the chunk's row; -1 otherwise.
        shift: how much later than meant the chunk's rows are executed [s].
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
    shift: float = 0.0
    interventions: tuple[Intervention, ...] = ()


class Executor:
    """See the module's docstring.

    Times are nanoseconds of one clock of the caller's that is meant not to jump. An age is how much older than now a
    stamp is [ns], measured by the caller in the clock that the stamp was made with; a jump of that clock thus makes
    what comes next look old or future, but not what is already here. If the caller's own clock goes back, everything
    that was received is forgotten and the arm is held.

    Motion from rest begins with a chunk's row 0: if the arm has stood still since the observation, none of the rows is
    over, however long the policy thought. The chunk is executed that much later than its stamps say, which ticks tell
    (`Tick.shift`). A chunk that was observed in motion begins with the row whose time has come.

    To hold is to bring the arm to rest as soon as the guard's limits allow and to keep it there. After any fault
    nothing of the chunks from before it is executed: motion begins again with a chunk that comes after.

    A pause in the ticks while commands are sent is such a fault: where the arm is after it, and whether it moves, only
    joint states from after it can tell. Until they show that it stands still, nothing is sent.

    One thread. No method blocks, and none raises for anything that arrives in a message.

    Args:
        robot: the arm.
        options: see ExecutorOptions.
        schedule: what to execute when; the one of the options by default.
        barriers: of the guard.
    """

    def __init__(
        self,
        robot: Robot,
        options: ExecutorOptions | None = None,
        schedule: Schedule | None = None,
        barriers: Sequence[Barrier] = (),
    ) -> None:
        self.robot = robot
        self.options = o = options or ExecutorOptions()
        self.guard = Guard(robot, o.guard, 1.0 / o.command_rate, barriers)
        self._beat = Beat(self.guard) if o.looks_ahead else None
        self._planner = Planner(robot, self.guard.limits, o.guard.velocity_scale)
        self.operator = Operator(_ns(o.hold_to_run) if o.hold_to_run > 0 else None)
        self.watchdog = ChunkWatchdog(_ns(o.max_chunk_gap), o.chunk_gap_intervals)
        self.chunks: Counter[str] = Counter()
        """Chunks by what became of them: "accepted", or the value of a ChunkRefusal."""
        self.interventions: Counter[str] = Counter()
        """Ticks with an intervention, by its value."""
        self.holds: Counter[str] = Counter()
        """How often the arm came to be held or disabled, by the reason's value."""
        self.clock_jumps = 0
        self.figures = ""
        """For people: the joint, the distance and the limit of the newest GUARD_REFUSAL or TRACKING_LOST."""
        self._teleoperation = (
            Teleoperation(_ns(o.max_command_age), o.max_start_distance, o.max_target_distance)
            if o.source == "teleoperation"
            else None
        )
        self.measured = Measured(robot, _ns(o.max_joint_state_age), _ns(MAX_FUTURE))
        self._schedule = schedule or make_schedule(
            o.schedule,
            open_loop_horizon=o.open_loop_horizon,
            max_age_ns=_ns(o.max_chunk_age),
            ensemble_decay=o.ensemble_decay,
        )
        self._now_ns: int | None = None
        self._tick_ns: int | None = None
        self._epoch = 0
        self._enabled = False
        self._enable_pending = False
        self._disabled_because = Reason.DISABLED
        self._fault: Reason | None = None
        self._last_reason = Reason.NONE
        self._observed_ns: int | None = None
        self._blind_ns: int | None = None
        self._rests_since_ns: int | None = None
        self._awaiting_rest = False
        self._led_until_ns: int | None = None
        self._from_rest: tuple[ActionChunk, int] | None = None
        self._shifted = (0, 0)
        self._sent = np.zeros(NUM_JOINTS)
        self._before = self.guard.saved(), self._sent
        self._dt = 0.0
        self._gripper: float | None = None
        self._step: Step | None = None
        self._motion: Motion | None = None
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

        An arm that moves is refused: where it is measured it is no more, and to be held there would be a step. One
        outside of its limits less the guard's margin is held exactly there, and can only be moved inwards. What
        was observed before is not followed: somebody may have moved the arm by hand since.
        An arm that a controller still brings to rest, by what it was sent before, is not held in the midst of that:
        enabling is refused until then. Enabling what is enabled changes nothing, unless it was stopped: that is
        refused, whether it is enabled or not.

        Returns None, or why it is refused; nothing has changed then.
        """
        self._enter(now_ns)
        # First: an operator who is told that it is enabled expects that it moves.
        if self.operator.stopped is not None:
            return f"it was stopped ({self.operator.stopped.value}); see that the arm may move, then reset"
        if self._enabled:
            return None
        problem = self.measured.problem(now_ns) or self.measured.far_outside()
        if problem is not None:
            return problem
        if self._led_until_ns is not None and now_ns < self._led_until_ns:
            left = (self._led_until_ns - now_ns) / NANOSECONDS
            return f"the controller still brings the arm to rest; enable it in {left:.2f} s"
        if self.measured.moves(_ns(_REST)):
            return "the arm moves; enable it when it stands still"
        self._enabled = True
        self._enable_pending = False
        self._rests_since_ns, self._blind_ns = now_ns, now_ns - 1
        self._begin_at(self.measured.positions.copy())
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

    def stop(self, now_ns: int, reason: Reason = Reason.STOPPED) -> None:
        """Brings the arm to rest and keeps it there until `reset`, whatever else comes. The first reason is kept."""
        self._enter(now_ns)
        self.operator.stop(reason)
        self._enable_pending = False
        self._forget_chunks()

    def reset(self, now_ns: int) -> str | None:
        """Ends a stop. The executor is disabled then: that the arm may move again has to be said once more.

        Returns None, or why it is refused: while the arm is brought to rest commands must not end.
        """
        self._enter(now_ns)
        if self.operator.stopped is None:
            return None
        if self._enabled and not self._awaiting_rest and self._rests_since_ns is None:
            return "the arm is being brought to rest; reset when it stands still"
        self.operator.reset()
        self._disable(Reason.DISABLED)
        return None

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

    def receive_joint_state(
        self, now_ns: int, age_ns: int, positions: np.ndarray, efforts: np.ndarray | None = None
    ) -> str | None:
        """Takes measured joint positions (7,) [rad] in the robot's order, and efforts (7,) [N m] where there are any.

        Returns None, or why they are refused. Positions older than those that are here already are ignored.
        """
        self._enter(now_ns)
        if self.options.max_effort > 0 and efforts is None:
            return self.measured.refuse(
                f"joint state: it has no efforts, and max_effort is {self.options.max_effort:g}; have the driver "
                "publish them, or set max_effort to 0 (no contact is noticed then)"
            )
        problem = self.measured.receive(now_ns, age_ns, positions)
        if problem is None and efforts is not None and self._is_contact(efforts):
            self.stop(now_ns, Reason.CONTACT)
        return problem

    def receive_chunk(self, now_ns: int, age_ns: int, chunk: ActionChunk) -> ChunkRefusal | None:
        """Takes a chunk whose observation is `age_ns` old. Returns None, or why it is refused."""
        self._enter(now_ns)
        refusal = self._chunk_refusal(now_ns, age_ns, chunk)
        self.chunks["accepted" if refusal is None else refusal.value] += 1
        if refusal is None:
            self._observed_ns = now_ns - age_ns
            self._fault = None
            self.watchdog.feed(now_ns)
            self._offer(chunk, now_ns - age_ns)
        return refusal

    def _offer(self, chunk: ActionChunk, observed_ns: int) -> None:
        """Row 0 is meant for when it was observed; for the tick that begins it where the arm has been at rest since."""
        if self._rests_since_ns is not None and observed_ns >= self._rests_since_ns:
            self._from_rest = chunk, observed_ns
        else:
            self._from_rest = None
            self._schedule.offer(chunk, observed_ns)

    def _offer_from_rest(self, due_ns: int) -> None:
        if self._from_rest is None:
            return
        (chunk, observed_ns), self._from_rest = self._from_rest, None
        meant_ns = max(due_ns, observed_ns)
        self._shifted = (chunk.observation_sequence, meant_ns - observed_ns)
        self._schedule.offer(chunk, meant_ns)

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

    def receive_command(self, now_ns: int, age_ns: int, positions: np.ndarray, closedness: float | None) -> str | None:
        """Takes a teleoperator's command: joint positions (7,) [rad] and the gripper's closedness, None for no change.

        Returns None, or why it is refused: a value that is not finite also holds the arm.
        """
        self._enter(now_ns)
        if self._teleoperation is None:
            return "teleoperation: the executor's source is the policy"
        if age_ns < -_ns(MAX_FUTURE):
            return f"teleoperation: stamped {-age_ns / NANOSECONDS:.3f} s in the future"
        most = self.options.max_command_age
        if age_ns > _ns(most):
            return f"teleoperation: the command is {age_ns / NANOSECONDS:.3f} s old; max_command_age is {most:g} s"
        return self._teleoperation.receive(now_ns - max(age_ns, 0), positions, closedness)

    def receive_observation_status(self, now_ns: int, age_ns: int, complete: bool) -> None:
        """Takes notice of whether there was an observation `age_ns` ago. Without one the policy is blind: it holds.

        Chunks keep coming for as long as an inference takes; those from before the refusal do not end the hold.
        """
        self._enter(now_ns)
        if complete or age_ns > _ns(self.options.max_chunk_age):
            return
        self._blind_ns = now_ns - max(age_ns, 0)
        if self.watchdog.fed:
            self._fail(Reason.OBSERVATION_REFUSED)

    # The command

    def tick(self, now_ns: int) -> Tick:
        """Decides what to send now. To be called at the command rate."""
        self._enter(now_ns)
        dt = 0.0 if self._tick_ns is None else (now_ns - self._tick_ns) / NANOSECONDS
        self._tick_ns = now_ns
        if self._enabled and dt > _PAUSE_PERIODS * self.guard.period:
            self._await_rest(now_ns)
        if self._enable_pending:
            self.enable(now_ns)
        if self._awaiting_rest and self.measured.problem(now_ns) is None and self.measured.still(_ns(_REST)):
            self._start_from_rest(now_ns)
        self._before, self._dt = (self.guard.saved(), self._sent), dt
        step, passed = dt, 0.0
        if self._beat is not None and self._enabled and not self._awaiting_rest:
            step = self._beat.turn(dt)
            passed = self._beat.end + step
        # The guard is a period behind what it is told, so that is asked for when it will be due.
        due_ns = now_ns + _ns(passed + self.guard.ahead(step))
        reason = self._reason_to_hold(now_ns, due_ns) if self._enabled else Reason.NONE
        if not self._enabled:
            return self._decided(Tick(State.DISABLED, self.operator.stopped or self._disabled_because, self._epoch))
        if self._awaiting_rest:
            return self._decided(Tick(State.HOLDING, reason, self._epoch))
        if reason is Reason.NONE:
            self._wanted = self._ask(due_ns)
            standing = self._motion.standing if self._motion is not None else None
            guarded = self.guard.follow(self._wanted, self.measured.positions, step, standing)
            if guarded.refused:
                reason = Reason.GUARD_REFUSAL
                self.figures = "a target that is not finite"
                self._fail(reason)
        else:
            self._motion = self._step = None
            if self._teleoperation is not None:
                self._teleoperation.release()
            guarded = self.guard.stop(step)
        if self._beat is not None:
            self._beat.led(step, guarded)
        self._sent = guarded.positions
        if reason is Reason.NONE or guarded.velocities.any():
            self._rests_since_ns = None
        elif self._rests_since_ns is None:
            self._rests_since_ns = now_ns
        return self._decided(self._tick(reason, guarded))

    def to_send(self, now_ns: int) -> tuple[Waypoint, ...] | None:
        """To be asked right before the last tick's command is sent: the process may have been held up since.

        Returns the way to the command, for a controller that looks ahead; nothing of it for others. None where nothing
        is to be sent: the tick was early and the controller has all, or too much time has passed, and then the command
        counts as never decided.
        """
        self._enter(now_ns)
        # None where the clock has been set back just now.
        late = 0.0 if self._tick_ns is None else (now_ns - self._tick_ns) / NANOSECONDS
        if self._beat is not None and not self._beat.decided and late < self.guard.period:
            return None
        paused = self._dt + late > _PAUSE_PERIODS * self.guard.period
        way = () if self._beat is None else self._beat.waypoints(late)
        if way is not None and not paused:
            return way
        saved, self._sent = self._before
        self.guard.restore(saved)
        if self._beat is not None:
            self._beat.not_sent()
        if paused:
            self._await_rest(now_ns)
        return None

    def _await_rest(self, now_ns: int) -> None:
        """After a pause that ends now: of the arm nothing is known until a joint state comes that is newer."""
        self._awaiting_rest = True
        self._rests_since_ns = None
        self.measured.forget(now_ns)

    def _start_from_rest(self, now_ns: int) -> None:
        """Begins where the arm has come to rest, all joints alike: at the last command, or where a controller that
        looks further ahead has led it from there. That, and not where it is measured, is what its controller holds: a
        command beside it would be a step. Nothing from before is followed, so that the first command is there, nor what
        was observed before."""
        rest, measured = self.guard.to_rest()[1][-1], self.measured.positions
        nearer = np.linalg.norm(measured - rest) < np.linalg.norm(measured - self._sent)
        # One that was sent the way to rest goes to its end, however near to the last command that is.
        if self._beat is not None or nearer:
            self._sent = rest
        self._begin_at(self._sent)
        self._awaiting_rest = False
        self._blind_ns = now_ns - 1
        self._forget_chunks()
        if self._teleoperation is not None:
            self._teleoperation.forget()

    def _begin_at(self, positions: np.ndarray) -> None:
        self._sent = positions
        self.guard.reset(positions)
        if self._beat is not None:
            self._beat.restart()

    def _ask(self, due_ns: int) -> np.ndarray:
        if self._teleoperation is None:
            return self._motion.wanted(due_ns)
        if self._teleoperation.gripper is not None:
            self._gripper = self._teleoperation.gripper
        return self._teleoperation.wanted(due_ns, self.guard.decided)

    def _tick(self, reason: Reason, guarded: Guarded) -> Tick:
        step = self._step if reason is Reason.NONE else None
        shifted, shift_ns = self._shifted
        shift = shift_ns / NANOSECONDS if step is not None and step.observation_sequence == shifted else 0.0
        return Tick(
            State.EXECUTING if reason is Reason.NONE else State.HOLDING,
            reason,
            self._epoch,
            guarded.positions,
            guarded.velocities,
            self._gripper,
            0 if step is None else step.observation_sequence,
            -1 if step is None else step.row,
            shift,
            guarded.interventions,
        )

    def _reason_to_hold(self, now_ns: int, due_ns: int) -> Reason:
        if self.measured.problem(now_ns) is not None:
            self._forget_chunks()
            return self.operator.stopped or Reason.STALE_JOINT_STATE
        if self._awaiting_rest:
            return self.operator.stopped or Reason.AWAITING_REST
        # The guard keeps a command from leading the arm by more than its limit; twice that, the arm has left by itself.
        apart, most = np.abs(self.measured.positions - self._sent), self.options.guard.max_tracking_error
        if apart.max() > 2 * most:
            self.figures = f"{self._farthest(apart)} from its command; twice max_tracking_error, {most:g}, is lost"
            self._disable(Reason.TRACKING_LOST)
            return Reason.TRACKING_LOST
        if self.operator.stopped is not None:
            return self.operator.stopped
        if not self.operator.permits(now_ns):
            self._forget_chunks()
            return Reason.HOLD_TO_RUN
        if self._teleoperation is not None:
            return self._teleoperation.reason_to_hold(now_ns, self.measured.positions)
        if self._epoch == 0:
            return Reason.NO_INSTRUCTION
        if self._fault is not None:
            return self._fault
        if not self.watchdog.fed:
            return Reason.WAITING_FOR_CHUNK
        if not self.watchdog.alive(now_ns):
            self._fail(Reason.STALE_CHUNK)
            return Reason.STALE_CHUNK
        self._offer_from_rest(due_ns)
        step = self._schedule.advance(due_ns)
        if step is None:
            return Reason.STALE_CHUNK if self._schedule.expired else Reason.CHUNK_EXHAUSTED
        return Reason.NONE if step == self._step else self._begin(step)

    def _begin(self, step: Step) -> Reason:
        measured, before, options = self.measured.positions, self._motion, self.options
        target = target_position(step.action, step.action_space, measured)
        limit = "max_start_distance" if before is None else "max_target_distance"
        apart, furthest = np.abs(target - measured), getattr(options, limit)
        # Written so that a target that is not finite is refused too.
        if not apart.max() <= furthest:
            self.figures = f"row {step.row} wants {self._farthest(apart)} from where it is; {limit} is {furthest:g}"
            self._fail(Reason.GUARD_REFUSAL)
            return Reason.GUARD_REFUSAL
        start, velocity = self.guard.decided, np.zeros(NUM_JOINTS)
        if before is not None:
            # From where the arm is led, which may be behind: what was left behind is not hurried after, as the target
            # takes its place. The step before went on for a little after the last tick.
            start = start + before.path.position(step.start_ns) - self._wanted
            behind = np.abs(self.guard.decided - self._wanted) > _EXACTLY
            velocity = np.where(behind, self.guard.velocity, before.path.velocity(step.start_ns))
        self._step = step
        # The arm will have followed the command to there: what was measured is older, and the step lies ahead.
        self._motion = self._planner.motion(step, start, velocity, measured + (start - self._sent), self.operator.speed)
        closedness = min(max(float(step.action[NUM_JOINTS]), 0.0), 1.0)
        if options.binarize_gripper:
            closedness = float(closedness > GRIPPER_THRESHOLD)
        self._gripper = gripper_angle(closedness)
        return Reason.NONE

    # What several of them need

    def _farthest(self, apart: np.ndarray) -> str:
        joint = int(np.argmax(apart))
        return f"{self.robot.joint_names[joint]} {apart[joint]:.2f} rad"

    def _is_contact(self, efforts: np.ndarray) -> bool:
        most = self.options.max_effort * self.robot.effort
        # Written so that an effort that is not finite counts.
        return self.options.max_effort > 0 and not np.all(np.abs(efforts) <= most)

    def _enter(self, now_ns: int) -> None:
        if self._now_ns is not None and now_ns < self._now_ns:
            self.clock_jumps += 1
            self.measured.forget(now_ns if self._awaiting_rest else -math.inf)
            self.operator.forget_time()
            if self._teleoperation is not None:
                self._teleoperation.forget()
            self._observed_ns = None
            self._blind_ns = None
            self._rests_since_ns = None
            self._tick_ns = None
            self._led_until_ns = None
            self._forget_chunks()
            self.watchdog.forget_time()
        self._now_ns = now_ns

    def _forget_chunks(self) -> None:
        self._schedule.clear()
        self._from_rest = None
        self.watchdog.restart()
        self._step = None
        self._motion = None

    def _fail(self, reason: Reason) -> None:
        self._forget_chunks()
        self._fault = reason

    def _disable(self, reason: Reason) -> None:
        if self._enabled:
            self._led_until_ns = self._led_on()
        self._enabled = False
        self._enable_pending = False
        self._awaiting_rest = False
        self._disabled_because = reason
        self._forget_chunks()

    def _led_on(self) -> int | None:
        """Until when a controller that looks ahead leads the arm, and the arm comes after it, if nothing more is sent
        [ns]. None for an arm that rests."""
        if self._beat is None or self._tick_ns is None:
            return None
        times, _, velocities = self.guard.to_rest()
        moving = times[velocities.any(axis=1)]
        if not len(moving):
            return None
        return self._tick_ns + _ns(self._beat.end + float(moving[-1]) + self.guard.period + _REST)

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
