"""Writing a recording that rosbag2 and its tools open: MCAP with compressed chunks, and metadata.yaml.

What a kill can take is bounded by time: a chunk is closed and handed to the operating system when its first message has
waited `flush_seconds`, by the writing thread or, when nothing is written any more, by a thread of the writer's own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from mcap.writer import CompressionType, Writer

from ki_ros.data.bag.definitions import DefinitionError, message_definition
from ki_ros.files import sync, write_atomically

METADATA_VERSION = 9
NO_TIME = 2**63 - 1  # rosbag2's starting time of a bag without messages

_CHUNK_SIZE = 1 << 20
_COMPRESSION = {"zstd": CompressionType.ZSTD, "lz4": CompressionType.LZ4, "none": CompressionType.NONE}


class BagWriteError(RuntimeError):
    """A recording cannot be written; the message names the file, what is wrong and what to do."""


class BagWriter:
    """A rosbag2 recording in a directory of its own, with one file `<name of the directory>_0.mcap`.

    Methods may be called from several threads. Leaving the context closes the recording, also after an exception: what
    was recorded until then is worth keeping.

    Args:
        directory: made if it does not exist; must hold no files.
        flush_seconds: the longest [s] that a message waits before it is handed to the operating system, but for the
            time that compression takes and half of this again when no message follows.
        compression: of chunks: "zstd", "lz4" or "none".
        custom_data: goes into the recording at once (so that a killed one has it) and into metadata.yaml.

    Raises:
        BagWriteError: the directory holds files, or cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        flush_seconds: float = 0.5,
        compression: str = "zstd",
        custom_data: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if compression not in _COMPRESSION:
            raise BagWriteError(f"compression is {compression!r}; expected one of {', '.join(_COMPRESSION)}")
        if not flush_seconds > 0:
            raise BagWriteError(f"flush_seconds is {flush_seconds}; expected more than 0 s")
        self.directory = Path(directory)
        self.path = self.directory / f"{self.directory.resolve().name}_0.mcap"
        self._flush_seconds = flush_seconds
        self._custom_data = dict(custom_data)
        self._topics: dict[str, dict[str, str]] = {}
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._first, self._last = NO_TIME, 0
        self._waiting = 0  # bytes in the open chunk
        self._waiting_since = 0.0
        self._failure: BagWriteError | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._stop = threading.Event()
        with self._disk():
            self.directory.mkdir(parents=True, exist_ok=True)
            if any(self.directory.iterdir()):
                raise BagWriteError(f"{self.directory} holds files already; give a new or an empty directory")
            self._file = self.path.open("xb")
        with self._disk():
            # The writer's own limit on a chunk's size is out of reach: chunks end where flush() says.
            self._writer = Writer(self._file, chunk_size=1 << 62, compression=_COMPRESSION[compression])
            self._writer.start(profile="ros2", library="ki_ros")
            self._add_metadata()
            self._writer.flush()
        self._flusher = threading.Thread(target=self._keep_flushing, name="bag flusher", daemon=True)
        self._flusher.start()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(BagWriteError):
                self.close()

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far by topic."""
        with self._lock:
            return dict(self._counts)

    def add_topic(self, name: str, type_name: str, *, qos: str = "") -> None:
        """Declares a topic, before its first message. The same declaration again changes nothing.

        Args:
            name: such as "/joint_states".
            type_name: such as "sensor_msgs/msg/JointState".
            qos: the publishers' profiles as YAML (`qos_profile`), or "" where they are not known.

        Raises:
            BagWriteError: no definition of the type is to be found, the topic has another type, or the disk fails.
        """
        with self._lock:
            self._check()
            if name in self._topics:
                if self._topics[name]["type"] != type_name:
                    raise BagWriteError(
                        f"{self.path}: topic {name!r} has type {self._topics[name]['type']}, not {type_name}; "
                        "a recording has one type per topic"
                    )
                return
            _check_qos(name, qos)
            try:
                definition = message_definition(type_name)
            except DefinitionError as error:
                raise BagWriteError(f"{self.path}: topic {name!r}: {error}") from error
            if type_name not in self._schemas:
                self._schemas[type_name] = self._writer.register_schema(type_name, "ros2msg", definition.text.encode())
            self._channels[name] = self._writer.register_channel(
                name,
                "cdr",
                self._schemas[type_name],
                {"offered_qos_profiles": qos, "topic_type_hash": definition.type_hash},
            )
            self._topics[name] = {"type": type_name, "qos": qos, "hash": definition.type_hash}
            self._counts[name] = 0

    def annotate(self, key: str, value: str) -> None:
        """Sets an entry of the recording's custom data. It is on the disk when the recording is closed."""
        with self._lock:
            self._check()
            self._custom_data[key] = value

    def write(self, topic: str, log_time_ns: int, raw: bytes) -> None:
        """Appends a message.

        Args:
            topic: one that was added.
            log_time_ns: when it was received [ns since the epoch, or the clock's zero].
            raw: the serialised message (CDR).

        Raises:
            BagWriteError: an unknown topic, a time that is negative or beyond 63 bits, or the disk fails (full, gone).
                After a failure of the disk every further call raises it again.
        """
        with self._lock:
            self._check()
            channel = self._channels.get(topic)
            if channel is None:
                raise BagWriteError(f"{self.path}: topic {topic!r} is not declared; call add_topic first")
            if not 0 <= log_time_ns < NO_TIME:
                raise BagWriteError(
                    f"{self.path}: topic {topic!r}: log time {log_time_ns} ns is no time of a recording"
                )
            now = time.monotonic()
            if not self._waiting:
                self._waiting_since = now
            self._writer.add_message(channel, log_time_ns, raw, publish_time=log_time_ns)
            self._waiting += max(len(raw), 1)
            self._counts[topic] += 1
            self._first, self._last = min(self._first, log_time_ns), max(self._last, log_time_ns)
            if self._waiting >= _CHUNK_SIZE or now - self._waiting_since >= self._flush_seconds:
                self.flush()

    def flush(self) -> None:
        """Closes the chunk in progress and hands it to the operating system. Raises BagWriteError."""
        with self._lock:
            self._check()
            if self._waiting:
                with self._disk():
                    self._writer.flush()
                self._waiting = 0

    def close(self) -> None:
        """Completes the file, has it on the disk and writes metadata.yaml. Closing twice changes nothing.

        Raises:
            BagWriteError: the disk fails now, or failed before. The file is closed all the same; what was flushed until
                then can be read.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stop.set()
            try:
                self._complete()
            finally:
                with contextlib.suppress(OSError):
                    self._file.close()
        self._flusher.join()

    def _complete(self) -> None:
        if self._failure is not None:
            raise self._failure
        with self._disk():
            self._writer.flush()
            self._add_metadata()
            self._writer.finish()
            self._file.flush()
            os.fsync(self._file.fileno())
            text = yaml.safe_dump({"rosbag2_bagfile_information": self._metadata()}, sort_keys=False)
            write_atomically(
                self.directory / "metadata.yaml", lambda path: path.write_text(text, encoding="utf-8") and sync(path)
            )
            sync(self.directory)

    def _add_metadata(self) -> None:
        self._writer.add_metadata("rosbag2", {"serialized_metadata": yaml.safe_dump(self._metadata(), sort_keys=False)})

    def _metadata(self) -> dict[str, Any]:
        """What rosbag2's metadata.yaml says (version 9, that of Jazzy)."""
        extent = {
            "starting_time": {"nanoseconds_since_epoch": self._first},
            "duration": {"nanoseconds": max(self._last - self._first, 0)},
            "message_count": sum(self._counts.values()),
        }
        topics = [
            {
                "topic_metadata": {
                    "name": name,
                    "type": topic["type"],
                    "serialization_format": "cdr",
                    "offered_qos_profiles": yaml.safe_load(topic["qos"]) or [],  # a list since version 9
                    "type_description_hash": topic["hash"],
                },
                "message_count": self._counts[name],
            }
            for name, topic in self._topics.items()
        ]
        return {
            "version": METADATA_VERSION,
            "storage_identifier": "mcap",
            **extent,
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [self.path.name],
            "files": [{"path": self.path.name, **extent}],
            "custom_data": self._custom_data or None,
            "ros_distro": os.environ.get("ROS_DISTRO", "jazzy"),
        }

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise BagWriteError(f"{self.path} is closed; make a new BagWriter for a new recording")

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failure = BagWriteError(
                f"{self.path}: {error.strerror or error}; what was written until now can be read. "
                "Free space or choose another disk, and start a new recording"
            )
            raise self._failure from error

    def _keep_flushing(self) -> None:
        while not self._stop.wait(self._flush_seconds / 2):
            with self._lock, contextlib.suppress(BagWriteError):  # the next call of a method raises it
                if self._waiting and time.monotonic() - self._waiting_since >= self._flush_seconds:
                    self.flush()


def _check_qos(topic: str, qos: str) -> None:
    try:
        profiles = yaml.safe_load(qos)
    except yaml.YAMLError as error:
        raise BagWriteError(f"topic {topic!r}: qos is no YAML: {qos[:60]!r}; make it with qos_profile()") from error
    if profiles is not None and not isinstance(profiles, list):
        raise BagWriteError(
            f"topic {topic!r}: qos is {qos[:60]!r}; expected a list of profiles, as qos_profile() gives"
        )
