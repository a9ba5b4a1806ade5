"""Making a cache of many origins with several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2

from ki_ros.data.cache.episode import SourceEpisode
from ki_ros.data.cache.part import CacheError, Storage
from ki_ros.data.cache.writer import CacheWriter, add_part


class Origin(Protocol):
    """What episodes are read together from. Can be pickled.

    Attributes:
        name: of no other origin of the cache, such as a path below the directory of all.
        fingerprint: changes when the episodes do.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def episodes(self) -> Iterable[SourceEpisode]:
        """Reads them, one after the other. Raises ValueError or OSError for an origin that has none to give."""
        ...


@runtime_checkable
class RetriedOrigin(Origin, Protocol):
    """An origin that can be read another way once its episodes turn out to be damaged."""

    def after(self, error: ValueError) -> Origin | None:
        """What to read in place of it, under its name, after this error; None where nothing would be better."""
        ...


@dataclass(frozen=True)
class BuildProgress:
    """Where a build is.

    Attributes:
        done, total: origins that are through, and all.
        steps: written by this build.
        name: of the origin that is through now; empty at the beginning.
        error: why it could not be read; empty if it could.
    """

    done: int
    total: int
    steps: int = 0
    name: str = ""
    error: str = ""


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        added: origins of which a part was made, or made anew.
        kept: origins whose part was there already.
        removed: origins that are there no more; their episodes are in the cache no more either.
        refused: why, by name of the origin that could not be read.
        steps: written.
    """

    added: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    steps: int = 0


def build_cache(
    origins: Sequence[Origin],
    directory: str | Path,
    storage: Storage | None = None,
    *,
    workers: int = 1,
    retry_refused: bool = True,
    progress: Callable[[BuildProgress], None] = lambda _: None,
    waiting: Callable[[], None] = lambda: None,
) -> BuildReport:
    """Brings a cache up to date with its origins: what is there and has not changed is kept.

    An origin that cannot be read is left out and reported; the others are cached. Interrupted at any time, by SIGKILL
    too, the next call goes on from the origins that were through. Processes that call it for one directory take turns,
    and all but the first find it done.

    Args:
        origins: all that the cache is to hold; others are removed from it.
        directory: of the cache; made if it is missing.
        storage: how it stores what it is given.
        workers: processes; 1 for this one alone.
        retry_refused: whether to read origins again that were refused before and have not changed since.
        progress: called at the beginning and after each origin.
        waiting: called once before waiting for another process that builds the same cache.

    Raises:
        CacheError: two origins of one name; none that can be read; a damaged cache, or one of another storage.
        OSError: the cache cannot be written.
    """
    if workers < 1:
        raise CacheError(f"workers is {workers}; give at least 1 process")
    by_name: dict[str, Origin] = {}
    for origin in origins:
        if by_name.setdefault(origin.name, origin) is not origin:
            raise CacheError(f"two origins have the name {origin.name!r}; give each a name of its own")
    storage = storage if storage is not None else Storage()
    steps = 0
    with CacheWriter(directory, storage, waiting=waiting) as writer:
        fingerprints = {name: origin.fingerprint for name, origin in by_name.items()}
        before = {} if retry_refused else writer.refused
        refused = {name: why for name, (state, why) in before.items() if fingerprints.get(name) == state}
        kept = [name for name in by_name if name not in refused and writer.has(name, fingerprints[name])]
        known = {*kept, *refused}
        missing = [origin for name, origin in by_name.items() if name not in known]
        done = len(known)
        progress(BuildProgress(done, len(by_name)))
        with closing(_add_all(writer, missing, fingerprints, workers)) as through:
            for name, written, error in through:
                done += 1
                steps += written
                if error:
                    refused[name] = error
                progress(BuildProgress(done, len(by_name), steps, name, error))
        added = [origin.name for origin in missing if origin.name not in refused]
        if not (kept or added):
            reason = next((f"; the first refused is {name}: {error}" for name, error in refused.items()), "")
            raise CacheError(f"{directory}: none of {len(by_name)} origins can be cached{reason}")
        removed = writer.commit(
            {name: fingerprints[name] for name in (*kept, *added)},
            {name: (fingerprints[name], error) for name, error in refused.items()},
        )
    gone = tuple(name for name in removed if name not in by_name)
    return BuildReport(tuple(added), tuple(kept), gone, refused, steps)


@dataclass(frozen=True)
class CachePlan:
    """A cache that is to be made, and of what.

    Attributes:
        origins, directory, storage, workers: as of `build_cache`.
    """

    origins: Sequence[Origin]
    directory: Path
    storage: Storage
    workers: int

    def build(
        self,
        *,
        retry_refused: bool = False,
        progress: Callable[[BuildProgress], None] = lambda _: None,
        waiting: Callable[[], None] = lambda: None,
    ) -> BuildReport:
        """`build_cache` of this plan."""
        return build_cache(
            self.origins,
            self.directory,
            self.storage,
            workers=self.workers,
            retry_refused=retry_refused,
            progress=progress,
            waiting=waiting,
        )


def _add_all(
    writer: CacheWriter, origins: Sequence[Origin], fingerprints: dict[str, str], workers: int
) -> Generator[tuple[str, int, str], None, None]:
    """Name, steps and error of each origin, in the order in which they are through."""
    jobs = [(writer.directory, writer.storage, origin, fingerprints[origin.name]) for origin in origins]
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from (_add(*job) for job in jobs)
        return
    # Forking a process that has threads in it may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("forkserver"), initializer=_begin_worker)
    waiting: set[Future[tuple[str, int, str]]] = set()
    try:
        left = iter(jobs)
        while True:
            # Few at a time: whoever interrupts a build waits for no queue.
            while len(waiting) < 2 * workers and (job := next(left, None)) is not None:
                waiting.add(pool.submit(_add, *job))
            if not waiting:
                break
            through, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in through:
                yield future.result()
    except BaseException:
        # What they are writing is under a temporary name and nobody's loss.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    # Ctrl-C reaches all processes of a terminal; the one that started them ends them in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    """A worker whose owner was killed would wait for its next job for ever."""
    owner = parent_process()
    if owner is not None:
        owner.join()
        os._exit(1)


def _add(directory: Path, storage: Storage, origin: Origin, fingerprint: str) -> tuple[str, int, str]:
    try:
        episodes = origin.episodes()
    except (ValueError, OSError) as error:
        return origin.name, 0, str(error)
    try:
        return origin.name, add_part(directory, storage, origin.name, fingerprint, episodes), ""
    except ValueError as error:
        other = origin.after(error) if isinstance(origin, RetriedOrigin) else None
        return (origin.name, 0, str(error)) if other is None else _add(directory, storage, other, fingerprint)
