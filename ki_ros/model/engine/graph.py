"""The fused engine as CUDA graphs: a call is one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ki_ros.model.engine.compiled import CompiledEngine
from ki_ros.model.engine.cuda.module import KernelError
from ki_ros.model.engine.cuda.sampler import KernelSampler, unsupported
from ki_ros.model.engine.engine import EngineError
from ki_ros.model.engine.fused import FusedEngine
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation
from ki_ros.model.rtc import Guidance

logger = logging.getLogger(__name__)

BUCKET = 32
"""Prompts are padded to a multiple of so many tokens: few graphs, and few tokens that are computed in vain."""

_WARM_UPS = 3
"""Runs before a capture, in which libraries choose their kernels and take their memory."""


@dataclass(frozen=True)
class _Captured:
    """How to run a graph, and the tensors that it reads and writes."""

    replay: Callable[[], None]
    actions: Tensor
    images: Tensor
    tokens: Tensor
    count: Tensor
    noise: Tensor
    given: Tensor
    free: Tensor


class GraphEngine(CompiledEngine):
    """One CUDA graph for the whole call, for each number of views, bucket of prompts, and with or without commitment.

    All are captured in `prepare`, for the views that are `expected`; what else comes is captured when it comes, which
    takes a moment. Guided sampling needs a backward pass and is not captured.

    Args:
        model, num_steps: see `FusedEngine`; the model is on a CUDA device.
        expected: views of an observation.

    Raises:
        EngineError: the model is elsewhere.
    """

    name = "graph"

    def __init__(self, model: KIModel, num_steps: int, *, expected: int = 2) -> None:
        self._require_device(model.device)
        super().__init__(model, num_steps, bucket=BUCKET)
        self._expected = expected
        self._sampler = self._make_sampler()
        self._captured: dict[tuple[int, int, bool], _Captured] = {}
        self._pool = None

    @property
    def captures(self) -> int:
        """How many graphs there are."""
        return len(self._captured)

    def prepare(self) -> None:
        """Captures the graphs of all prompts."""
        longest = self._config.max_token_len
        for length in range(BUCKET, longest + BUCKET, BUCKET):
            for committed in {False, self._config.committed_rows > 0}:
                self._capture(self._expected, min(length, longest), committed)

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        noise: Tensor,
        *,
        committed: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """See `Engine`."""
        if guidance is not None:
            return super().sample(observation, noise, guidance=guidance)
        self.model.validate_sampling(observation, noise, committed, guidance)
        images, tokens = self._inputs(observation)
        length = min(len(tokens) + -len(tokens) % BUCKET, self._config.max_token_len)
        key = len(images), length, committed is not None
        captured = self._captured.get(key) or self._capture(*key)
        captured.images.copy_(images, non_blocking=True)
        captured.tokens[: len(tokens)].copy_(tokens, non_blocking=True)
        captured.count.fill_(len(tokens))
        captured.noise.copy_(noise[0], non_blocking=True)
        if committed is not None:
            for target, rows in zip(
                (captured.given, captured.free), self._given_rows(committed, committed.device), strict=True
            ):
                target.copy_(rows, non_blocking=True)
        captured.replay()
        return captured.actions.clone()[None]

    def _capture(self, views: int, length: int, committed: bool) -> _Captured:
        config, device = self._config, self.model.device
        side, shape = config.vision.image_size, (config.action_horizon, config.action_dim)
        images = torch.zeros(views, 3, side, side, device=device)
        tokens = torch.zeros(length, dtype=torch.int64, device=device)
        count = torch.tensor(length, device=device)
        noise, given = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        free = torch.ones(shape[0], dtype=torch.bool, device=device)

        def run() -> Tensor:
            if self._sampler is not None:
                x = torch.where(free[:, None], noise, given) if committed else noise.clone()
                return self._sampler.sample(images, tokens, count, x, free if committed else None)
            prefix = self.encode(images, tokens, count)
            return self.integrate(prefix, noise, given, free) if committed else self.integrate(prefix, noise)

        captured = _Captured(*self._record(run), images, tokens, count, noise, given, free)
        self._captured[views, length, committed] = captured
        return captured

    @staticmethod
    def _require_device(device: torch.device) -> None:
        if device.type != "cuda":
            raise EngineError(f"engine 'graph' needs a CUDA device, and the model is on {device}; use 'fused'")

    def _record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """How to run it again on the same tensors, and what it writes to."""
        device = self.model.device
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.no_grad(), torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream(device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Graphs run one after another, so they may use the same memory.
        with torch.no_grad(), torch.cuda.graph(graph, pool=self._pool):
            actions = run()
        self._pool = graph.pool()
        return graph.replay, actions

    def _make_sampler(self) -> KernelSampler | None:
        """Kernels for the whole call, where this model and device can have them."""
        if self.model.device.type != "cuda":
            return None
        reason = unsupported(self._config, self._dtype)
        if reason is None:
            try:
                return KernelSampler(
                    self.model, self._vision, self._language, self._expert, self._modulations, self._given
                )
            except KernelError as error:
                reason = str(error)
        logger.warning("layers are compiled by torch, which is slower than kernels for them: %s", reason)
        return None

    # Every graph has its own memory, for which the pool is.
    def _memory(self, length: int) -> tuple[Tensor, Tensor]:
        self._buffers.clear()
        return FusedEngine._memory(self, length)
