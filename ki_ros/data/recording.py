"""A recording sampled as the observation node would have sampled it, in one pass, without holding a picture.

Reference times are those of `/observation_status` where the recording has it with the ages of the samples: then each
stream is offered only what the live node had, so every step is the observation that was published. Else they are a grid
of 1 / rate from the first time at which all streams are there (anew from the start of each recorded episode), and a
message counts as arrived at its log time.

Log times and stamps may be on different clocks (a simulation recorded without its clock). Then a message counts as
arrived at the latest stamp until it. One driver with a clock of its own does not make them different: they are the same
clock where that of any stream is.

A recording whose clock was set back is several: no sample, target or time of one has to do with those of another.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ki_ros.data.actions import CommandLog, CommandTopics
from ki_ros.data.bag import Bag, Message
from ki_ros.images import ENCODINGS, require_complete, to_rgb
from ki_ros.observation import cdr
from ki_ros.observation.buffer import NANOSECONDS
from ki_ros.observation.rig_streams import RigSampler, RigStreams, nanoseconds, sources, state_of
from ki_ros.observation.sampler import Refusal, Sample
from ki_ros.rig import STATE_DIM, CameraRole, robot

EPISODE = "/episode"
EPOCH = "/epoch"
INSTRUCTION = "/instruction"
OBSERVATION_STATUS = "/observation_status"

_TYPES = {
    EPISODE: "ki_ros/msg/Episode",
    EPOCH: "ki_ros/msg/Epoch",
    INSTRUCTION: "std_msgs/msg/String",
    OBSERVATION_STATUS: "ki_ros/msg/ObservationStatus",
}

# What the live node had at a reference time may reach the recorder this much later than the status of that time.
_LATE_NS = NANOSECONDS
_IMAGE_DEPTH = 512
_JOINT_DEPTH = 8192

# Log times and stamps that are further apart are on different clocks.
_SAME_CLOCK_NS = 10 * NANOSECONDS

# Two reference times further apart than this many steps have a gap between them.
_GAP_STEPS = 1.5

# A message that was stamped before the clock was set back arrives within this time, or not at all [ns].
_UNDERWAY_NS = NANOSECONDS

# Where nothing at all arrives for longer, the recording was paused or its clock set forward, maybe by years.
_SILENCE_NS = 5 * NANOSECONDS


class RecordingError(ValueError):
    """A recording that holds no episode. The message names the bag, what is wrong, and what to do."""


class UndecodableError(RecordingError):
    """A picture that was sampled and cannot be decoded. Sampling with `decode_images` leaves such steps out."""


class Event(NamedTuple):
    """A message that begins or ends an episode, or sets its instruction, and when it arrived [ns]."""

    arrival_ns: int
    message: cdr.EpisodeFields | cdr.EpochFields | str


class Timing(NamedTuple):
    """When the messages of a stream's topic were stamped and arrived, (N,) int64 [ns] each, in order of arrival."""

    stamps_ns: np.ndarray
    arrivals_ns: np.ndarray


class Refused(NamedTuple):
    """A reference time without an observation."""

    reference_ns: int
    stream: str
    reason: str


@dataclass(frozen=True)
class Recording:
    """A recording, or its part between two times at which the clock was set back, sampled. N observations, whatever
    episode they belong to.

    Attributes:
        streams: what was sampled.
        begin_ns: when the first message arrived [ns].
        stamps_ns: (N,) int64 reference times.
        states: (N, 8) float64, joint positions [rad] and gripper closedness.
        frames: by camera, (N,) int64, which message of its topic was sampled, counted from 0.
        sample_stamps_ns: by stream, (N,) int64, the stamp of the sample.
        breaks: (N,) bool, whether something is missing between an observation and the one before.
        refused: the reference times without an observation.
        events: in order of arrival.
        commands: what was commanded.
        timing: by stream.
        substituted: by reference time, the streams whose sample the live node had but the recording has not.
        exact: whether the reference times are those of the live node.
    """

    streams: RigStreams
    begin_ns: int
    stamps_ns: np.ndarray
    states: np.ndarray
    frames: dict[CameraRole, np.ndarray]
    sample_stamps_ns: dict[str, np.ndarray]
    breaks: np.ndarray
    refused: list[Refused]
    events: list[Event]
    commands: CommandLog
    timing: dict[str, Timing]
    substituted: list[tuple[int, str]]
    exact: bool


