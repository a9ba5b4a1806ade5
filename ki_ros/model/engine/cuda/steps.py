"""Steps of the integration as one kernel, `steps.cu`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.engine.cuda.expert import THREADS, Buffers, expert_macros, step_size
from ki_ros.model.engine.cuda.memory import Memory
from ki_ros.model.engine.cuda.module import Launcher
from ki_ros.model.engine.modulation import Modulation
from ki_ros.model.engine.packed import LayerWeights

TILES = {"OUT_TILES": 1, "UP_TILES": 4, "DOWN_TILES": 1}
"""Columns of a block, in eights, so that there are as many blocks as an H100 or H200 has multiprocessors."""


def steps_macros(config: KIConfig) -> dict[str, int]:
    """Those of `steps.cu`."""
    macros = expert_macros(config) | TILES
    del macros["QKV_TILES"]
    return macros


def steps_unsupported(config: KIConfig, splits: int, kernels: Launcher) -> str | None:
    """Why the kernel cannot run on this device; None where it can."""
    needed, most = kernels.constant("STEPS_SHARED"), kernels.most_shared
    if needed > most:
        return f"a block needs {needed} bytes of shared memory, and has {most}"
    rounds, attending = kernels.constant("STEPS_ROUNDS"), kernels.constant("STEPS_ATTENDING")
    blocks = max(
        kernels.constant("STEPS_BLOCKS"),
        -(-kernels.constant("STEPS_PROJECT_BLOCKS") // rounds),
        -(-splits * config.language.heads // attending),
    )
    if blocks > kernels.multiprocessors:
        return f"it needs {blocks} multiprocessors, and there are {kernels.multiprocessors}"
    return None


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("qkv", "out", "gate_up", "down", "keys", "values")]


class _Modulations(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("gains", "shifts", "gates", "given_gains", "given_shifts", "given_gates", "free")
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "queries", "attended", "hidden", "sums", "scales", "actions")]


class StepsKernel:
    """Arguments are those of `ExpertKernels`; `kernels` is `steps.cu`, with `steps_macros`, not `steps_unsupported`."""

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        modulations: Sequence[Modulation],
        given: Modulation,
        memory: Memory,
        buffers: Buffers,
        kernels: Launcher,
    ) -> None:
        self._memory, self._buffers, self._kernels = memory, buffers, kernels
        self._depth, self._steps = len(layers), len(modulations)
        self._shared = kernels.constant("STEPS_SHARED")
        device = memory.keys.device
        table = (_Layer * len(layers))(
            *(
                _Layer(
                    *(p.weight.data_ptr() for p in (weights.qkv, weights.out, weights.gate_up, weights.down)),
                    keys.data_ptr(),
                    values.data_ptr(),
                )
                for weights, keys, values in zip(layers, memory.keys, memory.values, strict=True)
            )
        )
        self._layers = torch.frombuffer(bytearray(table), dtype=torch.uint8).to(device)
        self._tables = [torch.stack([getattr(m, name) for m in modulations]) for name in ("gains", "shifts", "gates")]
        self._tables += [given.gains, given.shifts, given.gates]
        # How often blocks have arrived at a barrier.
        self._arrived = torch.zeros(1, dtype=torch.int32, device=device)

    def run(self, x: Tensor, first: int, before: int, count: Tensor, free: Tensor | None = None) -> None:
        """The steps from `first` on, in place; all else is as in `ExpertKernels`, which has begun."""
        self._arrived.zero_()
        b = self._buffers
        passed = b.x, b.queries, b.attended, b.hidden, b.sums, b.scales, x
        arguments = (
            self._layers,
            ctypes.c_int(self._depth),
            ctypes.c_int(first),
            ctypes.c_int(self._steps),
            step_size(self._steps),
            _Modulations(*(t.data_ptr() for t in self._tables), None if free is None else free.data_ptr()),
            self._memory.argument(before, count),
            ctypes.c_int(b.splits),
            b.ends,
            _Buffers(*(t.data_ptr() for t in passed)),
            self._arrived,
        )
        grid = self._kernels.multiprocessors, 1
        self._kernels.launch("steps", grid, THREADS, arguments, shared=self._shared, together=True)
