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

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("cosines", "sines", "count")),
        ("before", ctypes.c_int),
        ("capacity", ctypes.c_int),
    ]


class Memory:
    """For one observation, of the prefix and then of the chunk; K key/value heads, H head dimension.

    Args:
        config: of the model.
        longest: most tokens of a prefix.

    Attributes:
        capacity: tokens.
        keys: (depth, capacity, K, H) bfloat16, rotated. What nobody has written is finite, since products read it.
        values: (depth, K, H, capacity) bfloat16, so that an operand of the tensor cores is one load.
        cosines, sines: rotation of each position, (capacity, H / 2) float32.
    """

    def __init__(self, config: KIConfig, longest: int, device: torch.device) -> None:
        language = config.language
        needed = longest + config.action_horizon
        self.capacity = needed + -needed % _ALIGNMENT
        heads = language.kv_heads, language.head_dim
        self.keys = torch.zeros(language.depth, self.capacity, *heads, dtype=torch.bfloat16, device=device)
        self.values = torch.zeros(language.depth, *heads, self.capacity, dtype=torch.bfloat16, device=device)
        positions = torch.arange(self.capacity, device=device)
        self.cosines, self.sines = (
            t.contiguous() for t in rotary_embedding(positions[None], language.head_dim)[:, 0, 0]
        )

    def views(self, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first tokens, (depth, length, K, H) each."""
        return self.keys[:, :length], self.values.permute(0, 3, 1, 2)[:, :length]

    def argument(self, before: int, count: Tensor) -> PrefixArgument:
        """Of a prefix of `before` tokens and then `count` (int64, no dimension) of its prompt."""
        tables = self.cosines, self.sines, count
        return PrefixArgument(*(t.data_ptr() for t in tables), before, self.capacity)
