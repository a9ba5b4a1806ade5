"""Sampling as openpi's PyTorch policy does it, on this project's weights: the other side of `inference.py`.

What it does that the engines do not: three views, the masked one too, one after another; a prompt of 200 tokens,
padding and all; a dense mask that is added to the scores of an attention in plain products, keys and values repeated
for every head; all of the last layer; time and modulation anew at each step; keys and values of the prefix copied at
each step and layer. The results are the same, for what is masked changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ki_ros.model.flow import integrate
from ki_ros.model.layers import rotary_embedding
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation, pixel_values
from ki_ros.model.paired import next_positions, positions
from ki_ros.rig import POLICY_SLOTS

MASKED = -2.3819763e38
"""What is added to the score of a key that may not be seen."""


class OpenpiLike:
    """See the module's docstring; the interface is that of the engines."""

    name = "openpi_like"

    def __init__(self, model: KIModel, num_steps: int) -> None:
        self.model, self.num_steps = model, num_steps
        self._pair = model.paligemma_with_expert

    @torch.no_grad()
    def sample(self, observation: Observation, noise: Tensor) -> Tensor:
        """Actions (1, H, D)."""
        prefix, mask = self.embed(observation)
        keys_values = self.prefill(prefix, mask)
        return self.integrate(keys_values, mask, noise)

    def encode_views(self, observation: Observation) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens and mask of each of the three slots; one that is absent is black."""
        features, masks = [], []
        for image, present in three_views(observation):
            feature = self._pair.backbone.embed_images(image)
            features.append(feature)
            masks.append(torch.full(feature.shape[:2], present, dtype=torch.bool, device=feature.device))
        return features, masks

    def embed(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Tokens of the views and of all of the prompt, and which of them count."""
        features, masks = self.encode_views(observation)
        return self.join(features, masks, observation)

    def join(self, features: list[Tensor], masks: list[Tensor], observation: Observation) -> tuple[Tensor, Tensor]:
        """As `embed`, from encoded views."""
        words = self._pair.backbone.language_model.embed(observation.tokenized_prompt).to(features[0].dtype)
        return torch.cat((*features, words), 1), torch.cat((*masks, observation.tokenized_prompt_mask), 1)

    def prefill(self, x: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer."""
        rotation = rotary_embedding(positions(mask), self._pair.head_dim)
        bias = _bias(mask[:, None, :] & mask[:, :, None])
        cache = []
        for layer in self._pair.backbone.language_model.layers:
            normed = layer.input_layernorm(x)
            keys, values = layer.self_attn.keys_values(normed, rotation)
            cache.append((keys, values))
            attended = _attend(layer.self_attn.queries(normed, rotation), keys, values, bias)
            x = x + layer.self_attn.o_proj(attended)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self._pair.backbone.language_model.norm(x)
        return cache

    def integrate(self, cache: list[tuple[Tensor, Tensor]], mask: Tensor, noise: Tensor) -> Tensor:
        """Actions from noise."""

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            return self._velocity(cache, mask, x, time)

        return integrate(velocity, noise, self.num_steps)

    def _velocity(self, cache: list[tuple[Tensor, Tensor]], mask: Tensor, x: Tensor, time: Tensor) -> Tensor:
        model, length = self.model, x.shape[1]
        hidden = model.action_in_proj(x).to(self._pair.expert.dtype)
        condition = model.condition(time)[:, None]
        rotation = rotary_embedding(next_positions(mask, length), self._pair.head_dim)
        seen = torch.cat((mask, mask.new_ones(1, length)), 1)[:, None, :].expand(1, length, -1)
        bias = _bias(seen)
        for layer, (past_keys, past_values) in zip(self._pair.expert.layers, cache, strict=True):
            normed, gate = layer.input_layernorm(hidden, condition)
            keys, values = layer.self_attn.keys_values(normed, rotation)
            keys, values = torch.cat((past_keys, keys), 2), torch.cat((past_values, values), 2)
            attended = _attend(layer.self_attn.queries(normed, rotation), keys, values, bias)
            hidden = hidden + layer.self_attn.o_proj(attended) * gate
            normed, gate = layer.post_attention_layernorm(hidden, condition)
            hidden = hidden + layer.mlp(normed) * gate
        hidden = self._pair.expert.norm(hidden, condition)[0]
        return model.action_out_proj(hidden.to(model.action_out_proj.weight.dtype)).float()


def three_views(observation: Observation) -> list[tuple[Tensor, bool]]:
    """Of each slot its view (B, 3, S, S) in [-1, 1], and whether there is one; black where not, a tensor for each."""
    images = {slot: pixel_values(image) for slot, image in observation.images.items()}
    some = next(iter(images.values()))
    return [(images[slot] if slot in images else -torch.ones_like(some), slot in images) for slot in POLICY_SLOTS]


def _bias(seen: Tensor) -> Tensor:
    """(1, L, S) bool -> (1, 1, L, S) float32."""
    return torch.where(seen, 0.0, MASKED)[:, None]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Queries (1, N, L, H), keys and values (1, K, S, H) -> (1, L, N * H)."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5 + bias
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(queries.dtype)
    return (weights @ values).transpose(1, 2).flatten(2)
