"""The action expert, a phase at a time, by the kernels of `expert.cu`.

Shapes: L actions of a chunk, D action dimension, W width, N heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.engine.cuda.memory import Memory
from ki_ros.model.engine.cuda.module import Argument, Compiler
from ki_ros.model.engine.cuda.phases import KEYS, ROWS, Phases
from ki_ros.model.engine.modulation import Modulation
from ki_ros.model.engine.packed import LayerWeights
from ki_ros.model.model import KIModel

PRODUCTS = "project", "add_attended", "gate_up", "gate_up_kept", "add_hidden"
"""Kernels that multiply by weights."""

MOST_SPLITS = 32
"""Groups of keys that `combine` can add up."""


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


def compile_expert(config: KIConfig, compile: Compiler) -> Phases:
    """`expert.cu` for that configuration."""
    return Phases("expert.cu", config, compile, PRODUCTS, "attend")


class ModulationArgument(ctypes.Structure):
    """`Modulation` of `expert.cuh`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("gain", "shift", "given_gain", "given_shift", "free")]


class EndsArgument(ctypes.Structure):
    """`Ends` of `expert.cuh`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("out_weight", "out_bias", "in_weight", "in_bias")]


class Buffers:
    """What passes from phase to phase, kept until the next step; rows beyond the chunk's are finite and mean nothing.

    Attributes:
        splits: groups of keys.
        inputs: what each norm takes in, two of each layer and the last one, (2 * depth + 1, 16, W) bfloat16.
        queries, attended: (depth, 16, N * H) bfloat16.
        divisors: where they are kept, binary logarithm of what attention was divided by, (depth, N, 16) float32.
        both: where they are kept, gate and up of the MLPs, (depth, 16, 2 * HIDDEN) bfloat16.
        hidden: of one MLP.
        sums, scales: of one layer's splits.
        ends: the projections of actions.
    """

    def __init__(self, model: KIModel, memory: Memory) -> None:
        config = model.config
        language = config.language

        def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=model.device)

        depth, width, features = language.depth, config.expert.width, language.heads * language.head_dim
        self.splits = memory.capacity // KEYS
        self.inputs = zeros(2 * depth + 1, ROWS, width)
        self.queries = zeros(depth, ROWS, features)
        self.attended = torch.zeros_like(self.queries)
        self.divisors = zeros(depth, language.heads, ROWS, dtype=torch.float32)
        self.both = zeros(depth, ROWS, 2 * config.expert.mlp)
        self.hidden = zeros(ROWS, config.expert.mlp)
        parts = language.heads, self.splits, ROWS
        self.sums = zeros(*parts, language.head_dim, dtype=torch.float32)
        self.scales = zeros(*parts, 2, dtype=torch.float32)
        projections = model.action_out_proj, model.action_in_proj
        self._projections = [t.detach().float() for p in projections for t in (p.weight, p.bias)]
        self.ends = EndsArgument(*(t.data_ptr() for t in self._projections))


class ExpertKernels:
    """Velocities of a chunk, and the integration. One chunk at a time.

    Args:
        model: whose configuration is not `expert_unsupported`, in bfloat16.
        layers: the expert's packed weights.
        modulations: of each step.
        given: of time 0.
        memory: keys and values of the prefix; those of the chunk are written behind them.
        buffers: of the same model and memory.
        phases: see `compile_expert`.
    """

    def __init__(
        self,
        model: KIModel,
        layers: Sequence[LayerWeights],
        modulations: Sequence[Modulation],
        given: Modulation,
        memory: Memory,
        buffers: Buffers,
        phases: Phases,
    ) -> None:
        self._config, self._layers, self._memory, self._buffers = model.config, layers, memory, buffers
        self._modulations, self._given, self._phases = modulations, given, phases

    @property
    def steps(self) -> int:
        """Of the integration."""
        return len(self._modulations)

    def begin(self, x: Tensor, free: Tensor | None = None) -> None:
        """Takes a chunk in, x (L, D) float32, which all else changes in place; `free` (L,) bool: see `layer`."""
        self._advance(x, 0, free, first=True)

    def layer(
        self, step: int, layer: int, before: int, count: Tensor, free: Tensor | None = None, *, kept: bool
    ) -> None:
        """One layer of one step.

        Args:
            step, layer: which; in their order, after those ahead and `begin`.
            before: tokens of the prefix ahead of the prompt.
            count: tokens of the prompt, int64, no dimension.
            free: (L,) bool, false for the rows that are given; None where none is.
            kept: whether what only a backward pass reads is written.
        """
        modulation, weights, language = self._modulations[step], self._layers[layer], self._config.language
        buffers, cache = self._buffers, self._memory.cache(layer, kept=kept)
        prefix, splits = self._memory.prefix(before, count), ctypes.c_int(buffers.splits)
        attention, mlp = 2 * layer, 2 * layer + 1
        x, between, after = buffers.inputs[attention : attention + 3]
        queries, attended = buffers.queries[layer], buffers.attended[layer]
        found = buffers.sums, buffers.scales

        def gates(norm: int) -> tuple[Argument, ...]:
            return modulation.gates[norm], self._given.gates[norm], free

        phases, norm = self._phases, modulation_argument(modulation, attention, self._given, free)
        # The prefix's keys and values may come from another stream.
        phases.multiply("project", x, weights.qkv.weight, norm, prefix, cache, queries, early=step > 0)
        phases.attend(buffers.splits, queries, cache, prefix, splits, *found)
        found = *found, prefix, splits, attended, buffers.divisors[layer] if kept else None
        phases.each_row("combine", *found, heads=language.heads, threads=language.head_dim)
        phases.multiply("add_attended", attended, weights.out.weight, *gates(attention), x, between)
        norm = modulation_argument(modulation, mlp, self._given, free)
        gate_up = between, weights.gate_up.weight, norm, buffers.hidden
        if kept:
            phases.multiply("gate_up_kept", *gate_up, buffers.both[layer])
        else:
            phases.multiply("gate_up", *gate_up)
        phases.multiply("add_hidden", buffers.hidden, weights.down.weight, *gates(mlp), between, after)

    def advance(self, x: Tensor, step: int, free: Tensor | None = None) -> None:
        """Integrates the velocity of a step into x, after its layers."""
        self._advance(x, step, free, first=False)

    def _advance(self, x: Tensor, step: int, free: Tensor | None, *, first: bool) -> None:
        norm, buffers = modulation_argument(self._modulations[step], -1, self._given, free), self._buffers
        state = buffers.inputs[-1], buffers.inputs[0], x
        # The first and what ends the first step come after kernels of others.
        arguments = ctypes.c_int(first), step_size(self.steps), norm, buffers.ends, *state
        self._phases.each_row("advance", *arguments, early=step > 0)


def modulation_argument(
    modulation: Modulation, norm: int, given: Modulation, free: Tensor | None
) -> ModulationArgument:
    """Of a norm, and what it is of `given` for the rows that are not `free` (L,) bool; None where all are."""
    tensors = modulation.gains[norm], modulation.shifts[norm], given.gains[norm], given.shifts[norm]
    return ModulationArgument(*(t.data_ptr() for t in tensors), None if free is None else free.data_ptr())


def step_size(steps: int) -> ctypes.c_float:
    """Of the integration, as `ki_ros.model.flow.integrate` has it."""
    return ctypes.c_float(-1.0 / steps)