def sample_recording(
    bag: Bag, streams: RigStreams, topics: CommandTopics, *, decode_images: bool = False
) -> list[Recording]:
    """Samples a recording from beginning to end.

    Args:
        bag: an open bag.
        streams: what to sample.
        topics: where commands are.
        decode_images: whether to decode every sampled image already, so that one that cannot be decoded is refused as
            it would be live. Without it images are checked as far as that is possible without decoding them.

    Returns:
        One, or one more for each time that the clock was set back, in the order of recording. What arrives within a
        second after that is in none, for its stamps may be from before.

    Raises:
        RecordingError: a topic that is missing, or has another type.
    """
    _require_topics(bag, streams)
    sampled = sources(streams)
    facts = _Facts(
        decode=decode_images,
        same_clock=streams.stamp_source == "arrival" or _same_clock(bag, sampled),
        exact=streams.stamp_source == "header" and _has_ages(bag),
    )
    numbers: Counter[str] = Counter()
    pass_ = _Pass(streams, topics, facts, numbers)
    found: list[Recording] = []
    newest = 0
    for message in bag.messages({*sampled, *_of_type(bag, _TYPES), *_of_type(bag, topics.types)}):
        if message.log_time_ns < newest:
            found.append(pass_.finish())
            pass_ = _Pass(streams, topics, facts, numbers, from_ns=message.log_time_ns + _UNDERWAY_NS)
        newest = message.log_time_ns
        pass_.take(message)
    return [*found, pass_.finish()]


class _Facts(NamedTuple):
    """Of a bag: whether its images are decoded, its log times are on the clock of the stamps, and it is `exact`."""

    decode: bool
    same_clock: bool
    exact: bool


class _Frame(NamedTuple):
    """An image that is held without its pixels: which it is, and what is wrong with it."""

    number: int
    problem: ValueError | None


@dataclass
class _Columns:
    """The observations, column by column."""

    stamps: array = field(default_factory=lambda: array("q"))
    states: array = field(default_factory=lambda: array("d"))
    breaks: array = field(default_factory=lambda: array("b"))
    frames: dict[CameraRole, array] = field(default_factory=dict)
    samples: dict[str, array] = field(default_factory=dict)


