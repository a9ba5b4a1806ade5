"""A chunk from an observation by kernels: what a CUDA graph holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.engine.cuda.expert import Buffers, ExpertKernels, compile_expert, expert_unsupported
from ki_ros.model.engine.cuda.gradient import GradientKernels, Guide, compile_gradient
from ki_ros.model.engine.cuda.memory import Memory
from ki_ros.model.engine.cuda.module import Compiler, Module
from ki_ros.model.engine.cuda.prefix import PrefixKernels, compile_prefix, prefix_unsupported
from ki_ros.model.engine.modulation import Modulation
from ki_ros.model.engine.packed import LayerWeights, VisionWeights
from ki_ros.model.model import KIModel
from ki_ros.rig import POLICY_SLOTS


def longest_prefix(config: KIConfig) -> int:
    """Tokens of all views and of the longest prompt."""
    return len(POLICY_SLOTS) * config.vision.tokens + config.max_token_len


def unsupported(config: KIConfig, dtype: torch.dtype) -> str | None:
    """Why there are no kernels for this model; None where there are."""
    if dtype != torch.bfloat16:
        return f"dtype is {dtype}, not bfloat16"
    return expert_unsupported(config, longest_prefix(config)) or prefix_unsupported(config)


class KernelSampler:
    """Samples chunks of a model that is not `unsupported`.

    Args:
        model: the model.
        vision, language, expert: its packed weights.
        modulations: of each step.
        given: of time 0.
        compile: makes the kernels.
    """

    def __init__(
        self,
        model: KIModel,
        vision: Sequence[VisionWeights],
        language: Sequence[LayerWeights],
        expert: Sequence[LayerWeights],
        modulations: Sequence[Modulation],
        given: Modulation,
        compile: Compiler = Module,
    ) -> None:
        config = model.config
        self._tokens, self._depth = config.vision.tokens, config.language.depth
        memory = Memory(config, longest_prefix(config), model.device)
        self._side = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        buffers = Buffers(model, memory)
        phases = compile_expert(config, compile)
        self._expert = ExpertKernels(model, expert, modulations, given, memory, buffers, phases)
        phases = compile_gradient(config, compile)
        self._gradient = GradientKernels(config, expert, modulations, memory, buffers, phases)
        self._prefix = PrefixKernels(model, vision, language, memory, compile_prefix(config, compile))

    def parts(self, images: Tensor, tokens: Tensor, noise: Tensor) -> dict[str, Callable[[], object]]:
        """To be timed, each alone: vision; vision and prefill; all steps, none of them beside the prefill."""
        count, before = torch.tensor(len(tokens), device=images.device), len(images) * self._tokens

        def steps() -> Tensor:
            x = noise.clone()
            self._expert.begin(x)
            for step in range(self._expert.steps):
                self._layers(step, before, count, kept=False)
                self._expert.advance(x, step)
            return x

        def prefill() -> None:
            for _ in self._prefix.encode(images, tokens, count, kept=False):
                pass

        return {
            "vision": lambda: self._prefix.encode_views(images),
            "vision and prefill": prefill,
            "steps": steps,
        }

    def sample(
        self,
        images: Tensor,
        tokens: Tensor,
        count: Tensor,
        x: Tensor,
        free: Tensor | None = None,
        guide: Guide | None = None,
    ) -> Tensor:
        """Actions (L, D) float32.

        Args:
            images: (V, 3, S, S), see `Observation`.
            tokens: (n,) int64, of which the first `count` count.
            count: int64, no dimension.
            x: (L, D) float32: noise, and the actions of the rows that are given. It becomes the actions.
            free: (L,) bool, false for the rows that are given; None where none is.
            guide: what the chunk is drawn to, where no row is given; None for nothing.
        """
        before, kept = len(images) * self._tokens, guide is not None

        def finish(step: int) -> None:
            if guide is None:
                self._expert.advance(x, step, free)
            else:
                self._gradient.draw(x, step, before, count, guide)

        with self._beside():
            self._expert.begin(x, free)
        for layer in self._prefix.encode(images, tokens, count, kept=kept):
            with self._beside():
                self._expert.layer(0, layer, before, count, free, kept=kept)
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)
        finish(0)
        for step in range(1, self._expert.steps):
            self._layers(step, before, count, free, kept=kept)
            finish(step)
        return x

    def _layers(self, step: int, before: int, count: Tensor, free: Tensor | None = None, *, kept: bool) -> None:
        for layer in range(self._depth):
            self._expert.layer(step, layer, before, count, free, kept=kept)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """After what has been started, but beside what comes.

        A layer of the expert needs the backbone's layer of the same number, not those after it; and the backbone waits
        for arithmetic where the expert waits for memory.
        """
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            yield
