"""Backbone and expert side by side: layer n of one is paired with layer n of the other.

Shapes: B batch, T backbone tokens, L action tokens, W width of each part, K key/value heads, H head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ki_ros.model.backbone import Backbone, BackboneLayer
from ki_ros.model.config import KIConfig
from ki_ros.model.expert import Expert, ExpertLayer
from ki_ros.model.layers import never_empty, rotary_embedding


@dataclass(frozen=True)
class PrefixCache:
    """All that the expert needs of a prefix.

    Attributes:
        keys, values: per layer (B, K, T, H), keys rotated.
        mask: (B, T) bool, true at valid positions.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor


class PairedLayer(NamedTuple):
    """Layer n of the backbone and of the expert. Not a module: both belong to their own stacks, under their own names.

    Sharding puts the two into one group (`fully_shard([pair.backbone, pair.expert])`).
    """

    backbone: BackboneLayer
    expert: ExpertLayer

    def joint(
        self,
        prefix: Tensor,
        suffix: Tensor,
        condition: Tensor,
        prefix_rotation: Tensor,
        suffix_rotation: Tensor,
        mask: Tensor,
        *,
        insulated: bool,
    ) -> tuple[Tensor, Tensor]:
        """Both halves under one attention mask.

        No backbone token sees the expert, so joint attention is the backbone's own, and then the expert's over both.
        The keys and values cross over in one place, which is where insulation cuts the gradient: expert queries read
        detached backbone keys and values, while backbone-to-backbone attention keeps its gradient.

        Args:
            prefix: (B, T, backbone W).
            suffix: (B, L, expert W).
            condition: (B, expert W).
            prefix_rotation, suffix_rotation: of `rotary_embedding`.
            mask: (B, T + L, T + L) bool, true = may attend, no row empty. Its block of backbone queries and expert keys
                is not read.
            insulated: whether the gradient stops between expert queries and backbone keys and values.

        Returns:
            prefix and suffix after the layer.
        """
        length = prefix.shape[1]
        prefix, keys, values = self.backbone(prefix, prefix_rotation, mask[:, :length, :length])
        if insulated:
            keys, values = keys.detach(), values.detach()
        suffix = self.expert(suffix, condition, suffix_rotation, mask[:, length:], keys, values)
        return prefix, suffix


class PairedTransformer(nn.Module):
    """Backbone and expert under openpi's names, run together or apart."""

    def __init__(self, config: KIConfig) -> None:
        super().__init__()
        self.paligemma = nn.ModuleDict({"model": Backbone(config)})
        self.gemma_expert = nn.ModuleDict({"model": Expert(config)})
        self.head_dim = config.language.head_dim

    @property
    def backbone(self) -> Backbone:
        """Vision and language."""
        return self.paligemma["model"]

    @property
    def expert(self) -> Expert:
        """Actions."""
        return self.gemma_expert["model"]

    @property
    def pairs(self) -> list[PairedLayer]:
        """The layers, paired."""
        layers = zip(self.backbone.language_model.layers, self.expert.layers, strict=True)
        return [PairedLayer(backbone, expert) for backbone, expert in layers]

    def encode_prefix(self, embeddings: Tensor, mask: Tensor) -> PrefixCache:
        """Keys and values of a bidirectional prefix: embeddings (B, T, W), mask (B, T) bool of valid positions.

        The last layer is computed only as far as its keys and values; nothing reads its output.
        """
        rotation = rotary_embedding(positions(mask), self.head_dim)
        attention = never_empty(mask[:, None, :])
        layers = self.backbone.language_model.layers
        keys, values = [], []
        x = embeddings
        for index, layer in enumerate(layers):
            x, key, value = layer(x, rotation, attention, keys_values_only=index == len(layers) - 1)
            keys.append(key)
            values.append(value)
        return PrefixCache(tuple(keys), tuple(values), mask)

    def run_expert(self, cache: PrefixCache, suffix: Tensor, condition: Tensor) -> Tensor:
        """The expert on top of a cached prefix: suffix (B, L, W), condition (B, W) -> (B, L, W), normed."""
        batch, length = suffix.shape[:2]
        rotation = rotary_embedding(suffix_positions(cache.mask, length), self.head_dim)
        mask = torch.cat((cache.mask, cache.mask.new_ones(batch, length)), dim=1)[:, None, :]
        for layer, keys, values in zip(self.expert.layers, cache.keys, cache.values, strict=True):
            suffix = layer(suffix, condition, rotation, mask, keys, values)
        return self.expert.norm(suffix, condition)[0]

    def joint(
        self, prefix: Tensor, suffix: Tensor, condition: Tensor, mask: Tensor, position: Tensor, *, insulated: bool
    ) -> tuple[Tensor, Tensor]:
        """Backbone and expert in one pass under a general mask, as training needs it.

        Args:
            prefix: (B, T, backbone W).
            suffix: (B, L, expert W).
            condition: (B, expert W).
            mask: (B, T + L, T + L) bool, true = may attend; see `PairedLayer.joint`.
            position: (B, T + L) int64.
            insulated: see `PairedLayer.joint`.

        Returns:
            prefix and suffix after all layers and their last norms. The prefix is meaningless at padded positions.
        """
        length = prefix.shape[1]
        mask = never_empty(mask)
        prefix_rotation = rotary_embedding(position[:, :length], self.head_dim)
        suffix_rotation = rotary_embedding(position[:, length:], self.head_dim)
        for pair in self.pairs:
            prefix, suffix = pair.joint(
                prefix, suffix, condition, prefix_rotation, suffix_rotation, mask, insulated=insulated
            )
        return self.backbone.language_model.norm(prefix), self.expert.norm(suffix, condition)[0]


def positions(mask: Tensor) -> Tensor:
    """Position of each token, (B, T) int64: the number of valid tokens before it. Padding takes no number."""
    return mask.long().cumsum(dim=1) - 1


def suffix_positions(mask: Tensor, length: int) -> Tensor:
    """Positions (B, L) int64 of the tokens that follow a prefix with this mask (B, T)."""
    return mask.long().sum(dim=1, keepdim=True) + torch.arange(length, device=mask.device)


def joint_mask(prefix_mask: Tensor, length: int) -> Tensor:
    """Attention mask (B, T + L, T + L) of inference: a bidirectional prefix, and actions that see it and themselves."""
    batch, prefix_length = prefix_mask.shape
    valid = torch.cat((prefix_mask, prefix_mask.new_ones(batch, length)), dim=1)
    block = torch.ones(prefix_length + length, prefix_length + length, dtype=torch.bool, device=prefix_mask.device)
    block[:prefix_length, prefix_length:] = False
    return block & valid[:, None, :] & valid[:, :, None]
