"""The executor node: takes action chunks, streams commands to the controllers, holds the arm on anything that is wrong.

It is the safety end of the graph and the owner of the epoch: `set_instruction` starts one, `enable` starts and stops
commands. What it decides and why is in `ki_ros.execution`; this node carries messages to and from it.
"""

from __future__ import annotations

import array
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from ki_ros import chunk, msg, rig
from ki_ros.execution import beat
from ki_ros.execution import executor as execution
from ki_ros.execution.barriers import SelfCollisionBarrier, WorkspaceBarrier
from ki_ros.execution.clock_offset import ClockOffset
from ki_ros.execution.guard import Barrier, GuardOptions
from ki_ros.execution.pace import Pace
from ki_ros.execution.schedule import SCHEDULES
from ki_ros.execution.state import ChunkRefusal, Reason, State
from ki_ros.execution.workspace import WorkspaceBox
from ki_ros.nodes import stamps, topics
from ki_ros.nodes.company import Company, SoleExecutor
from ki_ros.nodes.controllers import ARMS, GRIPPERS
from ki_ros.nodes.diagnostics import ERROR, OK, WARN, Diagnostics, Report
from ki_ros.nodes.discovery import LOOK_SECONDS
from ki_ros.nodes.operator import NO_SPEED, OperatorInputs
from ki_ros.nodes.parameters import ParameterError, declare, parameter
from ki_ros.nodes.polling import subscribe_polled, take_waiting
from ki_ros.nodes.priority import make_real_time
from ki_ros.nodes.run import pacing_clock, run
from ki_ros.nodes.silence import ObservationSilence
from ki_ros.srv import SetInstruction

_JOINT_STATE_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=32,
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
)
# Deep enough that another publisher's states on the same topic do not push ours out between two ticks.


