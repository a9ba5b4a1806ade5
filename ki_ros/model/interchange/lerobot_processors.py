"""The processors beside a LeRobot pi05 policy: what happens to observations before it and to actions after it.

Two JSON files list their steps; the statistics of a normalising step are tensors in a file that its step names.
LeRobot normalises pi05 by `2 (x - q01) / (q99 - q01) - 1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ki_ros.model.config import KIConfig
from ki_ros.model.interchange.documents import encode, read_object
from ki_ros.model.interchange.errors import InterchangeError
from ki_ros.model.interchange.foreign import Foreign
from ki_ros.model.interchange.norm_stats import STATISTICS
from ki_ros.model.interchange.stream import StreamedTensor, write_safetensors
from ki_ros.rig import STATE_DIM

KEYS = {"state": "observation.state", "actions": "action"}
"""Quantities of `norm_stats.json` -> LeRobot's features."""

NORM_MAP = {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
"""How pi05 normalises each type of feature."""

_PRE, _POST = "policy_preprocessor", "policy_postprocessor"
_NORMALIZER, _UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
_TOKENIZER = "google/paligemma-3b-pt-224"
_RENAME, _RELATIVE, _ABSOLUTE = (
    "rename_observations_processor",
    "relative_actions_processor",
    "absolute_actions_processor",
)
_KNOWN = {
    _NORMALIZER,
    _UNNORMALIZER,
    _RENAME,
    _RELATIVE,
    _ABSOLUTE,
    "to_batch_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "tokenizer_processor",
    "device_processor",
}

Statistics = dict[str, dict[str, np.ndarray]]
"""Quantity -> statistic -> (D,) float64."""


def write(directory: Path, config: KIConfig, features: dict[str, Any], statistics: Statistics) -> None:
    """Writes both processors and their statistics, in float64, so that no bit is lost.

    Args:
        directory: to write into.
        config: of the model.
        features: LeRobot's features of inputs and outputs, by key.
        statistics: of states and actions.
    """
    state = [
        StreamedTensor(f"{KEYS[quantity]}.{name}", "F64", vector.shape, partial(_bytes, vector))
        for quantity, of_quantity in statistics.items()
        for name, vector in of_quantity.items()
    ]
    normalization = {"eps": 1e-8, "norm_map": NORM_MAP}
    action = KEYS["actions"]
    before = [
        (_RENAME, {"rename_map": {}}),
        ("to_batch_processor", {}),
        (_NORMALIZER, {**normalization, "features": features}),
        # States enter the prompt unpadded.
        ("pi05_prepare_state_tokenizer_processor_step", {"max_state_dim": STATE_DIM}),
        (
            "tokenizer_processor",
            {
                "max_length": config.max_token_len,
                "task_key": "task",
                "padding_side": "right",
                "padding": "max_length",
                "truncation": True,
                "tokenizer_name": _TOKENIZER,
            },
        ),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    after = [
        (_UNNORMALIZER, {**normalization, "features": {action: features[action]}}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    for name, steps in ((_PRE, before), (_POST, after)):
        entries = []
        for index, (step, values) in enumerate(steps):
            entry: dict[str, Any] = {"registry_name": step, "config": values}
            if step in (_NORMALIZER, _UNNORMALIZER):
                entry["state_file"] = f"{name}_step_{index}_{step}.safetensors"
                write_safetensors(directory / entry["state_file"], state)
            entries.append(entry)
        (directory / f"{name}.json").write_bytes(encode({"name": name, "steps": entries}))


def read(directory: Path, foreign: Foreign, *, with_statistics: bool) -> tuple[Statistics, Path] | None:
    """The statistics, and the file that they come from; None where there are none. Notes in `foreign` what was read.

    Raises:
        InterchangeError: a processor that does what pi0.5 does not, or statistics that are damaged or contradict
            each other.
    """
    before, after = (_steps(directory, name, foreign) for name in (_PRE, _POST))
    first = _state(directory, before, _NORMALIZER, foreign)
    second = _state(directory, after, _UNNORMALIZER, foreign)
    if not with_statistics or first is None:
        return None
    tensors, file = first
    statistics = {
        quantity: {
            name: _vector(file, f"{key}.{name}", tensors[f"{key}.{name}"])
            for name in STATISTICS
            if f"{key}.{name}" in tensors
        }
        for quantity, key in KEYS.items()
    }
    if second is not None:
        for name in STATISTICS:
            key = f"{KEYS['actions']}.{name}"
            values = [held[key] for held, _ in (first, second) if key in held]
            if len(values) == 2 and not torch.equal(*values):
                raise InterchangeError(
                    f"{key} differs between {file} and {second[1]}; give norm_stats, the right ones for the weights"
                )
    taken = {f"{KEYS[quantity]}.{name}" for quantity, held in statistics.items() for name in held}
    if left := sorted(set(tensors) - taken):
        foreign.not_carried.append(f"{file.name}: {', '.join(left)} (quantile normalisation does not use them)")
    return statistics, file


def _steps(directory: Path, name: str, foreign: Foreign) -> list[dict[str, Any]]:
    file = directory / f"{name}.json"
    if not file.is_file():
        return []
    foreign.entries.add(file.name)
    steps = read_object(file).get("steps")
    if not isinstance(steps, list) or not all(
        isinstance(step, dict) and isinstance(step.get("config", {}), dict) for step in steps
    ):
        raise InterchangeError(f"{file}: steps is {str(steps)[:60]}; give a list of steps, each with its config")
    for step in steps:
        kind, config = step.get("registry_name", step.get("class")), step.get("config", {})
        if kind in (_RELATIVE, _ABSOLUTE) and config.get("enabled"):
            raise InterchangeError(
                f"{file}: {kind} is enabled; actions relative to the state are not supported, so train without them"
            )
        if kind in (_NORMALIZER, _UNNORMALIZER):
            require_quantiles(file, config.get("norm_map"))
        if kind == _RENAME and config.get("rename_map"):
            foreign.not_carried.append(f"{file.name}: rename_map {config['rename_map']}")
        if kind not in _KNOWN:
            foreign.not_carried.append(f"{file.name}: step {kind}")
    return steps


def require_quantiles(file: Path, norm_map: Any) -> None:
    """Raises InterchangeError unless states and actions are normalised by quantiles."""
    for kind in ("STATE", "ACTION"):
        mode = norm_map.get(kind) if isinstance(norm_map, dict) else norm_map
        if mode != NORM_MAP[kind]:
            raise InterchangeError(
                f"{file}: normalisation of {kind} is {mode!r}; this policy normalises by QUANTILES alone, so train "
                "with those"
            )


def _state(
    directory: Path, steps: list[dict[str, Any]], kind: str, foreign: Foreign
) -> tuple[dict[str, torch.Tensor], Path] | None:
    names = [step["state_file"] for step in steps if step.get("registry_name") == kind and step.get("state_file")]
    if not names:
        return None
    if len(names) > 1 or not isinstance(names[0], str) or Path(names[0]).name != names[0]:
        raise InterchangeError(
            f"{directory}: {kind} names {names} as its state; expected one file of the same directory"
        )
    file = directory / names[0]
    foreign.entries.add(file.name)
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}, file  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise InterchangeError(f"{file} is not a whole safetensors file ({error}); copy it again") from error


def _vector(file: Path, name: str, tensor: torch.Tensor) -> np.ndarray:
    if tensor.ndim != 1 or not tensor.is_floating_point():
        raise InterchangeError(
            f"{file}: {name} has shape {list(tensor.shape)} and dtype {tensor.dtype}; expected one vector of floats"
        )
    return tensor.double().numpy()


def _bytes(vector: np.ndarray) -> Iterator[memoryview]:
    yield memoryview(vector.astype("<f8").view(np.uint8))
