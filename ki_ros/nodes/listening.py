"""The recorder's subscriptions: serialised messages in the order of arrival, and what their publishers offer."""

from __future__ import annotations

import importlib
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rosgraph_msgs.msg import Clock

from ki_ros.data.bag import message_definition, qos_profile
from ki_ros.data.recorder.arrival import SequenceGaps, SimulatedArrival
from ki_ros.data.recorder.bag import TopicInfo
from ki_ros.data.recorder.topics import LATCHED_TOPICS, RecordedTopics
from ki_ros.nodes.polling import subscribe_polled, take_waiting
from ki_ros.nodes.run import uses_sim_time
from ki_ros.nodes.stamps import NANOSECONDS
from ki_ros.observation.rig_streams import TRANSPORTS

# Messages that wait for a poll. Half a second of pictures at 60 Hz, and of a driver's states at 1 kHz.
_IMAGE_DEPTH = 32
_DEPTH = 512

_SILENT_NS = 2 * NANOSECONDS
"""A sensor from which nothing came for this long is missed [ns of system time]."""


@dataclass
class Source:
    """A topic that is recorded.

    Attributes:
        topic: its resolved name.
        type: class of its messages.
        type_name: such as "sensor_msgs/msg/Image".
        qos: what its subscription asks for.
        latched: its last message holds until the next.
        newest: that message, serialised, of a latched topic.
        received: messages since the start.
        heard_ns: when the last of them arrived [ns of system time].
    """

    topic: str
    type: type
    type_name: str
    qos: QoSProfile
    latched: bool = False
    subscription: Subscription | None = None
    newest: bytes | None = None
    received: int = 0
    heard_ns: int = 0
    gaps: SequenceGaps = field(default_factory=SequenceGaps)


class Arrival(NamedTuple):
    """A message as it came: the system time of its arrival [ns], its bytes, and how many before it never came."""

    wall_ns: int
    source: Source
    raw: bytes
    lost: int


