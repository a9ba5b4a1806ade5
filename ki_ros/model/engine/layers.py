"""The three kinds of layers, for one observation, on packed weights.

Shapes: V views, P tokens of a view, T prefix tokens, L rows, S keys, W width, K key/value heads, H head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ki_ros.model.engine.ops import attend, gated_mlp, rms_normalize, rotate
from ki_ros.model.engine.packed import LayerWeights, VisionWeights
from ki_ros.model.engine.product import Product
from ki_ros.model.vision import LAYER_NORM_EPS


def vision_layer(x: Tensor, weights: VisionWeights, heads: int) -> Tensor:
    """A layer of SigLIP: x (V, P, W) -> (V, P, W)."""
    width = (x.shape[-1],)
    qkv = weights.qkv(F.layer_norm(x, width, *weights.norm1, LAYER_NORM_EPS))
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + weights.out(attended)
    hidden = F.gelu(weights.up(F.layer_norm(x, width, *weights.norm2, LAYER_NORM_EPS)), approximate="tanh")
    return x + weights.down(hidden)


def backbone_layer(
    x: Tensor, weights: LayerWeights, rotary: tuple[Tensor, Tensor], mask: Tensor | None, keys: Tensor, values: Tensor
) -> Tensor:
    """A layer of the backbone: x (T, W) -> (T, W). Writes its keys and values (T, K, H)."""
    assert weights.gains is not None
    normed = rms_normalize(x, weights.gains[0]).to(x.dtype)
    x = x + weights.out(attend(*_project(normed, weights.qkv, rotary, keys, values), mask))
    normed = rms_normalize(x, weights.gains[1]).to(x.dtype)
    return x + gated_mlp(normed, weights.gate_up, weights.down)


def last_backbone_layer(
    x: Tensor, weights: LayerWeights, rotary: tuple[Tensor, Tensor], keys: Tensor, values: Tensor
) -> None:
    """The last layer of the backbone, of which only keys and values (T, K, H) are read."""
    assert weights.gains is not None
    normed = rms_normalize(x, weights.gains[0]).to(x.dtype)
    k, v = weights.qkv(normed).view(len(x), 2, *keys.shape[1:]).unbind(1)
    keys.copy_(rotate(k, *rotary))
    values.copy_(v)


def expert_layer(
    x: Tensor,
    weights: LayerWeights,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor | None,
    keys: Tensor,
    values: Tensor,
    attention: tuple[Tensor, Tensor, Tensor],
    mlp: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """A layer of the expert: x (L, W) -> (L, W). Writes its own keys and values behind those of the prefix.

    Args:
        keys, values: (T + L, K, H), the prefix's first.
        mask: (T + L,).
        attention, mlp: gain, shift and gate of each part, see `Modulation`.
    """
    gain, shift, gate = attention
    normed = torch.addcmul(shift, rms_normalize(x), gain).to(x.dtype)
    start = len(keys) - len(x)
    queries, _, _ = _project(normed, weights.qkv, rotary, keys[start:], values[start:])
    x = torch.addcmul(x, weights.out(attend(queries, keys, values, mask)), gate)
    gain, shift, gate = mlp
    normed = torch.addcmul(shift, rms_normalize(x), gain).to(x.dtype)
    return torch.addcmul(x, gated_mlp(normed, weights.gate_up, weights.down), gate)


def _project(
    x: Tensor, qkv: Product, rotary: tuple[Tensor, Tensor], keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries (L, N, H), keys and values (L, K, H) of x (L, W); the latter are written to `keys`, `values`."""
    kv_heads, head_dim = keys.shape[1:]
    heads = qkv(x).view(len(x), -1, head_dim)
    rotated = rotate(heads[:, :-kv_heads], *rotary)
    keys.copy_(rotated[:, -kv_heads:])
    values.copy_(heads[:, -kv_heads:])
    return rotated[:, :-kv_heads], rotated[:, -kv_heads:], heads[:, -kv_heads:]
