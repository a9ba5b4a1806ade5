"""LeRobot's pi05 layout: `config.json` of type "pi05", `model.safetensors`, two processors and their statistics.

Its loader adds the embedding's second name itself, and insists on all other tensors, the expert's unused head too; when
it fails it goes on with random weights, so nothing may be missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.model.checkpoint import CONFIG_FILE
from ki_ros.model.config import KIConfig
from ki_ros.model.flow import MAX_PERIOD, MIN_PERIOD
from ki_ros.model.interchange import lerobot_processors as processors
from ki_ros.model.interchange.documents import encode, integer, read_object
from ki_ros.model.interchange.errors import InterchangeError
from ki_ros.model.interchange.foreign import Foreign
from ki_ros.model.interchange.norm_stats import read_norm_stats, vectors
from ki_ros.model.interchange.sidecar import SIDE_FILE, Sidecar
from ki_ros.model.interchange.variants import variants
from ki_ros.rig import POLICY_SLOTS, STATE_DIM

PREFIX = "model."
"""What the names of tensors begin with."""

TYPE = "pi05"
_VIEWS = 2
_MAX_STATE_DIM = 32
"""Of a configuration that does not say."""

# Fields whose other values are another model, which would load without complaint and act wrongly.
_REQUIRED = {
    "use_relative_actions": False,
    "use_visual_memory": False,
    "use_proprioceptive_memory": False,
    "use_peft": False,
    "min_period": MIN_PERIOD,
    "max_period": MAX_PERIOD,
    "n_obs_steps": 1,
}
_READ = {
    "type",
    "input_features",
    "output_features",
    "normalization_mapping",
    "paligemma_variant",
    "action_expert_variant",
    "dtype",
    "chunk_size",
    "n_action_steps",
    "max_state_dim",
    "max_action_dim",
    "image_resolution",
    "tokenizer_max_length",
    *_REQUIRED,
}


def read(directory: Path, *, with_norm_stats: bool, sidecar: Sidecar | None) -> Foreign:
    """What the directory says beside its weights.

    Args:
        directory: of the checkpoint.
        with_norm_stats: whether its statistics are wanted.
        sidecar: what came with it, of this package.

    Raises:
        InterchangeError: another policy's files, a pi05 that this package cannot run, statistics that are damaged or
            not those that `sidecar` has.
    """
    file = directory / CONFIG_FILE
    values = read_object(file)
    if values.get("type") != TYPE:
        raise InterchangeError(f"{file}: type is {values.get('type')!r}; give a checkpoint of type {TYPE!r}")
    for name, expected in _REQUIRED.items():
        if name in values and values[name] != expected:
            raise InterchangeError(f"{file}: {name} is {values[name]!r}; only {expected!r} can be imported")
    if "normalization_mapping" in values:
        processors.require_quantiles(file, values["normalization_mapping"])
    foreign = Foreign(
        action_dim=integer(file, values, "max_action_dim"),
        action_horizon=integer(file, values, "chunk_size"),
        max_token_len=integer(file, values, "tokenizer_max_length"),
        image_size=_image_size(file, values.get("image_resolution")),
        entries={CONFIG_FILE},
    )
    if others := sorted(set(values) - _READ):
        foreign.not_carried.append(f"{CONFIG_FILE}: {', '.join(others)}")
    views = [name for name, feature in _features(file, values).items() if feature.get("type") == "VISUAL"]
    expected_views = [f"observation.images.{slot}" for slot in POLICY_SLOTS]
    if views != expected_views[: len(views)]:
        pairs = [f"{view} as {slot}" for view, slot in zip(views, POLICY_SLOTS, strict=False)]
        foreign.assumed.append(f"cameras in the order of input_features: {', '.join(pairs)}")
    width = integer(file, values, "max_state_dim") or _MAX_STATE_DIM
    if sidecar is None and width > STATE_DIM:
        foreign.assumed.append(
            f"prompts of the {STATE_DIM} state values alone, as openpi trains; LeRobot pads states to max_state_dim "
            f"{width} and writes all of them, so for a policy that it trained this is another prompt: train it there "
            f"with max_state_dim {STATE_DIM}"
        )
    found = processors.read(directory, foreign, with_statistics=with_norm_stats)
    if found is not None:
        statistics, origin = found
        foreign.norm_stats = encode(_document(directory, statistics, origin, sidecar))
        foreign.norm_stats_file = origin
    return foreign


def write(directory: Path, config: KIConfig, norm_stats: Path, precision: str) -> None:
    """Writes everything but the weights.

    Args:
        directory: to write into.
        config: of the model.
        norm_stats: the file `norm_stats.json`; LeRobot gets the rig's eight values of each vector, and the side file
            the whole document.
        precision: "float32" or "bfloat16", which LeRobot computes in.

    Raises:
        NormStatsError, InterchangeError: statistics that cannot normalise.
    """
    _, document = read_norm_stats(norm_stats)
    side = config.vision.image_size
    inputs = {
        f"observation.images.{slot}": {"type": "VISUAL", "shape": [3, side, side]} for slot in POLICY_SLOTS[:_VIEWS]
    }
    inputs[processors.KEYS["state"]] = {"type": "STATE", "shape": [STATE_DIM]}
    outputs = {processors.KEYS["actions"]: {"type": "ACTION", "shape": [STATE_DIM]}}
    values = {
        "type": TYPE,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": processors.NORM_MAP,
        **variants(config),
        "dtype": precision,
        "chunk_size": config.action_horizon,
        "n_action_steps": config.action_horizon,
        "max_state_dim": STATE_DIM,
        "max_action_dim": config.action_dim,
        "min_period": MIN_PERIOD,
        "max_period": MAX_PERIOD,
        "image_resolution": [side, side],
        "tokenizer_max_length": config.max_token_len,
    }
    (directory / CONFIG_FILE).write_bytes(encode(values))
    processors.write(directory, config, inputs | outputs, vectors(norm_stats, document))
    Sidecar(config, document).write(directory)


def _document(
    directory: Path, statistics: processors.Statistics, origin: Path, sidecar: Sidecar | None
) -> dict[str, Any]:
    """`norm_stats.json` of the statistics; the one in `sidecar`, where there is one, if it says the same."""
    if sidecar is None or sidecar.norm_stats is None:
        return {
            "norm_stats": {
                quantity: {name: vector.tolist() for name, vector in held.items()}
                for quantity, held in statistics.items()
            }
        }
    file = directory / SIDE_FILE
    try:
        carried = vectors(file, sidecar.norm_stats)
    except (KeyError, TypeError, AttributeError) as error:
        raise InterchangeError(f"{file}: norm_stats lacks {error}; export again, or give norm_stats") from error
    for quantity in carried.keys() | statistics.keys():
        one, other = carried.get(quantity, {}), statistics.get(quantity, {})
        for name in sorted(one.keys() | other.keys()):
            if name in one and name in other and _same(one[name], other[name]):
                continue
            raise InterchangeError(
                f"{quantity}.{name} differs between {file} and {origin}; remove {SIDE_FILE} to import LeRobot's "
                "statistics, or give norm_stats"
            )
    return sidecar.norm_stats


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    # LeRobot computes with statistics in float32, and so does it save them again.
    return np.array_equal(one.astype(np.float32), other.astype(np.float32), equal_nan=True)


def _features(file: Path, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    features = values.get("input_features") or {}
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise InterchangeError(f"{file}: input_features is {str(features)[:60]}; give features by name")
    return features


def _image_size(file: Path, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or value[0] != value[1] or not isinstance(value[0], int):
        raise InterchangeError(f"{file}: image_resolution is {value!r}; only square images can be imported")
    return value[0]