class Listener:
    """Subscribes to the topics of a recording for a node, in whose thread everything runs.

    Raises:
        DefinitionError: there is no definition of a topic's type.
        ImportError: a topic's package is not installed.
    """

    def __init__(self, node: Node, recorded: RecordedTopics) -> None:
        self._node = node
        self._recorded = recorded
        self.sources: dict[str, Source] = {}
        self._simulated = SimulatedArrival() if uses_sim_time(node) else None
        self._clock: Subscription | None = None
        if self._simulated is not None:
            self._clock = subscribe_polled(node, Clock, "/clock", _qos(_DEPTH, reliable=False))
        for name, type_name in recorded.typed.items():
            self._add(name, type_name, latched=name in LATCHED_TOPICS)
        self._sensors = self._resolved(recorded.sensors)
        self._commands = self._resolved(recorded.commands)

    def take(self) -> list[Arrival]:
        """Everything that has come since the last call, in the order of arrival."""
        taken = []
        for source in self.sources.values():
            for raw, info in take_waiting(source.subscription, source.type):
                lost = source.gaps.lost(info["publication_sequence_number"])
                wall = info["received_timestamp"] or time.time_ns()
                source.received += 1
                source.heard_ns = wall
                if source.latched:
                    source.newest = raw
                # With several publishers the numbers are of several sequences.
                lost = lost if lost and self._node.count_publishers(source.topic) == 1 else 0
                taken.append(Arrival(wall, source, raw, lost))
        if self._clock is not None:
            for raw, info in take_waiting(self._clock, Clock):
                sec, nanosec = struct.unpack_from("<iI", raw, 4)
                self._simulated.announce(info["received_timestamp"] or time.time_ns(), sec * NANOSECONDS + nanosec)
        taken.sort(key=lambda arrival: arrival.wall_ns)
        return taken

    def time(self, wall_ns: int) -> int:
        """The time on the node's clock [ns] at a system time [ns]; 0 while simulated time has not begun."""
        return wall_ns if self._simulated is None else self._simulated.at(wall_ns)

    def fit(self) -> None:
        """Asks for what the publishers of each topic offer, where that is less than what was asked for."""
        for source in self.sources.values():
            self._fit(source)

    def find_extra(self) -> list[Source]:
        """Subscribes to those extra topics that have publishers by now; returns the new ones.

        Raises:
            DefinitionError, ImportError, AttributeError: a topic's type is not installed here.
        """
        missing = set(self.absent())
        found = []
        for topic, types in self._node.get_topic_names_and_types() if missing else ():
            offered = [publisher.qos_profile for publisher in self._node.get_publishers_info_by_topic(topic)]
            if topic in missing and offered:
                latched = all(profile.durability is DurabilityPolicy.TRANSIENT_LOCAL for profile in offered)
                found.append(self._add(topic, types[0], latched=latched))
        return found

    def topic_info(self, source: Source) -> TopicInfo:
        """What a bag says of a topic."""
        offered = self._node.get_publishers_info_by_topic(source.topic)
        profile = offered[0].qos_profile if offered else source.qos
        reliable = profile.reliability is ReliabilityPolicy.RELIABLE
        latched = profile.durability is DurabilityPolicy.TRANSIENT_LOCAL
        return TopicInfo(source.type_name, qos_profile(reliable=reliable, latched=latched))

    def silent(self) -> list[str]:
        """Topics of sensors from which nothing came lately."""
        since = time.time_ns() - _SILENT_NS
        return sorted(topic for topic in self._sensors if self.sources[topic].heard_ns < since)

    def commanded(self) -> bool:
        """Whether any command came since the start."""
        return any(self.sources[topic].received for topic in self._commands)

    def absent(self) -> list[str]:
        """Extra topics that nobody has published yet."""
        return sorted(self._resolved(self._recorded.extra) - self.sources.keys())

    def mistyped(self) -> list[str]:
        """What there is to say of topics on which somebody publishes messages of another type."""
        problems = []
        for topic, source in self.sources.items():
            kinds = {publisher.topic_type for publisher in self._node.get_publishers_info_by_topic(topic)}
            if kinds - {source.type_name}:
                problems.append(f"{topic} has messages of type {', '.join(sorted(kinds))}, not {source.type_name}")
        return problems

    def _resolved(self, names: Iterable[str]) -> set[str]:
        return {self._node.resolve_topic_name(name) for name in names}

    def _add(self, name: str, type_name: str, *, latched: bool) -> Source:
        topic = self._node.resolve_topic_name(name)
        # A definition that is missing shall be noticed now, not by the first episode.
        message_definition(type_name)
        package, _, kind = type_name.split("/")
        message = getattr(importlib.import_module(f"{package}.msg"), kind)
        # Sensors as the observation node takes them. All else reliably, until a publisher turns out to offer less.
        depth = _IMAGE_DEPTH if type_name in TRANSPORTS.values() else _DEPTH
        qos = _qos(depth, reliable=name not in self._recorded.sensors, latched=latched)
        source = Source(topic, message, type_name, qos, latched)
        source.subscription = subscribe_polled(self._node, message, topic, qos)
        self.sources[topic] = source
        return source

    def _fit(self, source: Source) -> None:
        offered = self._node.get_publishers_info_by_topic(source.topic)
        best_effort = any(p.qos_profile.reliability is ReliabilityPolicy.BEST_EFFORT for p in offered)
        volatile = any(p.qos_profile.durability is DurabilityPolicy.VOLATILE for p in offered)
        reliable = source.qos.reliability is ReliabilityPolicy.RELIABLE and not best_effort
        latched = source.qos.durability is DurabilityPolicy.TRANSIENT_LOCAL and not volatile
        wanted = _qos(source.qos.depth, reliable=reliable, latched=latched)
        if (wanted.reliability, wanted.durability) == (source.qos.reliability, source.qos.durability):
            return
        self._node.destroy_subscription(source.subscription)
        source.qos, source.gaps = wanted, SequenceGaps()
        source.subscription = subscribe_polled(self._node, source.type, source.topic, wanted)


def _qos(depth: int, *, reliable: bool, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
