"""Compares the model with recorded outputs of the public pi0.5 implementation.

    python -m ki_ros.model.reference DIRECTORY [--json FILE]

The directory holds `config.json`, `weights.safetensors` and `vectors.safetensors`; its README names the tensors.
Exits 1 when a velocity or a sample is further than 1e-5 from the record, 2 when the directory cannot be read.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ki_ros.model.checkpoint import CheckpointError, load_checkpoint
from ki_ros.model.config import ConfigError, KIConfig
from ki_ros.model.flow import flow_target, interpolate, time_embedding
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation
from ki_ros.rig import POLICY_SLOTS

TOLERANCE = 1e-5
"""Largest absolute difference of a velocity or an action; float32 noise on these sets is a few 1e-6."""

REQUIRED = ("v_t_cache", "v_t_joint", "sampled_actions")


def compare(directory: str | Path) -> dict[str, float]:
    """Largest absolute difference of each recorded quantity, by its name in the record.

    Prefix quantities are compared at valid positions: what padding becomes has no meaning.

    Raises:
        CheckpointError, ConfigError: the directory lacks a part, or its parts do not belong together.
    """
    directory = Path(directory)
    config = KIConfig.from_json(directory / "config.json")
    model = load_checkpoint(directory / "weights.safetensors", config)
    try:
        record = load_file(directory / "vectors.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / 'vectors.safetensors'} cannot be read ({error})") from error
    try:
        return _compare(model, record)
    except KeyError as error:
        raise CheckpointError(f"{directory / 'vectors.safetensors'} has no tensor {error}") from error


@torch.no_grad()
def _compare(model: KIModel, record: dict[str, Tensor]) -> dict[str, float]:
    observation = recorded_observation(record)
    noise, x_t, time = record["noise"], record["x_t"], record["time"]
    found: dict[str, Tensor] = {"x_t": interpolate(record["actions"], noise, time)}

    with _outputs(model.paligemma_with_expert.expert.layers) as suffix_layers:
        found["v_t_cache"] = model.velocity(observation, x_t, time, cached=True)
    with _outputs(model.paligemma_with_expert.backbone.language_model.layers) as prefix_layers:
        joint = model.joint(observation, x_t, time)
    found["v_t_joint"] = joint.velocity
    found["joint_suffix_last_hidden"] = joint.suffix
    found["joint_prefix_last_hidden"] = joint.prefix
    found["flow_loss"] = (flow_target(record["actions"], noise) - joint.velocity).square()

    found["sampled_actions"] = model.sample_actions(observation, noise=noise)
    for name in record:
        if match := re.fullmatch(r"sampled_actions_(\d+)steps", name):
            found[name] = model.sample_actions(observation, noise=noise, num_steps=int(match[1]))

    width = model.config.expert.width
    found["time_emb"] = time_embedding(time, width)
    found["adarms_cond"] = model.condition(time)
    if "sweep_time" in record:
        found["sweep_time_emb"] = time_embedding(record["sweep_time"], width)
        found["sweep_adarms_cond"] = model.condition(record["sweep_time"])

    prefix = model.embed_prefix(observation)
    cache = model.encode_prefix(observation)
    found["prefix_embs"] = prefix.embeddings
    for index, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        found[f"cache_key_{index}"] = keys.transpose(1, 2)
        found[f"cache_value_{index}"] = values.transpose(1, 2)
        found[f"prefix_layer_{index}_out"] = prefix_layers[index]
        found[f"suffix_layer_{index}_out"] = suffix_layers[index]

    # The record keeps places for absent views and padding, the model does not; the valid tokens are the same, in order.
    valid = record["prefix_pad_mask"]
    differences = {}
    for name, value in found.items():
        if name not in record:
            if name in REQUIRED:
                raise KeyError(name)
            continue
        expected = record[name]
        if name.startswith("cache_"):
            expected = expected.transpose(1, 2)
        if "prefix" in name or name.startswith("cache_"):
            value, expected = value[prefix.mask], expected[valid]
        differences[name] = _largest_difference(value, expected)
    return differences


def recorded_observation(record: dict[str, Tensor]) -> Observation:
    """The observation that a record's outputs answer."""
    return Observation(
        images={slot: record[f"image_{index}"] for index, slot in enumerate(POLICY_SLOTS)},
        image_masks={slot: record[f"image_mask_{index}"] for index, slot in enumerate(POLICY_SLOTS)},
        state=torch.zeros(len(record["tokens"]), 8),
        tokenized_prompt=record["tokens"],
        tokenized_prompt_mask=record["token_mask"],
    )


def _largest_difference(value: Tensor, expected: Tensor) -> float:
    """Infinite where the shapes differ or a value is not a number: that must not pass for a small difference."""
    if value.shape != expected.shape:
        return float("inf")
    return (value.double() - expected.double()).abs().max().nan_to_num(nan=float("inf")).item()


@contextmanager
def _outputs(layers: nn.ModuleList) -> Iterator[dict[int, Tensor]]:
    """The residual stream after each layer that runs inside of the block."""
    outputs: dict[int, Tensor] = {}

    def keep(index: int, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs[index] = output[0] if isinstance(output, tuple) else output

    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output, index=index: keep(index, output))
        for index, layer in enumerate(layers)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _is_bound(name: str) -> bool:
    return name in REQUIRED or name.startswith("sampled_actions")


def main(arguments: list[str] | None = None) -> int:
    """Prints the differences; the exit status is in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m ki_ros.model.reference", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="config.json, weights.safetensors and vectors.safetensors")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the differences there")
    options = parser.parse_args(arguments)
    try:
        differences = compare(options.directory)
    except (CheckpointError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    passed = all(value <= TOLERANCE for name, value in differences.items() if _is_bound(name))

    table = Table(title=f"Largest absolute difference from {options.directory}")
    table.add_column("quantity")
    table.add_column("difference", justify="right")
    table.add_column(f"limit {TOLERANCE:g}")
    for name in sorted(differences, key=lambda name: (name not in REQUIRED, not _is_bound(name))):
        verdict = ("ok" if differences[name] <= TOLERANCE else "[red]over[/red]") if _is_bound(name) else ""
        table.add_row(name, f"{differences[name]:.2e}", verdict)
    Console().print(table)
    if options.json:
        report = {
            "directory": str(options.directory),
            "tolerance": TOLERANCE,
            "passed": passed,
            "v_t_cache": differences["v_t_cache"],
            "v_t_joint": differences["v_t_joint"],
            "sampled_actions": differences["sampled_actions"],
            "differences": differences,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
