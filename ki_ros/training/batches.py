"""From samples to batches of tensors, in whichever process loads the data.

Shapes: B batch, S draws of noise, H action horizon, D action dimension.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ki_ros.model.config import KIConfig
from ki_ros.model.fast import FASTEncodeError, TokenizeFASTInputs
from ki_ros.model.flow import training_times
from ki_ros.model.inputs import EncodedInputs, InputError, PolicyInputs, collate_inputs
from ki_ros.model.losses import LossCounts
from ki_ros.model.observation import Observation
from ki_ros.rig import STATE_DIM, CameraRole
from ki_ros.sample import Sample, SampleSource
from ki_ros.training.augment import AugmentConfig, augment_view
from ki_ros.training.order import generator_at, micro_batch, sample_at

EVALUATION_SEED = 0
"""Of the draws in evaluation, whatever the run's seed is: runs that differ in it are compared on the same ones."""


class DataError(ValueError):
    """A sample that cannot be trained on; the message names it."""


@dataclass(frozen=True)
class EncodedSample:
    """One row of a batch: inputs, normalised actions (H, D), mask (H,), noise (S, H, D) and times (S,) or (S, H)."""

    inputs: EncodedInputs
    actions: np.ndarray
    action_mask: np.ndarray
    noise: np.ndarray
    time: np.ndarray


@dataclass(frozen=True)
class TrainingBatch:
    """What one forward pass is given.

    Attributes:
        observation: with FAST tokens.
        actions: (B, H, D) float32, normalised.
        action_mask: (B, H) bool.
        noise: (B, S, H, D) float32.
        time: (B, S) float32; (B, S, H) where the model is trained to go on from given actions, which have time 0.
    """

    observation: Observation
    actions: Tensor
    action_mask: Tensor
    noise: Tensor
    time: Tensor

    def counts(self) -> LossCounts:
        """Numbers of rows that carry each loss."""
        assert self.observation.fast_action_mask is not None
        return LossCounts(float(self.action_mask.any(1).sum()), float(self.observation.fast_action_mask.any(1).sum()))

    def to(self, device: torch.device) -> TrainingBatch:
        """The same on another device, without waiting for the copy."""
        tensors = (self.actions, self.action_mask, self.noise, self.time)
        return TrainingBatch(self.observation.to(device), *(t.to(device, non_blocking=True) for t in tensors))

    def pin_memory(self) -> TrainingBatch:
        """The same in page-locked memory, for the loader."""
        tensors = (self.actions, self.action_mask, self.noise, self.time)
        return TrainingBatch(self.observation, *(t.pin_memory() for t in tensors))


class SampleEncoder:
    """Normalisation, prompt, augmentation and random draws of one sample, and FAST tokens of a batch.

    Args:
        config: of the model.
        inputs: resizing, normalisation and prompt.
        fast: with the model's vocabulary.
        views: cameras to train with.
        require_views: whether a sample must have all of them.
        flow_samples: S.
        augment: None for none, as in evaluation.
    """

    def __init__(
        self,
        config: KIConfig,
        inputs: PolicyInputs,
        fast: TokenizeFASTInputs,
        *,
        views: Sequence[CameraRole],
        require_views: bool,
        flow_samples: int,
        augment: AugmentConfig | None,
    ) -> None:
        self._config = config
        self._inputs = inputs
        self._fast = fast
        self._views = tuple(views)
        self._required = self._views if require_views else ()
        self._flow_samples = flow_samples
        self._augment = augment if augment is not None and augment.enabled else None

    def encode(self, sample: Sample, generator: np.random.Generator) -> EncodedSample:
        """One row. Raises InputError, or DataError where the actions do not fit."""
        horizon, dim = self._config.action_horizon, self._config.action_dim
        if sample.actions.shape != (horizon, STATE_DIM) or sample.action_mask.shape != (horizon,):
            raise DataError(
                f"actions has shape {sample.actions.shape}, action_mask {sample.action_mask.shape}; the model's "
                f"horizon is {horizon}, so give ({horizon}, {STATE_DIM}) and ({horizon},)"
            )
        if not np.isfinite(sample.actions[sample.action_mask]).all():
            step, column = np.argwhere(~np.isfinite(sample.actions) & sample.action_mask[:, None])[0]
            raise DataError(f"actions[{step}, {column}] is {sample.actions[step, column]}; give finite actions")

        # Always the same draws in the same order, so that augmentation does not change the noise.
        noise = generator.standard_normal((self._flow_samples, horizon, dim), dtype=np.float32)
        time = training_times(generator.random(self._flow_samples).astype(np.float32))
        if self._config.committed_rows:
            committed = generator.integers(0, self._config.committed_rows, self._flow_samples, endpoint=True)
            # One valid row at least is left to learn.
            committed = np.minimum(committed, max(int(sample.action_mask.sum()) - 1, 0))
            time = time[:, None] * (np.arange(horizon) >= committed[:, None]).astype(np.float32)

        def augment(role: CameraRole, view: np.ndarray) -> np.ndarray:
            assert self._augment is not None
            return augment_view(view, generator, self._augment, geometric=role is not CameraRole.WRIST)

        views = {role: sample.views[role] for role in self._views if role in sample.views}
        inputs = self._inputs.encode(
            views,
            sample.state,
            sample.instruction,
            require=self._required,
            augment=None if self._augment is None else augment,
        )
        actions = np.zeros((horizon, dim), dtype=np.float64)
        actions[:, :STATE_DIM] = self._inputs.norm_stats.actions.normalize(sample.actions)
        return EncodedSample(inputs, actions, sample.action_mask, noise, time)

    def collate(self, rows: Sequence[EncodedSample]) -> TrainingBatch:
        """A batch of rows. Raises FASTEncodeError for actions that have no tokens, or too many."""
        actions = np.stack([row.actions for row in rows])
        action_mask = np.stack([row.action_mask for row in rows])
        observation = collate_inputs([row.inputs for row in rows], self._config)
        return TrainingBatch(
            self._fast(observation, actions, action_mask),
            torch.from_numpy(actions.astype(np.float32)),
            torch.from_numpy(action_mask),
            torch.from_numpy(np.stack([row.noise for row in rows])),
            torch.from_numpy(np.stack([row.time for row in rows])),
        )


