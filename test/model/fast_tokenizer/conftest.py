"""Tokenizers and chunks of real episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ki_ros.model.fast import FASTTokenizer


@pytest.fixture(scope="session")
def fast_plus(test_data: Path) -> FASTTokenizer:
    return FASTTokenizer.from_directory(test_data / "fast_plus")


@pytest.fixture(scope="session")
def droid_chunks(test_data: Path) -> np.ndarray:
    """(N, 15, 8) actions of six episodes, scaled so that most are within [-1, 1]."""
    chunks = []
    for number in range(6):
        with np.load(test_data / "droid_100" / f"episode_{number:03d}.npz", allow_pickle=False) as arrays:
            state = arrays["state"].astype(np.float64)
        velocity = np.diff(state[:, :7], axis=0) / 0.2 * 4.0
        actions = np.concatenate([velocity, state[1:, 7:] * 2 - 1], axis=1)
        chunks.extend(actions[start : start + 15] for start in range(0, len(actions) - 14, 5))
    return np.stack(chunks)


@pytest.fixture(scope="session")
def fitted(droid_chunks: np.ndarray) -> FASTTokenizer:
    return FASTTokenizer.fit(droid_chunks, vocab_size=512)
