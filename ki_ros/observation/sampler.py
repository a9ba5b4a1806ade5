"""Every stream sampled at one reference time: an observation, or a refusal that says why there is none.

Definitions, all in nanoseconds on the clock of the stamps:

- the sample of a stream is its newest message stamped at or before the reference time;
- the age of a sample is the reference time minus its stamp;
- the spread of an observation is the latest stamp of its samples minus the earliest.

An age equal to its limit, and a spread equal to its limit, are accepted.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ki_ros.observation.buffer import NANOSECONDS, Entry, StreamBuffer


class Reason(str, enum.Enum):
    """Why there is no observation, or why a message is of no use to its stream."""

    CLOCK = "clock"
    """The reference time is zero or less: the clock has not started."""
    NEVER_RECEIVED = "never_received"
    """Not one usable message of the stream has arrived."""
    STALE = "stale"
    """The newest message is older than the stream's limit."""
    NOT_YET = "not_yet"
    """Every message is stamped after the reference time."""
    SPREAD = "spread"
    """The samples lie too far apart in time."""
    NO_STAMP = "no_stamp"
    """Messages arrive with a stamp of zero."""
    FOREIGN_JOINTS = "foreign_joints"
    """Joint states arrive, but none of the joints that are needed is in them."""
    JOINT_MISSING = "joint_missing"
    """Joint states arrive with only some of the joints that are needed."""
    NON_FINITE = "non_finite"
    """A joint's position is not a finite number."""
    OUT_OF_RANGE = "out_of_range"
    """The gripper's joint is at an angle that it cannot have."""
    UNDECODABLE = "undecodable"
    """The message does not hold what its type, encoding or format says."""


@dataclass(frozen=True)
class StreamSpec:
    """A stream of an observation.

    Attributes:
        name: of the stream.
        max_age_ns: limit of its sample's age [ns].
        decode: turns the payload of a message into the value of the sample; only called for messages that are sampled.
            Raises ValueError, with an attribute `reason` (a Reason) where that is not UNDECODABLE.
        capacity: messages kept.
        topic: where its messages come from, for sentences.
        age_setting: the setting that holds the age limit, for sentences.
    """

    name: str
    max_age_ns: int
    decode: Callable[[Any], Any]
    capacity: int = 16
    topic: str = ""
    age_setting: str = "its age limit"


class Sampled(NamedTuple):
    """The sample of one stream: its stamp and age [ns], and the decoded value."""

    stamp_ns: int
    age_ns: int
    value: Any


@dataclass(frozen=True)
class Sample:
    """An observation: `streams` has the sample of every stream, by name, in the order in which they were given."""

    reference_ns: int
    streams: Mapping[str, Sampled]


@dataclass(frozen=True)
class Refusal:
    """Why there is no observation.

    Attributes:
        reason: what is wrong.
        stream: with which stream; empty when it is none in particular.
        message: one sentence for a person: what, by how much, and what to do.
        figures: the numbers in that sentence by name [s].
    """

    reason: Reason
    stream: str
    message: str
    figures: Mapping[str, float] = field(default_factory=dict)


class Rejection(NamedTuple):
    """A message that is of no use to its stream, and a sentence about it."""

    reason: Reason
    detail: str


class _Stream:
    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec
        self.buffer: StreamBuffer[Any] = StreamBuffer(spec.capacity)
        self.accepted = 0
        self.rejected: Counter[Reason] = Counter()
        self.last_rejection: Rejection | None = None
        self.rejected_last = False
        self.decoded: tuple[int, object, Any] | None = None


