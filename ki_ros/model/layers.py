"""The blocks that backbone and expert are made of.

Shapes: B batch, L queries, S keys, W width, N heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_ros.model.config import LanguageConfig

NORM_EPS = 1e-6
ROPE_THETA = 1e4


def _rms_normalize(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, in float32 whatever the dtype of x."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Context in which layers compute in the dtype of their weights, whatever autocast is around them.

    For the few small layers whose rounding would be felt: those of times, actions and modulation. Inference has no
    autocast, and enters a hundred of these contexts for each chunk, so there it is one that costs nothing.
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class RMSNorm(nn.Module):
    """Gemma's norm: `x / rms(x) * (1 + weight)`, so that a weight of zero is a gain of one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W) of the same dtype."""
        return (_rms_normalize(x) * (1 + self.weight.float())).to(x.dtype)


class AdaptiveRMSNorm(nn.Module):
    """RMSNorm whose scale, shift and residual gate come from a condition (adaRMS).

    `dense` starts at zero: a plain norm of gain one with a closed gate, so each block begins as the identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, W) and condition (B, S, W) -> the modulated x and its gate (B, 1 or L, W), in the dtype of x.

        The L tokens are S blocks of equal length, each of which has a condition of its own.
        """
        with full_precision(x):
            modulation = self.dense(condition.to(self.dense.weight.dtype)).float()
        if modulation.shape[1] > 1:
            modulation = modulation.repeat_interleave(x.shape[1] // modulation.shape[1], dim=1)
        scale, shift, gate = modulation.chunk(3, dim=-1)
        return (_rms_normalize(x) * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


class GatedMLP(nn.Module):
    """`down(gelu_tanh(gate(x)) * up(x))`, without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class AttentionProjections(nn.Module):
    """Projections of a width into the head space that backbone and expert share, and back; without biases."""

    def __init__(self, width: int, heads: LanguageConfig) -> None:
        super().__init__()
        self.head_dim = heads.head_dim
        self.q_proj = nn.Linear(width, heads.heads * heads.head_dim, bias=False)
        self.k_proj = nn.Linear(width, heads.kv_heads * heads.head_dim, bias=False)
        self.v_proj = nn.Linear(width, heads.kv_heads * heads.head_dim, bias=False)
        self.o_proj = nn.Linear(heads.heads * heads.head_dim, width, bias=False)

    def queries(self, x: Tensor, rotation: Tensor) -> Tensor:
        """(B, L, W) -> rotated queries (B, N, L, H)."""
        return rotate(self._split(self.q_proj(x)), rotation)

    def keys_values(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, W) -> rotated keys and values, (B, K, L, H) each."""
        return rotate(self._split(self.k_proj(x)), rotation), self._split(self.v_proj(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def rotary_embedding(positions: Tensor, head_dim: int) -> Tensor:
    """Rotations of rotary embedding: positions (B, L) int64 -> (2, B, 1, L, H/2) float32, cosines then sines.

    Frequencies are `theta^(-2i/H)` with theta 1e4 (Su et al., arXiv 2104.09864).
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions[:, None, :, None].float() * (1.0 / ROPE_THETA**exponent)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary embedding of x (B, heads, L, H), first half of H paired with the second; the dtype of x stays."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """The tokens `rows` (B, R) int64 of x (B, T, W), or of a rotation (2, B, 1, T, W), in their order."""
    if x.dim() == 5:
        return x.gather(3, rows[None, :, None, :, None].expand(x.shape[0], -1, 1, -1, x.shape[-1]))
    return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[-1]))


def never_empty(mask: Tensor) -> Tensor:
    """An attention mask (..., L, S) in which a query that may see nothing sees everything.

    Softmax over no keys is not a number. Only padding may have such a row, and nothing reads what padding becomes.
    """
    return mask | ~mask.any(-1, keepdim=True)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention with grouped key/value heads.

    Args:
        queries: (B, N, L, H).
        keys, values: (B, K, S, H), K dividing N; query head n reads key/value head n // (N / K).
        mask: (B, L, S) bool, true = may attend, or (B, 1, S) for all queries alike; each row has at least one
            (`never_empty`).

    Returns:
        (B, L, N * H) in the dtype of the queries. The softmax is taken in float32 or better.
    """
    batch, heads, length, head_dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # The queries of one group read the same keys: as further rows of one product, keys and values are never repeated.
    folded = queries.reshape(batch, kv_heads, group * length, head_dim)
    folded_mask = mask[:, None] if mask.shape[1] == 1 else mask[:, None].repeat(1, 1, group, 1)
    out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=folded_mask, scale=head_dim**-0.5)
    return out.reshape(batch, heads, length, head_dim).transpose(1, 2).flatten(2)
