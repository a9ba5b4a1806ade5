"""A cache, written: part by part, by one process or by several, and its index at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ki_ros.data.cache.episode import SourceEpisode
from ki_ros.data.cache.index import MANIFEST, PARTS, EarlierCacheError, read_manifest, write_index
from ki_ros.data.cache.part import CacheError, Part, Storage, part_directory, read_part, write_part

_LOCK = ".lock"


class CacheWriter:
    """Fills a cache. A context manager: within it, no other process builds the same cache.

        with CacheWriter(directory) as writer:
            if not writer.has(name, fingerprint):
                writer.add(name, fingerprint, episodes)
            writer.commit({name: fingerprint, ...})

    An origin is whatever its episodes are read together from: a bag, an episode of a data set. Its part is complete or
    absent at all times, so a build that was killed goes on where it was. Nothing is readable before `commit`, and then
    a cache of an earlier version is gone.

    Args:
        directory: of the cache; made if it is missing.
        storage: how it stores what it is given.
        waiting: called once before waiting for another process that builds the same cache.

    Raises:
        CacheError: a cache of another storage is there.
        OSError: the directory cannot be written.
    """

    def __init__(
        self, directory: str | Path, storage: Storage | None = None, *, waiting: Callable[[], None] | None = None
    ) -> None:
        self.directory = Path(directory)
        self.storage = storage if storage is not None else Storage()
        self._waiting = waiting
        self._lock: int | None = None

    def __enter__(self) -> CacheWriter:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take_lock(self._lock)
            self._require_same_storage()
            # Of builds that were killed. Whoever made them holds the lock no more.
            for left in (*self.directory.glob(".index.*"), *self.directory.glob(f"{PARTS}/.*")):
                shutil.rmtree(left, ignore_errors=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def has(self, name: str, fingerprint: str) -> bool:
        """Whether an origin's part is there, made of the origin in this state."""
        return self._part(name, fingerprint) is not None

    def add(self, name: str, fingerprint: str, episodes: Iterable[SourceEpisode]) -> int:
        """Writes an origin's part; returns the number of steps.

        Args:
            name: of the origin; no other has it.
            fingerprint: changes when the origin does.
            episodes: of the origin, taken one at a time.

        Raises:
            CacheError: an episode that cannot be stored; there is no part then.
            OSError: of the disk.
        """
        return add_part(self.directory, self.storage, name, fingerprint, episodes)

    @property
    def refused(self) -> dict[str, tuple[str, str]]:
        """Origins that could not be read when the cache was committed: fingerprint and reason by name."""
        manifest = self._manifest()
        return {} if manifest is None else {name: (entry[0], entry[1]) for name, entry in manifest["refused"].items()}

    def commit(
        self, origins: Mapping[str, str], refused: Mapping[str, tuple[str, str]] | None = None
    ) -> tuple[str, ...]:
        """Makes a cache of the parts of these origins, in the order of their names, and deletes all other parts.

        Args:
            origins: fingerprints by name.
            refused: fingerprint and reason of those that could not be read, to be kept with the cache.

        Returns:
            Names of other origins whose parts were deleted.

        Raises:
            CacheError: an origin without a part; a part that is damaged.
            OSError: of the disk.
        """
        parts: list[Part] = []
        for name in sorted(origins):
            part = self._part(name, origins[name])
            if part is None:
                raise CacheError(f"{self.directory} has no part of {name!r}; add it first")
            parts.append(part)
        places = {part.directory for part in parts}
        stale = [place for place in sorted(self.directory.glob(f"{PARTS}/*")) if place not in places]
        others = {part.name for place in stale if (part := read_part(place, self.storage)) is not None}
        reasons = {name: list(entry) for name, entry in sorted((refused or {}).items())}
        if not self._is_committed(parts, reasons):
            write_index(self.directory, parts, self.storage, reasons)
        # Only now does no manifest name them.
        for place in stale:
            shutil.rmtree(place, ignore_errors=True)
        return tuple(sorted(others - set(origins)))

    def _part(self, name: str, fingerprint: str) -> Part | None:
        return read_part(self.directory / PARTS / part_directory(name, fingerprint), self.storage)

    def _is_committed(self, parts: list[Part], refused: dict[str, list[str]]) -> bool:
        manifest = self._manifest()
        if manifest is None:
            return False
        digests = [episode.digest for part in parts for episode in part.episodes]
        return (
            manifest["parts"] == [{"name": part.name, "fingerprint": part.fingerprint} for part in parts]
            and manifest["refused"] == refused
            and [episode["digest"] for episode in manifest["episodes"]] == digests
            and (self.directory / manifest["index"]).is_dir()
        )

    def _require_same_storage(self) -> None:
        manifest = self._manifest()
        if manifest is None:
            return
        there, asked = manifest["storage"], self.storage.to_dict()
        differing = [name for name in asked if there.get(name) != asked[name]]
        if differing:
            name = differing[0]
            raise CacheError(
                f"{self.directory} holds a cache with {name} {there.get(name)!r}, but {asked[name]!r} was asked for; "
                "give another directory, or delete this one"
            )

    def _manifest(self) -> dict[str, Any] | None:
        if not (self.directory / MANIFEST).exists():
            return None
        try:
            return read_manifest(self.directory)
        except EarlierCacheError:
            return None

    def _take_lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self._waiting is not None:
                self._waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)


def add_part(directory: Path, storage: Storage, name: str, fingerprint: str, episodes: Iterable[SourceEpisode]) -> int:
    """`CacheWriter.add` for a process that its owner started."""
    place = directory / PARTS / part_directory(name, fingerprint)
    return write_part(place, place.with_name(f".{os.getpid()}.{place.name}"), name, fingerprint, episodes, storage)
