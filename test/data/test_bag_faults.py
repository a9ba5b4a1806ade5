"""Damaged recordings of episodes: nothing crashes, and nothing is lost without a word."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from made_bags import MadeBag, joints_at

from ki_ros.data.bag import BagError
from ki_ros.data.check import check_bag
from ki_ros.data.episodes import RecordingError, read_episodes


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    made = MadeBag().rig(1.5)
    made.start(0.1, "demo", "wipe the table")
    for t in np.arange(0.05, 1.5, 0.01):
        made.command(t, joints_at(t), 0.1)
    made.stop(1.4, "demo")
    path = made.write(tmp_path_factory.mktemp("intact") / "bag")
    (episode,) = read_episodes(path)
    return path, episode


@pytest.mark.parametrize("seed", range(24))
def test_flipped_bits_and_truncations(intact, tmp_path, seed):
    path, whole = intact
    copy = tmp_path / "bag"
    shutil.copytree(path, copy)
    file = copy / "bag_0.mcap"
    data = bytearray(file.read_bytes())
    random = np.random.default_rng(seed)
    if seed % 3 == 0:
        del data[int(random.integers(len(data))) :]
    else:
        for at in random.integers(len(data), size=seed % 3):
            data[at] ^= 1 << int(random.integers(8))
    file.write_bytes(data)
    try:
        episodes = read_episodes(copy)
    except (BagError, RecordingError):
        assert str(copy) in check_bag(copy).error
        return
    for episode in episodes:
        for step in range(len(episode)):
            views = episode.views(step)
            assert {pixels.shape for pixels in views.values()} == {(224, 224, 3)}
    same = len(episodes) == 1 and np.array_equal(episodes[0].states, whole.states)
    assert same or all(episode.damage for episode in episodes), "steps differ, and no damage is told"