@dataclass
class Parameters:
    """Parameters of the executor node. Times in seconds."""

    robot: str = parameter("panda", "Whose joint names and limits hold", choices=tuple(rig.ROBOTS))
    instruction: str = parameter("", "Instruction to start with; empty: hold until set_instruction is called")
    enabled_at_start: bool = parameter(False, "Enable as soon as joint states come. Not on a real arm")
    command_rate: float = parameter(100.0, "Commands a second [Hz]", low=10.0, high=1000.0)
    realtime_priority: int = parameter(
        0,
        "Priority before all usual processes (SCHED_FIFO), where the operating system permits it; 0: none",
        low=0,
        high=99,
    )
    schedule: str = parameter("latency_compensated", "Which action is in force when", choices=SCHEDULES)
    open_loop_horizon: int = parameter(
        8, "synchronous, latency_compensated: rows of a chunk to execute before the next chunk", low=1, high=1000
    )
    ensemble_decay: float = parameter(
        0.01, "temporal_ensemble: the i-th oldest chunk weighs exp(-decay * i)", low=-10.0, high=10.0
    )
    max_chunk_age: float = parameter(
        0.5, "Age of its observation with which a chunk may begin [s]", low=0.01, high=10.0
    )
    max_chunk_gap: float = parameter(
        0.25,
        "Longest time without a new chunk before the arm is held [s]; more than the policy takes",
        low=0.02,
        high=10.0,
    )
    chunk_gap_intervals: float = parameter(
        2.5,
        "Hold after this many usual chunk intervals already, never later than max_chunk_gap; 0: off",
        low=0.0,
        high=100.0,
    )
    max_joint_state_age: float = parameter(0.1, "Age with which a joint state is believed [s]", low=0.005, high=1.0)
    max_target_distance: float = parameter(
        0.6,
        "A row, or a leader's command, that is further than this from the measured position is refused [rad]",
        low=0.01,
        high=7.0,
    )
    max_start_distance: float = parameter(0.3, "The same for that with which motion begins [rad]", low=0.01, high=7.0)
    source: str = parameter("policy", "Whose commands the arm follows", choices=execution.SOURCES)
    teleoperation_topic: str = parameter(
        "/teleoperation/joint_command", "teleoperation: topic of the leader's joint positions and knuckle angle [rad]"
    )
    max_command_age: float = parameter(
        0.2, "teleoperation: age of a command with which the arm still follows [s]", low=0.01, high=2.0
    )
    max_effort: float = parameter(
        0.0,
        "Measured effort at which the arm is stopped, as a share of what a joint can exert; 0: off, else joint states "
        "must have efforts",
        low=0.0,
        high=1.0,
    )
    hold_to_run: float = parameter(
        0.0,
        "Longest time without a `true` on hold_to_run with which the arm moves [s]; 0: it moves without a button",
        low=0.0,
        high=2.0,
    )
    speed_scale: float = parameter(
        1.0,
        "Of a policy: share of the distance to each target that is gone in its time; may be set while the node runs",
        low=0.0,
        high=1.0,
        read_only=False,
    )
    velocity_scale: float = parameter(0.9, "Share of the arm's velocity limits to use", low=0.01, high=1.0)
    acceleration_scale: float = parameter(0.9, "Share of the arm's acceleration limits to use", low=0.01, high=1.0)
    jerk_scale: float = parameter(0.9, "Share of the arm's jerk limits to use", low=0.01, high=1.0)
    position_margin: float = parameter(0.05, "Distance from the arm's position limits [rad]", low=0.0, high=0.5)
    max_tracking_error: float = parameter(
        0.3,
        "Largest lead of a command over the measured position [rad]; at twice that the executor disables itself",
        low=0.01,
        high=3.0,
    )
    workspace_lower: list[float] = parameter(
        [math.nan] * 3, "Lowest x, y and z of tool point and flange in the arm's base frame [m]; .nan for no limit"
    )
    workspace_upper: list[float] = parameter([math.nan] * 3, "Highest x, y and z [m], as workspace_lower")
    table_height: float = parameter(
        math.nan, "Height that elbow, forearm, wrist and camera stay above in the base frame [m]; .nan: no table"
    )
    self_collision_margin: float = parameter(
        0.0, "Distance that the arm's parts keep from each other [m]; negative: not looked at", low=-1.0, high=0.2
    )
    joint_states_topic: str = parameter("/joint_states", "Topic of the arm's state")
    controller: str = parameter(
        "forward_command", "What takes the arm's commands; docs/controllers.md says when which", choices=tuple(ARMS)
    )
    arm_command_topic: str = parameter(
        "/forward_position_controller/commands", "forward_command: topic of joint positions (seven) [rad]"
    )
    trajectory_topic: str = parameter(
        "/joint_trajectory_controller/joint_trajectory", "joint_trajectory: topic of the trajectories"
    )
    trajectory_stamps: bool = parameter(
        True,
        "joint_trajectory: trajectories say when they begin, so that no delay on their way disturbs the motion; false "
        "where the controller's clock is more than a few milliseconds off",
    )
    target_joint_topic: str = parameter(
        "/target_joint", "joint_impedance: topic of joint positions [rad] and velocities [rad/s]"
    )
    velocity_command_topic: str = parameter(
        "/forward_velocity_controller/commands", "forward_velocity: topic of joint velocities (seven) [rad/s]"
    )
    gripper_controller: str = parameter(
        "forward_command",
        "What takes the gripper's commands",
        choices=tuple(GRIPPERS),
    )
    gripper_command_topic: str = parameter(
        "/gripper_position_controller/commands", "forward_command: topic of the knuckle's angle [rad]"
    )
    gripper_action: str = parameter(
        "/robotiq_gripper_controller/gripper_cmd", "gripper_command, parallel_gripper_command: name of the action"
    )
    gripper_max_effort: float = parameter(50.0, "Gripper actions: largest effort [N]", low=0.0, high=500.0)
    binarize_gripper: bool = parameter(True, "Command the gripper open or closed and nothing between")

    def options(self) -> execution.ExecutorOptions:
        """What of this concerns the executor."""
        return execution.ExecutorOptions(
            command_rate=self.command_rate,
            schedule=self.schedule,
            open_loop_horizon=self.open_loop_horizon,
            ensemble_decay=self.ensemble_decay,
            max_chunk_age=self.max_chunk_age,
            max_chunk_gap=self.max_chunk_gap,
            chunk_gap_intervals=self.chunk_gap_intervals,
            max_joint_state_age=self.max_joint_state_age,
            max_target_distance=self.max_target_distance,
            max_start_distance=self.max_start_distance,
            max_effort=self.max_effort,
            hold_to_run=self.hold_to_run,
            source=self.source,
            max_command_age=self.max_command_age,
            binarize_gripper=self.binarize_gripper,
            looks_ahead=ARMS[self.controller].looks_ahead,
            guard=GuardOptions(
                velocity_scale=self.velocity_scale,
                acceleration_scale=self.acceleration_scale,
                jerk_scale=self.jerk_scale,
                position_margin=self.position_margin,
                max_tracking_error=self.max_tracking_error,
            ),
        )

    def barriers(self) -> list[Barrier]:
        """What the guard keeps the arm out of.

        Raises:
            ValueError: a workspace that is none; the message names the parameter.
        """
        barriers: list[Barrier] = []
        for name in ("workspace_lower", "workspace_upper"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} is {getattr(self, name)}; give x, y and z [m], .nan for no limit")
        if not np.isnan([*self.workspace_lower, *self.workspace_upper, self.table_height]).all():
            box = WorkspaceBox(self.workspace_lower, self.workspace_upper, table=self.table_height)
            barriers.append(WorkspaceBarrier(box))
        if self.self_collision_margin >= 0:
            barriers.append(SelfCollisionBarrier(self.self_collision_margin))
        return barriers


