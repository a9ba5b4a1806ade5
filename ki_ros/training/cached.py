"""The cache of a run's recordings."""

from __future__ import annotations

import os

from ki_ros.data.cache.bags import bag_origins, bag_settings
from ki_ros.data.cache.build import CachePlan
from ki_ros.data.cache.part import Storage
from ki_ros.training.config import BagsData, CachedData


def cache_plan(data: CachedData) -> CachePlan | None:
    """How a run's cache is brought up to date with `data.directory`; None where a cache is used as it is.

    Raises:
        ValueError: a directory without recordings, or a parameter file that is wrong.
    """
    if data.directory is None:
        return None
    assert isinstance(data, BagsData)
    return CachePlan(
        origins=bag_origins(data.directory, data.parameters),
        directory=data.cache_directory,
        storage=Storage(data.encoding, data.quality, bag_settings(data.parameters)),
        workers=data.build_workers or os.cpu_count() or 1,
    )
