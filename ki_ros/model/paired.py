"""Backbone and expert side by side: layer n of one is paired with layer n of the other.

Shapes: B batch, P prefix tokens, F FAST tokens, T = P + F backbone tokens, S draws of noise, H action horizon,
L = S * H action tokens, W width of each part, K key/value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ki_ros.model.backbone import Backbone, BackboneLayer
from ki_ros.model.config import KIConfig
from ki_ros.model.expert import Expert, ExpertLayer
from ki_ros.model.layers import never_empty, rotary_embedding


@dataclass(frozen=True)
class PrefixCache:
    """All that the expert, or a later backbone token, needs of a prefix.

    Attributes:
        keys, values: per layer (B, K, P, D), keys rotated.
        mask: (B, P) bool, true at valid positions.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor


class Tokens(NamedTuple):
    """Tokens of one side on their way through the layers.

    Attributes:
        x: (B, length, W).
        rotation: of `rotary_embedding`, for their positions.
        mask: (B, length, keys) bool, or (B, 1, keys) for all alike; true = may attend, no row empty.
        condition: (B, S, W) or, a condition for each token, (B, L, W); the expert's alone.
    """

    x: Tensor
    rotation: Tensor
    mask: Tensor
    condition: Tensor | None = None


class KeysValues(NamedTuple):
    """Rotated keys and values of backbone tokens at one layer, (B, K, T, D) each."""

    keys: Tensor
    values: Tensor


class PairedLayer(nn.Module):
    """Layer n of the backbone and of the expert, which meet in one place: the backbone's keys and values.

    All computation of the two goes through this module's forward, in training and in inference, so it is the unit of
    sharding and of activation checkpointing. The two layers belong to their own stacks, under their own names; this
    module is not part of the model's tree and names no parameter.
    """

    def __init__(self, backbone: BackboneLayer, expert: ExpertLayer) -> None:
        super().__init__()
        self.backbone = backbone
        self.expert = expert
        self.activation_checkpointing = False

    def forward(
        self,
        backbone: Tokens | None,
        expert: Tokens | None,
        *,
        past: KeysValues | None = None,
        rows: Tensor | None = None,
        visible: int = 0,
        insulated: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, KeysValues | None]:
        """One layer of both sides, or of one.

        No backbone token sees the expert, so joint attention is the backbone's own, and then the expert's over both.
        The keys and values cross over in one place, which is where insulation cuts the gradient: expert queries read
        detached backbone keys and values (`Q_a sg(K_b)`, `P_ab sg(V_b)`, arXiv 2505.23705), while
        backbone-to-backbone attention keeps its gradient.

        Args:
            backbone: its tokens; None to run the expert on `past` alone.
            expert: its tokens, whose mask has `visible` + L columns; None to run the backbone alone.
            past: of earlier backbone tokens, which these continue, or which the expert reads.
            rows: see `BackboneLayer.forward`.
            visible: how many of the backbone's tokens the expert may see, from the first. It never reaches the rest,
                which are the FAST tokens.
            insulated: whether the gradient stops between expert queries and backbone keys and values.

        Returns:
            x of the backbone and of the expert after the layer, and keys and values of these backbone tokens; None for
            a side that did not run.
        """
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, backbone, expert, past, rows, visible, insulated, use_reentrant=False)
        return self._run(backbone, expert, past, rows, visible, insulated)

    def _run(
        self,
        backbone: Tokens | None,
        expert: Tokens | None,
        past: KeysValues | None,
        rows: Tensor | None,
        visible: int,
        insulated: bool,
    ) -> tuple[Tensor | None, Tensor | None, KeysValues | None]:
        x_backbone = x_expert = own = None
        if backbone is not None:
            x_backbone, keys, values = self.backbone(backbone.x, backbone.rotation, backbone.mask, rows, past)
            own = KeysValues(keys, values)
        if expert is not None:
            read = own if own is not None else past
            assert read is not None
            assert expert.condition is not None
            keys, values = read.keys[:, :, :visible], read.values[:, :, :visible]
            if insulated:
                keys, values = keys.detach(), values.detach()
            x_expert = self.expert(expert.x, expert.condition, expert.rotation, expert.mask, keys, values)
        return x_backbone, x_expert, own


