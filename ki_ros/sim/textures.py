"""Surfaces of the lab: procedural, so that no picture file has to be shipped."""

from __future__ import annotations

import numpy as np


def _smooth_noise(random: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Periodic noise in [0, 1] of that shape, bilinear between a grid of `cells` random values."""
    grid = random.random(cells)
    axes = []
    for size, count in zip(shape, cells, strict=True):
        position = np.arange(size) * count / size
        low = position.astype(int)
        axes.append((low, (low + 1) % count, position - low))
    (r0, r1, fr), (c0, c1, fc) = axes
    fr = fr[:, None]
    top = grid[np.ix_(r0, c0)] * (1 - fc) + grid[np.ix_(r0, c1)] * fc
    bottom = grid[np.ix_(r1, c0)] * (1 - fc) + grid[np.ix_(r1, c1)] * fc
    return top * (1 - fr) + bottom * fr


def wood(size: int = 512) -> np.ndarray:
    """Light beech with grain along the columns: (size, size, 3) uint8."""
    random = np.random.default_rng(7)
    shape = (size, size)
    grain = 0.5 * _smooth_noise(random, shape, (128, 4)) + 0.5 * _smooth_noise(random, shape, (32, 2))
    tone = _smooth_noise(random, shape, (6, 3))
    light, dark = np.array([206.0, 178.0, 142.0]), np.array([168.0, 134.0, 98.0])
    mix = np.clip(0.55 * grain + 0.35 * tone, 0, 1)[..., None]
    return (light * (1 - mix) + dark * mix).astype(np.uint8)


def speckle(colour: tuple[int, int, int], depth: float, size: int = 256) -> np.ndarray:
    """A painted or poured surface of that RGB colour, (size, size, 3) uint8; `depth` is the brightness it varies by."""
    random = np.random.default_rng(11)
    shape = (size, size)
    noise = 0.6 * _smooth_noise(random, shape, (8, 8)) + 0.4 * _smooth_noise(random, shape, (64, 64)) - 0.5
    return np.clip(np.array(colour, dtype=np.float64) + depth * noise[..., None], 0, 255).astype(np.uint8)
