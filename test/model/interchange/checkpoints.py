"""Checkpoints of each layout, written down from what the three packages write; knows nothing of the code under test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from openpi_names import DEAD, TIED, openpi_tensors
from safetensors.torch import load_file, save_file

from ki_ros.model.config import KIConfig
from ki_ros.policy import model_directory

HEAD, EMBEDDING = TIED
PRESET = "ki_tiny"
SHIPPED = model_directory(PRESET)
TOKENIZER = SHIPPED / "tokenizer.model"


def make_tensors(config: KIConfig, *, seed: int = 0, dead: bool = False) -> dict[str, torch.Tensor]:
    """Every tensor by openpi's name, the embedding under its head's; float32 norms and bfloat16 for the rest."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in openpi_tensors(config.to_dict()).items():
        tensor = torch.randn(shape, generator=generator) * 0.2
        tensors[HEAD if name == EMBEDDING else name] = tensor if "norm" in name else tensor.bfloat16()
    if dead:
        shape = (config.language.vocab_size, config.expert.width)
        tensors[DEAD] = torch.randn(shape, generator=generator).bfloat16()
    return tensors


def norm_stats(length: int = 8) -> dict:
    """Real statistics moved by odd fractions, so that float32 cannot hold them, padded with zeros."""
    document = json.loads((SHIPPED / "untrained" / "norm_stats.json").read_text())
    for entry in document["norm_stats"].values():
        for name, values in entry.items():
            entry[name] = [value + 1e-9 / 3 for value in values] + [0.0] * (length - len(values))
    return document


def write_own(directory: Path, config: KIConfig, *, stats_length: int = 8, seed: int = 0) -> Path:
    """A checkpoint of this package with all that it may hold."""
    directory.mkdir(parents=True)
    save_file(make_tensors(config, seed=seed), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    (directory / "norm_stats.json").write_text(json.dumps(norm_stats(stats_length)))
    shutil.copy(TOKENIZER, directory / "tokenizer.model")
    (directory / "fast").mkdir()
    (directory / "fast" / "tokenizer.json").write_text('{"scale": 10}')
    return directory


def write_openpi(directory: Path, config: KIConfig) -> Path:
    """As openpi's converter writes: one name of the tied embedding, the unused head, statistics below assets."""
    directory.mkdir(parents=True)
    save_file(make_tensors(config, dead=True), directory / "model.safetensors")
    facts = {
        "action_dim": config.action_dim,
        "action_horizon": config.action_horizon,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(facts))
    (directory / "assets" / "droid").mkdir(parents=True)
    (directory / "assets" / "droid" / "norm_stats.json").write_text(json.dumps(norm_stats(32), indent=2))
    return directory


def write_lerobot(directory: Path, config: KIConfig) -> Path:
    """As LeRobot saves a policy that it trained: float32 statistics of all kinds, settings of training."""
    directory.mkdir(parents=True)
    tensors = {f"model.{name}": tensor for name, tensor in make_tensors(config, dead=True).items()}
    save_file(tensors, directory / "model.safetensors")
    features = {
        "observation.images.scene": {"type": "VISUAL", "shape": [3, 180, 320]},
        "observation.images.hand": {"type": "VISUAL", "shape": [3, 180, 320]},
        "observation.state": {"type": "STATE", "shape": [8]},
    }
    action = {"action": {"type": "ACTION", "shape": [8]}}
    norm_map = {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
    values = {
        "type": "pi05",
        "n_obs_steps": 1,
        "input_features": features,
        "output_features": action,
        "device": "cuda",
        "use_amp": False,
        "use_peft": False,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "dtype": "bfloat16",
        "chunk_size": 12,
        "n_action_steps": 12,
        "max_state_dim": 32,
        "max_action_dim": config.action_dim,
        "min_period": 0.004,
        "max_period": 4.0,
        "image_resolution": [224, 224],
        "tokenizer_max_length": 180,
        "normalization_mapping": norm_map,
        "optimizer_lr": 2.5e-05,
    }
    (directory / "config.json").write_text(json.dumps(values))
    state = {}
    for key, entry in zip(("observation.state", "action"), norm_stats()["norm_stats"].values(), strict=True):
        for name, vector in entry.items():
            state[f"{key}.{name}"] = torch.tensor(vector)
        state[f"{key}.min"] = torch.zeros(8)
        state[f"{key}.count"] = torch.tensor([1234.0])
    normalizer = {"eps": 1e-8, "features": features | action, "norm_map": norm_map}
    relative = {"enabled": False, "exclude_joints": ["gripper"], "action_names": None}
    write_processor(
        directory,
        "policy_preprocessor",
        [
            ("rename_observations_processor", {"rename_map": {}}),
            ("to_batch_processor", {}),
            ("relative_actions_processor", relative),
            ("normalizer_processor", normalizer),
            ("pi05_prepare_state_tokenizer_processor_step", {}),
            ("tokenizer_processor", {"max_length": 180, "tokenizer_name": "google/paligemma-3b-pt-224"}),
            ("device_processor", {"device": "cuda", "float_dtype": None}),
        ],
        state,
    )
    write_processor(
        directory,
        "policy_postprocessor",
        [
            ("unnormalizer_processor", normalizer | {"features": action}),
            ("absolute_actions_processor", {"enabled": False}),
            ("device_processor", {"device": "cpu", "float_dtype": None}),
        ],
        state,
    )
    return directory


def write_processor(directory: Path, name: str, steps: list[tuple[str, dict]], state: dict[str, torch.Tensor]) -> None:
    entries = []
    for index, (step, config) in enumerate(steps):
        entry = {"registry_name": step, "config": config}
        if step.endswith("normalizer_processor"):
            entry["state_file"] = f"{name}_step_{index}_{step}.safetensors"
            save_file(state, directory / entry["state_file"])
        entries.append(entry)
    (directory / f"{name}.json").write_text(json.dumps({"name": name, "steps": entries}))


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def read_header(file: Path) -> dict[str, dict]:
    """The header of a safetensors file, from the format's description."""
    with file.open("rb") as stream:
        return json.loads(stream.read(int.from_bytes(stream.read(8), "little")))


def contents(file: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Name -> dtype, shape and bytes."""
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for name, tensor in load_file(file).items()
    }


def module_of(shapes: dict[str, list[int]], tied: tuple[str, str]) -> torch.nn.Module:
    """A module with parameters of these names, the two of `tied` being one, as the other packages' models have them."""
    root = torch.nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, torch.nn.Parameter(torch.full(shape, np.nan)))
    first, second = (name.rpartition(".") for name in tied)
    parameter = root.get_submodule(first[0]).get_parameter(first[2])
    root.get_submodule(second[0]).register_parameter(second[2], parameter)
    return root