class PairedTransformer(nn.Module):
    """Backbone and expert under openpi's names, run together or apart."""

    def __init__(self, config: KIConfig) -> None:
        super().__init__()
        self.paligemma = nn.ModuleDict({"model": Backbone(config)})
        self.gemma_expert = nn.ModuleDict({"model": Expert(config)})
        self.head_dim = config.language.head_dim
        # A tuple is no child of the tree: the parameters have their stacks' names and no others.
        self.pairs = tuple(
            PairedLayer(backbone, expert)
            for backbone, expert in zip(self.backbone.language_model.layers, self.expert.layers, strict=True)
        )

    @property
    def backbone(self) -> Backbone:
        """Vision and language."""
        return self.paligemma["model"]

    @property
    def expert(self) -> Expert:
        """Actions."""
        return self.gemma_expert["model"]

    def encode_prefix(self, embeddings: Tensor, mask: Tensor) -> PrefixCache:
        """Keys and values of a bidirectional prefix: embeddings (B, P, W), mask (B, P) bool of valid positions.

        The last layer is computed only as far as its keys and values; nothing reads its output.
        """
        nothing = torch.empty(len(mask), 0, dtype=torch.int64, device=mask.device)
        return self.encode_rows(embeddings, mask, nothing)[1]

    def encode_rows(self, embeddings: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, PrefixCache]:
        """As `encode_prefix`, and the backbone's normed output (B, R, W) at the tokens `rows` (B, R)."""
        x = Tokens(embeddings, rotary_embedding(positions(mask), self.head_dim), never_empty(mask[:, None, :]))
        return self._run_backbone(x, mask, rows, past=None)

    def continue_rows(self, cache: PrefixCache, embeddings: Tensor) -> tuple[Tensor, PrefixCache]:
        """One further, valid token per row after those of a cache: embeddings (B, 1, W).

        Returns:
            the backbone's normed output (B, 1, W) there, and the cache with that token.
        """
        batch = len(cache.mask)
        mask = torch.cat((cache.mask, cache.mask.new_ones(batch, 1)), dim=1)
        rotation = rotary_embedding(next_positions(cache.mask, 1), self.head_dim)
        rows = torch.zeros(batch, 1, dtype=torch.int64, device=mask.device)
        return self._run_backbone(Tokens(embeddings, rotation, mask[:, None, :]), mask, rows, past=cache)

    def run_expert(self, cache: PrefixCache, suffix: Tensor, condition: Tensor) -> Tensor:
        """The expert on top of a cached prefix: suffix (B, H, W), condition (B, 1 or H, W) -> (B, H, W), normed."""
        batch, length = suffix.shape[:2]
        rotation = rotary_embedding(next_positions(cache.mask, length), self.head_dim)
        mask = torch.cat((cache.mask, cache.mask.new_ones(batch, length)), dim=1)[:, None, :]
        visible = cache.mask.shape[1]
        for pair, keys, values in zip(self.pairs, cache.keys, cache.values, strict=True):
            tokens = Tokens(suffix, rotation, mask, condition)
            _, suffix, _ = pair(None, tokens, past=KeysValues(keys, values), visible=visible)
        return self.expert.norm(suffix, condition)[0]

    def joint(
        self,
        prefix: Tensor,
        prefix_mask: Tensor,
        fast: Tensor,
        fast_mask: Tensor,
        suffix: Tensor,
        condition: Tensor,
        *,
        draws: int,
        rows: Tensor | None,
        insulated: bool,
    ) -> tuple[Tensor, Tensor]:
        """Backbone and expert in one pass, as in training.

        The prefix sees itself; FAST tokens see the prefix and are causal; the actions of a draw see the prefix and
        themselves, and take the positions that follow the prefix, as they do in inference, where no FAST token is.

        Args:
            prefix, prefix_mask: (B, P, backbone W) and (B, P) bool.
            fast, fast_mask: (B, F, backbone W) and (B, F) bool; F may be 0. Padding is on the right.
            suffix: (B, S * H, expert W), the draws one after the other.
            condition: (B, S, expert W), or (B, S * H, expert W) where each action has its own.
            draws: S.
            rows: (B, R) int64, the backbone tokens whose output is needed; None for all.
            insulated: see `PairedLayer.forward`.

        Returns:
            backbone (B, R or P + F, W) and suffix (B, S * H, W) after all layers and their last norms. The former is
            meaningless at padded positions.
        """
        visible = prefix_mask.shape[1]
        horizon = suffix.shape[1] // draws
        backbone = self._backbone_tokens(prefix, prefix_mask, fast, fast_mask)
        expert = Tokens(
            suffix,
            rotary_embedding(next_positions(prefix_mask, horizon).repeat(1, draws), self.head_dim),
            expert_mask(prefix_mask, horizon, draws),
            condition,
        )
        x_backbone, x_expert = backbone.x, expert.x
        for index, pair in enumerate(self.pairs):
            x_backbone, x_expert, _ = pair(
                backbone._replace(x=x_backbone),
                expert._replace(x=x_expert),
                rows=rows if index == len(self.pairs) - 1 else None,
                visible=visible,
                insulated=insulated,
            )
        return self.backbone.language_model.norm(x_backbone), self.expert.norm(x_expert, condition)[0]

    def backbone_rows(
        self, prefix: Tensor, prefix_mask: Tensor, fast: Tensor, fast_mask: Tensor, rows: Tensor
    ) -> Tensor:
        """The backbone's part of `joint` alone, for data without actions: its normed output (B, R, W)."""
        tokens = self._backbone_tokens(prefix, prefix_mask, fast, fast_mask)
        return self._run_backbone(tokens, torch.cat((prefix_mask, fast_mask), dim=1), rows, past=None)[0]

    def _backbone_tokens(self, prefix: Tensor, prefix_mask: Tensor, fast: Tensor, fast_mask: Tensor) -> Tokens:
        """Prefix and FAST tokens, which follow it in position and see it causally; arguments as in `joint`."""
        position = torch.cat((positions(prefix_mask), next_positions(prefix_mask, fast.shape[1])), dim=1)
        return Tokens(
            torch.cat((prefix, fast), dim=1),
            rotary_embedding(position, self.head_dim),
            never_empty(backbone_mask(prefix_mask, fast_mask)),
        )

    def _run_backbone(
        self, tokens: Tokens, mask: Tensor, rows: Tensor, past: PrefixCache | None
    ) -> tuple[Tensor, PrefixCache]:
        """The backbone alone; `mask` (B, all tokens) is that of the cache to return."""
        keys, values = [], []
        x = tokens.x
        for index, pair in enumerate(self.pairs):
            last = index == len(self.pairs) - 1
            earlier = None if past is None else KeysValues(past.keys[index], past.values[index])
            x, _, own = pair(tokens._replace(x=x), None, past=earlier, rows=rows if last else None)
            keys.append(own.keys if earlier is None else torch.cat((earlier.keys, own.keys), dim=2))
            values.append(own.values if earlier is None else torch.cat((earlier.values, own.values), dim=2))
        return self.backbone.language_model.norm(x), PrefixCache(tuple(keys), tuple(values), mask)


