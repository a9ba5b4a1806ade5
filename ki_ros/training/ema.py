"""Exponential moving average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class EMA:
    """`average = decay * average + (1 - decay) * parameter`, in float32, beginning at the parameters.

    Averages are sharded as their parameters are, and each process computes on its own shard: nothing is communicated.

    A mapping that is given must have the names of the constructor's and hold the parameters that the optimiser
    updates. Under FSDP these are the DTensors that `named_parameters` gives once after `fully_shard`; a module that is
    gathered at the moment would give others. FSDP must also be told when values change behind its back, which
    `swapped` does: call `reshard()` of every FSDP module on entering and on leaving the block, or a module that stays
    gathered after an evaluation computes with what it gathered before.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        """Starts the average at the parameters, of which it takes a copy.

        Raises:
            ValueError: a decay outside (0, 1), or no parameters.
            TypeError: a parameter that is not float32.
        """
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay is {decay}; give a number between 0 and 1, such as 0.999")
        if not parameters:
            raise ValueError("parameters is empty; give the parameters that train")
        for name, parameter in parameters.items():
            # In bfloat16 a step of 1 - decay = 0.001 is below the spacing of numbers.
            if parameter.dtype != torch.float32:
                raise TypeError(f"parameter {name} is {parameter.dtype}; average the float32 master weights")
        self.decay = decay
        self._averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._swapped = False

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int | None = None) -> None:
        """Moves the average towards the parameters by 1 - decay.

        Args:
            parameters: the live ones.
            step: updates before this one. The decay is at most (1 + step) / (10 + step) then, so that a young average
                forgets where it began (as in TensorFlow's `ExponentialMovingAverage`).

        Raises:
            ValueError: names or shapes other than the average's.
            RuntimeError: inside `swapped`, where the parameters are the average.
        """
        self._require_own("update")
        averages, values = self._shards(parameters)
        decay = self.decay if step is None else min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, values, 1.0 - decay)

    @contextmanager
    def swapped(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block the parameters have the average's values; afterwards their own again, to the bit.

        Values are exchanged in place, so the block needs no memory but for a copy of the largest parameter.

        Raises:
            ValueError: names or shapes other than the average's.
            RuntimeError: inside another such block.
        """
        self._require_own("swapped")
        pairs = tuple(zip(*self._shards(parameters), strict=True))
        _exchange(pairs)
        self._swapped = True
        try:
            yield
        finally:
            _exchange(pairs)
            self._swapped = False

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name; not copies. Raises RuntimeError inside `swapped`."""
        self._require_own("state_dict")
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over averages that `state_dict` gave, of the same sharding.

        Raises:
            ValueError: names, shapes or sharding other than the average's; nothing is taken over then.
            RuntimeError: inside `swapped`.
        """
        self._require_own("load_state_dict")
        for average, value in zip(*self._shards(state), strict=True):
            average.copy_(value)

    def _shards(self, others: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """This process's shards of the averages and of the tensors of the same names, which share their memory."""
        if others.keys() != self._averages.keys():
            missing = sorted(self._averages.keys() - others.keys())
            unknown = sorted(others.keys() - self._averages.keys())
            raise ValueError(f"these are not the averaged parameters: missing {missing[:3]}, unknown {unknown[:3]}")
        for name, average in self._averages.items():
            other = others[name]
            if other.shape != average.shape:
                raise ValueError(f"{name} has shape {tuple(other.shape)}; its average has {tuple(average.shape)}")
            if _layout(other) != _layout(average):
                raise ValueError(
                    f"{name} is {_describe(other)}, its average is {_describe(average)}; give the tensors of the "
                    "optimiser, or load with torch.distributed.checkpoint"
                )
        return [_local(average) for average in self._averages.values()], [_local(others[n]) for n in self._averages]

    def _require_own(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(f"{what} was called inside swapped, where averages and parameters are exchanged")


@torch.no_grad()
def _exchange(pairs: tuple[tuple[Tensor, Tensor], ...]) -> None:
    for one, other in pairs:
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _layout(tensor: Tensor) -> object:
    return (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None


def _describe(tensor: Tensor) -> str:
    return f"sharded as {tensor.placements}" if isinstance(tensor, DTensor) else "a plain tensor"
