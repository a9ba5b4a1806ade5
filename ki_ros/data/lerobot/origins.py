"""A LeRobot dataset as origins of a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_ros.data.lerobot import layout
from ki_ros.data.lerobot.errors import LeRobotError
from ki_ros.data.lerobot.reader import Dataset, LeRobotEpisode, Row

GROUP = 16
"""Episodes of one origin: few enough to lose little when one is refused, many enough for a dataset of 100,000."""


@dataclass(frozen=True)
class LeRobotOrigin:
    """Episodes of a dataset that follow each other. Those without an instruction are left out.

    Attributes:
        name: their numbers.
        fingerprint: SHA-256 of where they lie, and of sizes and times of these files.
        directory: of the dataset.
        preset, changes: as of `Dataset`; `changes` as JSON.
        first, last: numbers of the episodes, both included.
    """

    name: str
    fingerprint: str
    directory: Path
    preset: str
    changes: str
    first: int
    last: int

    def episodes(self) -> Iterator[LeRobotEpisode]:
        """Reads them. Raises LeRobotError for one that cannot be read, and where none has an instruction."""
        dataset = _dataset(self.directory, self.preset, self.changes)
        given = False
        for number in range(self.first, self.last + 1):
            episode = dataset.episode(number)
            if episode.instruction:
                given = True
                yield episode
        if not given:
            raise LeRobotError(f"{self.name} of {self.directory}: no episode has an instruction; leave them out")


def lerobot_origins(
    directory: Path, preset: str = "auto", changes: Mapping[str, Any] | None = None
) -> list[LeRobotOrigin]:
    """The episodes of a dataset, `GROUP` at a time.

    Raises:
        LeRobotError: as `Dataset`.
    """
    stated = json.dumps(dict(changes or {}), sort_keys=True)
    dataset = _dataset(directory, preset, stated)
    origins = []
    for first in range(0, len(dataset), GROUP):
        last = min(first + GROUP, len(dataset)) - 1
        rows = [row for parts in dataset.rows[first : last + 1] for row in parts]
        name = f"episodes {first:06d}-{last:06d}"
        origins.append(LeRobotOrigin(name, _fingerprint(directory, rows), directory, preset, stated, first, last))
    return origins


def lerobot_settings(directory: Path, preset: str = "auto", changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What decides how a dataset becomes episodes, as plain values. Raises LeRobotError as `Dataset`."""
    dataset = _dataset(directory, preset, json.dumps(dict(changes or {}), sort_keys=True))
    return {"kind": "lerobot", "features": dataset.map.to_dict()}


_opened: dict[tuple[Path, str, str], tuple[int, Dataset]] = {}


def _dataset(directory: Path, preset: str, changes: str) -> Dataset:
    """The dataset, read once in a process: a large one's list of episodes takes seconds."""
    key = (directory, preset, changes)
    file = directory / layout.INFO_FILE
    state = file.stat().st_mtime_ns if file.is_file() else 0
    if key not in _opened or _opened[key][0] != state:
        _opened.clear()
        _opened[key] = (state, Dataset(directory, preset, json.loads(changes)))
    return _opened[key][1]


def _fingerprint(directory: Path, rows: list[Row]) -> str:
    files = sorted(
        {directory / layout.TASKS_FILE}
        | {row.file for row in rows}
        | {path for row in rows for path, _ in row.videos.values()}
    )
    facts: list[Any] = [
        [row.index, row.length, row.first, sorted(start for _, start in row.videos.values())] for row in rows
    ]
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            raise LeRobotError(f"{file} does not exist; copy the dataset whole") from None
        facts.append([file.relative_to(directory).as_posix(), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