class ObservationSampler:
    """Holds the messages of all streams and samples them at reference times. Not thread-safe.

    Reference times may go back (a simulation that is reset, a system clock that is set): messages stamped more than
    `clock_tolerance_ns` after the new time are dropped, and sampling goes on with what arrives.

    Args:
        streams: the streams of an observation, at least one, with different names.
        max_spread_ns: limit of an observation's spread [ns].
        clock_tolerance_ns: see above [ns].
        spread_setting: the setting that holds the limit of the spread, for sentences.

    Attributes:
        sampled: number of observations.
        refused: number of refusals by (reason, stream).

    Raises:
        ValueError: no stream, or two of the same name.
    """

    def __init__(
        self,
        streams: Sequence[StreamSpec],
        max_spread_ns: int,
        *,
        clock_tolerance_ns: int = NANOSECONDS // 10,
        spread_setting: str = "max_spread",
    ) -> None:
        self._streams = {spec.name: _Stream(spec) for spec in streams}
        if not streams or len(self._streams) != len(streams):
            raise ValueError(f"streams are {[spec.name for spec in streams]}; give at least one, with different names")
        self.max_spread_ns = max_spread_ns
        self.clock_tolerance_ns = clock_tolerance_ns
        self._spread_setting = spread_setting
        self._last_reference: int | None = None
        self.sampled = 0
        self.refused: Counter[tuple[Reason, str]] = Counter()
        self.clock_steps_back = 0

    # Messages

    def add(self, stream: str, stamp_ns: int, payload: Any) -> None:
        """Takes in a message. A stamp of zero is a message without one: it is rejected as NO_STAMP."""
        state = self._streams[stream]
        if stamp_ns == 0:
            self.reject(stream, Reason.NO_STAMP, "the driver leaves header.stamp at zero")
            return
        state.accepted += 1
        state.rejected_last = False
        state.buffer.add(stamp_ns, payload)

    def reject(self, stream: str, reason: Reason, detail: str) -> None:
        """Notes a message that is of no use to the stream. Refusals name it while nothing better arrives."""
        state = self._streams[stream]
        state.rejected[reason] += 1
        state.last_rejection = Rejection(reason, detail)
        state.rejected_last = True

    def accepted(self, stream: str) -> int:
        """How many messages the stream has taken in."""
        return self._streams[stream].accepted

    def rejected(self, stream: str) -> Mapping[Reason, int]:
        """How many messages were of no use to the stream, by reason."""
        return self._streams[stream].rejected

    def last_rejection(self, stream: str) -> Rejection | None:
        """The last message that was of no use to the stream."""
        return self._streams[stream].last_rejection

    def newest_ns(self, stream: str) -> int | None:
        """The latest stamp of the messages that the stream holds [ns]."""
        return self._streams[stream].buffer.newest_ns

    def steps_back(self, stream: str) -> int:
        """How often the clock of the stream's source was set back."""
        return self._streams[stream].buffer.steps_back

    # Sampling

    def sample(self, reference_ns: int, latest_ns: Mapping[str, int] | None = None) -> Sample | Refusal:
        """The observation at a time [ns], or why there is none. Where several things are wrong the first is named.

        Args:
            reference_ns: the reference time.
            latest_ns: of streams by name, the latest stamp that may be sampled, where that is before the reference
                time: what is stamped later had not arrived when this observation was made.
        """
        result = self._sample(reference_ns, latest_ns or {})
        if isinstance(result, Refusal):
            self.refused[result.reason, result.stream] += 1
        else:
            self.sampled += 1
        return result

    def _sample(self, reference_ns: int, latest_ns: Mapping[str, int]) -> Sample | Refusal:
        self._follow_clock(reference_ns)
        if reference_ns <= 0:
            return Refusal(
                Reason.CLOCK,
                "",
                "the clock stands at zero: nothing has arrived on /clock; start the simulator, "
                "or set use_sim_time to false",
            )
        entries: dict[str, Entry] = {}
        for name, state in self._streams.items():
            entry = state.buffer.at(min(reference_ns, latest_ns.get(name, reference_ns)))
            if entry is None or reference_ns - entry.stamp_ns > state.spec.max_age_ns:
                return _nothing_usable(state, entry, reference_ns)
            state.buffer.drop_before(entry.stamp_ns)
            entries[name] = entry
        refusal = self._check_spread(entries)
        if refusal is not None:
            return refusal
        streams = {}
        for name, entry in entries.items():
            try:
                value = self._decoded(self._streams[name], entry)
            except ValueError as error:
                reason = getattr(error, "reason", Reason.UNDECODABLE)
                return Refusal(reason, name, f"{_called(self._streams[name].spec)}: {error}")
            streams[name] = Sampled(entry.stamp_ns, reference_ns - entry.stamp_ns, value)
        return Sample(reference_ns, streams)

    def _follow_clock(self, reference_ns: int) -> None:
        if self._last_reference is not None and reference_ns < self._last_reference:
            self.clock_steps_back += 1
            for state in self._streams.values():
                state.buffer.drop_after(reference_ns + self.clock_tolerance_ns)
        self._last_reference = reference_ns

    def _check_spread(self, entries: Mapping[str, Entry]) -> Refusal | None:
        oldest = min(entries, key=lambda name: entries[name].stamp_ns)
        newest = max(entries, key=lambda name: entries[name].stamp_ns)
        spread = entries[newest].stamp_ns - entries[oldest].stamp_ns
        if spread <= self.max_spread_ns:
            return None
        return Refusal(
            Reason.SPREAD,
            oldest,
            f"{_called(self._streams[oldest].spec)}: its sample is {_seconds(spread)} older than that of {newest}, the "
            f"limit is {_seconds(self.max_spread_ns)}; check rate and clock of its driver, or raise "
            f"{self._spread_setting}",
            {"spread": spread / NANOSECONDS, "limit": self.max_spread_ns / NANOSECONDS},
        )

    def _decoded(self, state: _Stream, entry: Entry) -> Any:
        # A camera slower than the observations is sampled twice, but decoded once.
        if state.decoded is None or state.decoded[0] != entry.stamp_ns or state.decoded[1] is not entry.payload:
            state.decoded = None
            state.decoded = (entry.stamp_ns, entry.payload, state.spec.decode(entry.payload))
        return state.decoded[2]


