"""Node `recorder`: records demonstrations and runs of the policy, one bag per episode.

Services begin and end an episode; with `auto_episodes` each new instruction does. Messages wait, serialised, in the
middleware's queues until a poll takes them all at once, and go as they are to the thread that writes the bag. The node
is subscribed all the time, so an episode misses nothing at its beginning. What a bag is, and when a disk is too full,
is decided in `ki_ros.data.recorder`; this node carries messages there.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from std_msgs.msg import String

from ki_ros import msg, rig, srv
from ki_ros.data.bag import BagWriteError
from ki_ros.data.recorder.bag import EpisodeBag, EpisodeInfo, Outcome, new_id
from ki_ros.data.recorder.disk import GIGABYTE, DiskLevel, DiskState, DiskWatch
from ki_ros.data.recorder.topics import RecordedTopics, recorded_topics
from ki_ros.nodes import executor, topics
from ki_ros.nodes.diagnostics import ERROR, OK, WARN, Diagnostics, Report
from ki_ros.nodes.discovery import LOOK_SECONDS
from ki_ros.nodes.listening import Arrival, Listener
from ki_ros.nodes.parameters import declare, parameter
from ki_ros.nodes.recorders import company
from ki_ros.nodes.run import run
from ki_ros.nodes.stamps import NANOSECONDS
from ki_ros.observation.rig_streams import TRANSPORTS, CameraStream, RigStreams
from ki_ros.rig import CameraRole

POLL_SECONDS = 0.02

_CLOCK_SET_BACK_NS = NANOSECONDS
"""Times of arrival that jump back by more than this are a clock that was set back, not messages out of order."""

_COMPLETE_SECONDS = 60.0
"""How long stop_episode waits for the disk."""

_RETRY_SECONDS = 0.1
"""Time between two tries to begin an episode that could not begin."""

_DISK_RETRY_SECONDS = 10.0
"""The same where a bag could not be made: each try may leave one without anything in it."""

_LOOKING = "it is still looking whether it is the only recorder"

_STREAMS = RigStreams()
_EXECUTOR = {f.name: f.default for f in fields(executor.Parameters)}


@dataclass
class Exterior1Parameters:
    """The camera over the robot's left shoulder."""

    topic: str = parameter(_STREAMS.cameras[CameraRole.EXTERIOR_1].topic, "As for the observation node")
    transport: str = parameter("raw", "As for the observation node", choices=tuple(TRANSPORTS))


@dataclass
class Exterior2Parameters(Exterior1Parameters):
    """The camera over the robot's right shoulder."""

    topic: str = parameter("", "As for the observation node")


@dataclass
class WristParameters(Exterior1Parameters):
    """The camera on the gripper."""

    topic: str = parameter(_STREAMS.cameras[CameraRole.WRIST].topic, "As for the observation node")


@dataclass
class Parameters:
    """Parameters of the recorder node. The names of topics are those of the observation and the executor node."""

    exterior_1: Exterior1Parameters
    exterior_2: Exterior2Parameters
    wrist: WristParameters
    robot: str = parameter(_STREAMS.robot, "The arm; noted in every episode", choices=tuple(rig.ROBOTS))
    joint_states_topic: str = parameter(_STREAMS.joint_states_topic, "Topic of the arm's joint states")
    gripper_topic: str = parameter(_STREAMS.gripper_topic, "Topic of the gripper's joint state")
    arm_command_topic: str = parameter(_EXECUTOR["arm_command_topic"], "Topic of joint positions for a controller")
    trajectory_topic: str = parameter(_EXECUTOR["trajectory_topic"], "Topic of trajectories for a controller")
    gripper_command_topic: str = parameter(_EXECUTOR["gripper_command_topic"], "Topic of the gripper's commands")
    # Of an empty list ROS could not tell the type.
    extra_topics: list[str] = parameter([""], "More topics to record, such as /observation or /tf")
    output: str = parameter("recordings", "Directory below which every episode has one of its own")
    auto_episodes: bool = parameter(
        False, "Without services: an instruction's epoch begins an episode, the next one ends it, outcome unknown"
    )
    set_instruction: bool = parameter(
        False,
        "start_episode also sets its instruction through set_instruction: an enabled policy then moves the arm",
    )
    queue_mb: float = parameter(256.0, "Messages that may wait for the disk [MB]; more are dropped", low=1.0, high=1e5)
    warn_free_gb: float = parameter(10.0, "Warn when less is free on the disk [GB]", low=0.0, high=1e6)
    warn_free_minutes: float = parameter(10.0, "Warn when the disk lasts no longer than this", low=0.0, high=1e4)
    stop_free_gb: float = parameter(2.0, "End the episode when less is free [GB]", low=0.0, high=1e6)

    def recorded(self) -> RecordedTopics:
        """What is recorded. Raises ValueError where the values do not go together."""
        cameras = {role: getattr(self, role.value) for role in CameraRole}
        streams = RigStreams(
            cameras={role: CameraStream(c.topic, c.transport) for role, c in cameras.items() if c.topic},
            robot=self.robot,
            joint_states_topic=self.joint_states_topic,
            gripper_topic=self.gripper_topic,
        )
        return recorded_topics(
            streams,
            arm_command_topic=self.arm_command_topic,
            trajectory_topic=self.trajectory_topic,
            gripper_command_topic=self.gripper_command_topic,
            extra=[name for name in self.extra_topics if name],
        )


