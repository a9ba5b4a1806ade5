"""The action expert by the kernels of `expert.cu`.

Shapes: L actions of a chunk, D action dimension, W width, N heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.engine.cuda.memory import Memory
from ki_ros.model.engine.cuda.module import Argument, Launcher
from ki_ros.model.engine.modulation import Modulation
from ki_ros.model.engine.packed import LayerWeights
from ki_ros.model.model import KIModel

ROWS, THREADS, KEYS, ATTEND_WARPS = 16, 256, 32, 4
"""As in `expert.cu`."""

MOST_SPLITS = 32
"""Groups of keys that `combine` can add up."""

TILES = {"QKV_TILES": 1, "OUT_TILES": 1, "UP_TILES": 2, "DOWN_TILES": 1}
"""Columns of a block, in eights: what was fastest on an H200."""


def expert_unsupported(config: KIConfig, longest: int) -> str | None:
    """Why the kernels cannot compute this expert beside a prefix of so many tokens; None where they can."""
    language = config.language
    if config.action_horizon > ROWS:
        return f"action_horizon is {config.action_horizon}, more than {ROWS}"
    if longest + config.action_horizon > MOST_SPLITS * KEYS:
        return f"prefix and chunk can have {longest + config.action_horizon} tokens, more than {MOST_SPLITS * KEYS}"
    for name, value, multiple in (
        ("expert.width", config.expert.width, 256),
        ("expert.mlp", config.expert.mlp, 256),
        ("heads * head_dim", language.heads * language.head_dim, 256),
        ("head_dim", language.head_dim, 128),
    ):
        if value % multiple:
            return f"{name} is {value}, not a multiple of {multiple}"
    return None


def expert_macros(config: KIConfig, tiles: dict[str, int] = TILES) -> dict[str, int]:
    """Those of `expert.cu`."""
    language = config.language
    return {
        "LIVE": config.action_horizon,
        "WIDTH": config.expert.width,
        "HIDDEN": config.expert.mlp,
        "HEADS": language.heads,
        "KV_HEADS": language.kv_heads,
        "HEAD_DIM": language.head_dim,
        "ACTIONS": config.action_dim,
        **tiles,
    }


class _Modulation(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("gain", "shift", "given_gain", "given_shift", "free")]


class ExpertKernels:
    """Velocities of a chunk, and the integration. One chunk at a time.

    Args:
        model: whose configuration is not `expert_unsupported`, in bfloat16.
        layers: the expert's packed weights.
        modulations: of each step.
        given: of time 0.
        memory: keys and values of the prefix; those of the chunk are written behind them.
        kernels: `expert.cu`, compiled with the `expert_macros` of that configuration and these `tiles`.
    """

    def __init__(
        self,
        model: KIModel,
        layers: Sequence[LayerWeights],
        modulations: Sequence[Modulation],
        given: Modulation,
        memory: Memory,
        kernels: Launcher,
        tiles: dict[str, int] = TILES,
    ) -> None:
        config = model.config
        language, width = config.language, config.expert.width
        self._config, self._layers, self._memory, self._kernels = config, layers, memory, kernels
        self._modulations, self._given = modulations, given
        self._splits = memory.capacity // KEYS

        def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=model.device)

        self._x = zeros(ROWS, width)
        self._queries = zeros(ROWS, language.heads * language.head_dim)
        self._attended = torch.zeros_like(self._queries)
        self._hidden = zeros(ROWS, config.expert.mlp)
        parts = language.heads, self._splits, ROWS
        self._sums = zeros(*parts, language.head_dim, dtype=torch.float32)
        self._scales = zeros(*parts, 2, dtype=torch.float32)
        projections = model.action_out_proj, model.action_in_proj
        self._ends = [t.detach().float() for p in projections for t in (p.weight, p.bias)]
        columns = {name: 8 * count for name, count in tiles.items()}
        halves = (language.heads + 2 * language.kv_heads) * language.head_dim // 2
        self._blocks = {
            "project": halves // columns["QKV_TILES"],
            "add_attended": width // columns["OUT_TILES"],
            "gate_up": config.expert.mlp // columns["UP_TILES"],
            "add_hidden": width // columns["DOWN_TILES"],
        }
        self._shared = {name: kernels.constant(f"{name.upper()}_SHARED") for name in (*self._blocks, "attend")}

    @property
    def steps(self) -> int:
        """Of the integration."""
        return len(self._modulations)

    def begin(self, x: Tensor, free: Tensor | None = None) -> None:
        """Takes a chunk in, x (L, D) float32, which all else changes in place; `free` (L,) bool: see `layer`."""
        self._advance(x, 0, free, first=True)

    def layer(self, step: int, layer: int, before: int, count: Tensor, free: Tensor | None = None) -> None:
        """One layer of one step.

        Args:
            step, layer: which; in their order, after those ahead and `begin`.
            before: tokens of the prefix ahead of the prompt.
            count: tokens of the prompt, int64, no dimension.
            free: (L,) bool, false for the rows that are given; None where none is.
        """
        modulation, weights, language = self._modulations[step], self._layers[layer], self._config.language
        keys, values = self._memory.keys[layer], self._memory.values[layer]
        ahead, capacity, splits = (ctypes.c_int(n) for n in (before, self._memory.capacity, self._splits))
        attention, mlp = 2 * layer, 2 * layer + 1

        def gates(norm: int) -> tuple[Argument, ...]:
            return modulation.gates[norm], self._given.gates[norm], free

        self._start(
            "project",
            self._x,
            weights.qkv.weight,
            self._norm(modulation, attention, free),
            self._memory.cosines,
            self._memory.sines,
            count,
            ahead,
            capacity,
            self._queries,
            keys,
            values,
            # The prefix's keys and values may come from another stream.
            early=step > 0,
        )
        found = self._sums, self._scales
        grid = self._splits // ATTEND_WARPS, language.heads
        block = 32 * ATTEND_WARPS
        self._start(
            "attend", self._queries, keys, values, count, ahead, capacity, splits, *found, grid=grid, block=block
        )
        grid = self._config.action_horizon, language.heads
        self._start("combine", *found, count, ahead, splits, self._attended, grid=grid, block=language.head_dim)
        self._start("add_attended", self._attended, weights.out.weight, *gates(attention), self._x)
        self._start("gate_up", self._x, weights.gate_up.weight, self._norm(modulation, mlp, free), self._hidden)
        self._start("add_hidden", self._hidden, weights.down.weight, *gates(mlp), self._x)

    def advance(self, x: Tensor, step: int, free: Tensor | None = None) -> None:
        """Integrates the velocity of a step into x, after its layers."""
        self._advance(x, step, free, first=False)

    def _advance(self, x: Tensor, step: int, free: Tensor | None, *, first: bool) -> None:
        # As `ki_ros.model.flow.integrate` has it.
        size = ctypes.c_float(-1.0 / self.steps)
        norm = self._norm(self._modulations[step], -1, free)
        rows = self._config.action_horizon, 1
        state = self._x, x
        # The first and what ends the first step come after kernels of others.
        self._start("advance", ctypes.c_int(first), size, norm, *self._ends, *state, grid=rows, early=step > 0)

    def _norm(self, modulation: Modulation, norm: int, free: Tensor | None) -> _Modulation:
        given = self._given
        tensors = modulation.gains[norm], modulation.shifts[norm], given.gains[norm], given.shifts[norm]
        return _Modulation(*(t.data_ptr() for t in tensors), None if free is None else free.data_ptr())

    def _start(
        self,
        name: str,
        *arguments: Argument,
        grid: tuple[int, int] | None = None,
        block: int = THREADS,
        early: bool = True,
    ) -> None:
        grid = grid or (self._blocks[name], 1)
        self._kernels.launch(name, grid, block, arguments, shared=self._shared.get(name, 0), early=early)
