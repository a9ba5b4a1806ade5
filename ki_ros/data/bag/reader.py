"""Reading recordings of rosbag2: MCAP and SQLite, split, compressed, damaged; on a machine without ROS.

Everything that can be read is read, and whatever cannot is told: `Bag.damage` has an entry for each thing that is wrong
and says what is lost by it. What no reader can notice is in the descriptions of `mcap_file` and `sqlite_file`; the most
important is that SQLite keeps no checksums, so that a changed bit inside a message of a .db3 file looks like data.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ki_ros.data.bag import mcap_file, sqlite_file
from ki_ros.data.bag.blocks import DISORDER_NS, Block, Entry, merged, set_backs, split
from ki_ros.data.bag.compression import ZSTD_MAGIC, DecompressionError, decompress_file, decompress_message
from ki_ros.data.bag.damage import BagError, Damage, DamageLog, messages_lost
from ki_ros.data.bag.mcap_file import McapFile
from ki_ros.data.bag.metadata import NAME as METADATA
from ki_ros.data.bag.metadata import BagMetadata, read_metadata
from ki_ros.data.bag.schema import contradiction
from ki_ros.data.bag.sqlite_file import SqliteFile
from ki_ros.data.bag.topic import Topic

_STORAGE = {".mcap": "mcap", ".db3": "sqlite3"}
_COMPRESSED = ".zstd"
# Representation identifiers of the CDR encodings: plain, parameter lists, and those of XCDR version 2.
_CDR = {0, 1, 2, 3, 6, 7, 8, 9, 10, 11}


class Message(NamedTuple):
    """A recorded message: the topic's name, when it was received [ns], and its serialised bytes."""

    topic: str
    log_time_ns: int
    raw: bytes


