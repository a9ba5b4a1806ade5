"""Episodes decoded, sampled and resized once, for random access by training: one directory, mapped into memory."""

from ki_ros.data.cache.episode import SourceEpisode
from ki_ros.data.cache.part import CacheError
from ki_ros.data.cache.pictures import Encoding
from ki_ros.data.cache.reader import Cache, CachedEpisode
from ki_ros.data.cache.writer import CacheWriter

__all__ = ["Cache", "CacheError", "CacheWriter", "CachedEpisode", "Encoding", "SourceEpisode"]
