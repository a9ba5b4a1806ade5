from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from openpi_names import DEAD, TIED, openpi_tensors
from safetensors import safe_open

from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel


def shapes_of(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["A", "B"])
def test_written_names_are_those_of_openpi_files(test_data: Path, name: str) -> None:
    directory = test_data / "pi05_reference" / name
    with safe_open(directory / "weights.safetensors", "pt") as file:
        stored = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    del stored[DEAD]
    stored[TIED[1]] = stored.pop(TIED[0])
    assert stored == openpi_tensors(json.loads((directory / "config.json").read_text()))


def test_full_preset_has_openpi_names_and_size() -> None:
    config = KIConfig.from_preset("pi05_droid_ki")
    with torch.device("meta"):
        model = KIModel(config)
    expected = openpi_tensors(config.to_dict())
    assert shapes_of(model) == expected
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(math.prod(shape) for shape in expected.values()) == 3_353_384_696


def test_tiny_preset_is_tiny() -> None:
    config = KIConfig.from_preset("ki_tiny")
    with torch.device("meta"):
        model = KIModel(config)
    assert shapes_of(model) == openpi_tensors(config.to_dict())
    assert sum(parameter.numel() for parameter in model.parameters()) <= 10_000_000


def test_new_model_starts_with_plain_norms(small_config: KIConfig) -> None:
    """adaRMS at zero is what training starts from; a framework's own initialisation must not undo it."""
    adaptive = {
        name: tensor
        for name, tensor in KIModel(small_config).state_dict().items()
        if name.startswith("paligemma_with_expert.gemma_expert.") and "norm" in name
    }
    assert len(adaptive) == 2 * (2 * small_config.language.depth + 1)
    assert all(not tensor.any() for tensor in adaptive.values())
    gains = [t for n, t in KIModel(small_config).state_dict().items() if "language_model" in n and "norm" in n]
    assert all(not tensor.any() for tensor in gains)
