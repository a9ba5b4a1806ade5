"""A LeRobot dataset v3.0 as episodes: what this package exported, or DROID as LeRobot publishes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ki_ros.data.idle import idle_steps
from ki_ros.data.lerobot import layout
from ki_ros.data.lerobot.errors import LeRobotError
from ki_ros.data.lerobot.layout import FileIndex
from ki_ros.data.lerobot.mapping import choose_map
from ki_ros.data.lerobot.table import iterate_rows, open_parquet, read_rows, scalars, vectors
from ki_ros.data.lerobot.video import read_frames
from ki_ros.images import ImageError, decompress
from ki_ros.resize import resize_with_pad
from ki_ros.rig import NUM_JOINTS, VELOCITY_TO_DELTA, ActionSpace, CameraRole


@dataclass(frozen=True)
class Row:
    """Where an episode of the dataset lies.

    Attributes:
        index: its number.
        length: its frames.
        file: its file below `data`, and there the number of its first row.
        first: see `file`.
        videos: by camera, the video's path and when the episode begins in it [s].
        provenance: by name, of the columns `layout.PROVENANCE` that the dataset has.
    """

    index: int
    length: int
    file: Path
    first: int
    videos: Mapping[CameraRole, tuple[Path, float]]
    provenance: Mapping[str, Any]


class Dataset:
    """The description of a dataset; episodes are read when they are asked for.

    Attributes:
        directory: of the dataset.
        features: of its `info.json`.
        rate: frames per second.
        tasks: instructions by their numbers.
        map: which features are read.
        rows: by episode of the recording, its parts in order: this package's exports have an episode for each segment.
    """

    def __init__(self, directory: str | Path, preset: str = "auto", changes: Mapping[str, Any] | None = None) -> None:
        """Reads the description.

        Args:
            directory: of the dataset, with `meta` in it.
            preset: of `mapping.PRESETS`, or "auto".
            changes: fields of the `FeatureMap` to set on top, as plain values.

        Raises:
            LeRobotError: no dataset, or one of another version; a feature that is missing or of another kind.
        """
        self.directory = Path(directory)
        info = _read_info(self.directory)
        self.features: dict[str, Any] = info["features"]
        self.rate = float(info["fps"])
        self.map = choose_map(preset, self.features).changed(changes or {}).resolved(self.features)
        self._info = info
        self.tasks = _read_tasks(self.directory)
        self.rows = _grouped(self._read_rows())

    def __len__(self) -> int:
        """Episodes of recordings."""
        return len(self.rows)

    def episode(self, number: int) -> LeRobotEpisode:
        """An episode's arrays; its pictures are read when they are asked for.

        Raises:
            IndexError: no such episode.
            LeRobotError: a file that is missing or damaged, or values that are not finite.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"episode is {number}; the dataset has 0 to {len(self) - 1}")
        return _read_episode(self, self.rows[number])

    def _read_rows(self) -> Iterator[Row]:
        keys = {role: name for role, name in self.map.images.items() if self.features[name]["dtype"] == "video"}
        columns = ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
        for name in keys.values():
            columns += [f"videos/{name}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
        entries: list[dict[str, Any]] = []
        for path in sorted((self.directory / layout.EPISODES_DIRECTORY).glob("*/*.parquet")):
            with open_parquet(path) as file:
                names = file.schema_arrow.names
                extra = [name for name in layout.PROVENANCE if name in names]
                table = read_rows(path, [*columns, *extra], 0, file.metadata.num_rows)
            entries += table.to_pylist()
        if not entries:
            raise LeRobotError(f"{self.directory / layout.EPISODES_DIRECTORY} lists no episode; copy the dataset whole")
        entries.sort(key=lambda entry: entry["episode_index"])
        begins: dict[FileIndex, int] = {}
        for entry in entries:
            place = FileIndex(entry["data/chunk_index"], entry["data/file_index"])
            begins[place] = min(begins.get(place, entry["dataset_from_index"]), entry["dataset_from_index"])
        for entry in entries:
            place = FileIndex(entry["data/chunk_index"], entry["data/file_index"])
            videos = {}
            for role, name in keys.items():
                file = FileIndex(entry[f"videos/{name}/chunk_index"], entry[f"videos/{name}/file_index"])
                path = self.directory / file.path(self._info["video_path"], video_key=name)
                videos[role] = (path, entry[f"videos/{name}/from_timestamp"])
            yield Row(
                index=entry["episode_index"],
                length=entry["length"],
                file=self.directory / place.path(self._info["data_path"]),
                first=entry["dataset_from_index"] - begins[place],
                videos=videos,
                provenance={name: entry[name] for name in layout.PROVENANCE if entry.get(name) is not None},
            )


@dataclass
class LeRobotEpisode:
    """An episode of T steps, as a cache takes it (`ki_ros.data.cache.SourceEpisode`, where its attributes are told).

    `bag` is the dataset's directory.
    """

    bag: Path
    id: str
    instruction: str
    outcome: str
    robot: str
    rate: float
    action_source: str
    stamps_ns: np.ndarray
    states: np.ndarray
    targets: np.ndarray
    segment: np.ndarray
    idle: np.ndarray
    ended: bool
    damage: tuple[str, ...]
    _dataset: Dataset = field(repr=False, compare=False)
    _parts: tuple[Row, ...] = field(repr=False, compare=False)
    _next: int = field(default=-1, repr=False, compare=False)
    _pictures: Iterator[dict[CameraRole, np.ndarray]] = field(default=iter(()), repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def views(self, step: int) -> dict[CameraRole, np.ndarray]:
        """The pictures of a step, (H, W, 3) uint8 RGB by camera.

        In order of the steps each is decoded once; another step than the next one costs a jump.

        Raises:
            IndexError: no such step.
            LeRobotError: a file that is missing or damaged.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"step is {step}; steps are 0 to {len(self) - 1}")
        if step != self._next:
            self._pictures = _pictures(self._dataset, self._parts, step)
        self._next = -1
        views = next(self._pictures)
        self._next = step + 1
        return views


def _read_info(directory: Path) -> dict[str, Any]:
    file = directory / layout.INFO_FILE
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeRobotError(f"{directory} is no LeRobot dataset: it has no {layout.INFO_FILE}; give its root") from None
    except (OSError, ValueError) as error:
        raise LeRobotError(f"{file} cannot be read ({error}); copy it again") from error
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version != layout.CODEBASE_VERSION:
        raise LeRobotError(
            f"{file}: codebase_version is {version!r}; {layout.CODEBASE_VERSION} is read. LeRobot's "
            "lerobot.datasets.v30.convert_dataset_v21_to_v30 converts older datasets"
        )
    for name, kind in (("features", dict), ("fps", (int, float)), ("data_path", str)):
        if not isinstance(info.get(name), kind):
            raise LeRobotError(f"{file}: {name} is {info.get(name)!r}; copy it again")
    for name, feature in info["features"].items():
        if not (isinstance(feature, dict) and "dtype" in feature and isinstance(feature.get("shape"), list)):
            raise LeRobotError(f"{file}: features.{name} is {feature!r}; a dtype and a shape are needed")
    if not info["fps"] > 0:
        raise LeRobotError(f"{file}: fps is {info['fps']}; a positive rate is needed")
    return info


def _read_tasks(directory: Path) -> dict[int, str]:
    path = directory / layout.TASKS_FILE
    with open_parquet(path) as file:
        table = file.read()
    # pandas calls its index as it likes.
    texts = next((field.name for field in table.schema if _is_text(field.type)), None)
    if texts is None or "task_index" not in table.column_names:
        raise LeRobotError(f"{path} has the columns {table.column_names}; task_index and the task are needed")
    return dict(zip(table["task_index"].to_pylist(), table[texts].to_pylist(), strict=True))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _grouped(rows: Iterator[Row]) -> list[tuple[Row, ...]]:
    """Rows of one recorded episode together: those that follow each other with its id and increasing segments."""
    groups: list[list[Row]] = []
    for row in rows:
        before = groups[-1][-1].provenance if groups else {}
        here = row.provenance
        goes_on = (
            {"episode_id", "segment"} <= before.keys() & here.keys()
            and before["episode_id"] == here["episode_id"]
            and before["segment"] < here["segment"]
        )
        if goes_on:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [tuple(group) for group in groups]


def _read_episode(dataset: Dataset, parts: tuple[Row, ...]) -> LeRobotEpisode:
    chosen, features = dataset.map, dataset.features
    single = [name for name in (chosen.success, *chosen.instruction) if name is not None]
    own = [name for name in (layout.IDLE, layout.STAMP) if name in features and parts[0].provenance]
    columns = [*chosen.state, *chosen.action, *single, *own, *layout.INDEX_FEATURES]
    tables = [_checked(row, read_rows(row.file, columns, row.first, row.length)) for row in parts]
    table = pa.concat_tables(tables)
    states, targets = vectors(table, chosen.state), vectors(table, chosen.action)
    where = f"episode {parts[0].index} of {dataset.directory}"
    for name, values in (("state", states), ("action", targets)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            raise LeRobotError(f"{where}: {name} at frame {bad[0][0]} is not finite; leave the episode out")
    if chosen.action_space is ActionSpace.JOINT_VELOCITY:
        targets[:, :NUM_JOINTS] = states[:, :NUM_JOINTS] + targets[:, :NUM_JOINTS] * VELOCITY_TO_DELTA
    segment = np.repeat(np.arange(len(parts), dtype=np.int32), [row.length for row in parts])
    if layout.STAMP in own:
        stamps = scalars(table, layout.STAMP).astype(np.int64)
    else:
        stamps = np.round(scalars(table, "timestamp").astype(np.float64) * 1e9).astype(np.int64)
    if layout.IDLE in own:
        idle = scalars(table, layout.IDLE).astype(np.bool_)
    else:
        idle = idle_steps(states, targets, segment, dataset.rate)
    stated = parts[0].provenance
    outcome = stated.get("outcome", chosen.outcome)
    if "outcome" not in stated and chosen.success is not None:
        outcome = "success" if scalars(table, chosen.success).any() else "failure"
    texts = (str(table[name][0].as_py() or "").strip() for name in chosen.instruction)
    return LeRobotEpisode(
        bag=dataset.directory,
        id=stated.get("episode_id", f"episode_{parts[0].index:06d}"),
        instruction=next((text for text in texts if text), "") or _task(dataset, table, where),
        outcome=outcome,
        robot=stated.get("robot", chosen.robot),
        rate=dataset.rate,
        action_source=stated.get("action_source", " + ".join(chosen.action)),
        stamps_ns=stamps,
        states=states,
        targets=targets,
        segment=segment,
        idle=idle,
        # A dataset of another origin has whole episodes. One that says where they come from, but not this, may not.
        ended=parts[-1].provenance.get("ended", not stated),
        damage=(),
        _dataset=dataset,
        _parts=parts,
    )


def _task(dataset: Dataset, table: pa.Table, where: str) -> str:
    numbers = np.unique(scalars(table, "task_index")).tolist()
    tasks = [dataset.tasks.get(number) for number in numbers]
    if None in tasks:
        raise LeRobotError(f"{where} has a task_index of {numbers}, which {layout.TASKS_FILE} does not list all")
    if len(tasks) > 1:
        raise LeRobotError(f"{where} has several tasks, {tasks}; an episode needs one. Leave it out, or split it")
    return str(tasks[0]).strip()


def _checked(row: Row, table: pa.Table) -> pa.Table:
    indices, frames = scalars(table, "episode_index"), scalars(table, "frame_index")
    if (indices != row.index).any() or (frames != np.arange(row.length)).any():
        raise LeRobotError(
            f"{row.file}: rows {row.first} to {row.first + row.length - 1} are not the frames of episode {row.index}, "
            f"as {layout.EPISODES_DIRECTORY} says; copy the dataset again"
        )
    return table


def _pictures(dataset: Dataset, parts: tuple[Row, ...], step: int) -> Iterator[dict[CameraRole, np.ndarray]]:
    size = dataset.map.image_size
    for row in parts:
        if step >= row.length:
            step -= row.length
            continue
        sources: dict[CameraRole, Iterator[np.ndarray]] = {}
        for role, name in dataset.map.images.items():
            if role in row.videos:
                path, start = row.videos[role]
                sources[role] = read_frames(path, start=start, rate=dataset.rate, count=row.length, first=step)
            else:
                sources[role] = _stored(row, name, step)
        for _ in range(step, row.length):
            views = {role: next(source) for role, source in sources.items()}
            yield {role: image if size is None else resize_with_pad(image, size) for role, image in views.items()}
        step = 0


def _stored(row: Row, name: str, first: int) -> Iterator[np.ndarray]:
    number = row.first + first
    for table in iterate_rows(row.file, [name], number, row.length - first):
        for picture in table[name]:
            data = picture["bytes"].as_py()
            if data is None:
                raise LeRobotError(f"{row.file}: {name} of row {number} has no bytes; embed the pictures in the rows")
            try:
                yield decompress(data)
            except ImageError as error:
                raise LeRobotError(f"{row.file}: {name} of row {number}: {error}") from error
            number += 1
