"""What a FAST tokenizer is fitted to: some of the data's whole chunks, of which no others are made."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ki_ros.data.chunks import DroidChunks
from ki_ros.data.pointing import Pointing
from ki_ros.data.statistics import compute_norm_stats
from ki_ros.data.subset import Subset
from ki_ros.model.normalize import NormStats, Quantiles
from ki_ros.rig import ActionSpace
from ki_ros.training.assets import whole_chunks
from ki_ros.training.config import TrainConfigError


def statistics(source: DroidChunks | Pointing | Subset) -> NormStats:
    computed = compute_norm_stats(*source.states_and_actions(), minimum_range=0.01)["norm_stats"]
    return NormStats(
        *(Quantiles(*(np.array(computed[name][key]) for key in ("q01", "q99"))) for name in ("state", "actions"))
    )


@pytest.fixture(scope="module")
def droid(test_data: Path) -> DroidChunks:
    return DroidChunks(test_data / "droid_100", range(30), action_space=ActionSpace.JOINT_VELOCITY, views=())


@pytest.mark.parametrize("most", [1, 100, 5000, 100_000])
def test_every_so_many_of_the_whole_chunks_are_taken(droid: DroidChunks, most: int) -> None:
    for source in (droid, Subset(droid, 300), Pointing(120, side=16)):
        stats = statistics(source)
        actions, masks = source.chunks()
        whole = [
            normalised for normalised, mask in zip(stats.actions.normalize(actions), masks, strict=True) if all(mask)
        ]
        expected = whole[:: max(1, len(whole) // most)]
        taken = whole_chunks(source, stats, most)
        np.testing.assert_array_equal(taken, expected)
        assert len(taken) < 2 * most


def test_chunks_that_are_not_taken_are_not_made(droid: DroidChunks) -> None:
    stats = statistics(droid)
    everything = len(droid) * droid.horizon * 8 * 8
    tracemalloc.start()
    try:
        taken = whole_chunks(droid, stats, 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken.nbytes < everything / 50
    assert peak < everything / 5


def test_episodes_shorter_than_a_chunk_are_refused(test_data: Path) -> None:
    short = DroidChunks(test_data / "droid_100", [2], horizon=1000, action_space=ActionSpace.JOINT_VELOCITY, views=())
    with pytest.raises(TrainConfigError, match="give longer episodes"):
        whole_chunks(short, statistics(short))
