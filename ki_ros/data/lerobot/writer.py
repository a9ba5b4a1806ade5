"""Writes a LeRobot dataset, one episode after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ki_ros.data.lerobot import features as described
from ki_ros.data.lerobot import layout
from ki_ros.data.lerobot.errors import LeRobotError
from ki_ros.data.lerobot.features import Images, image_key
from ki_ros.data.lerobot.layout import FileIndex
from ki_ros.data.lerobot.statistics import PixelCounts, row_statistics
from ki_ros.data.lerobot.video import Codec, VideoWriter
from ki_ros.files import write_json
from ki_ros.rig import ActionSpace, CameraRole

_MIB = 1024**2
# Rows that are held in memory before they are written: of a picture each, a few megabytes.
_ROW_GROUP = 64
_EPISODES_FLUSH = 100


@dataclass(frozen=True)
class Rows:
    """One episode of a dataset, of T frames that follow each other at the dataset's rate.

    Attributes:
        task: the instruction.
        states, actions: (T, 8).
        idle: (T,) bool.
        stamps: (T,) int64, reference times [ns].
        success: whether the last frame completes the task.
        provenance: values of the columns `layout.PROVENANCE`.
    """

    task: str
    states: np.ndarray
    actions: np.ndarray
    idle: np.ndarray
    stamps: np.ndarray
    success: bool
    provenance: Mapping[str, Any]


class DatasetWriter:
    """Writes a dataset into an empty directory. It is complete once `finish` returns.

    Attributes:
        roles: the cameras.
        tasks: numbers of the instructions so far.
        episodes, frames: how many there are so far.
    """

    def __init__(
        self,
        directory: Path,
        sizes: Mapping[CameraRole, tuple[int, int]],
        *,
        action_space: ActionSpace,
        images: Images,
        codec: Codec,
        quality: int,
        rate: int,
        robot_type: str,
    ) -> None:
        """Creates no file yet.

        Args:
            directory: of the dataset.
            sizes: height and width of each camera's pictures [pixels].
            action_space: of the actions.
            images: "png" keeps pictures exactly, in rows; "video" compresses them.
            codec, quality: see `VideoWriter`.
            rate: frames per second.
            robot_type: what `info.json` calls the robot.
        """
        self._directory = directory
        self.roles = tuple(sizes)
        self._images = images
        self._codec: Codec = codec
        self._quality = quality
        self._rate = rate
        self._robot_type = robot_type
        self._features = described.describe(sizes, action_space=action_space, images=images, codec=codec, rate=rate)
        self._sizes = dict(sizes)
        self._data = _Data(directory, described.data_schema(self._features))
        self._meta = _Meta(directory, described.episodes_schema(self._features))
        self._videos = {role: _Videos(directory, role) for role in (self.roles if images == "video" else ())}
        self._pixels = {role: PixelCounts() for role in self.roles}
        self._columns: list[dict[str, np.ndarray]] = []
        self.tasks: dict[str, int] = {}
        self.episodes = 0
        self.frames = 0

    def add(self, rows: Rows, pictures: Iterator[Mapping[CameraRole, np.ndarray]]) -> None:
        """Appends an episode.

        Args:
            rows: all but the pictures.
            pictures: of each of its frames, by camera, (H, W, 3) uint8 RGB of the dataset's sizes. As many are taken as
                there are frames, one at a time.

        Raises:
            LeRobotError: fewer pictures than frames, or one of another size.
            OSError: the disk is full, or the like.
        """
        length = len(rows.states)
        columns = self._number(rows)
        row = {
            "episode_index": self.episodes,
            "tasks": [rows.task],
            "length": length,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + length,
            **rows.provenance,
            **self._data.begin(length),
        }
        for role, videos in self._videos.items():
            height, width = self._sizes[role]
            row |= videos.begin(
                length, rate=self._rate, height=height, width=width, codec=self._codec, quality=self._quality
            )
        pixels = {role: PixelCounts() for role in self.roles}
        files: dict[CameraRole, list[bytes]] = {role: [] for role in self.roles}
        count = written = 0
        for count, views in enumerate(islice(pictures, length), start=1):
            for role in self.roles:
                image = self._checked(views, role)
                pixels[role].add(image)
                if self._images == "png":
                    files[role].append(_png(image))
                else:
                    self._videos[role].write(image)
            if self._images == "png" and (count - written == _ROW_GROUP or count == length):
                self._data.write(columns, slice(written, count), files)
                written = count
                files = {role: [] for role in self.roles}
        if count != length:
            raise LeRobotError(f"an episode of {length} frames has pictures of {count}; read it again, or leave it out")
        if self._images == "video":
            self._data.write(columns, slice(0, length), {})

        for name, column in columns.items():
            row |= {f"stats/{name}/{key}": value for key, value in row_statistics(_rows(column)).items()}
        for role, counts in pixels.items():
            row |= {f"stats/{image_key(role)}/{key}": value for key, value in counts.statistics().items()}
            self._pixels[role].merge(counts)
        self._meta.write(row)
        self._columns.append(columns)
        self.episodes += 1
        self.frames += length

    def finish(self) -> None:
        """Closes all files and writes what describes the dataset."""
        self._data.close()
        for videos in self._videos.values():
            videos.close()
        self._meta.close()
        pq.write_table(described.tasks_table(self.tasks), self._directory / layout.TASKS_FILE)
        stats = {
            name: row_statistics(np.concatenate([_rows(columns[name]) for columns in self._columns]))
            for name in self._columns[0]
        }
        stats |= {image_key(role): counts.statistics() for role, counts in self._pixels.items()}
        write_json(self._directory / layout.STATS_FILE, stats)
        write_json(self._directory / layout.INFO_FILE, self._info())

    def close(self) -> None:
        """Closes files that are still open, complete or not."""
        self._data.close()
        for videos in self._videos.values():
            videos.close()
        self._meta.close()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        self.close()

    def _number(self, rows: Rows) -> dict[str, np.ndarray]:
        length = len(rows.states)
        task = self.tasks.setdefault(rows.task, len(self.tasks))
        last = np.arange(length) == length - 1
        return {
            layout.STATE: rows.states.astype(np.float32),
            layout.ACTION: rows.actions.astype(np.float32),
            layout.DONE: last,
            layout.SUCCESS: last & rows.success,
            layout.IDLE: rows.idle.astype(np.bool_),
            layout.STAMP: rows.stamps.astype(np.int64),
            "timestamp": (np.arange(length) / self._rate).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, self.episodes),
            "index": np.arange(self.frames, self.frames + length),
            "task_index": np.full(length, task),
        }

    def _checked(self, views: Mapping[CameraRole, np.ndarray], role: CameraRole) -> np.ndarray:
        if role not in views:
            raise LeRobotError(
                f"a step has no picture of {role.value}; leave the camera out of views, or the episode out"
            )
        image, size = views[role], self._sizes[role]
        if image.shape != (*size, 3) or image.dtype != np.uint8:
            raise LeRobotError(
                f"a picture of {role.value} has shape {image.shape} and dtype {image.dtype}, those before it "
                f"{(*size, 3)} uint8; a dataset has pictures of one size"
            )
        return image

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": layout.CODEBASE_VERSION,
            "robot_type": self._robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": layout.CHUNKS_SIZE,
            "data_files_size_in_mb": layout.DATA_FILE_MB,
            "video_files_size_in_mb": layout.VIDEO_FILE_MB,
            "fps": self._rate,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH if self._videos else None,
            "features": self._features,
        }


class _Data:
    """The files below `data`. An episode lies in one of them."""

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self._directory = directory
        self._schema = schema
        self._index = FileIndex()
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def begin(self, length: int) -> dict[str, int]:
        if self._writer is not None:
            size = self._path().stat().st_size
            if size * (1 + length / self._rows) >= layout.DATA_FILE_MB * _MIB:
                self.close()
                self._index = self._index.next()
        if self._writer is None:
            self._path().parent.mkdir(parents=True, exist_ok=True)
            numbers = [field.name for field in self._schema if not pa.types.is_struct(field.type)]
            self._writer = pq.ParquetWriter(
                self._path(), self._schema, compression="snappy", use_dictionary=numbers, write_page_checksum=True
            )
            self._rows = 0
        return {"data/chunk_index": self._index.chunk, "data/file_index": self._index.file}

    def write(self, columns: Mapping[str, np.ndarray], part: slice, pictures: Mapping[CameraRole, list[bytes]]) -> None:
        arrays = {name: _array(column[part], self._schema.field(name).type) for name, column in columns.items()}
        for role, files in pictures.items():
            kind = self._schema.field(image_key(role)).type
            arrays[image_key(role)] = pa.array([{"bytes": file, "path": None} for file in files], kind)
        table = pa.table([arrays[field.name] for field in self._schema], schema=self._schema)
        assert self._writer is not None
        self._writer.write_table(table)
        self._rows += len(table)

    def close(self) -> None:
        # Taken out first: closed in part, it cannot be closed again.
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _path(self) -> Path:
        return self._directory / self._index.path(layout.DATA_PATH)


class _Videos:
    """The files of one camera below `videos`. An episode lies in one of them."""

    def __init__(self, directory: Path, role: CameraRole) -> None:
        self._directory = directory
        self._key = image_key(role)
        self._index = FileIndex()
        self._writer: VideoWriter | None = None

    def begin(
        self, length: int, *, rate: int, height: int, width: int, codec: Codec, quality: int
    ) -> dict[str, int | float]:
        if self._writer is not None and not self._fits(self._writer, length, rate):
            self.close()
            self._index = self._index.next()
        if self._writer is None:
            path = self._directory / self._index.path(layout.VIDEO_PATH, video_key=self._key)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = VideoWriter(path, rate=rate, height=height, width=width, codec=codec, quality=quality)
        frames = self._writer.frames
        return {
            f"videos/{self._key}/chunk_index": self._index.chunk,
            f"videos/{self._key}/file_index": self._index.file,
            f"videos/{self._key}/from_timestamp": frames / rate,
            f"videos/{self._key}/to_timestamp": (frames + length) / rate,
        }

    def write(self, image: np.ndarray) -> None:
        assert self._writer is not None
        self._writer.write(image)

    def close(self) -> None:
        # Taken out first: closed in part, it cannot be closed again.
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @staticmethod
    def _fits(writer: VideoWriter, length: int, rate: int) -> bool:
        frames = writer.frames + length
        size = writer.size * frames / writer.frames
        return frames / rate <= layout.MAX_VIDEO_SECONDS and size < layout.VIDEO_FILE_MB * _MIB


class _Meta:
    """The files below `meta/episodes`."""

    def __init__(self, directory: Path, schema: pa.Schema) -> None:
        self._directory = directory
        self._schema = schema
        self._index = FileIndex()
        self._writer: pq.ParquetWriter | None = None
        self._held: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        # Only between two writes: all rows that are held name the same file.
        full = self._writer is not None and self._path().stat().st_size >= layout.DATA_FILE_MB * _MIB
        if full and not self._held:
            self.close()
            self._index = self._index.next()
        self._held.append(
            row | {"meta/episodes/chunk_index": self._index.chunk, "meta/episodes/file_index": self._index.file}
        )
        if len(self._held) == _EPISODES_FLUSH:
            self._flush()

    def close(self) -> None:
        self._flush()
        # Taken out first: closed in part, it cannot be closed again.
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._path().parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path(), self._schema, compression="snappy", write_page_checksum=True)
        self._writer.write_table(pa.Table.from_pylist(self._held, schema=self._schema))
        self._held.clear()

    def _path(self) -> Path:
        return self._directory / self._index.path(layout.EPISODES_PATH)


def _png(image: np.ndarray) -> bytes:
    done, file = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise LeRobotError(f"a picture of shape {image.shape} could not be written as PNG")
    return file.tobytes()


def _rows(column: np.ndarray) -> np.ndarray:
    return column.reshape(len(column), -1)


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), type=kind)
    return pa.array(values, kind)
