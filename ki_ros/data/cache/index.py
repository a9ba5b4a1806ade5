"""The merged index of all parts: what makes a cache of many episodes open at once and never look at a part's arrays.

    manifest.json        the storage, the table of episodes, and sizes and checksums of the index's files
    index-DIGEST/*.npy   arrays over the steps of all episodes, one after the other

The manifest is put in place last, and names the index that it belongs to: a reader sees the old cache or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.data.cache.part import ARRAYS, PLACES, VERSION, CacheError, Part, Storage
from ki_ros.files import sync, sync_tree, write_json
from ki_ros.rig import CameraRole

MANIFEST = "manifest.json"
PARTS = "parts"


class EarlierCacheError(CacheError):
    """A cache of an earlier version of the format, which cannot be read but made anew."""


def place_file(role: CameraRole, name: str) -> str:
    """The array of `PLACES` of a view."""
    return f"{role.value}_{name}"


def write_index(directory: Path, parts: Sequence[Part], storage: Storage, refused: Mapping[str, list[str]]) -> None:
    """Writes the index of these parts and puts it in place of the one before.

    Args:
        directory: of the cache.
        parts: in the order of their names.
        storage: of all of them.
        refused: fingerprint and reason of origins that have no part, by name.

    Raises:
        CacheError: a part that is damaged.
        OSError: of the disk.
    """
    table = [(part, number, episode) for part in parts for number, episode in enumerate(part.episodes)]
    roles = [role for role in CameraRole if any(role.value in episode.views for _, _, episode in table)]
    steps = sum(episode.length for _, _, episode in table)
    temporary = directory / f".index.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        columns: dict[str, tuple[type, tuple[int, ...]]] = dict(ARRAYS)
        columns |= {place_file(role, name): (dtype, ()) for role in roles for name, dtype in PLACES.items()}
        merged = {
            name: np.lib.format.open_memmap(temporary / f"{name}.npy", mode="w+", dtype=dtype, shape=(steps, *shape))
            for name, (dtype, shape) in columns.items()
            if steps
        }
        first = 0
        for part, number, episode in table:
            arrays = part.arrays(number)
            for name, column in merged.items():
                if name in arrays:
                    column[first : first + episode.length] = arrays[name]
            first += episode.length
        for column in merged.values():
            column.flush()
        del merged
        sync_tree(temporary)
        files = {
            file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(temporary.iterdir())
        }
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        place = directory / f"index-{digest[:16]}"
        # One of this name is only there without a manifest that stands for its contents.
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    manifest = {
        "storage": storage.to_dict(),
        "index": place.name,
        "files": files,
        "views": [role.value for role in roles],
        "parts": [{"name": part.name, "fingerprint": part.fingerprint} for part in parts],
        "refused": dict(refused),
        "episodes": [
            asdict(episode) | {"part": part.directory.name, "number": number} for part, number, episode in table
        ],
    }
    write_json(directory / MANIFEST, manifest | {"checksum": checksum(manifest)})
    sync(directory)
    for old in directory.glob("index-*"):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a cache.

    Raises:
        EarlierCacheError: of an earlier version.
        CacheError: none there, of a later version, or damaged.
    """
    file = directory / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        stated = manifest.pop("checksum")
        version = manifest["storage"]["version"]
    except FileNotFoundError:
        raise CacheError(
            f"{directory} holds no complete cache: {file} is missing; build it with `ki-ros cache BAGS {directory}`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{file} is damaged ({error}); delete it and build the cache again") from error
    if isinstance(version, int) and version < VERSION:
        raise EarlierCacheError(
            f"{file}: version is {version}, this package reads {VERSION}; build it again with "
            f"`ki-ros cache BAGS {directory}`"
        )
    if version != VERSION:
        raise CacheError(f"{file}: version is {version}, this package reads {VERSION}; build the cache anew elsewhere")
    if checksum(manifest) != stated:
        raise CacheError(f"{file} is damaged (its checksum differs); delete it and build the cache again")
    return manifest


def check_index(directory: Path, manifest: dict[str, Any], *, contents: bool) -> None:
    """Checks sizes of all files and, with `contents`, checksums of the index.

    Raises:
        CacheError: names the first file that is missing or differs.
    """
    for name, stated in manifest["files"].items():
        file = directory / manifest["index"] / name
        _require_size(file, stated["size"], directory)
        if contents and _sha256(file) != stated["sha256"]:
            raise CacheError(f"{file} is damaged (its checksum differs); delete {directory / MANIFEST} and build again")
    for episode in manifest["episodes"]:
        part = directory / PARTS / episode["part"]
        _require_size(part / f"{episode['number']}.pictures", episode["picture_bytes"], part)


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own checksum."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _require_size(file: Path, size: int, spoilt: Path) -> None:
    try:
        found = file.stat().st_size
    except OSError:
        raise CacheError(f"{file} is missing; delete {spoilt} and build the cache again") from None
    if found != size:
        raise CacheError(f"{file} has {found} bytes instead of {size}; delete {spoilt} and build the cache again")


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