class Bag:
    """A recording, open for reading. `open_bag` makes it.

    Attributes:
        path: what was opened.
        storage: "mcap" or "sqlite3".
        topics: by name, also those without messages.
        custom_data: what the recorder noted, such as an episode's outcome.
        start_ns, end_ns: log times of the first and the last message [ns]; both 0 where there are none.
    """

    def __init__(
        self,
        path: Path,
        files: list[tuple[Path, McapFile | SqliteFile]],
        metadata: BagMetadata | None,
        log: DamageLog,
        temporary: tempfile.TemporaryDirectory[str] | None,
    ) -> None:
        self.path = path
        self.storage = "mcap" if any(isinstance(file, McapFile) for _, file in files) else "sqlite3"
        self._files, self._log, self._temporary = files, log, temporary
        self.topics: Mapping[str, Topic] = self._merge_topics()
        extents = [file.extent for _, file in files if file.extent is not None]
        self.start_ns = min((start for start, _ in extents), default=0)
        self.end_ns = max((end for _, end in extents), default=0)
        self.custom_data: dict[str, str] = {}
        for _, file in files:
            self.custom_data.update(file.custom_data)
        if metadata is not None:
            self._compare(metadata)
            self.custom_data.update(metadata.custom_data)
        self._listed = metadata.counts if metadata is not None else {}

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def damage(self) -> list[Damage]:
        """Everything that was found to be wrong so far. What is wrong with a message is found when it is read."""
        return list(self._log.entries)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[Message]:
        """The recorded messages in order of log time over all files; only where the clock was set back do they go back.

        Args:
            topics: names of the topics to read; None for all. Names that the recording lacks give nothing.

        A message that is no serialised message is left out and noted as damage. After the last message the numbers of
        messages are compared with those that were recorded.
        """
        wanted = None if topics is None else frozenset(topics)
        read: list[Counter[str]] = [Counter() for _ in self._files]
        broken: Counter[tuple[str, str]] = Counter()
        for time, topic, raw, _ in self._merged(read, wanted):
            if raw[:4] == ZSTD_MAGIC:
                # A recording with compression_mode MESSAGE; no serialised message begins so.
                try:
                    raw = decompress_message(raw)
                except DecompressionError as error:
                    broken[topic, f"do not decompress ({error})"] += 1
                    continue
            if self._format(topic) == "cdr" and not _is_cdr(raw):
                broken[topic, "do not begin as a serialised message does"] += 1
                continue
            yield Message(topic, time, raw)
        for (topic, problem), count in broken.items():
            self._log.note(self.path, "message", f"messages of {topic} {problem}", messages_lost(count))
        self._compare_counts(read, wanted)

    def close(self) -> None:
        """Closes the files. Calling it twice changes nothing."""
        for _, file in self._files:
            file.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _merged(self, read: list[Counter[str]], wanted: frozenset[str] | None) -> Iterator[Entry]:
        """The messages of each stretch between two times at which the clock was set back; counts what is read."""
        for stretch in self._stretches:
            counted = (
                block._replace(load=functools.partial(_load_counted, block, read[number])) for number, block in stretch
            )
            yield from merged(counted, wanted)

    @functools.cached_property
    def _stretches(self) -> list[list[tuple[int, Block]]]:
        """The blocks of all files, each with the number of its file, in stretches between which the clock was set back.

        Files whose times do not overlap are in the order of these, however they are listed.
        """
        order = list(range(len(self._files)))
        extents = sorted((*file.extent, number) for number, (_, file) in enumerate(self._files) if file.extent)
        if all(before[1] - DISORDER_NS <= after[0] for before, after in itertools.pairwise(extents)):
            order = [number for _, _, number in extents]
        blocks = [(number, block) for number in order for block in self._files[number][1].blocks()]
        found = set_backs([block for _, block in blocks])
        for at in found:
            detail = f"after {at.from_ns} ns log times go back by {at.by_ns / 1e9:.3f} s: the clock was set back there"
            self._log.note(self._files[blocks[at.block][0]][0], "clock", detail, "how much time passed there")
        stretches = split([block for _, block in blocks], found)
        return [[(blocks[number][0], block) for number, block in stretch] for stretch in stretches]

    def _format(self, topic: str) -> str:
        if topic not in self.topics:
            # Only a chunk of a damaged file declares it.
            self.topics = self._merge_topics()
        return self.topics[topic].serialization_format

    def _merge_topics(self) -> dict[str, Topic]:
        topics: dict[str, Topic] = {}
        for name, file in self._files:
            for topic in file.topics.values():
                known = topics.setdefault(topic.name, topic)
                if known.type_name != topic.type_name:
                    self._log.note(
                        name, "schema", f"{topic.name} has type {topic.type_name} here and {known.type_name} elsewhere"
                    )
                problem = contradiction(topic)
                if problem:
                    self._log.note(name, "schema", f"{topic.name}: {problem}", "the fields that differ, when decoded")
        return topics

    def _compare(self, metadata: BagMetadata) -> None:
        """Notes where metadata.yaml says other than the files."""
        file = self.path / METADATA
        for name, type_name in metadata.types.items():
            if name not in self.topics:
                lost = messages_lost(metadata.counts.get(name, 0))
                self._log.note(file, "metadata", f"topic {name} is listed, and is in no file", lost)
                continue
            topic, form = self.topics[name], metadata.formats.get(name, "")
            if topic.type_name != type_name:
                detail = f"topic {name} is listed with type {type_name}; in the files it has {topic.type_name}"
                self._log.note(file, "schema", detail)
            if form and topic.serialization_format != form:
                detail = f"topic {name} is listed as {form!r}; in the files it is {topic.serialization_format!r}"
                self._log.note(file, "schema", detail)
        for name in self.topics.keys() - metadata.types.keys() if metadata.types else ():
            self._log.note(file, "metadata", f"topic {name} is not listed")
        if metadata.extent is not None and metadata.extent != (self.start_ns, self.end_ns):
            said, found = (f"{start} to {end} ns" for start, end in (metadata.extent, (self.start_ns, self.end_ns)))
            self._log.note(file, "metadata", f"times of messages are listed as {said}; in the files they are {found}")

    def _compare_counts(self, read: list[Counter[str]], wanted: frozenset[str] | None) -> None:
        for (name, file), counter in zip(self._files, read, strict=True):
            self._note_counts(name, counter, file.counts or {}, wanted)
        if self._listed:
            self._note_counts(self.path / METADATA, sum(read, Counter()), self._listed, wanted)

    def _note_counts(
        self, file: Path, read: Counter[str], expected: Mapping[str, int], wanted: frozenset[str] | None
    ) -> None:
        for topic, count in expected.items():
            if (wanted is None or topic in wanted) and read[topic] != count:
                detail = f"{topic} should have {count} messages and has {read[topic]}"
                self._log.note(file, "count", detail, messages_lost(max(count - read[topic], 0)))


