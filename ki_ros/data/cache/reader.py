"""A cache, read: arrays mapped into memory, and any picture of any step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.data.cache.index import PARTS, check_index, checksum, place_file, read_manifest
from ki_ros.data.cache.part import ARRAYS, PLACES, CacheError
from ki_ros.data.cache.pictures import PictureError, decode
from ki_ros.rig import CameraRole


@dataclass(frozen=True)
class CachedEpisode:
    """One episode of a cache.

    Attributes:
        id, instruction, outcome, robot, rate, action_source, ended: as of `SourceEpisode`.
        bag: where it was recorded.
        first: index of its first step over all steps of the cache.
        length: T, its steps.
        views: (height, width) of the pictures of each camera.
        damage: what was wrong with the recording, and what of it was lost.
        digest: SHA-256 of all that the cache holds of it, wherever it came from.
    """

    id: str
    instruction: str
    outcome: str
    robot: str
    rate: float
    action_source: str
    ended: bool
    bag: Path
    first: int
    length: int
    views: Mapping[CameraRole, tuple[int, int]]
    damage: tuple[str, ...]
    digest: str


class Cache:
    """Episodes in a directory that `CacheWriter` filled. N steps in all, episode after episode.

    Attributes:
        directory: of the cache.
        episodes: in the order of their steps.
        stamps: (N,) int64, reference times [ns].
        states: (N, 8) float64, joint positions [rad] and gripper closedness.
        targets: (N, 8) float64, positions [rad] and closedness commanded for the end of each step.
        segment: (N,) int32, of the step's episode.
        idle: (N,) bool.
        refused: why, by name, of bags and the like that could not be read when the cache was made.

    Arrays are read-only maps of files. Pictures are read when they are asked for, each by itself, so that a cache of
    any size takes no memory and no open files for them. A cache can be pickled: another process opens it by itself.
    """

    stamps: np.ndarray
    states: np.ndarray
    targets: np.ndarray
    segment: np.ndarray
    idle: np.ndarray

    def __init__(self, directory: str | Path) -> None:
        """Opens a cache and checks it: sizes of all files, checksums of all but the pictures.

        Raises:
            CacheError: no cache, an incomplete or a damaged one; names the file.
        """
        self._open(Path(directory), read_manifest(Path(directory)), contents=True)

    def _open(self, directory: Path, manifest: dict[str, Any], *, contents: bool) -> None:
        check_index(directory, manifest, contents=contents)
        self.directory = directory
        self.encoding = manifest["storage"]["encoding"]
        self.refused: dict[str, str] = {name: entry[1] for name, entry in manifest["refused"].items()}
        self._checksum = checksum(manifest)
        entries = manifest["episodes"]
        lengths = [entry["length"] for entry in entries]
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self._files = [str(directory / PARTS / entry["part"] / f"{entry['number']}.pictures") for entry in entries]
        self.episodes = tuple(
            _episode(entry, int(end) - entry["length"]) for entry, end in zip(entries, self._ends, strict=True)
        )
        steps = sum(lengths)

        def array(name: str, dtype: type, shape: tuple[int, ...] = ()) -> np.ndarray:
            if not steps:
                return np.zeros((0, *shape), dtype)
            # As a plain array: indexing a memmap costs several times as much.
            return np.asarray(np.load(directory / manifest["index"] / f"{name}.npy", mmap_mode="r"))

        for name, (dtype, shape) in ARRAYS.items():
            setattr(self, name, array(name, dtype, shape))
        self._places = {
            CameraRole(role): {name: array(place_file(CameraRole(role), name), dtype) for name, dtype in PLACES.items()}
            for role in manifest["views"]
        }

    def __len__(self) -> int:
        """N, the steps of all episodes."""
        return len(self.stamps)

    def episode_of(self, step: int) -> int:
        """The number of the episode that a step is in."""
        if not 0 <= step < len(self):
            raise IndexError(f"step is {step}; steps are 0 to {len(self) - 1}")
        return int(np.searchsorted(self._ends, step, side="right"))

    def view(self, step: int, role: CameraRole) -> np.ndarray:
        """The picture of a camera at a step over all episodes, (H, W, 3) uint8 RGB, in memory of its own.

        Raises:
            IndexError: a step that is not in 0 .. N - 1.
            KeyError: the step's episode has no such camera.
            CacheError: the picture is damaged.
        """
        number = self.episode_of(step)
        episode = self.episodes[number]
        if role not in episode.views:
            has = ", ".join(view.value for view in episode.views) or "none"
            raise KeyError(f"episode {episode.id!r} of {episode.bag} has no view {role!r}; it has {has}")
        places = self._places[role]
        offset, size = int(places["offset"][step]), int(places["size"][step])
        try:
            return decode(
                _read(self._files[number], offset, size),
                int(places["checksum"][step]),
                self.encoding,
                episode.views[role],
            )
        except PictureError as error:
            file = Path(self._files[number])
            raise CacheError(
                f"{file}: the picture of {role.value} at step {step - episode.first} of episode {episode.id!r} is "
                f"damaged: {error}; delete {file.parent} and build the cache again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "checksum": self._checksum}

    def __setstate__(self, state: dict[str, Any]) -> None:
        manifest = read_manifest(state["directory"])
        if checksum(manifest) != state["checksum"]:
            raise CacheError(f"{state['directory']} was built again while it was in use; start the program again")
        # Who sent it has read all of the index already.
        self._open(state["directory"], manifest, contents=False)


def _read(file: str, offset: int, size: int) -> np.ndarray:
    """Bytes of a file; fewer where it ends before. Not through a map: a file that was cut off would end the process."""
    data = np.empty(size, np.uint8)
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return data[: os.preadv(handle, [data], offset)]
    finally:
        os.close(handle)


def _episode(entry: dict[str, Any], first: int) -> CachedEpisode:
    return CachedEpisode(
        id=entry["id"],
        instruction=entry["instruction"],
        outcome=entry["outcome"],
        robot=entry["robot"],
        rate=entry["rate"],
        action_source=entry["action_source"],
        ended=entry["ended"],
        bag=Path(entry["bag"]),
        first=first,
        length=entry["length"],
        views={CameraRole(role): (shape[0], shape[1]) for role, shape in entry["views"].items()},
        damage=tuple(entry["damage"]),
        digest=entry["digest"],
    )
