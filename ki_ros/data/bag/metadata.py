"""metadata.yaml of a rosbag2 recording, whatever its version and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ki_ros.data.bag.damage import DamageLog

NAME = "metadata.yaml"


@dataclass
class BagMetadata:
    """What metadata.yaml says of a recording; None and empty where it does not, or says it wrongly.

    `files` are relative to the recording's directory; `file_counts` and `counts` are messages by file and by topic,
    `extent` the log times of the first and the last message [ns].
    """

    files: list[str] = field(default_factory=list)
    file_counts: dict[str, int] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    extent: tuple[int, int] | None = None
    custom_data: dict[str, str] = field(default_factory=dict)


def read_metadata(path: Path, log: DamageLog) -> BagMetadata:
    """What can be read of the file; everything else is noted as damage."""
    metadata = BagMetadata()
    try:
        document = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        values = document["rosbag2_bagfile_information"]
    except FileNotFoundError:
        log.note(
            path,
            "metadata",
            "there is no metadata.yaml; the recording was not closed, or the file was not copied",
            "files behind the last one that is here, if there were any",
        )
        return metadata
    except (OSError, yaml.YAMLError, RecursionError, ValueError, TypeError, KeyError) as error:
        log.note(path, "metadata", f"unreadable: {' '.join(str(error).split())[:200] or type(error).__name__}")
        return metadata
    if not isinstance(values, dict):
        log.note(path, "metadata", "rosbag2_bagfile_information has no entries")
        return metadata

    def take(name: str, read: Callable[[Any], None], value: Any) -> None:
        try:
            read(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.note(path, "metadata", f"entry {name!r} is not what it should be: {error!r}"[:200])

    take(
        "relative_file_paths",
        lambda value: metadata.files.extend(map(_text, _list(value))),
        values.get("relative_file_paths"),
    )
    take(
        "topics_with_message_count",
        lambda value: _take_topics(metadata, value),
        values.get("topics_with_message_count"),
    )
    take("starting_time, duration", lambda value: _take_extent(metadata, value), values)
    for name, read in (("files", _take_files), ("custom_data", _take_custom_data)):
        if values.get(name) is not None:
            take(name, lambda value, read=read: read(metadata, value), values[name])
    return metadata


def _take_topics(metadata: BagMetadata, value: Any) -> None:
    for entry in _list(value):
        topic = entry["topic_metadata"]
        name = _text(topic["name"])
        metadata.types[name] = _text(topic["type"])
        metadata.formats[name] = _text(topic["serialization_format"])
        # A topic is listed more than once where its publishers had different types or profiles.
        metadata.counts[name] = metadata.counts.get(name, 0) + _number(entry["message_count"])


def _take_extent(metadata: BagMetadata, values: Mapping[str, Any]) -> None:
    start = _number(values["starting_time"]["nanoseconds_since_epoch"])
    duration = _number(values["duration"]["nanoseconds"])
    if _number(values["message_count"]):
        metadata.extent = start, start + duration


def _take_files(metadata: BagMetadata, value: Any) -> None:
    for entry in _list(value):
        metadata.file_counts[Path(_text(entry["path"])).name] = _number(entry["message_count"])


def _take_custom_data(metadata: BagMetadata, value: Any) -> None:
    metadata.custom_data.update({_text(key): str(item) for key, item in value.items()})


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no number of messages or nanoseconds")
    return value
