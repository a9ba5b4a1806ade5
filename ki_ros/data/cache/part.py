"""One origin's episodes on disk: a directory that is complete or absent.

part.json     which origin, in which state, encoded how, and a table of its episodes
N.npz         arrays of its episode N: see `ARRAYS`, and for each view the places and checksums of its pictures
N.pictures    the pictures of its episode N, one after the other
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.data.cache.episode import OUTCOMES, SourceEpisode
from ki_ros.data.cache.pictures import ENCODINGS, Encoding, checksum, encode
from ki_ros.files import sync_tree, write_json
from ki_ros.rig import STATE_DIM, CameraRole

VERSION = 2
"""Of the format, and of how bags become episodes. A cache of an earlier version is made anew."""

ARRAYS: dict[str, tuple[type, tuple[int, ...]]] = {
    "stamps": (np.int64, ()),
    "states": (np.float64, (STATE_DIM,)),
    "targets": (np.float64, (STATE_DIM,)),
    "segment": (np.int32, ()),
    "idle": (np.bool_, ()),
}
"""Arrays of an episode: dtype, and shape of one step."""

PLACES: dict[str, type] = {"offset": np.int64, "size": np.int32, "checksum": np.uint32}
"""Of each picture: where it begins [byte] in its file, how long it is [byte], and its CRC-32."""


class CacheError(ValueError):
    """A cache, or an episode for one, that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Storage:
    """How a cache stores what it is given. All its parts are alike in this.

    Attributes:
        encoding: of pictures; raw ones are exact and nine times as large.
        quality: of JPEG, 1 to 100.
        settings: how episodes were made of their origins, as plain JSON values; other settings make other episodes.
    """

    encoding: Encoding = "jpeg"
    quality: int = 95
    settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise CacheError(f"encoding is {self.encoding!r}; use one of {', '.join(ENCODINGS)}")
        if not 1 <= self.quality <= 100:
            raise CacheError(f"quality is {self.quality}; give 1 to 100")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, equal for storages that make equal bytes."""
        quality = self.quality if self.encoding == "jpeg" else None
        return {
            "version": VERSION,
            "encoding": self.encoding,
            "quality": quality,
            "settings": json.loads(json.dumps(self.settings or {})),
        }


@dataclass(frozen=True)
class PartEpisode:
    """One episode in a part's table.

    Attributes:
        bag, id, instruction, outcome, robot, rate, action_source, ended: as of `SourceEpisode`.
        length: T, its steps.
        views: height and width of the pictures of each view.
        damage: what was wrong with the recording, a line each.
        picture_bytes: length of its pictures' file.
        digest: SHA-256 of all that it holds.
    """

    bag: str
    id: str
    instruction: str
    outcome: str
    robot: str
    rate: float
    action_source: str
    ended: bool
    length: int
    views: dict[str, tuple[int, int]]
    damage: list[str]
    picture_bytes: int
    digest: str


@dataclass(frozen=True)
class Part:
    """A complete part.

    Attributes:
        directory: of its files.
        name: of its origin.
        fingerprint: of its origin's state when it was read.
        episodes: in the origin's order.
    """

    directory: Path
    name: str
    fingerprint: str
    episodes: tuple[PartEpisode, ...]

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        """Arrays of an episode. Raises CacheError for a file that is damaged."""
        file = self.directory / f"{number}.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except Exception as error:  # whatever zipfile and numpy raise for damaged bytes
            raise CacheError(
                f"{file} is damaged ({error}); delete {self.directory} and build the cache again"
            ) from error


def part_directory(name: str, fingerprint: str) -> str:
    """The directory's name of an origin's part: readable, and another one for every origin and every state of it.

    So a part that is made anew does not touch the one that a reader may have open.
    """
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._-")[-60:]
    identity = json.dumps([name, fingerprint]).encode()
    return f"{readable or 'part'}-{hashlib.sha256(identity).hexdigest()[:12]}"


def read_part(directory: Path, storage: Storage) -> Part | None:
    """The part in a directory, or None where there is none of this storage."""
    try:
        values = json.loads((directory / "part.json").read_text(encoding="utf-8"))
        if values["storage"] != storage.to_dict():
            return None
        episodes = tuple(PartEpisode(**episode) for episode in values["episodes"])
        part = Part(directory, values["name"], values["fingerprint"], episodes)
        whole = all(
            (directory / f"{number}.pictures").stat().st_size == episode.picture_bytes
            and (directory / f"{number}.npz").is_file()
            for number, episode in enumerate(part.episodes)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return part if whole else None


def write_part(
    directory: Path, temporary: Path, name: str, fingerprint: str, episodes: Iterable[SourceEpisode], storage: Storage
) -> int:
    """Writes a part beside its place, then moves it there, over what was there; returns the number of steps.

    Raises:
        CacheError: an episode with arrays or pictures of a wrong shape, or with values that are not finite.
        OSError: of the disk.
    """
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        table = [_write_episode(temporary, number, episode, storage) for number, episode in enumerate(episodes)]
        values = {"name": name, "fingerprint": fingerprint, "storage": storage.to_dict()}
        write_json(temporary / "part.json", values | {"episodes": [asdict(episode) for episode in table]})
        # What a crash of the machine leaves must not look complete: the bytes first, then the name.
        sync_tree(temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sum(episode.length for episode in table)


def _write_episode(directory: Path, number: int, episode: SourceEpisode, storage: Storage) -> PartEpisode:
    where = f"episode {episode.id!r} of {episode.bag}"
    arrays = _checked_arrays(episode, where)
    length = len(arrays["stamps"])
    digest = hashlib.sha256()
    shapes: dict[CameraRole, tuple[int, int]] = {}
    places: dict[str, np.ndarray] = {}
    offset = 0
    with open(directory / f"{number}.pictures", "wb") as file:
        for step in range(length):
            views = {CameraRole(role): pixels for role, pixels in episode.views(step).items()}
            if step == 0:
                shapes = {role: _shape(views[role]) for role in CameraRole if role in views}
                places = {
                    f"{role.value}_{name}": np.zeros(length, dtype) for role in shapes for name, dtype in PLACES.items()
                }
            if {role: _shape(pixels) for role, pixels in views.items()} != shapes:
                raise CacheError(
                    f"{where}: step {step} has views {_named(views)}, step 0 has {_named(shapes)}; every step must "
                    "have the same cameras, each with pictures of one size"
                )
            for role in shapes:
                try:
                    data = encode(views[role], storage.encoding, storage.quality)
                except ValueError as error:
                    raise CacheError(f"{where}: the picture of {role.value} at step {step} {error}") from error
                file.write(data)
                digest.update(data)
                for name, value in (("offset", offset), ("size", len(data)), ("checksum", checksum(data))):
                    places[f"{role.value}_{name}"][step] = value
                offset += len(data)
    np.savez(directory / f"{number}.npz", **arrays, **places)  # type: ignore[arg-type]
    for array in (*arrays.values(), *places.values()):
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    facts: dict[str, Any] = {
        "id": str(episode.id),
        "instruction": str(episode.instruction),
        "outcome": _outcome(episode, where),
        "robot": str(episode.robot),
        "rate": float(episode.rate),
        "action_source": str(episode.action_source),
        "ended": bool(episode.ended),
        "length": length,
        "views": {role.value: list(shape) for role, shape in shapes.items()},
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    # Read to its end by now: what is wrong with a recording may only show while its pictures are read.
    damage = [str(each) for each in episode.damage]
    return PartEpisode(bag=str(episode.bag), damage=damage, picture_bytes=offset, digest=digest.hexdigest(), **facts)


def _checked_arrays(episode: SourceEpisode, where: str) -> dict[str, np.ndarray]:
    given = {
        "stamps": episode.stamps_ns,
        "states": episode.states,
        "targets": episode.targets,
        "segment": episode.segment,
        "idle": episode.idle,
    }
    length = len(episode.stamps_ns)
    if not length:
        raise CacheError(f"{where} has no steps; leave it out")
    arrays = {}
    for name, (dtype, shape) in ARRAYS.items():
        array = np.asarray(given[name])
        if array.shape != (length, *shape):
            raise CacheError(f"{where}: {name} has shape {array.shape}; give {(length, *shape)}")
        if not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0][0])
            raise CacheError(f"{where}: {name} at step {step} is {array[step]}; give finite values")
        arrays[name] = array.astype(dtype)
    if (np.diff(arrays["stamps"]) <= 0).any():
        raise CacheError(f"{where}: stamps_ns do not increase; give each step a later time than the one before")
    if (np.diff(arrays["segment"]) < 0).any():
        raise CacheError(f"{where}: segment decreases; number segments in the order of their steps")
    return arrays


def _outcome(episode: SourceEpisode, where: str) -> str:
    outcome = getattr(episode.outcome, "value", episode.outcome)
    if outcome not in OUTCOMES:
        raise CacheError(f"{where}: outcome is {outcome!r}; use one of {', '.join(OUTCOMES)}")
    return outcome


def _shape(pixels: np.ndarray) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]


def _named(views: Iterable[CameraRole]) -> str:
    return ", ".join(sorted(role.value for role in views)) or "none"
