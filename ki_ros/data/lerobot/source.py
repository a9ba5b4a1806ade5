"""What is exported: the episodes of a cache, or of bags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ki_ros.data.cache import Cache, CachedEpisode
from ki_ros.data.cache.bags import bag_origins
from ki_ros.data.cache.build import Origin
from ki_ros.data.cache.index import MANIFEST
from ki_ros.rig import CameraRole


class CacheEpisode:
    """An episode of a cache as a `SourceEpisode`."""

    def __init__(self, cache: Cache, episode: CachedEpisode) -> None:
        rows = slice(episode.first, episode.first + episode.length)
        self.bag: Path = episode.bag
        self.id: str = episode.id
        self.instruction: str = episode.instruction
        self.outcome: str = episode.outcome
        self.robot: str = episode.robot
        self.rate: float = episode.rate
        self.action_source: str = episode.action_source
        self.stamps_ns: np.ndarray = cache.stamps[rows]
        self.states: np.ndarray = cache.states[rows]
        self.targets: np.ndarray = cache.targets[rows]
        self.segment: np.ndarray = cache.segment[rows]
        self.idle: np.ndarray = cache.idle[rows]
        self.ended: bool = episode.ended
        self.damage: tuple[str, ...] = episode.damage
        self._cache = cache
        self._episode = episode

    def views(self, step: int) -> dict[CameraRole, np.ndarray]:
        """The pictures of a step, (H, W, 3) uint8 RGB. Raises CacheError for a damaged one."""
        number = self._episode.first + step
        return {role: self._cache.view(number, role) for role in self._episode.views}


@dataclass(frozen=True)
class CacheOrigin:
    """One episode of a cache as an `Origin`."""

    name: str
    fingerprint: str
    cache: Cache = field(repr=False)
    number: int

    def episodes(self) -> Iterator[CacheEpisode]:
        """The episode."""
        yield CacheEpisode(self.cache, self.cache.episodes[self.number])


def open_source(directory: Path, parameters: Path | None = None) -> list[Origin]:
    """What episodes come from: each of a cache's, or each bag at or below a directory.

    Args:
        directory: of a cache or of bags.
        parameters: parameter file of the graph that bags were recorded with; None to find the topics in them.

    Raises:
        CacheError: a damaged cache, or neither a cache nor bags.
    """
    if (directory / MANIFEST).is_file():
        cache = Cache(directory)
        return [CacheOrigin(episode.id, episode.digest, cache, n) for n, episode in enumerate(cache.episodes)]
    return list(bag_origins(directory, parameters))
