"""The cache of a run's recordings."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ki_ros.data.cache.bags import bag_origins, bag_settings
from ki_ros.data.cache.build import CachePlan, Origin
from ki_ros.data.cache.part import Storage
from ki_ros.data.lerobot import lerobot_origins, lerobot_settings
from ki_ros.training.config import BagsData, CachedData, LeRobotData


def cache_plan(data: CachedData) -> CachePlan | None:
    """How a run's cache is brought up to date with `data.directory`; None where a cache is used as it is.

    Raises:
        ValueError: a directory without recordings, a wrong parameter file, or a dataset whose features do not fit.
    """
    if data.directory is None:
        return None
    origins: Sequence[Origin]
    if isinstance(data, LeRobotData):
        origins = lerobot_origins(data.directory, data.preset, data.features)
        settings = lerobot_settings(data.directory, data.preset, data.features)
    else:
        assert isinstance(data, BagsData)
        origins = bag_origins(data.directory, data.parameters)
        settings = bag_settings(data.parameters)
    return CachePlan(
        origins=origins,
        directory=data.cache_directory,
        storage=Storage(data.encoding, data.quality, settings),
        workers=data.build_workers or os.cpu_count() or 1,
    )
