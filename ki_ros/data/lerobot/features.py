"""The features of a dataset that this package writes, as `info.json` and the Parquet files declare them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from ki_ros.data.lerobot import layout
from ki_ros.data.lerobot.statistics import NAMES
from ki_ros.data.lerobot.video import Codec, video_info
from ki_ros.rig import NUM_JOINTS, STATE_DIM, ActionSpace, CameraRole

Images = Literal["video", "png"]

ACTION_NAMES = {
    ActionSpace.JOINT_POSITION: [*(f"joint_{i}.pos" for i in range(1, NUM_JOINTS + 1)), "gripper.pos"],
    ActionSpace.JOINT_VELOCITY: [*(f"joint_{i}.vel" for i in range(1, NUM_JOINTS + 1)), "gripper.pos"],
}
"""Names of an action's eight values, by which a reader tells the action space. A state has those of joint_position."""


def image_key(role: CameraRole) -> str:
    """The feature of a camera."""
    return layout.IMAGES + role.value


def describe(
    sizes: Mapping[CameraRole, tuple[int, int]], *, action_space: ActionSpace, images: Images, codec: Codec, rate: int
) -> dict[str, dict[str, Any]]:
    """The `features` of `info.json`.

    Args:
        sizes: height and width of each camera's pictures [pixels].
        action_space: of `action`.
        images: whether pictures are rows of PNG or videos.
        codec: of the videos.
        rate: frames per second.
    """
    features: dict[str, dict[str, Any]] = {}
    for role, (height, width) in sizes.items():
        feature: dict[str, Any] = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
        if images == "png":
            features[image_key(role)] = {"dtype": "image", **feature}
        else:
            info = video_info(codec, rate=rate, height=height, width=width)
            features[image_key(role)] = {"dtype": "video", **feature, "info": info}
    state_names = ACTION_NAMES[ActionSpace.JOINT_POSITION]
    features[layout.STATE] = {"dtype": "float32", "shape": [STATE_DIM], "names": state_names}
    features[layout.ACTION] = {"dtype": "float32", "shape": [STATE_DIM], "names": ACTION_NAMES[action_space]}
    for name, dtype in (
        (layout.DONE, "bool"),
        (layout.SUCCESS, "bool"),
        (layout.IDLE, "bool"),
        (layout.STAMP, "int64"),
    ):
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return {**features, **layout.INDEX_FEATURES}


def data_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Schema of the files below `data`, with the description of its columns that `datasets` keeps in the metadata."""
    fields, described = [], {}
    for name, feature in features.items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            kind: pa.DataType = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            described[name] = {"_type": "Image"}
        else:
            value = {"dtype": feature["dtype"], "_type": "Value"}
            kind = pa.bool_() if feature["dtype"] == "bool" else pa.type_for_alias(feature["dtype"])
            described[name] = value
            length = feature["shape"][0]
            if length > 1:
                kind = pa.list_(kind, length)
                described[name] = {"feature": value, "length": length, "_type": "List"}
        fields.append(pa.field(name, kind))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


_PROVENANCE_TYPES = {"segment": pa.int64(), "ended": pa.bool_()}


def episodes_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Schema of the files below `meta/episodes`."""
    fields = [
        ("episode_index", pa.int64()),
        ("tasks", pa.list_(pa.string())),
        ("length", pa.int64()),
        ("dataset_from_index", pa.int64()),
        ("dataset_to_index", pa.int64()),
        *((f"{kind}/{name}_index", pa.int64()) for kind in ("data", "meta/episodes") for name in ("chunk", "file")),
        *((name, _PROVENANCE_TYPES.get(name, pa.string())) for name in layout.PROVENANCE),
    ]
    for key, feature in features.items():
        if feature["dtype"] == "video":
            fields += [(f"videos/{key}/{name}_index", pa.int64()) for name in ("chunk", "file")]
            fields += [(f"videos/{key}/{name}_timestamp", pa.float64()) for name in ("from", "to")]
    for key, feature in features.items():
        picture = feature["dtype"] in ("image", "video")
        for name in NAMES:
            kind = pa.list_(pa.int64() if name == "count" else pa.float64())
            fields.append((f"stats/{key}/{name}", pa.list_(pa.list_(kind)) if picture and name != "count" else kind))
    return pa.schema(fields)


def tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """Contents of `TASKS_FILE`: pandas reads a frame with the column `task_index`, indexed by the instructions."""
    table = pa.table(
        {
            "task_index": pa.array(tasks.values(), pa.int64()),
            layout.TASK_COLUMN: pa.array(tasks.keys(), pa.string()),
        }
    )
    index = {"pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": [layout.TASK_COLUMN],
        "column_indexes": [{"name": None, "field_name": None, **index, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {"name": None, "field_name": layout.TASK_COLUMN, **index, "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
