"""Weights to start training from."""

from __future__ import annotations

import torch
from torch import nn

from ki_ros.model.layers import AdaptiveRMSNorm, RMSNorm


@torch.no_grad()
def initialize(model: nn.Module, *, untouched: nn.Module) -> None:
    """Initialises all modules but those of `untouched`, such as SigLIP, which keeps what transformers gave it.

    Linear layers are normal with variance 1 / fan-in, the embedding has variance 1 / width (it is multiplied by
    sqrt(width)), norms have gain one, and adaRMS starts at zero.
    """
    ours = set(model.modules()) - set(untouched.modules())
    adaptive = {module.dense for module in ours if isinstance(module, AdaptiveRMSNorm)}
    for module in model.modules():
        if module not in ours:
            continue
        if isinstance(module, nn.Linear):
            if module in adaptive:
                nn.init.zeros_(module.weight)
            else:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, RMSNorm):
            nn.init.zeros_(module.weight)
