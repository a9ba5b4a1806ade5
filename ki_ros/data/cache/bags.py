"""Recorded bags as origins of a cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ki_ros.data.actions import CommandTopics
from ki_ros.data.bag import bag_name, find_bags
from ki_ros.data.cache.part import CacheError
from ki_ros.data.episodes import Episode, UndecodableError, read_episodes
from ki_ros.observation.rig_streams import RigStreams

SUFFIXES = (".mcap", ".db3", ".zstd", ".yaml")
"""Of the files that a bag is made of."""


@dataclass(frozen=True)
class BagOrigin:
    """A bag.

    Attributes:
        name: its path below the directory of all bags.
        path: of its directory or its only file.
        fingerprint: SHA-256 of names, sizes and times of its files.
        parameters: parameter file of the graph that it was recorded with; None to find the topics in the bag.
        decode_images: as of `read_episodes`.
    """

    name: str
    path: Path
    fingerprint: str
    parameters: Path | None
    decode_images: bool = False

    def episodes(self) -> list[Episode]:
        """Its episodes. Raises ValueError or OSError for a bag that cannot be read."""
        streams, commands = (None, None) if self.parameters is None else _rig(self.parameters)
        return read_episodes(self.path, streams, commands=commands, decode_images=self.decode_images)

    def after(self, error: ValueError) -> BagOrigin | None:
        """The same bag without the steps that have no picture, where that is what went wrong.

        Few recordings have such steps, and to look for them takes as long as decoding all pictures.
        """
        if self.decode_images or not isinstance(error, UndecodableError):
            return None
        return replace(self, decode_images=True)


def bag_origins(directory: Path, parameters: Path | None = None) -> list[BagOrigin]:
    """The bags below a directory, in the order of their names.

    Args:
        directory: of the bags.
        parameters: parameter file of the graph that they were recorded with; None to find the topics in the bags.

    Raises:
        CacheError: no directory, or no bag in it.
    """
    if not directory.is_dir():
        raise CacheError(f"{directory} is no directory; give one with bags")
    bags = find_bags(directory)
    if not bags:
        raise CacheError(f"{directory} has no bag: no directory with .mcap or .db3 files; give one with recordings")
    return [BagOrigin(bag_name(bag, directory), bag, _fingerprint(bag), parameters) for bag in bags]


def bag_settings(parameters: Path | None = None) -> dict[str, Any]:
    """What decides how bags become episodes, as plain values.

    Raises:
        ValueError: a parameter file that is wrong.
    """
    if parameters is None:
        return {"kind": "bags", "streams": None}
    streams, commands = _rig(parameters)
    plain = {name: value for name, value in vars(streams).items() if name != "cameras"}
    cameras = {role.value: asdict(camera) for role, camera in streams.cameras.items()}
    return {"kind": "bags", "streams": plain | {"cameras": cameras}, "commands": asdict(commands)}


def _rig(parameters: Path) -> tuple[RigStreams, CommandTopics]:
    return RigStreams.from_parameter_file(parameters), CommandTopics.from_parameter_file(parameters)


def _fingerprint(bag: Path) -> str:
    files = sorted(file for file in bag.rglob("*") if file.suffix in SUFFIXES) if bag.is_dir() else [bag]
    facts = [(file.relative_to(bag.parent).as_posix(), (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
