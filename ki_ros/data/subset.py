"""A part of a source of samples."""

from __future__ import annotations

import hashlib

import numpy as np

from ki_ros.data.chunks import DroidChunks
from ki_ros.data.pointing import Pointing
from ki_ros.rig import ActionSpace
from ki_ros.sample import Sample, sample_index


class Subset:
    """`count` samples of a source, spread evenly over those whose chunk lies within its episode.

    Raises:
        ValueError: the source has fewer.
    """

    def __init__(self, source: DroidChunks | Pointing, count: int) -> None:
        self._source = source
        whole = np.flatnonzero(source.whole())
        if not 1 <= count <= len(whole):
            raise ValueError(f"the data have {len(whole)} whole chunks, so a subset of {count} cannot be taken of them")
        self._indices = whole[np.linspace(0, len(whole) - 1, count).round().astype(int)]

    @property
    def action_space(self) -> ActionSpace:
        """Of the source."""
        return self._source.action_space

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the source's and of the choice."""
        return hashlib.sha256(self._source.fingerprint.encode() + self._indices.astype("<i8").tobytes()).hexdigest()

    def chunks(self, indices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (N, H, 8) float64 and masks (N, H) of samples by their indices (N,), or of all.

        No image is opened.
        """
        return self._source.chunks(self._indices if indices is None else self._indices[indices])

    def whole(self) -> np.ndarray:
        """(count,) bool, true: only whole chunks are chosen."""
        return np.ones(len(self), dtype=bool)

    def states_and_actions(self) -> tuple[np.ndarray, np.ndarray]:
        """Those of the whole source: a few samples are too few for statistics."""
        return self._source.states_and_actions()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._source[self._place(index)]

    def describe(self, index: int) -> str:
        """The source's words for the sample. Raises IndexError."""
        return self._source.describe(self._place(index))

    def _place(self, index: int) -> int:
        return int(self._indices[sample_index(index, len(self))])
