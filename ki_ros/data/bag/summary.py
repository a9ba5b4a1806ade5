"""What a recording holds, at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ki_ros.data.bag.damage import Damage
from ki_ros.data.bag.reader import open_bag


@dataclass(frozen=True)
class TopicSummary:
    """One topic: messages that can be read, messages that were recorded (None: not known), and their mean rate [Hz]."""

    name: str
    type_name: str
    count: int
    expected: int | None
    rate: float


@dataclass(frozen=True)
class BagSummary:
    """A recording that was read from end to end. `duration` [s] is from the first to the last message."""

    path: Path
    storage: str
    start_ns: int
    duration: float
    topics: tuple[TopicSummary, ...]
    custom_data: Mapping[str, str]
    damage: tuple[Damage, ...]


def summarise(path: Path) -> BagSummary:
    """Reads a recording, every message of it. Raises BagError."""
    with open_bag(path) as bag:
        counts: Counter[str] = Counter()
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for topic, time, _ in bag.messages():
            counts[topic] += 1
            first.setdefault(topic, time)
            last[topic] = time
        topics = []
        for name, topic in sorted(bag.topics.items()):
            seconds = (last.get(name, 0) - first.get(name, 0)) / 1e9
            rate = (counts[name] - 1) / seconds if seconds > 0 else 0.0
            topics.append(TopicSummary(name, topic.type_name, counts[name], bag.expected.get(name), rate))
        duration = (bag.end_ns - bag.start_ns) / 1e9
        return BagSummary(
            bag.path, bag.storage, bag.start_ns, duration, tuple(topics), dict(bag.custom_data), tuple(bag.damage)
        )