class _Pass:
    """The one pass over the messages, or the part of it between two times at which the clock was set back.

    Args:
        streams: what to sample.
        topics: where commands are.
        facts: of the bag.
        numbers: of messages by topic, with those before this part; counted on.
        from_ns: log time [ns] before which only events are taken.
    """

    def __init__(
        self, streams: RigStreams, topics: CommandTopics, facts: _Facts, numbers: Counter[str], from_ns: int = 0
    ) -> None:
        self.streams = streams
        self.rig = RigSampler(
            streams,
            decode_image=_frame_number,
            image_depth=_IMAGE_DEPTH,
            joint_depth=_JOINT_DEPTH,
        )
        self.commands = CommandLog(topics, robot(streams.robot))
        self.events: list[Event] = []
        self.refused: list[Refused] = []
        self.substituted: list[tuple[int, str]] = []
        self._decode = facts.decode
        self._from = from_ns
        self._roles = {camera.image_topic: role for role, camera in streams.cameras.items()}
        self._numbers = numbers
        self._columns = _Columns(
            frames={role: array("q") for role in streams.cameras},
            samples={name: array("q") for source in self.rig.sources.values() for name in source.streams},
        )
        self._timing = {topic: (array("q"), array("q")) for topic in self.rig.sources}
        self._clock = _ArrivalClock(same=facts.same_clock)
        self._broken = True
        self._begin = 0
        self.exact = facts.exact
        self._ticks: _Statuses | _Grid = _Statuses(self._sample_status) if self.exact else _Grid(streams, self._sample)

    def take(self, message: Message) -> None:
        """Takes in the next message."""
        topic, raw = message.topic, message.raw
        source = self.rig.sources.get(topic)
        stamp = _stamp(raw) if source is not None else 0
        arrival = self._clock.arrival(message.log_time_ns, stamp)
        self._begin = self._begin or arrival
        self._ticks.before(message.log_time_ns, arrival)
        number = self._numbers[topic]
        self._numbers[topic] += 1
        if message.log_time_ns < self._from and topic not in (EPISODE, EPOCH, INSTRUCTION):
            return
        if source is not None:
            self._take_sample(topic, raw, number, arrival, stamp)
            if isinstance(self._ticks, _Grid):
                self._ticks.start_when(self._all_there, arrival)
            return
        try:
            if topic in self.commands.topics.types:
                self.commands.add(topic, raw, arrival)
            elif topic == OBSERVATION_STATUS:
                if isinstance(self._ticks, _Statuses):
                    self._ticks.add(message.log_time_ns, cdr.read_observation_status(raw))
            else:
                self._take_event(topic, raw, arrival)
        except cdr.CdrError:
            self.commands.refused[topic, "undecodable"] += 1

    def finish(self) -> Recording:
        """What was sampled, after the last message."""
        self._ticks.finish()
        columns = self._columns
        stamps = np.array(columns.stamps, dtype=np.int64)
        breaks = np.array(columns.breaks, dtype=bool)
        if len(stamps):
            breaks[1:] |= np.abs(np.diff(stamps)) > _GAP_STEPS / self.streams.rate * NANOSECONDS
        return Recording(
            streams=self.streams,
            begin_ns=self._begin,
            stamps_ns=stamps,
            states=np.array(columns.states, dtype=np.float64).reshape(-1, STATE_DIM),
            frames={role: np.array(numbers, dtype=np.int64) for role, numbers in columns.frames.items()},
            sample_stamps_ns={name: np.array(values, dtype=np.int64) for name, values in columns.samples.items()},
            breaks=breaks,
            refused=self.refused,
            events=self.events,
            commands=self.commands,
            timing={
                stream: Timing(*(np.array(column, dtype=np.int64) for column in self._timing[topic]))
                for topic, source in self.rig.sources.items()
                for stream in source.streams
            },
            substituted=self.substituted,
            exact=self.exact,
        )

    def _all_there(self) -> bool:
        return all(self.rig.sampler.newest_ns(name) is not None for name in self._columns.samples)

    def _take_sample(self, topic: str, raw: bytes, number: int, arrival: int, stamp: int) -> None:
        role = self._roles.get(topic)
        frame = None
        if role is not None:
            frame = _Frame(number, self._problem(role, raw))
        self.rig.accept(topic, raw, arrival, frame)
        stamps, arrivals = self._timing[topic]
        stamps.append(stamp if self.streams.stamp_source == "header" else arrival)
        arrivals.append(arrival)

    def _problem(self, role: CameraRole, raw: bytes) -> ValueError | None:
        """Why a message of a camera shows nothing."""
        try:
            if self._decode:
                self.rig.view(role, raw)
            elif self.streams.cameras[role].transport == "compressed":
                compressed = cdr.read_compressed_image(raw)
                require_complete(compressed.data, compressed.format)
            else:
                _check_raw(cdr.read_image(raw))
        except ValueError as error:
            return error
        return None

    def _take_event(self, topic: str, raw: bytes, arrival: int) -> None:
        if topic == EPISODE:
            event = Event(arrival, cdr.read_episode(raw))
            # A recorder that subscribes to what it writes has it twice.
            if all(event.message != other.message for other in self.events):
                self.events.append(event)
                if event.message.event == 0 and isinstance(self._ticks, _Grid):
                    self._ticks.restart()
                    self._ticks.start_when(self._all_there, arrival)
        elif topic == EPOCH:
            self.events.append(Event(arrival, cdr.read_epoch(raw)))
        else:
            self.events.append(Event(arrival, cdr.read_string(raw)))

    def _sample_status(self, status: cdr.ObservationStatusFields) -> None:
        if not status.complete:
            self._refuse(status.stamp_ns, status.stream, status.reason)
            return
        latest = {
            name: status.stamp_ns - round(age * NANOSECONDS)
            for name, age in zip(status.streams, status.ages.tolist(), strict=False)
        }
        self._sample(status.stamp_ns, latest)

    def _sample(self, reference: int, latest: dict[str, int] | None = None) -> bool:
        """Takes the observation at a time, or notes why there is none. Returns whether there is one."""
        result = self.rig.sampler.sample(reference, latest)
        if isinstance(result, Refusal):
            self._refuse(reference, result.stream, result.reason.value)
            return False
        for name, stamp in (latest or {}).items():
            if name in result.streams and result.streams[name].stamp_ns != stamp:
                self.substituted.append((reference, name))
        self._append(result)
        return True

    def _append(self, sample: Sample) -> None:
        columns = self._columns
        columns.stamps.append(sample.reference_ns)
        columns.states.extend(state_of(sample).tolist())
        columns.breaks.append(self._broken)
        for role, numbers in columns.frames.items():
            numbers.append(sample.streams[role.value].value)
        for name, stamps in columns.samples.items():
            stamps.append(sample.streams[name].stamp_ns)
        self._broken = False

    def _refuse(self, reference: int, stream: str, reason: str) -> None:
        self.refused.append(Refused(reference, stream, reason))
        self._broken = True


