"""Episodes of the DROID dataset as files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ki_ros.data.droid import Episode, EpisodeError
from ki_ros.rig import PANDA, CameraRole


@pytest.fixture
def directory(tmp_path):
    """One episode of three steps with images of the wrist camera."""
    np.savez(tmp_path / "episode_007.npz", state=np.zeros((3, 8), np.float32))
    (tmp_path / "episodes.json").write_text(json.dumps({"episode_007": {"length": 3, "task": "wave"}}))
    images = tmp_path / "images" / "episode_007"
    images.mkdir(parents=True)
    for step in range(3):
        pixels = np.full((4, 6, 3), 50 * step, np.uint8)
        Image.fromarray(pixels).save(images / f"wrist_image_left__image_{step + 1:08d}.png")
    return tmp_path


def test_a_real_episode(test_data):
    episode = Episode.load(test_data / "droid_100", 0)
    assert len(episode) == 166
    assert episode.instruction == "Put the marker in the pot"
    assert (episode.states[:, :7] >= PANDA.position_lower).all()
    assert (episode.states[:, :7] <= PANDA.position_upper).all()
    assert set(episode.image_files) == set(CameraRole)
    first, last = episode.image(CameraRole.WRIST, 0), episode.image(CameraRole.WRIST, len(episode) - 1)
    assert first.shape == last.shape == (180, 320, 3)
    assert np.abs(first.astype(int) - last).mean() > 1


def test_an_episode_without_images_has_none(test_data):
    assert Episode.load(test_data / "droid_100", 5).image_files == {}


def test_images_come_in_the_order_of_the_steps(directory):
    episode = Episode.load(directory, 7)
    assert [episode.image(CameraRole.WRIST, step)[0, 0, 0] for step in range(3)] == [0, 50, 100]


def test_an_unknown_episode_names_those_there_are(directory):
    with pytest.raises(EpisodeError, match=r"episode_008.npz does not exist.*7 to 7"):
        Episode.load(directory, 8)


def test_a_missing_image_is_named(directory):
    (directory / "images" / "episode_007" / "wrist_image_left__image_00000002.png").unlink()
    with pytest.raises(EpisodeError, match=r"wrist_image_left has no image of step 2"):
        Episode.load(directory, 7)


def test_states_that_are_not_finite_are_refused(directory):
    np.savez(directory / "episode_007.npz", state=np.full((3, 8), np.nan, np.float32))
    with pytest.raises(EpisodeError, match="expected finite"):
        Episode.load(directory, 7)
