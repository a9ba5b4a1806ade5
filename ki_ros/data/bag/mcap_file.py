"""One MCAP file, read in whatever state it is.

The records are walked one by one, each checked against the lengths inside it, so that a file without its end (a killed
recording, a truncated copy) is read like any other, and behind bytes that are no record the next chunk is looked for.

What is detected: every change inside a chunk that carries a checksum (rosbag2's and this package's do); a missing end;
missing, cut or renamed chunks, by the file's statistics or by the index that follows each chunk. What is not: a change
of a message's bytes in a chunk without a checksum or outside of chunks, and of attachments, which are not read.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Metadata, Schema, Statistics

from ki_ros.data.bag.blocks import Block, Entry, Order, goes_back
from ki_ros.data.bag.compression import DecompressionError, decompress
from ki_ros.data.bag.damage import DamageLog, messages_lost
from ki_ros.data.bag.topic import Topic

MAGIC = b"\x89MCAP0\r\n"

_RECORD = struct.Struct("<BQ")
_CHUNK = struct.Struct("<QQQII")  # start, end, uncompressed size, checksum, length of the compression's name
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_INDEX_ENTRY = 16  # bytes of a log time and an offset
_FOOTER = struct.Struct("<QQI")  # start of the summary, of its offsets, checksum
# A record's head, four fields of a chunk, and a compression: what to look for where records stopped making sense.
_ANY_CHUNK = re.compile(rb"\x06.{8}.{28}(?:\0\0\0\0|\x04\0\0\0zstd|\x03\0\0\0lz4)", re.DOTALL)
_DECLARATIONS = {Opcode.SCHEMA: Schema, Opcode.CHANNEL: Channel}
_SUMMARY_ONLY = {Opcode.CHUNK_INDEX, Opcode.SUMMARY_OFFSET, Opcode.ATTACHMENT_INDEX, Opcode.METADATA_INDEX}
_FIRST = len(MAGIC) + _RECORD.size  # where the content of the first record begins
_WINDOW = 1 << 22
_SMALL = 1 << 26  # [bytes] no schema, channel or index is as large
_BLOCK_MESSAGES, _BLOCK_BYTES = 64, 1 << 20


@dataclass
class _Chunk:
    """A chunk, and what the index behind it says."""

    offset: int
    data: int
    size: int
    start: int
    end: int
    uncompressed: int
    checksum: int
    compression: str
    cut: bool = False  # the file ends inside it
    index: dict[int, np.ndarray] = field(default_factory=dict)  # by channel, (N, 2) uint64: log times and offsets


class _Loose(NamedTuple):
    """A message outside of chunks."""

    time: int
    channel: int
    offset: int
    size: int


class McapFile:
    """The topics and messages of one MCAP file.

    Args:
        path: the file.
        log: where damage is noted.
        name: the path to name in it (another than `path` for a file that was decompressed to be read).
        unverified: whether to give messages of chunks whose checksum does not match.

    Raises:
        OSError: the file cannot be opened.
        ValueError: nothing in it is MCAP.
    """

    def __init__(self, path: Path, log: DamageLog, *, name: Path, unverified: bool = False) -> None:
        self._file = path.open("rb")
        self._size = path.stat().st_size
        self._log, self._name, self._unverified = log, name, unverified
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._chunks: list[_Chunk] = []
        self._loose: list[_Loose] = []
        self._statistics: Statistics | None = None
        self._in_summary: list[Schema | Channel] = []  # repeated there
        self.custom_data: dict[str, str] = {}
        if self._at(0, len(MAGIC)) != MAGIC:
            self._note("structure", "the first bytes are not those of an MCAP file")
        whole = self._walk()
        if not self._chunks and not self._loose and not whole and self._at(0, len(MAGIC)) != MAGIC:
            raise ValueError("nothing in the file is MCAP")
        if not whole:
            # The summary cannot be trusted, or is not there: every chunk tells its channels itself.
            self._statistics = None
        for chunk in self._chunks:
            self._check_times(chunk, read=not whole)
        if self._statistics is not None and self._statistics.message_count:
            said = (self._statistics.message_start_time, self._statistics.message_end_time)
            found = self.extent or (0, 0)
            # Writers that take a time of 0 for none state the start of the messages behind it.
            if found[1] != said[1] or (found[0] and found[0] != said[0]):
                self._note("structure", f"messages are from {found} ns, and should be from {said} ns")

    @property
    def topics(self) -> dict[str, Topic]:
        """The topics with a channel, also those without messages."""
        topics = {}
        for channel in self._channels.values():
            schema = self._schemas.get(channel.schema_id)
            if schema is None:
                self._note(
                    "schema", f"topic {channel.topic!r} has schema {channel.schema_id}, which is not in the file"
                )
            topics[channel.topic] = Topic(
                channel.topic,
                schema.name if schema else "",
                channel.message_encoding,
                channel.metadata.get("offered_qos_profiles", ""),
                schema.data.decode(errors="replace") if schema and schema.encoding == "ros2msg" else "",
            )
        return topics

    @property
    def counts(self) -> dict[str, int] | None:
        """How many messages each topic has by the file's own statistics, or None where it has none to trust."""
        if self._statistics is None:
            return None
        counts = dict.fromkeys((channel.topic for channel in self._channels.values()), 0)
        for channel, count in self._statistics.channel_message_counts.items():
            if channel in self._channels:
                counts[self._channels[channel].topic] += count
        return counts

    @property
    def extent(self) -> tuple[int, int] | None:
        """The log times of the first and the last message [ns], or None where there are none."""
        times = [(chunk.start, chunk.end) for chunk in self._chunks if chunk.index or chunk.end]
        times += [(message.time, message.time) for message in self._loose]
        return (min(start for start, _ in times), max(end for _, end in times)) if times else None

    def blocks(self) -> Iterator[Block]:
        """The file's parts in the order of recording, each to be read in one go."""
        blocks = [(chunk.offset, self._chunk_block(chunk)) for chunk in self._chunks]
        blocks += [(part[0].offset, self._loose_block(part)) for part in _parts(self._loose)]
        yield from (block for _, block in sorted(blocks, key=lambda each: each[0]))

    def close(self) -> None:
        self._file.close()

    # Walking the records

    def _walk(self) -> bool:
        """Notes where everything is. True if the file is complete and its summary can be trusted."""
        offset, chunk, summary, broken = len(MAGIC), None, 0, False
        while offset < self._size:
            head = self._at(offset, _RECORD.size)
            problem = "the file ends inside it"
            following: int | None = None
            if len(head) == _RECORD.size:
                opcode, length = _RECORD.unpack(head)
                if opcode == Opcode.CHUNK and not summary:
                    chunk = self._find_chunk(offset, length)
                    if chunk is not None:
                        following = self._size if chunk.cut else chunk.data + chunk.size
                    else:
                        problem = "it is no whole chunk"
                elif opcode == Opcode.FOOTER and summary:
                    return self._check_footer(offset, length, summary) and not broken
                elif offset + _RECORD.size + length <= self._size:
                    try:
                        self._take(opcode, offset + _RECORD.size, length, chunk, in_summary=bool(summary))
                        following = offset + _RECORD.size + length
                        if opcode == Opcode.DATA_END:
                            summary = following
                        elif opcode != Opcode.MESSAGE_INDEX:
                            chunk = None
                    except (McapError, ValueError, KeyError, struct.error, RecursionError) as error:
                        problem = f"its content is none: {error or type(error).__name__}"
            if following is None:
                broken, chunk = True, None
                following = self._next_chunk(offset + 1)
                where = f"to byte {following}" if following else "to the end"
                self._note(
                    "structure",
                    f"at byte {offset} of {self._size} there is no record: {problem}; skipped {where}",
                    "nothing but the file's summary" if summary else f"what was recorded {where} from there",
                )
                if following is None:
                    break
                summary = 0
            offset = following
        if self._chunks and self._chunks[-1].cut:
            lost = "the end of its last chunk, and what followed"
        else:
            lost = "what was recorded after it; at most the last chunk if the recording was killed"
        self._note("unfinished", "the file's end is missing", lost)
        return False

    def _take(self, opcode: int, start: int, length: int, chunk: _Chunk | None, *, in_summary: bool) -> None:
        """Notes one record that is no chunk. Raises ValueError and the like for one that is none."""
        if opcode == Opcode.MESSAGE:
            head = self._at(start, _MESSAGE.size)
            channel, _, time, _ = _MESSAGE.unpack(head)
            self._loose.append(_Loose(time, channel, start + _MESSAGE.size, length - _MESSAGE.size))
            return
        if opcode >= 0x80:
            # Allowed for a program's own purposes; but one changed bit makes it of a message.
            self._note(
                "structure", f"a record of the unknown type {opcode}", f"its {length} bytes, if they were messages"
            )
            return
        if opcode == Opcode.ATTACHMENT:
            return
        if length > _SMALL:
            raise ValueError(f"{length} bytes")
        body = self._at(start, length)
        if opcode == Opcode.MESSAGE_INDEX:
            self._take_index(body, chunk)
        elif opcode == Opcode.STATISTICS:
            self._statistics = _parsed(Statistics, body)
        elif opcode == Opcode.METADATA:
            self._take_metadata(_parsed(Metadata, body))
        elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
            record = _parsed(_DECLARATIONS[opcode], body)
            if in_summary:
                self._in_summary.append(record)
            else:
                self._register(record)
        elif opcode == Opcode.DATA_END:
            if length != 4:
                raise ValueError(f"{length} bytes instead of 4")
        elif not (opcode in _SUMMARY_ONLY if in_summary else start == _FIRST and opcode == Opcode.HEADER):
            raise ValueError(f"a record of type {opcode} cannot be here")

    def _take_index(self, body: bytes, chunk: _Chunk | None) -> None:
        channel, size = struct.unpack_from("<HI", body)
        if size != len(body) - 6 or size % _INDEX_ENTRY:
            raise ValueError(f"an index of {size} bytes in a record of {len(body)}")
        if chunk is not None:
            entries = np.frombuffer(body[6:], "<u8").reshape(-1, 2)
            known = chunk.index.get(channel)
            chunk.index[channel] = entries if known is None else np.concatenate((known, entries))
        elif size:
            self._note(
                "structure",
                "an index of messages follows no chunk",
                f"a chunk with {messages_lost(size // _INDEX_ENTRY)} of channel {channel}",
            )

    def _take_metadata(self, record: Metadata) -> None:
        """rosbag2 keeps its metadata in the file as well; the last record of it is the most complete."""
        if record.name != "rosbag2":
            return
        try:
            values = yaml.safe_load(record.metadata.get("serialized_metadata", ""))
        except (yaml.YAMLError, RecursionError, ValueError):
            self._note("metadata", "the file's own copy of the metadata is no YAML", "its custom data")
            return
        custom = values.get("custom_data") if isinstance(values, dict) else None
        if isinstance(custom, dict):
            self.custom_data.update({str(key): str(value) for key, value in custom.items()})

    def _register(self, record: Schema | Channel) -> None:
        """Keeps a schema or channel; of two that contradict each other the first, which messages came with."""
        kept: dict[int, Any] = self._schemas if isinstance(record, Schema) else self._channels
        if kept.setdefault(record.id, record) != record:
            self._note("schema", f"{type(record).__name__.lower()} {record.id} is defined twice, differently")

    def _check_footer(self, offset: int, length: int, summary: int) -> bool:
        body = self._at(offset + _RECORD.size, _FOOTER.size)
        if length != _FOOTER.size or len(body) < _FOOTER.size:
            self._note("unfinished", "the file's last record is damaged", "nothing but the file's summary")
            return False
        if self._at(offset + _RECORD.size + length, len(MAGIC) + 1) != MAGIC:
            self._note("unfinished", "the file does not end as an MCAP file does", "nothing but the file's summary")
            return False
        start, _, checksum = _FOOTER.unpack(body)
        end = offset + _RECORD.size + _FOOTER.size - 4
        if start == 0 and offset == summary:
            return False  # a file without a summary, which is allowed
        if start != summary or (checksum and zlib.crc32(self._at(start, end - start)) != checksum):
            self._note("checksum", "the file's summary is damaged; it is made anew from the messages")
            return False
        for record in self._in_summary:
            self._register(record)
        # Without a statement of every channel here, the chunks must be read to know them.
        return self._statistics is not None and self._statistics.channel_message_counts.keys() <= self._channels.keys()

    # Chunks

    def _find_chunk(self, offset: int, length: int) -> _Chunk | None:
        """The chunk at `offset`, or None where the bytes are no chunk."""
        fixed = self._at(offset + _RECORD.size, _CHUNK.size + 32)
        if len(fixed) < _CHUNK.size:
            return None
        start, end, uncompressed, checksum, name = _CHUNK.unpack_from(fixed)
        try:
            compression = fixed[_CHUNK.size : _CHUNK.size + name].decode("ascii")
        except UnicodeDecodeError:
            return None
        sizes = fixed[_CHUNK.size + name : _CHUNK.size + name + 8]
        if name > 16 or len(sizes) < 8:
            return None
        inner = struct.unpack("<Q", sizes)[0]
        head = _CHUNK.size + name + 8
        data = offset + _RECORD.size + head

        def chunk(size: int, *, cut: bool = False) -> _Chunk:
            return _Chunk(offset, data, size, start, end, uncompressed, checksum, compression, cut)

        outer = length - head
        if inner == outer:
            found = chunk(inner) if data + inner <= self._size else chunk(self._size - data, cut=True)
            self._chunks.append(found)
            return found
        for size in (inner, outer):
            # One of the two lengths is damaged; the checksum tells which.
            if 0 < size <= self._size - data and checksum and self._verified(chunk(size)):
                self._note("structure", f"the chunk at byte {offset} has two lengths, {inner} and {outer} bytes")
                found = chunk(size)
                self._chunks.append(found)
                return found
        return None

    def _next_chunk(self, offset: int) -> int | None:
        """The next place at or behind `offset` where a chunk begins whose two lengths agree."""
        while offset < self._size:
            window = self._at(offset, _WINDOW)
            for match in _ANY_CHUNK.finditer(window):
                found = offset + match.start()
                head = self._at(found, _RECORD.size + _CHUNK.size + 24)
                name = struct.unpack_from("<I", head, _RECORD.size + _CHUNK.size - 4)[0]
                at = _RECORD.size + _CHUNK.size + name
                if len(head) < at + 8:
                    continue
                length, inner = _RECORD.unpack_from(head)[1], struct.unpack_from("<Q", head, at)[0]
                if length == inner + _CHUNK.size + name + 8:
                    return found
            if len(window) < _WINDOW:
                break
            offset += _WINDOW - 64
        return None

    def _verified(self, chunk: _Chunk) -> bool:
        try:
            raw = decompress(self._at(chunk.data, chunk.size), chunk.compression, chunk.uncompressed)
        except DecompressionError:
            return False
        return zlib.crc32(raw) == chunk.checksum

    def _check_times(self, chunk: _Chunk, *, read: bool) -> None:
        """Makes sure that a chunk's times are those of its messages, or reads it to find them."""
        times = [time for entries in chunk.index.values() for time in entries[:, 0].tolist()]
        agree = bool(times) and (min(times), max(times)) == (chunk.start, chunk.end)
        if not agree and (times or chunk.cut):
            read = True
        if read:
            entries = [time for _, _, time, _ in self._records(chunk)]
            if entries:
                chunk.start, chunk.end = min(entries), max(entries)
            if times and not agree and (min(times), max(times)) != (chunk.start, chunk.end):
                self._note("structure", f"the chunk at byte {chunk.offset} has other times than the index behind it")

    def _chunk_block(self, chunk: _Chunk) -> Block:
        return Block(
            chunk.start, chunk.end, lambda topics: self._load_chunk(chunk, topics), lambda: self._chunk_order(chunk)
        )

    def _chunk_order(self, chunk: _Chunk) -> Order:
        """By the index where it says nothing strange: no checksum covers it."""
        if chunk.index:
            entries = np.concatenate(list(chunk.index.values()))
            channels = np.repeat(list(chunk.index), [len(index) for index in chunk.index.values()])
            by_offset = np.argsort(entries[:, 1], kind="stable")
            times, offsets = entries[by_offset].T
            if len(times) and not goes_back(times):
                return self._order(offsets.tolist(), channels[by_offset].tolist(), times.tolist())
        records = [(offset, channel, time) for offset, channel, time, _ in self._records(chunk)]
        return self._order(*([record[i] for record in records] for i in range(3)))

    def _loose_block(self, part: list[_Loose]) -> Block:
        times = [message.time for message in part]

        def order() -> Order:
            return self._order([message.offset for message in part], [message.channel for message in part], times)

        return Block(min(times), max(times), lambda topics: self._load_loose(part, topics), order)

    def _order(self, offsets: list[int], channels: list[int], times: list[int]) -> Order:
        names = {number: channel.topic for number, channel in self._channels.items()}
        return Order(offsets, times, [names.get(channel, "") for channel in channels])

    def _load_chunk(self, chunk: _Chunk, topics: Collection[str] | None) -> list[Entry]:
        if topics is not None and chunk.index:
            names = {self._channels[channel].topic for channel in chunk.index if channel in self._channels}
            # A chunk with a channel that is not known is read, as it may be the chunk that tells.
            if names.isdisjoint(topics) and all(channel in self._channels for channel in chunk.index):
                return []
        entries = []
        unknown: Counter[int] = Counter()
        late = 0
        for offset, channel, time, raw in self._records(chunk):
            if channel not in self._channels:
                unknown[channel] += 1
                continue
            topic = self._channels[channel].topic
            late += not chunk.start <= time <= chunk.end
            if topics is None or topic in topics:
                entries.append(Entry(time, topic, bytes(raw), offset))
        for channel, count in unknown.items():
            self._note(
                "schema", f"channel {channel} in the chunk at byte {chunk.offset} is not defined", messages_lost(count)
            )
        if late:
            self._note("structure", f"{late} messages in the chunk at byte {chunk.offset} are outside of its times")
        return entries

    def _records(self, chunk: _Chunk) -> Iterator[tuple[int, int, int, memoryview]]:
        """Offset, channel, log time and bytes of a chunk's messages; schemas and channels are registered on the way."""
        found = 0
        raw, problem, kind = self._content(chunk)
        if raw is not None:
            view, offset = memoryview(raw), 0
            while offset < len(raw):
                end = offset + _RECORD.size
                opcode, length = _RECORD.unpack_from(raw, offset) if end <= len(raw) else (0, 0)
                if opcode == 0 or end + length > len(raw) or (opcode == Opcode.MESSAGE and length < _MESSAGE.size):
                    problem = problem or f"no record at byte {offset} of its {len(raw)}"
                    break
                body = view[end : end + length]
                start, offset = offset, end + length
                if opcode == Opcode.MESSAGE:
                    channel, _, time, _ = _MESSAGE.unpack_from(body)
                    found += 1
                    yield start, channel, time, body[_MESSAGE.size :]
                elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                    try:
                        self._register(_parsed(_DECLARATIONS[opcode], bytes(body)))
                    except (McapError, ValueError, KeyError, struct.error) as error:
                        problem = problem or f"a schema or channel in it is damaged: {error or type(error).__name__}"
                else:
                    problem = problem or f"a record of type {opcode} in it"
        if problem:
            indexed = sum(map(len, chunk.index.values()))
            if indexed:
                lost = f"{indexed - found} of its {indexed} messages"
            else:
                lost = f"all but {found} of its messages"
            self._note(kind, f"the chunk at byte {chunk.offset}: {problem}", lost)

    def _content(self, chunk: _Chunk) -> tuple[bytes | None, str, str]:
        """A chunk's records as far as they can be trusted, what is wrong with them, and the kind of that damage."""
        data = self._at(chunk.data, chunk.size)
        try:
            raw = decompress(data, chunk.compression, chunk.uncompressed)
        except DecompressionError as error:
            if chunk.cut:
                # Bytes are missing, but those that are there are right: records up to the cut can be trusted.
                return error.prefix, f"the file ends inside it ({error})", "unfinished"
            return (error.prefix if self._unverified else None), f"it does not decompress: {error}", "checksum"
        if chunk.checksum and zlib.crc32(raw) != chunk.checksum:
            return (raw if self._unverified else None), "its checksum does not match its bytes", "checksum"
        return raw, "", "structure"

    def _load_loose(self, part: list[_Loose], topics: Collection[str] | None) -> list[Entry]:
        entries = []
        for message in part:
            channel = self._channels.get(message.channel)
            if channel is None:
                self._note("schema", f"channel {message.channel} is not defined", f"the message at {message.time} ns")
            elif topics is None or channel.topic in topics:
                entries.append(
                    Entry(message.time, channel.topic, self._at(message.offset, message.size), message.offset)
                )
        return entries

    def _at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`."""
        self._file.seek(offset)
        return self._file.read(max(min(size, self._size - offset), 0))

    def _note(self, kind: str, detail: str, lost: str = "nothing") -> None:
        self._log.note(self._name, kind, detail, lost)


def _parsed(record: Any, body: bytes) -> Any:
    """A record from its bytes, all of them."""
    stream = ReadDataStream(io.BytesIO(body))
    parsed = record.read(stream)
    if stream.count != len(body):
        raise ValueError(f"{len(body)} bytes instead of {stream.count}")
    return parsed


def _parts(messages: list[_Loose]) -> Iterator[list[_Loose]]:
    part: list[_Loose] = []
    size = 0
    for message in messages:
        if part and (len(part) == _BLOCK_MESSAGES or size + message.size > _BLOCK_BYTES):
            yield part
            part, size = [], 0
        part.append(message)
        size += message.size
    if part:
        yield part