class ExecutorNode(Node):
    """See the module's docstring.

    Everything runs in the one thread that spins the node. So when the response of `set_instruction` or `enable` leaves,
    no tick is under way that could still send a command from before.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("executor", **kwargs)
        self.parameters = p = declare(self, Parameters)
        self.robot = rig.robot(p.robot)
        try:
            barriers = p.barriers()
        except ValueError as error:
            raise ParameterError(f"node {self.get_name()!r}: {error}") from error
        self._teleoperated = p.source == "teleoperation"
        if self._teleoperated and p.speed_scale != 1.0:
            raise ParameterError(f"node {self.get_name()!r}: speed_scale is {p.speed_scale:g}; {NO_SPEED}")
        self._executor = SoleExecutor(self.robot, p.options(), barriers=barriers)
        self._executor.operator.speed = p.speed_scale
        self._silence = ObservationSilence(self._executor)
        self._joint_names = list(self.robot.joint_names)
        self._state_names = list(self.robot.state_names)
        self._pacing = pacing_clock(self)
        self._clock_offset = ClockOffset()
        self._foreign: Counter[str] = Counter()
        self._last_refusal = ""
        self._last_tick: execution.Tick | None = None
        self._said: tuple[State, Reason] = (State.DISABLED, Reason.NONE)
        self._said_at = {"interruption": -math.inf, "other": -math.inf}
        self._pace = Pace(1.0 / p.command_rate)
        self._begins_by_clock = ARMS[p.controller].looks_ahead and p.trajectory_stamps
        self._reported_refusals = 0
        self._reported_joint_refusals = 0
        self._create_outputs()
        self._create_inputs()
        if p.instruction.strip():
            self._begin_epoch(p.instruction.strip())
        if p.enabled_at_start:
            self._executor.enable_when_possible(self._now())
        self._timer = self.create_timer(1.0 / p.command_rate, self._on_tick, clock=self._pacing)
        self._diagnostics = Diagnostics(
            self, {"executor": self._report_executor, "commands": self._report_commands}, self.robot.name
        )
        self._real_time = p.realtime_priority > 0 and make_real_time(self, p.realtime_priority)
        self.get_logger().info(
            f"{self.robot.name}, {p.controller} at {p.command_rate:g} Hz, "
            f"{'enabled with the first joint state' if p.enabled_at_start else 'disabled until ' + topics.ENABLE}"
        )

    def _create_outputs(self) -> None:
        p = self.parameters
        self._epoch_publisher = self.create_publisher(msg.Epoch, topics.EPOCH, topics.LATCHED_QOS)
        self._instruction_publisher = self.create_publisher(String, topics.INSTRUCTION, topics.LATCHED_QOS)
        self._command_publisher = self.create_publisher(JointState, topics.JOINT_COMMAND, topics.COMMAND_QOS)
        self._status_publisher = self.create_publisher(msg.ExecutorStatus, topics.EXECUTOR_STATUS, topics.COMMAND_QOS)
        self._send_arm = ARMS[p.controller](self, self._executor)
        self._send_gripper = GRIPPERS[p.gripper_controller](self)
        # What is enabled at its start is no real arm.
        look = 0.0 if p.enabled_at_start else LOOK_SECONDS
        self._company = Company(self, self._executor, self._send_arm.topic, self._now, look)

    def _create_inputs(self) -> None:
        self._joint_states = subscribe_polled(self, JointState, self.parameters.joint_states_topic, _JOINT_STATE_QOS)
        self._inputs = [
            self.create_subscription(msg.ActionChunk, topics.ACTION_CHUNK, self._on_chunk, topics.NEWEST_QOS),
            self.create_subscription(
                msg.ObservationStatus, topics.OBSERVATION_STATUS, self._on_observation_status, topics.NEWEST_QOS
            ),
            self.create_service(SetInstruction, topics.SET_INSTRUCTION, self._on_set_instruction),
        ]
        if self._teleoperated:
            topic = self.parameters.teleoperation_topic
            self._inputs.append(self.create_subscription(JointState, topic, self._on_leader, topics.NEWEST_QOS))
        self._operator = OperatorInputs(self, self._executor, self._now, self._poll_joint_state, self._end_commands)

    def _now(self) -> int:
        return self._pacing.now().nanoseconds

    def _age(self, stamp_ns: int) -> int:
        return self.get_clock().now().nanoseconds - stamp_ns

    # Inputs

    def _poll_joint_state(self) -> None:
        """Gives the newest of the joint states that have come to the executor; only that one is decoded, unless there
        is a limit of efforts, of which each counts.

        The states are fetched when they are needed rather than delivered as they come, because waking up for each of a
        driver's thousand a second would take most of a core.
        """
        waiting = [raw for raw, _ in take_waiting(self._joint_states, JointState)]
        if self.parameters.max_effort > 0:
            for raw in waiting:
                self._give_joint_state(raw)
        else:
            any(self._give_joint_state(raw) for raw in reversed(waiting))

    def _give_joint_state(self, raw: bytes) -> bool:
        """Whether it is one of the arm's."""
        try:
            state = deserialize_message(raw, JointState)
        except RuntimeError as error:
            # As the middleware does with what it delivers itself: what cannot be read has not come.
            self._say_refused(self._executor.measured.refuse(f"joint state: it cannot be read ({error})"))
            return False
        index = {name: i for i, name in enumerate(state.name)}
        if not all(name in index for name in self._joint_names):
            self._foreign[", ".join(state.name) or "no names"] += 1
            return False
        if len(state.position) == len(state.name):
            positions = np.array([state.position[index[name]] for name in self._joint_names])
            efforts = None
            if len(state.effort) == len(state.name):
                efforts = np.array([state.effort[index[name]] for name in self._joint_names])
            age = self._age(stamps.from_message(state.header.stamp))
            problem = self._executor.receive_joint_state(self._now(), age, positions, efforts)
        else:
            problem = f"joint state: {len(state.position)} positions for {len(state.name)} names"
            self._executor.measured.refuse(problem)
        if problem is not None:
            self._say_refused(problem)
        return True

    def _say_refused(self, problem: str) -> None:
        self._last_refusal = problem
        self.get_logger().warning(problem, throttle_duration_sec=1.0)

    def _on_chunk(self, message: msg.ActionChunk) -> None:
        stamp = stamps.from_message(message.header.stamp)
        age, now = self._age(stamp), self._now()
        try:
            actions = chunk.rows(message.actions, message.horizon, message.action_dim)
            received = chunk.ActionChunk(
                stamp,
                message.observation_sequence,
                message.epoch,
                _action_space(message.action_space),
                message.dt,
                actions,
                message.inference_time,
            )
        except chunk.ChunkError as error:
            refusal = self._executor.receive_invalid_chunk(now, message.epoch, error)
            detail = str(error)
        else:
            refusal = self._executor.receive_chunk(now, age, received)
            detail = f"its observation is {age / stamps.NANOSECONDS:.3f} s old"
            if refusal is ChunkRefusal.STALE and age <= stamps.NANOSECONDS * self.parameters.max_chunk_age:
                detail += ", from before the arm was enabled, came to rest or was last without an observation"
        if refusal is None:
            return
        if refusal is ChunkRefusal.WRONG_EPOCH:
            # As it must be after every change of the instruction.
            detail = f"epoch {message.epoch}, in force is {self._executor.epoch}"
        else:
            self.get_logger().warning(f"chunk refused: {refusal.value}: {detail}", throttle_duration_sec=1.0)
        self._last_refusal = f"chunk: {refusal.value}: {detail}"

    def _on_observation_status(self, message: msg.ObservationStatus) -> None:
        age = self._age(stamps.from_message(message.header.stamp))
        self._silence.heard(self._now())
        self._executor.receive_observation_status(self._now(), age, message.complete)
        if not message.complete:
            self._last_refusal = f"observation: {message.message}"

    def _on_leader(self, message: JointState) -> None:
        index = {name: i for i, name in enumerate(message.name)}
        missing = [name for name in self._joint_names if name not in index]
        if missing or len(message.position) != len(message.name):
            problem = f"teleoperation: {missing[0]} is missing" if missing else "teleoperation: not a position per name"
        else:
            knuckle = message.position[index[rig.GRIPPER_JOINT]] if rig.GRIPPER_JOINT in index else None
            closedness = None if knuckle is None else _closedness(knuckle)
            positions = np.array([message.position[index[name]] for name in self._joint_names])
            stamp = stamps.from_message(message.header.stamp)
            # Not every leader's driver stamps what it sends.
            age = self._age(stamp) if stamp else 0
            problem = self._executor.receive_command(self._now(), age, positions, closedness)
        if problem is not None:
            self._say_refused(problem)

    # Services

    def _on_set_instruction(
        self, request: SetInstruction.Request, response: SetInstruction.Response
    ) -> SetInstruction.Response:
        instruction = request.instruction.strip()
        if not instruction:
            response.message = "the instruction is empty; say what the robot is to do"
            return response
        response.success = True
        response.message = f"epoch {self._begin_epoch(instruction)}"
        return response

    def _begin_epoch(self, instruction: str) -> int:
        # Wall-clock time even in simulation: an epoch must exceed those of runs before this one.
        epoch = max(time.time_ns(), self._executor.epoch + 1)
        # First of all: once the epoch is known outside nothing of the one before may move the arm.
        self._executor.set_epoch(self._now(), epoch)
        message = msg.Epoch(id=epoch, instruction=instruction)
        message.stamp = self.get_clock().now().to_msg()
        self._epoch_publisher.publish(message)
        self._instruction_publisher.publish(String(data=instruction))
        self.get_logger().info(f"epoch {epoch}: {instruction!r}")
        return epoch

    # Commands

    def _on_tick(self) -> None:
        wall = time.perf_counter()
        self._poll_joint_state()
        now_ns = self._now()
        if self._silence.check(now_ns):
            self._last_refusal = "observation: the observation node has fallen silent"
        tick = self._executor.tick(now_ns)
        before_ns, now, after_ns = self._now(), self.get_clock().now(), self._now()
        self._clock_offset.look(before_ns, now.nanoseconds, after_ns)
        if tick.positions is None:
            self._end_commands()
        elif (way := self._executor.to_send(sent_ns := self._now())) is not None:
            stamp_ns = sent_ns + self._clock_offset.nanoseconds
            self._send_arm(tick, way, stamp_ns)
            self._send_gripper(tick.gripper)
            # When the arm is to be there.
            passed = stamps.to_message(stamp_ns + round(way[-1].time * stamps.NANOSECONDS)) if way else now.to_msg()
            self._publish_command(passed, tick)
        self._publish_status(now.to_msg(), tick)
        self._log_change(wall, tick)
        self._company.after(tick)
        self._last_tick = tick
        self._pace.turn(now_ns, wall, time.perf_counter())

    def _end_commands(self) -> None:
        self._send_arm.stop()
        self._send_gripper(None)

    # The end

    def come_to_rest(self) -> bool:
        """Brings the arm to rest for good; whether it is there, so that commands may end."""
        if self._executor.operator.stopped is None:
            self._executor.stop(self._now())
            self._last_tick = None
        tick = self._last_tick
        # A tick without a command leads the arm nowhere.
        rests = tick is not None and (tick.velocities is None or not tick.velocities.any())
        return not self._executor.enabled or rests

    def destroy_node(self) -> None:
        """Tells the controllers that commands end, and waits until they know."""
        if self.context.ok():
            self._end_commands()
            self._send_arm.flush()
        super().destroy_node()

    def _publish_command(self, stamp, tick: execution.Tick) -> None:
        # What was sent, and no more: before the first gripper command there are only the seven joints.
        gripper = () if tick.gripper is None else (tick.gripper,)
        message = JointState(name=self._state_names[: rig.NUM_JOINTS + len(gripper)])
        message.header.stamp = stamp
        message.position = array.array("d", (*tick.positions, *gripper))
        message.velocity = array.array("d", (*tick.velocities, *(0.0 for _ in gripper)))
        self._command_publisher.publish(message)

    def _publish_status(self, stamp, tick: execution.Tick) -> None:
        message = msg.ExecutorStatus(
            state=int(tick.state),
            reason=tick.reason.value,
            epoch=tick.epoch,
            observation_sequence=tick.observation_sequence,
            step=tick.step,
            shift=tick.shift,
            schedule=self.parameters.schedule,
            interventions=[intervention.value for intervention in tick.interventions],
        )
        message.header.stamp = stamp
        self._status_publisher.publish(message)

    def _log_change(self, wall: float, tick: execution.Tick) -> None:
        """Says what the state has become, each kind of change once a second at most.

        What comes sooner after the last line is said when that second is over, if it still is so: a state that lasts
        is always said.
        """
        kind = "interruption" if self._said[0] is State.EXECUTING else "other"
        lost = tick.reason is Reason.TRACKING_LOST
        if (tick.state, tick.reason) == self._said or (wall - self._said_at[kind] < 1.0 and not lost):
            return
        self._said, self._said_at[kind] = (tick.state, tick.reason), wall
        text = self._named(tick.state, tick.reason, " ")
        if lost:
            self.get_logger().error(f"{text}; check the arm, then enable again")
        elif kind == "interruption":
            self.get_logger().warning(text)
        else:
            self.get_logger().info(text)

    def _named(self, state: State, reason: Reason, between: str) -> str:
        """A state and its reason, which a disabled executor without another one would only say twice; with the figures
        that a reason has."""
        words = dict.fromkeys((state.name.lower(), reason.value))
        figures = self._executor.figures if reason in (Reason.GUARD_REFUSAL, Reason.TRACKING_LOST) else ""
        return ": ".join(filter(None, (between.join(filter(None, words)), figures)))

    # Reports

    def _report_executor(self) -> Report:
        executor, tick = self._executor, self._last_tick
        state, reason = (tick.state, tick.reason) if tick is not None else (State.DISABLED, Reason.DISABLED)
        values: dict[str, Any] = {"state": state.name.lower(), "reason": reason.value, "epoch": executor.epoch}
        values |= {f"chunks_{name}": count for name, count in sorted(executor.chunks.items())}
        interval = executor.watchdog.interval_ns
        values["chunk_interval_ms"] = "unknown" if interval is None else interval / 1e6
        values["chunk_gap_allowed_ms"] = executor.watchdog.gap_ns / 1e6
        values |= {f"interventions_{name}": count for name, count in sorted(executor.interventions.items())}
        values["interventions"] = sum(executor.interventions.values())
        values |= {f"holds_{name}": count for name, count in sorted(executor.holds.items())}
        values["joint_states_refused"] = executor.measured.refused
        values["joint_states_foreign"] = sum(self._foreign.values())
        values["foreign_names"] = "; ".join(list(self._foreign)[:4])
        values |= self._operator.report()
        values["clock_jumps"] = executor.clock_jumps
        values["last_refusal"] = self._last_refusal
        return Report(*self._judgement(state, reason), values)

    def _judgement(self, state: State, reason: Reason) -> tuple[bytes, str]:
        executor = self._executor
        refused = sum(count for name, count in executor.chunks.items() if name in _BROKEN)
        new = refused > self._reported_refusals or executor.measured.refused > self._reported_joint_refusals
        self._reported_refusals, self._reported_joint_refusals = refused, executor.measured.refused
        text = self._named(state, reason, ": ")
        if reason is Reason.STALE_JOINT_STATE and self._foreign:
            text += f"; {self.parameters.joint_states_topic} carries {'; '.join(list(self._foreign)[:2])}"
        if reason in (Reason.GUARD_REFUSAL, Reason.TRACKING_LOST):
            return ERROR, text
        if reason in (Reason.NON_FINITE, Reason.INVALID_CHUNK):
            return ERROR, f"{text}; {self._last_refusal}".rstrip("; ")
        if self._company.objected:
            return ERROR, f"{text}; {self._company.objected}; then call {topics.RESET}, then {topics.ENABLE}"
        if executor.operator.stopped is not None:
            return ERROR, f"{text}; call {topics.RESET}, then {topics.ENABLE}"
        if new:
            return ERROR, f"{text}; refused {self._last_refusal}"
        interval = executor.watchdog.interval_ns
        if interval is not None and interval > executor.watchdog.gap_ns:
            return WARN, (
                f"{text}; a chunk comes every {interval / 1e9:.2f} s, which is longer than max_chunk_gap "
                f"{self.parameters.max_chunk_gap:g} s: the arm stops between chunks"
            )
        leads = self.parameters.teleoperation_topic if self._teleoperated else topics.ACTION_CHUNK
        if leaders := self._company.leaders(leads):
            names = ", ".join(leaders)
            return WARN, f"{text}; {names} all publish {leads}, and the arm follows each in turn; end all but one"
        if reason in (Reason.STALE_CHUNK, Reason.STALE_JOINT_STATE, Reason.AWAITING_REST, Reason.CHUNK_EXHAUSTED):
            return WARN, text
        return OK, text

    def _report_commands(self) -> Report:
        figures, rate = self._pace.figures(), self._pace.rate
        if not figures:
            return Report(WARN, "no tick yet", {"rate": 0.0})
        values = {
            "rate": rate,
            "setting": self.parameters.command_rate,
            **figures,
            "overruns": self._pace.overruns,
            "real_time": self._real_time,
            "controller": self.parameters.controller,
            "takers": ", ".join(self._company.takers()),
            "others": ", ".join(self._company.others()),
        }
        problem = self._company.problem()
        if problem is not None:
            return Report(ERROR if values["others"] else WARN, problem, values)
        ahead, self._executor.measured.most_future_ns = self._executor.measured.most_future_ns, 0
        if self._begins_by_clock and ahead / stamps.NANOSECONDS > beat.ahead(1.0 / self.parameters.command_rate):
            problem = (
                f"the driver's clock is {ahead / 1e6:.1f} ms ahead, so its controller begins trajectories too late: "
                "let the clocks agree (chrony, PTP), or set trajectory_stamps to false"
            )
            return Report(WARN, problem, values)
        if rate < 0.95 * self.parameters.command_rate:
            return Report(WARN, f"{rate:.1f} Hz; set are {self.parameters.command_rate:g} Hz", values)
        return Report(OK, f"{rate:.1f} Hz", values)


_BROKEN = frozenset({ChunkRefusal.NON_FINITE.value, ChunkRefusal.INVALID.value, ChunkRefusal.FUTURE.value})


def _closedness(knuckle: float) -> float:
    """Of a leader's knuckle angle. One that is infinite is no end of the gripper's range, but as wrong as NaN."""
    return rig.gripper_closedness(knuckle) if math.isfinite(knuckle) else math.nan


def _action_space(name: str) -> rig.ActionSpace:
    try:
        return rig.ActionSpace.parse(name)
    except ValueError as error:
        raise chunk.ChunkError(str(error)) from None


def main() -> None:
    """Entry point of the executable `executor`."""
    run(ExecutorNode, ended=ExecutorNode.come_to_rest)


if __name__ == "__main__":
    main()
