"""Checkpoints as safetensors files, loaded whole or not at all.

Names are openpi's, with or without the `model.` that LeRobot puts before them. In a file, the tied token embedding goes
by `paligemma.lm_head.weight`, by `language_model.embed_tokens.weight`, or both.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ki_ros.model.config import ConfigError, KIConfig
from ki_ros.model.model import KIModel

WEIGHTS_FILE = "model.safetensors"
OTHER_WEIGHTS_FILE = "weights.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
NORM_STATS_FILE = "norm_stats.json"
TOKENIZER_FILE = "tokenizer.model"
FAST_DIRECTORY = "fast"

EMBEDDING = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
EMBEDDING_ALIAS = "paligemma_with_expert.paligemma.lm_head.weight"
DEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")
_LISTED = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded whole; the message names the file, the tensors and the fix."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: under which name there, in which file, its shape and its safetensors dtype."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str


def load_checkpoint(
    path: str | Path,
    config: KIConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> KIModel:
    """A model with the weights of a checkpoint, in evaluation mode.

    The model is built without memory and takes over the tensors one by one, so the weights exist once.

    Args:
        path: a safetensors file, or a directory that holds `model.safetensors`, `weights.safetensors`, or
            shards and their index.
        config: sizes of the model; read from `config.json` beside the weights when left out.
        device: where the weights go.
        dtype: to compute in, see `KIModel.parameter_dtype`. Tensors that have it in a file stay mapped from the disk.

    Raises:
        CheckpointError: no such file, a damaged one, or tensors that are missing, unexpected or of a wrong shape.
    """
    path = Path(path)
    if config is None:
        config = read_config(path)
    stored = read_headers(weight_files(path))
    with torch.device("meta"):
        model = KIModel(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    alias = stored.pop(EMBEDDING_ALIAS, None)
    if alias is not None:
        require_same_embedding(path, alias, stored.setdefault(EMBEDDING, alias))
    stored.pop(DEAD, None)
    require_match(path, expected, stored)
    with ExitStack() as stack:
        files = {file: stack.enter_context(open_weights(file)) for file in {tensor.file for tensor in stored.values()}}
        for name in expected:
            source = stored[name]
            tensor = files[source.file].get_tensor(source.name)
            target = model.parameter_dtype(name, dtype)
            owner, _, leaf = name.rpartition(".")
            parameter = nn.Parameter(tensor.to(device=device, dtype=target))
            setattr(model.get_submodule(owner), leaf, parameter)
    model.paligemma_with_expert.backbone.vision_tower.materialize_buffers(device)
    return model.eval()


def save_checkpoint(model: KIModel, directory: str | Path) -> None:
    """Writes `model.safetensors` and `config.json` into a directory, which is made when it does not exist.

    Both files are complete on disk before either takes the place of an older one.
    """
    write_checkpoint(dict(model.state_dict()), model.config, directory)


def write_checkpoint(tensors: Mapping[str, Tensor], config: KIConfig, directory: str | Path) -> None:
    """As `save_checkpoint`, of weights by the names that a model of that configuration has."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    # openpi and LeRobot both store the tied tensor under its head's name.
    stored[EMBEDDING_ALIAS] = stored.pop(EMBEDDING)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as temporary:
        weights, configuration = Path(temporary, WEIGHTS_FILE), Path(temporary, CONFIG_FILE)
        save_file(stored, weights, metadata={"format": "pt"})
        # safetensors makes files that nobody else may read.
        weights.chmod(0o644)
        configuration.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        for file in (weights, configuration):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(weights, directory / WEIGHTS_FILE)
        os.replace(configuration, directory / CONFIG_FILE)


def resolve_config(path: str | Path, fallback: KIConfig | None) -> tuple[KIConfig, bool]:
    """The configuration of a checkpoint, and whether it is its own.

    Public checkpoints do not say what they are: `fallback` says it for them, but for the padding of their actions and,
    where their `config.json` has it, the horizon. The expert's rows see each other, so those of a chunk of another
    length than the weights were trained with are others.

    Raises:
        CheckpointError: as `read_config`; no fallback where one is needed; a horizon that is no positive integer.
    """
    path = Path(path)
    beside = checkpoint_directory(path) / CONFIG_FILE
    if fallback is None or _is_ours(beside):
        return read_config(path), True
    horizon = _stated_horizon(beside) or fallback.action_horizon
    return replace(fallback, action_dim=stored_action_dim(path), action_horizon=horizon), False


def _stated_horizon(file: Path) -> int | None:
    """The horizon in another program's `config.json`: openpi's `action_horizon`, LeRobot's `chunk_size`."""
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    name = next((name for name in ("action_horizon", "chunk_size") if isinstance(values, dict) and name in values), "")
    horizon = values[name] if name else None
    if name and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
        raise CheckpointError(f"{file}: {name} is {horizon!r}; give a positive integer")
    return horizon


def _is_ours(file: Path) -> bool:
    """Whether a `config.json` means to be a KIConfig, and so must be a right one; others are another program's."""
    if not file.is_file():
        return False
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return True
    return isinstance(values, dict) and not {"vision", "language", "expert"}.isdisjoint(values)


