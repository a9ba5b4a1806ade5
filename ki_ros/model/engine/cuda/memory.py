"""Keys and values as the kernels read them."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.layers import rotary_embedding

_ALIGNMENT = 128
"""Keys that are read at once by a block, whether or not all are there."""


class PrefixArgument(ctypes.Structure):
    """`Prefix` of `expert.cuh`."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("cosines", "sines", "count")), ("before", ctypes.c_int)]


class CacheArgument(ctypes.Structure):
    """`Cache` of `expert.cuh` and `prefix.cu`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("key_rows", "key_columns", "value_rows", "value_columns")),
        ("capacity", ctypes.c_int),
    ]


class Memory:
    """The KV cache of one observation, of the prefix and then of the chunk; K key/value heads, H head dimension.

    An operand of the tensor cores is one load only where what is summed over lies together: dimensions for scores,
    tokens for what is attended to, and the other way round in a backward pass. Where one follows, keys and values are
    there twice.

    Args:
        config: of the model.
        longest: most tokens of a prefix.

    Attributes:
        capacity: tokens.
        rows: keys, rotated, and values, (2, depth, capacity, K, H) bfloat16. What nobody has written is finite, since
            products read it.
        columns: the same as (2, depth, K, H, capacity).
        cosines, sines: rotation of each position, (capacity, H / 2) float32.
    """

    def __init__(self, config: KIConfig, longest: int, device: torch.device) -> None:
        language = config.language
        needed = longest + config.action_horizon
        self.capacity = needed + -needed % _ALIGNMENT
        heads = language.kv_heads, language.head_dim

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(2, language.depth, *shape, dtype=torch.bfloat16, device=device)

        self.rows, self.columns = zeros(self.capacity, *heads), zeros(*heads, self.capacity)
        positions = torch.arange(self.capacity, device=device)
        self.cosines, self.sines = (
            t.contiguous() for t in rotary_embedding(positions[None], language.head_dim)[:, 0, 0]
        )

    def cache(self, layer: int, *, kept: bool) -> CacheArgument:
        """Keys and values of a layer, twice where they are `kept` for a backward pass."""
        key_rows, value_rows = (t.data_ptr() for t in self.rows[:, layer])
        key_columns, value_columns = (t.data_ptr() for t in self.columns[:, layer])
        if not kept:
            key_columns = value_rows = None
        return CacheArgument(key_rows, key_columns, value_rows, value_columns, self.capacity)

    def prefix(self, before: int, count: Tensor) -> PrefixArgument:
        """Of `before` tokens and then `count` (int64, no dimension) of the prompt."""
        tables = self.cosines, self.sines, count
        return PrefixArgument(*(t.data_ptr() for t in tables), before)