class _Positions(Dataset):
    """Rows by their position in the run."""

    def __init__(self, source: SampleSource, encoder: SampleEncoder, seed: int) -> None:
        self._source, self._encoder, self._seed = source, encoder, seed

    def __getitem__(self, position: int) -> tuple[int, EncodedSample]:
        """With the index of the sample."""
        index = sample_at(position, len(self._source), self._seed)
        try:
            return index, self._encoder.encode(self._source[index], generator_at(position, self._seed))
        except (InputError, DataError) as error:
            raise DataError(f"sample {index}, {self._source.describe(index)}: {error}") from error


@dataclass(frozen=True)
class Split:
    """How a step's samples are split: this process, of how many, samples of a pass, passes of a step."""

    rank: int
    world_size: int
    micro_size: int
    accumulation: int


class _Order:
    """Positions of each forward pass of this process, from a step on, to the end."""

    def __init__(self, first_step: int, steps: int, split: Split) -> None:
        self._steps, self._split = range(first_step, steps), split

    def __iter__(self) -> Iterator[list[int]]:
        split = self._split
        for step in self._steps:
            for micro in range(split.accumulation):
                yield list(
                    micro_batch(
                        step,
                        micro,
                        split.rank,
                        micro_size=split.micro_size,
                        world_size=split.world_size,
                        accumulation=split.accumulation,
                    )
                )

    def __len__(self) -> int:
        return len(self._steps) * self._split.accumulation


class _Collate:
    """Of rows with their samples' indices, for errors to name; a class, so that worker processes can be sent it."""

    def __init__(self, source: SampleSource, encoder: SampleEncoder, what: str = "sample") -> None:
        self._source, self._encoder, self._what = source, encoder, what

    def __call__(self, rows: list[tuple[int, EncodedSample]]) -> TrainingBatch:
        try:
            return self._encoder.collate([row for _, row in rows])
        except FASTEncodeError as error:
            where = ""
            if error.chunk is not None:
                index = rows[error.chunk][0]
                where = f"{self._what} {index}, {self._source.describe(index)}: "
            raise DataError(f"{where}{error}; the setting is fast_max_tokens where the length is meant") from error


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: the trainer's next batch must not die of it before it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def training_batches(
    source: SampleSource,
    encoder: SampleEncoder,
    *,
    seed: int,
    first_step: int,
    steps: int,
    split: Split,
    workers: int,
    pin_memory: bool,
) -> Iterator[list[TrainingBatch]]:
    """For each step from `first_step` on, this process's forward passes.

    Raises:
        DataError: a sample that cannot be trained on.
        RuntimeError, OSError, EOFError: a worker has ended.
    """
    loader = DataLoader(
        _Positions(source, encoder, seed),
        batch_sampler=_Order(first_step, steps, split),
        collate_fn=_Collate(source, encoder),
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        # Not SIGTERM: it is how the loader ends them.
        worker_init_fn=_ignore_interrupts,
        # Forking a process that has threads of torch or CUDA in it may hang.
        multiprocessing_context="forkserver" if workers else None,
    )
    passes: list[TrainingBatch] = []
    for batch in loader:
        passes.append(batch)
        if len(passes) == split.accumulation:
            yield passes
            passes = []


def evaluation_batches(
    source: SampleSource, encoder: SampleEncoder, *, samples: int, size: int, rank: int, world_size: int
) -> Iterator[TrainingBatch]:
    """Up to `samples` samples, spread evenly over a source, with the same draws at every evaluation of every run.

    All processes get as many batches of the same size: where there is nothing left, a row is repeated without mask, so
    that it counts nowhere. Sharded models need all processes in every forward pass.

    Raises:
        DataError: a sample that cannot be evaluated.
    """
    count = min(samples, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    collate = _Collate(source, encoder, "held-out sample")
    for first in range(0, count, size * world_size):
        rows = []
        for place in range(first + rank * size, first + (rank + 1) * size):
            index = int(chosen[min(place, count - 1)])
            try:
                row = encoder.encode(source[index], generator_at(index, EVALUATION_SEED))
            except (InputError, DataError) as error:
                raise DataError(f"held-out sample {index}, {source.describe(index)}: {error}") from error
            if place >= count:
                row = EncodedSample(row.inputs, row.actions, np.zeros_like(row.action_mask), row.noise, row.time)
            rows.append((index, row))
        yield collate(rows)
