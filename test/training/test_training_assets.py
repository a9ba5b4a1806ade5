"""What a FAST tokenizer is fitted to: some of the data's whole chunks, of which no others are made. Cameras, too."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console

from ki_ros.data.chunks import DroidChunks
from ki_ros.data.pointing import Pointing
from ki_ros.data.statistics import compute_norm_stats
from ki_ros.data.subset import Subset
from ki_ros.model.normalize import NormStats, Quantiles
from ki_ros.resize import resize_with_pad
from ki_ros.rig import ActionSpace, CameraRole
from ki_ros.training.assets import make_encoder, open_sources, prepare_assets, whole_chunks
from ki_ros.training.build import resolve_model
from ki_ros.training.config import TrainConfig, TrainConfigError, parse
from ki_ros.training.order import generator_at


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


def of_cameras(output: Path, test_data: Path, *views: str) -> TrainConfig:
    """A run on two real episodes with pictures of all three cameras."""
    data = {"kind": "droid", "directory": str(test_data / "droid_100"), "train": "0-1", "views": list(views)}
    return parse(tiny.settings(output, data=data, augment={"enabled": False}))


@pytest.mark.parametrize("exterior", ["exterior_1", "exterior_2"])
def test_the_exterior_camera_that_is_named_is_the_one_that_is_seen(test_data, tmp_path, exterior: str) -> None:
    config = of_cameras(tmp_path / "out", test_data, exterior, "wrist")
    model = resolve_model(config)
    sources = open_sources(config, model)
    assets = prepare_assets(config, sources, Console(quiet=True))
    encoder = make_encoder(config, model, assets, sources, training=True)
    sample = sources.train[40]
    images = encoder.encode(sample, generator_at(0, 0)).inputs.images
    assert list(images) == ["base_0_rgb", "left_wrist_0_rgb"]
    for slot, role in (("base_0_rgb", CameraRole(exterior)), ("left_wrist_0_rgb", CameraRole.WRIST)):
        np.testing.assert_array_equal(images[slot], resize_with_pad(sample.views[role], 28))


def test_a_camera_that_the_model_would_never_see_is_refused(test_data: Path, tmp_path: Path) -> None:
    config = of_cameras(tmp_path / "out", test_data, "exterior_1", "exterior_2", "wrist")
    with pytest.raises(TrainConfigError, match=r"data\.views has exterior_1 and exterior_2, but the model sees one"):
        open_sources(config, resolve_model(config))