def positions(mask: Tensor) -> Tensor:
    """Position of each token, (B, P) int64: the number of valid tokens before it. Padding takes no number."""
    return mask.long().cumsum(dim=1) - 1


def next_positions(mask: Tensor, length: int) -> Tensor:
    """Positions (B, length) int64 of the tokens that follow a prefix with this mask (B, P)."""
    return mask.long().sum(dim=1, keepdim=True) + torch.arange(length, device=mask.device)


def backbone_mask(prefix_mask: Tensor, fast_mask: Tensor) -> Tensor:
    """Attention mask (B, P + F, P + F): a bidirectional prefix, which is all that it sees; causal tokens after it."""
    batch, prefix, fast = len(prefix_mask), prefix_mask.shape[1], fast_mask.shape[1]
    causal = torch.ones(prefix + fast, fast, dtype=torch.bool, device=prefix_mask.device).tril(-prefix)
    seen = torch.cat((prefix_mask, fast_mask), dim=1)[:, None, :].expand(batch, prefix + fast, -1)
    return torch.cat((seen[:, :, :prefix], seen[:, :, prefix:] & causal), dim=2)


def expert_mask(prefix_mask: Tensor, horizon: int, draws: int) -> Tensor:
    """Attention mask (B, S * H, P + S * H): the actions of each draw see the prefix and themselves.

    (B, 1, P + H) of one draw, whose actions all see the same.
    """
    batch = len(prefix_mask)
    if draws == 1:
        return torch.cat((prefix_mask, prefix_mask.new_ones(batch, horizon)), dim=1)[:, None, :]
    draw = torch.arange(draws, device=prefix_mask.device).repeat_interleave(horizon)
    own = (draw[:, None] == draw[None, :]).expand(batch, -1, -1)
    return torch.cat((prefix_mask[:, None, :].expand(-1, draws * horizon, -1), own), dim=2)