@dataclass
class _Waiting:
    """An instruction whose episode has not begun yet.

    Attributes:
        cause: the arrival of its epoch.
        instruction: of the epoch.
        reason: why it has not begun.
        told: whether the log says so.
        not_before: when to try again at the earliest [s of the monotonic clock].
    """

    cause: Arrival
    instruction: str
    reason: str = _LOOKING
    told: bool = False
    not_before: float = 0.0


class RecorderNode(Node):
    """Everything but the writing of bags runs in the executor's thread.

    Raises:
        ParameterError: a parameter that is unknown or has a value that it cannot have.
        ValueError: parameters that do not go together.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("recorder", **options)
        self._p = p = declare(self, Parameters)
        if p.auto_episodes and p.set_instruction:
            raise ValueError("auto_episodes and set_instruction are both true: each would start the other; choose one")
        self._output = Path(p.output).expanduser()
        self._disk = DiskWatch(
            self._output,
            warn_bytes=p.warn_free_gb * GIGABYTE,
            warn_seconds=p.warn_free_minutes * 60.0,
            stop_bytes=p.stop_free_gb * GIGABYTE,
        )
        self._bag: EpisodeBag | None = None
        self._waiting: _Waiting | None = None
        self._looked = time.monotonic() + LOOK_SECONDS
        self._closing: list[EpisodeBag] = []
        self._begun_wall = 0
        self._newest = 0
        self._lost: Counter[str] = Counter()
        self._instruction = ""
        self._last = "nothing recorded yet"
        self._written = (0, time.monotonic())
        self._rate = 0.0
        self._disk_warned = False
        self._listener = Listener(self, p.recorded())
        self._start_service = self.resolve_service_name(topics.START_EPISODE)
        self._instruction_topic = self.resolve_topic_name(topics.INSTRUCTION)
        self._episode_publisher = self.create_publisher(msg.Episode, topics.EPISODE, topics.EPISODE_QOS)
        self._set_instruction = self.create_client(srv.SetInstruction, topics.SET_INSTRUCTION)
        self._services = [
            self.create_service(srv.StartEpisode, topics.START_EPISODE, self._on_start),
            self.create_service(srv.StopEpisode, topics.STOP_EPISODE, self._on_stop),
        ]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._poll_timer = self.create_timer(POLL_SECONDS, self._poll, clock=steady)
        self._retry_timer = self.create_timer(_RETRY_SECONDS, self._retry, clock=steady)
        self._watch_timer = self.create_timer(1.0, self._watch, clock=steady)
        self._diagnostics = Diagnostics(
            self, {"episode": self._report_episode, "topics": self._report_topics, "disk": self._report_disk}, p.robot
        )
        how = "each instruction is an episode" if p.auto_episodes else f"waiting for {topics.START_EPISODE}"
        self.get_logger().info(f"recording to {self._output.absolute()}, {how}")

    def destroy_node(self) -> None:
        """Ends the episode in progress and completes its bag."""
        if self._bag is not None:
            with contextlib.suppress(Exception):
                # Once a signal has shut ROS down there may be nothing to take any more.
                self._poll()
        if self._bag is not None:
            self._end(Outcome.UNKNOWN, "the recorder was stopped")
        for bag in self._closing:
            bag.join()
        super().destroy_node()

    # Messages

    def _poll(self) -> None:
        """Hands everything that has come to the bag."""
        for arrival in self._listener.take():
            self._accept(arrival)

    def _accept(self, arrival: Arrival) -> None:
        if arrival.source.latched and self._hear(arrival):
            return
        bag = self._bag
        if bag is None or arrival.wall_ns < self._begun_wall:
            return
        time_ns = self._listener.time(arrival.wall_ns)
        if time_ns < self._newest - _CLOCK_SET_BACK_NS:
            self._end(Outcome.UNKNOWN, "the clock was set back")
            return
        log_time = max(time_ns, bag.start_ns)
        self._newest = max(self._newest, log_time)
        if arrival.lost:
            self._lost[arrival.source.topic] += arrival.lost
        bag.put(arrival.source.topic, log_time, arrival.raw)

    def _hear(self, arrival: Arrival) -> bool:
        """Learns the instruction in force; with auto_episodes, ends and begins an episode. Whether it tried to."""
        source = arrival.source
        if source.topic == self._instruction_topic:
            self._instruction = deserialize_message(arrival.raw, String).data.strip()
        if source.type is not msg.Epoch:
            return False
        self._instruction = deserialize_message(arrival.raw, msg.Epoch).instruction
        if not self._p.auto_episodes:
            return False
        if self._bag is not None:
            self._end(Outcome.UNKNOWN, "the next instruction came", arrival.wall_ns)
        self._waiting = _Waiting(arrival, self._instruction)
        self._try_waiting(self._waiting, arrival.wall_ns)
        return True

    # Episodes

    def _on_start(self, request: srv.StartEpisode.Request, response: srv.StartEpisode.Response):
        instruction = request.instruction.strip()
        self._poll()
        if (obstacle := self._obstacle()) is not None:
            response.message = obstacle
            return response
        response.success, response.message = self._begin(instruction or self._instruction, request.note.strip())
        if response.success:
            response.id = self._bag.info.id
            if instruction and self._p.set_instruction:
                response.message += self._ask_for(instruction)
        return response

    def _retry(self) -> None:
        """Tries again to begin what waits. All that has come until now belongs to the time before the episode."""
        if self._waiting is None:
            return
        now = time.time_ns()
        self._poll()
        if self._waiting is not None:
            self._try_waiting(self._waiting, now)

    def _try_waiting(self, waiting: _Waiting, wall_ns: int) -> None:
        """Begins the episode of an instruction, at a system time, unless something is in the way.

        Two nodes may not know of each other at first, and no person stands by, so that takes its time.
        """
        if time.monotonic() < max(waiting.not_before, self._looked):
            return
        note = "begun by an instruction"
        if late := (wall_ns - waiting.cause.wall_ns) / NANOSECONDS:
            note += f", {late:.1f} s after it: {waiting.reason}"
        reason = self._obstacle()
        if reason is None:
            begun, reason = self._begin(waiting.instruction, note, waiting.cause, wall_ns)
            if begun:
                return
            waiting.not_before = time.monotonic() + _DISK_RETRY_SECONDS
        waiting.reason = reason
        if not waiting.told:
            waiting.told = True
            self.get_logger().warning(
                f"the episode of {waiting.instruction!r} has not begun: {reason}; it begins as soon as it can"
            )

    def _obstacle(self) -> str | None:
        """Why no episode can begin now, and the remedy; None where one can."""
        if self._bag is not None:
            return f"episode {self._bag.info.id} is being recorded already; call {topics.STOP_EPISODE} to end it first"
        if (others := self._company()) is not None:
            return others
        if not self._listener.time(time.time_ns()):
            return "simulated time does not pass: nothing on /clock; start it, or set use_sim_time to false"
        try:
            disk = self._disk.state(0.0)
        except OSError as error:
            return str(error)
        return disk.message if disk.level is DiskLevel.STOP else None

    def _company(self) -> str | None:
        return company(self, self._start_service, self.get_fully_qualified_name())

    def _begin(
        self, instruction: str, note: str, cause: Arrival | None = None, wall_ns: int | None = None
    ) -> tuple[bool, str]:
        """Begins an episode, now or at a system time, which is the arrival of the epoch that caused it or later.

        Only where there is no `_obstacle`.

        Returns:
            Whether it did, and where it is recorded or why it did not.
        """
        wall = time.time_ns() if wall_ns is None else wall_ns
        try:
            self._listener.fit()
            self._bag = EpisodeBag(
                self._output,
                EpisodeInfo(new_id(), instruction, self._p.robot, note),
                self._listener.time(wall),
                {topic: self._listener.topic_info(source) for topic, source in self._listener.sources.items()},
                episode_topic=self._episode_publisher.topic_name,
                queue_bytes=round(self._p.queue_mb * 1e6),
            )
        except (BagWriteError, OSError) as error:
            return False, str(error)
        self._waiting = None
        self._begun_wall, self._newest = wall, self._bag.start_ns
        self._lost.clear()
        self._written = (0, time.monotonic())
        for source in self._listener.sources.values():
            # Behind an epoch comes its instruction; the one before belongs to the episode before. An episode that
            # begins later than its epoch may have the instruction by then, one that begins with it is yet to get it.
            given = cause is None or cause.wall_ns < min(wall, source.heard_ns)
            stale = source.topic == self._instruction_topic and not given
            newest = cause.raw if cause is not None and source is cause.source else source.newest
            if newest is not None and not stale:
                self._bag.put(source.topic, self._bag.start_ns, newest)
        self._publish_mark(self._bag, self._bag.start_ns, msg.Episode.START, Outcome.UNKNOWN, note)
        message = f"recording to {self._bag.directory.absolute()}"
        if not instruction:
            message += "; there is no instruction: none was given, and none is in force"
        if silent := self._listener.silent():
            message += f"; nothing arrives on {', '.join(silent)}"
        self.get_logger().info(f"episode {self._bag.info.id}: {instruction!r}, {message}")
        return True, message

    def _ask_for(self, instruction: str) -> str:
        """Sets the instruction through the executor's service. What there is to say of that, for the response."""
        if not self._set_instruction.service_is_ready():
            return f"; {topics.SET_INSTRUCTION} is not there: the instruction is recorded, and nobody was told"
        future = self._set_instruction.call_async(srv.SetInstruction.Request(instruction=instruction))
        future.add_done_callback(self._on_asked)
        return ""

    def _on_asked(self, future: Any) -> None:
        answer = future.result()
        if answer is None or not answer.success:
            reason = "no answer" if answer is None else answer.message
            self.get_logger().error(f"{topics.SET_INSTRUCTION} failed: {reason}")

    def _on_stop(self, request: srv.StopEpisode.Request, response: srv.StopEpisode.Response):
        if self._bag is None:
            waiting, self._waiting = self._waiting, None
            response.message = f"no episode is being recorded; call {topics.START_EPISODE} to begin one"
            if waiting is not None:
                response.message += f". That of {waiting.instruction!r} is given up; it had not begun: {waiting.reason}"
            return response
        known = [outcome.value for outcome in Outcome]
        if request.outcome not in known:
            names = ", ".join(f"{outcome.value} ({outcome.name.lower()})" for outcome in Outcome)
            response.message = f"outcome is {request.outcome}; use one of {names}. The episode goes on"
            return response
        self._poll()
        bag = self._bag
        if bag is None:
            response.message = self._last
            return response
        response.bag = str(bag.directory.absolute())
        summary = self._end(Outcome(request.outcome), request.note.strip())
        # Blocks the thread: there is no episode now that could miss a message.
        if not bag.join(_COMPLETE_SECONDS):
            response.message = f"{summary}; the disk has not taken all of it after {_COMPLETE_SECONDS:g} s"
        elif bag.failure is not None:
            response.message = f"the bag is incomplete: {bag.failure}"
        else:
            response.success, response.message = True, summary
        return response

    def _end(self, outcome: Outcome, note: str, wall_ns: int | None = None) -> str:
        """Ends the episode, now or at a system time; its bag is completed in the background.

        Returns:
            What was recorded and what was lost, for a person.
        """
        bag, self._bag = self._bag, None
        stamp = max(self._listener.time(time.time_ns() if wall_ns is None else wall_ns), self._newest)
        losses = self._losses(bag)
        stop_note = "; ".join(filter(None, (note, losses)))
        bag.stop(stamp, outcome, stop_note, lambda: self._on_complete(bag))
        self._closing = [closing for closing in self._closing if not closing.join(0)] + [bag]
        full_note = "; ".join(filter(None, (bag.info.note, stop_note)))
        self._publish_mark(bag, stamp, msg.Episode.STOP, outcome, full_note)
        seconds = (stamp - bag.start_ns) / NANOSECONDS
        self._last = (
            f"episode {bag.info.id} ended after {seconds:.1f} s, {outcome.name.lower()}: {bag.messages} messages, "
            f"{bag.bytes / 1e6:.1f} MB" + (f"; {stop_note}" if stop_note else "")
        )
        if losses:
            self.get_logger().warning(self._last)
        else:
            self.get_logger().info(self._last)
        return self._last

    def _on_complete(self, bag: EpisodeBag) -> None:
        # In the thread of the bag.
        if bag.failure is not None:
            self.get_logger().error(f"the bag of episode {bag.info.id} is incomplete: {bag.failure}")

    def _losses(self, bag: EpisodeBag) -> str:
        parts = []
        if bag.dropped:
            parts.append(f"dropped because the disk was too slow: {_counts(bag.dropped)}")
        if self._lost:
            parts.append(f"lost before they reached the recorder: {_counts(self._lost)}")
        if bag.failure is not None:
            parts.append(f"the bag is incomplete: {bag.failure}")
        return "; ".join(parts)

    def _publish_mark(self, bag: EpisodeBag, stamp_ns: int, event: int, outcome: Outcome, note: str) -> None:
        info = bag.info
        message = msg.Episode(
            id=info.id, instruction=info.instruction, event=event, outcome=int(outcome), robot=info.robot, note=note
        )
        message.stamp.sec, message.stamp.nanosec = divmod(stamp_ns, NANOSECONDS)
        if self.context.ok():
            self._episode_publisher.publish(message)

    # Watching

    def _find_extra_topics(self) -> None:
        try:
            for source in self._listener.find_extra():
                if self._bag is not None:
                    self._bag.add_topic(source.topic, self._listener.topic_info(source))
        except (ValueError, ImportError, AttributeError, BagWriteError) as error:
            self.get_logger().error(f"extra_topics: {error}", throttle_duration_sec=10.0)

    def _watch(self) -> None:
        self._find_extra_topics()
        self._listener.fit()
        bag = self._bag
        if bag is None:
            self._rate = 0.0
            return
        before, then = self._written
        now = time.monotonic()
        self._written = (bag.bytes, now)
        self._rate = (bag.bytes - before) / max(now - then, 1e-3)
        if bag.failure is not None:
            self._end(Outcome.UNKNOWN, "the disk failed")
            return
        disk = self._disk_state()
        if disk.level is DiskLevel.STOP:
            self.get_logger().error(disk.message)
            self._end(Outcome.UNKNOWN, f"the disk is full: {disk.message}")
        elif disk.level is DiskLevel.WARN:
            self.get_logger().warning(disk.message, throttle_duration_sec=60.0)

    def _disk_state(self) -> DiskState:
        try:
            return self._disk.state(self._rate)
        except OSError as error:
            return DiskState(DiskLevel.WARN, 0, 0.0, f"the disk of {self._output} cannot be asked: {error}")

    # Reports

    def _report_episode(self) -> Report:
        bag = self._bag
        if bag is None:
            broken = [closing for closing in self._closing if closing.failure is not None]
            if broken:
                return Report(ERROR, f"the last bag is incomplete: {broken[-1].failure}", {"recording": False})
            if self._waiting is not None:
                message = f"not recording; the episode of {self._waiting.instruction!r} waits: {self._waiting.reason}"
                return Report(WARN, message, {"recording": False})
            if (others := self._company()) is not None:
                return Report(WARN, f"not recording; {others}", {"recording": False})
            return Report(OK, f"not recording; {self._last}", {"recording": False})
        values = {
            "recording": True,
            "id": bag.info.id,
            "instruction": bag.info.instruction,
            "directory": str(bag.directory),
            "messages": bag.messages,
            "megabytes": bag.bytes / 1e6,
            "megabytes_per_second": self._rate / 1e6,
            "queue_share": bag.queued_share,
            "dropped": sum(bag.dropped.values()),
            "lost_before": sum(self._lost.values()),
        }
        if losses := self._losses(bag):
            return Report(ERROR if bag.failure is not None else WARN, losses, values)
        return Report(OK, f"recording episode {bag.info.id}: {bag.info.instruction!r}", values)

    def _report_topics(self) -> Report:
        values = {topic: source.received for topic, source in sorted(self._listener.sources.items())}
        problems = []
        if silent := self._listener.silent():
            problems.append(f"nothing arrives on {', '.join(silent)}")
        if self._bag is not None and not self._listener.commanded():
            problems.append("no command has arrived: actions will be taken from the measured joints")
        problems += self._listener.mistyped()
        if absent := self._listener.absent():
            problems.append(f"nobody publishes {', '.join(absent)}")
        return Report(WARN, "; ".join(problems), values) if problems else Report(OK, "all sensors arrive", values)

    def _report_disk(self) -> Report:
        disk = self._disk_state()
        values = {"free_gb": disk.free / GIGABYTE, "minutes_left": disk.seconds_left / 60}
        level = {DiskLevel.OK: OK, DiskLevel.WARN: WARN, DiskLevel.STOP: ERROR}[disk.level]
        return Report(level, disk.message, values)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{topic} {count}" for topic, count in sorted(counter.items()))


def main() -> None:
    """Entry point of the executable `recorder`."""
    run(RecorderNode)


if __name__ == "__main__":
    main()
