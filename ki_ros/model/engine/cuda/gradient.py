"""What pulls a chunk to its guidance: the backward pass of the expert, by the kernels of `gradient.cu`.

Shapes: L actions of a chunk, D action dimension, W width, N heads, K key/value heads, H head dimension.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.engine.cuda.expert import Buffers, modulation_argument, step_size
from ki_ros.model.engine.cuda.memory import Memory
from ki_ros.model.engine.cuda.module import Compiler
from ki_ros.model.engine.cuda.phases import ROWS, Phases
from ki_ros.model.engine.modulation import Modulation
from ki_ros.model.engine.packed import LayerWeights
from ki_ros.model.flow import sample_times
from ki_ros.model.rtc import guidance_weight

PRODUCTS = "back_through_down", "back_through_out", "back_through_gate_up", "back_through_project"
"""Kernels that multiply by weights."""


def compile_gradient(config: KIConfig, compile: Compiler) -> Phases:
    """`gradient.cu` for that configuration."""
    return Phases("gradient.cu", config, compile, PRODUCTS, "back_through_attention")


@dataclass(frozen=True)
class Guide:
    """`Guidance` on the device, of whole rows.

    Attributes:
        target, weights: (L, D) float32; weights are zero beyond the values that are guided.
        max_weight: float32, no dimension.
    """

    target: Tensor
    weights: Tensor
    max_weight: Tensor


class GuideArgument(ctypes.Structure):
    """`Guide` of `gradient.cu`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("target", "weights", "max_weight")]


class Transposed:
    """A layer's weights as a backward pass reads them: (in, out), gate and up as one of each, (2, W, HIDDEN)."""

    def __init__(self, weights: LayerWeights) -> None:
        assert weights.out is not None
        assert weights.gate_up is not None
        assert weights.down is not None
        self.qkv = weights.qkv.weight.t().contiguous()
        self.out = weights.out.weight.t().contiguous()
        self.gate_up = torch.stack([half.t() for half in weights.gate_up.weight.chunk(2)])
        self.down = weights.down.weight.t().contiguous()


class GradientKernels:
    """Steps of a guided integration, after the layers of each.

    Args:
        config: not `expert_unsupported`.
        layers: the expert's packed weights, which are copied.
        modulations: of each step.
        memory, buffers: of the forward pass, which has kept what a backward pass reads.
        phases: see `compile_gradient`.
    """

    def __init__(
        self,
        config: KIConfig,
        layers: Sequence[LayerWeights],
        modulations: Sequence[Modulation],
        memory: Memory,
        buffers: Buffers,
        phases: Phases,
    ) -> None:
        self._config, self._modulations, self._phases = config, modulations, phases
        self._memory, self._buffers = memory, buffers
        self._layers = [Transposed(weights) for weights in layers]
        self._times = sample_times(len(modulations))
        self._ratios = [guidance_weight(torch.tensor(time), math.inf).item() for time in self._times]
        language, device = config.language, buffers.inputs.device

        def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # Rows beyond the chunk's stay zero, and with them all that is found of them.
        self._slope = torch.zeros_like(buffers.inputs[0])
        self._hidden = zeros(2, ROWS, config.expert.mlp)
        self._attended = torch.zeros_like(buffers.attended[0])
        self._projected = zeros(ROWS, (language.heads + 2 * language.kv_heads) * language.head_dim)
        self._parts = zeros(2, ROWS, config.expert.width, dtype=torch.float32)
        self._news = zeros(2, language.heads, ROWS, ROWS, dtype=torch.float32)
        self._velocity, self._apart = zeros(2, config.action_horizon, config.action_dim, dtype=torch.float32)

    def draw(self, x: Tensor, step: int, before: int, count: Tensor, guide: Guide) -> None:
        """Integrates the velocity of a step and the pull into x (L, D), after its layers; see `ExpertKernels.layer`."""
        phases, buffers, time, modulation = self._phases, self._buffers, self._times[step], self._modulations[step]
        given = GuideArgument(*(t.data_ptr() for t in (guide.target, guide.weights, guide.max_weight)))
        norm = modulation_argument(modulation, -1, modulation, None)
        found = self._velocity, self._apart, self._slope
        # What ends the first step comes after kernels of others.
        ends = buffers.ends, given
        phases.each_row("aim", ctypes.c_float(time), norm, *ends, buffers.inputs[-1], x, *found, early=step > 0)
        for layer in reversed(range(len(self._layers))):
            self._layer(modulation, layer, before, count)
        sizes = step_size(len(self._times)), ctypes.c_float(self._ratios[step])
        phases.each_row("draw", *sizes, *ends, *found, buffers.inputs[0], x)

    def _layer(self, modulation: Modulation, layer: int, before: int, count: Tensor) -> None:
        phases, weights, buffers, slope = self._phases, self._layers[layer], self._buffers, self._slope
        language, attention, mlp = self._config.language, 2 * layer, 2 * layer + 1
        both, hidden, parts = buffers.both[layer], self._hidden, self._parts
        phases.multiply("back_through_down", slope, modulation.gates[mlp], weights.down, both, hidden)
        phases.multiply("back_through_gate_up", hidden, weights.gate_up, parts, parts=2)
        self._through_norm(modulation, mlp, 2)
        slopes, queries, attended = self._attended, buffers.queries[layer], buffers.attended[layer]
        phases.multiply("back_through_out", slope, modulation.gates[attention], weights.out, slopes)
        place = self._memory.prefix(before, count), ctypes.c_int(buffers.splits)
        known = queries, attended, slopes, buffers.divisors[layer], self._memory.cache(layer, kept=True)
        found = buffers.sums, self._news
        phases.attend(buffers.splits, *known, *place, *found)
        heads = language.heads + 2 * language.kv_heads
        phases.each_row("back_through_rotation", *found, queries, slopes, *place, self._projected, heads=heads)
        phases.multiply("back_through_project", self._projected, weights.qkv, parts)
        self._through_norm(modulation, attention, 1)

    def _through_norm(self, modulation: Modulation, norm: int, parts: int) -> None:
        """Adds the slope of what that norm takes in, from parts of that of what it gives."""
        x, gains = self._buffers.inputs[norm], modulation.gains[norm]
        self._phases.each_row("back_through_norm_of", self._parts, ctypes.c_int(parts), x, gains, self._slope)
