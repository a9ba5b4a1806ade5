"""The vision-language backbone: SigLIP and Gemma. Shapes: B batch, T tokens, W width, K key/value heads, H head dim."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_ros.model.config import KIConfig, LanguageConfig
from ki_ros.model.layers import AttentionProjections, GatedMLP, RMSNorm, attend, take_rows
from ki_ros.model.observation import pixel_values
from ki_ros.model.vision import Projector, VisionTower


class BackboneLayer(nn.Module):
    """One Gemma layer. It hands out its keys and values, which the paired expert layer reads.

    It is given nothing of the expert: no backbone token can depend on an action.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.self_attn = AttentionProjections(config.width, config)
        self.mlp = GatedMLP(config.width, config.mlp)
        self.input_layernorm = RMSNorm(config.width)
        self.post_attention_layernorm = RMSNorm(config.width)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor,
        rows: Tensor | None = None,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer.

        Args:
            x: (B, T, W).
            rotation: of `rotary_embedding`, for the T positions.
            mask: (B, T, S) bool, or (B, 1, S) for all alike; no row empty. S counts the past's tokens, then these.
            rows: (B, R) int64, the tokens whose output is needed; None for all. The last layer needs few, or none
                (R = 0): the expert and later tokens read only its keys and values.
            past: keys and values of earlier tokens, (B, K, S - T, H) each.

        Returns:
            x after the layer, (B, T, W) or (B, R, W); rotated keys and values of these T tokens, (B, K, T, H) each.
        """
        normed = self.input_layernorm(x)
        keys, values = self.self_attn.keys_values(normed, rotation)
        if rows is not None:
            if rows.shape[1] == 0:
                return x[:, :0], keys, values
            x, normed, rotation = take_rows(x, rows), take_rows(normed, rows), take_rows(rotation, rows)
            mask = mask if mask.shape[1] == 1 else take_rows(mask, rows)
        all_keys, all_values = keys, values
        if past is not None:
            all_keys, all_values = torch.cat((past[0], keys), dim=2), torch.cat((past[1], values), dim=2)
        attended = attend(self.self_attn.queries(normed, rotation), all_keys, all_values, mask)
        x = x + self.self_attn.o_proj(attended)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, keys, values


class LanguageModel(nn.Module):
    """Gemma's embedding, layers and last norm. The output head is the embedding, transposed: there is no second one."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(BackboneLayer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.embedding_scale = config.width**0.5

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, W), times sqrt(W) as Gemma has it."""
        return self.embed_tokens(tokens) * self.embedding_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., W) after `norm` -> (..., vocabulary) float32."""
        return F.linear(hidden.to(self.embed_tokens.weight.dtype), self.embed_tokens.weight).float()


class Backbone(nn.Module):
    """SigLIP, its projection and the language model, under the names of PaliGemma."""

    def __init__(self, config: KIConfig) -> None:
        super().__init__()
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = Projector(config.vision.width, config.language.width)
        self.language_model = LanguageModel(config.language)

    def embed_images(self, images: Tensor) -> Tensor:
        """(V, 3, S, S), see `Observation` -> (V, P, W)."""
        images = pixel_values(images).to(self.multi_modal_projector.linear.weight.dtype)
        return self.multi_modal_projector(self.vision_tower(images))
