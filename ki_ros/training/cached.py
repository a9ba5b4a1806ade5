"""Bringing a run's cache up to date with the recordings that it was made of."""

from __future__ import annotations

import os
from collections.abc import Callable

from ki_ros.data.cache.bags import bag_origins, bag_settings
from ki_ros.data.cache.build import BuildProgress, BuildReport, build_cache
from ki_ros.data.cache.part import Storage
from ki_ros.training.config import BagsData, CachedData


def update_cache(
    data: CachedData,
    *,
    retry_refused: bool = False,
    progress: Callable[[BuildProgress], None] = lambda _: None,
    waiting: Callable[[], None] = lambda: None,
) -> BuildReport:
    """Reads what is new or has changed below `data.directory` into the cache. Arguments as of `build_cache`.

    Raises:
        ValueError: a directory without recordings; recordings of which none can be read; a damaged cache, or one of
            another storage.
        OSError: the cache cannot be written.
    """
    assert isinstance(data, BagsData)
    assert data.directory is not None
    return build_cache(
        bag_origins(data.directory, data.parameters),
        data.cache_directory,
        Storage(data.encoding, data.quality, bag_settings(data.parameters)),
        workers=data.build_workers or os.cpu_count() or 1,
        retry_refused=retry_refused,
        progress=progress,
        waiting=waiting,
    )