def open_bag(path: Path, *, unverified: bool = False) -> Bag:
    """Opens a recording.

    Args:
        path: a recording's directory, or one .mcap or .db3 file (also with .zstd behind it).
        unverified: also give messages of MCAP chunks whose checksum does not match. One of a chunk's messages, or
            several, are then not what was recorded; by default the whole chunk is left out and noted as damage.

    Raises:
        BagError: there is nothing to read: no such path, no such files, or none of them can be read.
    """
    path = Path(path)
    log = DamageLog()
    metadata = None
    if path.name == METADATA:
        path = path.parent
    if path.is_dir():
        metadata = read_metadata(path / METADATA, log)
        names = _files_of(path, metadata, log)
    elif path.is_file():
        names = [path]
    else:
        raise BagError(f"{path}: no such recording; give a directory with metadata.yaml, an .mcap or a .db3 file")
    files: list[tuple[Path, McapFile | SqliteFile]] = []
    problems = []
    temporary = tempfile.TemporaryDirectory(prefix="ki_ros_bag_") if any(map(_is_compressed, names)) else None
    for name in names:
        try:
            files.append((name, _open_file(name, log, temporary, unverified=unverified)))
        except (OSError, *sqlite_file.ERRORS, _UnreadableError) as error:
            problems.append(f"{name}: {error}")
            count = metadata.file_counts.get(name.name) if metadata is not None else None
            log.note(name, "split", str(error), "all of it" if count is None else messages_lost(count))
    if not files:
        what = "; ".join(problems) or f"{path} has no .mcap or .db3 file"
        raise BagError(f"{what}. Copy the recording anew, or leave it out")
    return Bag(path, files, metadata, log, temporary)


def find_bags(directory: Path) -> list[Path]:
    """The recordings in a directory and below it, sorted: directories, and files that are a recording of their own."""
    if directory.is_file():
        return [directory]
    found = []
    for folder, names, _ in os.walk(directory):
        names.sort()
        files = [file for file in Path(folder).iterdir() if _looks_recorded(file)]
        if Path(folder, METADATA).is_file() or (files and len({_stem(file) for file in files}) == 1):
            found.append(Path(folder))
        else:
            found += files
    return sorted(found)


def bag_name(bag: Path, directory: Path) -> str:
    """What a recording that `find_bags` found is called: its path below the directory, or its own name if it is it."""
    name = bag.relative_to(directory).as_posix()
    return bag.name if name == "." else name


class _UnreadableError(ValueError):
    """A file that is no recording's."""


def _open_file(
    name: Path, log: DamageLog, temporary: tempfile.TemporaryDirectory[str] | None, *, unverified: bool
) -> McapFile | SqliteFile:
    path = name
    if temporary is not None and _is_compressed(name):
        path = Path(temporary.name, name.name.removesuffix(_COMPRESSED))
        problem = decompress_file(name, path)
        if problem:
            log.note(name, "checksum", f"the file does not decompress to its end: {problem}", "what followed there")
    head = _head(path)
    if not head:
        raise _UnreadableError("the file is empty")
    storage = _STORAGE.get(path.suffix)
    for kind, magic in (("mcap", mcap_file.MAGIC), ("sqlite3", sqlite_file.MAGIC)):
        if head.startswith(magic):
            if storage != kind:
                log.note(name, "structure", f"the file is one of {kind}, and its name says otherwise")
            storage = kind
    if storage == "mcap":
        try:
            return McapFile(path, log, name=name, unverified=unverified)
        except ValueError as error:
            raise _UnreadableError(str(error)) from error
    if storage == "sqlite3":
        return SqliteFile(path, log, name=name)
    raise _UnreadableError(f"the file is neither MCAP nor SQLite; it begins with {head[:8].hex()}")


