"""Models for tests."""

from __future__ import annotations

import torch

from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel


def make_model(config: KIConfig, seed: int = 0) -> KIModel:
    """A model with random weights everywhere: adaRMS, which starts at zero, would hide the expert's layers."""
    torch.manual_seed(seed)
    model = KIModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model
