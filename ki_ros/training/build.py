"""The model of a run: its configuration, its weights, and what of it is trained."""

from __future__ import annotations

import torch

from ki_ros.model.checkpoint import load_checkpoint, resolve_config
from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel
from ki_ros.training.config import ModelSource, TrainConfig, model_config
from ki_ros.training.lora import add_adapters, part_prefix


def resolve_model(config: TrainConfig) -> KIConfig:
    """The model's configuration.

    Raises:
        ConfigError, CheckpointError: a preset, checkpoint or field that is not there or wrong.
    """
    return model_config(config.model, unchanged_model(config.model))


def unchanged_model(source: ModelSource) -> KIConfig:
    """The configuration of the checkpoint or the preset, without the source's changes. Raises as `resolve_model`."""
    base = KIConfig.from_preset(source.preset) if source.preset is not None else None
    if source.init is not None:
        base, _ = resolve_config(source.init, base)
    assert base is not None
    return base


def build_model(config: TrainConfig, model_config: KIConfig, device: torch.device) -> KIModel:
    """The model in float32 on a device, with what is not trained frozen.

    Without `model.init` its weights depend on the seed alone. Adapters, too.

    Raises:
        CheckpointError: weights that do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.model.init is None:
            model = KIModel(model_config)
        else:
            model = load_checkpoint(config.model.init, model_config)
            # Weights that are mapped from a file must not be written to.
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        set_trained(model, config)
    model.to(device).train()
    if config.activation_checkpointing:
        model.enable_activation_checkpointing()
    return model


def set_trained(model: KIModel, config: TrainConfig) -> None:
    """Freezes the parts that are not trained, and puts in adapters. What belongs to no part is always trained."""
    frozen = tuple(part_prefix(part) for part in config.freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    if config.lora is not None:
        add_adapters(model, config.lora)
