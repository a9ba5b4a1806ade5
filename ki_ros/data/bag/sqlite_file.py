"""One SQLite file of rosbag2's, read in whatever state it is.

Every message is fetched by its number, so that a damaged page costs the messages on it and no more, and neither the
table's order nor its index on time is relied on.

What is detected: damage to the structure of pages (SQLite's own check), missing messages (numbers are consecutive) and
values of the wrong type. What is not: SQLite keeps no checksums, so a change inside the bytes or the time of a message
goes unnoticed, but for what contradicts metadata.yaml and for bytes that are no message any more.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ki_ros.data.bag.blocks import Block, Entry, Order
from ki_ros.data.bag.damage import DamageLog, messages_lost
from ki_ros.data.bag.topic import Topic

MAGIC = b"SQLite format 3\0"

# What SQLite raises for a damaged file. Its messages name things in the file, in letters that may be damaged as well.
ERRORS = (sqlite3.Error, MemoryError, OverflowError, UnicodeError)

_MISSES = 20_000  # so many numbers without a message, one after the other, end the search in a damaged table
_BLOCK_MESSAGES, _BLOCK_BYTES = 64, 1 << 20
_CALLS, _STEPS = 5_000, 1_000_000  # a statement may take so many times so many steps of SQLite's machine: a minute


class _Row(NamedTuple):
    """Where a message is and how large."""

    time: int
    number: int
    topic: int
    size: int


class SqliteFile:
    """The topics and messages of one .db3 file.

    Args:
        path: the file. Its -wal and -journal files, if any, belong to it: they hold what a killed recording wrote last.
        log: where damage is noted.
        name: the path to name in it (another than `path` for a file that was decompressed to be read).

    Raises:
        OSError: the file cannot be read.
        One of ERRORS: it is no database.
    """

    def __init__(self, path: Path, log: DamageLog, *, name: Path) -> None:
        self._log, self._name = log, name
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._connection = self._open(path)
        self.custom_data: dict[str, str] = {}
        self.counts: dict[str, int] | None = None
        self._check_size(path)
        self._sound = self._is_sound()
        self._topics = self._read_topics()
        self._rows = self._list_messages()
        self._read_metadata()

    @property
    def topics(self) -> dict[str, Topic]:
        """The declared topics, also those without messages."""
        return {topic.name: topic for topic in self._topics.values()}

    @property
    def extent(self) -> tuple[int, int] | None:
        """The log times of the first and the last message [ns], or None where there are none."""
        times = [row.time for row in self._rows]
        return (min(times), max(times)) if times else None

    def blocks(self) -> Iterator[Block]:
        """The file's parts in the order of recording, each to be read in one go."""
        part: list[_Row] = []
        size = 0
        for row in self._rows:
            if part and (len(part) == _BLOCK_MESSAGES or size + row.size > _BLOCK_BYTES):
                yield self._block(part)
                part, size = [], 0
            part.append(row)
            size += row.size
        if part:
            yield self._block(part)

    def close(self) -> None:
        self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def _open(self, path: Path) -> sqlite3.Connection:
        siblings = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
        siblings = [sibling for sibling in siblings if sibling.is_file() and sibling.stat().st_size]
        if siblings:
            # SQLite completes an interrupted write by writing, which a recording must be spared.
            self._copy = tempfile.TemporaryDirectory(prefix="ki_ros_bag_")
            for file in (path, *siblings):
                shutil.copyfile(file, Path(self._copy.name, file.name))
            connection = sqlite3.connect(Path(self._copy.name, path.name), check_same_thread=False)
        else:
            uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        connection.text_factory = lambda data: data.decode(errors="replace")
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
            connection.execute(f"PRAGMA {setting}")
        statement = "SELECT name FROM sqlite_master WHERE type = 'table'"
        try:
            tables = {row[0] for row in connection.execute(statement)}
        except ERRORS as error:
            # With this setting SQLite opens a file that has fewer pages than its head says. Nothing is written.
            connection.execute("PRAGMA writable_schema=ON")
            tables = {row[0] for row in connection.execute(statement)}
            self._note("unfinished", f"the file is not whole ({error})", "what further entries say, if any")
        if not {"topics", "messages"} <= tables:
            raise sqlite3.DatabaseError("the database has no tables topics and messages, so it is none of rosbag2's")
        return connection

    def _query(self, statement: str, *values: Any) -> list[tuple]:
        calls = iter(range(_CALLS))
        self._connection.set_progress_handler(lambda: next(calls, None) is None, _STEPS)
        return self._connection.execute(statement, values).fetchall()

    def _check_size(self, path: Path) -> None:
        """SQLite takes a last page that is cut short for one that ends in zeros."""
        page, size = self._query("PRAGMA page_size")[0][0], path.stat().st_size
        if size % page:
            detail = f"the file has {size} bytes, which are no whole pages of {page}"
            self._note("unfinished", detail, f"the last {page - size % page} bytes of a page, and messages in them")

    def _is_sound(self) -> bool:
        try:
            problems = [str(row[0]) for row in self._query("PRAGMA quick_check(5)")]
        except ERRORS as error:
            problems = [str(error)]
        if problems == ["ok"]:
            return True
        self._note(
            "structure", f"SQLite's check finds: {'; '.join(problems)[:300]}", "what further entries say, if any"
        )
        return False

    def _read_topics(self) -> dict[int, Topic]:
        try:
            columns = {row[1] for row in self._query("PRAGMA table_info(topics)")}
            qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "''"
            rows = self._query(
                f"SELECT id, name, type, serialization_format, {qos} FROM topics NOT INDEXED ORDER BY +id"
            )
        except ERRORS as error:
            self._note("structure", f"the table of topics is damaged: {error}", "every message of a topic not listed")
            rows = []
        definitions = self._read_definitions()
        topics = {}
        for number, *texts in rows:
            if not isinstance(number, int) or not all(isinstance(text, str) for text in texts):
                self._note("structure", f"topic {number!r} has other than text: {texts!r}"[:200], "its messages")
                continue
            name, type_name, form, profiles = texts
            topics[number] = Topic(name, type_name, form, profiles, definitions.get(type_name, ""))
        return topics

    def _read_definitions(self) -> dict[str, str]:
        """Definitions by type name: recordings since ROS 2 Iron have them."""
        if not self._has_table("message_definitions"):
            return {}
        try:
            rows = self._query("SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")
        except ERRORS as error:
            self._note("structure", f"the table of definitions is damaged: {error}", "definitions of types")
            return {}
        return {str(name): text for name, encoding, text in rows if encoding == "ros2msg" and isinstance(text, str)}

    def _read_metadata(self) -> None:
        if not self._has_table("metadata"):
            return
        try:
            rows = self._query("SELECT metadata FROM metadata ORDER BY id")
            values = yaml.safe_load(rows[-1][0]) if rows else None
        except (*ERRORS, yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:
            self._note("metadata", f"the file's own copy of the metadata is damaged: {error}"[:200], "its custom data")
            return
        custom = values.get("custom_data") if isinstance(values, dict) else None
        if isinstance(custom, dict):
            self.custom_data = {str(key): str(value) for key, value in custom.items()}

    def _has_table(self, name: str) -> bool:
        try:
            return bool(self._query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", name))
        except ERRORS:
            return False

    def _list_messages(self) -> list[_Row]:
        """All messages in the order of recording, without their bytes."""
        try:
            rows = self._query("SELECT timestamp, id, topic_id, length(data) FROM messages NOT INDEXED")
        except ERRORS as error:
            self._note("structure", f"the table of messages is damaged: {error}", "what further entries say, if any")
            rows = self._search_messages()
        else:
            if not self._sound:
                known = {row[1] for row in rows}
                rows += [row for row in self._search_messages() if row[1] not in known]
        good, bad = [], 0
        for row in rows:
            if all(isinstance(value, int) for value in row) and row[0] >= 0:
                good.append(_Row(*row))
            else:
                bad += 1
        if bad:
            self._note("message", "values in the table of messages are not numbers", messages_lost(bad))
        numbers = {row.number for row in good}
        if numbers:
            missing = max(numbers) - len(numbers) - bad
            if missing > 0:
                self._note("count", "the numbers of the messages have gaps", messages_lost(missing))
        return sorted(good, key=lambda row: row.number)

    def _search_messages(self) -> list[tuple]:
        """The messages that can be found one by one."""
        rows, misses, number = [], 0, 0
        while misses < _MISSES:
            number += 1
            try:
                found = self._query("SELECT timestamp, id, topic_id, length(data) FROM messages WHERE id = ?", number)
            except ERRORS:
                found = []
            misses = 0 if found else misses + 1
            rows += found[:1]
        return rows

    def _block(self, part: list[_Row]) -> Block:
        times = [row.time for row in part]

        def order() -> Order:
            names = [self._topics[row.topic].name if row.topic in self._topics else "" for row in part]
            return Order([row.number for row in part], times, names)

        return Block(min(times), max(times), lambda topics: self._load(part, topics), order)

    def _load(self, part: list[_Row], topics: Collection[str] | None) -> list[Entry]:
        entries = []
        for row in part:
            topic = self._topics.get(row.topic)
            if topic is None:
                self._note("schema", f"message {row.number} has topic {row.topic}, which is not declared", "1 message")
                continue
            if topics is not None and topic.name not in topics:
                continue
            try:
                found = self._query("SELECT data FROM messages WHERE id = ?", row.number)
            except ERRORS as error:
                self._note("structure", f"message {row.number} of {topic.name} cannot be read: {error}", "1 message")
                continue
            if not found or not isinstance(found[0][0], bytes):
                self._note("message", f"message {row.number} of {topic.name} has no bytes", "1 message")
                continue
            entries.append(Entry(row.time, topic.name, found[0][0], row.number))
        return entries

    def _note(self, kind: str, detail: str, lost: str = "nothing") -> None:
        self._log.note(self._name, kind, detail, lost)
