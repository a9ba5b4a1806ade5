"""Names and limits of LeRobot's dataset format v3.0, as `lerobot.datasets` writes and expects them.

Episodes lie one after another in a few large files: rows in `data`, pictures in the same rows as PNG or in `videos`.
`meta/episodes` says of each episode in which file it lies and where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CODEBASE_VERSION = "v3.0"

INFO_FILE = "meta/info.json"
STATS_FILE = "meta/stats.json"
TASKS_FILE = "meta/tasks.parquet"
EPISODES_DIRECTORY = "meta/episodes"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

CHUNKS_SIZE = 1000
"""Most files of one chunk, which is a directory."""

DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
"""Sizes beyond which a file takes no further episode [MiB]."""

MAX_VIDEO_SECONDS = 1000.0
"""Length beyond which a video takes no further episode [s].

LeRobot compares times in float32 and tolerates 1e-4 s. From 1024 s on, float32 has steps of 1.2e-4 s, and frames that
are there would be refused."""

TASK_COLUMN = "__index_level_0__"
"""Column of `TASKS_FILE` with the instructions; pandas calls an index without a name so."""

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
DONE = "next.done"
SUCCESS = "next.success"
IDLE = "idle"
STAMP = "stamp"

INDEX_FEATURES: dict[str, dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
"""Features of every dataset. `timestamp` [s] counts from the start of the episode, `index` through the dataset."""

PROVENANCE = ("episode_id", "segment", "outcome", "robot", "action_source", "ended")
"""Columns of `meta/episodes` beside LeRobot's own: where an episode comes from. LeRobot carries and ignores them.

`ended` says of an episode whether its last frame is the end of the recorded one (`SourceEpisode.ended`).
"""


@dataclass(frozen=True)
class FileIndex:
    """Which of a dataset's numbered files."""

    chunk: int = 0
    file: int = 0

    def next(self) -> FileIndex:
        """The file after this one."""
        return FileIndex(self.chunk + 1) if self.file + 1 == CHUNKS_SIZE else FileIndex(self.chunk, self.file + 1)

    def path(self, pattern: str, **names: str) -> str:
        """The file's path below the dataset, of `pattern` with `{chunk_index}` and `{file_index}`."""
        return pattern.format(chunk_index=self.chunk, file_index=self.file, **names)
