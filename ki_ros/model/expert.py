"""The action expert.

Shapes: B batch, L action tokens, T backbone tokens, W expert width, K key/value heads, H head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ki_ros.model.config import KIConfig
from ki_ros.model.layers import AdaptiveRMSNorm, AttentionProjections, GatedMLP, attend


class ExpertLayer(nn.Module):
    """A Gemma layer of its own width that also attends to the keys and values of the paired backbone layer."""

    def __init__(self, config: KIConfig) -> None:
        super().__init__()
        width = config.expert.width
        self.self_attn = AttentionProjections(width, config.language)
        self.mlp = GatedMLP(width, config.expert.mlp)
        self.input_layernorm = AdaptiveRMSNorm(width)
        self.post_attention_layernorm = AdaptiveRMSNorm(width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        rotation: Tensor,
        mask: Tensor,
        backbone_keys: Tensor,
        backbone_values: Tensor,
    ) -> Tensor:
        """One layer.

        Args:
            x: (B, L, W).
            condition: (B, S, W), from the times of S draws whose tokens follow one another, or (B, L, W).
            rotation: of `rotary_embedding`, for the L positions.
            mask: (B, L, T + L) bool, or (B, 1, T + L) for all alike; no row empty. The backbone's tokens come first.
            backbone_keys, backbone_values: (B, K, T, H). Whether they carry a gradient is the caller's choice.

        Returns:
            (B, L, W).
        """
        normed, gate = self.input_layernorm(x, condition)
        keys, values = self.self_attn.keys_values(normed, rotation)
        attended = attend(
            self.self_attn.queries(normed, rotation),
            torch.cat((backbone_keys, keys), dim=2),
            torch.cat((backbone_values, values), dim=2),
            mask,
        )
        x = x + self.self_attn.o_proj(attended) * gate
        normed, gate = self.post_attention_layernorm(x, condition)
        return x + self.mlp(normed) * gate


class Expert(nn.Module):
    """The expert's layers and last norm. It has no embedding and no vocabulary head: actions come in and go out."""

    def __init__(self, config: KIConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ExpertLayer(config) for _ in range(config.language.depth))
        self.norm = AdaptiveRMSNorm(config.expert.width)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the layers compute."""
        return self.layers[0].self_attn.q_proj.weight.dtype