def checkpoint_directory(path: Path) -> Path:
    """Where the files that belong to a checkpoint's weights are: beside a file of weights, or in the directory."""
    return path if path.is_dir() else path.parent


def read_config(path: str | Path) -> KIConfig:
    """The configuration beside a checkpoint's weights.

    Raises:
        CheckpointError: there is none, or it is not in this package's format, as in public checkpoints.
    """
    path = Path(path)
    file = checkpoint_directory(path) / CONFIG_FILE
    fix = "give the configuration, such as KIConfig.from_preset('pi05_droid_ki')"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a safetensors file or a directory that holds one")
    if not file.is_file():
        _require_no_run(path)
        raise CheckpointError(f"{file} does not exist; {fix}")
    try:
        return KIConfig.from_json(file)
    except ConfigError as error:
        raise CheckpointError(f"{error}; correct it, or {fix}") from error


def stored_action_dim(path: str | Path) -> int:
    """D of the weights in a checkpoint: 8 of a DROID model of this package, 32 (zero padded) of a public one.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    path = Path(path)
    tensor = read_headers(weight_files(path)).get("action_out_proj.bias")
    if tensor is None or len(tensor.shape) != 1:
        raise CheckpointError(f"{path} holds no action_out_proj.bias; give a pi0.5 checkpoint")
    return tensor.shape[0]


def weight_files(path: Path) -> list[Path]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a safetensors file or a directory that holds one")
    if path.is_file():
        return [path]
    for name in (WEIGHTS_FILE, OTHER_WEIGHTS_FILE):
        if (path / name).is_file():
            return [path / name]
    index = path / INDEX_FILE
    if not index.is_file():
        _require_no_run(path)
        raise CheckpointError(f"{path} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}; give a directory with either")
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        inside = all(isinstance(name, str) and Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} has no readable weight_map ({error}); write the checkpoint again") from error
    if not inside or not names:
        raise CheckpointError(f"{index}: weight_map names {names}; it must name files of the same directory")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path}: the shards {_listed(missing)} are missing; copy the whole checkpoint")
    return [path / name for name in names]


def _require_no_run(path: Path) -> None:
    """Says which directory is meant, where a training's own was given: its checkpoints are in it."""
    within = path if path.name == "checkpoints" else path / "checkpoints"
    kept = sorted(place for place in within.glob("step_*") if (place / WEIGHTS_FILE).is_file())
    if kept:
        raise CheckpointError(f"{path} is the directory of a training, not of a checkpoint; give {kept[-1]}")


def open_weights(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({error}); copy or write it again") from error


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of all files by openpi's name."""
    found: list[StoredTensor] = []
    for file in files:
        with open_weights(file) as handle:
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                view = handle.get_slice(name)
                found.append(StoredTensor(name, file, tuple(view.get_shape()), view.get_dtype()))
    prefix = "model." if found and all(tensor.name.startswith("model.") for tensor in found) else ""
    stored: dict[str, StoredTensor] = {}
    for tensor in found:
        name = tensor.name.removeprefix(prefix)
        if name in stored:
            raise CheckpointError(
                f"{tensor.name} is in {stored[name].file} and in {tensor.file}; write the checkpoint again"
            )
        stored[name] = tensor
    return stored


def require_same_embedding(path: Path, alias: StoredTensor, embedding: StoredTensor) -> None:
    if alias is embedding:
        return
    with open_weights(alias.file) as first, open_weights(embedding.file) as second:
        if alias.shape != embedding.shape or not torch.equal(
            first.get_tensor(alias.name), second.get_tensor(embedding.name)
        ):
            raise CheckpointError(
                f"{path}: {alias.name} and {embedding.name} differ, but they are one tied tensor; "
                "store the one that was trained"
            )


def require_match(path: Path, expected: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor]) -> None:
    problems = []
    missing = [name for name in expected if name not in stored]
    if missing:
        problems.append(f"missing: {_listed(missing)}")
    unexpected = [stored[name].name for name in stored if name not in expected]
    if unexpected:
        problems.append(f"unexpected: {_listed(unexpected)}")
    common = [(name, stored[name]) for name in expected if name in stored]
    shapes = [
        f"{tensor.name} expected {list(expected[name])}, found {list(tensor.shape)}"
        for name, tensor in common
        if tensor.shape != expected[name]
    ]
    if shapes:
        problems.append(f"wrong shape: {_listed(shapes)}")
    dtypes = [f"{tensor.name} {tensor.dtype}" for _, tensor in common if tensor.dtype not in _FLOATS]
    if dtypes:
        problems.append(f"not floating point: {_listed(dtypes)}")
    if problems:
        raise CheckpointError(
            f"{path} does not fit the model.\n  "
            + "\n  ".join(problems)
            + "\nGive the configuration that the checkpoint was trained with, or a checkpoint of this model."
        )


def _listed(items: list[str]) -> str:
    """All items up to a readable count, and how many there are."""
    more = f", and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{', '.join(items[:_LISTED])}{more} ({len(items)})"