def _nothing_usable(state: _Stream, entry: Entry | None, reference_ns: int) -> Refusal:
    spec, buffer = state.spec, state.buffer
    limit = spec.max_age_ns / NANOSECONDS
    if entry is None and len(buffer):
        ahead = (buffer.oldest_ns - reference_ns) / NANOSECONDS
        message = (
            f"its messages are stamped {ahead:.3f} s in the future; synchronise the clocks of the two machines, "
            "or check that driver and nodes agree on use_sim_time"
        )
        return Refusal(Reason.NOT_YET, spec.name, f"{_called(spec)}: {message}", {"ahead": ahead})
    if state.rejected_last:
        rejection = state.last_rejection
        return Refusal(rejection.reason, spec.name, f"{_called(spec)}: {rejection.detail}; {_FIXES[rejection.reason]}")
    if entry is None:
        message = "no message has arrived; start its driver, or correct the topic"
        return Refusal(Reason.NEVER_RECEIVED, spec.name, f"{_called(spec)}: {message}")
    age = (reference_ns - entry.stamp_ns) / NANOSECONDS
    message = (
        f"its newest message is {age:.3f} s old, the limit is {limit:.3f} s; check that its driver runs and that the "
        f"machines' clocks agree, or raise {spec.age_setting}"
    )
    return Refusal(Reason.STALE, spec.name, f"{_called(spec)}: {message}", {"age": age, "limit": limit})


_FIXES = {
    Reason.NO_STAMP: "set stamp_source to arrival if the driver cannot stamp its messages",
    Reason.FOREIGN_JOINTS: "correct the parameter robot, or the topic",
    Reason.JOINT_MISSING: "the driver must send all joints in one message",
    Reason.UNDECODABLE: "correct the topic, or its driver",
}


def _called(spec: StreamSpec) -> str:
    return f"{spec.name} ({spec.topic})" if spec.topic else spec.name


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / NANOSECONDS:.3f} s"
