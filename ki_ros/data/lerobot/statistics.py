"""Statistics of a dataset's features as LeRobot keeps them, per episode and over all; exact, pictures too."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
"""Statistics of a feature, in the order of their columns."""

_LEVELS = np.arange(256, dtype=np.float64)


def row_statistics(rows: np.ndarray) -> dict[str, list[Any]]:
    """Statistics of each column of (N, D) rows, N > 0, computed in float64: lists of D floats, and `count` as [N].

    The standard deviation is the population's (divisor N); quantiles interpolate linearly between two rows.
    """
    values = np.asarray(rows, dtype=np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "count": [len(values)],
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }


class PixelCounts:
    """How often each of the 256 levels of each channel occurred: all that statistics of pictures need."""

    def __init__(self) -> None:
        self.frames = 0
        self._counts = np.zeros((3, len(_LEVELS)), dtype=np.int64)

    def add(self, image: np.ndarray) -> None:
        """Counts the pixels of an (H, W, 3) uint8 picture."""
        self.frames += 1
        for channel in range(3):
            # float32 counts pixels of one picture exactly, up to 2**24 of them.
            self._counts[channel] += cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)

    def merge(self, other: PixelCounts) -> None:
        """Adds what another has counted."""
        self.frames += other.frames
        self._counts += other._counts

    def statistics(self) -> dict[str, list[Any]]:
        """Statistics of each channel over all pixels, scaled to [0, 1]: [[[r]], [[g]], [[b]]], `count` as [frames].

        They are those of `row_statistics` over the pixels. At least one picture must have been added.
        """
        columns = [_of_counts(counts) for counts in self._counts]
        shaped = {name: [[[column[name] / 255.0]] for column in columns] for name in NAMES if name != "count"}
        return {name: [self.frames] if name == "count" else shaped[name] for name in NAMES}


def _of_counts(counts: np.ndarray) -> dict[str, float]:
    total = int(counts.sum())
    present = np.flatnonzero(counts)
    mean = float(counts @ _LEVELS) / total
    below = np.cumsum(counts)
    result = {
        "min": float(present[0]),
        "max": float(present[-1]),
        "mean": mean,
        "std": float(np.sqrt(counts @ (_LEVELS - mean) ** 2 / total)),
    }
    for name, quantile in QUANTILES.items():
        rank = quantile * (total - 1)
        low = int(rank)
        first, second = np.searchsorted(below, (low, min(low + 1, total - 1)), side="right")
        result[name] = float(first + (rank - low) * (second - first))
    return result
