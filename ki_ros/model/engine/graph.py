"""The fused engine as CUDA graphs: a call is one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import torch
from torch import Tensor

from ki_ros.model.engine.compiled import CompiledEngine
from ki_ros.model.engine.cuda.gradient import Guide
from ki_ros.model.engine.cuda.module import KernelError
from ki_ros.model.engine.cuda.sampler import KernelSampler, unsupported
from ki_ros.model.engine.engine import EngineError
from ki_ros.model.engine.fused import FusedEngine
from ki_ros.model.engine.inputs import Inputs
from ki_ros.model.flow import integrate
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation
from ki_ros.model.rtc import Guidance, pulled

T = TypeVar("T")

logger = logging.getLogger(__name__)

BUCKET = 32
"""Prompts are padded to a multiple of so many tokens: few graphs, and few tokens that are computed in vain."""

_WARM_UPS = 2
"""Runs before a capture, in which libraries choose their kernels and take their memory."""


class How(Enum):
    """What a chunk is sampled with."""

    FREE = "free"
    COMMITTED = "committed"
    GUIDED = "guided"


@dataclass(frozen=True)
class _Captured:
    """How to run a graph, and the tensors that it reads and writes."""

    replay: Callable[[], None]
    actions: Tensor
    inputs: Inputs


class GraphEngine(CompiledEngine):
    """One CUDA graph for the whole call, from the upload of its inputs on.

    There is one for each number of views, bucket of prompts, and `How`; without `kernels`, those with guidance have one
    bucket. All are captured in `prepare`, for views of bytes, up to those that are `expected`; what else comes is
    captured when it comes, which takes a moment.

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
        self._captured: dict[tuple[int, int, How, torch.dtype], _Captured] = {}
        self._pool = None

    @property
    def captures(self) -> int:
        """How many graphs there are."""
        return len(self._captured)

    @property
    def kernels(self) -> bool:
        """Whether kernels of our own sample, and not layers that torch compiles."""
        return self._sampler is not None

    def prepare(self) -> None:
        """Captures the graphs of all prompts."""
        longest = self._config.max_token_len
        for views in range(1, self._expected + 1):
            for how in How:
                if how is How.COMMITTED and not self._config.committed_rows:
                    continue
                for tokens in range(BUCKET, longest + BUCKET, BUCKET):
                    self._get(views, min(tokens, longest), how)

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
        self.model.validate_sampling(observation, noise, committed, guidance)
        images, tokens = self._inputs(observation)
        how = How.GUIDED if guidance is not None else How.FREE if committed is None else How.COMMITTED
        captured = self._get(len(images), len(tokens), how, images[0].dtype)
        given: dict[str, Tensor | list[Tensor]] = {"images": images, "tokens": tokens, "noise": noise[0]}
        given["count"] = torch.tensor(len(tokens))
        if committed is not None:
            given["given"], given["free"] = self._given_rows(committed, committed.device)
        if guidance is not None:
            given["target"] = guidance.target[0]
            given["weights"] = guidance.weights[:, None].expand_as(guidance.target[0])
            given["max_weight"] = torch.tensor(guidance.max_weight)
        captured.inputs.set(given)
        captured.replay()
        return captured.actions.clone()[None]

    def parts(self, images: Tensor, tokens: Tensor, noise: Tensor) -> dict[str, Callable[[], object]]:
        """See `FusedEngine`; a graph each."""
        source = super() if self._sampler is None else self._sampler
        parts = source.parts(images, tokens, noise)
        return {name: self._record(part)[0] for name, part in parts.items()}

    def _get(self, views: int, tokens: int, how: How, pixels: torch.dtype = torch.uint8) -> _Captured:
        """The graph for so many views and tokens, captured if it is not yet."""
        longest = self._config.max_token_len
        # A backward pass layer by layer costs ten times what the padding does, and its graphs are large.
        alone = how is How.GUIDED and not self.kernels
        length = longest if alone else min(tokens + -tokens % BUCKET, longest)
        key = views, length, how, pixels
        if key not in self._captured:
            self._captured[key] = self._capture(*key)
        return self._captured[key]

    def _capture(self, views: int, length: int, how: How, pixels: torch.dtype) -> _Captured:
        config = self._config
        side, chunk = config.vision.image_size, (config.action_horizon, config.action_dim)
        inputs = Inputs(
            {
                "images": ((views, side, side, 3), pixels),
                "tokens": ((length,), torch.int64),
                "count": ((), torch.int64),
                "noise": (chunk, torch.float32),
                "given": (chunk, torch.float32),
                "free": (chunk[:1], torch.bool),
                "target": (chunk, torch.float32),
                "weights": (chunk, torch.float32),
                "max_weight": ((), torch.float32),
            },
            self.model.device,
        )
        # As pictures lie in memory, so that they are copied as they are.
        inputs.transpose("images", (0, 3, 1, 2))
        # Something to warm up with.
        inputs.set({"count": torch.tensor(length), "max_weight": torch.tensor(1.0)})

        def run() -> Tensor:
            inputs.upload()
            return self._run(inputs, how)

        return _Captured(*self._record(run), inputs)

    def _run(self, inputs: Inputs, how: How) -> Tensor:
        images, tokens, count, noise = (inputs.there[name] for name in ("images", "tokens", "count", "noise"))
        given, free = inputs.there["given"], inputs.there["free"]
        target, weights, largest = (inputs.there[name] for name in ("target", "weights", "max_weight"))
        if self._sampler is not None:
            x = torch.where(free[:, None], noise, given) if how is How.COMMITTED else noise.clone()
            guide = Guide(target, weights, largest) if how is How.GUIDED else None
            return self._sampler.sample(images, tokens, count, x, free if how is How.COMMITTED else None, guide)
        prefix = self.encode(images, tokens, count)
        if how is How.GUIDED:
            velocity = pulled(self._velocities(prefix), target[None], weights, largest)
            return integrate(velocity, noise[None], self.num_steps)[0]
        return self.integrate(prefix, noise) if how is How.FREE else self.integrate(prefix, noise, given, free)

    @staticmethod
    def _require_device(device: torch.device) -> None:
        if device.type != "cuda":
            raise EngineError(f"engine 'graph' needs a CUDA device, and the model is on {device}; use 'fused'")

    def _record(self, run: Callable[[], T]) -> tuple[Callable[[], None], T]:
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
