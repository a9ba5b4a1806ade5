"""Which sample is at which position of a run: a pure function of the seed, so nothing has to be saved to resume."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_ORDER, _SAMPLE = 0, 1
"""Streams of random numbers that must not be the same."""


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(length)


def sample_at(position: int, length: int, seed: int) -> int:
    """Index of the sample at a position of the run: every epoch is another permutation of all samples."""
    epoch, place = divmod(position, length)
    return int(_permutation(seed, epoch, length)[place])


def generator_at(position: int, seed: int) -> np.random.Generator:
    """The random numbers of a position: augmentation, noise and time, whichever process draws them."""
    return np.random.default_rng([seed, _SAMPLE, position])


def micro_batch(step: int, micro: int, rank: int, *, micro_size: int, world_size: int, accumulation: int) -> range:
    """Positions of one forward pass. However a step is split, its ranks and passes have the same ones together."""
    start = step * micro_size * world_size * accumulation + (micro * world_size + rank) * micro_size
    return range(start, start + micro_size)
