"""What a layer is made of, for one observation: no batch, rows of tokens.

Shapes: L rows, S keys, W width, N heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ki_ros.model.engine.product import Product
from ki_ros.model.layers import NORM_EPS, rotary_embedding


def rms_normalize(x: Tensor, gain: Tensor | None = None) -> Tensor:
    """x / rms(x) over the last dimension, times a gain (W,) float32; float32."""
    return F.rms_norm(x.float(), x.shape[-1:], gain, NORM_EPS)


def rotary_table(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embedding for positions (L,), (L, 1, H) float32 each.

    The sines carry the sign that `rotate` needs: minus in the first half.
    """
    cos, sin = rotary_embedding(positions[None], head_dim)[:, 0, 0]
    return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (L, heads, H), first half paired with the second; the dtype of x stays."""
    half = x.shape[-1] // 2
    wide = x.float()
    swapped = torch.cat((wide[..., half:], wide[..., :half]), dim=-1)
    return torch.addcmul(wide * cos, swapped, sin).to(x.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries (L, N, H) to keys and values (S, K, H), all queries alike: (L, N * H).

    `mask` is (S,) bool, true = may be seen; None for all.
    """
    length, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # As every query sees the same, those that share keys are rows of one product, in any order.
    rows = queries.view(length, kv_heads, group, head_dim).transpose(0, 1).reshape(1, kv_heads, -1, head_dim)
    seen = None if mask is None else mask[None, None, None, :]
    out = F.scaled_dot_product_attention(
        rows, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], attn_mask=seen, scale=head_dim**-0.5
    )
    return out.view(kv_heads, length, group, head_dim).transpose(0, 1).reshape(length, -1)


def gated_mlp(x: Tensor, gate_up: Product, down: Product) -> Tensor:
    """`down(gelu_tanh(gate(x)) * up(x))` of x (L, W); gate and up are one matrix."""
    gate, up = gate_up(x).chunk(2, dim=-1)
    return down(F.gelu(gate, approximate="tanh") * up)