def _files_of(directory: Path, metadata: BagMetadata, log: DamageLog) -> list[Path]:
    """The files of a recording, in the order of metadata.yaml, and then those that it does not list."""
    present = sorted((file for file in directory.iterdir() if _looks_recorded(file)), key=_order)
    files: list[Path] = []
    for listed in metadata.files:
        # Before version 4 the paths began with the recording's own name.
        places = [directory / Path(listed).name, directory / Path(listed).name.removesuffix(_COMPRESSED)]
        places.append(directory / f"{Path(listed).name}{_COMPRESSED}")
        file = next((place for place in places if place in present), None)
        if file is None:
            count = metadata.file_counts.get(Path(listed).name)
            lost = "all of it" if count is None else messages_lost(count)
            log.note(directory / Path(listed).name, "split", "the file is missing", lost)
        elif file not in files:
            files.append(file)
    taken = {file.name.removesuffix(_COMPRESSED) for file in files}
    others = [file for file in present if file.name.removesuffix(_COMPRESSED) not in taken]
    if not metadata.files and len({_stem(file) for file in others}) > 1:
        raise BagError(
            f"{directory} holds several recordings and no metadata.yaml: "
            f"{', '.join(file.name for file in others)}; open one of the files"
        )
    if metadata.files:
        for file in others:
            log.note(file, "split", "the file is not listed in metadata.yaml; it is read all the same")
    else:
        _note_gaps(directory, others, log)
    return files + others


def _note_gaps(directory: Path, files: list[Path], log: DamageLog) -> None:
    """Notes files that are missing by the numbers in the others' names."""
    numbers = {_number(file) for file in files}
    for number in sorted(set(range(max(numbers, default=-1))) - numbers):
        name = f"{_stem(files[0])}_{number}{Path(files[0].name.removesuffix(_COMPRESSED)).suffix}"
        log.note(directory / name, "split", "the file is missing by the numbers of the others", "all of it")


def _looks_recorded(file: Path) -> bool:
    """Whether a file is one of a recording by its name, or else by its first bytes."""
    if not file.is_file() or file.name.endswith(("-wal", "-shm", "-journal")) or file.name.startswith("."):
        return False
    name = Path(file.name.removesuffix(_COMPRESSED))
    return name.suffix in _STORAGE or _head(file).startswith((mcap_file.MAGIC, sqlite_file.MAGIC))


def _is_compressed(file: Path) -> bool:
    return file.suffix == _COMPRESSED or _head(file).startswith(ZSTD_MAGIC)


def _head(file: Path) -> bytes:
    with file.open("rb") as handle:
        return handle.read(16)


def _stem(file: Path) -> str:
    """A recording's name by that of one of its files: NAME_0.mcap, NAME_1.mcap, ..."""
    return re.sub(r"_\d+$", "", Path(file.name.removesuffix(_COMPRESSED)).stem)


def _number(file: Path) -> int:
    """A file's place in its recording by its name; -1 where the name has none."""
    match = re.search(r"_(\d{1,6})$", Path(file.name.removesuffix(_COMPRESSED)).stem)
    return int(match[1]) if match else -1


def _order(file: Path) -> tuple[str, int, str]:
    return _stem(file), _number(file), file.name


def _is_cdr(raw: bytes) -> bool:
    return len(raw) >= 4 and struct.unpack_from(">H", raw)[0] in _CDR


def _load_counted(block: Block, counter: Counter[str], topics: Collection[str] | None) -> list[Entry]:
    entries = block.load(topics)
    counter.update(entry.topic for entry in entries)
    return entries
