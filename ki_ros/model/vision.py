"""SigLIP from transformers and its projection into the backbone. V views, S image side, P tokens of a view."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from ki_ros.model.config import VisionConfig

LAYER_NORM_EPS = 1e-6


class VisionTower(nn.Module):
    """SigLIP without its pooling head, GELU in its tanh form, layer-norm eps 1e-6."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        model = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act="gelu_pytorch_tanh",
                layer_norm_eps=LAYER_NORM_EPS,
                attention_dropout=0.0,
                vision_use_head=False,
            )
        )
        # Version 4 of transformers wraps the encoder in a module of this name, version 5 does not; the parameters are
        # named `vision_model.*` either way.
        self.vision_model = getattr(model, "vision_model", model)

    def forward(self, images: Tensor) -> Tensor:
        """(V, 3, S, S) in [-1, 1] -> (V, P, vision width), after the last layer norm."""
        return self.vision_model(pixel_values=images).last_hidden_state

    def enable_checkpointing(self) -> None:
        """Recomputes each layer in the backward pass, while the module is in training mode."""
        # Version 5 of transformers renamed it.
        enable = getattr(self.vision_model, "activation_checkpointing_enable", None)
        if enable is None:
            enable = self.vision_model.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def materialize_buffers(self, device: torch.device | str) -> None:
        """Gives the position indices, which no checkpoint holds, their values on a device."""
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name != "position_ids":
                    raise RuntimeError(f"SigLIP of this transformers version has an unknown buffer {name!r}")
                index = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
                module.register_buffer(name, index, persistent=False)


class Projector(nn.Module):
    """Linear map of image tokens into the backbone's width; its output is not scaled."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., vision width) -> (..., W)."""
        return self.linear(x)
