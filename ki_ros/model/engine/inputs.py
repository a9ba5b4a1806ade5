"""What a graph reads, uploaded in one piece."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes."""


class Inputs:
    """Tensors on the host and the same on the device: `set`, then run what begins with `upload`.

    Args:
        layout: shape and dtype of each, by name. All are zero until they are set.
        device: where they go. To a CUDA device they go from pinned memory, without waiting for them.

    Attributes:
        there: on the device, by name.
    """

    def __init__(self, layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        begins, size = {}, 0
        for name, (shape, dtype) in layout.items():
            begins[name] = size
            size += math.prod(shape) * dtype.itemsize
            size += -size % _ALIGNMENT
        self._from = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._to = torch.zeros(size, dtype=torch.uint8, device=device)
        self._uploaded = torch.cuda.Event() if device.type == "cuda" else None

        def views(memory: Tensor) -> dict[str, Tensor]:
            return {
                name: memory[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
                for (name, begin), (shape, dtype) in zip(begins.items(), layout.values(), strict=True)
            }

        self._here, self.there = views(self._from), views(self._to)

    def transpose(self, name: str, dimensions: tuple[int, ...]) -> None:
        """What has been laid out in one order is from now on seen in another."""
        for tensors in (self._here, self.there):
            tensors[name] = tensors[name].permute(dimensions)

    def set(self, values: Mapping[str, Tensor | Sequence[Tensor]]) -> None:
        """Fills tensors from their begin, or from several along the first dimension; what is beyond becomes zero.

        Waits until all that was started before has been done: it may read what is here.
        """
        if self._uploaded is not None:
            self._uploaded.record()
            self._uploaded.synchronize()
        for name, value in values.items():
            target = self._here[name]
            if not isinstance(value, Tensor):
                begin = 0
                for part in value:
                    _copy(target[begin : begin + len(part)], part)
                    begin += len(part)
                continue
            if target.shape != value.shape:
                target.zero_()
                target = target[tuple(slice(0, size) for size in value.shape)]
            _copy(target, value)

    def upload(self) -> None:
        """Begins to copy all of them to the device; part of what is captured."""
        self._to.copy_(self._from, non_blocking=True)


def _copy(target: Tensor, value: Tensor) -> None:
    if value.is_cpu and value.dtype == target.dtype:
        # As fast as one thread copies; torch would wake up all of them.
        np.copyto(target.numpy(), value.numpy())
    else:
        target.copy_(value)