class _Statuses:
    """Samples at the reference times of the live node, once all that it had is there."""

    def __init__(self, sample: Callable[[cdr.ObservationStatusFields], None]) -> None:
        self._sample = sample
        self._waiting: deque[tuple[int, cdr.ObservationStatusFields]] = deque()

    def add(self, log_ns: int, status: cdr.ObservationStatusFields) -> None:
        self._waiting.append((log_ns, status))

    def before(self, log_ns: int, _arrival: int) -> None:
        while self._waiting and self._waiting[0][0] + _LATE_NS < log_ns:
            self._sample(self._waiting.popleft()[1])

    def finish(self) -> None:
        while self._waiting:
            self._sample(self._waiting.popleft()[1])


class _Grid:
    """Samples at equal intervals. The time of tick k is rounded from k, so that the rate holds for hours.

    Args:
        streams: with the rate, and how old samples may be.
        sample: called with each reference time; returns whether there is an observation.
    """

    def __init__(self, streams: RigStreams, sample: Callable[[int], bool]) -> None:
        ages = (*(camera.max_age for camera in streams.cameras.values()), streams.joint_states_max_age)
        self._silence = max(_SILENCE_NS, nanoseconds(max(*ages, streams.gripper_max_age)))
        self._step = NANOSECONDS / streams.rate
        self._sample = sample
        self._origin: int | None = None
        self._count = 0
        self._now = 0

    def start_when(self, ready: Callable[[], bool], arrival: int) -> None:
        """Begins at this time, if it has not begun and everything is ready."""
        if self._origin is None and ready():
            self._origin, self._count = arrival, 0

    def restart(self) -> None:
        """Ends the grid; another may begin."""
        self._origin = None

    def before(self, _log_ns: int, arrival: int) -> None:
        """Samples what lies before a message that arrives then."""
        if self._origin is not None and arrival < self._now - NANOSECONDS:
            self._origin, self._count = arrival, 0
        silent = arrival - self._now > self._silence
        self._now = arrival
        while self._origin is not None and self._next() < arrival:
            if self._sample(self._next()) or not silent:
                self._count += 1
            else:
                # The samples are too old from here on, so one refusal stands for all until something arrives.
                self._origin, self._count = arrival, 0

    def finish(self) -> None:
        if self._origin is not None and self._next() <= self._now:
            self._sample(self._next())

    def _next(self) -> int:
        return self._origin + round(self._count * self._step)


