from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ki_ros.data.chunks import DroidChunks
from ki_ros.data.pointing import Counterfactuals, Pointing
from ki_ros.data.subset import Subset
from ki_ros.rig import ActionSpace


@pytest.fixture
def source(test_data: Path) -> DroidChunks:
    return DroidChunks(test_data / "droid_100", [2, 3], action_space=ActionSpace.JOINT_VELOCITY, views=())


def test_subset_is_spread_over_whole_chunks(source: DroidChunks) -> None:
    subset = Subset(source, 10)
    assert len(subset) == 10
    samples = [subset[index] for index in range(10)]
    assert all(sample.action_mask.all() for sample in samples)
    assert {sample.instruction for sample in samples} == {source[0].instruction, source[len(source) - 1].instruction}
    actions, masks = subset.chunks()
    assert masks.all()
    np.testing.assert_array_equal(actions, np.stack([sample.actions for sample in samples]))
    # As many chunks reach past their episode's end as have fewer than the horizon's steps left: 14 of each episode.
    assert len(Subset(source, len(source) - 2 * 14)) == len(source) - 28


def test_chunks_are_those_of_the_samples(source: DroidChunks) -> None:
    actions, masks = source.chunks()
    for index in (0, 5, len(source) - 1):
        np.testing.assert_array_equal(actions[index], source[index].actions)
        np.testing.assert_array_equal(masks[index], source[index].action_mask)
    pointing = Pointing(4, side=16)
    np.testing.assert_array_equal(pointing.chunks()[0], np.stack([pointing[i].actions for i in range(4)]))


@pytest.mark.parametrize("horizon", [1, 15, 400])
def test_some_chunks_are_those_among_all(test_data: Path, horizon: int) -> None:
    """Horizons up to such that no chunk is whole."""
    episodes = DroidChunks(
        test_data / "droid_100", [2, 3, 4], horizon=horizon, action_space=ActionSpace.JOINT_VELOCITY, views=()
    )
    sources = [episodes, Pointing(30, side=16, horizon=max(horizon, 4))]
    sources += [Subset(source, 9) for source in sources if source.whole().any()]
    for source in sources:
        actions, masks = source.chunks()
        np.testing.assert_array_equal(source.whole(), masks.all(1))
        for indices in (np.arange(0, len(source), 7), np.array([len(source) - 1, 0, 3, 3])):
            some, some_masks = source.chunks(indices)
            np.testing.assert_array_equal(some, actions[indices])
            np.testing.assert_array_equal(some_masks, masks[indices])


def test_samples_are_described_by_step_and_episode(source: DroidChunks) -> None:
    ends = [index for index in range(len(source)) if source[index].action_mask.sum() == 1]
    assert source.describe(0) == "step 0 of episode_002"
    assert source.describe(ends[0]) == f"step {ends[0]} of episode_002"
    assert source.describe(ends[0] + 1) == "step 0 of episode_003"
    subset = Subset(source, 2)
    np.testing.assert_array_equal(subset[1].state, source[ends[1] - 14].state)
    assert subset.describe(1) == source.describe(ends[1] - 14) == f"step {ends[1] - ends[0] - 15} of episode_003"
    pointing = Pointing(6, side=16, seed=3)
    assert pointing.describe(4) in Counterfactuals(pointing).describe(4)
    for data in (source, subset):
        with pytest.raises(IndexError, match="samples are 0 to"):
            data.describe(len(data))


def test_other_subsets_have_other_fingerprints(source: DroidChunks) -> None:
    assert len({source.fingerprint, Subset(source, 10).fingerprint, Subset(source, 11).fingerprint}) == 3


@pytest.mark.parametrize("count", [0, -1, 10_000])
def test_subset_that_cannot_be_taken_is_refused(source: DroidChunks, count: int) -> None:
    with pytest.raises(ValueError, match=f"subset of {count}"):
        Subset(source, count)
    with pytest.raises(IndexError, match="samples are 0 to 2"):
        Subset(source, 3)[3]


def test_counterfactuals_ask_for_the_other_square() -> None:
    source = Pointing(6, side=16, seed=3)
    others = Counterfactuals(source)
    assert len(others) == len(source)
    assert others.fingerprint != source.fingerprint
    for index in range(6):
        one, other = source[index], others[index]
        assert one.instruction != other.instruction
        np.testing.assert_array_equal(one.state, other.state)
        assert all(np.array_equal(one.views[role], other.views[role]) for role in one.views)
        np.testing.assert_array_equal(other.actions, source.named_and_other(index)[1])
