"""One episode's bag: a thread that writes, behind a queue of bounded size, and the marks of its beginning and end."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from ki_ros import __version__
from ki_ros.data.bag import BagWriteError, BagWriter, encode, qos_profile

EPISODE_TYPE = "ki_ros/msg/Episode"

_SMALL = 1 << 16
_SMALL_SHARE = 0.125
"""Messages of at most 64 KiB have an eighth of the queue to themselves: when a disk cannot keep up with the pictures,
pictures are dropped, and commands and joint states are not."""


class Event(IntEnum):
    """What an Episode message marks; the values are the message's."""

    START = 0
    STOP = 1


class Outcome(IntEnum):
    """How an episode ended; the values are those of the message."""

    UNKNOWN = 0
    SUCCESS = 1
    FAILURE = 2


@dataclass(frozen=True)
class EpisodeInfo:
    """What an episode is about.

    Attributes:
        id: different for every episode.
        instruction: what the robot was asked to do; empty where nobody said.
        robot: name of the arm.
        note: remarks of whoever started it.
    """

    id: str
    instruction: str
    robot: str
    note: str = ""


class TopicInfo(NamedTuple):
    """A topic of a bag: its message type ("sensor_msgs/msg/Image") and its publishers' quality of service (YAML)."""

    type_name: str
    qos: str = ""


def new_id() -> str:
    """A name for an episode that no other has."""
    return secrets.token_hex(5)


def directory_name(id: str, now: datetime | None = None) -> str:
    """Name of an episode's directory: sorts by time of recording (UTC)."""
    return f"{(now or datetime.now(timezone.utc)).strftime('%Y%m%dT%H%M%SZ')}_{id}"


class EpisodeBag:
    """An episode that is being recorded. `put` and `stop` belong to one thread and never wait for the disk.

    Args:
        output: directory below which the bag's own directory is made.
        info: what the episode is about.
        start_ns: when it begins, on the clock of the log times [ns].
        topics: what will be recorded, by name.
        episode_topic: name of the topic of START and STOP.
        queue_bytes: messages beyond this many bytes that wait for the disk are dropped, and counted.

    Raises:
        BagWriteError: the bag cannot be made.
    """

    def __init__(
        self,
        output: Path,
        info: EpisodeInfo,
        start_ns: int,
        topics: Mapping[str, TopicInfo],
        *,
        episode_topic: str = "/episode",
        queue_bytes: int = 256_000_000,
    ) -> None:
        self.info = info
        self.start_ns = start_ns
        self.directory = output / directory_name(info.id)
        self.messages = 0
        self.bytes = 0
        self.dropped: Counter[str] = Counter()
        self.failure: BagWriteError | None = None
        self._episode_topic = episode_topic
        self._queue_bytes = queue_bytes
        self._queue: queue.SimpleQueue[tuple[str, int, bytes] | None] = queue.SimpleQueue()
        self._queued = 0
        self._queued_lock = threading.Lock()
        self._outcome, self._note = Outcome.UNKNOWN, info.note
        self._on_done: Callable[[], None] = lambda: None
        self._writer = BagWriter(self.directory, custom_data=self._custom_data("recording"))
        try:
            self._writer.add_topic(episode_topic, EPISODE_TYPE, qos=qos_profile(latched=True, depth=1))
            for name, topic in topics.items():
                self._writer.add_topic(name, topic.type_name, qos=topic.qos)
            self._writer.write(episode_topic, start_ns, self.mark(start_ns, Event.START, Outcome.UNKNOWN, info.note))
        except BaseException:
            with contextlib.suppress(BagWriteError):
                self._writer.close()
            raise
        self._thread = threading.Thread(target=self._write, name=f"episode {info.id}")
        self._thread.start()

    @property
    def queued_share(self) -> float:
        """How full the queue is, 0 to 1."""
        return self._queued / self._queue_bytes

    def add_topic(self, name: str, topic: TopicInfo) -> None:
        """A topic that was not known at the start. Raises BagWriteError."""
        self._writer.add_topic(name, topic.type_name, qos=topic.qos)

    def put(self, topic: str, log_time_ns: int, raw: bytes) -> bool:
        """Has a message written, with its time of arrival. False: it was dropped, as the disk is behind or broken."""
        limit = self._queue_bytes if len(raw) <= _SMALL else self._queue_bytes * (1 - _SMALL_SHARE)
        if self.failure is not None or self._queued + len(raw) > limit:
            self.dropped[topic] += 1
            return False
        self._enqueue(topic, log_time_ns, raw)
        return True

    def stop(
        self, stamp_ns: int, outcome: Outcome, note: str = "", on_done: Callable[[], None] = lambda: None
    ) -> bytes:
        """Ends the episode; the bag is completed behind what still waits. Returns the STOP message, serialised.

        Args:
            stamp_ns: when it ended, on the clock of the log times [ns].
            outcome: how it ended.
            note: goes behind the note of the start.
            on_done: called in the writing thread when the bag is complete, or has failed (`failure`).
        """
        self._outcome, self._on_done = outcome, on_done
        self._note = "; ".join(filter(None, (self.info.note, note)))
        raw = self.mark(stamp_ns, Event.STOP, outcome, self._note)
        self._enqueue(self._episode_topic, stamp_ns, raw)
        self._queue.put(None)
        return raw

    def join(self, timeout: float | None = None) -> bool:
        """Waits until the bag is complete or has failed; False if that takes longer than `timeout` [s]."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def mark(self, stamp_ns: int, event: Event, outcome: Outcome, note: str) -> bytes:
        """The serialised Episode message of this episode."""
        info = self.info
        return encode.episode(stamp_ns, info.id, info.instruction, event, outcome, info.robot, note)

    def _enqueue(self, topic: str, log_time_ns: int, raw: bytes) -> None:
        with self._queued_lock:
            self._queued += len(raw)
        self.messages += 1
        self.bytes += len(raw)
        self._queue.put((topic, log_time_ns, raw))

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            topic, log_time_ns, raw = item
            try:
                if self.failure is None:
                    self._writer.write(topic, log_time_ns, raw)
            except BagWriteError as error:
                self.failure = error
            with self._queued_lock:
                self._queued -= len(raw)
        try:
            with self._writer:
                for key, value in self._custom_data("complete").items():
                    self._writer.annotate(key, value)
        except BagWriteError as error:
            self.failure = self.failure or error
        self._on_done()

    def _custom_data(self, state: str) -> dict[str, str]:
        info = self.info
        return {
            "ki_ros_version": __version__,
            "episode_id": info.id,
            "instruction": info.instruction,
            "outcome": self._outcome.name.lower(),
            "robot": info.robot,
            "note": self._note,
            "state": state,
        }