class _ArrivalClock:
    """When messages arrived, on the clock of the stamps: the log time, where that is the same clock."""

    def __init__(self, *, same: bool) -> None:
        self._same = same
        self._latest = 0

    def arrival(self, log_ns: int, stamp_ns: int) -> int:
        if self._same:
            return log_ns
        if stamp_ns > self._latest or 0 < stamp_ns < self._latest - NANOSECONDS:
            self._latest = stamp_ns
        # Until the first stamp it is not known which clock it is; what comes before is before everything.
        return self._latest


def _frame_number(_role: CameraRole, frame: Any) -> int:
    if frame.problem is not None:
        raise frame.problem
    return frame.number


def _check_raw(image: cdr.ImageFields) -> None:
    """Raises ImageError as `to_rgb` would. Of an image whose size is right a row is converted, not all of them."""
    fits = image.height > 0 and len(image.data) == image.height * image.step
    rows = 1 if fits and image.encoding in ENCODINGS else image.height
    to_rgb(
        encoding=image.encoding,
        height=rows,
        width=image.width,
        step=image.step,
        data=image.data[: image.step] if rows == 1 and fits else image.data,
    )


def _stamp(raw: bytes) -> int:
    try:
        return cdr.stamp_ns(raw)
    except cdr.CdrError:
        return 0


def _same_clock(bag: Bag, topics: Collection[str]) -> bool:
    """Whether log times are on the clock of the stamps, by the first stamp of each topic: of any that it agrees with.

    A clock that has nothing to do with log times agrees with them nowhere, and a driver that stamps by a clock of its
    own (since boot, say) is no reason to read the others by it.
    """
    waiting = set(topics)
    for message in bag.messages(waiting):
        stamp = _stamp(message.raw)
        if stamp and message.topic in waiting:
            if abs(message.log_time_ns - stamp) <= _SAME_CLOCK_NS:
                return True
            waiting.remove(message.topic)
            if not waiting:
                return False
    return False


def _has_ages(bag: Bag) -> bool:
    """Whether the recording says which samples the live node had."""
    for message in bag.messages(_of_type(bag, {OBSERVATION_STATUS: _TYPES[OBSERVATION_STATUS]})):
        try:
            status = cdr.read_observation_status(message.raw)
        except cdr.CdrError:
            continue
        if status.complete:
            return bool(len(status.ages)) and len(status.ages) == len(status.streams)
    return False


def _of_type(bag: Bag, types: dict[str, str]) -> Collection[str]:
    """Those of the topics that the bag has, with this type, as CDR."""
    return {
        topic
        for topic, type_name in types.items()
        if topic in bag.topics
        and bag.topics[topic].type_name == type_name
        and bag.topics[topic].serialization_format == "cdr"
    }


def _require_topics(bag: Bag, streams: RigStreams) -> None:
    for source in sources(streams).values():
        topic = bag.topics.get(source.topic)
        if topic is None:
            there = sorted(name for name, other in bag.topics.items() if other.type_name == source.type_name)
            raise RecordingError(
                f"{bag.path} has no topic {source.topic} ({source.setting}); of type {source.type_name} it has "
                f"{', '.join(there) or 'none'}: correct the parameter file"
            )
        if topic.type_name != source.type_name:
            raise RecordingError(
                f"{bag.path}: {source.topic} ({source.setting}) has type {topic.type_name}, expected "
                f"{source.type_name}; correct the topic or its transport in the parameter file"
            )
        if topic.serialization_format != "cdr":
            raise RecordingError(
                f"{bag.path}: {source.topic} is serialised as {topic.serialization_format!r}, and only cdr is read; "
                "record it with a DDS middleware"
            )
