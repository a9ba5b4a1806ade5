"""A small dataset as DROID is published by LeRobot: its features, its layout; made with pyarrow and PyAV alone."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CAMERAS = ("exterior_1_left", "exterior_2_left", "wrist_left")
LENGTHS = (7, 12, 9)
TEXTS = (
    ("put the marker in the pot", "place the pen in the pot", ""),
    ("", "open the drawer", ""),
    ("", "", ""),
)
SUCCESSES = (True, False, True)
HEIGHT, WIDTH = 90, 160


def values(name: str, size: int) -> np.ndarray:
    """(28, size) float32 of a feature."""
    rng = np.random.default_rng(sum(name.encode()))
    return rng.uniform(0.0, 1.0, (sum(LENGTHS), size)).astype(np.float32)


def level(camera: int, frame: int) -> int:
    """The grey of a camera's picture at a frame of the whole dataset."""
    return 30 + 7 * frame + 3 * camera


VECTORS = {
    "observation.state.gripper_position": 1,
    "observation.state.cartesian_position": 6,
    "observation.state.joint_position": 7,
    "observation.state": 8,
    "action.gripper_position": 1,
    "action.gripper_velocity": 1,
    "action.joint_position": 7,
    "action.joint_velocity": 7,
    "action.original": 7,
    "action": 8,
    "discount": 1,
}


def write(directory: Path, **changes: Any) -> Path:
    """Writes the dataset; `changes` replace fields of `info.json`."""
    count = sum(LENGTHS)
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    features: dict[str, Any] = {name: {"dtype": "float32", "shape": [size]} for name, size in VECTORS.items()}
    columns: dict[str, Any] = {}
    for name, size in VECTORS.items():
        rows = values(name, size)
        columns[name] = rows[:, 0] if size == 1 else pa.array(rows.tolist(), pa.list_(pa.float32()))
    for k, name in enumerate(("language_instruction", "language_instruction_2", "language_instruction_3")):
        features[name] = {"dtype": "string", "shape": [1]}
        columns[name] = [TEXTS[e][k] for e in episode]
    features["is_episode_successful"] = {"dtype": "bool", "shape": [1]}
    columns["is_episode_successful"] = [SUCCESSES[e] for e in episode]
    for camera in CAMERAS:
        features[f"observation.images.{camera}"] = {"dtype": "video", "shape": [HEIGHT, WIDTH, 3]}
    tasks = list(dict.fromkeys(texts[0] for texts in TEXTS))
    columns |= {
        "timestamp": (frame / 15).astype(np.float32),
        "frame_index": frame,
        "episode_index": episode,
        "index": np.arange(count),
        "task_index": [tasks.index(TEXTS[e][0]) for e in episode],
    }
    for name, kind in (
        ("timestamp", "float32"),
        *((n, "int64") for n in ("frame_index", "episode_index", "index", "task_index")),
    ):
        features[name] = {"dtype": kind, "shape": [1]}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "Franka",
        "fps": 15,
        "total_episodes": len(LENGTHS),
        "total_frames": count,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }
    for name in ("meta/episodes/chunk-000", "data/chunk-000"):
        (directory / name).mkdir(parents=True)
    (directory / "meta/info.json").write_text(json.dumps(info | changes))
    pq.write_table(pa.table({"task_index": list(range(len(tasks))), "task": tasks}), directory / "meta/tasks.parquet")
    table = pa.table(columns)
    first = LENGTHS[0] + LENGTHS[1]
    # The third episode lies in a file of its own; row groups end within episodes.
    pq.write_table(table.slice(0, first), directory / "data/chunk-000/file-000.parquet", row_group_size=5)
    pq.write_table(table.slice(first), directory / "data/chunk-000/file-001.parquet", row_group_size=5)
    begins = np.cumsum([0, *LENGTHS])
    meta: dict[str, Any] = {
        "episode_index": list(range(len(LENGTHS))),
        "tasks": [[texts[0]] for texts in TEXTS],
        "length": list(LENGTHS),
        "dataset_from_index": begins[:-1],
        "dataset_to_index": begins[1:],
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 1],
    }
    for number, camera in enumerate(CAMERAS):
        key = f"observation.images.{camera}"
        (directory / "videos" / key / "chunk-000").mkdir(parents=True)
        video(directory / "videos" / key / "chunk-000/file-000.mp4", number, range(LENGTHS[0]))
        video(directory / "videos" / key / "chunk-000/file-001.mp4", number, range(LENGTHS[0], count))
        meta |= {
            f"videos/{key}/chunk_index": [0, 0, 0],
            f"videos/{key}/file_index": [0, 1, 1],
            f"videos/{key}/from_timestamp": [0.0, 0.0, LENGTHS[1] / 15],
            f"videos/{key}/to_timestamp": [LENGTHS[0] / 15, LENGTHS[1] / 15, (LENGTHS[1] + LENGTHS[2]) / 15],
        }
    pq.write_table(pa.table(meta), directory / "meta/episodes/chunk-000/file-000.parquet")
    return directory


def video(path: Path, camera: int, frames: range) -> None:
    """Grey pictures, each of its own level, with long distances between keyframes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=15, options={"g": "30", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 15)
        for number, frame in enumerate(frames):
            picture = np.full((HEIGHT, WIDTH, 3), level(camera, frame), np.uint8)
            given = av.VideoFrame.from_ndarray(picture, format="rgb24")
            given.pts, given.time_base = number, Fraction(1, 15)
            container.mux(stream.encode(given))
        container.mux(stream.encode())
